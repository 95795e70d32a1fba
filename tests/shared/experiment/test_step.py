"""Keys follow from fields, contents and sources; what is free does not count."""

from dataclasses import dataclass

import pytest

from shared.experiment.step import Kept, Measured, Step, Trained, closure, content, depth, free, key, needs, parts


class Lab:
    """Enough of a Lab for keys."""

    def __init__(self, left: str = "weights"):
        self.left = left

    def fingerprint(self, step: Step) -> str:
        return f"{key(step, self)} {self.left}"

    def identity(self, leaf: "File") -> str:
        return leaf.identity(self)


@dataclass(frozen=True)
class File:
    """A leaf that is known by what is in it."""

    path: str
    inside: str = "contents"

    def identity(self, lab: Lab) -> str:
        return self.inside


@dataclass(frozen=True)
class Recipe:
    lr: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.99)
    every: int = free(0)


@dataclass(frozen=True)
class Fit(Trained):
    data: File
    recipe: Recipe = Recipe()
    seed: int = 0
    label: str = free("")


@dataclass(frozen=True)
class Better(Kept):
    base: Fit | None
    others: tuple[Fit, ...] = ()


@dataclass(frozen=True)
class Score(Measured):
    model: Better
    data: File


FIT = Fit(File("a"))


def test_every_field_counts_but_those_that_are_free():
    lab, before = Lab(), key(FIT, Lab())
    changed = [
        Fit(File("a"), seed=1),
        Fit(File("a"), Recipe(lr=0.2)),
        Fit(File("a"), Recipe(betas=(0.9,))),
        Fit(File("a", "other contents")),
    ]
    assert len({before, *(key(step, lab) for step in changed)}) == 5
    same = [Fit(File("a"), Recipe(every=7)), Fit(File("a"), label="named"), Fit(File("moved elsewhere"))]
    assert {key(step, lab) for step in same} == {before}


def test_the_class_and_its_version_count():
    @dataclass(frozen=True)
    class Raised(Fit):
        version = 2

    @dataclass(frozen=True)
    class Other(Fit):
        pass

    assert len({key(kind(File("a")), Lab()) for kind in (Fit, Raised, Other)}) == 3


def test_what_a_step_needs_counts_by_what_it_left():
    assert key(Better(FIT), Lab("weights")) != key(Better(FIT), Lab("other weights"))


@pytest.mark.parametrize("wrong", [len, {"a": 1}, {1}, object()], ids=["function", "dict", "set", "object"])
def test_what_cannot_be_told_apart_is_no_field(wrong):
    with pytest.raises(TypeError, match="a step cannot depend on a"):
        content(wrong, Lab())


def test_needs_are_found_however_deep_and_come_first():
    score = Score(Better(FIT, (Fit(File("b")), FIT)), File("c"))
    assert list(needs(score.model)) == [FIT, Fit(File("b")), FIT]
    order = closure([score, FIT])
    assert order == [FIT, Fit(File("b")), score.model, score]
    assert [depth(step) for step in order] == [0, 0, 1, 2]
    assert {part.path for part in parts(score) if isinstance(part, File)} == {"a", "b", "c"}
    assert score.group == score.model  # what it needs last
