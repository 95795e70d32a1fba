"""What steps leave: kept whole or not at all, found again, refused where it is damaged or no number; shared out over processes."""

import contextlib
import subprocess
import sys
import threading
from dataclasses import dataclass
from queue import Queue
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment import lab as lab_module
from shared.experiment import scripts
from shared.experiment.claimed import Claims
from shared.experiment.lab import Lab
from shared.experiment.paper import Number
from shared.experiment.step import Kept, Measured, Trained, Values, free, key
from shared.rng import generator


def one_process(**changes) -> SimpleNamespace:
    alone = {
        "device": torch.device("cpu"),
        "num_processes": 1,
        "is_main_process": True,
        "wait_for_everyone": lambda: None,
    }
    return SimpleNamespace(**{**alone, **changes})


@dataclass(frozen=True)
class Grown(Trained):
    value: float
    label: str = free("grown")
    made: ClassVar[list] = []

    @property
    def name(self) -> str:
        return self.label

    @property
    def parts(self) -> tuple[str, ...]:
        return ("", "half")

    def make(self, lab):
        self.made.append(self)
        lab.keep(self, {"w": torch.full((3,), self.value / 2)}, "half")
        return {"w": torch.full((3,), self.value)}, {"note": "as told"}


@dataclass(frozen=True)
class Shifted(Kept):
    base: Grown

    def make(self, lab):
        return {"w": lab.weights(self.base)["w"] + 1}


@dataclass(frozen=True)
class Level(Measured):
    base: Grown
    offset: float = 0.0

    def make(self, lab) -> Values:
        return Values(lab.weights(self.base)["w"].numpy() + self.offset, "points")


@pytest.fixture
def lab(tmp_path):
    Grown.made.clear()
    return Lab(tmp_path, Source(), one_process())


def again(lab: Lab) -> Lab:
    """Another process on the same folder."""
    return Lab(lab.root, lab.source, lab.accelerator)


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_what_is_made_is_there_for_every_process_and_not_made_again(lab):
    step = Shifted(Grown(2.0))
    assert not lab.is_made(step)
    lab.make([step])
    other = again(lab)
    assert other.is_made(step)
    assert other.weights(step)["w"].tolist() == [3.0] * 3
    assert other.weights(step.base, "half")["w"].tolist() == [1.0] * 3
    assert other.facts(step.base) == {"note": "as told"}
    other.make([step])
    assert Grown.made == [step.base]
    assert not list(lab.root.rglob("*.ckpt"))


def test_what_another_paper_has_made_of_a_shared_step_is_taken_over_while_it_is_whole(tmp_path, monkeypatch):
    first, second, third = (Lab(tmp_path / name, Source(), one_process()) for name in ("first", "second", "third"))
    step = Grown(2.0)
    first.make([step])
    second.make([step])
    assert Grown.made[-2:] == [step, step]  # it is nobody else's
    monkeypatch.setattr(Grown, "shared", True)
    third.make([step])
    assert Grown.made[-2:] == [step, step] and third.facts(step) == {"note": "as told"}
    assert third.fingerprint(step) == first.fingerprint(step)
    for other in (first, second, third):
        flip(other.path(step))
    fourth = Lab(tmp_path / "fourth", Source(), one_process())
    before = len(Grown.made)
    fourth.make([step])
    assert len(Grown.made) == before + 1


def test_a_key_cannot_be_asked_for_before_what_it_holds_is_there(lab):
    with pytest.raises(UserError, match=r"is missing: run the training"):
        lab.key(Shifted(Grown(2.0)))


def test_a_key_says_who_drew_and_how_exactly_where_it_was_not_the_cpu_in_fp32(lab):
    before = lab.key(Grown(1.0))
    try:
        drawn_there = Lab(lab.root, lab.source, lab.accelerator, draws="device").key(Grown(1.0))
    finally:
        assert again(lab).key(Grown(1.0)) == before == key(Grown(1.0), lab)  # draws as before, too
    half = Lab(lab.root, lab.source, one_process(mixed_precision="bf16")).key(Grown(1.0))
    assert len({before, drawn_there, half}) == 3 and generator("cpu") == "mt19937"


def test_two_settings_stay_side_by_side(lab):
    one, two = Grown(1.0), Grown(2.0)  # of one name
    lab.make([one])
    lab.make([two])
    lab.make([one])
    assert Grown.made == [one, two]
    assert (lab.weights(one)["w"][0], lab.weights(two)["w"][0]) == (1.0, 2.0)


