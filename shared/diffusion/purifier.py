"""Purification: noise an image to time t, sample back (DiffPure, Nie et al. 2022).

    x [0, 1] —to_native→ [−1, 1] at the denoiser's size —α(t)x + σ(t)ε→ x_t —sampler→ x_0 —from_native→ [0, 1] at the
    image's size

All of it is differentiable, in memory that does not grow with the steps but for one image each. A time that depends on
the image, such as a stop index found on the way, is a whole number and so a constant in the backward pass: the
straight-through gradient is that of `reverse` at that time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.diffusion.denoiser import Denoiser
from shared.diffusion.sampler import Guide, Sampler
from shared.errors import UserError
from shared.rng import SampleRng


class Purifier(nn.Module):
    """A defence: purifier(x, rng) -> x', both (N, 3, H, W) in [0, 1].

    t: time to which every image is noised, 0 … T. recompute: spend one more forward pass in backward passes rather than
    memory.
    """

    def __init__(self, denoiser: Denoiser, t: int, sampler: Sampler | None = None, recompute: bool = True):
        super().__init__()
        if not 0 <= t <= denoiser.schedule.steps:
            raise UserError(
                f"the purification time is a whole number of steps from 0 to {denoiser.schedule.steps}, not {t}."
            )
        self.denoiser, self.t, self.sampler, self.recompute = denoiser, int(t), sampler or Sampler(), recompute

    def to_native(self, x: Tensor) -> Tensor:
        """[0, 1] at any size -> [−1, 1] at the denoiser's (N, 3, size, size)."""
        return 2 * resize(x, (self.denoiser.size,) * 2) - 1

    def from_native(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """[−1, 1] at the denoiser's size -> [0, 1] at `size` (H, W), clamped."""
        return resize((x + 1) / 2, size).clamp(0, 1)

    def noise(self, x: Tensor, t: Tensor, rng: SampleRng) -> Tensor:
        """x_t of native images; the noise is the stream `noise` of each sample."""
        return self.denoiser.schedule.diffuse(x, t, rng.child("noise").normal(x.shape[1:], x.device).to(x))

    def reverse(self, x_t: Tensor, t: Tensor, rng: SampleRng, guide: Guide | None = None) -> Tensor:
        """Native x_t at times t (N,) -> x_0; the noise of the steps is in the stream `reverse` of each sample."""
        return self.sampler.sample(self.denoiser, x_t, t, rng.child("reverse"), self.recompute, guide)

    def forward(self, x: Tensor, rng: SampleRng, guide: Guide | None = None) -> Tensor:
        t = torch.full((len(x),), self.t)
        return self.from_native(self.reverse(self.noise(self.to_native(x), t, rng), t, rng, guide), tuple(x.shape[-2:]))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing; the image itself where it has that size."""
    return (
        x
        if tuple(x.shape[-2:]) == tuple(size)
        else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
    )
