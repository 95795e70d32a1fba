"""What the table of newpaper shows, by the tags of its numbers; what is measured is read off here. No model is
loaded."""

from typing import TYPE_CHECKING

from shared.experiment.paper import Grid
from shared.report.shown import Shown, table

if TYPE_CHECKING:
    from papers.newpaper.config import Config

METHODS = {"none": "no defence", "blur": "blur", "newpaper": "mean over shifts"}
ATTACKS = {"clean": "clean", "pgd": "PGD"}


def scores(c: "Config", *methods: str) -> Grid:
    """Methods × attacks. Nothing here is random, so one seed."""
    rows = {METHODS[m]: {"method": m} for m in methods}
    return Grid(rows, {label: {"attack": a} for a, label in ATTACKS.items()}, {"kind": "score"}, c.seeds[:1])


@table
def main(c: "Config") -> Shown:
    grid = scores(c, *METHODS)
    caption = f"Accuracy (%) on {c.data.n} pictures; PGD on the undefended model, ε = {c.attack.eps * 255:g}/255."
    return Shown(grid.rows, grid.columns, grid.common, grid.seeds, caption)


def headline(c: "Config") -> list[Grid]:
    """What the claims of the abstract read."""
    return [scores(c, "none", "newpaper")]
