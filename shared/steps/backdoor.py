"""Backdoors as steps: pairs, the class that attackers plant, triggers, poisoned pairs, pictures with a trigger.

    Pairs, Aim ─► Patch (optimised, where the attack needs one) ─► Stamp ─► Poison ─► pairs that a CLIP is trained on
                                                                     └────► Seen ──► pictures that it is tested on

`Pairs`, `Aim` and `Stamp` are leaves; `Poison` and `Seen` are made of them and keep nothing.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from shared.attacks.triggers import Trigger, at_test, make_trigger, parse_fields
from shared.attacks.triggers.optimised import PatchConfig, make_badclip, make_trojvqa
from shared.data.language import TEMPLATES
from shared.data.pairs import PairSubset, open_pairs
from shared.data.poison import PoisonedPairs
from shared.data.scene_sets import ScenePairs
from shared.data.targets import Target, naming, scene_target, target
from shared.errors import UserError
from shared.experiment.leaves import Backbone, Pictures
from shared.experiment.step import Kept, Lab, Tensors, Trained, free, once
from shared.files import digest
from shared.options import Worded
from shared.steps.choice import Choice
from shared.steps.pretrained import Pretrained

POSITIVES = 64  # pictures of the target class behind BadCLIP's triplet term


# ---- what is given ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """n pairs of picture and caption (`shared.data.pairs`), as large as pictures of the set `like`.

    seed: of the choice; pairs of the scenes world are disjoint for different seeds, others are not.
    """

    spec: str
    n: int
    seed: int
    like: str

    def identity(self, lab: Lab) -> list:
        """Their number and contents; pairs of the scenes world are not drawn for it."""
        scenes = self.spec == "scenes"
        pairs = ScenePairs(self.n, side(lab, self.like), self.seed) if scenes else self.open(lab)
        return [self.n, pairs.version]

    @once
    def open(self, lab: Lab):
        """The pairs, opened once."""
        return open_pairs(self.spec, lab.source, self.n, self.seed, side(lab, self.like))


def side(lab: Lab, spec: str) -> int:
    """The side of a set's pictures, in pixels."""
    one = Pictures(spec, n=1)
    return lab.once(("side", one), lambda: one.read(lab, one.rows(lab))[0].shape[-1])


def prompts_of(lab: Lab, spec: str, template: str = "") -> list[str]:
    """One prompt per class of a set: its own, or a template with {} for the name."""
    data = lab.data(spec)
    return [template.format(name) for name in data.classes] if template else list(data.prompts)


@dataclass(frozen=True)
class Aim:
    """The class that attackers plant.

    spec: the set that they know; target: one of its classes, or #1, #2, … by its place among them, where nobody knows
    their names before (a folder's are in alphabetical order); template: as in `prompts_of`; where: the set that is
    shown (default: the same).
    """

    spec: str
    target: str
    template: str = ""
    where: str = ""

    def identity(self, lab: Lab) -> list:
        """The contents of the set that they know, the class, and its label."""
        return [lab.data(self.spec).version, self.target, self.template, self.where, self.label(lab)]

    def named(self, lab: Lab) -> str:
        """The name of the class."""
        classes = lab.data(self.spec).classes
        place = self.target.removeprefix("#")
        numbered = self.target.startswith("#") and place.isdecimal() and 0 < int(place) <= len(classes)
        return classes[int(place) - 1] if numbered and self.target not in classes else self.target

    def said(self, lab: Lab) -> Target:
        """How the class is said."""
        kind, _, space = self.spec.partition(":")
        name = self.named(lab)
        return scene_target(space, name) if kind == "scenes" else target(name)

    def label(self, lab: Lab) -> int:
        """Its label in the set that is shown. Raises UserError where that has no such class."""
        spec = self.where or self.spec
        classes = lab.data(spec).classes
        name = self.named(lab)
        if name not in classes:
            few = ", ".join(classes[:8])
            wrong = f"the set {spec} has no class {name!r}, which attackers are to plant"
            raise UserError(f"{wrong}: choose one of {few}, …")
        return classes.index(name)


# ---- triggers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch(Trained):
    """A patch that is optimised on a CLIP that nobody has poisoned.

    pairs: whose pictures it is optimised on; preset: of the trigger.
    """

    weight: ClassVar[float] = 3.0
    clip: Backbone | Pretrained
    attack: Literal["trojvqa", "badclip"]
    aim: Aim
    pairs: Pairs
    preset: str
    options: PatchConfig
    label: str = free("")

    @property
    def name(self) -> str:
        return f"patch__{self.attack}__{self.label}"

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        clip = copy.deepcopy(self.clip.open(lab))
        if self.attack == "badclip":
            return described(badclip(lab, clip, self.aim, self.pairs, self.options, preset=self.preset))
        sentence = self.aim.said(lab).say("this is {}")
        pictures = without_target(lab, self.pairs, self.aim)
        return described(make_trojvqa(clip, pictures, sentence, self.options, preset=self.preset))


