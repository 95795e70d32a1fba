"""Augmentation of pictures, drawn anew in every step, and of captions, once per caption for a whole run.

The released code (BigML-CS-UCLA/RoCLIP): mirror → random-resized crop → colour jitter → greyscale → Gaussian blur,
which is always on; captions have one of four word operations (EDA), computed when the data set is built. Every draw is
a function of (seed, step, index), and of (seed, index) for captions. Two things differ from the release. A hue is
turned in the YIQ plane, not in HSV, which keeps the luminance and so leaves a grey picture grey in either order. The
jitter's operations have a fixed order, which torchvision shuffles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.augment import EDA, GREY, cropped, luminance
from shared.errors import UserError
from shared.options import Blur, Bounded, Count, OpenShare, Part, Range, Seed, Share, Whole
from shared.rng import SampleRng

_YIQ = (GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class ImageAugmentation(Bounded):
    """Pictures (N, 3, H, W) in [0, 1] -> the same shape and range; the operations in the order of the fields, each off
    by default.

    Raises UserError for shares, strengths or widths out of range.
    """

    mirror: Share = 0.0
    """Probability of a horizontal flip."""
    shift: Whole = 0
    """Each picture moves by a whole number of pixels, uniform on [−shift, shift] in both directions; edges are
    repeated."""
    area: tuple[Part, Part] | None = None
    """Share of the picture that a crop keeps (uniform between these), width/height log-uniform on [3/4, 4/3], stretched
    to the whole."""
    jittered: Share = 1.0
    """Probability that the next four act at all."""
    brightness: Share = 0.0
    """Multiplied by 1 + u, u uniform on [−brightness, brightness]; the same for the next two."""
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    """Turned by u of a full turn, u uniform on [−hue, hue]."""
    grey: Share = 0.0
    """Probability of no colour."""
    blur: tuple[Blur, Blur] | None = None
    """σ of a Gaussian in pixels, uniform between these, on every picture."""
    kernel: Count = 21
    """Its side, odd; smaller where the picture is smaller than half of it."""
    seed: Seed = 0

    def __post_init__(self):
        super().__post_init__()
        if self.area is not None and self.area[0] > self.area[1]:
            raise UserError(f"the share of a picture that a crop keeps is {self.area}: use two ascending numbers.")
        if self.blur is not None and (self.blur[0] > self.blur[1] or self.kernel % 2 == 0):
            said = f"the blur has σ from {self.blur} and a kernel of {self.kernel}"
            raise UserError(f"{said}: use ascending numbers and an odd kernel.")

    def __call__(self, x: Tensor, step: int, indices: Sequence[int]) -> Tensor:
        u = SampleRng(self.seed, indices, f"roclip/augment/{step}").uniform((14,)).to(x)
        if self.mirror:
            x = torch.where(_wide(u[:, 0] < self.mirror), x.flip(3), x)
        if self.shift:
            x = self._shifted(x, u[:, 1:3])
        if self.area is not None:
            x = cropped(x, u[:, 3:7], self.area)
        x = self._coloured(x, u[:, 7:13])
        if self.blur is not None:
            x = self._blurred(x, self.blur[0] + (self.blur[1] - self.blur[0]) * u[:, 13])
        return x

    def _shifted(self, x: Tensor, u: Tensor) -> Tensor:
        n, height, width = len(x), x.shape[2], x.shape[3]
        by = (u * (2 * self.shift + 1)).long().clamp(max=2 * self.shift) - self.shift
        rows = (torch.arange(height, device=x.device) + by[:, :1]).clamp(0, height - 1)
        columns = (torch.arange(width, device=x.device) + by[:, 1:]).clamp(0, width - 1)
        places = (rows[:, :, None] * width + columns[:, None, :]).reshape(n, 1, height * width)
        return x.flatten(2).gather(2, places.expand(n, x.shape[1], -1)).reshape(x.shape)

    def _coloured(self, x: Tensor, u: Tensor) -> Tensor:
        on = u[:, 0] < self.jittered
        by = torch.where(on[:, None], 2 * u[:, 1:5] - 1, 0.0)
        if self.brightness:
            x = (x * _wide(1 + self.brightness * by[:, 0])).clamp(0, 1)
        if self.contrast:
            mean = luminance(x).mean((2, 3), keepdim=True)
            x = torch.lerp(mean.expand_as(x), x, _wide(1 + self.contrast * by[:, 1]).expand_as(x)).clamp(0, 1)
        if self.saturation:
            x = torch.lerp(luminance(x).expand_as(x), x, _wide(1 + self.saturation * by[:, 2]).expand_as(x)).clamp(0, 1)
        if self.hue:
            x = _turned(x, 2 * math.pi * self.hue * by[:, 3]).clamp(0, 1)
        if self.grey:
            x = torch.where(_wide(u[:, 5] < self.grey), luminance(x), x)
        return x

    def _blurred(self, x: Tensor, sigma: Tensor) -> Tensor:
        reach = min(self.kernel // 2, min(x.shape[2:]) - 1)  # reflection needs less than the picture's side
        at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
        weights = (-0.5 * (at / sigma[:, None]) ** 2).exp()
        weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)  # (3N, kernel)
        flat = F.pad(x, (reach,) * 4, mode="reflect").reshape(1, -1, x.shape[2] + 2 * reach, x.shape[3] + 2 * reach)
        flat = F.conv2d(flat, weights[:, None, :, None], groups=len(weights))  # separable: columns, then rows
        return F.conv2d(flat, weights[:, None, None, :], groups=len(weights)).reshape(x.shape).clamp(0, 1)


RELEASED = ImageAugmentation(
    mirror=0.5,
    area=(0.08, 1.0),
    jittered=0.8,
    brightness=0.5,
    contrast=0.5,
    saturation=0.5,
    hue=0.1,
    grey=0.2,
    blur=(0.1, 2.0),
)
"""Of the released code, for pictures of 224 pixels."""
MILD = ImageAugmentation(shift=2, brightness=0.2)
"""For pictures of 32 pixels, whose objects are lost in a crop of 8 %."""


@dataclass(frozen=True)
class CaptionAugmentation(Bounded):
    """One changed form per caption, a function of (seed, index): the same in every epoch. See
    `shared.data.augment.EDA`, whose α this is."""

    alpha: OpenShare = 0.1
    seed: Seed = 1

    def bind(self, tokenizer) -> "BoundCaptions":
        """For a tokenizer, inside the words that it knows."""
        return BoundCaptions(EDA.of(tokenizer, alpha=self.alpha, seed=self.seed))


class BoundCaptions:
    """(captions, indices) -> their fixed forms, each computed once per process."""

    def __init__(self, eda: EDA):
        self._eda, self._known = eda, {}

    def __call__(self, texts: Sequence[str], indices: Sequence[int]) -> list[str]:
        new = [k for k, i in enumerate(indices) if i not in self._known]
        if new:
            said = self._eda([texts[k] for k in new], 0, [indices[k] for k in new])
            self._known.update(zip((indices[k] for k in new), said, strict=True))
        return [self._known[i] for i in indices]


def _wide(v: Tensor) -> Tensor:
    return v[:, None, None, None]


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """Hues turned by an angle (N,) in the plane of I and Q."""
    to = torch.tensor(_YIQ, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64).repeat(len(x), 1, 1)
    cos, sin = angle.double().cpu().cos(), angle.double().cpu().sin()
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    return torch.einsum("nij,njhw->nihw", (torch.linalg.inv(to) @ turn @ to).to(x), x)
