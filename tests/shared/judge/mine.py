"""What a user might bring: models, defences and attacks, good and bad. Pictures of class k are brighter in channel k."""

import torch
from torch import nn

MEAN, STD = ((torch.tensor(v).view(1, 3, 1, 1)) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def linear(x):
    """A plain function as a model. Its margin is that of the channels' means, so what an ℓ∞ attack does to it is known exactly."""
    return 40 * x.mean(dim=(2, 3))


def normalised(x):
    """A model that wants normalised pictures."""
    return 40 * (x - (0.5 - MEAN) / STD).mean(dim=(2, 3))


def changing(x):
    """As `linear`, with what many a normalisation does to its argument."""
    return linear(x.sub_(0.5))


class Batchy(nn.Module):
    """It comes in train mode, and its answers are those of a batch whichever mode it is in."""

    def forward(self, x):
        z = linear(x)
        return z + 3 * z.mean(dim=0, keepdim=True).flip(1)


def batchy():
    return Batchy()


def two_classes(x):
    return linear(x)[:, :2]


def undefined(x):
    return linear(x) / 0 * 0


def detached(x):
    return linear(x.detach())


class Rounded:
    """A defence that masks gradients: they are zero everywhere, and what is shown hardly changes."""

    def __call__(self, x):
        return (x * 63).round() / 63


class Noisy:
    """A random defence, with the noise that it is given."""

    def __call__(self, x, rng):
        return (x + 0.08 * rng.normal((3, 1, 1)).to(x)).clamp(0, 1)


def drawn(x):
    """A random defence that draws from torch's own generator."""
    return (x + 0.08 * torch.randn(len(x), 3, 1, 1)).clamp(0, 1)


def detaching(x):
    return (x / 2 + x.mean(dim=0) / 2).detach()


class Wordless:
    pass


def larger(x):
    return nn.functional.pad(x, (1, 1, 1, 1))


def outside(x):
    return 2 * x - 1


def far(victim, x, y, threat, *, rng):
    return 1 - x


def shift(victim, x, y, threat, *, rng):
    """All that can be done to `linear`: the true channel down, the others up."""
    sign = torch.ones_like(x)
    sign[torch.arange(len(x)), y] = -1
    return threat.project(x + threat.eps * sign, x)


def ten(x):
    """A model of ten classes."""
    return torch.cat([40 * x.mean(dim=(2, 3)) * k for k in (1, 2, 3, 4)], dim=1)[:, :10]
