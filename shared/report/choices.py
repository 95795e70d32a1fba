"""The table "How settings were chosen": the score of every candidate, and which was taken (`shared.steps.choice`)."""

from shared.report.shown import Filled
from shared.report.tables import Table


def choices(scores: Filled, taken: Filled, caption: str, **look: object) -> Table:
    """One row per method. scores, taken: grids of methods × candidates, the candidates in growing order, of
    `CandidateScore` without and with `chosen`. look: of the `Table`. A choice at an end of the grid is said to be there:
    a wider grid might have chosen another."""
    column: dict[str, str] = {}
    for row in taken.rows:
        for candidate, estimate in zip(taken.columns, taken.row(row), strict=True):
            if estimate is not None and estimate.value == 1:
                at_end = candidate in (taken.columns[0], taken.columns[-1])
                column[row] = f"{candidate} (end of the grid)" if at_end and len(taken.columns) > 2 else candidate
    rows = [(row, cells) for row in scores.rows if any(cells := scores.row(row))]
    return Table(list(scores.columns), rows, caption, **look).beside({"chosen": column})
