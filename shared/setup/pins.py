"""Is this interpreter's environment the one in requirements.lock? Prints what differs; exit code 1 if anything does.

    python -m shared.setup.pins [--whole [--python 3.13] [--torch cpu]]

Without `--whole`, as `make` asks before each target, the installer's stamp and the versions are looked at (0.2 s); with
it, every file of every package, and whether it has the Python and the build of torch that were asked for.
`pyproject.toml` says what is wanted, and `make lock` resolves it for every Python and platform.
"""

import argparse
import csv
import importlib.metadata
import re
import sys
from collections.abc import Collection
from pathlib import Path

from shared.errors import UserError, run_main
from shared.files import sha256_file

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
STAMP = ".complete"
PYTHONS = ((3, 11), (3, 14))  # the oldest and the newest that the lock is resolved for
CUDA = re.compile(r"(nvidia|cuda|triton)\b")  # what torch asks for on Linux, and its build for CPUs does not


def canonical(name: str) -> str:
    """A package's name as indexes compare it: lower case, runs of `-_.` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unfit(version: tuple[int, ...] = sys.version_info[:3]) -> str | None:
    """Why this version of Python cannot be used; None if it can."""
    if PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        return None
    oldest, newest, this = (".".join(map(str, numbers)) for numbers in (*PYTHONS, version))
    return f"Python {oldest} to {newest} is needed and this is {this}"


def parse_pins(text: str) -> dict[str, str]:
    """`{canonical name: version}` of the lines `name==version [; marker]` whose marker holds for this interpreter.

    Raises `UserError` for a line that is no exact pin, and `ImportError` where `packaging` (itself pinned) is missing.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    pins = {}
    for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
        try:
            requirement = Requirement(line)
            [version] = requirement.specifier
        except (InvalidRequirement, ValueError):
            version = None
        if version is None or version.operator != "==" or "*" in version.version or requirement.url:
            raise UserError(
                f"requirements.lock holds {line!r}, not an exact pin `name==version`: write it by `make lock`."
            )
        if requirement.marker is None or requirement.marker.evaluate():
            pins[canonical(requirement.name)] = version.version
    return pins


def differences(text: str | None = None, torch: str = "") -> list[str]:
    """What this interpreter's environment lacks of a lock's text (default: the project's), one phrase each.

    Reads names of folders only. A build's label, as in torch 2.1+cpu, is no difference; CUDA is not missed beside it.
    With `torch="cpu"` it has to be that build (elsewhere than on Linux, there is no other).
    """
    if reason := unfit():
        return [reason]
    try:
        pins = parse_pins(LOCK.read_text() if text is None else text)
    except ImportError:
        return ["packaging is missing"]
    installed = {canonical(dist.name): dist.version for dist in importlib.metadata.distributions()}
    if installed.get("torch", "").endswith("+cpu"):
        torch = ""
        pins = {name: version for name, version in pins.items() if not CUDA.match(name)}
    missing = [f"{name} {version} is missing" for name, version in pins.items() if name not in installed]
    other = [f"{name} is {installed[name]}, not {version}" for name, version in pins.items()
             if installed.get(name, version).partition("+")[0] != version]  # fmt: skip
    return missing + other + ["torch is not the build for CPUs"] * (torch == "cpu" and sys.platform == "linux")


def damaged(pins: Collection[str]) -> list[str]:
    """Pinned packages of which a file is missing or has another size than noted: what a killed installation leaves."""
    broken = []
    for dist in importlib.metadata.distributions():
        if canonical(dist.name) not in pins:
            continue
        # Not `dist.files`: from Python 3.12 on it leaves out the files that are missing.
        record = dist.read_text("RECORD")
        rows = csv.reader((record or "").splitlines())
        if record is None or not all(_whole(Path(dist.locate_file(row[0])), row[2]) for row in rows if len(row) == 3):
            broken.append(canonical(dist.name))
    return broken


def _whole(path: Path, size: str) -> bool:
    # Byte code and the record itself carry no size and may be missing: Python writes byte code again.
    if not size:
        return True
    try:
        return path.stat().st_size == int(size)
    except OSError:
        return False


def stamped() -> bool:
    """Whether the installer found this environment whole, for the lock as it is now."""
    try:
        return (Path(sys.prefix) / STAMP).read_text().strip() == sha256_file(LOCK)
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="look at every file instead of at the stamp")
    parser.add_argument("--python", default="", help="the version of Python that was asked for, as in 3.13")
    parser.add_argument("--torch", choices=("", "cpu"), default="", help="cpu: that build of torch was asked for")
    asked = parser.parse_args()
    if asked.python not in ("", ".".join(map(str, sys.version_info[:2]))):
        found = [f"its Python is not {asked.python}"]
    elif asked.whole:
        found = differences(torch=asked.torch)
        found = found or [f"{name} is incomplete" for name in damaged(parse_pins(LOCK.read_text()))]
    else:
        found = differences() if stamped() else ["it is not stamped as complete"]
    for fault in found:
        print(fault)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    run_main(main)
