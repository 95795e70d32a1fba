"""The table of what was chosen has a row per candidate, and says where a wider grid might have chosen another."""

from types import SimpleNamespace

import pytest

from shared.metrics.intervals import Estimate
from shared.report.choices import candidate_grid, choices
from shared.report.shown import Filled


def filled(taken: dict[str, int], missing: str = "") -> Filled:
    """Three candidates of each of two methods, those of `missing` not measured."""
    grid = candidate_grid({m: [f"{m} {k}" for k in range(3)] for m in taken}, {"kind": "choice"})

    class Given(Filled):
        def __getitem__(self, at):
            (tags,) = self.grid.cell(*at)
            if tags["method"] == missing:
                return None
            chosen = float(taken[tags["method"]] == tags["candidate"])
            return Estimate(chosen if tags["quantity"] == "chosen" else 0.5, 0.4, 0.6, 96)

    return Given(SimpleNamespace(), grid)


@pytest.mark.parametrize(("growing", "end"), [(False, ""), (True, " (end of the grid)")])
def test_a_row_for_every_candidate(growing, end):
    table = choices(filled({"a": 1, "b": 2}), "Settings.", growing)
    assert [label for label, _ in table.rows] == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    assert [cells[1] for _, cells in table.rows] == ["", "chosen", "", "", "", f"chosen{end}"]
    assert {cells[0].value for _, cells in table.rows} == {0.5}


def test_what_was_not_measured_has_no_row():
    assert [label for label, _ in choices(filled({"a": 1, "b": 2}, "a"), "").rows] == ["b 0", "b 1", "b 2"]
