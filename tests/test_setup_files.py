"""pyproject.toml, requirements.lock and environment.yml agree; the import rules cover every room; so do the small files."""

import re
import stat
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from shared.errors import UserError
from shared.setup import pins

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCK = pins.parse_pins("\n".join(LOCK_LINES))
WANTED = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
PYTHONS = ["3.11.2", "3.12.0", "3.13.0", "3.14.0"]  # 3.11.2 is Debian 12's


@pytest.mark.parametrize("wanted", WANTED)
def test_lock_satisfies_pyproject(wanted):
    requirement = Requirement(wanted)
    assert requirement.specifier, f"{wanted}: pyproject.toml should bound every dependency"
    assert requirement.specifier.contains(LOCK[pins.canonical(requirement.name)], prereleases=True)


@pytest.mark.parametrize("name", LOCK)
def test_lock_is_closed_and_fits_every_python(name):
    """What a pinned package needs is pinned at a version that it takes, so an installation resolves nothing."""
    about = metadata.distribution(name).metadata
    for requirement in map(Requirement, about.get_all("Requires-Dist", [])):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            assert requirement.specifier.contains(LOCK[pins.canonical(requirement.name)], prereleases=True), requirement
    assert all(SpecifierSet(about.get("Requires-Python", "")).contains(version) for version in PYTHONS)


def test_this_environment_is_the_one_of_the_lock():
    assert pins.differences() == []


def test_lock_has_one_version_of_each_package_without_addresses_or_options():
    names = [pins.canonical(Requirement(line).name) for line in LOCK_LINES]
    assert len(set(names)) == len(names)
    assert not [line for line in LOCK_LINES if re.search(r"://|@|^-|--", line)]


def test_python_versions_are_the_same_everywhere():
    low, high = (".".join(map(str, version)) for version in pins.PYTHONS)
    above = f"3.{pins.PYTHONS[1][1] + 1}"
    makefile = (ROOT / "Makefile").read_text()
    assert PROJECT["project"]["requires-python"] == f">={low},<{above}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{low.replace('.', '')}"
    assert f"{pins.PYTHONS[0]} <= sys.version_info < (3, {above[2:]})" in makefile
    assert f"--python-version {low}" in makefile
    assert f"3.{pins.PYTHONS[0][1]} to {high}" in (ROOT / "README.md").read_text()
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == [f"python>={low},<{above}", "pip", {"pip": ["-r requirements.lock"]}]


@pytest.mark.parametrize("line", [
    "torch>=2", "torch", "torch @ file:///x.whl", "--index-url x", "-e .", "torch==2.*", "torch==2,<3"])  # fmt: skip
def test_a_line_that_is_no_pin_is_refused(line):
    with pytest.raises(UserError, match="not an exact pin"):
        pins.parse_pins(f"numpy==2.0\n{line}\n")


def test_pins_are_read_with_markers_comments_and_any_spelling():
    text = """# all
Py_YAML.x==6.0.3 ; sys_platform != "win32"

colorama==1 ; sys_platform == "win32"
torch==2.1+cpu  # both
"""
    assert pins.parse_pins(text) == {"py-yaml-x": "6.0.3", "torch": "2.1+cpu"}


def test_import_rules_cover_every_room():
    """A room added to shared/ is one that computes unless it is named here; only experiments and reports may know experiments."""
    contracts = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    rooms = {f"shared.{path.parent.name}" for path in ROOT.glob("shared/*/__init__.py")}
    files = {f"shared.{path.stem}" for path in ROOT.glob("shared/*.py") if path.stem != "__init__"}
    assert rooms | files == set(contracts["core-knows-no-experiment"]["source_modules"]) | OUTER & (rooms | files)


OUTER = {
    "shared.claims",
    "shared.experiment",
    "shared.judge",
    "shared.report",
    "shared.bench",
    "shared.setup",
    "shared.steps",
}


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
        assert all(
            {"name"} == set(author) or {"given-names", "family-names"} == set(author) for author in reference["authors"]
        )
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_ci_calls_make_test_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    code = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert code == ['cd "$(dirname "$0")/.." && exec make test']


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, with continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines() if line]


def test_the_dockerfile_does_what_the_makefile_knows():
    """`hadolint Dockerfile` (2.15.1) finds nothing; `make test-image` runs its steps."""
    steps = dockerfile()
    text = repr(steps)
    assert {word for word, _ in steps} <= {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "CMD"}
    python = re.fullmatch(r"python:(\d+)\.(\d+)-slim", steps[0][1])
    assert steps[0][0] == "FROM" and pins.unfit((int(python[1]), int(python[2]), 0)) is None
    assert not re.search(r"https?:|index", text)
    assert ("ARG", "TORCH=cpu") in steps and any("make setup TORCH=$TORCH" in said for _, said in steps)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not [path for path in ("shared", "papers", "vlm_robust", "requirements.lock", ".git") if path in ignored]
