"""Panel (d) of figure 1: a vision transformer that no caption has taught, only labels.

`train` as `config.models.supervised` has the first backbone's own tower learn from nothing, so that panels (a) to (d) have one architecture; at the
paper's scale it is torchvision's, trained on ImageNet (the paper cites PyTorch for its ViT-B/32):

    z = W·F(x) + b,   cross-entropy over all parameters      F: the tower with its projection
    torchvision:<name>[:<weights>]                            F: the class token before the head

<weights> is a tag of torchvision (default: the first, IMAGENET1K_V1) or the path of a checkpoint on a machine without a network.
"""

from collections.abc import Callable
from functools import partial as bound
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt import runs
from papers.rvpt.models import Bench
from papers.rvpt.resistivity import Features, features, torchvision_features
from papers.rvpt.tuning import optimise
from shared.data.base import Subset, subset
from shared.errors import UserError
from shared.models.classifier import open_classifier
from shared.models.clip import create_clip, read_weights, save_tensors
from shared.models.victim import Pixels

IMAGENET_CLASSES = 1000


class SupervisedTower(nn.Module):
    """Pixels -> logits (N, K) by a vision tower `visual` and a linear head; `pixels` and `visual` are those of a ZeroShot."""

    def __init__(self, visual: nn.Module, classes: int):
        super().__init__()
        self.visual, self.pixels = visual, Pixels.of(visual)
        self.head = nn.Linear(visual.output_dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.visual(self.pixels(x)))


def fresh_tower(bench: Bench, seed: int) -> SupervisedTower:
    """The first backbone's architecture with random weights, a function of the seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = create_clip(bench.config.models.first.name).visual
        return SupervisedTower(visual, bench.labelled(bench.config.data.main.data).num_classes).to(bench.device)


def train_supervised(bench: Bench, run: runs.Supervised, path: Path, key: str, partial: Path | None = None) -> float:
    """Train the tower on `supervised_n` training pictures of the main set (0: all), balanced over its classes, and save it under its key.

    partial: file to continue from, removed by nobody. Returns the last loss. Raises UserError where the loss is no number at the end.
    """
    config = bench.config
    data = bench.labelled(config.data.main.data, "train")
    chosen = Subset(data, subset(data, config.sweeps.supervised_n or None, config.data.seed))
    tower = fresh_tower(bench, run.seed).requires_grad_(True).train()

    def loss_fn(x: Tensor, y: Tensor, indices: list[int], step: int) -> Tensor:
        return F.cross_entropy(tower(x), y)

    loss = optimise(tower, loss_fn, chosen, config.sweeps.supervised, run.seed, bench.device, partial, name=run.slug)
    save_tensors(tower.state_dict(), path, {"key": key})
    return loss


def load_supervised(bench: Bench, path: Path) -> SupervisedTower:
    """What `train_supervised` wrote, frozen. Raises UserError for a file of another tower."""
    tower, tensors = fresh_tower(bench, 0), read_weights(path)
    try:
        tower.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"the file {path} is not the supervised tower of {bench.config.models.first.name}: delete it and train again.") from error
    return tower.requires_grad_(False).eval()


def open_torchvision(spec: str, device: torch.device | str = "cpu"):
    """(classifier, resize) of torchvision:<name>[:<weights>], a vision transformer of ImageNet's 1,000 classes; mean and std are in the classifier.

    Raises UserError for another network, and for weights that cannot be had.
    """
    name, _, weights = spec.removeprefix("torchvision:").partition(":")
    arch = f"torchvision:{name}"
    local = Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin")
    classifier = open_classifier(arch, weights if local else f"torchvision:{weights or 'IMAGENET1K_V1'}", IMAGENET_CLASSES, device=device)
    if not hasattr(classifier.net, "image_size"):
        raise UserError(f"{spec} is no vision transformer of torchvision: give --models.supervised one such as torchvision:vit_b_32.")
    return classifier, Pixels((classifier.net.image_size,) * 2, "none").to(device)


def supervised_model(bench: Bench) -> tuple[nn.Module, Callable[[Tensor], Features]]:
    """(pixels -> logits, pixels -> features) of the supervised transformer. Raises UserError if it was not trained, or there is none."""
    spec = bench.config.models.supervised
    if spec == "train":
        tower = load_supervised(bench, bench.made(runs.Supervised(0)))
        return tower, bound(features, tower)
    if not spec.startswith("torchvision:"):
        raise UserError(f"--models.supervised {spec!r} is not understood: use train, torchvision:<name>, or none.")
    classifier, resize = open_torchvision(spec, bench.device)
    return nn.Sequential(resize, classifier), lambda x: torchvision_features(classifier.net, resize(x) * classifier.scale + classifier.shift)


def supervised_features(bench: Bench) -> Callable[[Tensor], Features]:
    """Pictures (N, 3, H, W) in [0, 1] -> features of the supervised transformer, layer by layer; see `papers.rvpt.resistivity`."""
    return supervised_model(bench)[1]
