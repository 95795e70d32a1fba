"""What make does once the environment is there: its variables, which papers and scripts, and that a launcher which runs nothing is noticed."""

import importlib
import sys
from pathlib import Path

import pytest

from shared.errors import DONE, UserError
from shared.experiment import make
from shared.experiment.scales import ROOT, scales


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[list[str]]:
    """What the scripts are asked to do, in a place with two papers, of which `beta` has no photographs; all end well."""
    for paper, presets in (("alpha", "smoke cpu photos"), ("beta", "smoke cpu")):
        folder = tmp_path / "papers" / paper
        folder.mkdir(parents=True)
        (folder / "train.py").touch()
        (folder / "config.py").write_text(
            f"PRESETS = {{{', '.join(f'{scale!r}: None' for scale in presets.split())}}}\n"
        )
    (tmp_path / "papers" / "alpha" / "bench.py").touch()
    calls: list[list[str]] = []

    def start(command, device, gpus):
        calls.append(list(command))
        return 0

    def supervise(commands, environments):
        calls.append(commands[0][1:] if commands[0][0] == sys.executable else commands[0])
        return 0

    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr(make, "start", start)
    monkeypatch.setattr(make, "supervise", supervise)
    for function in ("scales", "check_scale", "refuse_unreadable"):
        one = getattr(make, function)
        monkeypatch.setattr(make, function, lambda *given, one=one: one(*given, papers=tmp_path / "papers"))
    return calls


@pytest.fixture
def run(asked, tmp_path, monkeypatch):
    def call(goal: str, **given: str) -> list[list[str]]:
        words = [f"{name}={value}" for name, value in {"RESULTS": str(tmp_path / "r"), **given}.items()]
        monkeypatch.setattr(sys, "argv", ["make", goal, *words])
        asked.clear()
        make.main()
        return asked

    return call


def test_a_paper_is_trained_evaluated_and_drawn(run, tmp_path):
    options = [
        "--scale",
        "cpu",
        "--seeds",
        "0",
        "1",
        "--data-root",
        "/my pictures",
        "--results",
        str(tmp_path / "r"),
        "--attack.eps",
        "2/255",
    ]
    given = {"SEEDS": "0 1", "DATA_ROOT": "/my pictures", "ARGS": "--attack.eps 2/255", "SET": "digits=1 name='a b'"}
    settings = ["--set", "digits=1", "--set", "name=a b", *options[:2], *options[-4:-2]]
    assert run("reproduce-beta", **given) == [
        ["-m", "shared.report.page", "beta", "--check", *settings],  # a mistake there is said before hours of work
        ["-m", "papers.beta.train", *options], ["-m", "papers.beta.evaluate", *options],
        ["-m", "shared.report.page", "beta", *settings]]  # fmt: skip
    assert all("--headline" in call for call in run("headline-beta") if call[1].startswith("papers"))
    assert [call[1] for call in run("figures-beta")] == ["shared.report.page"]
    assert run("status-beta", **given) == [["-m", "shared.experiment.status", "beta", *options]]
    assert [call[2] for call in run("status", SCALE="photos")] == ["alpha"]


def test_a_budget_goes_on_at_open_claims_until_nothing_is_asked_for(run, asked, tmp_path, monkeypatch):
    root, wants = tmp_path / "r" / "cpu", iter(["{}", '{"c": ["pictures"]}', '{"c": ["pictures", "seeds"]}'])

    def supervise(commands, environments):
        call = commands[0][1:]
        asked.append(call)
        if call[1] == "shared.report.looks":
            (root / "beta").mkdir(parents=True, exist_ok=True)
            path = root / "beta" / "looks.json"
            path.write_text(next(wants, path.read_text() if path.is_file() else ""))
        return 0

    monkeypatch.setattr(make, "supervise", supervise)
    measured, look = ["papers.beta.train", "papers.beta.evaluate"], "shared.report.looks"
    calls = run("reproduce-beta", BUDGET="1")
    assert [call[1] for call in calls] == [
        look,
        *measured,
        look,
        *measured,
        look,
        *measured,
        look,
        "shared.report.page",
    ]
    seconds = [float(call[call.index("--seconds") + 1]) for call in calls if call[1] == look]
    assert seconds[0] == 0 and all(50 < left <= 60 for left in seconds[1:])
    with pytest.raises(UserError, match="BUDGET takes a whole number of minutes"):
        run("reproduce-beta", BUDGET="soon")
    assert [call[1] for call in run("figures-beta", BUDGET="5")] == ["shared.report.page"]


def test_results_among_the_arguments_are_those_of_the_page_too(run, tmp_path):
    train, _, drawn = run("reproduce-beta", ARGS=f"--attack.steps 3 --results {tmp_path}/other")
    assert (
        train[-5:] == ["cpu", "--results", f"{tmp_path}/other", "--attack.steps", "3"]
        and drawn[-1] == f"{tmp_path}/other"
    )


def test_a_row_of_ones_own_reaches_the_scripts_of_its_paper(run):
    train, evaluate, drawn = run("reproduce-alpha", OBJECTIVE="my:Mine")
    (said,) = run("status-alpha", DEFENCE="my:Mine")
    assert said[1:3] == ["shared.experiment.status", "alpha"]
    assert all(call[call.index("--yours") + 1] == "my:Mine" for call in (train, evaluate, said))
    assert "--yours" not in drawn


