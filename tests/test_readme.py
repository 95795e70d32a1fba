"""What the READMEs say is what is there: commands, files, numbers, and the example that runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.report.readme import filled, readmes

ROOT = Path(__file__).parents[1]
READMES = readmes()


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_claims_are_those_that_were_drawn(path):
    text = path.read_text()
    assert "<!-- from figures/" in text
    assert filled(text) == text, "run `python -m shared.report.readme`"


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_make_command_is_a_target(path):
    commands = set(re.findall(r"(?:^ {4}|`)make ([a-z][a-z_-]*)", path.read_text(), re.M))
    assert commands
    for target in commands:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"`make {target}` is not a target: {done.stderr}"


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_named_files_exist(path):
    text = path.read_text()
    named = set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert all((path.parent / name).exists() for name in named), named
    for name in set(re.findall(r"`((?:shared|papers|tests)/[\w/.<>-]+)`", text)):
        if "<" not in name:
            assert (ROOT / name).exists(), name


@pytest.mark.slow
def test_the_example_of_the_readme_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert 0 <= float(lines[1]) <= float(lines[0]) <= 1
    assert lines[2] in ("True", "False")
