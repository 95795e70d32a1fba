"""A step: one computation, known by everything that it depends on.

    @dataclass(frozen=True)
    class Tuned(Trained):
        clip: Backbone        # a leaf: weights, known by the contents of their file
        data: Pictures        # a leaf: pictures, known by the contents of the set
        tuning: Tuning        # options; fields marked `free` change no outcome
        seed: int

        def make(self, lab: Lab) -> Tensors: ...

The fields of a step are all that its outcome depends on. Its key, what has to be made before it, and the names of its
files follow from them: nobody writes any of these. Two steps with equal fields are the same step, made once, whoever
asks for it. Three rules keep it so:

* `make` reads its own fields and nothing else of the configuration: the Lab that it is handed has none.
* A field is a step, a leaf (an object with `identity(lab)`), a dataclass of options, a number, a text, or a tuple of
  these; never a function.
* What changes no outcome is marked `free`; everything else counts.

The source counts too, see `shared.experiment.source`: the classes of a step and of its fields, and all of the project
that they use by name.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import numpy as np

from shared.experiment import source
from shared.files import digest
from shared.options import Worded, free

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from shared.data.base import LabelledImages
    from shared.data.catalogue import Source

__all__ = ["Kept", "Lab", "Measured", "Step", "Tensors", "Trained", "Values", "free", "once"]

F = TypeVar("F", bound=Callable)
Tensors = Mapping[str, "Tensor"]


class Lab(Protocol):
    """What a step may ask of the process that makes it; see `shared.experiment.lab` for what each means."""

    device: object
    accelerator: object
    source: "Source"

    def data(self, spec: str, split: str = "test") -> "LabelledImages": ...
    def once(self, name: Hashable, make: Callable[[], object]): ...
    def identity(self, leaf: Hashable) -> object: ...
    def fingerprint(self, step: "Step") -> str: ...
    def weights(self, step: "Kept", part: str = "") -> Tensors: ...
    def facts(self, step: "Kept", part: str = "") -> dict[str, str]: ...
    def keep(self, step: "Kept", tensors: Tensors, part: str = "", facts: dict[str, str] | None = None) -> None: ...
    def path(self, step: "Kept", part: str = "") -> "Path": ...
    def file(self, step: "Kept", part: str = "") -> "Path": ...
    def partial(self, step: "Kept") -> "Path": ...


def once(method: F) -> F:
    """A method(self, lab) of a step or leaf whose outcome is kept (`Lab.once`): nobody changes it."""

    @wraps(method)
    def kept(self: Hashable, lab: Lab) -> object:
        return lab.once((method.__qualname__, self), lambda: method(self, lab))

    return kept  # type: ignore[return-value]


@dataclass(frozen=True)
class Values:
    """What a measurement leaves. values: (n,), one number per example; unit: "share", "s", …; extra: further arrays,
    for figures; sanity: the record of the attack's sanity checks; skipped: unreadable files that were left out."""

    values: np.ndarray
    unit: str
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    sanity: dict | None = None
    skipped: Sequence[str] = ()


@dataclass(frozen=True)
class Step(Worded):
    """One computation. A class whose `make` comes to mean something else in a way that its source does not show (a new
    version of a library, say) raises its `version`: all is then made again."""

    version: ClassVar[int] = 1
    weight: ClassVar[float] = 1.0
    """How long it takes, relative to other classes of the paper: longer ones are begun first. It changes no outcome."""

    @property
    def name(self) -> str:
        """For people, and for its files."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Kept(Step):
    """A step that leaves tensors, in one file per part. One that is no `Trained` is made by `evaluate` (adversarial
    pictures, say)."""

    together: ClassVar[bool] = False
    """Made by all processes, each its share of every batch; others are made by one process."""
    shared: ClassVar[bool] = False
    """Other papers have it too: what one of them has made in the same results is taken over."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The files that it leaves: "" is its outcome, others are snapshots and the like."""
        return ("",)

    def make(self, lab: Lab) -> "Tensors | tuple[Tensors, dict[str, str]]":
        """Its outcome, or that and facts to stand beside it; other parts it hands to `lab.keep` itself."""
        raise NotImplementedError


@dataclass(frozen=True)
class Trained(Kept):
    """A step that is made by `train`."""


@dataclass(frozen=True)
class Measured(Step):
    """A step that leaves numbers, one per example."""

    @property
    def group(self) -> Hashable:
        """Numbers of one group are made by one process, one after another, so that they share what is cached. Default:
        those that need the same outcome last."""
        return max(needs(self), key=depth, default=None)

    def make(self, lab: Lab) -> Values:
        """The numbers."""
        raise NotImplementedError


def counted(x: object) -> Iterator[tuple[str, object]]:
    """The fields of a dataclass that change an outcome, by name."""
    return ((name, getattr(x, name)) for name, is_free in _fields(type(x)) if not is_free)


@cache
def _fields(kind: type) -> tuple[tuple[str, bool], ...]:
    """(name, whether it is free) of the fields of a dataclass; of any other class, none."""
    return tuple((f.name, bool(f.metadata.get("free"))) for f in fields(kind)) if is_dataclass(kind) else ()


def _parts(x: object) -> list[object]:
    """What is directly inside a dataclass or a tuple and may have something inside itself: no numbers, no texts."""
    inside = x if isinstance(x, list | tuple) else [getattr(x, name) for name, _ in _fields(type(x))]
    return [part for part in inside if _fields(type(part)) or isinstance(part, list | tuple)]


def content(x: object, lab: Lab) -> object:
    """What a key says of x, as JSON: a step by what it left, a leaf by its identity, options by their fields; with the
    source of each class."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, list | tuple):
        return [content(part, lab) for part in x]
    if isinstance(x, Step):
        return lab.fingerprint(x)
    if hasattr(x, "identity"):
        return [type(x).__name__, source.of(type(x)), lab.identity(x)]
    if is_dataclass(x):
        return [type(x).__name__, source.of(type(x)), {name: content(value, lab) for name, value in counted(x)}]
    raise TypeError(f"a step cannot depend on a {type(x).__name__}")


def key(step: Step, lab: Lab) -> str:
    """sha256 of the class, its version and its source, and of all fields that count."""
    made_of = {name: content(value, lab) for name, value in counted(step)}
    return digest([type(step).__name__, step.version, source.of(type(step)), made_of])


def needs(x: object) -> Iterator[Step]:
    """The steps among the fields of x, however deep in its leaves and options."""
    for part in _parts(x):
        if isinstance(part, Step):
            yield part
        else:
            yield from needs(part)


def parts(x: object) -> Iterator[object]:
    """Every step, leaf and dataclass of options in x, however deep, x itself among them."""
    if _fields(type(x)):
        yield x
    for part in _parts(x):
        yield from parts(part)


def closure(steps: Iterable[Step]) -> list[Step]:
    """These steps and all that they need, each once, what is needed before what needs it."""
    found: dict[Step, None] = {}

    def visit(step: Step) -> None:
        if step not in found:
            for need in needs(step):
                visit(need)
            found[step] = None

    for step in steps:
        visit(step)
    return list(found)


def depth(step: Step) -> int:
    """How many steps come one after another before this one."""
    return 1 + max(map(depth, needs(step)), default=-1)
