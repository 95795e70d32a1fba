"""What every labelled set of pictures looks like, and the views of it: some examples, some classes, a loader.

A set is map-style: example i is the same picture whatever was read before it. Pictures are float32 in [0, 1], channels
first; mean/std and the resize to a model's input live inside the victim, so that an attack's ε is in pixels.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.errors import UserError
from shared.files import digest
from shared.lifeline import tie_to_launcher
from shared.repeat import watched


class LabelledImages(Dataset):
    """Labelled pictures with one prompt per class. A subclass sets the four fields and writes `__len__` and
    `__getitem__` (or `__getitems__`, and `__getitem__` through it), and `labels` where they are known without opening
    the pictures.

    name: of the set, e.g. "cifar10". classes: label i is classes[i]. prompts: the sentence of class i, template
    applied. version: a short digest of what the examples are; a measurement made on other pictures, labels or prompts
    has another version. renameable: the classes are the user's folders, so names that a model cannot tell apart are
    refused, not only said.
    """

    name: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    version: str
    renameable: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def duplicates(self) -> dict[str, tuple[int, ...]]:
        """Prompts that more than one class has, with those classes: a classifier from prompts cannot tell these classes
        apart."""
        same = {p: tuple(i for i, q in enumerate(self.prompts) if q == p) for p in self.prompts}
        return {p: labels for p, labels in same.items() if len(labels) > 1}

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files left out because they cannot be read; see `usable`."""
        return ()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Picture (3, H, W) float32 in [0, 1] and its label."""
        raise NotImplementedError

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, H, W) and labels (N,) int64: what DataLoader asks for when it is given whole batches."""
        pairs = [self[int(i)] for i in indices]
        return stack([x for x, _ in pairs], self.name), torch.tensor([y for _, y in pairs], dtype=torch.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """(len,) int64, the label of every example."""
        return np.array([self[i][1] for i in range(len(self))], np.int64)

    def usable(self, indices: Iterable[int]) -> list[int]:
        """Those of `indices` whose picture can be read. Sets that may hold unreadable files override this
        (`shared.data.files`)."""
        return [int(i) for i in indices]


def stack(pictures: Sequence[Tensor], name: str) -> Tensor:
    """(N, 3, H, W) from pictures of one size. Raises UserError, naming the set, if the sizes differ."""
    if len({x.shape for x in pictures}) > 1:
        (a, b), *_, (c, d) = sorted({tuple(x.shape[1:]) for x in pictures})
        raise UserError(f"{name}: pictures of {a}×{b} and {c}×{d} pixels cannot share a batch; give an image size.")
    return torch.stack(list(pictures))


def subset(data: LabelledImages, n: int | None, seed: int) -> list[int]:
    """At most n indices (all if n is None), as equal in number per class as the set allows; the same for the same (n,
    seed, labels).

    Each class is put in an order of its own and the classes take turns, so the choice for a smaller n is the beginning
    of the choice for a larger one, and growing a class does not reorder the others. Unreadable pictures are handled by
    `data.usable`.
    """
    if n is not None and n < 1:
        raise UserError(f"{data.name}: the number of examples must be at least 1, not {n}.")
    labels = np.asarray(data.labels)
    if n is None:
        return data.usable(range(len(labels)))
    rank = _ranks(labels, seed)
    turn = np.random.default_rng([seed, -1 % 2**32]).permutation(
        data.num_classes
    )  # who goes first when a round is cut short
    return data.usable(np.lexsort((turn[labels], rank))[:n].tolist())


def at_end(data: LabelledImages, n: int, seed: int) -> list[int]:
    """At most n indices, as equal in number per class, of those that `subset` chooses last."""
    labels = np.asarray(data.labels)
    rank = np.bincount(labels)[labels] - 1 - _ranks(labels, seed)
    turn = np.random.default_rng([seed, -2 % 2**32]).permutation(len(labels))
    return data.usable(np.lexsort((turn, rank))[:n].tolist())


def _ranks(labels: np.ndarray, seed: int) -> np.ndarray:
    """(len,) how many of its class come before an example, where each class is put in an order of its own."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[np.random.default_rng([seed, int(label)]).permutation(members)] = np.arange(len(members))
    return rank


class View(LabelledImages):
    """Some examples of a set: example i is example indices[i] of `data`."""

    data: LabelledImages
    indices: np.ndarray

    @cached_property
    def labels(self) -> np.ndarray:
        return np.asarray(self.data.labels)[self.indices]

    @property
    def renameable(self) -> bool:  # type: ignore[override]
        return self.data.renameable

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.data.skipped

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.data.__getitems__(self.indices[list(indices)].tolist())

    def usable(self, indices: Iterable[int]) -> list[int]:
        indices = list(indices)
        good = set(self.data.usable(self.indices[indices].tolist()))
        return [int(i) for i in indices if int(self.indices[i]) in good]


class Subset(View):
    """The examples `indices` of a set, in that order."""

    def __init__(self, data: LabelledImages, indices: Sequence[int] | np.ndarray, name: str | None = None):
        self.data, self.indices = data, np.asarray(indices, np.int64).reshape(-1)
        self.name, self.classes, self.prompts = name or data.name, data.classes, data.prompts
        if len(self.indices) and not (self.indices.min() >= 0 and self.indices.max() < len(data)):
            raise IndexError(f"{data.name} has the examples 0 … {len(data) - 1}")

    @cached_property
    def version(self) -> str:  # type: ignore[override]
        return digest([self.data.version, self.indices.tolist()])[:12]


class Relabelled(View):
    """Examples under other labels: `new` of each label of the set."""

    new: np.ndarray

    @cached_property
    def labels(self) -> np.ndarray:
        return self.new[np.asarray(self.data.labels)[self.indices]]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = super().__getitem__(index)
        return x, int(self.new[y])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, y = super().__getitems__(indices)
        return x, torch.from_numpy(self.new)[y]


class ClassSubset(Relabelled):
    """Only the examples of the classes `keep` (labels of the set), relabelled 0 … len(keep) − 1 in the order given;
    prompts follow.

    Raises UserError if `keep` is empty, repeats a label or names one that the set lacks.
    """

    def __init__(self, data: LabelledImages, keep: Sequence[int], name: str | None = None):
        keep = [int(k) for k in keep]
        if not keep or len(set(keep)) < len(keep) or not all(0 <= k < data.num_classes for k in keep):
            raise UserError(
                f"{data.name}: the classes to keep must be different labels from 0 to {data.num_classes - 1}, not "
                f"{keep}."
            )
        self.data, self.keep = data, tuple(keep)
        self.name = name or f"{data.name}-{len(keep)}"
        self.classes, self.prompts = tuple(data.classes[k] for k in keep), tuple(data.prompts[k] for k in keep)
        self.version = digest([data.version, keep])[:12]
        self.new = np.full(data.num_classes, -1, np.int64)
        self.new[keep] = np.arange(len(keep))

    @cached_property
    def indices(self) -> np.ndarray:  # type: ignore[override]
        """(len,) the examples of the set that are kept, ascending."""
        return np.flatnonzero(self.new[np.asarray(self.data.labels)] >= 0)


def held_out(data: LabelledImages, kept: bool) -> Subset:
    """A tenth of every class (at least one), by an order that its examples and the seed 0 fix; not `kept`: the rest.

    Raises UserError for a class of one picture: nothing of it would be left to train on.
    """
    labels = np.asarray(data.labels)
    alone = np.flatnonzero(np.bincount(labels, minlength=data.num_classes) == 1)
    if len(alone):
        raise UserError(
            f"{data.name}: the class {data.classes[alone[0]]!r} has one picture to train on, and settings are chosen "
            "on pictures that are held out: give it two."
        )
    tenth = 10 * _ranks(labels, seed=0) < np.bincount(labels)[labels]
    return Subset(data, np.flatnonzero(tenth == kept))


def halves(num_classes: int) -> tuple[list[int], list[int]]:
    """(seen, unseen): every other class. Neighbours in an alphabetical list are often of one kind, so both halves get
    some of each."""
    return list(range(0, num_classes, 2)), list(range(1, num_classes, 2))


class _Loader(DataLoader):
    """A DataLoader that hands on a `UserError` of a worker as the one sentence it was, without the worker's
    traceback."""

    def __iter__(self):
        try:
            yield from super().__iter__()
        except UserError as error:
            if not str(error).startswith("Caught "):
                raise
            raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from None


def loader(data: Dataset, batches: Iterable[Sequence], workers: int = 0) -> DataLoader:
    """DataLoader over given batches of indices, or whatever else `__getitems__` takes; each item is what it returns,
    e.g. (x (N, 3, H, W), y (N,)).

    It has a generator of its own: a DataLoader otherwise draws a seed for its workers from torch's global one.
    """
    return _Loader(
        data,
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=0 if watched else workers,
        generator=torch.Generator(),
        worker_init_fn=_ends_with_its_parent,
    )


def _ends_with_its_parent(_: int) -> None:
    """At once, and not after the five seconds in which a worker looks for its parent: meanwhile it would keep the lock
    of the results."""
    tie_to_launcher(None)


def _as_is(batch):
    return batch
