"""What a user brings, by what the command line says: pictures, a model, code of his own, a defence."""

import contextlib
import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared.data.base import LabelledImages, Relabelled, subset
from shared.data.files import ImageSize
from shared.data.folders import image_folder, is_divided
from shared.data.prompts import clean, fill
from shared.data.stored import KINDS, StoredImages, stored
from shared.errors import UserError
from shared.experiment import source
from shared.experiment.leaves import Backbone, Weights
from shared.experiment.step import Lab
from shared.files import digest
from shared.judge.hf import open_hf
from shared.models import zoo
from shared.models.blocks import LeanBlock, LeanCLIP, LeanVision
from shared.models.classifier import open_classifier
from shared.models.sources import identity, locate
from shared.models.victim import ZeroShot, class_matrix
from shared.steps.purification import Defence, Diffusion, Purification, Transform
from shared.steps.yours import Code, Own

# ---- pictures ------------------------------------------------------------------------------------

LEAN = (LeanBlock, LeanVision, LeanCLIP)


class Named(Relabelled):
    """A set with the labels and prompts of a model's classes. Raises UserError where the names do not match its own."""

    def __init__(self, data: LabelledImages, names: Sequence[str], template: str):
        said, have = [clean(name) for name in names], [clean(name) for name in data.classes]
        numbered = isinstance(data, StoredImages) and data.numbered
        lost = [name for name in have if said.count(name) != 1]
        if len(lost) == len(have) == len(names) and not set(said) & set(have) and not numbered:
            places = range(len(names))
        elif lost and numbered:
            places = [int(name) for name in data.classes]
            if max(places) >= len(names):
                raise UserError(
                    f"--classes has {len(names)} names and the pictures have the label {max(places)}: line i + 1 names "
                    "the number i, so give a line for each."
                )
        elif lost:
            raise UserError(
                f"--classes: {len(lost)} of the {len(have)} classes of the pictures are not, or not once, among the "
                f"{len(names)} names, the first is {lost[0]!r}: name each class once, or give a line for each in order."
            )
        else:
            places = [said.index(name) for name in have]
        self.data, self.name, self.new = data, data.name, np.array(places, np.int64)
        self.indices, self.classes, self.prompts = np.arange(len(data)), tuple(names), fill(template, names)
        self.version = digest([data.version, self.prompts, self.new.tolist()])[:16]


@dataclass(frozen=True)
class Set:
    """Labelled pictures, a leaf. names: of the model's classes (see `Named`); without, they are the set's own."""

    spec: str
    names: tuple[str, ...] = ()
    template: str = "{}"

    def open(self, lab: Lab) -> LabelledImages:
        """The whole set, opened once."""
        return lab.once(self, lambda: self._open(lab))

    def _open(self, lab: Lab) -> LabelledImages:
        size, skip = ImageSize.parse(lab.source.size), lab.source.skip_corrupt
        if self.spec == "folder:all":
            data = _folder(lab.source.root, size, skip)
        elif self.spec.partition(":")[0] in KINDS:
            data = stored(self.spec, lab.source.root, size, skip)
            if data.numbered and not self.names:
                raise UserError(
                    f"the labels of {self.spec} are numbers: name them with --classes, line i + 1 for the number i."
                )
        else:
            data = lab.data(self.spec, "test")
        return Named(data, self.names, self.template) if self.names else data

    def identity(self, lab: Lab) -> list:
        """Its contents and the code that makes its pictures."""
        data = self.open(lab)
        return [data.version, source.of(type(data.data if isinstance(data, Named) else data))]


def _folder(root: str, size: ImageSize, skip_corrupt: bool) -> LabelledImages:
    """All pictures of a folder that is not divided, the test pictures of one that is."""
    return image_folder(root, "test" if is_divided(root) else None, size=size, skip_corrupt=skip_corrupt)


@dataclass(frozen=True)
class Part:
    """`count` pictures of a choice of a set, balanced over its classes, from the place `first` on; a leaf."""

    data: Set
    first: int
    count: int
    seed: int

    @property
    def spec(self) -> str:
        return self.data.spec

    def open(self, lab: Lab) -> LabelledImages:
        """The whole set."""
        return self.data.open(lab)

    def identity(self, lab: Lab) -> list:
        """Of the set, and which of its pictures."""
        return [self.data.identity(lab), self.first, self.count, self.seed]

    def rows(self, lab: Lab) -> list[int]:
        """Their indices."""

        def chosen() -> list[int]:
            data = self.open(lab)
            before = subset(data, self.first, self.seed) if self.first else []
            return subset(data, self.first + self.count, self.seed)[len(before) :]

        return lab.once(("rows", self), chosen)

    def read(self, lab: Lab, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) in [0, 1] and y (N,) of some of the set's pictures, on the device."""
        x, y = self.open(lab).__getitems__(list(rows))
        return x.to(lab.device), y.to(lab.device)


