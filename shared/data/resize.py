"""Resizing by torch in whole numbers: the same bytes on every CPU, at a fraction of Pillow's time.

    out_i = (½ + Σ_j w_ij in_j) cut to 0 … 255,   w_ij = k((j + ½ − c_i)/f) / Σ_j …,   c_i = (i + ½)·s,   f = max(s, 1)

in each row, then in each column, with s = in/out and k the triangle (bilinear) or Keys' cubic with a = −½ (bicubic). So
does Pillow, with weights of 22 bits; here the largest weight has 15 (torch's kernels for uint8).
"""

import functools
import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError

Geometry = tuple[int, int, int, int, int, int]
"""width and height to resize to, and of what is cut out of that: left, top, width, height."""
SAMPLE = {"bilinear": "28ea87e39b209a46", "bicubic": "9d3bd300972ae077"}  # see `_demand_whole_numbers`


def fit(picture: Tensor, geometry: Geometry, interpolation: str) -> Tensor:
    """(3, H, W) uint8 -> (3, height, width) uint8. Raises UserError on a CPU where torch computes otherwise."""
    wide, high, left, top, width, height = geometry
    if tuple(picture.shape[1:]) != (high, wide):
        _demand_whole_numbers(interpolation)
        picture = _resized(picture, (high, wide), interpolation)
    return picture[:, top : top + height, left : left + width].contiguous()


def _resized(picture: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    return F.interpolate(picture[None], size, mode=interpolation, align_corners=False, antialias=True)[0]


def sample() -> Tensor:
    """A picture (3, 61, 83) with all bytes in it, stored as a decoder stores it."""
    return (torch.arange(61 * 83 * 3) * 7919 % 65521 % 256).byte().view(61, 83, 3).permute(2, 0, 1)


@functools.cache
def _demand_whole_numbers(interpolation: str) -> None:
    """Once in a process: a picture resized down and up has the bytes that the formula in whole numbers gives."""
    found = (_resized(sample(), size, interpolation).contiguous().numpy().tobytes() for size in ((37, 100), (70, 31)))
    if hashlib.sha256(b"".join(found)).hexdigest()[:16] != SAMPLE[interpolation]:
        raise UserError(
            "on this machine torch resizes pictures to other bytes than on the rest: leave --data.source.fast out."
        )
