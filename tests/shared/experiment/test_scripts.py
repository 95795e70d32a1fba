"""train and evaluate of a toy paper: continued, side by side, locked, spoilt, read-only."""

import errno
import fcntl
import json
import platform
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared.data.catalogue import Source
from shared.errors import UserError, run_main
from shared.experiment import scripts, source
from shared.experiment.launch.__main__ import finished_before
from shared.experiment.paper import Gate, Grid, Paper, named
from shared.experiment.scale import Options
from shared.experiment.status import status
from shared.experiment.step import Kept, Measured, Trained, Values
from shared.report.data import Results
from shared.report.shown import Shown, table

MADE: list[str] = []


@dataclass(frozen=True)
class Data:
    source: Source = field(default_factory=Source)


@dataclass(frozen=True)
class Gates:
    enforce: bool = True
    least: float = 0.0


@dataclass(frozen=True)
class Config(Options):
    """A toy."""

    seeds: tuple[int, ...] = (0, 1)
    data: Data = field(default_factory=Data)
    gates: Gates = field(default_factory=Gates)
    value: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Grown(Trained):
    value: float
    seed: int

    @property
    def name(self) -> str:
        return f"grown__seed{self.seed}"

    def make(self, lab):
        MADE.append(self.name)
        return {"w": torch.full((4,), self.value + self.seed)}


@dataclass(frozen=True)
class Pictures(Kept):
    base: Grown

    @property
    def name(self) -> str:
        return f"pictures__seed{self.base.seed}"

    def make(self, lab):
        MADE.append(self.name)
        return {"x": lab.weights(self.base)["w"] * 2}


@dataclass(frozen=True)
class Level(Measured):
    seen: Pictures
    offset: float

    def make(self, lab) -> Values:
        return Values(lab.weights(self.seen)["x"].numpy() + self.offset, "points", extra={"curve": np.arange(3)})


@dataclass(frozen=True)
class Given(Measured):
    value: float

    def make(self, lab) -> Values:
        return Values(np.full(4, self.value), "points")


def number(c: Config, kind: str, method: str = "", seed: int | None = None, point: float = 0.0) -> Measured:
    return Given(c.value) if kind == "gate" else Level(Pictures(Grown(c.value, seed)), c.offset + point)


@table
def levels(c):
    return Shown(
        {"grown": {"method": "grown"}}, {str(p): {"point": p} for p in (0.0, 1.0)}, {"kind": "level"}, c.seeds, factor=1
    )


def headline(c):
    return [Grid({"grown": {"method": "grown"}}, {"0": {"point": 0.0}}, {"kind": "level"}, c.seeds)]


def gates(c: Config) -> list[Gate]:
    return [
        Gate(
            "the value",
            Grid({"": {}}, {"": {}}, {"kind": "gate"}, (None,)),
            ">=",
            lambda lab: c.gates.least,
            lambda lab: str(lab.device),
        )
    ]


PAPER = Paper(
    "toy",
    {"smoke": Config()},
    lambda c: None,
    [SimpleNamespace(levels=levels, headline=headline)],
    number,
    named("kind", "method", "seed{}", "point{:g}"),
    gates=gates,
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*options): both scripts (or that of `script`); returns what they printed. A UserError passes through."""
    monkeypatch.setitem(sys.modules, "papers.toy.paper", SimpleNamespace(PAPER=PAPER))
    MADE.clear()

    def call(*options: object, script: str = "") -> str:
        for name in (script,) if script else ("train", "evaluate"):
            scripts.run("toy", name, "A toy.", ["--scale", "smoke", "--results", str(tmp_path), *map(str, options)])
        said = capsys.readouterr()
        return said.out + said.err

    call.root = tmp_path / "smoke" / "toy"
    call.forget = lambda: [p.unlink() for p in (call.root / "finished").glob("*")]
    return call


CLAIM = """paper: toy
title: A toy
claims:
- {id: up, text: Further is more., where: ours, source: us, mark: D, value: none, unit: points, predicate: greater,
   quantity: {kind: level, point: %s}, minus: {point: 0.0}, testable: [cpu], why_not: Small., headline: %s}
