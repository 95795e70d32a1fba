"""What looks at open claims measure, on a made-up paper; and that the options every paper doubles are there."""

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared.claims.claims import Claim
from shared.experiment import looks
from shared.experiment.paper import Grid, Number, Paper, named
from shared.experiment.scale import Options
from shared.experiment.step import Measured, Trained, closure

PAPERS = sorted(path.parent.name for path in Path("papers").glob("*/paper.py"))


@dataclass(frozen=True)
class Data:
    n: int = 10


@dataclass(frozen=True)
class Config(Options):
    data: Data = field(default_factory=Data)
    fixed: int = 5


@dataclass(frozen=True)
class Right(Measured):
    method: str
    n: int
    seed: int


def number(c: Config, method: str, seed: int) -> Right:
    return Right(method, c.fixed if method == "fixed" else c.data.n, seed)


def grids(c: Config) -> list[Grid]:
    several = {m: {"method": m} for m in ("ours", "theirs", "fixed")}
    return [Grid(several, {"": {}}, seeds=c.seeds), Grid({"once": {"method": "once", "seed": 0}}, {"": {}})]


shown = SimpleNamespace(numbers=SimpleNamespace(grids=grids))
PAPER = Paper("p", {}, lambda c: None, [shown], number, named("method", "seed{}"))


def claim(id: str, method: str, other: str | None = None) -> Claim:
    compared = (
        {"predicate": "greater", "minus": {"method": other}} if other else {"predicate": "at_least", "threshold": 1}
    )
    return Claim(id=id, text="t", where="ours", source="s", mark="D", value=None, unit="share", testable=("cpu", "photos", "paper"),
                 quantity={"method": method}, **compared)  # fmt: skip


CLAIMS = [claim("two", "ours", "theirs"), claim("fixed", "fixed"), claim("once", "once")]


def asked(**paths: list[str]) -> tuple[dict, dict]:
    there, more = looks.numbers(PAPER, Config(), CLAIMS, paths)
    return there, {at: {(n.step.method, n.step.n, n.step.seed) for n in new.values()} for at, new in more.items()}


def test_nothing_is_measured_that_nobody_asks_for():
    assert asked() == ({}, {}) and asked(two=[]) == ({"two": []}, {})


def test_a_look_doubles_the_pictures_or_the_seeds_of_its_claim_alone():
    there, more = asked(two=["pictures", "seeds"])
    both = ("ours", "theirs")
    assert there == {"two": ["pictures", "seeds"]}
    assert more == {
        (1, 0): {(m, 20, s) for m in both for s in (0, 1, 2)},
        (1, 1): {(m, 20, s) for m in both for s in (3, 4, 5)},
    }
    _, more = asked(two=["seeds", "pictures"])
    assert more == {
        (0, 1): {(m, 10, s) for m in both for s in (3, 4, 5)},
        (1, 1): {(m, 20, s) for m in both for s in range(6)},
    }


def test_what_brings_nothing_new_is_replaced_and_ends():
    there, more = asked(fixed=["pictures", "pictures"], once=["seeds", "seeds", "seeds", "seeds"])
    assert there == {"fixed": ["seeds", "seeds"], "once": ["pictures"] * 3}
    assert more[0, 1] == {("fixed", 5, s) for s in (3, 4, 5)} and more[0, 2] == {("fixed", 5, s) for s in range(6, 12)}
    assert more[3, 0] == {("once", 80, 0)}
    alone = replace(PAPER, examples=())
    assert looks.numbers(alone, Config(), CLAIMS, {"once": ["pictures"]}) == ({"once": []}, {})


def test_what_is_asked_for_is_kept(tmp_path):
    assert looks.asked(tmp_path) is None
    looks.ask(tmp_path, {})
    assert looks.asked(tmp_path) == {}
    looks.ask(tmp_path, {"two": ["seeds"]})
    assert looks.asked(tmp_path) == {"two": ["seeds"]}


@pytest.mark.parametrize("name", PAPERS)
def test_the_options_of_every_paper_are_there_and_change_no_training(name):
    paper = importlib.import_module(f"papers.{name}.paper").PAPER
    config = paper.presets["cpu"]
    larger = looks.doubled(config, paper.examples, 1, 1)
    assert larger.data.n == 2 * config.data.n and larger.seeds[:3] == config.seeds and len(larger.seeds) == 6
    assert looks.doubled(config, paper.examples, 0, 0) == config
    before, after = ({n.name: n for n in paper.plan(c)} for c in (config, looks.doubled(config, paper.examples, 1, 0)))
    assert before.keys() == after.keys() and all(before[n].tags == after[n].tags for n in before)
    trained = (
        {s for s in closure(n.step for n in plan.values()) if isinstance(s, Trained)} for plan in (before, after)
    )
    assert next(trained) == next(trained)


def test_a_number_is_the_papers_own():
    assert isinstance(next(iter(looks.numbers(PAPER, Config(), CLAIMS, {"two": ["seeds"]})[1][0, 1].values())), Number)