def test_when_each_stage_began_is_noted(run, tmp_path):
    run("headline-alpha")
    run("figures-alpha")
    noted = [line.split() for line in (tmp_path / "r" / "cpu" / "alpha" / "times.txt").read_text().splitlines()]
    assert [line[1:] for line in noted] == [["headline", stage] for stage in ("train", "evaluate", "page", "end")]
    assert int(noted[0][0]) > 1_700_000_000


def test_all_papers_are_those_with_the_scale(run, capsys):
    assert [call[1:3] for call in run("reproduce", SCALE="photos")][2:] == [
        ["shared.report.page", "alpha"],
        ["shared.report.overview", "--scale"],
    ]
    assert "beta is left out: it has no SCALE=photos, only smoke, cpu\n" in capsys.readouterr().out
    assert len(run("reproduce")) == 7
    assert [call[1] for call in run("overview", SCALE="photos")] == ["shared.report.overview"]
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(("goal", "given", "said"), [
    ("reproduce-gamma", {}, "there is no paper 'gamma' with a train.py; there is: alpha beta"),
    ("figures-beta", {"SCALE": "photos"}, "beta has no SCALE=photos; it has smoke, cpu."),
    ("bench-beta", {}, "beta has no benchmarks of its own; alpha have"),
    ("reproduce-alpha", {"DEVICE": "gpu", "GPUS": "2"}, "use DEVICE=gpus"),
    ("reproduce-alpha", {"LAUNCH": "no-such-program -n 2"}, "there is no program no-such-program"),
    ("reproduce-alpha", {"SEEDS": str(2**63)}, "SEEDS takes whole numbers"),
    ("reproduce-alpha", {"ARGS": "--scale smoke"}, "ARGS says --scale smoke, and pages are drawn of SCALE=cpu: say SCALE=smoke"),
    ("reproduce-alpha", {"ARGS": "--results"}, "ARGS=--results: argument --results: expected one argument"),
    ("reproduce", {"DEFENCE": "my:Mine"}, "is a row of one paper: give it to make reproduce-<paper>"),
    ("figures-alpha", {"METHOD": "my:Mine"}, "is a row of one paper"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(run, asked, goal, given, said):
    with pytest.raises(UserError, match=said):
        run(goal, **given)
    assert asked == []


def test_results_that_cannot_be_written_are_refused_before_anything_runs(run, asked, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    refused = {
        "file": "a file where",
        "file/below": "Not a directory",
        "loop": "a link to nowhere",
        "loop/below": "cannot",
    }
    for where, said in refused.items():
        with pytest.raises(UserError, match=said):
            run("reproduce-alpha", RESULTS=str(tmp_path / where))
    with pytest.raises(UserError, match="cannot be written to"):
        run("figures-alpha", RESULTS="/proc/results")
    assert asked == []


def test_benchmarks(run):
    assert [call[1] for call in run("bench", ARGS="--quick")] == ["shared.bench", "papers.alpha.bench"]
    assert run("bench-alpha", ARGS="--quick") == [["-m", "papers.alpha.bench", "--quick"]]


def test_smoke_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(make.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    calls = run("smoke", SCALE="photos", SEEDS="7")
    assert calls[0][:4] == ["-m", "papers.alpha.train", "--scale", "smoke"] and "7" not in calls[0]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_failing_script_stops_the_run(run, asked, monkeypatch):
    monkeypatch.setattr(make, "start", lambda command, *_: asked.append(command) or 3)
    with pytest.raises(SystemExit) as stop:
        run("reproduce")
    assert stop.value.code == 3 and len(asked) == 1


def test_a_half_made_paper_is_in_no_others_way(run, asked, tmp_path, monkeypatch, capsys):
    def supervise(commands, environments):
        asked.append(commands[0][2:4])
        return 2 if "alpha" in commands[0] else 0

    monkeypatch.setattr(make, "supervise", supervise)
    with pytest.raises(SystemExit) as stop:
        run("status")
    assert stop.value.code == 2 and asked == [["shared.experiment.status", name] for name in ("alpha", "beta")]
    (tmp_path / "papers" / "half").mkdir()
    (tmp_path / "papers" / "half" / "train.py").touch()
    (tmp_path / "papers" / "half" / "config.py").write_text("PRESETS = {")
    for goal, calls in (("reproduce", 7), ("figures", 3)):
        monkeypatch.setattr(make, "supervise", lambda commands, _: asked.append(commands[0]) or 0)
        with pytest.raises(UserError, match=r"all is done but for half, whose config\.py cannot be read"):
            run(goal)
        assert len(asked) == calls and "half is left out" in capsys.readouterr().out


def test_a_launcher_that_runs_nothing_is_noticed(run, asked, monkeypatch):
    with pytest.raises(UserError, match=r"LAUNCH=true ended well, and papers\.alpha\.train did not come to its end"):
        run("reproduce-alpha", LAUNCH="true")
    assert len(asked) == 1

    def launcher(commands, environments):
        asked.append(commands[0])
        if DONE in environments[0]:
            Path(environments[0][DONE]).touch()
        return 0

    monkeypatch.setattr(make, "supervise", launcher)
    assert run("reproduce-alpha", LAUNCH="env accelerate launch")[0][:5] == [
        "env",
        "accelerate",
        "launch",
        "-m",
        "papers.alpha.train",
    ]
    assert len(asked) == 3


@pytest.mark.parametrize("paper", sorted(path.parent.name for path in (ROOT / "papers").glob("*/train.py")))
def test_scales_are_those_of_the_presets(paper):
    assert scales(paper) == tuple(importlib.import_module(f"papers.{paper}.config").PRESETS)
