"""Pictures with sentences: what a captioner is to say, and questions with the answers of people.

    scenes-captions:plain   scenes-captions:shifted      drawn on the spot: five references per picture
    scenes-questions:plain  scenes-questions:shifted     one question per picture, its answer said by all ten "people"
    coco  flickr30k  vqav2  textvqa                      from files below DATA_ROOT, see `shared.data.annotated` for the layouts

Every set has the splits train, validation and test, which share no picture. Example i of a scenes set is a function of
(set, split, i) alone.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from shared.data.language import descriptions, questions
from shared.data.scenes import VERSION, VL_DOMAINS, Scenes, render, sample
from shared.errors import UserError
from shared.files import digest

SPLITS = ("train", "validation", "test")
INSTRUCTION = "Provide a short caption for this image."  # what RobustVLM asks of LLaVA
REFERENCES = 5
PEOPLE = 10
_SEEDS = {"train": 1, "test": 2, "validation": 3}


class VisionLanguageSet:
    """N pictures with text. name; version: a short digest of pictures and texts."""

    name: str
    version: str

    def __len__(self) -> int:
        raise NotImplementedError

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1]."""
        raise NotImplementedError

    def usable(self, indices: Iterable[int]) -> list[int]:
        """Those of `indices` whose picture can be read."""
        return [int(i) for i in indices]

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files left out because they cannot be read; see `usable`."""
        return ()


class CaptionSet(VisionLanguageSet):
    """Pictures to describe. prompt: the instruction that a captioner is given."""

    prompt: str = INSTRUCTION

    def references(self, indices: Sequence[int]) -> list[list[str]]:
        """Per picture its captions, at least five (COCO has up to seven); attacks use the first five."""
        raise NotImplementedError


class QuestionSet(VisionLanguageSet):
    """Pictures with one question each."""

    def questions(self, indices: Sequence[int]) -> list[str]:
        raise NotImplementedError

    def answers(self, indices: Sequence[int]) -> list[list[str]]:
        """Per question the answers of ten people."""
        raise NotImplementedError


class _SceneText(VisionLanguageSet):
    """The pictures of a scenes set. kind: "captions" or "questions"; domain: a key of VL_DOMAINS."""

    def __init__(self, kind: str, domain: str, split: str, n: int = 100_000, size: int = 32):
        if domain not in VL_DOMAINS or split not in SPLITS:
            known = f"use {' or '.join(VL_DOMAINS)}; splits are {', '.join(SPLITS)}"
            raise UserError(f"there is no set scenes-{kind}:{domain} with split {split!r}: {known}.")
        self.name, self.domain, self.n, self.size = f"scenes-{kind}:{domain}", VL_DOMAINS[domain], n, size
        self._seed = _SEEDS[split] + 16 * (int(digest(self.name)[:8], 16) + 1)  # sets do not share pictures
        self.split = split

    @cached_property
    def version(self) -> str:
        """Digest of what the pictures are, and of the texts of the first sixteen: it follows a change of the
        grammar."""
        return digest([VERSION, self.name, self.split, self.size, repr(self.domain), self._texts(range(16))])[:16]

    def _texts(self, indices: Sequence[int]) -> list:
        """What is said about pictures `indices`."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.n

    def scenes(self, indices: Sequence[int]) -> Scenes:
        """The attributes of pictures `indices`. Raises IndexError outside 0 … n − 1."""
        return sample(self._seed, self._inside(indices), self.domain)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(render(self.scenes(indices), self.domain, self.size))

    def _inside(self, indices: Sequence[int]) -> np.ndarray:
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.n):
            raise IndexError(f"{self.name} has the examples 0 … {self.n - 1}")
        return indices


class SceneCaptions(_SceneText, CaptionSet):
    def __init__(self, domain: str = "plain", split: str = "test", n: int = 100_000, size: int = 32):
        super().__init__("captions", domain, split, n, size)

    def references(self, indices: Sequence[int]) -> list[list[str]]:
        """Five ways to describe each picture."""
        return self._texts(self._inside(indices))

    def _texts(self, indices: Sequence[int]) -> list[list[str]]:
        return descriptions(sample(self._seed, indices, self.domain), self._seed, indices, REFERENCES)


class SceneQuestions(_SceneText, QuestionSet):
    def __init__(self, domain: str = "plain", split: str = "test", n: int = 100_000, size: int = 32):
        super().__init__("questions", domain, split, n, size)

    def questions(self, indices: Sequence[int]) -> list[str]:
        return [question for question, _ in self._texts(self._inside(indices))]

    def answers(self, indices: Sequence[int]) -> list[list[str]]:
        return [[answer] * PEOPLE for _, answer in self._texts(self._inside(indices))]

    def _texts(self, indices: Sequence[int]) -> list[tuple[str, str]]:
        return questions(sample(self._seed, indices, self.domain), self._seed, indices)


def fare_draw(n: int, k: int = 500, seed: int = 42) -> list[int]:
    """The k of n test examples that RobustVLM (FARE) attacks, in its order: NumPy's legacy generator, without
    replacement.

    The examples are numbered as in the files (Karpathy's test split of COCO and Flickr30k, val2014 of VQAv2, val of
    TextVQA), so the numbers published for "500 samples" are about these. Raises UserError if k is more than n.
    """
    if not 0 < k <= n:
        raise UserError(f"{k} of {n} examples cannot be drawn: choose a number from 1 to {n}.")
    return np.random.RandomState(seed).choice(n, k, replace=False).tolist()
