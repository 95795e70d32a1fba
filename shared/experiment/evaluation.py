"""The course of every paper's evaluation: plan, what the gates read, the gates, everything else.

A paper brings its cells and a measurer; here they are skipped where they are fresh, shared out over the processes, and counted.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from shared.errors import UserError
from shared.experiment.provenance import provenance
from shared.experiment.scale import plain
from shared.experiment.share import work_off
from shared.experiment.step import Values
from shared.experiment.store import Measurement, Store
from shared.files import remove_leftovers
from shared.metrics import intervals


class Measurer(Protocol):
    """What an evaluation needs of a paper's measurer."""

    config: object
    store: Store

    def key(self, cell) -> str:
        """Identity of everything a cell depends on."""

    def measure(self, group: list) -> None:
        """Measure and save some cells."""

    def cost(self, group: list) -> float:
        """How long a group takes, relative to others."""

    def gates(self, write: bool) -> list[dict]:
        """The gates, read off measured cells; `write`: record them."""


class Evaluation:
    """One evaluation of a paper on all processes. `stale`: the cells that have to be measured; `done`: those that a stage was given.

    names: said of a group of cells in its line of progress. more: what the plan records of the configuration beyond its fields. The main process
    writes the plan and removes what killed runs left; plan False: it does not, for a few cells that are measured ahead of the others.
    """

    def __init__(self, paper: str, scale: str, measurer: Measurer, accelerator, cells: Sequence, names: Callable[[list], str],
                 more: dict | None = None, plan: bool = True):
        self.measurer, self.accelerator, self.cells, self.names = measurer, accelerator, list(cells), names
        self.began = time.monotonic()
        store, config = measurer.store, measurer.config
        keys = {cell.slug(): measurer.key(cell) for cell in self.cells}
        self.stale = {cell for cell in self.cells if not store.fresh(cell.slug(), keys[cell.slug()])}
        self.done: set = set()
        if self.main and plan:
            remove_leftovers(config.results / scale / paper)
            store.write_plan({"paper": paper, "scale": scale, "config": {**plain(config), **(more or {})}, "headline": config.headline, "keys": keys,
                              "tags": {c.slug(): c.tags(config) for c in self.cells}})
            print(f"evaluation: {len(self.cells)} measurements, {len(self.cells) - len(self.stale)} already there", flush=True)

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def prepare(self, what: str, tasks: Sequence, cost: Callable, make: Callable, name: Callable) -> None:
        """Make what measurements read, each task on one process."""
        work_off(self.accelerator, what, tasks, cost, make, name)

    def measure(self, groups: Sequence[list]) -> None:
        """Measure the stale cells of each group; a group stays on one process."""
        self.done |= {cell for group in groups for cell in group}
        wanted = [kept for group in groups if (kept := [c for c in group if c in self.stale])]
        work_off(self.accelerator, "evaluation", wanted, self.measurer.cost, self.measurer.measure,
                 lambda group: f"{self.names(group)}, {len(group)} measurements")

    def left(self) -> list:
        """The cells that no stage was given so far."""
        return [cell for cell in self.cells if cell not in self.done]

    def pass_gates(self, failing: str, advice: str) -> None:
        """Raise UserError where a gate fails and gates are enforced: no defence may then be measured. failing: who does not pass, as a clause."""
        failed = [g for g in self.measurer.gates(write=self.main) if not g["passed"]]
        if failed and self.measurer.config.gates.enforce:
            names = "; ".join(f"{g['name']} is {g['value']:.3f}, must be {g['sense']} {g['threshold']:.3f}" for g in failed)
            raise UserError(f"no defence is measured, because {failing}: {names}. {advice}")

    def end(self, kind: Callable = lambda cell: cell.kind) -> None:
        """Say how long it took, and which kinds of measurement took it, as recorded by all processes."""
        if self.main:
            total: dict[str, float] = {}
            for cell in self.cells:
                found = self.measurer.store.load(cell.slug())
                total[kind(cell)] = total.get(kind(cell), 0.0) + (found.seconds if found else 0.0)
            split = ", ".join(f"{k} {v:.0f}" for k, v in total.items())
            print(f"evaluation: done in {time.monotonic() - self.began:.0f} s; seconds by kind, over all processes: {split}", flush=True)
        self.accelerator.end_training()


def save(store: Store, cell, key: str, config, measured: Values, seconds: float, seeds: tuple[int, ...], skipped: Sequence[str] = ()) -> None:
    """Keep one measurement with its interval over examples and its provenance; skipped: unreadable pictures that were left out."""
    values = np.asarray(measured.values, np.float64)
    estimate = intervals.mean({"all": values})
    store.save(Measurement(
        cell.slug(), key, estimate.value, estimate.low, estimate.high, len(values), seeds, measured.unit, round(seconds, 3), cell.tags(config),
        {**provenance(), "skipped": list(skipped)[:20], "skipped_count": len(skipped)}, measured.sanity, given=values, given_extra=measured.extra))