def test_a_flipped_byte_is_found_and_mended(lab, capsys):
    step = Grown(2.0)
    lab.make([step])
    flip(lab.path(step, "half"))
    other = again(lab)
    with pytest.raises(UserError, match=r"is not as it was written"):
        other.weights(step, "half")
    assert not other.is_made(step)
    assert "will be made again" in capsys.readouterr().err
    other.make([step])
    assert other.weights(step, "half")["w"].tolist() == [1.0] * 3


def test_other_weights_of_equal_length_are_other_weights(lab):
    """Even where they are whole: what depends on them has another key."""
    step = Shifted(Grown(2.0))
    lab.make([step])
    before = lab.key(step)
    other = again(lab)
    other.keep(step.base, {"w": torch.full((3,), 7.0)}, "")
    assert other.key(step) != before
    assert not other.is_made(step)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(lab, value):
    with pytest.raises(UserError, match="what grown has left holds a NaN or an infinite number"):
        lab.make([Grown(value)])
    assert not list(lab.root.rglob("grown*"))


def test_values_that_are_not_finite_are_refused(lab):
    base, saved = Grown(2.0), []
    lab.make([base])
    numbers = [Number(f"n{offset}", Level(base, offset), {}, {}) for offset in (0.0, float("nan"))]
    with pytest.raises(UserError, match=r"nnan: 3 of 3 values are not finite: nothing is stored"):
        lab.measure(numbers, lambda number, values, seconds: saved.append((number.name, values.values.tolist())))
    assert saved == [("n0.0", [2.0] * 3)]


def test_what_is_cached_has_room_and_the_latest_stay(lab):
    made = []

    def ask(name: str, floats: int) -> None:
        lab.once(name, lambda: made.append(name) or {"x": [torch.zeros(floats), np.zeros(1)]})

    lab.room = 4 * 5000
    ask("small", 1)
    for name in "abab":
        ask(name, 2000)
    assert made == ["small", "a", "b"]  # both fit
    ask("c", 2000)  # a was not asked for the longest
    ask("b", 2000)
    ask("small", 1)
    assert made == ["small", "a", "b", "c"]
    ask("a", 2000)
    assert made[-1] == "a"


def test_every_turn_goes_to_one_process(monkeypatch):
    ports = Queue()

    def broadcast(given: list) -> list:
        if given[0] is not None:
            ports.put(given[0])
        return given if given[0] is not None else [ports.get(timeout=30)]

    monkeypatch.setattr(lab_module, "broadcast_object_list", broadcast)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    turns = [lab_module._Turns(one_process(num_processes=2, is_main_process=first)) for first in (True, False)]
    taken: list[list] = [[], []]

    def work(k: int) -> None:
        for count in (40, 0, 7):
            taken[k].append(list(turns[k].of(count)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for count, a, b in zip((40, 0, 7), *taken, strict=True):
        assert sorted(a + b) == list(range(count))


HOLD = """
import sys
from pathlib import Path
from shared.experiment.claimed import Claims
claims = Claims(Path(sys.argv[1]))
print(*map(claims.take, sys.argv[2:]), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(root, *keys):
    """Another process that has taken these keys."""
    command = [sys.executable, "-c", HOLD, root, *keys]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().split() == ["True"] * len(keys)
        yield process
        process.kill()


def test_what_another_process_has_taken_is_free_once_it_is_killed(tmp_path):
    claims = Claims(tmp_path)
    with held_elsewhere(tmp_path, "a", "b") as process:
        assert [claims.take(key) for key in "abc"] == [False, False, True]
        process.kill()
        process.wait()
        assert claims.take("a")
    claims.give_back("a")
    with held_elsewhere(tmp_path, "a"):
        assert not claims.take("a")


def test_runs_that_joined_make_what_is_free_first_and_then_what_a_killed_one_left(lab, monkeypatch):
    joined = Lab(lab.root, lab.source, lab.accelerator, join=True)
    steps = [Grown(float(k), f"step {k}") for k in range(3)]
    with held_elsewhere(lab.root, joined.key(steps[0]), joined.key(steps[1])) as process:
        lab.make([steps[1]])  # by the other run
        monkeypatch.setattr(lab_module.time, "sleep", lambda _: process.kill())
        joined.make(steps)
    assert Grown.made == [steps[1], steps[2], steps[0]]
    numbers = [Number(f"n{k}", Level(step), {}, {}) for k, step in enumerate(steps)]
    saved = []

    def keep(number: Number, values: Values, seconds: float) -> None:
        saved.append(number.name)
        scripts.keep(joined, number, values, seconds)

    joined.measure(numbers, keep)
    assert sorted(saved) == ["n0", "n1", "n2"]
    joined.measure(numbers, lambda *made: saved.append("again"))
    assert len(saved) == 3
