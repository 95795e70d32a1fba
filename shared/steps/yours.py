"""Code of the user's own, by `module:name`: loaded, known by its source, and looked at before anything long runs.

What a paper takes (docs/yours.md) stands where its own methods stand; a defence in front of a classifier is here, as
two papers and `shared.judge` take one.
"""

import contextlib
import importlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from shared.errors import UserError
from shared.experiment import source
from shared.experiment.scale import Options
from shared.experiment.step import Lab, Measured, Values, free, once
from shared.files import digest, look_at, sha256_file
from shared.metrics.costs import phase_seconds
from shared.models.preprocess import straight_through
from shared.rng import SampleRng
from shared.steps.purification import STREAM, Examples, Opened, Seen, Victim

FEW = 8  # pictures that are looked at
FAILS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError,
         RuntimeError, TypeError, ValueError)  # fmt: skip
"""What code raises on what it cannot take."""


# ---- by name ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """module:name, a leaf, known by its source. option: that named it, for errors."""

    spec: str
    option: str = free("")

    def load(self) -> Any:
        """The object. Raises UserError for a module that does not import and a name that it lacks."""
        module, _, name = self.spec.partition(":")
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever the user's module raises; a script of his ends the process
            raise UserError(
                f"{self.option} {self.spec}: the module {module} cannot be imported ({what(error)}): mend it, or start "
                "where Python finds it."
            ) from error
        if not callable(getattr(found, name, None)):
            names = ", ".join(key for key, value in vars(found).items() if callable(value) and key[0] != "_") or "none"
            raise UserError(
                f"{self.option} {self.spec}: the module {module} has no class or function {name!r}; it has {names}."
            )
        return getattr(found, name)

    def made(self, *offered: object) -> Any:
        """The object, or what it makes where it is a class or takes no argument. offered: what a class may ask for."""
        thing = self.load()
        needed = [p for p in parameters(thing) if p.default is p.empty]
        if not isinstance(thing, type) and (isinstance(thing, nn.Module) or needed):
            return thing
        try:
            return thing(*offered[: len(needed)])
        except Exception as error:
            most = f"more than {len(offered)} argument" if offered else "arguments"
            raise UserError(
                f"{self.option} {self.spec}: it cannot be made without {most} ({what(error)}): give a function that "
                "makes it."
            ) from error

    def having(self, *methods: str, offered: tuple[object, ...] = ()) -> Any:
        """What it makes. Raises UserError where that lacks one of these methods."""
        made = self.made(*offered)
        for name in methods:
            if not callable(getattr(made, name, None)):
                raise UserError(f"{self.option} {self.spec} has no method {name}: write one, as docs/yours.md says.")
        return made

    def identity(self, lab: Lab) -> object:
        """Of its source, and all that this uses by name; of what is installed, its name and the file that it is in.

        Raises UserError where no source is found, as of what was typed at a prompt.
        """
        thing = self.load()
        module, _, name = self.spec.partition(":")
        known = source.read(module)
        file = getattr(sys.modules[module], "__file__", None)
        if known is None and file:
            return [self.spec, sha256_file(file)]
        if known is not None and name not in {*known.own, *known.imported}:  # by import *
            module, name = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "").partition(".")[0]
            known = source.read(module)
        if known is None or name not in {*known.own, *known.imported}:
            raise UserError(
                f"{self.option} {self.spec}: its source is not found, so what is measured could not be known by it: "
                "write it in a file, or in a cell of a notebook."
            )
        used = source.used(module, name)
        for path in filter(None, map(source.file_of, {module for module, _ in used})):
            look_at(path)
        return source.whole(used)


