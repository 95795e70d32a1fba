"""What a paper shows, said once: tables and figures as grids of numbers. What is measured is read off them, and so is
what is drawn.

    @table
    def robust(c):                                   # c: the configuration
        return Shown(METHODS, columns(c), {"kind": "accuracy", "attack": "pgd"}, c.seeds, "Robust accuracy (%).")

    @figure(lambda c: Grid(METHODS, columns(c), {"kind": "accuracy"}, c.seeds))
    def fig_tradeoff(filled):                        # filled["TeCoA", "clean"] is an Estimate, or None where nothing is measured
        "The caption."

    @claimed
    def paired(c):                                   # what claims read and nothing shows
        return [Grid(…)]

Each becomes a function results -> table or figure (None where nothing is measured) with an attribute `grids`:
configuration -> its grids. When the page is drawn, c is what the plan recorded of the configuration: the same fields,
lists in place of tuples; properties and methods of the paper's classes are not there, so what tables compute from a
configuration is a function of theirs.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from matplotlib.figure import Figure

from shared.claims.selection import Selected, gather
from shared.experiment.paper import Grid
from shared.experiment.store import Measurement
from shared.metrics.intervals import Estimate
from shared.report import tables
from shared.report.data import Results


@dataclass(frozen=True)
class Shown(Grid):
    """A grid with all that a table needs. best: which row of a column is bold, "max", "min" or None, for all columns or
    by column; among: the rows that compete (None: all). factor, digits: as in `tables.Table`.

    over: further columns, label -> (column, row): each row of that column as a multiple of that row. notes: below the
    table. interval: as in `tables.Table`.
    """

    caption: str = ""
    best: str | Mapping[str, str] | None = "max"
    among: Sequence[str] | None = None
    factor: float | Mapping[str, float] = 100
    digits: int | Mapping[str, int] = 1
    over: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    interval: str = "auto"


def pictures_in_words(c: object) -> str:
    """Behind a caption, what the user calls the pictures (`--data.label`)."""
    label = getattr(c.data, "label", "")  # results of before it was there have none
    return f" Pictures: {label}." if label else ""


class Filled:
    """A grid with what was measured: filled[row, column] is an Estimate, or None unless all of its numbers are
    there."""

    def __init__(self, results: Results, grid: Grid):
        self.results, self.grid, self.rows, self.columns = results, grid, list(grid.rows), list(grid.columns)

    @property
    def config(self) -> object:
        """The configuration of the run."""
        return view(self.results.config)

    def measurements(self, row: str, column: str) -> list[Measurement]:
        """The measurements behind a cell, [] unless all are there."""
        found = [self.results.by_tags.get(frozenset(tags.items())) for tags in self.grid.cell(row, column)]
        if not all(found) or any((m.slug in self.results.apart) != self.grid.apart for m in found):
            return []
        self.results.note(m.slug for m in found)
        return found

    def values(self, row: str, column: str) -> Selected | None:
        """The (seeds, examples) matrices behind a cell."""
        found = self.measurements(row, column)
        return gather(found, {}) if found else None

    def __getitem__(self, at: tuple[str, str]) -> Estimate | None:
        values = self.values(*at)
        return values and values.mean()

    def row(self, label: str) -> list[Estimate | None]:
        """The estimates of a row."""
        return [self[label, column] for column in self.columns]

    def series(self) -> dict[str, list[Estimate | None]]:
        """label -> estimates, of rows that have any."""
        return {label: cells for label in self.rows if any(cells := self.row(label))}

    def __iter__(self) -> Iterator[Estimate | None]:
        return (self[row, column] for row in self.rows for column in self.columns)


YOURS = "yours"


def yours(c: object) -> dict[str, str]:
    """method -> label of the row of the user's own (docs/yours.md); {} where there is none. c: any configuration."""
    spec = getattr(c, "yours", "")
    return {YOURS: f"yours: {spec.rpartition(':')[2]}"} if spec else {}


def with_yours(labels: Mapping[str, str], c: object, methods: Iterable[str] | None = None) -> dict[str, str]:
    """method -> label of some methods (None: of all), the user's own last."""
    return {m: labels[m] for m in (labels if methods is None else methods)} | yours(c)


def table(make: Callable[[object], Shown]) -> Callable[[Results], tables.Table | None]:
    """Mark a function configuration -> Shown as a table of the paper."""

    def draw(results: Results) -> tables.Table | None:
        s = make(view(results.config))
        filled = Filled(results, s)
        rows = {label: [filled.values(label, column) for column in s.columns] for label in s.rows}
        columns = [column for k, column in enumerate(s.columns) if any(line[k] for line in rows.values())]
        rows = {label: [filled.values(label, column) for column in columns] for label in rows}
        look = {"caption": s.caption, "factor": s.factor, "digits": s.digits, "notes": s.notes, "interval": s.interval}
        drawn = tables.of_values(rows, columns, s.best, s.among, **look)
        return drawn and drawn.beside({label: _multiples(filled, *of) for label, of in s.over.items()})

    return _marked(draw, make, lambda c: [make(c)])


def figure(*grids: Callable[[object], Grid]) -> Callable:
    """Mark a function of filled grids -> matplotlib figure as a figure of the paper; each of `grids` is a function of
    the configuration."""

    def mark(make: Callable) -> Callable:
        def draw(results: Results) -> Figure | tables.Table | None:
            c = view(results.config)
            filled = [Filled(results, grid(c)) for grid in grids]
            return make(*filled) if any(any(f) for f in filled) else None

        return _marked(draw, make, lambda c: [grid(c) for grid in grids])

    return mark


table_of = figure
"""The same for a table that is made by hand: a function of filled grids -> `tables.Table`."""


def claimed(make: Callable[[object], Sequence[Grid]]) -> Callable[[object], Sequence[Grid]]:
    """Mark a function configuration -> grids as what claims read and nothing shows. It is planned, and drawn
    nowhere."""
    make.grids = make
    return make


def _marked(draw: Callable, make: Callable, grids: Callable) -> Callable:
    functools.update_wrapper(draw, make)
    draw.grids = grids
    return draw


def _multiples(filled: Filled, column: str, base: str) -> dict[str, str]:
    there = {row: filled[row, column] for row in filled.rows}
    return {row: f"{e.value / there[base].value:.2f}×" for row, e in there.items() if e and there[base]}


def view(config: object) -> object:
    """A configuration read from JSON, with its fields as attributes."""
    return SimpleNamespace(**{k: view(v) for k, v in config.items()}) if isinstance(config, Mapping) else config
