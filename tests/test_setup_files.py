"""pyproject.toml, requirements.lock and environment.yml say the same; the import rules cover every room; the small files agree."""

import re
import stat
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from shared.errors import UserError
from shared.experiment import pins

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
LOCK = pins.parse_pins("\n".join(LOCK_LINES))


def test_environment_yml_holds_the_same_pins_as_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": LOCK_LINES}


@pytest.mark.parametrize("wanted", pins.wanted())
def test_lock_satisfies_pyproject(wanted):
    requirement = Requirement(wanted)
    assert requirement.specifier, f"{wanted}: pyproject.toml should bound every dependency"
    assert requirement.specifier.contains(LOCK[pins.canonical(requirement.name)], prereleases=True)


def test_lock_holds_everything_that_is_needed_and_nothing_else():
    assert [pins.canonical(dist.name) for dist in pins.needed(pins.wanted())] == list(LOCK)


def test_this_environment_is_the_one_of_the_lock():
    assert pins.differences(LOCK) == []


def test_lock_lines_are_pins_without_addresses_or_options():
    assert not [line for line in LOCK_LINES if re.search(r"://|@|^-|--", line)]
    for line in LOCK_LINES:
        name, _, marker = line.partition(" ; ")
        assert (marker == 'sys_platform == "linux"') == bool(pins.LINUX_ONLY.match(name)), line


def test_python_version_is_the_same_everywhere():
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.12"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert sys.version_info[:2] == (3, 11)


@pytest.mark.parametrize("line", ["torch>=2", "torch", "torch @ file:///x.whl", "--index-url x", "-e ."])
def test_a_line_that_is_no_pin_is_refused(line):
    with pytest.raises(UserError, match="not an exact pin"):
        pins.parse_pins(f"numpy==2.0\n{line}\n")


def test_pins_are_read_with_markers_comments_and_any_spelling():
    text = '# all\nPy_YAML.x==6.0.3 ; sys_platform == "linux"\n\ntorch==2.1+cpu  # both\n'
    assert pins.parse_pins(text) == {"py-yaml-x": "6.0.3", "torch": "2.1+cpu"}


def test_import_rules_cover_every_room():
    """A room added to shared/ is one that computes unless it is named here; only experiments and reports may know experiments."""
    contracts = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    rooms = {f"shared.{path.parent.name}" for path in ROOT.glob("shared/*/__init__.py")}
    files = {f"shared.{path.stem}" for path in ROOT.glob("shared/*.py") if path.stem != "__init__"}
    assert rooms | files == set(contracts["core-knows-no-experiment"]["source_modules"]) | OUTER & (rooms | files)


OUTER = {"shared.claims", "shared.experiment", "shared.report", "shared.bench"}


def test_every_folder_with_code_is_a_package():
    """The import rules see packages only: a folder without __init__.py would pass them by."""
    folders = {path.parent for room in ("shared", "papers") for path in (ROOT / room).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_citation_names_the_five_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    assert citation["version"] == PROJECT["project"]["version"]
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert len(citation["references"]) == 5
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year", "identifiers"} <= set(reference), reference["title"]
        assert all({"name"} == set(author) or {"given-names", "family-names"} == set(author) for author in reference["authors"])
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_ci_calls_make_test_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    code = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert code == ['cd "$(dirname "$0")/.." && exec make test']
