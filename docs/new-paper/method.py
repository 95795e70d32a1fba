"""The contribution of newpaper: put it here, equation by equation. This one is the mean over small shifts.

g(x) = 1/|S| Σ_{s ∈ S} shift(x, s),     S = {(0, 0), (±r, 0), (0, ±r)},  edges repeated
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.experiment.step import Lab
from shared.options import Bounded, Count
from shared.rng import SampleRng
from shared.steps.purification import Opened


@dataclass(frozen=True)
class Method(Bounded):
    """g in front of a classifier (`shared.steps.purification.Defence`); what can be set are its fields."""

    reach: Count = 1
    """r, in pixels."""

    def open(self, lab: Lab) -> Opened:
        """The defence."""
        return self

    def __call__(self, x: Tensor, rng: SampleRng) -> Tensor:
        """g(x) (N, 3, H, W) in [0, 1] of pictures x in [0, 1]; nothing in it is random, so that rng is not read."""
        r, (h, w) = self.reach, x.shape[-2:]
        wide = F.pad(x, (r, r, r, r), mode="replicate")
        shifts = ((0, 0), (r, 0), (-r, 0), (0, r), (0, -r))
        return torch.stack([wide[..., r + a : r + a + h, r + b : r + b + w] for a, b in shifts]).mean(dim=0)
