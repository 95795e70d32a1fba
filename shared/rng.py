"""Random numbers addressed by (seed, stream, sample index).

The draw for a sample depends on nothing else: not on the batch it sits in, the number of processes, or what was drawn
before. A batch draw is a stack of per-sample draws, each from a generator of its own, made on the CPU so that the numbers
are the same on every device.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.repeat import repeated


class SampleRng:
    """Numbers for N samples. The same method called twice gives the same numbers; `child` opens an independent stream."""

    def __init__(self, seed: int, indices: Sequence[int] | Tensor, stream: str = ""):
        self.seed, self.stream = int(seed), stream
        self.indices = tuple(indices.tolist() if isinstance(indices, Tensor) else map(int, indices))

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, keep: Tensor) -> "SampleRng":
        """The same streams for some of the samples: `keep` is a boolean mask (N,) or a tensor of positions."""
        positions = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        return SampleRng(self.seed, [self.indices[i] for i in positions.tolist()], self.stream)

    def child(self, name: str | int) -> "SampleRng":
        """An independent stream of the same samples, e.g. one per restart or per step."""
        return SampleRng(self.seed, self.indices, f"{self.stream}/{name}")

    def _stack(self, draw, shape, dtype, device) -> Tensor:
        out = torch.empty((len(self), *shape), dtype=dtype)
        prefix = f"{self.seed}:{self.stream}:".encode()
        for k in repeated(range(len(self))):
            of_sample = hashlib.blake2b(prefix + str(self.indices[k]).encode(), digest_size=8)
            draw(out[k], torch.Generator().manual_seed(int.from_bytes(of_sample.digest(), "little") >> 1))
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
