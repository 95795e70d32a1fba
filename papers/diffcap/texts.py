"""Pictures to describe or to ask about, as leaves of steps, with what is known about them; and sets to classify beyond
what is evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from papers.diffcap.tables import task_of
from shared.data.base import at_end, subset
from shared.data.catalogue import open_vl
from shared.data.vision_language import CaptionSet, QuestionSet, fare_draw
from shared.errors import UserError
from shared.experiment import source
from shared.experiment.leaves import Pictures
from shared.experiment.step import Lab, free
from shared.metrics.captions import Cider
from shared.metrics.vqa import first_answer, vqa_accuracy

DRAW = 500  # examples of a file-based set that FARE's protocol draws; fewer are the first of these
SENTENCE, WORD, FEW_WORDS = 20, 5, 10  # tokens of an answer


@dataclass(frozen=True)
class Answers:
    """What is asked about N pictures, and what people answered.

    prompts, truths: one text and one list of references or answers per picture. score: (answers, truths) -> (N,), CIDEr
    × 100 or VQA accuracy.
    """

    prompts: list[str]
    truths: list[list[str]]
    score: Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
    unit: str
    max_tokens: int

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, part: slice) -> "Answers":
        return replace(self, prompts=self.prompts[part], truths=self.truths[part])

    def of(self, rows: Sequence[int]) -> "Answers":
        """Those of some of the pictures, by position."""
        return replace(self, prompts=[self.prompts[i] for i in rows], truths=[self.truths[i] for i in rows])

    def scores(self, said: Sequence[str]) -> np.ndarray:
        """(N,), one per answer of a model."""
        return self.score(said, self.truths)


def accuracy(said: Sequence[str], truths: Sequence[Sequence[str]]) -> np.ndarray:
    """VQA accuracy in [0, 1] of what a model says first."""
    return vqa_accuracy([first_answer(text) for text in said], truths)


@dataclass(frozen=True)
class Texts:
    """The first n pictures with captions or questions of a set: of those that are drawn on the spot, or of FARE's draw
    (0: 500).

    like: a model, whose input size pictures from files have; None: as `--data.source.size` says.
    """

    spec: str
    split: str = "test"
    n: int = 0
    seed: int = 0
    like: object | None = None

    def identity(self, lab: Lab) -> list:
        """The contents of the set, the code that makes or reads it, and which of its pictures are chosen."""
        data = self.open(lab)
        return [data.version, source.of(type(data)), self.n, self.seed, self._size(lab)]

    def _size(self, lab: Lab) -> int | None:
        return None if self.like is None else self.like.open(lab).size

    def open(self, lab: Lab) -> CaptionSet | QuestionSet:
        """The whole set. Raises UserError where it is not known or not there."""
        size = self._size(lab)
        return lab.once(
            ("texts", self.spec, self.split, size), lambda: open_vl(self.spec, self.split, lab.source, size)
        )

    def rows(self, lab: Lab) -> list[int]:
        """The indices of the choice."""
        if self.spec.startswith("scenes-"):
            return list(range(self.n or DRAW))
        data = self.open(lab)
        return data.usable(fare_draw(len(data), min(DRAW, len(data)), self.seed))[: self.n or None]

    def read(self, lab: Lab, rows: Sequence[int]) -> tuple[Tensor, Answers]:
        """x (N, 3, H, W) in [0, 1] on the device, and what is asked; the corpus of CIDEr is the references of these
        pictures."""
        data = self.open(lab)
        x = data.pictures(rows).to(lab.device)
        if task_of(self.spec) == "captions":
            truths = data.references(rows)
            return x, Answers([data.prompt] * len(x), truths, Cider(truths).points, "CIDEr", SENTENCE)
        tokens = FEW_WORDS if self.spec == "textvqa" else WORD
        return x, Answers(data.questions(rows), data.answers(rows), accuracy, "share", tokens)


@dataclass(frozen=True)
class Later(Pictures):
    """The n pictures of a set that its balanced choice would take last, without the first `used`, which are evaluated
    (0: all): the same ones when more are evaluated.
    """

    used: int = free(0)

    def identity(self, lab: Lab) -> list:
        """The contents of the set, the code that makes its pictures, and which of them are chosen."""
        data = self.open(lab)
        return [data.version, source.of(type(data)), self.rows(lab)]

    def rows(self, lab: Lab) -> list[int]:
        """The indices. Raises UserError where none is left."""
        data = self.open(lab)
        evaluated = set(subset(data, self.used or len(data), self.seed))
        rows = [row for row in at_end(data, self.n, self.seed) if row not in evaluated]
        if not rows:
            raise UserError(
                f"{self.spec} has {len(data)} pictures, all of which are evaluated, and none is left to calibrate τ "
                "and choose settings on: choose a smaller --data.n, or give --method.tau and one candidate for each "
                "grid of --choosing."
            )
        return rows
