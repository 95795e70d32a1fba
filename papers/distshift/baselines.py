"""GDMP (Wang et al. 2022, guided diffusion model for adversarial purification): the guide is the image itself, not the
victim.

    mean of the ddpm step from t  +=  V s_t ∇_{x_t} [ −D(x_t, x_adv,t) ],     x_adv,t = α(t) x_adv + σ(t) ε_t,  ε_t ~ N(0, I) fresh in each step
    s_t = √(1 − ᾱ_t)/(m √ᾱ_t),     m = 2ε/(3 w)        (ε in pixels of [0, 1], twice that in the denoiser's domain; w the guide scale)
    D = mean of (x_t − x_adv,t)² over the numbers of an image      (MSE), or −SSIM of the two

s_t is the size of the noise over that of the perturbation: far from the image the pull is strong. As δ on ε̂ (see
method.py, "mean") it is

    δ = −V (α_t σ_t)/(α_s β) s_t g,    and with MSE   g = −2 (x_t − x_adv,t)/(3 S²)

Published (JinyiW/GuidedDiffusionPur@6ee8b1a): CIFAR-10 4 rounds of 36 single steps, V = β, w = 60,000 (MSE) or 70,000
(SSIM); ImageNet one round of 45 steps of a chain of 250 (t about 180), w = 1,000, un-diffused target x_adv. The
released mean runs over the whole batch, so that the pull on an image falls with the size of the batch: 60,000 in the
batches of 100 of its configuration are w = 600 here, where D is per image. Whatever the round, the target comes from
the image that came in. DiffHammer's released GDMP draws ε_t uniformly; here it is normal.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.distshift.method import Calls, Guided, large_variance, mean_factor
from shared.diffusion import Purifier
from shared.diffusion.sampler import Guide
from shared.options import Bounded, Eps, Weight
from shared.rng import SampleRng


@dataclass(frozen=True)
class Pull(Bounded):
    """What GDMP pulls towards, and how strongly."""

    loss: Literal["MSE", "SSIM"] = "MSE"
    target: Literal["diffused", "x_adv"] = "diffused"
    """x_adv,t, or x_adv itself (the released ImageNet code)."""
    scale: Weight = 600.0
    """w ≥ 0, for D per image: the published one over the batch."""
    eps: Eps = 8 / 255
    """ε of m, in pixels."""


class GDMP(Guided):
    """The defence, with the interface of Distshift. Raises UserError for a sampler whose variance is learned."""

    def __init__(self, purifier: Purifier, pull: Pull | None = None, rounds: int = 4, second_order: bool = True):
        super().__init__(purifier, rounds, second_order)
        self.pull = pull or Pull()
        large_variance(purifier)

    @property
    def calls(self) -> Calls:
        return Calls(self.rounds * len(self.next_time), 0, 0)

    def guide(self, x: Tensor, x_0: Tensor, rng: SampleRng, exact: bool) -> Guide | None:
        if not self.pull.scale:
            return None
        schedule, rows, follows, large = (
            self.purifier.denoiser.schedule,
            len(x),
            self.next_time,
            large_variance(self.purifier),
        )

        def delta(x_t: Tensor, t: Tensor, x0_hat: Tensor, eps: Tensor) -> Tensor:
            time = self.together(t, rows)
            target = x_0
            if self.pull.target == "diffused":
                target = schedule.diffuse(
                    x_0, time, rng.child(f"target{time}").normal(x_0.shape[1:], x_0.device).to(x_0)
                )
            if self.pull.loss == "MSE":
                g = -2 * (x_t - target) / x_t[0].numel()
            else:
                g = torch.autograd.grad(ssim(x_t, target).sum(), x_t, create_graph=exact, retain_graph=True)[0]
            out = -mean_factor(schedule, time, follows[time], large) * self.strength(time) * g
            return out if exact else out.detach()

        return delta

    def strength(self, t: int) -> float:
        """s_t."""
        bar, m = self.purifier.denoiser.schedule.alpha_bar(t).item(), 2 * self.pull.eps / (3 * self.pull.scale)
        return math.sqrt((1 - bar) / bar) / m


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Wang et al. 2004 as the released code computes it, (N,): a window of 11 × 11 with σ = 1.5, zeros beyond the
    edges, constants for a range of 1.

    Differentiable twice, which scikit-image's is not. x, y (N, C, H, W).
    """
    line = torch.exp(-(torch.arange(11, dtype=torch.float64) - 5).square() / (2 * 1.5**2))
    line = (line / line.sum()).to(x)
    window = (line[:, None] * line).expand(x.shape[1], 1, 11, 11)

    def smooth(z: Tensor) -> Tensor:
        return F.conv2d(z, window, padding=5, groups=z.shape[1])

    a, b = smooth(x), smooth(y)
    aa, bb, ab = smooth(x * x) - a * a, smooth(y * y) - b * b, smooth(x * y) - a * b
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * a * b + c1) * (2 * ab + c2) / ((a * a + b * b + c1) * (aa + bb + c2))).flatten(1).mean(dim=1)
