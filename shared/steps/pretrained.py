"""The small CLIP of photographs as a step: pre-trained on a folder's pictures and their class names (SCALE=photos).

All papers describe it with equal fields, so within one folder of results it is trained once (`Lab.make`). It never sees
a test picture, nor the tenth of the training pictures that settings are chosen on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from shared.data.captioned import Captioned, flip_and_shift, vocabulary_of
from shared.data.pairs import FilePairs, Table
from shared.errors import UserError
from shared.experiment.leaves import Backbone, Pictures
from shared.experiment.step import Lab, Trained, once
from shared.experiment.store import slug
from shared.models.clip import create_clip, small_config
from shared.models.sources import open_clip_model
from shared.training.contrastive import ContrastiveConfig, pretrain

FOLDER = "folder:all"
PHOTOS = ContrastiveConfig(steps=6000, batch=128, lr=1e-3, warmup=300, every=200)
"""Of every paper. 6,000 updates of 128 are 17 epochs of CIFAR-10's 45,000; a quarter of an hour on 2 cores."""


class Joined(torch.utils.data.Dataset):
    """Sets of pairs one after another."""

    def __init__(self, parts: Sequence[torch.utils.data.Dataset]):
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, H, W) in [0, 1] and N captions."""
        places: list[int] = []
        pictures: list[Tensor] = []
        texts: list[str] = []
        first = 0
        for part in self.parts:
            own = [k for k, i in enumerate(indices) if first <= i < first + len(part)]
            if own:
                x, said = part.__getitems__([indices[k] - first for k in own])
                places += own
                pictures.append(x)
                texts += said
            first += len(part)
        back = torch.tensor(places).argsort()
        return torch.cat(pictures)[back], [texts[k] for k in back.tolist()]


@dataclass(frozen=True)
class Told:
    """A leaf: the training pictures of a set with their class names in templates, and the captions that the user has
    (`Source.captions`)."""

    spec: str

    @property
    def data(self) -> Pictures:
        """The pictures of the set."""
        return Pictures(self.spec, "fit")

    def identity(self, lab: Lab) -> list:
        """The contents of the set and of the table."""
        own = self.own(lab)
        return [self.data.identity(lab), own and own.version]

    @once
    def own(self, lab: Lab) -> FilePairs | None:
        """The user's pairs. Raises UserError for what is no table, and pairs that cannot be read."""
        said = lab.source.captions
        if said is None:
            return None
        kind, _, name = said.partition(":")
        if kind != "csv" or not name:
            raise UserError(f"--data.source.captions {said!r} is not understood: write csv:<file>.")
        table = Table(Path(lab.source.root or ".").expanduser() / name)
        pixels = self.data.read(lab, [0])[0].shape[-1]
        return FilePairs(said, table, len(table), 0, pixels, lab.source.skip_corrupt)

    def pairs(self, lab: Lab) -> Captioned | Joined:
        """All of them."""
        own, templates = self.own(lab), Captioned(self.data.open(lab))
        return templates if own is None else Joined([templates, own])

    def vocabulary(self, lab: Lab) -> tuple[str, ...]:
        """Every word of these captions, and of the set's prompts."""
        own = self.own(lab)
        return vocabulary_of(self.data.open(lab).classes, [] if own is None else own.captions(range(len(own))))


@dataclass(frozen=True)
class Untrained:
    """A leaf: a small CLIP with random weights whose text tower has the words of a set."""

    name: str
    told: Told

    def identity(self, lab: Lab) -> list:
        """Its name, its dimensions and its words."""
        return [self.name, small_config(self.name), list(self.told.vocabulary(lab))]

    def fresh(self, lab: Lab) -> nn.Module:
        """It, with weights from torch's global generator, to be trained."""
        return create_clip(self.name, vocabulary=self.told.vocabulary(lab))


@dataclass(frozen=True)
class Pretrained(Trained):
    """A small CLIP, pre-trained on template captions of all training pictures."""

    together: ClassVar[bool] = True  # by all processes
    shared: ClassVar[bool] = True
    architecture: str
    told: Told
    training: ContrastiveConfig

    @property
    def name(self) -> str:
        return slug("pretrained", self.architecture)

    def make(self, lab: Lab) -> tuple[dict[str, Tensor], dict[str, str]]:
        torch.manual_seed(0)
        clip = Untrained(self.architecture, self.told).fresh(lab).to(lab.device)
        partial = lab.partial(self)
        pretrain(clip, self.told.pairs(lab), self.training, lab.accelerator, partial, augment=flip_and_shift)
        return clip.state_dict(), {"vocabulary": json.dumps(clip.tokenizer.vocabulary)}

    @once
    def open(self, lab: Lab) -> nn.Module:
        """It, which nobody trains any further."""
        return open_clip_model(self.architecture, lab.file(self), lab.device)

    def fresh(self, lab: Lab) -> nn.Module:
        """It, to be trained."""
        return create_clip(self.architecture, lab.file(self))


def untrained(lab: Lab, clip: Backbone | Pretrained) -> nn.Module:
    """A CLIP of the same kind with random weights, to try things on."""
    if isinstance(clip, Pretrained):
        return Untrained(clip.architecture, clip.told).fresh(lab).to(lab.device)
    return create_clip(clip.name).to(lab.device)


def choosing_split(spec: str) -> str:
    """The split of a set that settings are chosen on; of a folder, what no CLIP is pre-trained on."""
    return "validation" if spec.startswith(("scenes:", "folder:")) else "train"


def fitting_split(spec: str) -> str:
    """The split that is trained on beside it."""
    return "fit" if spec.startswith("folder:") else "train"


def given_clip(name: str, weights: str, training: ContrastiveConfig, option: str) -> Backbone | Pretrained:
    """A CLIP by its weights as an option gives them; `pretrain`: pre-trained on the pictures of the folder."""
    return Pretrained(name, Told(FOLDER), training) if weights == "pretrain" else Backbone(name, weights, option)
