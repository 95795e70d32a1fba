"""Measure every cell of every table.

    accelerate launch -m papers.distshift.evaluate --scale cpu

In this order: the pictures under attack that the gates need, the gates (the undefended victims must be good and PGD must break them, or no defence is
measured), the other pictures under attack, and all measurements, each shared out over the processes. What was made or measured under the same key is
skipped, so an interrupted run continues. Options are those of train.py.
"""

import time

from papers.distshift.config import PRESETS, check
from shared.errors import UserError, run_main
from shared.experiment.share import work_off
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse, plain

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.distshift.attacked import sources
    from papers.distshift.cells import cells, gate_cells
    from papers.distshift.measure import Measurer
    from papers.distshift.models import Bench, fetch
    from shared.experiment.share import accelerator as start
    from shared.files import remove_leftovers

    accelerator = start()
    began = time.monotonic()
    measurer = Measurer(Bench(config, scale, accelerator.device))
    fetch(measurer.bench, accelerator)
    todo = cells(config)
    keys = {cell.slug(): measurer.key(cell) for cell in todo}
    stale = [cell for cell in todo if not measurer.store.fresh(cell.slug(), keys[cell.slug()])]
    if accelerator.is_main_process:
        remove_leftovers(config.results / scale / "distshift")
        names = {p.data: measurer.bench.labelled(p.data).name for p in config.protected}  # which say what the pictures are (ImageNet30)
        measurer.store.write_plan({"paper": "distshift", "scale": scale, "config": {**plain(config), "names": names}, "headline": config.headline,
                                   "slugs": keys, "tags": {c.slug(): c.tags(config) for c in todo}})
        print(f"evaluation: {len(todo)} measurements, {len(todo) - len(stale)} already there", flush=True)
    stages = Stages(measurer, accelerator, set(stale))
    first = gate_cells(config)
    stages.attack(sources([c for c in first if c in stages.stale]))
    stages.measure([[c] for c in first])
    failed = [g for g in measurer.gates(write=accelerator.is_main_process) if not g["passed"]]
    if failed and config.gates.enforce:
        names = "; ".join(f"{g['name']} is {g['value']:.3f}, must be {g['sense']} {g['threshold']:.3f}" for g in failed)
        raise UserError(f"no defence is measured, because the undefended victims do not pass their gates: {names}. "
                        "Use better victims or radii that break them (--attack.linf, --attack.l2).")
    stages.attack(sources(stale))
    stages.measure(groups([c for c in todo if c not in stages.done]))
    if accelerator.is_main_process:
        print(f"evaluation: done in {time.monotonic() - began:.0f} s; seconds by kind, over all processes: {measurer.split(todo)}", flush=True)
    accelerator.end_training()


class Stages:
    """Work shared out over the processes, everyone waiting for everyone at the end of each stage."""

    def __init__(self, measurer, accelerator, stale: set):
        self.measurer, self.accelerator, self.stale, self.done = measurer, accelerator, stale, set()

    def attack(self, found: list) -> None:
        """Make the attacked pictures that are missing, and those that hold the checks of their attacks."""
        attacked = self.measurer.attacked
        missing = [s for s in dict.fromkeys([*found, *map(attacked.checked, found)]) if attacked.missing(s)]
        work_off(self.accelerator, "attacks", missing, attacked.cost, attacked.make, lambda source: source.name)

    def measure(self, grouped: list[list]) -> None:
        """Measure the stale cells of each group; a group stays on one process."""
        self.done |= {cell for group in grouped for cell in group}
        grouped = [kept for group in grouped if (kept := [c for c in group if c in self.stale])]
        work_off(self.accelerator, "evaluation", grouped, self.measurer.cost, self.measurer.measure,
                 lambda group: f"{group[0].kind} {group[0].method} {group[0].spec}, {len(group)} measurements")


def groups(cells: list) -> list[list]:
    """Cells that share pictures, an attack or a purification are measured together."""
    out: dict = {}
    for cell in cells:
        point = dict(cell.point)
        shared = {"adaptive": (cell.method, point.get("against"), cell.norm), "cost": (cell.method,), "distribution": (cell.method,),
                  "quality": (cell.method, cell.attack, cell.norm), "norm": (), "score": (cell.spec, cell.method, cell.attack, cell.norm)}
        name = (cell.kind, *shared.get(cell.kind, (cell.method, cell.norm, *point.values())))
        out.setdefault(name, []).append(cell)
    return list(out.values())


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
