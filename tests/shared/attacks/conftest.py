"""Tiny victims: a small net that is partly robust, and a way to see what an attack did to its victim."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat, ascend
from shared.rng import SampleRng

SIDE = 12


def make_images(n: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy pictures of smooth class prototypes; those of one seed are the same whatever n."""
    prototypes = torch.rand(classes, 3, 4, 4, generator=torch.Generator().manual_seed(1234))
    rng = SampleRng(seed, range(n))
    y = rng.integers(classes)
    smooth = F.interpolate(prototypes[y], size=(SIDE, SIDE), mode="bilinear")
    return (0.25 + 0.5 * smooth + 0.35 * rng.normal((3, SIDE, SIDE))).clamp(0, 1), y


def train_net(classes: int, seed: int = 0, eps: float = 6 / 255, steps: int = 120, width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * (SIDE // 2) ** 2, 48),
            nn.ReLU(),
            nn.Linear(48, classes),
        )
    x, y = make_images(32 * steps, classes, seed + 1)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for images, labels in zip(x.split(32), y.split(32), strict=True):
        if eps:

            def loss_fn(x_adv, labels=labels):
                return F.cross_entropy(net(x_adv), labels, reduction="none")

            images = ascend(
                loss_fn, images, Threat("linf", eps), steps=1, step_size=eps, rng=SampleRng(0, range(len(images)))
            )
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return net.eval()


@pytest.fixture(scope="session")
def images():
    """200 test images of 10 classes."""
    return make_images(200, 10, seed=99)


@pytest.fixture(scope="session")
def net():
    """A convolutional net trained on adversarial images: some test samples break within the eps used here, some do not."""
    return train_net(10)


@pytest.fixture(scope="session")
def plain_net():
    """The same net with another seed, trained on clean images."""
    return train_net(10, seed=5, eps=0)


@pytest.fixture(scope="session")
def make_net():
    """(classes, seed, eps, steps) -> net, for heads of other sizes."""
    return train_net


@pytest.fixture(scope="session")
def make_set():
    """(n, classes, seed) -> images and labels."""
    return make_images


@pytest.fixture(scope="session")
def accuracy():
    """(victim, x, y) -> share of correct samples in points."""

    @torch.no_grad()
    def measure(victim, x, y) -> float:
        return 100 * (victim(x).argmax(dim=1) == y).float().mean().item()

    return measure


class Double(nn.Module):
    """A victim that computes in float64, so that batches of different sizes give the same numbers to the last float32 bit (nearly)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = copy.deepcopy(net).double()

    def forward(self, x):
        return self.net(x.double())


@pytest.fixture(scope="session")
def exact(net):
    return Double(net)


class Counted(nn.Module):
    """A victim that counts the images it has been given."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, x):
        self.images += len(x)
        return self.net(x)


@pytest.fixture
def counted():
    return Counted
