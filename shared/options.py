"""Options: dataclasses whose fields are what can be set, and the numbers and words that a field may hold.

    steps: Count = 10                              # the bounds of a field are part of its type
    share: Annotated[float, Range(0, 0.5)] = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"     # and so are its words

`from_command_line` holds what it reads to these, under the names of options; a subclass of `Bounded` holds itself to
them wherever it is made (one of `Worded` to the words alone), and `check_bounds` any other; `bounded` holds the
arguments of a function to theirs. A number whose type has no bounds is finite, and an integer has 64 bits.

A `warmup` is a number of updates, and no longer than the `steps` beside it: where a quick try shortens these, it is cut
to them and a note says so, so that what runs is what the options say. One that was asked for is refused.
"""

import dataclasses
import functools
import inspect
import itertools
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Integral, Real
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from shared.errors import UserError

F = TypeVar("F", bound=Callable)
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, without these where `above` (`below`) is set; never nan or an infinity.

    example: a number that is often meant, as it is written.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    example: str = ""

    def __contains__(self, value: float) -> bool:
        over = self.least < value if self.above else self.least <= value
        under = value < self.most if self.below else value <= self.most
        return over and under and math.isfinite(value)

    def __str__(self) -> str:
        if self.most == math.inf:
            above = f" above {self.least:,}" if self.above else f" of {self.least:,} or more"
            said = f"finite number{'' if self.least == -math.inf else above}"
        elif self.above:
            said = f"number above {self.least:,} and {'below' if self.below else 'at most'} {self.most:,}"
        else:
            said = f"number from {self.least:,} to {'below ' if self.below else ''}{self.most:,}"
        return f"{said}, e.g. {self.example}" if self.example else said


def fraction(text: str) -> float:
    """'2/255', '0.5/255' or '0.01' -> float. Raises ValueError for anything else."""
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / (float(bottom) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number such as 2/255 or 0.01")
    return value


def show_eps(eps: float) -> str:
    """ε as people write it: 2/255 where it is a multiple of 1/255 (or of a quarter of it), else a decimal."""
    units = eps * 255
    return f"{units:g}/255" if abs(units * 4 - round(units * 4)) < 1e-6 else f"{eps:g}"


Pixels = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="NUMBER/255",
        instance_from_str=lambda args: fraction(args[0]),
        is_instance=lambda x: isinstance(x, float | int),
        str_from_instance=lambda x: [show_eps(x)],
    ),
]
"""A length in pixel values of [0, 1], written on the command line as 2/255 or 0.0078."""
Eps = Annotated[Pixels, Range(0, 1, above=True, example="8/255")]
"""Radius of an ℓ∞ ball."""
Count = Annotated[int, Range(1, 10_000_000)]
"""Of pictures, updates, steps, draws."""
Whole = Annotated[int, Range(0, 10_000_000)]
"""A count where 0 means all, or none."""
Pairs = Annotated[int, Range(1, 1_000_000_000)]
"""Of picture and caption; sets of these are larger."""
Batch = Annotated[int, Range(1, 65_536)]
"""Samples at a time."""
Workers = Annotated[int, Range(0, 1024)]
"""Processes that read ahead."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""What every generator takes; NumPy's older one takes no more, and streams are put together as multiples of it."""
Time = Annotated[int, Range(1, 4000)]
"""A step of a diffusion model's schedule."""
ChainSteps = Annotated[int, Range(0, 4000)]
"""Of a reverse process; 0: one for every step of the schedule."""
Share = Annotated[float, Range(0, 1)]
"""Also a probability, an accuracy."""
Part = Annotated[float, Range(0, 1, above=True)]
"""A share that is not 0."""
OpenShare = Annotated[float, Range(0, 1, above=True, below=True)]
"""A share that is neither none nor all."""
Decay = Annotated[float, Range(0, 1, below=True)]
"""Of a running average: momentum, and the like."""
Cosine = Annotated[float, Range(-1, 1)]
Positive = Annotated[float, Range(0, above=True)]
Weight = Annotated[float, Range(0)]
"""Of a term, 0 leaves it out."""
Finite = Annotated[float, Range()]
"""Any number."""
Side = Annotated[int, Range(1, 8192)]
"""Of a picture, in pixels."""
Draws = Annotated[int, Range(1, 10_000)]
"""Repetitions of something random, or of a timing."""
Classes = Annotated[int, Range(1, 1_000_000)]
"""That a model tells apart."""
Label = Annotated[int, Range(0, 999_999)]
"""Of a class: its place among them."""
Quality = Annotated[int, Range(1, 95)]
"""Of JPEG, on libjpeg's scale."""
Bits = Annotated[int, Range(1, 8)]
"""Per channel of a picture."""
Blur = Annotated[float, Range(0, 100, above=True)]
"""Standard deviation of a Gaussian, in pixels."""
_INTEGER = Range(-(2**63), 2**63 - 1)

_later: ContextVar[list[str] | None] = ContextVar(
    "bounds are checked later, and what is noted is said then", default=None
)


def free(default: Any = dataclasses.MISSING) -> Any:
    """A field that changes no outcome: how many at a time, how many processes read ahead, how often it is saved, what
    it is called.

    It is no part of the key of what is made with it (`shared.experiment.step`).
    """
    return dataclasses.field(default=default, metadata={"free": True})


def check_bounds(options: object, prefix: str = "--") -> None:
    """Hold every number and word in a dataclass of options, and in those inside it, to its type.

    prefix: before the names of fields; "--" for the spelling of the command line. Raises UserError with the first field
    that holds anything else, what it holds, and what it may hold.
    """
    check_values(type(options), {name: getattr(options, name) for name in hints(type(options))}, prefix)


