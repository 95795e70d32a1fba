"""Augmentation of pictures and captions for contrastive training: every draw is a function of (seed, step, index).

crop_and_jitter   a random part at a random shape, mirrored, with other brightness, contrast and colour
EDA               one of: synonym replacement, synonym insertion, swap, deletion (Wei & Zou, EMNLP 2019, §2), inside a vocabulary where there is one
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.language import SYNONYMS, plural, words
from shared.errors import UserError
from shared.options import Bounded, Count, Decay, OpenShare, Part, Seed, Share
from shared.rng import SampleRng

GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class CropAndJitter(Bounded):
    """Pictures (N, 3, H, W) in [0, 1] -> the same shape and range.

    A rectangle of `area` of the picture (a share drawn from these bounds) and width/height drawn log-uniformly from
    [3/4, 4/3], at a place inside the picture, is stretched to the whole; mirrored with probability 1/2; with
    probability `jittered` its brightness, contrast and saturation are multiplied by 1 + u, u uniform on [−strength,
    strength], one after the other; with probability `grey` the colour is taken away. Raises UserError for bounds or
    probabilities out of range.
    """

    area: tuple[Part, Part] = (0.4, 1.0)
    mirror: bool = True
    jittered: Share = 0.8
    strength: Decay = 0.4
    grey: Share = 0.1
    seed: Seed = 0

    def __post_init__(self):
        super().__post_init__()
        if self.area[0] > self.area[1]:
            raise UserError(f"the share of a picture that a crop keeps is {self.area}: use two ascending numbers.")

    def __call__(self, x: Tensor, step: int, indices: Sequence[int]) -> Tensor:
        u = SampleRng(self.seed, indices, f"crop/{step}").uniform((10,)).to(x)
        mirrored = u[:, 4] < 0.5 if self.mirror else None
        return self._colour(cropped(x, u[:, :4], self.area, mirrored), u[:, 5:]).clamp(0, 1)

    def _colour(self, x: Tensor, u: Tensor) -> Tensor:
        factor = torch.where(u[:, :1] < self.jittered, 1 + self.strength * (2 * u[:, 1:4] - 1), 1.0)[
            :, :, None, None, None
        ]
        x = (x * factor[:, 0]).clamp(0, 1)
        mean = luminance(x).mean((2, 3), keepdim=True)
        x = (mean + factor[:, 1] * (x - mean)).clamp(0, 1)
        grey = luminance(x)
        x = (grey + factor[:, 2] * (x - grey)).clamp(0, 1)
        return torch.where((u[:, 4] < self.grey)[:, None, None, None], luminance(x), x)


def cropped(x: Tensor, u: Tensor, area: tuple[float, float], mirrored: Tensor | None = None) -> Tensor:
    """A part of each picture x (N, 3, H, W), stretched to the whole.

    u (N, 4), uniform on [0, 1[, says its share of the picture, between the two of `area`; its width/height, log-uniform
    on [3/4, 4/3]; and where it lies. mirrored: (N,) which are mirrored, too.
    """
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    ratio = ((2 * u[:, 1] - 1) * math.log(4 / 3)).exp()
    width, height = ((share * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0] = width if mirrored is None else torch.where(mirrored, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * (2 * u[:, 2] - 1)
    theta[:, 1, 2] = (1 - height) * (2 * u[:, 3] - 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def luminance(x: Tensor) -> Tensor:
    """(N, 1, H, W) of pictures (N, 3, H, W)."""
    return torch.einsum("nchw,c->nhw", x, x.new_tensor(GREY))[:, None]


def _groups(synonyms: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """word -> the other words of its group, in singular and in plural."""
    other = {}
    for group in synonyms.values():
        for forms in (tuple(group), tuple(plural(w) for w in group)):
            other |= {word: tuple(w for w in forms if w != word) for word in forms if len(forms) > 1}
    return other


SCENE_SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(_groups(SYNONYMS))


@dataclass(frozen=True)
class EDA(Bounded):
    """Captions -> captions, in lower case and without punctuation.

    One operation, drawn uniformly among those that can change the text, on max(1, round(alpha·words)) words: synonym (a
    word becomes one of its synonyms), insertion (a synonym of some word enters anywhere), swap (two words change
    places), deletion (each word goes with probability alpha, at least one goes and at least one stays). Without a word
    that has synonyms, only the last two; a single word without synonyms stays as it is.

    synonyms: word -> other words (default: those of the scenes world; for another text tower give a dictionary of its
    language, since there is none here). vocabulary: words the tokenizer knows (None: all); longest: words it can read
    (None: any number). Raises UserError for an alpha outside ]0, 1[.
    """

    alpha: OpenShare = 0.1
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=lambda: SCENE_SYNONYMS)
    vocabulary: frozenset[str] | None = None
    longest: Count | None = None
    seed: Seed = 0

    @classmethod
    def of(cls, tokenizer, **options) -> "EDA":
        """For a tokenizer: inside the vocabulary and the length of our own small ones (`WordTokenizer`), free for
        open_clip's."""
        known = getattr(tokenizer, "vocabulary", None)
        if known is None:
            return cls(**options)
        return cls(vocabulary=frozenset(known), longest=tokenizer.context_length - 2, **options)

    def __call__(self, texts: Sequence[str], step: int, indices: Sequence[int]) -> list[str]:
        seeds = SampleRng(self.seed, indices, f"eda/{step}").integers(2**62).tolist()
        return [self._change(text, random.Random(seed)) for text, seed in zip(texts, seeds, strict=True)]

    def _others(self, word: str) -> list[str]:
        return [w for w in self.synonyms.get(word, ()) if self.vocabulary is None or w in self.vocabulary]

    def _change(self, text: str, dice: random.Random) -> str:
        said = words(text)
        n = max(1, round(self.alpha * len(said)))
        able = [i for i, word in enumerate(said) if self._others(word)]
        room = n if self.longest is None else min(n, self.longest - len(said))
        possible = {
            "synonym": bool(able),
            "insertion": bool(able) and room > 0,
            "swap": len(said) > 1,
            "deletion": len(said) > 1,
        }
        operations = [name for name in possible if possible[name]]
        if not operations:
            return " ".join(said)
        operation = dice.choice(operations)
        if operation == "synonym":
            for i in dice.sample(able, min(n, len(able))):
                said[i] = dice.choice(self._others(said[i]))
        elif operation == "insertion":
            new = [dice.choice(self._others(said[dice.choice(able)])) for _ in range(room)]
            for word in new:
                said.insert(dice.randrange(len(said) + 1), word)
        elif operation == "swap":
            for _ in range(n):
                i, j = dice.sample(range(len(said)), 2)
                said[i], said[j] = said[j], said[i]
        else:
            gone = {i for i in range(len(said)) if dice.random() < self.alpha} or {dice.randrange(len(said))}
            said = [w for i, w in enumerate(said) if i not in gone] or [dice.choice(said)]
        return " ".join(said)
