"""A laboratory in which steps run without numbers: what a plan counts, `shared.experiment.tally`, is what their own
`make` does.

Weights, pictures and what steps leave have shapes only, so neither weights nor data nor a GPU have to be there. Every
step runs once for all those that cost the same: steps whose fields are equal but for texts for people, the values of
real numbers (zero is another one), seeds after the first, and the weights of models. What steps share in memory
(`Lab.once`) counts once.
"""

import contextlib
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

import shared.data.catalogue
import shared.data.pairs
import shared.data.targets
import shared.metrics.costs
import shared.metrics.perceptual
import shared.models.clip
import shared.models.victim
from shared import repeat
from shared.data.base import LabelledImages
from shared.data.catalogue import Source, open_vl
from shared.data.scene_sets import ScenePairs
from shared.data.sizes import PUBLIC, TEXTS
from shared.data.vision_language import INSTRUCTION, VisionLanguageSet
from shared.errors import UserError
from shared.experiment import published
from shared.experiment.leaves import Pictures
from shared.experiment.step import Kept, Step, Values, counted
from shared.experiment.tally import Cost, Tally, listed, may_be_known, numbers, with_numbers
from shared.rng import SampleRng
from shared.training.loop import OneProcess

SAMPLE = 64  # pictures that are read to see how long one takes
CAPTION, QUESTION = "a photo of a dog on a table in front of a window", "what is the dog doing on the table"


@dataclass
class Traced:
    """One run without numbers. cost: its own; shared: what it asked `Lab.once` for, with where in the step each part
    of the name stands, and the cost of making it; left: the shapes of what it left, by part."""

    cost: Cost
    shared: list[tuple[tuple, Cost]] = field(default_factory=list)
    left: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    why: str = ""


@dataclass
class _Shared:
    """What `Lab.once` keeps, the cost of making it, and the bytes that it holds."""

    made: object
    cost: Cost
    size: int


class PlannedPictures(LabelledImages):
    """A labelled set as large as the real one, of pictures without numbers."""

    def __init__(self, spec: str, split: str, lab: "PlanLab"):
        self.lab, self.name = lab, spec.partition(":")[2]
        self.seconds = 0.0
        try:
            real = shared.data.catalogue.open_set(spec, split, lab.source)
        except UserError:
            if self.name not in PUBLIC:
                raise
            classes, self.side, test, train = PUBLIC[self.name]
            self.n = test if split == "test" else train
            self.classes = _AnyClass(f"class {k}" for k in range(classes))
            self.prompts = tuple(f"This is a photo of a {name}" for name in self.classes)
            self.labels = np.arange(self.n) % classes
        else:
            self.n, self.classes, self.prompts, self.labels = len(real), real.classes, real.prompts, real.labels
            some = real.usable(range(min(SAMPLE, self.n)))
            self.side = real.__getitems__(some[:1])[0].shape[-1]
            self.seconds = _seconds(lambda: real.__getitems__(some)) / len(some)
        self.version = spec + split

    labels = None

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        with _disable_current_modes():
            labels = torch.tensor([int(self.labels[i]) for i in indices], dtype=torch.int64)
        return self.lab.read(self, len(indices)), with_numbers(self.lab.fake, labels)


def _seconds(read: Callable[[], object]) -> float:
    """Processor time, the least of a few: whatever else the machine does only adds to it."""
    took = []
    for _ in range(3):
        began = time.process_time()
        read()
        took.append(time.process_time() - began)
    return min(took)


class _AnyClass(tuple):
    """Names of classes of a set that is not here: whichever is asked for is one."""

    def __contains__(self, name: object) -> bool:
        return True

    def index(self, name: object, *bounds: int) -> int:
        return 0


class PlannedPairs(torch.utils.data.Dataset):
    """n pairs of picture and caption without numbers. say: a caption like theirs."""

    def __init__(self, lab: "PlanLab", spec: str, n: int, size: int):
        self.lab, self.name, self.n, self.side, self.version = lab, spec, n, size, spec
        self.seconds, self.say = 0.0, CAPTION
        if spec == "scenes":
            real, some = ScenePairs(n, size), range(min(SAMPLE, n))
            self.say = max(real.__getitems__(some)[1], key=len)
            self.seconds = _seconds(lambda: real.__getitems__(some)) / len(some)

    def __len__(self) -> int:
        return self.n

    def captions(self, indices: Sequence[int]) -> list[str]:
        return [self.say] * len(indices)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        return self.lab.read(self, len(indices)), self.captions(indices)


