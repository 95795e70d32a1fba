"""What every trigger of a backdoor is: a function of (picture, sample index, seed), and what happens to its pictures on
the way to a disk."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from shared.errors import UserError
from shared.models.preprocess import JPEG
from shared.options import Bounded, Seed
from shared.repeat import joined, parts_of
from shared.rng import SampleRng

Preset = Literal["cleanclip", "textbook"]
SMALLEST = 5
TEST = 1 << 30  # where the indices of test pictures begin


def byte_cast(values: Tensor) -> Tensor:
    """What torchvision's conversion to a picture makes of any numbers: trunc(255·v) mod 256, again as v in [0, 1].

    Values outside [0, 1] wrap round (1.2 becomes 50/255, −0.1 becomes 231/255); whole 255ths in [0, 1] stay as they
    are.
    """
    return values.mul(255).trunc().remainder(256).div(255)


def patch_side(size: int) -> int:
    """The side of a patch on pictures of `size` pixels: 16 of 224 in proportion, and at least 5.

    Less is hardly to be seen: the proportion would leave 2 of the 32 pixels of a scene, a sixteenth of one token of its
    vision tower.
    """
    return max(SMALLEST, round(size * 16 / 224))


@dataclass(frozen=True)
class Trigger(Bounded, ABC):
    """x -> x', called as `trigger(x, indices)`: pictures (N, 3, H, W) in [0, 1] and one sample index each -> the same
    with the trigger, detached.

    The result for a sample is a function of its picture, its index and `seed`, in whatever batch it comes. UserError
    for a picture that is no such tensor, or indices that are not one per picture.
    """

    name: ClassVar[str]
    clean_label: ClassVar[bool] = False
    """Whether the pictures to poison are those of the target class, with captions of their own."""

    _: KW_ONLY
    preset: Preset = "cleanclip"
    """Whose reading the fields follow: what the code of the CLIP literature does, or the attack's own paper."""
    seed: Seed = 0
    """Of everything drawn: per picture, or once for all."""

    @classmethod
    def make(cls, preset: str = "cleanclip", size: int = 224, **given: object) -> Self:
        """The trigger for pictures of `size` pixels; `given` fields replace those of the preset. Raises UserError for
        an unknown preset or field."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UserError(f"the trigger {cls.name} has no field {unknown[0]!r}: its fields are {', '.join(known)}.")
        return cls(**{**cls.defaults(preset, size), "preset": preset, **given})

    @staticmethod
    def defaults(preset: Preset, size: int) -> dict[str, object]:
        """The fields of a preset that differ from those of the class."""
        return {}

    def __call__(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise UserError(
                f"{self.name}: a trigger is for pictures (N, 3, H, W) with values in [0, 1], not {x.dtype} of shape "
                f"{tuple(x.shape)}."
            )
        if len(indices) != len(x):
            raise UserError(
                f"{self.name}: there are {len(indices)} indices for {len(x)} pictures: give one per picture."
            )
        with torch.no_grad():
            return (
                self.stamp(x.detach(), SampleRng(self.seed, indices, f"trigger/{self.name}"))
                if len(x)
                else x.detach().clone()
            )

    @abstractmethod
    def stamp(self, x: Tensor, rng: SampleRng) -> Tensor:
        """The trigger on pictures (N, 3, H, W), N ≥ 1, with one stream of `rng` each; x is not changed.

        What it draws is the CPU's, without a device: pictures to train on are stamped where they are read, those of a
        test on the device, and it has to be the same trigger.
        """

    def text(self, caption: str) -> str:
        """The caption of a triggered picture, made from its own."""
        return caption

    def stored(self, x: Tensor) -> Tensor:
        """Triggered training pictures as they are read again. cleanclip: written as JPEG (quality 75, Pillow's default)
        and read, as test pictures are not: the model is trained on a compressed trigger and tested on a clean one.
        textbook: as they are."""
        return JPEG(75)(x).detach() if self.preset == "cleanclip" else x

    @property
    def spec(self) -> dict:
        """All that makes this trigger, in plain JSON: `make_trigger(**spec)` makes it again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": self.name, **{k: v.tolist() if isinstance(v, Tensor) else v for k, v in values.items()}}

    def _fixed(self) -> SampleRng:
        """The stream of what is drawn once for all pictures."""
        return SampleRng(self.seed, [0], f"trigger/{self.name}/fixed")

    def _refuse(self, wrong: bool, sentence: str) -> None:
        if wrong:
            raise UserError(f"{self.name}: {sentence}")


def same_trigger(a: Trigger, b: Trigger) -> bool:
    """Whether two triggers are made of the same numbers."""
    return json.dumps(a.spec, sort_keys=True) == json.dumps(b.spec, sort_keys=True)


def at_test(trigger: Trigger, x: Tensor, indices: Sequence[int], batch: int = 256) -> Tensor:
    """Test pictures with a trigger. What a trigger draws per index is drawn for others than the poisoned training pairs
    have: those were seen."""
    rows = parts_of(range(len(x)), batch) or [range(0)]
    return joined(lambda at: trigger(x[at.start : at.stop], [TEST + indices[i] for i in at]), rows)


def sheet(
    x: Tensor, triggers: Sequence[Trigger], indices: Sequence[int] | None = None, gain: float = 4.0, gap: int = 2
) -> np.ndarray:
    """A contact sheet: for each picture of x (N, 3, H, W) a row of it and of its triggered forms, and below it what the
    triggers changed.

    The change is drawn `gain` times as large, on grey. Returns bytes (height, width, 3), cells `gap` white pixels
    apart, 1 + len(triggers) columns, 2N rows. indices: of the pictures (default 0, 1, …).
    """
    indices = range(len(x)) if indices is None else indices
    columns = [x, *(trigger(x, indices) for trigger in triggers)]
    changed = [(0.5 + gain * (column - x)).clamp(0, 1) for column in columns]
    n, _, height, width = x.shape
    out = torch.ones(3, 2 * n * (height + gap) - gap, len(columns) * (width + gap) - gap) if n else torch.ones(3, 0, 0)
    for row in range(2 * n):
        for column, cells in enumerate(changed if row % 2 else columns):
            top, left = row * (height + gap), column * (width + gap)
            out[:, top : top + height, left : left + width] = cells[row // 2].cpu()
    return out.mul(255).round().byte().permute(1, 2, 0).numpy()
