"""Every fine-tuning of the reproduction, as data: what is trained, with which objective, on what, for which table."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from papers.pmg_aft.config import Config
from papers.pmg_aft.method import PMGLoss
from shared.experiment.scale import WEIGHTLESS, plain
from shared.experiment.store import slug
from shared.files import digest
from shared.training.adversarial import TrainAttack, Tuning

CODE = "pmg_aft-train-1"  # raise it when the meaning of a training changes: every checkpoint is then made again


@dataclass(frozen=True)
class Face:
    """Text and released code differ; each is a configuration with a name (README, "Differences")."""

    name: str
    temperature: Literal["model", "one"]
    """s in the logits s·cos: that of the model, or 1, as where the released code normalises twice."""
    norm: Literal["clip", "imagenet"]
    """Mean/std of the pixels; the released code feeds CLIP ImageNet's."""
    attack: TrainAttack


AS_WRITTEN = Face("as_written", "model", "clip", TrainAttack())
AS_RELEASED = Face("as_released", "one", "imagenet", TrainAttack(reduction="mean", autocast="fp16"))


@dataclass(frozen=True)
class Run:
    """One fine-tuning. `name` is its row in the tables; runs of one name differ by seed only."""

    name: str
    objective: Literal["ft_clean", "ft_adv", "tecoa", "fare", "pmg_aft"]
    seed: int
    tuning: Tuning
    train: str
    loss: PMGLoss | None = None
    face: Face = AS_WRITTEN
    curve: bool = False

    @property
    def slug(self) -> str:
        return slug(self.name, f"seed{self.seed}")

    def key(self, config: Config, base: str, data_version: str) -> str:
        """Identity of the trained weights: everything that training reads, and nothing else."""
        attack = None if self.objective == "ft_clean" else [config.attack.eps, plain(self.face.attack)]
        tuning = plain(self.tuning, WEIGHTLESS)
        return digest([CODE, self.objective, self.seed, tuning, plain(self.loss), self.face.temperature, self.face.norm, attack, base, data_version])

    def checkpoint(self, config: Config, scale: str, step: int | None = None) -> Path:
        """Where the trained vision tower is kept (`step`: a snapshot on the way)."""
        return config.results / scale / "pmg_aft" / "checkpoints" / f"{self.slug}{'' if step is None else f'__step{step}'}.safetensors"


MAIN = ("ft_clean", "ft_adv", "tecoa", "fare", "pmg_aft")
HEADLINE = ("tecoa", "pmg_aft")


def sweep_name(alpha: float, beta: float) -> str:
    """The row name of one point of the α/β sweep; the corners that are other rows keep their names."""
    return {(0.0, 0.0): "tecoa", (1.0, 1.0): "pmg_aft", (1.0, 0.0): "pmg_general", (0.0, 1.0): "pmg_clean"}.get(
        (float(alpha), float(beta)), f"pmg_a{alpha:g}_b{beta:g}")


def data_name(method: str, train: str) -> str:
    """The row name of `method` trained on another set."""
    return f"{method}_on_{train.split(':')[1].lower()}"


def runs(config: Config) -> list[Run]:
    """All fine-tunings of this configuration, each name and seed once."""
    main = [name for name in MAIN if not config.headline or name in HEADLINE]
    out = [_run(config, name, name, seed, PMGLoss() if name == "pmg_aft" else None) for name in main for seed in config.seeds]
    if config.headline:
        return out
    for seed in config.seeds:  # the ablation carries mechanism claims, and so do the two faces
        out += [_run(config, "pmg_general", "pmg_aft", seed, PMGLoss(beta=0.0)), _run(config, "pmg_clean", "pmg_aft", seed, PMGLoss(alpha=0.0)),
                _run(config, "pmg_released", "pmg_aft", seed, PMGLoss(reduction="sum"), AS_RELEASED)]
    first = config.seeds[0]
    out += [_run(config, "pmg_released_april", "pmg_aft", first, PMGLoss(direction="adversarial_first", reduction="sum"), AS_RELEASED),
            _run(config, "pmg_adversarial_first", "pmg_aft", first, PMGLoss(direction="adversarial_first")),
            _run(config, "pmg_detached", "pmg_aft", first, PMGLoss(detach_clean=True))]
    out += [_run(config, sweep_name(a, b), "pmg_aft", first, PMGLoss(alpha=a, beta=b))
            for a in config.sweeps.alphas for b in config.sweeps.betas if (a, b) != (0, 0)]
    for train in config.data.other_train:
        out += [replace(_run(config, data_name(m, train), m, first, PMGLoss() if m == "pmg_aft" else None), train=train) for m in HEADLINE]
    for last in config.sweeps.last:
        run = _run(config, f"pmg_last{last}", "pmg_aft", first, PMGLoss())
        out.append(replace(run, tuning=replace(run.tuning, last=last)))
    unique = {run.slug: run for run in reversed(out)}  # a sweep's corner is the main run of that name
    return list({r.slug: unique[r.slug] for r in out}.values())


def _run(config: Config, name: str, objective: str, seed: int, loss: PMGLoss | None = None, face: Face = AS_WRITTEN) -> Run:
    tuning = config.fare if objective == "fare" else config.tuning
    curve = name in HEADLINE and seed == config.seeds[0]  # of headline runs too, so that a later full run need not train them again
    face = replace(face, attack=replace(face.attack, steps=config.attack.train_steps))
    return Run(name, objective, seed, tuning, config.data.train, loss, face, curve)


COST = {"ft_clean": 1.0, "ft_adv": 2.5, "tecoa": 2.5, "fare": 2.8, "pmg_aft": 4.0}  # relative, to share runs out over processes


def cost(run: Run) -> float:
    """How long a run takes, relative to clean fine-tuning."""
    return COST[run.objective] * run.tuning.steps * run.tuning.batch
