"""Resizing in arithmetic that is exact, so that every CPU and GPU gives the same bytes; where there is a GPU, on it.

    out_i = ⌊½ + Σ_j w_ij in_j⌋,   w_ij = k((j + ½ − c_i)/f) / Σ_j …,   c_i = (i + ½)·s,   s = in/out,   f = max(s, 1)

in each row, then in each column, both times rounded to bytes; k is the triangle (bilinear) or Keys' cubic with a = −½
(bicubic). So does Pillow. Weights here are multiples of 2⁻¹⁵ that sum to 1, Pillow's have 22 bits: with pixels of 8
bits every product and sum fits the 24 bits of float32, so neither the order nor fused multiply-adds change a result.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

STEPS = 2**15
REACH = {"bilinear": 1.0, "bicubic": 2.0}
Geometry = tuple[int, int, int, int, int, int]
"""width and height to resize to, and of what is cut out of that: left, top, width, height."""


def fit(picture: Tensor, geometry: Geometry, interpolation: str) -> Tensor:
    """(3, H, W) uint8 -> (3, height, width) uint8, on the CPU."""
    wide, high, left, top, width, height = geometry
    if tuple(picture.shape[1:]) == (high, wide):
        return picture[:, top : top + height, left : left + width].contiguous()
    # a worker process cannot share the GPU of its parent
    device = "cuda" if torch.cuda.is_available() and get_worker_info() is None else "cpu"
    x = picture.permute(1, 2, 0).to(device)  # as the decoder leaves it in memory
    upper, rows, last = _taps(x.shape[0], high, top, height, interpolation, 1, device)
    left, columns, right = _taps(x.shape[1], wide, left, width, interpolation, 3, device)
    x = x[upper:last, left:right].flatten(1).t().to(torch.float32, memory_format=torch.contiguous_format)
    x = _weighted(_weighted(x, *columns).t().contiguous(), *rows)
    return x.byte().view(height, 3, width).transpose(0, 1).contiguous().cpu()


def _weighted(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """(rows, n), its rows in weighted sums, rounded to bytes."""
    return F.embedding_bag(index, x, per_sample_weights=weights, mode="sum").add_(0.5).floor_().clamp_(0, 255)


@lru_cache(maxsize=1024)
def _taps(
    size: int, new: int, first: int, count: int, interpolation: str, channels: int, device: str
) -> tuple[int, tuple[Tensor, Tensor], int]:
    """For `count` places from `first` on: where what they are made of begins; which lines of it, (channels·count, K),
    where a place has one for each channel, and with which weights; where it ends."""
    scale = size / new
    f = max(scale, 1.0)
    centre = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * scale
    reach = REACH[interpolation] * f
    begin = (centre - reach + 0.5).long().clamp(min=0)
    end = (centre + reach + 0.5).long().clamp(max=size)
    at = begin[:, None] + torch.arange(int((end - begin).max()))
    d = ((at + 0.5 - centre[:, None]) / f).abs()
    if interpolation == "bilinear":
        k = (1 - d).clamp(min=0)
    else:
        k = torch.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2).where(d < 2, 0)
    k = k.where(at < end[:, None], 0)
    steps = (k / k.sum(dim=1, keepdim=True) * STEPS).round()
    steps.scatter_add_(1, steps.argmax(dim=1, keepdim=True), STEPS - steps.sum(dim=1, keepdim=True))
    offset, last = int(begin.min()), int(end.max())
    index = (at.clamp(max=last - 1) - offset) * channels + torch.arange(channels)[:, None, None]
    weights = (steps / STEPS).float().repeat(channels, 1)
    return offset, (index.flatten(0, 1).to(device), weights.to(device)), last
