"""newpaper as the scripts, the page and the tests see it."""

from papers.newpaper import tables
from papers.newpaper.config import PRESETS, check
from papers.newpaper.steps import number
from shared.experiment.paper import Paper, named


def describe(c: object, attack: str, **_: object) -> dict:
    """Tags beside those of the name: `set` is unique to the pictures and their attack, since means are taken over
    it."""
    return {"set": f"{c.data.spec} {attack}"}


PAPER = Paper("newpaper", PRESETS, check, [tables], number, named("kind", "method", "attack", "seed{}"), describe)