class PlannedTexts(VisionLanguageSet):
    """A set of pictures with text as large as the real one, with its texts where it is here."""

    prompt, skipped = INSTRUCTION, ()

    def __init__(self, lab: "PlanLab", spec: str, split: str, size: object):
        self.lab, self.name, self.version, self.seconds = lab, spec, spec + split, 0.0
        try:
            self.real = open_vl(spec, split, lab.source, size)
        except UserError:
            if spec not in TEXTS:
                raise
            self.real, self.n, self.side = None, TEXTS[spec], int(size or 224)
        else:
            self.n, self.side = len(self.real), self.real.pictures([0]).shape[-1]
            self.seconds = _seconds(lambda: self.real.pictures(range(SAMPLE))) / SAMPLE

    def __len__(self) -> int:
        return self.n

    def pictures(self, indices: Sequence[int]) -> Tensor:
        return self.lab.read(self, len(indices))

    def scenes(self, indices: Sequence[int]) -> object:
        return self.real.scenes(indices)

    def references(self, indices: Sequence[int]) -> list[list[str]]:
        return self.real.references(indices) if self.real else [[CAPTION] * 5 for _ in indices]

    def questions(self, indices: Sequence[int]) -> list[str]:
        return self.real.questions(indices) if self.real else [QUESTION] * len(indices)

    def answers(self, indices: Sequence[int]) -> list[list[str]]:
        return self.real.answers(indices) if self.real else [[f"word {k}" for k in range(10)] for _ in indices]


