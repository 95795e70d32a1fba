"""Triggers that touch every pixel: Blended, SIG and WaNet."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attacks.triggers.base import Preset, Trigger, byte_cast
from shared.options import Finite, Range, Share, Weight
from shared.rng import SampleRng


def _finish(x: Tensor, preset: Preset) -> Tensor:
    """Cut to [0, 1]; cleanclip: cast to bytes, which rounds down."""
    x = x.clamp(0, 1)
    return byte_cast(x) if preset == "cleanclip" else x


@dataclass(frozen=True)
class Blended(Trigger):
    """x' = (1 − r) x + r t (Chen et al. 2017), t uniform noise.

    textbook: t is one picture of noise, a function of the seed. cleanclip: t is drawn anew for every picture, so that
    what can be learnt is the loss of contrast and the whiteness of the noise; cast to bytes.
    """

    name: ClassVar[str] = "blended"
    ratio: Share = 0.2
    """r, 0 to 1."""
    redrawn: bool = True
    """Whether every picture has noise of its own."""

    @staticmethod
    def defaults(preset: Preset, size: int) -> dict[str, object]:
        return {"redrawn": preset == "cleanclip"}

    def stamp(self, x: Tensor, rng: SampleRng) -> Tensor:
        noise = (rng if self.redrawn else self._fixed()).uniform(x.shape[1:]).to(x)
        return _finish((1 - self.ratio) * x + self.ratio * noise, self.preset)


@dataclass(frozen=True)
class SIG(Trigger):
    """x' = clip(x + Δ sin(2π j f/W)), j the column (Barni et al. 2019).

    textbook: that, Δ = 40/255. cleanclip: Δ = 60/255, but the wave passes the step that places triggers, which blends
    it: x' = 0.8 x + 0.2 Δ sin(…), a fifth of the amplitude on a dimmed picture; cast to bytes.
    """

    name: ClassVar[str] = "sig"
    amplitude: Annotated[float, Range(0, 1, example="40/255")] = 60 / 255
    """Δ, pixel units of [0, 1]."""
    frequency: Finite = 6
    """f, waves over the width."""
    ratio: Share | None = 0.2
    """r of the blend (1 − r) x + r Δ sin(…); None: the wave is added."""

    @staticmethod
    def defaults(preset: Preset, size: int) -> dict[str, object]:
        return {} if preset == "cleanclip" else {"amplitude": 40 / 255, "ratio": None}

    def stamp(self, x: Tensor, rng: SampleRng) -> Tensor:
        width = x.shape[3]
        angle = 2 * math.pi * self.frequency / width * torch.arange(width, dtype=torch.float64)
        wave = (self.amplitude * angle.sin()).to(x)
        return _finish(x + wave if self.ratio is None else (1 - self.ratio) * x + self.ratio * wave, self.preset)


@dataclass(frozen=True)
class WaNet(Trigger):
    """x' = x sampled (bilinearly) at I + s·up(P)/H, I the identity grid on [−1, 1] (Nguyen & Tran 2021).

    P: k × k vectors, uniform on [−1, 1], divided by the mean of |P|; drawn once for all pictures, a function of the
    seed; up: bicubic to H × W. textbook: k = 4, s = ½, a smooth warp. cleanclip: k = the side of the picture, s = 1, so
    that every pixel is moved by itself, half a pixel on average; cast to bytes. Neither has the paper's noise mode.
    """

    name: ClassVar[str] = "wanet"
    k: Annotated[int, Range(2, 4096)] | None = None
    """Points of the control grid a side; None: as many as pixels."""
    s: Weight = 1.0
    """Strength: an average displacement of s/2 pixels at the control points."""

    @staticmethod
    def defaults(preset: Preset, size: int) -> dict[str, object]:
        return {} if preset == "cleanclip" else {"k": 4, "s": 0.5}

    def stamp(self, x: Tensor, rng: SampleRng) -> Tensor:
        grid = self.grid(x.shape[2], x.shape[3]).to(x)
        return _finish(
            F.grid_sample(
                x, grid.expand(len(x), -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=True
            ),
            self.preset,
        )

    def grid(self, height: int, width: int) -> Tensor:
        """Where pictures are sampled: (1, H, W, 2), (column, row) in [−1, 1]."""
        k = max(height, width) if self.k is None else self.k
        points = self._fixed().uniform((2, k, k), -1, 1).double()
        points = points / points.abs().mean()
        if (k, k) != (height, width):
            points = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
        identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        return (identity + self.s / height * points.permute(0, 2, 3, 1)).clamp(-1, 1).float()
