"""Optimise patches, poison CLIPs, hold them against the gates, and train the defences.

    accelerate launch -m papers.rvpt.train --scale cpu

In this order, because each reads the one before: patches; poisoned CLIPs; the gates (an attack that does not take, or costs clean accuracy, stops
here: no defence of such a model means anything); defences. Each stage is shared out over the processes in whole trainings, so the weights do not
depend on their number. What exists under the same key is skipped; an interrupted training continues. `--help` lists every option.
"""

from papers.rvpt.config import PRESETS, check
from shared.errors import run_main
from shared.files import remove_leftovers
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.rvpt import runs
    from papers.rvpt.cells import cells, gate_cells
    from papers.rvpt.evaluate import FAILED, groups
    from papers.rvpt.measure import Measurer
    from papers.rvpt.models import Bench
    from papers.rvpt.training import train
    from shared.experiment.evaluation import Evaluation
    from shared.experiment.share import opened, work_off
    from shared.models.sources import is_fresh

    accelerator, bench = opened(Bench, config, scale)
    measurer = Measurer(bench)
    if accelerator.is_main_process:
        remove_leftovers(config.results / scale / "rvpt")
    planned, gated = cells(config), gate_cells(config)
    look(measurer, planned)

    def stage(name: str, found: list) -> None:
        todo = [run for run in found if not is_fresh(runs.checkpoint(config, scale, run), bench.key(run))]
        if accelerator.is_main_process:
            print(f"{name}: {len(found)}, {len(found) - len(todo)} already there", flush=True)
        work_off(accelerator, name, todo, lambda run: runs.cost(config, run), lambda run: train(bench, run), lambda run: run.slug)

    poisons = runs.poisons(config, planned)
    patched, plain = ([p for p in poisons if (p.attack in runs.OPTIMISED) == yes] for yes in (True, False))
    # the plain ones keep all processes busy while patches are made, but for as many as fill up the round of those that need one
    now = max(0, len(plain) - (-len(patched) % accelerator.num_processes))
    stage("optimised patches, poisoned CLIPs", runs.patches(config, planned) + plain[:now])
    stage("poisoned CLIPs, also by patches", patched + plain[now:])
    evaluation = Evaluation("rvpt", scale, measurer, accelerator, gated, lambda group: f"{group[0].method} {group[0].attack}", plan=False)
    evaluation.measure(groups(gated))
    evaluation.pass_gates(*FAILED)
    stage("defences", runs.supervised(config, planned) + runs.defences(config, planned))
    accelerator.end_training()


def look(measurer, planned: list) -> None:
    """Open all that is read later, so that a set that is missing, or has no class to plant, is said before anything is trained."""
    from papers.rvpt.downstream import SHOWN

    bench = measurer.bench
    for place, at, tuned in dict.fromkeys((c.place, c.at, c.tuned) for c in planned):
        bench.label(place, at)
        bench.labelled(bench.config.spec(tuned), "train")
    for kind in dict.fromkeys(c.kind for c in planned if c.kind in SHOWN):
        SHOWN[kind](measurer)


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