class PlanLab:
    """What a `Lab` is to steps; see the module docstring. To be used inside `planning`. half: published language
    models are in half precision, as on a GPU."""

    def __init__(self, device: torch.device, source: Source, half: bool = False):
        self.device, self.source, self.accelerator, self.half = device, source, OneProcess(device), half
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.tally = Tally(device, self.fake)
        self.sets: dict[tuple[str, str], PlannedPictures] = {}
        self.rates: dict[str, float] = {}
        self._traced: dict[object, Traced] = {}
        self._forms: dict[object, object] = {}
        self._shared: dict[object, _Shared] = {}
        self._asked: dict[Hashable, object] = {}
        self._files: dict[Path, tuple[Kept, str]] = {}
        self._kept: list[dict] = []

    # -- what steps ask for ------------------------------------------------------------------------------------------

    def data(self, spec: str, split: str = "test") -> PlannedPictures:
        if (spec, split) not in self.sets:
            with _disable_current_modes():
                self.sets[spec, split] = PlannedPictures(spec, split, self)
        return self.sets[spec, split]

    def pairs(self, spec: str, source: Source, n: int, seed: int, size: int) -> PlannedPairs:
        with _disable_current_modes():
            return PlannedPairs(self, spec, n, size)

    def texts(self, spec: str, split: str, source: Source, size: object = None) -> PlannedTexts:
        with _disable_current_modes():
            return PlannedTexts(self, spec, split, size)

    def read(self, data: object, n: int) -> Tensor:
        """n pictures of a set, counted."""
        self.tally.cost.pictures[data.name] += n * self.tally.factor
        self.rates[data.name] = data.seconds
        return torch.empty(n, 3, data.side, data.side)

    def once(self, name: Hashable, make: Callable[[], object]):
        form = self.form(name)
        if form not in self._shared:
            before, inside = self.tally.bytes, len(self._shared)
            with self.tally.apart() as cost:
                made = make()
            others = sum(one.size for one in list(self._shared.values())[inside:])
            self._shared[form] = _Shared(made, cost, max(0, self.tally.bytes - before - others))
        self._asked.setdefault(name, form)
        return self._shared[form].made

    def identity(self, leaf: Hashable) -> object:
        return self.form(leaf)

    def key(self, step: Step) -> object:
        return type(step).__name__, tuple((name, value) for name, value in counted(step))

    fingerprint = key

    def is_made(self, step: Step) -> bool:
        return True

    def path(self, step: Kept, part: str = "") -> Path:
        path = Path("/nowhere") / f"{abs(hash((step, part)))}.safetensors"
        self._files[path] = step, part
        return path

    file = path

    def partial(self, step: Kept) -> Path:
        return self.path(step).with_suffix(".ckpt")

    def weights(self, step: Kept, part: str = "") -> dict[str, Tensor]:
        return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in self.trace(step).left[part].items()}

    def facts(self, step: Kept, part: str = "") -> dict[str, str]:
        return self.trace(step).facts

    def keep(self, step: Kept, tensors: dict, part: str = "", facts: dict[str, str] | None = None) -> None:
        self._kept[-1][part] = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        self.tally.cost.disk += sum(t.numel() * t.itemsize for t in tensors.values())

    # -- what a plan asks for ----------------------------------------------------------------------------------------

    def trace(self, step: Step) -> Traced:
        """What it costs. Raises whatever the step raises."""
        form = self.form(step)
        if form not in self._traced:
            self._traced[form] = Traced(Cost(), why="it needs itself")
            self._traced[form] = self._run(step)
        found = self._traced[form]
        if found.why:
            raise UserError(found.why)
        return found

    def _run(self, step: Step) -> Traced:
        outside, self._asked, before = self._asked, {}, self.tally.bytes
        known = set(self._shared)
        self._kept.append({})
        facts: dict[str, str] = {}
        try:
            with self.tally.apart() as cost:
                made = self._settled(step) if hasattr(step, "candidates") else step.make(self)
                if not isinstance(made, Values):
                    tensors, facts = made if isinstance(made, tuple) else (made, {})
                    for part in step.parts:  # snapshots of passes that did not run have the shapes of the outcome
                        if part not in self._kept[-1]:
                            self.keep(step, tensors, part)
            places = list(_places(step))
            shared = [(_resolve(places, name), self._shared[form].cost) for name, form in self._asked.items()]
            held = {form for form in self._asked.values() if form in known}
            cost.peak += sum(self._shared[form].size for form in held) - before
            return Traced(cost, shared, self._kept[-1], facts or {})
        except Exception as error:
            return Traced(Cost(), why=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        finally:
            self._kept.pop()
            self._asked = outside

    def _settled(self, choice: Step) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What a `Choice` leaves: candidates that cost the same are scored once."""
        kinds = Counter(self.form((candidate,)) for candidate in choice.candidates)
        candidates = {self.form((candidate,)): candidate for candidate in choice.candidates}
        for kind, count in kinds.items():
            with self.tally.times(count):
                scores = choice.rule.score(self, candidates[kind])
        return {"scores": torch.empty(len(choice.candidates), len(scores), dtype=torch.float64)}, {"chosen": "0"}

    def form(self, x: object) -> object:
        """What of x changes its cost, hashable."""
        if isinstance(x, bool | int | None):
            return x
        if isinstance(x, float):
            return x > 0, x < 0
        if isinstance(x, str):
            return x
        if isinstance(x, tuple | list):
            return tuple(self._left(part) if isinstance(part, Kept) else self.form(part) for part in x)
        if x not in self._forms:
            self._forms[x] = self._form(x)
        return self._forms[x]

    def _form(self, x: object) -> object:
        if isinstance(x, Pictures):
            data = self.data(x.spec, x.split)
            return "pictures", len(data), data.side, len(data.classes), x.split, x.n
        if not is_dataclass(x):
            raise TypeError(f"a {type(x).__name__} has no cost")
        values = {f.name: getattr(x, f.name) for f in fields(x)}
        said = {f.name for f in fields(x) if f.metadata.get("free") and isinstance(values[f.name], str)}
        return type(x), tuple(
            (name, value == 0 if name == "seed" else self._left(value) if isinstance(value, Kept) else self.form(value))
            for name, value in values.items()
            if name not in said
        )

    def _left(self, step: Kept) -> object:
        """A step as it counts for one that needs it: by the shapes that it leaves."""
        left = self.trace(step).left
        return type(step), str(sorted((part, sorted(tensors.items())) for part, tensors in left.items()))


def _places(x: object, path: tuple = ()) -> Iterator[tuple[object, tuple]]:
    """Everything in a step, but what is in the steps that it needs, with the names that lead to it."""
    yield x, path
    if isinstance(x, Kept) and path:
        return
    if isinstance(x, tuple):
        for k, part in enumerate(x):
            yield from _places(part, (*path, k))
    elif is_dataclass(x):
        for f in fields(x):
            value = getattr(x, f.name)
            if is_dataclass(value) or isinstance(value, tuple):
                yield from _places(value, (*path, f.name))


def own(step: Step) -> list[object]:
    """The options and leaves of a step, without those of steps that it needs."""
    return [part for part, path in _places(step) if path and not isinstance(part, Kept | tuple)] + [
        value for value in vars(step).values() if isinstance(value, bool | int | float | str)
    ]


def _resolve(places: list[tuple[object, tuple]], name: Hashable) -> tuple:
    """The parts of a name, those that stand in the step by their place there."""
    parts = name if isinstance(name, tuple) else (name,)
    at = {}
    for value, path in places:
        if is_dataclass(value):
            at.setdefault(value, path)
    return tuple(("at", at[part]) if is_dataclass(part) and part in at else ("is", part) for part in parts)


def name_in(step: Step, parts: tuple) -> tuple:
    """The same name for another step of the same form."""
    found = []
    for how, what in parts:
        value = step if how == "at" else what
        for inside in what if how == "at" else ():
            value = value[inside] if isinstance(inside, int) else getattr(value, inside)
        found.append(value)
    return tuple(found)


# ---- the surroundings ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def planning(lab: PlanLab) -> Iterator[None]:
    """Inside, tensors have no numbers, loops run once, and nothing is read from files."""
    original, from_file = shared.models.clip.create_clip, shared.models.clip.read_weights
    beside = shared.models.clip.read_metadata

    tokenizers: set[type] = set()

    def untrained(name: str, pretrained: object = None, vocabulary: object = None) -> nn.Module:
        model = original(name, None, vocabulary)
        kind = type(model.tokenizer)
        if kind not in tokenizers:
            tokenizers.add(kind)
            stack.enter_context(mock.patch.object(kind, "__call__", _outside(kind.__call__, lab)))
        return model

    def read(path: Path) -> dict[str, Tensor]:
        if Path(path) in lab._files:
            return lab.weights(*lab._files[Path(path)])
        with _disable_current_modes():  # what the repository itself holds
            return from_file(path)

    def facts(path: Path) -> dict[str, str]:
        return lab.facts(*lab._files[Path(path)]) if Path(path) in lab._files else beside(path)

    def named(pairs: object, targets: Sequence, scan: int | None = None) -> list[list[int]]:
        return [list(range(len(pairs))[:scan:2]) for _ in targets]

    def update(train: Callable, device: object, without: object = None) -> np.ndarray:
        train(1, None)
        return np.zeros(1)

    def phases(run: Callable, repeats: int, device: object) -> np.ndarray:
        done: list[None] = []
        with lab.tally.times(repeats + 1):
            run(lambda: done.append(None))
        return np.zeros((repeats, len(done)))

    def drawn(rng: SampleRng, draw: Callable, shape: tuple, dtype: torch.dtype, device: object) -> Tensor:
        out = torch.empty((len(rng), *shape), dtype=dtype)
        with lab.tally.times(len(rng)):
            draw(out[:1], torch.Generator())
        return out if device is None else out.to(device)

    stand_ins = (
        (original, untrained),
        (from_file, read),
        (shared.models.clip.read_metadata, facts),
        (shared.data.pairs.open_pairs, lab.pairs),
        (shared.data.targets.naming, named),
        (open_vl, lab.texts),
        (published.open_vlm, functools.partial(published.vlm, half=lab.half)),
        (published.open_denoiser, published.denoiser),
        (published.open_classifier, published.classifier),
        (shared.models.victim.tell_apart, lambda *_: None),
        (shared.metrics.costs.activation_megabytes, update),
        (shared.metrics.costs.phase_seconds, phases),
        (shared.metrics.perceptual.ssim, lambda x, y: np.zeros(len(x))),
    )
    ours = [m for name, m in sys.modules.items() if name.startswith(("shared.", "papers."))]
    ours = [m for m in ours if m not in (published, sys.modules[__name__])]
    repeat.watched.append(lab.tally.times)
    with contextlib.ExitStack() as stack:
        for module in ours:
            for name, value in list(vars(module).items()):
                for replaced, stand_in in stand_ins:
                    if value is replaced:
                        stack.enter_context(mock.patch.object(module, name, stand_in))
        stack.enter_context(mock.patch.object(SampleRng, "_stack", drawn))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        methods = {
            "__deepcopy__": _copied,
            "numpy": numbers,
            "__array__": numbers,
            "tolist": listed,
            "__format__": _said,
        }
        for name, stand_in in methods.items():
            stack.enter_context(mock.patch.object(FakeTensor, name, stand_in, create=True))
        stack.enter_context(mock.patch.object(TSNE, "fit_transform", lambda _, x: np.zeros((len(x), 2), np.float32)))
        stack.enter_context(mock.patch.object(FakeTensorMode, "may_turn_const", lambda mode, t: may_be_known(t)))
        # half precision is for devices that are there: products of a plan are in single
        stack.enter_context(mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()))
        stack.enter_context(lab.fake)
        stack.enter_context(lab.tally)
        try:
            yield
        finally:
            repeat.watched.pop()
            for cached in (value for module in ours for value in vars(module).values()):
                if hasattr(cached, "cache_clear"):  # of tensors without numbers
                    cached.cache_clear()


def _copied(self: FakeTensor, memo: dict) -> FakeTensor:
    """`Tensor.__deepcopy__`, which would copy the numbers of constants as if they had none."""
    memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
    copied._is_param = getattr(self, "_is_param", False)
    return copied


def _outside(tokenize: Callable, lab: PlanLab) -> Callable:
    """A tokenizer, which puts many small tensors together, with tensors that have numbers."""

    def tokens(*args: object) -> Tensor:
        with _disable_current_modes():
            made = tokenize(*args)
        return with_numbers(lab.fake, made)

    return tokens


def _said(self: FakeTensor, how: str) -> str:
    """`Tensor.__format__`, which has no numbers of fake tensors."""
    return format(self.item(), how) if self.dim() == 0 else repr(self)


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot exchange the contents of tensors without numbers: parameters and buffers are
    replaced."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter)
            if moved is not parameter:
                self._parameters[name] = nn.Parameter(moved.detach(), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self