# ---- models --------------------------------------------------------------------------------------


class Called(nn.Module):
    """A function or module from pictures to logits, which may change its argument, as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.clone())


@dataclass(frozen=True)
class Model:
    """A classifier of the classes of a set by what its option says, a leaf."""

    spec: str
    data: Set

    def _parts(self) -> tuple[str, str, str]:
        """(kind, name, weights)."""
        kind, colon, rest = self.spec.partition(":")
        if kind in ("open_clip", "torchvision"):
            name, _, weights = rest.partition("@")
            return kind, name, weights or ("torchvision:DEFAULT" if kind == "torchvision" else "random")
        if kind in ("hf", "zoo") and rest:
            return kind, rest, ""
        if colon and "/" not in kind:
            return "code", self.spec, ""
        name, _, weights = self.spec.partition("/")
        return ("open_clip", name, weights) if weights else ("zoo", self.spec, "")

    def identity(self, lab: Lab) -> list:
        """The contents of its weights, or its source; and the names and prompts of its classes."""
        kind, name, weights = self._parts()
        of = {
            "code": lambda: Code(name, "--model").identity(lab),
            "hf": lambda: identity(f"hf:{name}"),
            "zoo": lambda: identity(f"zoo:{name}"),
        }.get(kind, lambda: locate(weights, "--model")[1])
        return [kind, name, of(), self.data.identity(lab)]

    def open(self, lab: Lab) -> nn.Module:
        """x (N, 3, H, W) in [0, 1] -> logits (N, K); opened once, in eval mode."""
        return lab.once(self, lambda: self._open(lab).to(lab.device).requires_grad_(False).eval())

    def _open(self, lab: Lab) -> nn.Module:
        (kind, name, weights), data = self._parts(), self.data.open(lab)
        if kind == "code":
            made = Code(name, "--model").made()
            if not callable(made):
                kind = type(made).__name__
                raise UserError(f"--model {name}: a {kind} cannot be called with pictures: give a model.")
            model = Called(made)
            model.came_training = getattr(made, "training", False)
            return model
        if kind == "hf":
            return open_hf(name, data)
        if kind == "torchvision":
            return open_classifier(f"torchvision:{name}", weights, data.num_classes)
        card = zoo.card(name) if kind == "zoo" else {"model": name}
        weights = f"zoo:{name}" if kind == "zoo" else weights
        if card.get("kind") == "classifier":
            return open_classifier(card["model"], weights, data.num_classes)
        clip = Backbone(card["model"], weights, "--model").open(lab)
        return ZeroShot(clip.visual, class_matrix(clip, data), clip.logit_scale.exp().item())


class Plain(nn.Module):
    """A model by operations that have a second derivative: open_clip's own blocks for the quick ones, attention by
    plain products. The weights are the model's.

    The quick blocks are once differentiable. torch.autograd.grad does not say so: of the second derivative it leaves
    out what goes through them, since the node that would raise is on no way to its inputs.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if any(isinstance(module, LEAN) for module in model.modules()):
            weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
            model = copy.deepcopy(model, weights)
            for module in model.modules():
                if type(module) in LEAN:
                    module.__class__ = type(module).__base__
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else contextlib.nullcontext():
            return self.model(x)


@dataclass(frozen=True)
class Twice:
    """A model for a defence that follows its gradient, and is itself differentiated by attacks."""

    model: Model

    def open(self, lab: Lab) -> nn.Module:
        """As of the model, opened once."""
        return lab.once(self, lambda: Plain(self.model.open(lab)).eval())


# ---- defences ------------------------------------------------------------------------------------


def defence_of(spec: str, denoiser: str, model: Model) -> Defence:
    """The defence by what its option says. Raises UserError for an unknown one."""
    kind, _, value = spec.partition(":")
    transforms = ("jpeg", "bits", "tv", "resize_pad", "blur", "resize")
    try:
        if kind in transforms:
            return Transform(kind, float(value))
        if kind == "diffpure":
            return Purification(Diffusion(Weights(denoiser)), int(value or 100), "ddim", 5, 0.0)
    except ValueError:
        raise UserError(f"--defence {spec}: write {kind}:NUMBER, as in jpeg:75, blur:1 or diffpure:100.") from None
    if value:
        return Own(Code(spec, "--defence"))
    if kind == "none":
        return Transform()
    if (source.ROOT / "papers" / kind / "paper.py").is_file():
        found = importlib.import_module(f"papers.{kind}.paper").PAPER.defence
        if found is not None:
            return found(Twice(model))
    raise UserError(
        f"there is no defence {spec!r}: write none, {', '.join(f'{name}:NUMBER' for name in transforms)}, diffpure, "
        "diffcap, distshift, or module:name for one of your own."
    )
