"""Poison the pairs, train plain CLIPs on them, hold those against the gates, and train the defences.

    accelerate launch -m papers.roclip.train --scale cpu

In this order, because each reads the one before: CLIP without and with augmentation, by pre-training and by fine-tuning; the gates (a poison that
these do not learn shows nothing about a defence, and everything stops here); RoCLIP, the other defences, the ablations. With several processes each
takes whole trainings, so the weights do not depend on their number; with --together (paper scale) all of them share every batch. What exists under
the same key is skipped; an interrupted training continues. `--help` lists every option.
"""

from papers.roclip.config import PRESETS, check
from shared.errors import run_main
from shared.files import remove_leftovers
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.roclip.cells import cells, gate_cells, runs
    from papers.roclip.evaluate import FAILED, groups
    from papers.roclip.measure import Measurer
    from papers.roclip.models import Bench
    from papers.roclip.runs import cost, is_done, train
    from shared.experiment.evaluation import Evaluation
    from shared.experiment.share import opened, work_off

    accelerator, bench = opened(Bench, config, scale)
    measurer = Measurer(bench)
    if accelerator.is_main_process:
        remove_leftovers(config.results / scale / "roclip")
    planned, gated = runs(cells(config)), gate_cells(config)

    def stage(name: str, found: list) -> None:
        accelerator.wait_for_everyone()
        todo = [run for run in found if not is_done(bench, run)]
        if accelerator.is_main_process:
            print(f"{name}: {len(found)}, {len(found) - len(todo)} already there", flush=True)
        accelerator.wait_for_everyone()
        for run in [r for r in todo if config.together and r.method != "safeclip"]:
            said = train(bench, run, accelerator)
            accelerator.free_memory()
            if accelerator.is_main_process:
                print(f"{name}: {run.slug}, {said}", flush=True)
        rest = [r for r in todo if not config.together or r.method == "safeclip"]
        work_off(accelerator, name, rest, lambda run: cost(config, run), lambda run: train(bench, run), lambda run: run.slug)

    stage("plain CLIPs", runs(gated))
    evaluation = Evaluation("roclip", scale, measurer, accelerator, gated, lambda group: f"{group[0].regime} {group[0].method}", plan=False)
    evaluation.measure(groups(gated))
    evaluation.pass_gates(*FAILED)
    stage("defences", [r for r in planned if r not in runs(gated)])
    accelerator.end_training()


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