"""


def test_a_claim_that_nothing_planned_fits_is_refused_before_anything_is_trained(run, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setitem(PAPER.presets, "cpu", Config())
    (tmp_path / "papers" / "toy").mkdir(parents=True)

    def claims(point: float, is_headline: bool = False, headline: bool = False) -> tuple:
        text = CLAIM % (point, str(is_headline).lower())
        (tmp_path / "papers" / "toy" / "claims.yaml").write_text(text)
        return scripts.claims_of(PAPER, "cpu", headline)

    assert [claim.id for claim in claims(1.0)] == ["up"] and claims(1.0, headline=True)
    for wrong in ((1.0, True, True), (2.0,)):  # the headline plan has no second point
        with pytest.raises(
            UserError, match=r"claims.yaml: nothing that is measured at scale cpu fits claim up: \{kind: l"
        ):
            claims(*wrong)
    with pytest.raises(UserError, match="fits claim up"):
        run("--scale", "cpu", script="train")
    assert not MADE
    claims(1.0)
    assert "training: 1 runs, 0 already there" in run("--scale", "cpu", "--seeds", 0, script="train")


def values(run) -> dict[str, float]:
    return {m.slug: m.value for m in Results.load(run.root.parent.parent, "smoke", "toy").measurements}


WHOLE = {"gate": 1.0, **{f"level__grown__seed{s}__point{p}": 2.0 * (1 + s) + p for s in (0, 1) for p in (0, 1)}}


def test_everything_is_made_once_and_shown(run):
    said = run()
    assert "training: 2 runs, 0 already there" in said and "evaluation: 5 measurements, 0 already there" in said
    assert sorted(MADE) == ["grown__seed0", "grown__seed1", "pictures__seed0", "pictures__seed1"]
    assert values(run) == WHOLE
    results = Results.load(run.root.parent.parent, "smoke", "toy")
    facts = {"name": "the value", "value": 1.0, "threshold": 0.0, "sense": ">=", "detail": "cpu", "of": {}}
    assert results.gates == [{**facts, "passed": True}]
    drawn = levels(results)
    assert [cell.value for cell in drawn.rows[0][1]] == [3.0, 4.0]  # means over both seeds
    assert {tuple(m.extra["curve"]) for m in results.select(kind="level")} == {(0, 1, 2)}


@pytest.mark.parametrize("noted", [True, False])
def test_a_second_run_makes_nothing_and_writes_nothing(run, noted):
    run()
    if not noted:
        run.forget()
    before = {
        p: p.stat().st_mtime_ns
        for p in run.root.rglob("*")
        if p.is_file() and p.parent.name != "finished" and p.name != ".lock"
    }
    said = run()
    assert "2 runs, 2 already there" in said and "5 measurements, 5 already there" in said
    assert len(MADE) == 4
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_the_launcher_knows_what_has_finished(run, tmp_path):
    command = ["-m", "papers.toy.evaluate", "--scale", "smoke", "--results", str(tmp_path)]
    assert finished_before(command) is None
    run()
    assert finished_before(command) == "evaluation: 5 measurements, 5 already there"
    assert finished_before([*command, "--value", "2"]) is None
    next(run.root.glob("measurements/*.npz")).unlink()
    assert finished_before(command) is None
    assert finished_before(["-m", "papers.toy.bench"]) is None


def test_two_settings_stay_side_by_side(run):
    run()
    said = run("--offset", 5)
    assert "2 runs, 2 already there" in said and "5 measurements, 1 already there" in said
    assert values(run)["level__grown__seed0__point0"] == 7.0
    said = run()
    assert "5 measurements, 5 already there" in said
    assert values(run) == WHOLE
    assert len(MADE) == 4
    run("--value", 3)
    run.forget()
    assert "2 runs, 2 already there" in run() and len(MADE) == 8


def test_the_headline_after_the_whole_shows_the_whole(run):
    assert "3 measurements, 0 already there" in run("--headline")
    assert run_plan(run)["headline"] is True
    assert len(values(run)) == 3
    run()
    assert "3 measurements, 3 already there" in run("--headline")
    assert values(run) == WHOLE
    assert run_plan(run)["headline"] is False
    run("--headline", "--offset", 5)  # of other settings, only what is measured
    assert len(values(run)) == 3


def run_plan(run) -> dict:
    return json.loads((run.root / "plan.json").read_text())


def test_a_failed_gate_stops_the_evaluation_and_is_recorded(run):
    for _ in range(2):
        with pytest.raises(UserError, match=r"do not pass their gates: the value is 1.000, must be >= 2.000"):
            run("--gates.least", 2)
    assert values(run) == {"gate": 1.0}
    assert not (run.root / "finished").is_dir() or not list((run.root / "finished").glob("evaluate*"))
    run("--gates.least", 2, "--gates.no-enforce")
    assert values(run) == WHOLE


def test_a_gate_may_read_a_difference_or_a_share(run, monkeypatch):
    def level(point: float) -> Grid:
        return Grid({"grown": {"method": "grown"}}, {"": {"point": point}}, {"kind": "level"})

    def gates(c: Config) -> list[Gate]:
        one = Grid({"": {}}, {"": {}}, {"kind": "gate"}, (None,))
        more = {
            "less": {"minus": level(0.0)},
            "share": {"share_of": level(0.0)},
            "share of nothing": {"share_of": level(-2.0)},
        }
        return [Gate(name, one, "<=", 1.0, **other) for name, other in more.items()]

    monkeypatch.setitem(sys.modules, "papers.toy.paper", SimpleNamespace(PAPER=replace(PAPER, gates=gates)))
    run()
    found = {g["name"]: g["value"] for g in Results.load(run.root.parent.parent, "smoke", "toy").gates}
    assert found == {"less": 1.0 - 2.0, "share": 1.0 / 2.0, "share of nothing": 1.0}


def test_evaluation_without_training_is_one_sentence(run):
    with pytest.raises(UserError, match=r"grown__seed0 is missing or of another configuration: run the training"):
        run(script="evaluate")
    assert not (run.root / "plan.json").exists()


def test_two_runs_at_once_are_refused_with_the_name_of_the_first(run):
    run()
    run.forget()
    with open(run.root / ".lock", "r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.truncate(0)
        other.write("process 7 on elsewhere")
        other.flush()
        with pytest.raises(UserError, match=r"another run is at work in .*toy: process 7 on elsewhere"):
            run()
    assert "5 already there" in run()


def test_runs_that_join_share_a_folder_and_one_that_does_not_is_refused(run):
    with scripts.locked(run.root, join=True):
        run("--join")
        with pytest.raises(UserError, match=r"another run is at work in .*; runs that all have --join may share one"):
            run()
    with scripts.locked(run.root), pytest.raises(UserError, match=r"another run is at work"):
        run("--join", "--seeds", 3)
    assert values(run) == WHOLE


def spoil_npz(path):
    content = bytearray(path.with_suffix(".npz").read_bytes())
    content[len(content) // 2] ^= 255
    path.with_suffix(".npz").write_bytes(content)


def spoil_value(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "value": 0.5}))


def spoil_tags(path):
    path.write_text(path.read_text().replace('"grown"', '"other"'))


@pytest.mark.parametrize(
    "spoil", [spoil_npz, spoil_value, spoil_tags, lambda p: p.write_text(""), lambda p: p.with_suffix(".npz").unlink()]
)
def test_a_spoilt_measurement_is_measured_again(run, spoil):
    run()
    spoil(next(run.root.glob("measurements/level__grown__seed1__point1*.json")))
    assert len(values(run)) == 4  # a page does not show it
    said = run()
    assert "5 measurements, 4 already there" in said
    assert "note: the measurement" in said
    assert values(run) == WHOLE


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 1}', '{"keys": {}, "paper": "other"}'])
def test_a_spoilt_plan_is_refused_and_made_again(run, content):
    run()
    (run.root / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan.json .*run `make reproduce-toy SCALE=smoke` again"):
        values(run)
    run()
    assert values(run) == WHOLE


def test_finished_results_that_cannot_be_written_are_shown(run, monkeypatch):
    run()
    run.forget()

    def refuse(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(scripts, "open", refuse, raising=False)
    for module in ("shared.files", "shared.experiment.store"):
        monkeypatch.setattr(f"{module}.atomic_path", refuse)
    assert "5 measurements, 5 already there" in run()
    with pytest.raises(SystemExit):
        run_main(lambda: run("--value", 9))


def test_what_fails_is_named_with_its_machine(run, monkeypatch, capsys):
    def fails(self, lab):
        raise UserError("it cannot be made.")

    for cls, what in ((Grown, "training: grown__seed0"), (Pictures, "preparation: pictures__seed0")):
        with monkeypatch.context() as patched, pytest.raises(UserError, match="it cannot be made"):
            patched.setattr(cls, "make", fails)
            run("--join")
        assert f"{what} failed on {platform.node()}\n" in capsys.readouterr().err


def test_status_says_what_is_there_and_what_the_rest_would_take(run, tmp_path):
    def said(*options: str) -> list[str]:
        return status("toy", ["--scale", "smoke", "--results", str(tmp_path), *options]).splitlines()

    first = said()
    assert first[:2] == ["toy at SCALE=smoke", "  trainings          0 of 2, 2 missing: unknown processor time"]
    assert "  level              0 of 4, 4 missing: unknown processor time" in first
    assert first[-1] == "  all numbers        0 of 5, 5 missing: unknown processor time" and MADE == []
    run()
    assert [line.split(" of ")[0].split() for line in said()[1:]] == [
        ["trainings", "2"], ["preparations", "2"], ["gate", "1"], ["level", "4"], ["all", "numbers", "5"]]  # fmt: skip
    next((tmp_path / "smoke" / "toy" / "measurements").glob("level*.json")).unlink()
    assert "  level              3 of 4, 1 missing: 0:00:00 processor time" in said()
    first, second = sorted((tmp_path / "smoke" / "toy" / "checkpoints").glob("pictures*.json"))
    there = json.loads(first.read_text())
    assert 0 <= there["seconds"] < 600
    first.write_text(json.dumps(there | {"seconds": 90.0}))
    second.unlink()
    assert said()[2] == "  preparations       1 of 2, 1 missing: 0:01:30 processor time"
    first.write_text(json.dumps(there | {"seconds": None}))  # as it was left by older versions
    assert said()[2] == "  preparations       1 of 2, 1 missing: unknown processor time"
    assert "missing" in said("--value", "2")[1]  # other settings are another run
