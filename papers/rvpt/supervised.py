"""Panel (d) of figure 1: a vision transformer that no caption has taught, only labels.

At a small scale the first backbone's own tower learns from nothing, so that panels (a) to (d) have one architecture; at
the paper's scale it is torchvision's, trained on ImageNet (the paper cites PyTorch for its ViT-B/32):

    z = W·F(x) + b,   cross-entropy over all parameters      F: the tower with its projection (`Supervised`)
    torchvision:<name>[:<weights>]                            F: the class token before the head (`Torchvision`)

<weights> is a tag of torchvision (default: the first, IMAGENET1K_V1) or the path of a checkpoint on a machine without a
network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt.resistivity import Features, features, torchvision_features
from papers.rvpt.tuning import Tuning, optimise
from shared.data.base import Subset
from shared.errors import UserError
from shared.experiment.leaves import Pictures, Weights
from shared.experiment.step import Lab, Tensors, Trained
from shared.models.classifier import IMAGENET_CLASSES, open_classifier
from shared.models.clip import create_clip
from shared.models.victim import Pixels

Encoder = Callable[[Tensor], Features]


class SupervisedTower(nn.Module):
    """Pixels -> logits (N, K) by a vision tower and a linear head; `pixels` and `visual` are as those of a ZeroShot."""

    def __init__(self, visual: nn.Module, classes: int):
        super().__init__()
        self.visual, self.pixels = visual, Pixels.of(visual)
        self.head = nn.Linear(visual.output_dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures (N, 3, H, W) in [0, 1]."""
        return self.head(self.visual(self.pixels(x)))


@dataclass(frozen=True)
class Supervised(Trained):
    """The tower of a CLIP's architecture, trained from nothing on labelled pictures."""

    weight: ClassVar[float] = 3.0
    architecture: str
    data: Pictures
    training: Tuning
    seed: int

    @property
    def name(self) -> str:
        return f"supervised__seed{self.seed}"

    def _fresh(self, lab: Lab) -> SupervisedTower:
        """Random weights, a function of the seed; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            visual = create_clip(self.architecture).visual
            return SupervisedTower(visual, self.data.open(lab).num_classes).to(lab.device)

    def make(self, lab: Lab) -> Tensors:
        chosen = Subset(self.data.open(lab), self.data.rows(lab))
        tower = self._fresh(lab).requires_grad_(True).train()

        def loss_fn(x: Tensor, y: Tensor, indices: list[int], step: int) -> Tensor:
            return F.cross_entropy(tower(x), y)

        optimise(tower, loss_fn, chosen, self.training, self.seed, lab.device, lab.partial(self), name=self.name)
        return tower.state_dict()

    def open(self, lab: Lab) -> tuple[nn.Module, Encoder]:
        """Pixels -> logits, and pixels -> features."""
        tower = self._fresh(lab)
        tower.load_state_dict(lab.weights(self))
        tower.requires_grad_(False).eval()
        return tower, partial(features, tower)


@dataclass(frozen=True)
class Torchvision:
    """A vision transformer of torchvision for ImageNet's 1,000 classes; mean and std are in the classifier."""

    architecture: str
    weights: Weights

    @classmethod
    def of(cls, spec: str) -> "Torchvision":
        """By torchvision:<name>[:<weights>]."""
        name, _, weights = spec.removeprefix("torchvision:").partition(":")
        local = Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin")
        return cls(f"torchvision:{name}", Weights(weights if local else f"torchvision:{weights or 'IMAGENET1K_V1'}"))

    def open(self, lab: Lab) -> tuple[nn.Module, Encoder]:
        """Pixels -> logits, and pixels -> features. Raises UserError for another network and for missing weights."""
        classifier = open_classifier(self.architecture, self.weights.spec, IMAGENET_CLASSES, device=lab.device)
        if not hasattr(classifier.net, "image_size"):
            advice = "give --models.supervised one such as torchvision:vit_b_32"
            raise UserError(f"{self.architecture} is no vision transformer of torchvision: {advice}.")
        resize = Pixels((classifier.net.image_size,) * 2, "none").to(lab.device)

        def encode(x: Tensor) -> Features:
            return torchvision_features(classifier.net, resize(x) * classifier.scale + classifier.shift)

        return nn.Sequential(resize, classifier), encode