def what(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def parameters(thing: Callable) -> list[inspect.Parameter]:
    """The parameters that a call fills by place."""
    call = thing.forward if isinstance(thing, nn.Module) else thing
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        return [p for p in inspect.signature(call).parameters.values() if p.kind in kinds]
    except ValueError:  # of a builtin
        return [inspect.Parameter("x", kinds[0])]


# ---- defences in front of a model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """A defence of the user's own, as it is."""

    code: Code

    def open(self, lab: Lab) -> Opened:
        """It, or what its `open(lab)` returns. Raises UserError for what cannot be called."""
        made = self.code.made()
        made = made.open(lab) if hasattr(made, "open") else made
        if not callable(made):
            raise UserError(
                f"{self.code.option} {self.code.spec}: a {type(made).__name__} has neither __call__(x) nor open(lab): "
                "write one of them."
            )
        return made.to(lab.device).eval() if isinstance(made, nn.Module) else made


class Shield:
    """A defence as attacks call it, (x, rng) -> x. straight: it has no gradient, the identity's stands for it (None:
    the first call that needs a gradient finds out). What draws from the generators of torch, NumPy or Python draws the
    same for the same rng."""

    def __init__(self, opened: Callable[..., Tensor], random: bool, straight: bool | None):
        self.opened, self.random, self.straight = opened, random, straight
        second = parameters(opened)[1:2]
        self.takes_rng = any(p.default is p.empty or p.name == "rng" for p in second)

    def __call__(self, x: Tensor, rng: SampleRng) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._out(x, rng)
        if self.straight is None:
            few = torch.arange(min(2, len(x)))
            self.straight = not has_gradient(lambda part: self._out(part, rng.subset(few)), x[: len(few)].detach())
        if not self.straight:
            return self._out(x, rng)
        with torch.no_grad():
            value = self._out(x, rng)
        return straight_through(value, x)

    def _out(self, x: Tensor, rng: SampleRng) -> Tensor:
        x = x.clone()  # of one that changes its argument
        if self.takes_rng:
            return self.opened(x, rng)
        with own_generators(int(digest([rng.seed, rng.stream, list(rng.indices)])[:8], 16)):
            return self.opened(x)


@contextlib.contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Begin the generators of torch, NumPy and Python anew, and leave them as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def has_gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether torch finds a way back from what is called to x."""
    try:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            torch.autograd.grad(call(x).sum(), x)
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def look_through(defence: Shield, x: Tensor, rng: SampleRng) -> Tensor:
    """x behind the defence. Raises UserError where the size changes, or [0, 1] is left."""
    try:
        out = defence(x.clone(), rng)
    except FAILS as error:
        raise UserError(
            f"the defence fails on pictures {tuple(x.shape)} ({what(error)}): it is called as defence(x) or "
            "defence(x, rng)."
        ) from error
    if not isinstance(out, Tensor) or out.shape != x.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(
            f"the defence made {got} of pictures {tuple(x.shape)}: return pictures of the size that came in."
        )
    low, high = out.min().item(), out.max().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise UserError(
            f"the defence's pictures go from {low:.3g} to {high:.3g}: keep them in [0, 1], mean and std in the model."
        )
    return out


@dataclass(frozen=True)
class Yours:
    """A defence of the user's own in a paper's tables: DEFENCE=module:name, a class that is made without arguments.

        def __call__(self, x: Tensor, rng: SampleRng) -> Tensor: ...       # or without rng, where nothing is random

    x (N, 3, H, W) in [0, 1] -> pictures of the same size in [0, 1], finite. Noise is taken from rng, of which each
    picture has a stream of its own; a class that has `random = False` has none, and gradients need one draw. Where
    torch finds no gradient through it, attackers take the identity's (BPDA).
    """

    code: Code

    @classmethod
    def of(cls, config: Options) -> "Yours":
        """What the options say."""
        return cls(Code(config.yours, "DEFENCE"))

    @once
    def open(self, lab: Lab) -> Shield:
        """The defence, opened once."""
        opened = Own(self.code).open(lab)
        return Shield(opened, getattr(opened, "random", True), None)

    def look(self, lab: Lab, data: Examples) -> None:
        """Raises UserError unless it makes of a few pictures others of their size in [0, 1]."""
        rows = data.rows(lab)[:FEW]
        look_through(self.open(lab), data.read(lab, rows)[0], SampleRng(0, rows, "look"))


@dataclass(frozen=True)
class DefenceSeconds(Measured):
    """Seconds per picture behind a defence and through the victim, or (`gradient`) of the gradient of the victim's
    largest logit with respect to the picture; one value per repetition."""

    victim: Victim
    seen: Seen
    defence: Yours
    repeats: int
    seed: int
    gradient: bool = False

    def make(self, lab: Lab) -> Values:
        x, rng = self.seen.pictures(lab), SampleRng(self.seed, self.seen.rows(lab), STREAM)
        victim, defence = self.victim.open(lab), self.defence.open(lab)

        def run(done: Callable[[], None]) -> None:
            if self.gradient:
                z = x.clone().requires_grad_()
                torch.autograd.grad(victim(defence(z, rng)).amax(dim=1).sum(), z)
            else:
                with torch.no_grad():
                    victim(defence(x, rng))
            done()

        return Values(phase_seconds(run, self.repeats, x.device)[:, 0] / len(x), "s")
