"""Fine-tune the robust encoders (TeCoA, FARE) that DiffCAP is compared with. DiffCAP itself trains nothing.

    accelerate launch -m papers.diffcap.train --scale cpu

Runs whose weights exist under the same key are skipped; an interrupted run continues. With several processes each takes whole runs, so the weights
do not depend on their number. `--help` lists every option.
"""

import copy

from papers.diffcap.config import PRESETS, check
from shared.errors import run_main
from shared.files import remove_leftovers
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.diffcap.models import Bench
    from papers.diffcap.runs import runs
    from shared.experiment.share import opened, work_off
    from shared.models.sources import is_fresh

    accelerator, bench = opened(Bench, config, scale)
    todo = [run for run in runs(config) if not is_fresh(run.checkpoint(config, scale), bench.run_key(run))]
    if accelerator.is_main_process:
        remove_leftovers(config.results / scale / "diffcap")
        print(f"training: {len(runs(config))} robust encoders, {len(runs(config)) - len(todo)} already there", flush=True)
    work_off(accelerator, "training", todo, lambda run: float(run.tuning.steps * run.tuning.batch), lambda run: f"loss {train(bench, run):.3f}",
             lambda run: run.slug)
    accelerator.end_training()


def train(bench, run) -> float:
    """One fine-tuning, saved under its key; returns the last loss."""
    from papers.diffcap.runs import ATTACK
    from shared.attacks import Threat
    from shared.models.clip import save_tensors
    from shared.models.victim import ZeroShot, class_matrix
    from shared.training.adversarial import FARE, TeCoA, finetune, frozen

    config, key = bench.config, bench.run_key(run)
    data = bench.labelled(config.data.train, "train")
    clip = bench.open_clip(run.base)
    # a copy: the tower that the next run starts from stays as it is
    visual = copy.deepcopy(clip.visual)
    scale = clip.logit_scale.exp().item()
    victim = ZeroShot(visual, class_matrix(clip, data), scale).to(bench.device)
    objective = FARE(frozen(victim)) if run.method == "fare" else TeCoA()
    path = run.checkpoint(config, bench.scale)
    partial = path.with_name(f"{run.slug}-{key[:12]}.ckpt")
    loss = finetune(victim, objective, data, run.tuning, Threat("linf", config.baselines.tuned_eps), ATTACK, run.seed, bench.device, partial,
                    name=run.slug)
    save_tensors(victim.visual.state_dict(), path, {"key": key})
    partial.unlink(missing_ok=True)
    return loss


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
