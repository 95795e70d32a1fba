"""Measure every cell of every table.

    accelerate launch -m papers.pmg_aft.evaluate --scale cpu

First the gates: the pre-trained model must be good and the attack must break it, or no defence is measured. Then all models, shared out over the
processes; what was measured under the same key is skipped, so an interrupted run continues. Options are those of train.py.
"""

import time

from papers.pmg_aft.config import PRESETS, check
from shared.errors import UserError, run_main
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse, plain

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.pmg_aft.cells import CLIP, cells
    from papers.pmg_aft.measure import Measurer
    from papers.pmg_aft.models import Bench, fetch
    from shared.experiment.share import accelerator as start

    accelerator = start()
    began, main_process = time.monotonic(), accelerator.is_main_process
    measurer = Measurer(Bench(config, scale, accelerator.device))
    fetch(measurer.bench, accelerator)
    todo = cells(config)
    keys = {cell.slug(): measurer.key(cell) for cell in todo}
    if main_process:
        measurer.store.write_plan({"paper": "pmg_aft", "scale": scale, "config": plain(config), "headline": config.headline, "slugs": keys,
                                   "tags": {c.slug(): c.tags(config) for c in todo}})
    stale = [cell for cell in todo if not measurer.store.fresh(cell.slug(), keys[cell.slug()])]
    if main_process:
        print(f"evaluation: {len(todo)} measurements, {len(todo) - len(stale)} already there", flush=True)
    # the gate's own cells, one share each; everyone waits, for the gates read all of them
    of_gates = [c for c in stale if c.method == CLIP and c.kind == "accuracy" and c.strength.name in ("clean", "pgd")]
    _measure(accelerator, measurer, _by_model(of_gates, single=True))
    failed = [g for g in measurer.gates(write=main_process) if not g["passed"]]
    if failed and config.gates.enforce:
        names = "; ".join(f"{g['name']} is {g['value']:.3f}, must be {g['sense']} {g['threshold']:.3f}" for g in failed)
        raise UserError(f"no defence is measured, because the undefended model does not pass its gates: {names}. "
                        "Use a better pre-trained model or an ε that breaks it (--attack.eps).")
    _measure(accelerator, measurer, _by_model([c for c in stale if c not in of_gates]))
    if main_process:
        print(f"evaluation: done in {time.monotonic() - began:.0f} s; seconds by kind, over all processes: {measurer.split(todo)}", flush=True)
    accelerator.end_training()


def _measure(accelerator, measurer, groups: list[list]) -> None:
    from shared.experiment.share import work_off

    work_off(accelerator, "evaluation", groups, measurer.cost, measurer.measure, lambda group: f"{group[0].method}, {len(group)} measurements")


def _by_model(cells: list, single: bool = False) -> list[list]:
    groups: dict = {}
    for k, cell in enumerate(cells):
        # dear kinds are tasks of their own, so that the processes finish together
        name = k if single else (cell.model, cell.kind, cell.strength.kind == "auto" if cell.strength else None)
        groups.setdefault(name, []).append(cell)
    return list(groups.values())


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
