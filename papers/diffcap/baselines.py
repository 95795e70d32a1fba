"""What only this paper compares with: CLIPure-Cos, which purifies the embedding of CLIP instead of the image
(classification only).

    u = z/‖z‖,   v = (m̂ − ⟨u, m̂⟩ u)/‖·‖,   u ← (u + η v)/‖·‖   K times;   z' = ‖z‖ u

z is the image embedding, m̂ the direction of the mean embedding of blank templates ("a photo of a ."): each step turns
z towards it, on the sphere; v is the direction of the gradient of cos(z, m). K = 10 and η = 30 are the released ones
(TMLResearchGroup-CAS/CLIPure@97000da). A step turns by arctan(η), 88° for η = 30, which is more than the angle that is
left: the next step turns back, and after an even number of steps z' = z up to rounding wherever the angle to m was
below 88°. As released, ‖·‖ of v runs over the whole batch (so η shrinks with the batch, and an image's result depends
on its neighbours), v is a constant for the attacker's gradient, and the image tower computes in half precision. `scope`
and `gradient` name the first two; the third is the tower's own affair.

With v constant each step divides the gradient by √(1 + η²), ten steps by 6·10¹⁴: an attack in half precision, or one
that needs the gradient's size, sees nothing. DiffPure is `shared.diffusion.Purifier`; its time is a setting.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.models.victim import ZeroShot, text_matrix
from shared.options import Positive, Whole, bounded


def blank_direction(model: nn.Module, templates: Sequence[str]) -> Tensor:
    """m̂ (D,): the mean of the unit embeddings of templates whose class name is left out, on the sphere. templates:
    with one {} each."""
    if not templates:
        raise UserError("CLIPure needs at least one template with {} where the class name stands.")
    return F.normalize(text_matrix(model, [template.format("") for template in templates]).mean(dim=0), dim=0)


class CLIPure(nn.Module):
    """A zero-shot victim whose embeddings are purified first: x (N, 3, H, W) in [0, 1] -> logits (N, K). Deterministic.

    blank: m̂ (D,) from `blank_direction`. steps: K; step_size: η. scope: "sample", v a unit vector for each image, or
    "batch", as released. gradient: "exact" through the steps; "detached": v constant, as released; "bpda": the
    identity.
    """

    @bounded
    def __init__(
        self,
        victim: ZeroShot,
        blank: Tensor,
        steps: Whole = 10,
        step_size: Positive = 30.0,
        scope: Literal["sample", "batch"] = "sample",
        gradient: Literal["exact", "detached", "bpda"] = "exact",
    ):
        super().__init__()
        if blank.shape != victim.text.shape[1:]:
            size = tuple(victim.text.shape[1:])
            raise UserError(f"CLIPure with a blank embedding {tuple(blank.shape)}: use one of {size}.")
        self.victim, self.steps, self.step_size, self.scope, self.gradient = (
            victim,
            steps,
            float(step_size),
            scope,
            gradient,
        )
        self.register_buffer("blank", F.normalize(blank, dim=0), persistent=False)

    @property
    def num_classes(self) -> int:
        return self.victim.num_classes

    def purify(self, z: Tensor) -> Tensor:
        """z' (N, D) of embeddings z (N, D)."""
        radius = z.norm(dim=1, keepdim=True)
        u, m = z / radius, self.blank.to(z)
        for _ in range(self.steps):
            v = m - (u @ m)[:, None] * u
            v = v / (v.norm(dim=1, keepdim=True) if self.scope == "sample" else v.norm()).clamp_min(
                torch.finfo(z.dtype).tiny
            )
            u = F.normalize(u + self.step_size * (v.detach() if self.gradient == "detached" else v), dim=1)
        if self.gradient == "bpda":
            return (radius * u).detach() + (z - z.detach())
        return radius * u

    def forward(self, x: Tensor) -> Tensor:
        return self.victim.classify(self.purify(self.victim.embed(x)))
