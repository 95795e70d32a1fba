"""What is given to steps: pictures and weights. A leaf is no step; it is known by the contents of what stands behind
it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.data.base import LabelledImages, subset
from shared.experiment import source
from shared.experiment.step import Lab, free, once
from shared.models.clip import small_config
from shared.models.sources import identity, locate, open_clip_model


@dataclass(frozen=True)
class Pictures:
    """A choice of labelled pictures: n of a set (0: all), balanced over its classes; a smaller choice is the beginning
    of a larger one."""

    spec: str
    split: str = "test"
    n: int = 0
    seed: int = 0

    def identity(self, lab: Lab) -> list:
        """The contents of the set, the code that makes its pictures, and which of them are chosen."""
        data = self.open(lab)
        return [data.version, source.of(type(data)), self.n, self.seed]

    def open(self, lab: Lab) -> LabelledImages:
        """The whole set. Raises UserError where it is not known or not there."""
        return lab.data(self.spec, self.split)

    @once
    def rows(self, lab: Lab) -> list[int]:
        """The indices of the choice."""
        return subset(self.open(lab), self.n or None, self.seed)

    def read(self, lab: Lab, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) in [0, 1] and y (N,) of some of the set's pictures, on the device."""
        x, y = self.open(lab).__getitems__(list(rows))
        return x.to(lab.device), y.to(lab.device)


@dataclass(frozen=True)
class Backbone:
    """A CLIP that is never trained, by its open_clip name and its weights: zoo:<name>, a tag, the path of a checkpoint,
    or `random`.

    option: the command-line option that gives the weights, for errors.
    """

    name: str
    weights: str
    option: str = free("--model.pretrained")

    def identity(self, lab: Lab) -> list:
        """Its name, its dimensions where they are ours, and the contents of its weights (a tag as it is)."""
        return [self.name, small_config(self.name), locate(self.weights, self.option)[1]]

    @once
    def open(self, lab: Lab) -> torch.nn.Module:
        """The model, in eval mode, opened once."""
        return open_clip_model(self.name, locate(self.weights, self.option)[0], lab.device)


@dataclass(frozen=True)
class Weights:
    """Any other model by what its option says: zoo:<name>, the path of a file or of a folder, a name with such a path
    behind a colon, or a name."""

    spec: str

    def identity(self, lab: Lab) -> str:
        """The contents of the file or of every file of the folder, else the name."""
        return identity(self.spec)
