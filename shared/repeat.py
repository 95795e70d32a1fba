"""Loops whose passes all cost the same, said in one place, so that a plan (`shared.experiment.plan`) runs one pass for
all.

Everywhere else these are the plain loop and the plain concatenation.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle, islice
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Rows = TypeVar("Rows", bound=Sized)
EARLY = 0.5
"""Of the passes of an attack that leaves out a picture once it has succeeded, the share that a plan expects: an
assumption."""
watched: list[Callable[[float], AbstractContextManager]] = []
"""Who plans, while somebody does: entered with the number of passes that the one under way stands for."""


def repeated(
    passes: Sequence[Part], share: float = 1.0, alike: Callable[[Part], Hashable] = lambda _: None
) -> Iterator[Part]:
    """The passes of a loop, one after another. share: how many of them a plan expects where the loop may end early;
    alike: passes that cost the same, where not all do."""
    if not watched:
        yield from passes
        return
    kinds = [alike(one) for one in passes]
    for kind, count in Counter(kinds).items():
        with watched[-1](max(1.0, share * count)):
            yield passes[kinds.index(kind)]


def parts_of(rows: Sequence[Part], size: int) -> list[Sequence[Part]]:
    """Rows in parts of `size`, the last one with what is left; of a range these are ranges."""
    return [rows[k : k + size] for k in range(0, len(rows), size)]


def batches(parts: Sequence[Rows]) -> Iterator[Rows]:
    """The batches of a loop, each with a length. A plan takes the first for all, as often as it goes into their sum."""
    if not watched or len(parts) < 2:
        yield from parts
        return
    with watched[-1](sum(map(len, parts)) / len(parts[0])):
        yield parts[0]


def listed(function: Callable[[Rows], list], parts: Sequence[Rows]) -> list:
    """What `function` makes of each batch, one after another."""
    made = [one for part in batches(parts) for one in function(part)]
    return made if not watched else list(islice(cycle(made), sum(map(len, parts))))


def joined(function: Callable[[Part], Tensor], parts: Sequence[Part]) -> Tensor:
    """What `function` makes of each part (n_i, …), one under another: (Σ n_i, …)."""
    return joined_all(lambda part: (function(part),), parts)[0]


def joined_all(function: Callable[[Part], tuple[Tensor, ...]], parts: Iterable[Part]) -> tuple[Tensor, ...]:
    """The same where `function` makes several tensors. parts: anything with a length, as a loader has."""
    if not watched or len(parts) < 2:
        return tuple(torch.cat(rows) for rows in zip(*map(function, parts), strict=True))
    first = next(iter(parts))
    sized = isinstance(parts, list | tuple) and not isinstance(first, tuple)
    passes = sum(map(len, parts)) / len(first) if sized else len(parts)
    with watched[-1](passes):
        made = function(first)
    return tuple(t.new_empty((round(passes * len(t)), *t.shape[1:])) for t in made)


def most(passes: int, share: float = 1.0) -> Iterator[int]:
    """0, 1, 2, … for a loop that ends by itself, after at most so many passes."""
    with watched[-1](max(1.0, share * passes)) if watched else nullcontext():
        yield 0
    step = 1
    while not watched:
        yield step
        step += 1
