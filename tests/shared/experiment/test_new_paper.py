"""`make new-paper`: a paper that works, names that are none, and a half-made paper that is in nobody's way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.experiment.new_paper import begin
from shared.experiment.scales import ROOT, scales
from shared.report.overview import Overview


@pytest.fixture
def place(tmp_path) -> Path:
    """A repository with no paper yet."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "tests" / "papers").mkdir(parents=True)
    (tmp_path / "tests" / "papers" / "ends.py").touch()
    shutil.copytree(ROOT / "docs" / "new-paper", tmp_path / "docs" / "new-paper")
    return tmp_path


def test_a_new_paper_is_whole_and_passes_the_linter(place):
    folders = begin("shift_mean", place)
    assert folders == [place / "papers" / "shift_mean", place / "tests" / "papers" / "shift_mean"]
    files = {path.name for path in folders[0].iterdir()}
    assert {"method.py", "steps.py", "tables.py", "config.py", "paper.py", "train.py", "evaluate.py"} < files
    assert {"claims.yaml", "notebook.ipynb", "README.md", "__init__.py"} < files
    assert [path.name for path in folders[1].iterdir()] == ["test_shift_mean.py"]
    texts = [path.read_text() for folder in folders for path in folder.iterdir()]
    assert not any("newpaper" in text for text in texts)
    assert scales("shift_mean", place / "papers") == ("smoke", "cpu")
    shutil.copy(ROOT / "pyproject.toml", place)
    (place / "shared").symlink_to(ROOT / "shared")
    command = [sys.executable, "-m", "ruff", "check", "papers", "tests"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "names no paper"),
        ("My", "names no paper"),
        ("1st", "names no paper"),
        ("a-b", "names no paper"),
        ("class", "names no paper"),
        ("../x", "names no paper"),
        ("a" * 31, "names no paper"),
        ("overview", "is taken"),
        ("ends", "is taken: there is tests/papers/ends.py"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_is_written(place, name, said):
    with pytest.raises(UserError, match=said):
        begin(name, place)
    assert not list((place / "papers").iterdir())


def test_a_name_that_is_taken_is_refused(place):
    begin("mine", place)
    with pytest.raises(UserError, match="is taken: there is papers/mine"):
        begin("mine", place)


def test_a_half_made_paper_is_left_out_of_the_overview(place, capsys):
    begin("good", place)
    for name, text in (("half", None), ("broken", "paper: [")):
        (place / "papers" / name).mkdir()
        (place / "papers" / name / "train.py").touch()
        (place / "papers" / name / "config.py").write_text("PRESETS = {")
        if text:
            (place / "papers" / name / "claims.yaml").write_text(text)
    found = Overview("cpu", place / "results", papers=place / "papers")
    assert [paper.name for paper in found.papers] == ["good"]
    said = capsys.readouterr().err
    assert "note: half is left out" in said and "note: broken is left out" in said
    assert scales("half", place / "papers") == ()


@pytest.mark.slow
def test_it_runs_and_its_tests_pass(tmp_path):
    """In a copy of the repository: one command, then the paper's own tests and what holds of every paper."""
    for room in ("shared", "papers", "tests", "docs", "notebooks", "figures", "findings"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "README.md", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("shared.experiment.make", "new-paper", "NAME=mine")
    run("shared.experiment.make", "reproduce-mine", "SCALE=smoke", f"RESULTS={tmp_path}/results", "DEVICE=cpu")
    assert (tmp_path / "results" / "smoke" / "mine" / "page.html").is_file()
    tests = ("tests/papers/mine", "tests/papers/test_contract.py", "tests/test_readme.py", "tests/test_house.py")
    run("pytest", "-q", "-n", "0", *tests, "-m", "not slow", "-k", "mine or house")
