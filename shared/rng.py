"""Random numbers addressed by (seed, stream, sample index).

The draw for a sample depends on nothing else: not on the batch it sits in, the number of processes, or what was drawn
before. A batch draw is a stack of per-sample draws, each seeded by a hash of (seed, stream, index), by one of two:

    "mt19937"        torch's generator of the CPU, one sample after another: the same numbers on every device
    "philox4x32-10"  counter-based (Salmon et al. 2011), the whole batch by one kernel on the device where it lives;
                     block k of sample i is Philox(key = hash of i, counter = k), on GPUs of every size

Of the CPU's generator only the lower 32 bits of a seed count (findings/torch-cpu-seed-32-bits.sh), so among a million
streams about a hundred pairs draw the same; of Philox's all 63 do.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from operator import index
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.func import _random as philox

from shared.errors import UserError

Draws = Literal["auto", "cpu", "device"]
Device: TypeAlias = torch.device | str | None
_draws: Draws = "auto"


def set_draws(draws: Draws) -> None:
    """For this process: who draws what is asked for on a device. "auto": Philox on a GPU, else the CPU's generator;
    "cpu" (for comparing machines) and "device": the one or the other wherever the device is."""
    global _draws
    _draws = draws


def generator(device: torch.device | str) -> str:
    """The name of the generator that draws what is asked for on `device`."""
    on_device = _draws == "device" or (_draws == "auto" and torch.device(device).type == "cuda")
    return "philox4x32-10" if on_device else "mt19937"


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

    def _seeds(self) -> Iterator[int]:
        """63 bits for each sample."""
        base = hashlib.blake2b(f"{self.seed}:{self.stream}:".encode(), digest_size=8)
        for sample in self.indices:
            own = base.copy()
            own.update(b"%d" % sample)
            yield int.from_bytes(own.digest(), "little") >> 1

    def _stack(self, draw: Callable, shape: Sequence[int], dtype: torch.dtype, device: Device) -> Tensor:
        out, mt19937 = torch.empty((len(self), *shape), dtype=dtype), torch.Generator()
        for row, seed in zip(out.unbind() if len(self) else (), self._seeds(), strict=True):
            draw(row, mt19937.manual_seed(seed))
        return out if device is None else out.to(device)

    def _philox(self, fill: Callable, shape: Sequence[int], device: Device, **how: float) -> Tensor:
        keys = torch.tensor([(seed, 0) for seed in self._seeds()], dtype=torch.uint64).view(-1, *[1] * len(shape), 2)
        return fill(keys.to(device), torch.empty((len(self), *shape), device=device), **how)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0, device: Device = None) -> Tensor:
        """(N, *shape) float32, uniform on [low, high). device: where it is wanted; see `generator`."""
        if device is not None and generator(device) != "mt19937":
            return self._philox(philox.uniform_, shape, device, low=low, high=high)
        return self._stack(lambda row, g: row.uniform_(low, high, generator=g), shape, torch.float32, device)

    def normal(self, shape: Sequence[int], device: Device = None) -> Tensor:
        """(N, *shape) float32, standard normal; Philox's by Box and Muller's transform. device: as in `uniform`."""
        if device is not None and generator(device) != "mt19937":
            return self._philox(philox.normal_, shape, device)
        return self._stack(lambda row, g: row.normal_(generator=g), shape, torch.float32, device)

    def integers(self, high: int, shape: Sequence[int] = (), device: Device = None) -> Tensor:
        """(N, *shape) int64, uniform on {0, …, high − 1}; few are asked for: the CPU's on every device."""
        return self._stack(lambda row, g: row.random_(0, high, generator=g), shape, torch.int64, device)
