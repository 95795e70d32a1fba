"""The pins: which packages the project needs, at which versions, and whether an environment has them. Standard library only.

    python -m shared.experiment.pins            is this interpreter's environment the one in requirements.lock? (exit code 1: no)
    python -m shared.experiment.pins --write    write requirements.lock and environment.yml from what is installed

`pyproject.toml` says what is wanted, `requirements.lock` what was resolved, `environment.yml` the same for conda users.
To change a version: change `pyproject.toml`, `pip install` the new version into `.venv`, run the tests, `--write`.
"""

import argparse
import csv
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from shared.errors import UserError, run_main
from shared.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
LINUX_ONLY = re.compile(r"(nvidia|cuda|triton)\b")  # wheels that exist for Linux only, and that torch asks for there only

LOCK_HEADER = """\
# Exact pins of everything in .venv: Python 3.11 on Linux x86-64. Made by `.venv/bin/python -m shared.experiment.pins --write`.
# The lines that end in `sys_platform == "linux"` are torch's CUDA runtime and compiler. torch asks for them on Linux even where
# there is no GPU (about 4 of the 6 GB); elsewhere they do not exist and are skipped.
"""
CONDA_HEADER = """\
# The pins of requirements.lock for conda users: conda brings Python, pip brings the rest at the same versions.
#   conda env create -f environment.yml && conda activate vlm-robustness && make reproduce VENV="$CONDA_PREFIX"
# Made by `.venv/bin/python -m shared.experiment.pins --write`; a test compares it with the lock.
"""


def canonical(name: str) -> str:
    """A package's name as indexes compare it: lower case, runs of `-_.` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_pins(text: str) -> dict[str, str]:
    """`{canonical name: version}` from the lines `name==version [; marker]`. Raises `UserError` for any other line."""
    pins = {}
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)\s*(;.*)?", line)
        if match is None:
            raise UserError(f"requirements.lock holds {line!r}, which is not an exact pin 'name==version': write the lock again.")
        pins[canonical(match[1])] = match[2]
    return pins


def applies_here(name: str) -> bool:
    """Whether a pinned package is to be installed on this platform."""
    return sys.platform == "linux" or not LINUX_ONLY.match(name)


def differences(pins: dict[str, str]) -> list[str]:
    """What this interpreter's environment lacks of `pins`, one phrase each; empty if it has them all. Reads folder names only: fast."""
    installed = {canonical(dist.name): dist.version for dist in importlib.metadata.distributions()}
    wanted = {name: version for name, version in pins.items() if applies_here(name)}
    missing = [f"{name} {version} is missing" for name, version in wanted.items() if name not in installed]
    other = [f"{name} is {installed[name]}, not {version}" for name, version in wanted.items() if installed.get(name, version) != version]
    return missing + other


def damaged(pins: dict[str, str]) -> list[str]:
    """Pinned packages of which a file is missing or has another size than its installer noted: what a killed installation leaves."""
    broken = []
    for dist in importlib.metadata.distributions():
        if canonical(dist.name) not in pins:
            continue
        record = dist.read_text("RECORD")
        if record is None or not all(_whole(dist.locate_file(row[0]), row[2]) for row in csv.reader(record.splitlines()) if len(row) == 3):
            broken.append(canonical(dist.name))
    return broken


def _whole(path, size: str) -> bool:
    # Byte code and the record itself carry no size and may be missing: Python writes byte code again.
    if not size:
        return True
    try:
        return Path(path).stat().st_size == int(size)
    except OSError:
        return False


def needed(roots: list[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions that `roots` (requirement strings) need, directly or not, in alphabetical order."""
    from packaging.requirements import Requirement  # comes with pytest; needed only to write the lock

    found: dict[str, importlib.metadata.Distribution] = {}
    seen, queue = set(), [Requirement(root) for root in roots]
    while queue:
        requirement = queue.pop()
        mark = (canonical(requirement.name), frozenset(requirement.extras))
        if mark in seen:
            continue
        seen.add(mark)
        try:
            found[mark[0]] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(f"{requirement.name} is not installed: install it into this environment before writing the lock.") from error
        for child in map(Requirement, found[mark[0]].requires or ()):
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in (*requirement.extras, "")):
                queue.append(child)
    return [found[name] for name in sorted(found)]


def wanted() -> list[str]:
    """The requirement strings of `pyproject.toml`, test tools included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"]["test"]


def write() -> None:
    """Write `requirements.lock` and `environment.yml` from this interpreter's environment."""
    pins = {canonical(dist.name): dist.version.split("+")[0] for dist in needed(wanted())}
    lines = [f"{name}=={version}" + (' ; sys_platform == "linux"' if LINUX_ONLY.match(name) else "") for name, version in pins.items()]
    write_atomic(LOCK, LOCK_HEADER + "\n".join(lines) + "\n")
    quoted = "".join(f"      - '{line}'\n" for line in lines)
    body = f"name: vlm-robustness\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n{quoted}"
    write_atomic(ROOT / "environment.yml", CONDA_HEADER + body)
    print(f"wrote {len(pins)} pins to requirements.lock and environment.yml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write requirements.lock and environment.yml from what is installed")
    if parser.parse_args().write:
        write()
        return
    for difference in (found := differences(parse_pins(LOCK.read_text()))):
        print(difference)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    run_main(main)
