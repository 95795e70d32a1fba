"""Triggers that replace a square of the picture: x' = (1 − m) ⊙ x + m ⊙ t, m the square and t what stands in it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from shared.attacks.triggers.base import SMALLEST, Preset, Trigger, byte_cast, patch_side
from shared.options import Count
from shared.rng import SampleRng

Pattern = Literal["noise", "checker"]
Place = Literal["random", "corner", "corners", "centre"]


def paste(x: Tensor, patch: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x (N, 3, H, W) with `patch` (N or 1, 3, p, p) over it, its upper left pixel at (rows, columns), (N,) each;
    gradients reach both."""
    side = patch.shape[-1]
    y = torch.arange(x.shape[2], device=x.device) - rows.to(x.device)[:, None]
    z = torch.arange(x.shape[3], device=x.device) - columns.to(x.device)[:, None]
    inside = ((y >= 0) & (y < side))[:, None, :, None] & ((z >= 0) & (z < side))[:, None, None, :]
    at = (y.clamp(0, side - 1)[:, :, None] * side + z.clamp(0, side - 1)[:, None, :]).flatten(1)
    spread = patch.expand(len(x), -1, -1, -1).flatten(2).gather(2, at[:, None].expand(-1, patch.shape[1], -1))
    return torch.where(inside, spread.view_as(x), x)


def centre(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where a square of `side` pixels stands in the middle of pictures x: (rows, columns), (N,) each."""
    return tuple(torch.full((len(x),), (length - side) // 2) for length in x.shape[2:])


@dataclass(frozen=True)
class BadNet(Trigger):
    """A patch (Gu et al. 2017).

    textbook: one checker board in the lower right corner. cleanclip: t = the picture's mean colour + N(0, 1), drawn
    anew for every picture, out of range values wrapped round by the cast to bytes, at a place drawn from {0, …, H − p −
    1}², which leaves the last row and column out.
    """

    name: ClassVar[str] = "badnet"
    patch: Count = SMALLEST
    """Side p in pixels; the papers' is 16 of 224."""
    pattern: Pattern = "noise"
    place: Place = "random"

    @staticmethod
    def defaults(preset: Preset, size: int) -> dict[str, object]:
        return {"patch": patch_side(size)} | (
            {} if preset == "cleanclip" else {"pattern": "checker", "place": "corner"}
        )

    def stamp(self, x: Tensor, rng: SampleRng) -> Tensor:
        self._refuse(
            self.patch >= min(x.shape[2:]),
            f"a patch of {self.patch} pixels does not fit into pictures of {x.shape[2]}×{x.shape[3]}: use a smaller "
            "one.",
        )
        patch = self._pattern(x, rng)
        for rows, columns in self._places(x, rng.child("place")):
            x = paste(x, patch, rows, columns)
        return x

    def _pattern(self, x: Tensor, rng: SampleRng) -> Tensor:
        """(N or 1, 3, p, p)."""
        if self.pattern == "noise":
            noise = rng.normal((3, self.patch, self.patch)).to(x)
            mean = x.double().mean((2, 3), keepdim=True).to(x)  # double: the order of summation must not show
            return byte_cast(mean + noise)
        square = torch.arange(self.patch)
        return ((square[:, None] + square) % 2 == 0).to(x).expand(1, 3, -1, -1)

    def _places(self, x: Tensor, rng: SampleRng) -> list[tuple[Tensor, Tensor]]:
        height, width = x.shape[2:]
        if self.place == "random":
            return [
                tuple(
                    rng.child(axis).integers(length - self.patch)
                    for axis, length in (("row", height), ("column", width))
                )
            ]
        if self.place == "centre":
            return [centre(x, self.patch)]
        ends = [(height - self.patch, width - self.patch)]
        if self.place == "corners":
            ends += [(0, 0), (0, width - self.patch), (height - self.patch, 0)]
        return [tuple(torch.full((len(x),), at) for at in end) for end in ends]


@dataclass(frozen=True)
class LabelConsistent(BadNet):
    """A patch on pictures of the target class, whose captions stay true (Turner et al. 2019).

    cleanclip: the patch of BadNet, nothing else. textbook: checker boards in the four corners, on pictures that were
    first made hard to recognise; that is done to the pictures where they are poisoned (`shared.attacks.pgd`, say), not
    here.
    """

    name: ClassVar[str] = "label_consistent"
    clean_label: ClassVar[bool] = True

    @staticmethod
    def defaults(preset: Preset, size: int) -> dict[str, object]:
        return BadNet.defaults(preset, size) | ({} if preset == "cleanclip" else {"place": "corners"})
