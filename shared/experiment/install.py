"""Make the virtual environment that requirements.lock describes, or mend it. Standard library only; `make setup` calls it.

    python3.11 -m shared.experiment.install [--venv .venv]

The stamp `<venv>/.complete` is written last, after every file of every package was found whole, so an interrupted installation
never passes for a finished one. An environment without a stamp is adopted if it is whole; otherwise `.venv` is built anew, while a
folder of any other name (a conda environment, say) is never deleted: the user is told what it lacks.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from shared.errors import UserError, run_main
from shared.experiment.pins import LOCK, ROOT
from shared.files import sha256_file, write_atomic

STAMP = ".complete"
NEEDED_GB = 8  # 6.2 GB installed, and room for the largest wheel while it is unpacked
CHECK = "from shared.experiment import pins; [print(line) for line in pins.{}(pins.parse_pins(pins.LOCK.read_text()))]"
DIFFERS, DAMAGED = (CHECK.format(name) for name in ("differences", "damaged"))
NO_PYTHON = "it has no working Python 3.11"


def check_python(version: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Raise `UserError` unless this is the Python that the pins were resolved for."""
    if tuple(version) != (3, 11):
        found = ".".join(map(str, version))
        raise UserError(f"Python 3.11 is needed and this is {found}: install it, or run `make setup PYTHON=/path/to/python3.11`.")


def ask(venv: Path, question: str) -> list[str] | None:
    """The lines that an environment's own Python answers to a piece of code; None if it cannot run it."""
    command = [str(venv / "bin" / "python"), "-c", question]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.splitlines() if answer.returncode == 0 else None


def faults(venv: Path) -> list[str]:
    """What keeps `venv` from being the environment of the lock, in words; empty if nothing does."""
    if ask(venv, "import sys; assert sys.version_info[:2] == (3, 11)") is None:
        return [NO_PYTHON]
    answers = [ask(venv, DIFFERS), ask(venv, DAMAGED)]
    if None in answers:
        return ["its packages cannot be listed"]
    return answers[0] + [f"{name} is incomplete" for name in answers[1]]


def build(venv: Path) -> None:
    """A new environment in `venv`, whatever stood there before. Raises `UserError` with the reason where that cannot be done."""
    if venv.is_symlink() or venv.is_file():
        raise UserError(f"{venv} is a link or a file where an environment should be made: move it away.")
    if venv.exists():
        print(f"{venv.name} is not whole: building it again", flush=True)
        shutil.rmtree(venv)
    free = shutil.disk_usage(venv.parent).free / 1e9
    if free < NEEDED_GB:
        raise UserError(f"only {free:.1f} GB are free in {venv.parent} and the packages need about {NEEDED_GB}: free some space.")
    print(f"building {venv.name} from requirements.lock (a few minutes, about 6 GB)", flush=True)
    if subprocess.run([sys.executable, "-m", "venv", str(venv)]).returncode != 0:
        raise UserError(f"{sys.executable} cannot make a virtual environment: install its venv module (on Debian: python3.11-venv).")
    fill(venv)


def fill(venv: Path) -> None:
    """Install the lock's pins into an environment."""
    # --no-deps: the lock is closed under dependencies (a test checks it), so nothing is left to resolve.
    # --no-compile: Python writes byte code for what is used; for all 6 GB of it that would take a minute.
    options = ["--no-deps", "--no-compile", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"]
    code = subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", *options, "-r", str(LOCK)], cwd=ROOT).returncode
    if code != 0:
        raise UserError("pip could not install requirements.lock (its message is above): mend that and run the same command again.")


def install(venv: Path) -> None:
    """Bring `venv` to the state of the lock, and stamp it. Two calls at once take turns."""
    with _turn():
        stamp, found = venv / STAMP, faults(venv)
        if found:
            stamp.unlink(missing_ok=True)
            if venv.name != ".venv":
                what = "; ".join(found[:3])
                raise UserError(f"the environment {venv} differs from requirements.lock ({what}): update it, or leave VENV out.")
            found = mend(venv, found)
        if found:
            build(venv)
            found = faults(venv)
        if found:
            raise UserError(f"the new environment is not whole ({'; '.join(found[:3])}): run `make setup` again.")
        write_atomic(stamp, sha256_file(LOCK) + "\n")
        print(f"{venv.name} holds every package of requirements.lock", flush=True)


def mend(venv: Path, found: list[str]) -> list[str]:
    """Install what is missing or of another version, and return the faults that stay.

    Only where pip can see what is there: a package whose files are incomplete may pass for installed, so that is not mended but built anew.
    """
    if found == [NO_PYTHON] or any("incomplete" in fault or "cannot be listed" in fault for fault in found):
        return found
    print(f"bringing {venv.name} up to requirements.lock: {'; '.join(found[:5])}{' …' if len(found) > 5 else ''}", flush=True)
    with contextlib.suppress(UserError):
        fill(venv)
    return faults(venv)


@contextlib.contextmanager
def _turn():
    folder = os.open(ROOT, os.O_RDONLY)  # the lock is on the folder itself: nothing to leave behind
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment to make or check (default: .venv)")
    venv = parser.parse_args().venv.absolute()
    if venv.name == ".venv":
        check_python()
    install(venv)


if __name__ == "__main__":
    run_main(main)