def check_values(kind: type, values: Mapping[str, object], prefix: str = "--") -> None:
    """`check_bounds` for some fields of a dataclass that nobody has made yet."""
    for name, value in values.items():
        spelled = prefix + (name.replace("_", "-") if prefix.startswith("--") else name)
        _check(spelled, value, hints(kind)[name])


class Worded:
    """Base of a dataclass: raises UserError where one is made with a word that its type does not have."""

    def __post_init__(self) -> None:
        for name, hint in _worded(type(self)).items():
            _check(f"{type(self).__name__}.{name}", getattr(self, name), hint)


class Bounded:
    """Base of a dataclass of options: raises UserError where one is made with a number out of bounds, or another word.

    A `__post_init__` of its own calls this one first.
    """

    def __post_init__(self) -> None:
        if _later.get() is None:
            check_bounds(self, f"{type(self).__name__}.")
        if {"warmup", "steps"} <= hints(type(self)).keys():
            object.__setattr__(self, "warmup", shortened(self.warmup, self.steps))


def check_warmup(option: str, warmup: int, updates: int) -> None:
    """Refuse a warm-up that was asked for and is longer than its training."""
    if warmup > updates:
        raise UserError(f"{option} is {warmup}, more than the {updates} updates of its training: make it smaller.")


def shortened(warmup: int, updates: int) -> int:
    """A warm-up in a training of so many updates: no longer than that, since no learning rate would reach its value."""
    if warmup > updates:
        said = f"note: a training of {updates} updates ends before a warm-up of {warmup}: that is cut to {updates}."
        if (notes := _later.get()) is None:
            _say(said)
        else:
            notes.append(said)
    return min(warmup, updates)


@functools.cache  # options are made again wherever one of them is changed
def _say(note: str) -> None:
    print(note, file=sys.stderr, flush=True)


def from_command_line(kind: type[T], **how: Any) -> T:
    """`tyro.cli(kind, **how)`, with every number held to its bounds by the name of its option. Raises UserError."""
    notes: list[str] = []
    later = _later.set(notes)  # what is inside would name itself
    try:
        options = tyro.cli(kind, **how)
    finally:
        _later.reset(later)
    check_bounds(options)
    given = how.get("args")
    words = [part for word in (sys.argv[1:] if given is None else given) for part in word.split("=", 1)]
    for name, value in dict(itertools.pairwise(words)).items():
        if name.startswith("--") and name.endswith("warmup"):
            check_warmup(name, int(value), attrgetter(name[2:].replace("-", "_"))(options))
    for note in notes:
        _say(note)
    return options


def changed(options: T, path: str, value: object) -> T:
    """Options with one of them changed. path: its name, behind those of the options it is in: "data.n"."""
    first, _, rest = path.partition(".")
    return dataclasses.replace(options, **{first: changed(getattr(options, first), rest, value) if rest else value})


def bounded(function: F) -> F:
    """Hold the arguments of a function to the bounds of their types; it raises UserError as `check_bounds` does."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, hint in hints(function).items():
            if name in given and not dataclasses.is_dataclass(given[name]):  # these were checked when they were made
                _check(name, given[name], hint)
        return function(*args, **kwargs)

    return checked


@functools.cache
def hints(kind: Callable) -> dict[str, Any]:
    """Field or argument -> its type with its bounds; of a dataclass its fields alone."""
    found = get_type_hints(kind, include_extras=True)
    return {f.name: found[f.name] for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else found


@functools.cache
def _worded(kind: type) -> dict[str, Any]:
    return {name: hint for name, hint in hints(kind).items() if "Literal[" in str(hint)}


def range_of(hint: Any) -> Range | None:
    """The range of a number's type; None for what is no number."""
    named = [extra for extra in get_args(hint)[1:] if isinstance(extra, Range)] if get_origin(hint) is Annotated else []
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return named[-1] if named else {int: _INTEGER, float: Range()}.get(base)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _check(name: str, value: object, hint: Any) -> None:
    if dataclasses.is_dataclass(value):
        check_bounds(value, f"{name}.")
    elif isinstance(value, tuple | list):
        kinds = next((get_args(a) for a in alternatives(hint) if get_origin(a) in (tuple, list, Sequence)), ())
        for item, kind in zip(value, itertools.cycle(kinds[:1] if ... in kinds else kinds), strict=False):
            _check(name, item, kind)
    elif words := [word for a in alternatives(hint) if get_origin(a) is Literal for word in get_args(a)]:
        function = Callable in map(get_origin, alternatives(hint))
        other = tuple(a for a in alternatives(hint) if isinstance(a, type))
        if value not in words and not isinstance(value, other) and not (function and callable(value)):
            said = " or ".join(filter(None, [", ".join(map(repr, words[:-1])), repr(words[-1])]))
            raise UserError(f"{name} is {value!r}: use {said}{', or a function' * function}.")
    elif {get_origin(a) for a in alternatives(hint)} == {tuple}:
        raise UserError(f"{name} is {value!r}: use a tuple, as in ({value!r},).")
    else:
        number = next((a for a in alternatives(hint) if range_of(a) is not None), None)
        other = tuple(a for a in alternatives(hint) if isinstance(a, type) and a is not number)
        if number is None or isinstance(value, other):
            return
        whole = (get_args(number)[0] if get_origin(number) is Annotated else number) is int
        fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if not fits or value not in range_of(number):
            raise UserError(f"{name} is {value}: use a {'whole ' if whole else ''}{range_of(number)}.")
