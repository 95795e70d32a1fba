"""The robust encoders that DiffCAP is compared with, as data: TeCoA and FARE for every vision tower in use."""

from dataclasses import dataclass
from pathlib import Path

from papers.diffcap.cells import TOWERS
from papers.diffcap.config import Config
from shared.experiment.scale import WEIGHTLESS, plain
from shared.experiment.store import slug
from shared.files import digest
from shared.training.adversarial import TrainAttack, Tuning

CODE = "diffcap-train-1"  # raise it when the meaning of a training changes: every checkpoint is then made again
ATTACK = TrainAttack()  # PGD-2, as the foundation trains them


@dataclass(frozen=True)
class Base:
    """A vision tower by its open_clip name and weights."""

    name: str
    weights: str


@dataclass(frozen=True)
class Run:
    """One fine-tuning of one tower."""

    method: str  # tecoa | fare
    base: Base
    tuning: Tuning
    seed: int

    @property
    def slug(self) -> str:
        return slug(self.method, self.base.name, self.base.weights.rpartition("/")[2], f"seed{self.seed}")

    def key(self, config: Config, base: str, data_version: str) -> str:
        """Identity of the trained weights: everything that training reads, and nothing else."""
        tuning = plain(self.tuning, WEIGHTLESS)
        return digest([CODE, self.method, self.seed, tuning, config.baselines.tuned_eps, plain(ATTACK), self.base.name, base, data_version])

    def checkpoint(self, config: Config, scale: str) -> Path:
        """Where the trained vision tower is kept."""
        return config.results / scale / "diffcap" / "checkpoints" / f"{self.slug}.safetensors"


def bases(config: Config) -> dict[str, Base]:
    """Model (clip, llava, flamingo) -> the tower that it looks through."""
    m = config.models
    clip = Base(m.clip, m.clip_weights)
    return {"clip": clip, "llava": Base(*m.llava_tower) if m.llava_tower else clip, "flamingo": Base(*m.flamingo_tower) if m.flamingo_tower else clip}


def runs(config: Config) -> list[Run]:
    """Every fine-tuning of this configuration, each once."""
    tuning = {"tecoa": config.tuning, "fare": config.fare}
    return [Run(method, base, tuning[method], config.seeds[0]) for base in dict.fromkeys(bases(config).values()) for method in TOWERS]


def run_of(config: Config, model: str, tower: str) -> Run:
    """The fine-tuning behind a model with a robust encoder."""
    return next(r for r in runs(config) if r.base == bases(config)[model] and r.method == tower)
