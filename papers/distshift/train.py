"""Train what the configuration does not find elsewhere: victims, adversarially trained victims, denoisers (weights `train`).

    accelerate launch -m papers.distshift.train --scale photos --data-root …

The cpu scale has all of them in the zoo and trains nothing. What exists under the same key is skipped; an interrupted training continues. With
several processes each takes whole trainings, so the weights do not depend on their number. `--help` lists every option.
"""

from papers.distshift.config import PRESETS, check
from shared.errors import run_main
from shared.files import remove_leftovers
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.distshift.runs import runs

    if not runs(config):
        print("training: nothing to train, all weights come from elsewhere (the zoo, files, or random)", flush=True)
        return

    from papers.distshift.models import Bench
    from shared.experiment.share import opened, work_off
    from shared.models.sources import is_fresh

    accelerator, bench = opened(Bench, config, scale)
    todo = [run for run in runs(config) if not is_fresh(run.checkpoint(config, scale), bench.run_key(run))]
    if accelerator.is_main_process:
        remove_leftovers(config.results / scale / "distshift")
        print(f"training: {len(runs(config))} networks, {len(runs(config)) - len(todo)} already there", flush=True)
    work_off(accelerator, "training", todo, lambda run: run.cost, lambda run: f"loss {train(bench, run):.3f}", lambda run: run.slug)
    accelerator.end_training()


def train(bench, run) -> float:
    """One training, saved under its key; returns the last loss."""
    from shared.models.classifier import random_classifier, save_classifier
    from shared.training.classify import train_classifier

    key, path = bench.run_key(run), run.checkpoint(bench.config, bench.scale)
    data = bench.labelled(run.spec, "train")
    partial = path.with_name(f"{run.slug}-{key[:12]}.ckpt")
    if run.what == "denoiser":
        loss = _denoiser(bench, run, data, partial, path, key)
    else:
        classifier = random_classifier(run.arch, data.num_classes, run.seed).to(bench.device)
        loss = train_classifier(classifier, data, run.training, run.seed, bench.device, partial, run.slug)
        save_classifier(classifier, path, {"key": key})
    partial.unlink(missing_ok=True)
    return loss


def _denoiser(bench, run, data, partial, path, key: str) -> float:
    from shared.diffusion.weights import CONFIGS, save_denoiser
    from shared.training.denoising import train_denoiser

    photographs = run.spec.startswith(("folder:", "named:"))  # drawn pictures and digits have a left and a right
    denoiser, loss = train_denoiser(run.training, data, run.arch, run.seed, bench.device, partial, photographs, name=run.slug)
    save_denoiser(denoiser.unet, path, CONFIGS[run.arch], denoiser.schedule, {"key": key})
    return loss


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
