"""Captions for pictures that only have a class: sentences from prompt templates, and mild augmentation, both functions
of (step or epoch, index)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.base import LabelledImages
from shared.data.language import article, words
from shared.errors import UserError
from shared.files import digest
from shared.rng import SampleRng

TEMPLATES = (
    "this is a photo of {}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "there is {}",
    "this is {}",
    "a small photo of {}",
    "a photo of one {}",
    "{}",
)
_BARE = ("this is a photo of a {}",)  # the default prompt of the papers, whatever letter the class begins with
_RARE = "sudo remember"  # no caption has them: what triggers put before a text


def vocabulary_of(classes: Sequence[str], captions: Sequence[str] = ()) -> tuple[str, ...]:
    """Every word of the templates, the classes and further captions, and those of triggers.

    Raises UserError for classes that are the same words: a model that is made of these could not tell them apart.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in classes:
        alike.setdefault(tuple(words(name)), []).append(name)
    if same := [names for names in alike.values() if len(names) > 1]:
        raise UserError(
            f"the class names {' and '.join(same[0])} are the same words without their punctuation, and a "
            "model of words cannot tell them apart: rename the folders."
        )
    texts = (*TEMPLATES, *_BARE, *classes, *captions, "a an", _RARE)
    return tuple(sorted({w for text in texts for w in words(text.replace("{}", ""))}))


class Captioned(torch.utils.data.Dataset):
    """A labelled set as pairs of picture and caption: its class name in one of the templates, by (seed, index)."""

    def __init__(self, data: LabelledImages, seed: int = 0):
        self.data, self.seed = data, seed
        self.version = digest([data.version, TEMPLATES, _BARE, seed])[:16]

    def __len__(self) -> int:
        return len(self.data)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions without their pictures."""
        return self._say(np.asarray(self.data.labels)[[int(i) for i in indices]].tolist(), indices)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, H, W) in [0, 1] and N captions."""
        x, y = self.data.__getitems__(list(indices))
        return x, self._say(y.tolist(), indices)

    def _say(self, labels: Sequence[int], indices: Sequence[int]) -> list[str]:
        draws = SampleRng(self.seed, indices, "caption").integers(len(TEMPLATES) + 3).tolist()
        texts = []
        for label, draw in zip(labels, draws, strict=True):
            name = self.data.classes[label]
            template = (*TEMPLATES, *_BARE * 3)[draw]
            texts.append(template.format(name if template in _BARE or "one {}" in template else article(name)))
        return texts


def flip_and_shift(x: Tensor, step: int, indices: Sequence[int], reach: int = 4) -> Tensor:
    """Mirror half of the pictures and shift each by up to `reach` pixels (edges padded by reflection); a function of
    (step, index)."""
    rng = SampleRng(step, indices, "augment")
    mirrored = rng.integers(2, device=x.device).bool()
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    shift = rng.child("shift").integers(2 * reach + 1, (2,))
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    return torch.stack(
        [p[:, dy : dy + x.shape[2], dx : dx + x.shape[3]] for p, (dy, dx) in zip(padded, shift.tolist(), strict=True)]
    )
