"""Bounds as part of a type: what lies in a range and how it is said, and who holds what to it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import pytest

from shared import options
from shared.errors import UserError
from shared.options import (
    Bounded,
    Count,
    Decay,
    Eps,
    Finite,
    Part,
    Pixels,
    Positive,
    Range,
    Seed,
    Share,
    Weight,
    Whole,
    bounded,
    check_bounds,
    from_command_line,
)


@dataclass(frozen=True)
class Inner:
    ratio: Part = 0.5
    pair: tuple[Share, Positive] = (0.5, 2.0)


@dataclass(frozen=True)
class Outer:
    """Numbers in every place that the command line knows."""

    train_steps: Count = 1
    eps: tuple[Eps, ...] = (8 / 255,)
    radius: Annotated[Pixels, Range(0, 16, above=True)] = 1.0
    tau: Share | None = None
    plain: float = 0.0
    whole: int = 0
    name: str = "1e9"
    on: bool = True
    inner: Inner = field(default_factory=Inner)
    more: tuple[Inner, ...] = ()


@dataclass(frozen=True)
class Guide(Bounded):
    scale: Weight = 1.0
    choice: str = "a"

    def __post_init__(self):
        super().__post_init__()
        if self.choice != "a":
            raise UserError("choice is a.")


@dataclass(frozen=True)
class Guided:
    """Options."""

    guide: Guide = field(default_factory=Guide)


@pytest.mark.parametrize(("allowed", "inside", "outside", "said"), [
    (Range(1, 65_536), (1, 2, 65_536), (0, -1, 65_537), "number from 1 to 65,536"),
    (Range(0, 1, above=True, example="8/255"), (1e-9, 1), (0, 1.0000001), "number above 0 and at most 1, e.g. 8/255"),
    (Range(0, 1, below=True), (0, 0.999), (1, -0.001), "number from 0 to below 1"),
    (Range(0, 1, above=True, below=True), (0.5,), (0, 1), "number above 0 and below 1"),
    (Range(0, above=True), (1e-300, 1e300), (0, -1), "finite number above 0"),
    (Range(0), (0, 1e300), (-1e-300,), "finite number of 0 or more"),
    (Range(), (-1e300, 0), (), "finite number"),
])  # fmt: skip
def test_a_range_holds_its_ends_or_not_and_says_so(allowed, inside, outside, said):
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in (*outside, math.nan, math.inf, -math.inf))
    assert str(allowed) == said


@pytest.mark.parametrize("fine", [
    Outer(), Outer(tau=1.0, eps=(), radius=16.0, whole=-(2**63), more=(Inner(), Inner(1.0))),
    Outer(train_steps=np.int64(3), plain=np.float32(2), eps=(1,)),
])  # fmt: skip
def test_what_is_in_bounds_passes(fine):
    check_bounds(fine)


@pytest.mark.parametrize(("wrong", "said"), [
    (Outer(train_steps=0), "--train-steps is 0: use a whole number from 1 to 10,000,000."),
    (Outer(train_steps=1.5), "--train-steps is 1.5: use a whole number from 1 to 10,000,000."),
    (Outer(eps=(8 / 255, 8.0)), "--eps is 8.0: use a number above 0 and at most 1, e.g. 8/255."),
    (Outer(radius=1e9), "--radius is 1000000000.0: use a number above 0 and at most 16."),
    (Outer(tau=1.5), "--tau is 1.5: use a number from 0 to 1."), (Outer(tau=math.nan), "--tau is nan: use a number from 0 to 1."),
    (Outer(plain=math.inf), "--plain is inf: use a finite number."), (Outer(whole=2**63), f"--whole is {2**63}: use a whole number from"),
    (Outer(inner=Inner(0.0)), "--inner.ratio is 0.0: use a number above 0 and at most 1."),
    (Outer(inner=Inner(pair=(2.0, 2.0))), "--inner.pair is 2.0: use a number from 0 to 1."),
    (Outer(inner=Inner(pair=(1.0, 0.0))), "--inner.pair is 0.0: use a finite number above 0."),
    (Outer(more=(Inner(), Inner(2.0))), "--more.ratio is 2.0: use a number above 0 and at most 1."),
])  # fmt: skip
def test_what_is_out_of_bounds_is_named_as_on_the_command_line(wrong, said):
    with pytest.raises(UserError) as caught:
        check_bounds(wrong)
    assert str(caught.value).startswith(said)


def test_options_hold_themselves_where_they_are_made_but_not_twice():
    with pytest.raises(UserError, match=r"^Guide\.scale is -1: use a finite number of 0 or more\.$"):
        Guide(-1)
    with pytest.raises(UserError, match="choice is a"):
        Guide(choice="b")
    with pytest.raises(UserError, match=r"^--guide\.scale is nan: use"):
        from_command_line(Guided, args=["--guide.scale", "nan"])
    assert from_command_line(Guided, args=["--guide.scale", "3"]) == Guided(Guide(3.0))
    with pytest.raises(UserError, match="Guide"):  # after that as before
        Guide(math.nan)


@dataclass(frozen=True)
class Schedule(Bounded):
    steps: Count = 10
    warmup: Whole = 4


@dataclass(frozen=True)
class Scheduled:
    """Options."""

    train: Schedule = field(default_factory=Schedule)


def test_a_warm_up_ends_with_the_training_at_the_latest(capsys):
    """So the learning rate reaches its value, and what is written down is what ran."""
    options._say.cache_clear()
    said = "note: a training of 3 updates ends before a warm-up of 4: that is cut to 3.\n"
    assert Schedule().warmup == 4 and Schedule(4).warmup == 4 and not capsys.readouterr().err
    assert Schedule(steps=3) == Schedule(3, 3) == replace(Schedule(), steps=3)
    assert capsys.readouterr().err == said  # once, however often it is made
    options._say.cache_clear()
    assert from_command_line(Scheduled, args=["--train.steps", "3"]) == Scheduled(Schedule(3, 3))
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("given", ["--train.warmup 4 --train.steps 3", "--train.steps=3 --train.warmup=4"])
def test_a_longer_one_that_was_asked_for_is_refused(given, capsys):
    with pytest.raises(UserError, match=r"^--train\.warmup is 4, more than the 3 updates of its training: make it"):
        from_command_line(Scheduled, args=given.split())
    assert not capsys.readouterr().err
    assert from_command_line(Scheduled, args=["--train.warmup", "4"]) == Scheduled()


def test_a_word_is_one_of_those_that_are_known():
    """Wherever it is said, so that no other branch of an `if` stands for all that is unknown."""

    @dataclass(frozen=True)
    class Named(Bounded):
        how: Literal["sgd", "adamw"] | None = "sgd"
        several: tuple[Literal["a", "b"], ...] = ()
        loss: Literal["ce"] | Callable[..., float] = "ce"

    assert Named("adamw", ("a", "b"), max).how == "adamw" and Named(None).how is None
    for wrong, said in (
        ({"how": "adam"}, "how is 'adam': use 'sgd' or 'adamw'."),
        ({"how": 1}, "how is 1: use 'sgd' or 'adamw'."),
        ({"several": ("a", "c")}, "several is 'c': use 'a' or 'b'."),
        ({"several": "a"}, "several is 'a': use a tuple, as in ('a',)."),
        ({"loss": "l2"}, "loss is 'l2': use 'ce', or a function."),
    ):
        with pytest.raises(UserError, match=re.escape(f"Named.{said}")):
            Named(**wrong)


def test_a_function_holds_its_arguments():
    @bounded
    def move(
        x: object,
        *,
        steps: Count,
        size: Weight | None = None,
        decay: Decay = 0.5,
        seed: Seed = 0,
        by: Finite = 0,
        **more: object,
    ) -> tuple:
        """Moves."""
        return x, steps, size, decay, seed, by, more

    assert move(1, steps=2, size=None, other=math.nan) == (1, 2, None, 0.5, 0, 0, {"other": math.nan})
    assert move.__doc__ == "Moves."
    for wrong, said in (
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1, "size": math.nan}, "size is nan: use a finite number of 0 or more"),
        ({"steps": 1, "decay": 1.0}, "decay"),
        ({"steps": 1, "seed": 2**32}, "seed"),
        ({"steps": 1, "by": math.inf}, "by"),
    ):
        with pytest.raises(UserError, match=said):
            move(1, **wrong)
    with pytest.raises(TypeError, match="steps"):
        move(1)
