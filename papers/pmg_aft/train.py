"""Fine-tune every model of the reproduction.

    accelerate launch -m papers.pmg_aft.train --scale cpu

Runs whose weights exist under the same key are skipped; an interrupted run continues. With several processes each takes whole runs, so the weights
do not depend on their number. `--headline` trains TeCoA and PMG-AFT only; `--help` lists every option.
"""

from papers.pmg_aft.config import PRESETS, check
from shared.errors import run_main
from shared.files import remove_leftovers
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.pmg_aft.models import Bench, pretrain_base
    from papers.pmg_aft.runs import cost, runs
    from shared.experiment.share import opened, work_off

    accelerator, bench = opened(Bench, config, scale)
    if config.model.pretrained == "pretrain":
        pretrain_base(bench, accelerator)
    todo = [run for run in runs(config) if not _done(bench, run)]
    if accelerator.is_main_process:
        remove_leftovers(config.results / scale / "pmg_aft")
        print(f"training: {len(runs(config))} runs, {len(runs(config)) - len(todo)} already there", flush=True)
    work_off(accelerator, "training", todo, cost, lambda run: f"loss {train(bench, run):.3f}", lambda run: run.slug)
    accelerator.end_training()


def _done(bench, run) -> bool:
    from shared.models.sources import is_fresh

    steps = [None, *(curve_steps(bench.config, run) if run.curve else ())]
    return all(is_fresh(run.checkpoint(bench.config, bench.scale, step), bench.run_key(run)) for step in steps)


def curve_steps(config, run) -> list[int]:
    """Updates after which a snapshot is kept for the curve along training (0 is the pre-trained model, the last one the result)."""
    return [s for s in config.sweeps.curve if 0 < s < run.tuning.steps] if run.curve else []


def objective(bench, run, victim):
    """The objective of a run; the frozen copy that FARE and PMG-AFT need is taken from `victim` as it is now."""
    from papers.pmg_aft.baselines import Contrastive
    from papers.pmg_aft.method import PMGAFT
    from shared.training.adversarial import FARE, TeCoA, frozen

    return {"ft_clean": lambda: Contrastive(False), "ft_adv": lambda: Contrastive(True), "tecoa": TeCoA, "fare": lambda: FARE(frozen(victim)),
            "pmg_aft": lambda: PMGAFT(frozen(victim), run.loss)}[run.objective]()


def train(bench, run) -> float:
    """One fine-tuning, saved under its key; returns the last loss."""
    from shared.attacks import Threat
    from shared.models.clip import save_tensors
    from shared.training.adversarial import finetune

    config, key = bench.config, bench.run_key(run)
    data = bench.labelled(run.train, "train")
    victim = bench.victim(data, bench.fresh_visual(), run.face.norm, bench.scale_of(run.face))
    steps = curve_steps(config, run)

    def save(step: int | None) -> None:
        save_tensors(victim.visual.state_dict(), run.checkpoint(config, bench.scale, step), {"key": key})

    def snapshot(step: int) -> None:
        if step in steps:
            save(step)

    partial = run.checkpoint(config, bench.scale).with_name(f"{run.slug}-{key[:12]}.ckpt")
    loss = finetune(victim, objective(bench, run, victim), data, run.tuning, Threat("linf", config.attack.eps), run.face.attack, run.seed,
                    bench.device, partial, snapshot if steps else None, run.slug)
    save(None)
    partial.unlink(missing_ok=True)
    return loss


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
