"""Random numbers addressed by (seed, stream, sample index).

The draw for a sample depends on nothing else: not on the batch it sits in, the number of processes, or what was drawn
before. A batch draw is a stack of per-sample draws, each from a generator of its own, made on the CPU so that the numbers
are the same on every device.
"""

import hashlib
from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from shared.errors import UserError


class SampleRng:
    """Numbers for N samples. The same method called twice gives the same numbers; `child` opens an independent stream.

    Raises UserError for a seed or an index that is no whole number.
    """

    def __init__(self, seed: int, indices: Sequence[int] | Tensor, stream: str = ""):
        given = indices.tolist() if isinstance(indices, Tensor) else indices
        try:
            self.seed, self.stream = index(seed), stream
            self.indices = tuple(map(index, given))
        except TypeError:
            raise UserError(
                f"random streams are of a whole seed and whole indices, not {seed!r} and {given}."
            ) from None

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, keep: Tensor) -> "SampleRng":
        """The same streams for some of the samples: `keep` is a boolean mask (N,) or a tensor of positions."""
        positions = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        return SampleRng(self.seed, [self.indices[i] for i in positions.tolist()], self.stream)

    def child(self, name: str | int) -> "SampleRng":
        """An independent stream of the same samples, e.g. one per restart or per step."""
        return SampleRng(self.seed, self.indices, f"{self.stream}/{name}")

    def _generators(self):
        prefix = f"{self.seed}:{self.stream}:".encode()
        for sample in self.indices:
            seed = int.from_bytes(hashlib.blake2b(prefix + str(sample).encode(), digest_size=8).digest(), "little") >> 1
            yield torch.Generator().manual_seed(seed)

    def _stack(self, draw, shape, dtype, device) -> Tensor:
        out = torch.empty((len(self), *shape), dtype=dtype)
        for row, generator in zip(out, self._generators(), strict=True):
            draw(row, generator)
        return out if device is None else out.to(device)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0, device=None) -> Tensor:
        """(N, *shape) float32, uniform on [low, high)."""
        return self._stack(lambda row, g: row.uniform_(low, high, generator=g), shape, torch.float32, device)

    def normal(self, shape: Sequence[int], device=None) -> Tensor:
        """(N, *shape) float32, standard normal."""
        return self._stack(lambda row, g: row.normal_(generator=g), shape, torch.float32, device)

    def integers(self, high: int, shape: Sequence[int] = (), device=None) -> Tensor:
        """(N, *shape) int64, uniform on {0, …, high − 1}."""
        return self._stack(lambda row, g: row.random_(0, high, generator=g), shape, torch.int64, device)
