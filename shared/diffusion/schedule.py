"""The forward process: variance preserving, with linear β, or with a cosine for ᾱ.

    x_t = α(t) x + σ(t) ε,   ε ~ N(0, I),   α² + σ² = 1,   α = √ᾱ

Time is the integer number t of noising steps taken: t = 0 is the clean image and t = T pure noise to the eye.

    discrete    ᾱ_t = Π_{i ≤ t} (1 − β_i),      β_1 … β_T = linspace(β_min/T, β_max/T)            Ho et al. 2020
    cosine      ᾱ_t = f(t)/f(0),  f(t) = cos²(π/2 (t/T + s)/(1 + s)),  s = .008,  β_t ≤ .999  Nichol & Dhariwal 2021
    continuous  ᾱ(s) = exp(−∫₀ˢ β),  s = t/T,   β(s) = β_min + s (β_max − β_min)                  Song et al. 2021, VP-SDE

The discrete and the continuous one differ by O(1/T). Everything here uses the discrete one, on which the networks were
trained.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """α and σ as tables over t = 0 … T. The defaults give β_i from 1e-4 to 0.02, those of DDPM, guided-diffusion and
    DiffPure."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    steps: int = 1000
    """T."""
    cosine: bool = False
    """The cosine in place of linear β; it has no β_min and β_max."""
    log_alpha_bar: Tensor = field(init=False, repr=False, compare=False)
    """log ᾱ_t, (T + 1,) float64."""

    def __post_init__(self):
        if not (self.steps >= 1 and 0 < self.beta_min <= self.beta_max < self.steps):
            raise UserError(
                f"a linear schedule needs 0 < beta_min <= beta_max < steps, not {self.beta_min}, {self.beta_max} and "
                f"{self.steps}."
            )
        table = torch.cat((torch.zeros(1, dtype=torch.float64, device="cpu"), torch.log1p(-self.betas).cumsum(0)))
        object.__setattr__(self, "log_alpha_bar", table)

    @classmethod
    def linear(cls, beta_min: float = 0.1, beta_max: float = 20.0, steps: int = 1000) -> "Schedule":
        """β_i = linspace(beta_min/T, beta_max/T), T = steps."""
        return cls(beta_min, beta_max, steps)

    @property
    def betas(self) -> Tensor:
        """β_1 … β_T, (T,) float64."""
        if self.cosine:
            share = torch.arange(self.steps + 1, dtype=torch.float64, device="cpu") / self.steps
            f = torch.cos(torch.pi / 2 * (share + 0.008) / 1.008).square()
            return (1 - f[1:] / f[:-1]).clamp_max(0.999)
        return torch.linspace(
            self.beta_min / self.steps, self.beta_max / self.steps, self.steps, dtype=torch.float64, device="cpu"
        )

    def alpha_bar(self, t: Tensor | int) -> Tensor:
        """ᾱ_t in float64, of t's shape and on t's device. Raises UserError for a time outside 0 … T."""
        t = torch.as_tensor(t)
        if t.is_floating_point() or (t.numel() and (int(t.min()) < 0 or int(t.max()) > self.steps)):
            raise UserError(
                f"a diffusion time is a whole number of steps from 0 to {self.steps}, not {t.flatten()[:8].tolist()}."
            )
        return self.log_alpha_bar[t.cpu()].exp().to(t.device)

    def alpha(self, t: Tensor | int) -> Tensor:
        """α(t), float32, of t's shape."""
        return self.alpha_bar(t).sqrt().float()

    def sigma(self, t: Tensor | int) -> Tensor:
        """σ(t), float32, of t's shape."""
        return (1 - self.alpha_bar(t)).sqrt().float()

    def continuous_alpha_bar(self, s: Tensor) -> Tensor:
        """ᾱ(s) = exp(−(β_min s + (β_max − β_min) s²/2)) at continuous times s in [0, 1]."""
        return torch.exp(-(self.beta_min * s + (self.beta_max - self.beta_min) * s.square() / 2))

    def diffuse(self, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Clean images (N, …) -> x_t = α(t) x + σ(t)·noise; t (N,) or one for all."""
        bar = self.alpha_bar(t)
        return per_sample(bar.sqrt(), x) * x + per_sample((1 - bar).sqrt(), x) * noise

    def advance(self, x_s: Tensor, s: Tensor | int, t: Tensor | int, noise: Tensor) -> Tensor:
        """x_s -> x_t for s ≤ t:  x_t = r x_s + √(1 − r²)·noise,  r = α(t)/α(s). Raises UserError where s > t."""
        ratio = self.alpha_bar(t) / self.alpha_bar(s)
        if bool((ratio > 1).any()):
            raise UserError(
                "noise is only added going forward: the time to advance to lies before the time of the image."
            )
        return per_sample(ratio.sqrt(), x_s) * x_s + per_sample((1 - ratio).sqrt(), x_s) * noise


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Numbers (N,) or () in the type and on the device of x (N, …), shaped to multiply it."""
    return value.to(x).reshape(value.shape + (1,) * (x.ndim - 1 if value.ndim else 0))
