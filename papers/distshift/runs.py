"""What has to be trained before anything is measured, as data: victims, adversarially trained victims and denoisers with weights `train`."""

from dataclasses import dataclass
from pathlib import Path

from papers.distshift.config import Config, Protected
from shared.experiment.scale import WEIGHTLESS, plain
from shared.experiment.store import slug
from shared.files import digest

CODE = "distshift-train-1"  # raise it when the meaning of a training changes: everything is then trained again


@dataclass(frozen=True)
class Run:
    """One training on the training split of one set."""

    what: str  # base | at | denoiser
    spec: str
    arch: str
    training: object
    seed: int

    @property
    def slug(self) -> str:
        return slug(self.what, self.arch, self.spec, f"seed{self.seed}")

    def key(self, data_version: str) -> str:
        """Identity of the trained weights: everything that training reads, and nothing else."""
        training = plain(self.training, WEIGHTLESS)
        return digest([CODE, self.what, self.arch, training, self.seed, data_version])

    def checkpoint(self, config: Config, scale: str) -> Path:
        """Where the weights are kept."""
        return config.results / scale / "distshift" / "checkpoints" / f"{self.slug}.safetensors"

    @property
    def cost(self) -> float:
        """How long it takes, relative to others of this paper."""
        t = self.training
        return t.steps * t.batch * (2.0 if self.what == "denoiser" else 1 + (t.attack_steps if t.eps else 0))


def runs(config: Config) -> list[Run]:
    """Every training of this configuration."""
    return [run for p in config.protected for what in ("denoiser", "at", "base") if (run := run_of(config, p, what)) is not None]


def run_of(config: Config, p: Protected, what: str) -> Run | None:
    """The training behind a set's victim ("base" or "at") or "denoiser"; None where the weights come from elsewhere."""
    source = {"base": p.weights, "at": p.at_weights, "denoiser": p.denoiser}[what]
    if source != "train":
        return None
    arch, training = {"base": (p.arch, config.training), "at": (p.arch, config.at_training),
                      "denoiser": (config.models.denoiser_config, config.denoising)}[what]
    return Run(what, p.data, arch, training, config.seeds[0])
