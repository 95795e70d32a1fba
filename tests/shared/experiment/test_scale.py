"""The command line: scales as presets, fields by name, lengths in 255ths, and mistakes that say what is wrong."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.experiment.scale import parse, plain
from shared.experiment.scales import SCALES
from shared.options import Pixels, fraction, show_eps


@dataclass(frozen=True)
class Attack:
    eps: Pixels = 2 / 255
    steps: int = 10


@dataclass(frozen=True)
class Config:
    """A small paper."""

    seeds: tuple[int, ...] = (0, 1)
    sets: tuple[str, ...] = ("shape", "colour")
    enforce: bool = True
    results: Path = Path("results")
    root: str | None = None
    attack: Attack = field(default_factory=Attack)


PRESETS = {"smoke": Config(seeds=(0,)), "cpu": Config(), "paper": replace(Config(), attack=Attack(1 / 255, 100))}


def read(line: str):
    return parse(PRESETS, "A small paper.", line.split())


@pytest.mark.parametrize(("text", "value"), [
    ("2/255", 2 / 255), ("0.5/255", 0.5 / 255), ("0.0078", 0.0078), ("1", 1.0), ("1e-3", 1e-3), ("0", 0.0), ("-1/2", -0.5),
    (" 4/255 ", 4 / 255)])  # fmt: skip
def test_fractions(text, value):
    assert fraction(text) == value


@pytest.mark.parametrize("text", ["", "two", "2/", "2/0", "1/2/3", "2 255", "nan", "inf", "0x2", "1e999"])
def test_what_is_no_fraction_is_named(text):
    with pytest.raises(ValueError, match="is not a number such as 2/255") as caught:
        fraction(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("eps", "text"), [(2 / 255, "2/255"), (0.5 / 255, "0.5/255"), (1.0, "255/255"), (0.01, "0.01"), (0.3, "76.5/255")]
)
def test_lengths_are_shown_as_people_write_them(eps, text):
    assert show_eps(eps) == text
    assert math.isclose(fraction(show_eps(eps)), eps, rel_tol=1e-5)


def test_a_scale_is_its_preset():
    assert read("") == ("cpu", PRESETS["cpu"])
    for name in PRESETS:
        assert read(f"--scale {name}") == (name, PRESETS[name])
        assert read(f"--scale={name}") == (name, PRESETS[name])
    assert set(PRESETS) <= set(SCALES)


def test_every_field_can_be_set_and_the_rest_stays():
    scale, config = read("--attack.eps 3/255 --scale paper --seeds 4 5 6 --no-enforce --root /data --results /tmp/r")
    assert scale == "paper"
    assert config == Config((4, 5, 6), enforce=False, results=Path("/tmp/r"), root="/data", attack=Attack(3 / 255, 100))
    assert read("--attack.eps 0.02")[1].attack.eps == 0.02


def test_an_empty_list_is_a_list():
    assert read("--sets")[1].sets == ()


@pytest.mark.parametrize(("line", "said"), [
    ("--attack.epz 2/255", "--attack.epz"), ("--sca smoke", "--sca"), ("--seeds 0 stray", "stray"), ("--attack.eps two", "'two'"),
    ("--attack.eps 2/0", "'2/0'"), ("--attack.eps", "--attack.eps"), ("--attack.steps 1.5", "1.5"), ("--seeds one", "one"),
    ("smoke", "smoke"), ("--scale", "--scale")])  # fmt: skip
def test_mistakes_end_with_2_and_name_what_is_wrong(line, said, capsys):
    with pytest.raises(SystemExit) as caught:
        read(line)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err


def test_an_unknown_scale_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"no scale 'small'.*smoke, cpu, paper"):
        read("--scale small")


def test_a_check_may_refuse():
    def refuse(config):
        raise UserError("no.")

    with pytest.raises(UserError, match="no"):
        parse(PRESETS, "", [], refuse)


def test_help_shows_the_scales_own_values(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--scale paper --help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "1/255" in said
    assert "100" in said


def test_plain_is_json_and_tells_configurations_apart():
    before = plain(PRESETS["cpu"])
    assert json.loads(json.dumps(before)) == before
    assert before["attack"] == {"eps": 2 / 255, "steps": 10}
    assert before["results"] == "results"
    assert before["seeds"] == [0, 1]
    assert before["root"] is None
    assert before["enforce"] is True
    assert plain(PRESETS["paper"]) != before
    assert plain({"a": Path("x"), 1: (Attack(),)}) == {"a": "x", "1": [{"eps": 2 / 255, "steps": 10}]}
