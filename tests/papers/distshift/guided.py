"""What the tests of guided purification share: a smooth victim, tables of their own, and the written definitions of the guidance."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from shared.diffusion import Schedule
from shared.rng import SampleRng

SCHEDULE = Schedule.linear()
BAR = torch.cat(
    (torch.ones(1, dtype=torch.float64), (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
).tolist()
N, SIZE = 3, 8
INDICES = [40, 3, 17]


class Smooth(nn.Module):
    """A smooth victim of pictures of any size, float64, whose labels change easily."""

    def __init__(self, classes=4, seed=0, gain=4.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(3 * SIZE * SIZE, 10, generator=generator, dtype=torch.float64) / SIZE)
        self.v = nn.Parameter(torch.randn(10, classes, generator=generator, dtype=torch.float64))
        self.gain, self.seen = gain, 0

    def features(self, x):
        self.seen += len(x)
        return torch.tanh(self.gain * (F.adaptive_avg_pool2d(x, SIZE) - 0.45).flatten(1) @ self.w.to(x))

    def forward(self, x):
        return self.features(x) @ self.v.to(x)


def alphas(t):
    """α, σ as Python numbers."""
    return math.sqrt(BAR[t]), math.sqrt(1 - BAR[t])


def pictures(n=N, size=SIZE, seed=2, dtype=torch.float64):
    """In the middle of the pixel range."""
    return 0.3 + 0.4 * torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def streams(n=N, seed=11):
    return SampleRng(seed, INDICES[:n])


def of_the_release(guidance, victim, x_t, x_adv, noise, start=300):
    """The sum of three mean squared errors as the first author's code has it (means over the batch), x_t in [−1, 1]."""
    shown = (lambda z: z) if guidance.rescale == "native" else (lambda z: (z + 1) / 2)
    x_start = 2 * x_adv - 1
    x_t_1 = math.sqrt(BAR[2]) * x_t + math.sqrt(1 - BAR[2]) * noise  # index 1 of a table from 0
    x_t_start = math.sqrt(BAR[start]) * x_start + math.sqrt(1 - BAR[start]) * noise
    at = victim(shown(x_t))
    loss1 = F.mse_loss(at, victim(shown(x_start)))
    loss2 = F.mse_loss(at, victim(shown(x_t_1)))
    loss3 = F.mse_loss(x_t, x_t_start)
    mu, one, scale = guidance.weights
    return mu * loss1 + one * loss2 + scale * loss3


def written(guidance, victim, denoiser, x_t, t, s, x_adv, noise, large=False):
    """δ of one sample by the written definition: x_t (1, 3, S, S), its image x_adv, the forward noise of its round; pictures have the size of x_t."""
    alpha, sigma = alphas(t)
    x_t = x_t.detach().requires_grad_()
    one = torch.tensor([t])

    def shown(state):
        eps = denoiser(state, one).eps
        native = (state - sigma * eps) / alpha if guidance.domain == "x0_hat" else state
        if guidance.rescale == "x_t/alpha":
            native = native / alpha
        picture = native if guidance.rescale == "native" else (native + 1) / 2
        return picture.clamp(0, 1) if guidance.clamp else picture

    eps = denoiser(x_t, one).eps
    if guidance.kind == "G4":
        output = victim.features if guidance.output == "features" else victim
        ref = alpha * (2 * x_adv - 1) + sigma * noise
        level = -(output(shown(x_t)) - output(shown(ref))).pow(2).sum()
    elif guidance.kind == "G5":
        level = -of_the_release(guidance, victim, x_t, x_adv, noise)
    elif guidance.kind == "G2":
        level = torch.log(torch.softmax(victim(shown(x_t)), dim=1).max())
    else:
        source = {"x_adv": x_adv, "running": ((x_t - sigma * eps) / alpha + 1) / 2, "moving": shown(x_t)}[
            guidance.label
        ]
        if guidance.clamp and guidance.label == "running":
            source = source.clamp(0, 1)
        y = int(victim(source)[0].argmax())
        level = torch.log(torch.softmax(victim(shown(x_t)), dim=1)[0, y])
    (g,) = torch.autograd.grad(level, x_t)
    if guidance.unit == "ratio":
        delta = -guidance.scale * eps.norm() * g / g.norm()
    elif guidance.unit == "sample":
        delta = guidance.scale * g
    elif guidance.unit == "score":
        delta = -guidance.scale * sigma * g
    else:
        alpha_s, sigma_s = alphas(s)
        beta = 1 - alpha**2 / alpha_s**2
        variance = beta if large else beta * sigma_s**2 / sigma**2
        delta = -guidance.scale * variance * g * alpha * sigma / (alpha_s * beta)
    return delta.detach(), g
