"""Tables of estimates: built from selectors or by hand (`table_text` writes them).

table = from_results(
    results,
    rows={"TeCoA": {"method": "tecoa"}, "PMG-AFT": {"method": "pmg_aft"}},
    columns={"shape": {"set": "shape"}, "zero-shot mean": {"role": "zero_shot"}},
    common={"attack": "pgd10", "group": "main"},
    caption="Robust accuracy (%), PGD-10.",
)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shared.claims.selection import Selector
from shared.errors import UserError
from shared.metrics.intervals import Estimate
from shared.options import Worded

Cell = Estimate | str | None
PM_FROM = 6  # from so many columns on, intervals are written ±half instead of [low, high]


@dataclass(frozen=True)
class Table(Worded):
    """Rows of cells under `columns`. An estimate is shown times `factor` with `digits` decimals, one number for all or
    by column name.

    `bold` holds the (row, column) positions to print bold. `interval` is "brackets", "pm", "none" or "auto" (by the
    number of columns).
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    caption: str = ""
    notes: Sequence[str] = ()
    corner: str = ""
    factor: float | Mapping[str, float] = 100
    digits: int | Mapping[str, int] = 1
    bold: Collection[tuple[int, int]] = frozenset()
    interval: Literal["auto", "brackets", "pm", "none"] = "auto"

    def __post_init__(self):
        super().__post_init__()
        for label, cells in self.rows:
            if len(cells) != len(self.columns):
                raise UserError(
                    f"table row {label!r} has {len(cells)} cells, but there are {len(self.columns)} columns"
                )

    def beside(self, more: Mapping[str, Mapping[str, Cell]]) -> "Table":
        """The same with further columns: label -> row -> cell."""
        rows = [(label, [*cells, *(column.get(label) for column in more.values())]) for label, cells in self.rows]
        return replace(self, columns=[*self.columns, *more], rows=rows)

    def shown(self, column: int, cell: Estimate) -> Estimate:
        """A cell in the unit of its column."""
        return cell.scaled(self._of(self.factor, column, 100))

    def numbers(self, column: int, cell: Estimate) -> tuple[str, str, str, str]:
        """(value, low, high, half width) as text with the column's decimals; no half width where ± would not be true of
        both sides."""
        digits, e = self._of(self.digits, column, 1), self.shown(column, cell)
        value, low, high, half = (f"{x:.{digits}f}".replace("inf", "∞") for x in (e.value, e.low, e.high, e.half_width))
        return value, low, high, "" if e.lopsided else half

    @property
    def interval_style(self) -> str:
        """`interval`, with "auto" resolved."""
        return ("pm" if len(self.columns) >= PM_FROM else "brackets") if self.interval == "auto" else self.interval

    @property
    def all_notes(self) -> list[str]:
        """The notes, and a line on what the intervals and the bold print mean."""
        cells = [cell for _, row in self.rows for cell in row if isinstance(cell, Estimate)]
        if not cells:
            return list(self.notes)
        seeds = sorted({cell.seeds for cell in cells})
        what = "examples and seeds" if seeds[-1] > 1 else "examples"
        count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        line = f"Intervals: 95 %, over {what}; {count} seed{'' if seeds == [1] else 's'}."
        if self.interval_style == "pm":
            line += " ± is half the interval, its ends are in the CSV file; an interval that lies mostly on one side is given by its ends."
        if self.bold:
            line += " Bold: best of its column, where the intervals support it."
        return [*self.notes, line]

    def _of(self, setting, column: int, default):
        return setting.get(self.columns[column], default) if isinstance(setting, Mapping) else setting


def from_results(results, rows: Mapping[str, Selector], columns: Mapping[str, Selector], *, common: Selector | None = None,
                 best: str | None = "max", **options) -> Table | None:  # fmt: skip
    """A table whose cell (r, c) is the estimate of `common`, rows[r] and columns[c] together; None when nothing is
    measured.

    `best` is "max", "min" or None: the best row of a column is bold if its paired difference to every other row
    excludes zero. Rows without any measurement are left out. `options` go to `Table`.
    """
    grid = {
        label: [results.values({**(common or {}), **row, **column}) for column in columns.values()]
        for label, row in rows.items()
    }
    return of_values(grid, columns, best, **options)


def of_values(grid: Mapping, columns: Sequence[str], best: str | Mapping[str, str] | None = "max", among: Collection[str] | None = None,
              **options) -> Table | None:  # fmt: skip
    """The same from the values of every cell, row by row. best: also by column; among: the rows of which the best is
    bold (None: all)."""
    grid = {label: cells for label, cells in grid.items() if any(cells)}
    if not grid:
        return None
    cells = [(label, [selected and selected.mean() for selected in line]) for label, line in grid.items()]
    bold = set()
    for c, column in enumerate(columns):
        sense = best.get(column) if isinstance(best, Mapping) else best
        if sense:
            rivals = [line[c] if among is None or label in among else None for label, line in cells]
            winner = _winner([line[c] for line in grid.values()], rivals, 1 if sense == "max" else -1)
            bold |= {(winner, c)} if winner is not None else set()
    missing = {slug for line in grid.values() for selected in line if selected for slug in selected.missing}
    if missing:
        options["notes"] = [
            *options.get("notes", ()),
            f"Incomplete: {len(missing)} planned measurements behind these cells are missing.",
        ]
    return Table(list(columns), cells, bold=frozenset(bold), **options)


def _winner(selected: list, estimates: list[Estimate | None], sign: int) -> int | None:
    there = [r for r, e in enumerate(estimates) if e is not None]
    if len(there) < 2:
        return None
    best = max(there, key=lambda r: sign * estimates[r].value)
    rivals = [selected[best].minus(selected[r]).scaled(sign) for r in there if r != best]
    return best if all(rival.low > 0 for rival in rivals) else None
