"""Everything that can be set for newpaper: one dataclass, a preset per scale."""

from dataclasses import dataclass

from papers.newpaper.method import Method
from shared.data.catalogue import Source
from shared.experiment.scale import Options, check_seeds
from shared.options import Count, Eps, Seed, Whole


@dataclass(frozen=True)
class Data:
    """The pictures."""

    spec: str = "scenes:combinations"
    """Set, as in shared.data.catalogue."""
    source: Source = Source()
    n: Whole = 96
    """Test pictures (0: all)."""


@dataclass(frozen=True)
class Attack:
    """PGD on the undefended model."""

    eps: Eps = 4 / 255
    steps: Count = 10
    seed: Seed = 0


@dataclass(frozen=True)
class Config(Options):
    """newpaper."""

    model: str = "scenes-vit-s8"
    """open_clip name, or a small configuration of shared/models/configs."""
    weights: str = "zoo:scenes-vit-s8"
    """zoo:<name>, a tag of open_clip, or the path of a checkpoint."""
    data: Data = Data()
    attack: Attack = Attack()
    method: Method = Method()


PRESETS = {
    "smoke": Config(seeds=(0, 1), data=Data(n=8), attack=Attack(steps=2)),
    "cpu": Config(),
}


def check(config: Config) -> None:
    """Refuse combinations that cannot work, in one sentence each."""
    check_seeds(config.seeds)
