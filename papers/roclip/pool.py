"""A pool: the last embeddings that went in, first in, first out, with the pairs they came from. A part of a run's
checkpoint (its buffers)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.options import bounded

NOISE = -1  # the pair of an entry that came from none


class Found(NamedTuple):
    """What a pool returned for N queries."""

    vectors: Tensor
    """(N, D) float32, as they are kept: of norm 1, but for noise that was not normalised. No gradient."""
    at: Tensor
    """(N,) their places in the pool."""
    ids: Tensor
    """(N,) the pairs they came from; −1: noise."""
    cosine: Tensor
    """(N,) with the queries."""


class Pool(nn.Module):
    """P entries of D numbers.

    start: "gaussian" (norm about √D), "unit" (of norm 1), or "pairs": zeros until `put` is called. wrap: "drop" or
    "ring", see `add`. seed: of noise. Raises UserError for a pool without entries.
    """

    @bounded
    def __init__(
        self,
        size: int,
        dim: int,
        start: Literal["gaussian", "unit", "pairs"] = "gaussian",
        wrap: Literal["drop", "ring"] = "ring",
        seed: int = 0,
    ):
        super().__init__()
        if size < 1 or dim < 1:
            raise UserError(f"a pool of {size} entries of {dim} numbers cannot be: use at least 1 of each.")
        self.wrap = wrap
        noise = (
            torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
            if start != "pairs"
            else torch.zeros(size, dim)
        )
        # directions and norms apart: the search is one product, and an entry that is not normalised comes back as it is
        self.register_buffer("directions", F.normalize(noise, dim=1))
        self.register_buffer("norms", noise.norm(dim=1) if start == "gaussian" else torch.ones(size))
        self.register_buffer("ids", torch.full((size,), NOISE))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))
        self.register_buffer("ready", torch.tensor(start != "pairs"))

    def __len__(self) -> int:
        return len(self.ids)

    @torch.no_grad()
    def nearest(self, query: Tensor, excluded: Sequence[int] | None = None) -> Found:
        """For each of N queries (N, D) of norm 1 the entry of the largest cosine, the first of equals. excluded: for
        each a pair whose entries it may not be given (N,). Raises UserError where the pool has no content yet."""
        if not self.ready:
            raise UserError("the pool is empty: put embeddings of pairs into it first, or start it with noise.")
        cosine = query.to(self.directions) @ self.directions.T
        if excluded is not None:
            cosine = cosine.masked_fill(
                torch.as_tensor(excluded, device=cosine.device)[:, None] == self.ids, -torch.inf
            )
        value, at = cosine.max(dim=1)
        return Found(self.directions[at] * self.norms[at, None], at, self.ids[at], value)

    @torch.no_grad()
    def add(self, embeddings: Tensor, ids: Sequence[int]) -> None:
        """Take in a batch (B, D) of norm 1, over the oldest entries.

        Where it goes beyond the end of the pool: "drop" leaves the rest out and begins at 0 with the next batch (also
        where it just fits), "ring" continues at 0, and of a batch larger than the pool its end stays.
        """
        size, begin = len(self), int(self.next)
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.ids.device)
        if self.wrap == "drop":
            count = min(len(embeddings), size - begin)
            places, kept = slice(begin, begin + count), slice(0, count)
            self.next.fill_(0 if begin + len(embeddings) >= size else begin + count)
        else:
            count = min(len(embeddings), size)
            first = begin + len(embeddings) - count
            places, kept = (
                torch.arange(first, first + count, device=self.ids.device) % size,
                slice(len(embeddings) - count, None),
            )
            self.next.fill_((begin + len(embeddings)) % size)
        self.directions[places] = embeddings[kept].detach().to(self.directions)
        self.norms[places], self.ids[places] = 1.0, ids[kept]

    @torch.no_grad()
    def put(self, embeddings: Tensor, ids: Sequence[int]) -> None:
        """The whole first content, (P, D) of norm 1. Raises UserError for another number."""
        if len(embeddings) != len(self) or len(ids) != len(self):
            raise UserError(f"a pool of {len(self)} entries cannot begin with {len(embeddings)}: give as many.")
        self.directions.copy_(embeddings)
        self.ids.copy_(torch.as_tensor(ids))
        self.norms.fill_(1.0)
        self.ready.fill_(True)
