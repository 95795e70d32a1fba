"""What an attacker may do: a ball around the image, cut with the pixel range.

    B(x) = { x' : ||x' − x||_p ≤ ε,  0 ≤ x' ≤ 1 },   p = ∞ or 2

Everything is in pixel units of [0, 1]: 8/255 is `Threat("linf", 8 / 255)`, never `Threat("linf", 8)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from shared.errors import UserError
from shared.options import Bounded, Range
from shared.rng import SampleRng


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, …, 1) with as many axes as `like`, for broadcasting."""
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Threat(Bounded):
    """The set B(x) above: `norm` "linf" or "l2", radius `eps` in pixel units of [0, 1].

    Raises UserError for an unknown norm, and for an eps that is negative, not finite, or (linf) above 1, since no two
    images differ by more than 1 and such a value is nearly always a count of 255ths.
    """

    norm: Literal["linf", "l2"]
    eps: Annotated[float, Range(0, example="8/255 for pixels in [0, 1]")]

    def __post_init__(self):
        super().__post_init__()
        if self.norm == "linf" and self.eps > 1:
            raise UserError(f"eps is {self.eps} but pixels live in [0, 1]: write {self.eps:g}/255 if you meant 255ths.")

    def within(self, eps: float) -> "Threat":
        """The ball of another radius, cut where it holds all pictures anyway."""
        return Threat(self.norm, min(eps, 1.0) if self.norm == "linf" else eps)

    def doubled(self) -> "Threat":
        """The ball of twice the radius."""
        return self.within(2 * self.eps)

    def boundless(self, x: Tensor) -> "Threat":
        """A ball that holds every picture of the size of those in x (N, …)."""
        return self.within(x[0].numel() ** 0.5)

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """A function x' -> a point of B(x); it may overwrite its argument. What depends on x alone is computed once.

        linf: the exact projection, a clamp to [max(x − ε, 0), min(x + ε, 1)]. l2: scale the perturbation back to radius
        ε, then clamp to [0, 1]; as 0 ≤ x ≤ 1 the clamp only shortens it, so the result is in B(x), though not always
        its nearest point (the same choice as in APGD, Croce & Hein 2020).
        """
        if self.norm == "linf":
            low, high = (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1)
            return lambda x_adv: torch.clamp(x_adv, low, high)

        def to_ball(x_adv: Tensor) -> Tensor:
            delta = x_adv - x
            shrink = (self.eps / delta.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(max=1)
            return delta.mul_(per_sample(shrink, delta)).add_(x).clamp_(0, 1)

        return to_ball

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of B(x) for `x_adv` (see `projector`). Both (N, …), floating; neither is changed."""
        return self.projector(x)(x_adv.clone())

    def random_start(self, x: Tensor, rng: SampleRng) -> Tensor:
        """A random point of B(x), one draw per sample index.

        linf: uniform in the cube of radius ε. l2: uniform in the ball, a Gaussian direction with radius ε·u^(1/d), d
        the number of pixel values. Both are then clamped to [0, 1].
        """
        if self.norm == "linf":
            return self.project(x + rng.uniform(x.shape[1:], -self.eps, self.eps, device=x.device).to(x.dtype), x)
        direction = self.direction(rng.normal(x.shape[1:], device=x.device).to(x.dtype))
        radius = self.eps * rng.child("radius").uniform((), device=x.device).to(x.dtype) ** (1 / x[0].numel())
        return self.project(x + direction * per_sample(radius, x), x)

    def direction(self, grad: Tensor) -> Tensor:
        """The steepest ascent direction of unit norm, per sample: sign g (linf) or g / ||g||₂ (l2; zero where g is
        zero).

        Entries that are not a number count as zero, so that one broken pixel does not spoil an image.
        """
        if self.norm == "linf":
            return grad.sign()  # sign(nan) is 0 in torch
        grad = grad.nan_to_num(0)
        flat = grad.flatten(1)
        largest = (
            flat.abs().amax(dim=1).clamp(min=torch.finfo(grad.dtype).tiny)
        )  # squares of tiny gradients would underflow
        flat = flat / largest[:, None]
        return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).view_as(grad)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """||x_adv − x||_p of each sample, (N,)."""
        delta = (x_adv - x).flatten(1)
        return delta.abs().amax(dim=1) if self.norm == "linf" else delta.norm(dim=1)
