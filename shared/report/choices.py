"""The table "How settings were chosen": the score of every candidate, and which was taken (`shared.steps.choice`)."""

from collections.abc import Mapping, Sequence

from shared.experiment.paper import Grid, Tags
from shared.report.shown import Filled
from shared.report.tables import Table


def candidate_grid(said: Mapping[str, Sequence[str]], common: Tags) -> Grid:
    """What `choices` draws. said: tag `method` -> its candidates in words, all different, in the order of the
    choice."""
    rows = {text: {"method": m, "candidate": k} for m, texts in said.items() for k, text in enumerate(texts)}
    return Grid(rows, {q: {"quantity": q} for q in ("score", "chosen")}, common)


def choices(
    tried: Filled, caption: str, growing: bool = False, by: Sequence[str] = ("method",), **look: object
) -> Table:
    """One row per candidate. tried: a grid of candidates × (score, taken), of `CandidateScore` without and with
    `chosen`. by: the tags that the candidates of one choice share. look: of the `Table`. growing: candidates are in
    growing order, and one that is taken at an end of the grid is said to be there, for a wider grid might have chosen
    another."""
    rows, choice = [], {row: [tags[tag] for tag in by] for row, tags in tried.grid.rows.items()}
    for row in tried.rows:
        score, taken = tried.row(row)
        mine = [other for other in tried.rows if choice[other] == choice[row]]
        end = " (end of the grid)" if growing and len(mine) > 2 and row in (mine[0], mine[-1]) else ""
        if score is not None and taken is not None:
            rows.append((row, [score, f"chosen{end}" if taken.value else ""]))
    return Table(["score", "outcome"], rows, caption, **look)
