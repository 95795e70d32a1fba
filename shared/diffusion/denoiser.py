"""What predicts the noise in an image: an analytic denoiser of Gaussian data, and U-Nets.

    x̂₀ = E[x | x_t] = (x_t − σ(t) ε̂)/α(t)         Tweedie's formula, with ε̂ = E[ε | x_t]

Images are in [−1, 1] here. A network is called with the index t − 1, since it numbers its T noise levels from 0.
"""

import contextlib
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared.diffusion.schedule import Schedule, per_sample
from shared.errors import UserError
from shared.options import bounded


class Prediction(NamedTuple):
    """What a denoiser says about x_t."""

    eps: Tensor
    """ε̂ (N, 3, H, W)."""
    v: Tensor | None
    """Where the reverse variance lies between its two bounds, in log space, (N, 3, H, W), 0 … 1; None: it was not
    learned."""


class Denoiser(nn.Module):
    """schedule: what it was trained for; size: the resolution it works at."""

    schedule: Schedule
    size: int

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        """x_t (N, 3, size, size), t (N,) whole steps from 1 to T."""
        raise NotImplementedError

    def posterior_mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂₀ (N, 3, size, size)."""
        bar = self.schedule.alpha_bar(t)
        return (x_t - per_sample((1 - bar).sqrt(), x_t) * self(x_t, t).eps) / per_sample(bar.sqrt(), x_t)


class GaussianDenoiser(Denoiser):
    """The exact denoiser of data x ~ N(μ, diag(s²)), against which samplers are tested.

        E[x | x_t] = μ + α s²/(α² s² + σ²) (x_t − α μ),   hence   ε̂ = σ (x_t − α μ)/(α² s² + σ²)

    mean, std: μ and s, numbers or tensors that broadcast to (3, size, size).
    """

    def __init__(self, mean: Tensor | float, std: Tensor | float, schedule: Schedule | None = None, size: int = 8):
        super().__init__()
        self.schedule, self.size = schedule or Schedule.linear(), size
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        bar, mean, variance = self.schedule.alpha_bar(t), self.mean.to(x_t), self.std.square().to(x_t)
        alpha, sigma = per_sample(bar.sqrt(), x_t), per_sample((1 - bar).sqrt(), x_t)
        return Prediction(sigma * (x_t - alpha * mean) / (alpha.square() * variance + sigma.square()), None)


class UNetDenoiser(Denoiser):
    """A diffusers `UNet2DModel` that predicts ε, and beside it the variance if it has twice the channels.

    predicts: what the network's output is, in diffusers' words: "epsilon", or "v_prediction", where ε̂ = σ x_t + α out
    (Salimans & Ho 2022). Late in time, where x_t is almost ε, the latter saves a small network from having to pass x_t
    on. size: resolution of the images; patch: the U-Net sees blocks of patch × patch pixels as channels, (3·patch²,
    size/patch, size/patch), which takes a fraction of the time. Frozen and in eval mode; `requires_grad_` to train it.
    Gradients of any order: where gradients are on, attention is computed by plain matrix products, since the fused
    kernels have no second derivative. of_thousand: the U-Net is told (t − 1)·1000/T in place of t − 1, as
    improved-diffusion's (`rescale_timesteps`).
    """

    @bounded
    def __init__(
        self,
        unet: nn.Module,
        schedule: Schedule,
        size: int,
        patch: int = 1,
        predicts: Literal["epsilon", "v_prediction"] = "epsilon",
        of_thousand: bool = False,
    ):
        super().__init__()
        per_image = unet.config.out_channels // patch**2
        if unet.config.in_channels != 3 * patch**2 or per_image not in (3, 6) or unet.class_embedding is not None:
            raise UserError(
                f"a U-Net with {unet.config.in_channels} input and {unet.config.out_channels} output channels"
                f"{'' if unet.class_embedding is None else ' and class labels'} is no unconditional denoiser of RGB "
                "images: give one with 3 input channels, 3 or 6 output channels and no classes."
            )
        self.unet, self.schedule, self.size, self.patch, self.predicts = unet, schedule, size, patch, predicts
        self.of_thousand = of_thousand
        self.unet.to(memory_format=torch.channels_last)  # up to half as fast again on a CPU
        self.requires_grad_(False).eval()

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        blocks = F.pixel_unshuffle(x_t, self.patch).contiguous(memory_format=torch.channels_last)
        index = (t - 1).to(x_t.device)
        if self.of_thousand:
            index = index * (1000 / self.schedule.steps)
        with sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else contextlib.nullcontext():
            out = self.unet(blocks, index).sample
        eps, *variance = F.pixel_shuffle(out, self.patch).split(3, dim=1)
        if self.predicts == "v_prediction":
            bar = self.schedule.alpha_bar(t)
            eps = per_sample((1 - bar).sqrt(), x_t) * x_t + per_sample(bar.sqrt(), x_t) * eps
        return Prediction(eps, (variance[0] + 1) / 2 if variance else None)