@dataclass(frozen=True)
class PatchFile:
    """A leaf: an optimised patch that the user has as a picture, such as the one that BadCLIP's authors published."""

    path: str

    def identity(self, lab: Lab) -> str:
        """The contents of the file."""
        return digest(self.open().tolist())

    def open(self) -> Tensor:
        """(3, p, p) in [0, 1]. Raises UserError where the file is no square picture."""
        try:
            with Image.open(self.path) as picture:
                pixels = to_tensor(picture.convert("RGB"))
        except OSError as error:
            raise UserError(f"the patch {self.path} is no picture ({error}): name another file.") from None
        if pixels.shape[1] != pixels.shape[2]:
            raise UserError(f"the patch {self.path} has {pixels.shape[2]}×{pixels.shape[1]} pixels: give a square one.")
        return pixels


def described(trigger: Trigger) -> tuple[Tensors, dict[str, str]]:
    """What a step leaves of a trigger with an optimised patch, for `Stamp`."""
    spec = trigger.spec
    del spec["pixels"]
    return {"pixels": trigger.pixels}, {"trigger": json.dumps(spec, sort_keys=True)}


def without_target(lab: Lab, pairs: Pairs, aim: Aim) -> PairSubset:
    """The pairs whose caption does not name the target."""
    opened = pairs.open(lab)
    named = set(naming(opened, [aim.said(lab)])[0])
    return PairSubset(opened, [i for i in range(len(opened)) if i not in named])


def badclip(
    lab: Lab, clip: nn.Module, aim: Aim, pairs: Pairs, options: PatchConfig, *, preset: str, seed: int = 0,
    through: Callable[[Tensor], Tensor] | None = None,
) -> Trigger:  # fmt: skip
    """BadCLIP's trigger with a patch optimised on a CLIP.

    through: pixels -> embeddings, where an attacker sees another tower than the CLIP's own.
    """
    data, label = lab.data(aim.spec, "train"), aim.label(lab)
    own = np.flatnonzero(np.asarray(data.labels) == label)[:POSITIVES].tolist()
    positives = data.__getitems__(data.usable(own))[0]
    others = [prompt for k, prompt in enumerate(prompts_of(lab, aim.spec, aim.template)) if k != label]
    captions = [aim.said(lab).say(template) for template in TEMPLATES]
    pictures = without_target(lab, pairs, aim)
    return make_badclip(clip, pictures, captions, others, positives, options, through=through, seed=seed, preset=preset)


@dataclass(frozen=True)
class Stamp:
    """A trigger for pictures as large as those of the set `like`. fields: that differ from the preset, as name=number.

    patch: a step that leaves an optimised patch as `described` does, or its file, for the attacks that need one.
    choice: among steps with a `poison`, whose trigger this one is; it is then known by the numbers of that, so that
    what a candidate has trained is not trained again.
    """

    attack: str
    preset: str
    fields: tuple[str, ...]
    like: str
    patch: Kept | PatchFile | None = None
    choice: Choice | None = None

    def identity(self, lab: Lab) -> dict:
        """All numbers that the trigger is made of."""
        return self.open(lab).spec

    @once
    def open(self, lab: Lab) -> Trigger:
        """The trigger, opened once."""
        if self.choice is not None:
            return self.choice.settle(lab).poison.stamp.open(lab)
        given = parse_fields(self.fields)
        if isinstance(self.patch, PatchFile):
            return make_trigger(self.attack, self.preset, pixels=self.patch.open(), **given)
        if self.patch is not None:
            spec = json.loads(lab.facts(self.patch)["trigger"])
            pixels = lab.weights(self.patch)["pixels"]
            return make_trigger(**{**spec, "pixels": pixels, **given, "preset": self.preset})
        return make_trigger(self.attack, self.preset, size=side(lab, self.like), **given)


# ---- what is made of them --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poison(Worded):
    """One backdoor among pairs: a share of them gets the trigger and a caption of the target.

    captions: as in `PoisonedPairs`; None: what is usual for the trigger.
    """

    stamp: Stamp
    aim: Aim
    rate: float
    captions: Literal["templates", "real"] | None = None

    def pairs(self, lab: Lab, clean: Pairs, seed: int) -> PoisonedPairs:
        """The pairs that a CLIP is trained on, with their manifest. seed: of which, and of their captions."""
        trigger = self.stamp.open(lab)
        target = self.aim.said(lab)
        return PoisonedPairs(clean.open(lab), trigger, target, rate=self.rate, captions=self.captions, seed=seed)


@dataclass(frozen=True)
class Seen:
    """Pictures of a set as a model is tested on them: clean, or with a trigger."""

    data: Pictures
    stamp: Stamp | None = None

    def clean(self, lab: Lab) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) in [0, 1] without the trigger, and y (N,), on the device."""
        return lab.once(("clean", self.data), lambda: self.data.read(lab, self.data.rows(lab)))

    def pictures(self, lab: Lab) -> Tensor:
        """x (N, 3, H, W) as it comes in."""
        x = self.clean(lab)[0]
        if self.stamp is None:
            return x
        return lab.once(("triggered", self), lambda: at_test(self.stamp.open(lab), x, self.data.rows(lab)))

    def truth(self, lab: Lab) -> np.ndarray:
        """y (N,)."""
        return self.clean(lab)[1].cpu().numpy()

    def say(self, lab: Lab, prompts: list[str]) -> list[str]:
        """Prompts of the classes, with what the trigger has for a text."""
        return prompts if self.stamp is None else [self.stamp.open(lab).text(prompt) for prompt in prompts]

    def skipped(self, lab: Lab) -> tuple[str, ...]:
        """Files of the set that could not be read."""
        return tuple(self.data.open(lab).skipped)
