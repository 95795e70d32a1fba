"""Make the environment that requirements.lock describes, or mend it: with uv where it is on the PATH, else with pip.

    python3 -m shared.setup.install [--venv .venv] [--torch cpu] [--this-python]

The stamp is written last, after every file of every package was found whole, so an interrupted installation never
passes for a finished one. Only an environment made here is changed or deleted, known by a mark that is written first;
of any other the user is told what it lacks.
"""

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from shared.errors import UserError, run_main
from shared.files import sha256_file, write_atomic
from shared.setup.pins import CUDA, LOCK, ROOT, STAMP, unfit

MARK = ".made-by-make-setup"
NEEDED_GB = {"": 8, "cpu": 3}  # 6.0 and 1.5 GB installed, and room for the largest wheel while it is unpacked


def faults(venv: Path, *asked: str) -> list[str]:
    """What keeps `venv` from being the environment asked for, in words; empty if nothing does."""
    if not venv.exists():
        return ["it is not there yet"]
    command = [venv / "bin" / "python", "-m", "shared.setup.pins", "--whole", *asked]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return ["it has no working Python"]
    return answer.stdout.splitlines() or ["its packages cannot be listed"] * (answer.returncode != 0)


def build(venv: Path, torch: str) -> None:
    """An empty environment in `venv` instead of whatever an earlier installation left there."""
    venv.mkdir(parents=True, exist_ok=True)
    (venv / MARK).write_text(torch)
    for left in venv.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != MARK:
            left.unlink()
    free = shutil.disk_usage(venv).free / 1e9
    if free < NEEDED_GB[torch]:
        need = f"the packages need about {NEEDED_GB[torch]}"
        raise UserError(f"only {free:.1f} GB are free in {venv.parent} and {need}: free some space.")
    if subprocess.run([sys.executable, "-m", "venv", venv]).returncode != 0:
        raise UserError(f"{sys.executable} cannot make an environment: install its venv (on Debian: python3-venv).")


def fill(venv: Path, torch: str) -> None:
    """Install the lock's pins into an environment. Nothing is resolved: the lock is closed under dependencies."""
    python, lock = venv / "bin" / "python", LOCK.read_text()
    if torch == "cpu":
        lock = "".join(line for line in lock.splitlines(keepends=True) if not CUDA.match(line))
        if sys.platform == "linux":  # elsewhere there is no other build, and no label
            lock = re.sub(r"^(torch|torchvision)==\S+", r"\g<0>+cpu", lock, flags=re.M)
    uv = ["uv", "pip", "sync", "--quiet", *(["--torch-backend", torch] if torch else []), "--python", python, "-"]
    # --no-compile: Python writes byte code for what is used; for all 6 GB of it that would take a minute.
    options = ["-qq", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    pip = [python, "-m", "pip", "install", *options, "-r", "/dev/stdin"]
    for command in ([uv] if shutil.which("uv") else []) + [pip]:
        if subprocess.run(command, cwd=ROOT, input=lock, text=True).returncode == 0:
            return
    raise UserError(
        "requirements.lock could not be installed (the reason is above): mend that and run `make setup` again."
    )


def install(venv: Path, torch: str = "", python: str = "") -> None:
    """Bring `venv` to the state of the lock and stamp it, or raise `UserError`. Two calls at once take turns."""
    with _turn():
        mark = venv / MARK
        torch = torch or (mark.read_text() if mark.exists() else "")
        asked = ("--torch", torch, "--python", python)
        found = faults(venv, *asked)
        if found and not mark.exists() and os.path.lexists(venv) and not (venv.is_dir() and not any(venv.iterdir())):
            raise UserError(
                f"{venv} was not made by `make setup`, so it is left alone, and it is not as requirements.lock says "
                f"({shown(found)}): mend it, move it away, or name another with VENV=."
            )
        # Mended is only what was whole once and lacks packages that the installer can see to be missing or another.
        mendable = (venv / STAMP).exists() and all(" is missing" in fault or ", not " in fault for fault in found)
        for anew in (False, True) if mendable else (True,):
            if found:
                doing = "mending" if not anew else f"building (a few minutes, {NEEDED_GB[torch]} GB of disk)"
                print(f"{doing} {venv}: {shown(found)}", flush=True)
                (venv / STAMP).unlink(missing_ok=True)
                if anew:
                    build(venv, torch)
                fill(venv, torch)
                found = faults(venv, *asked)
        if found:
            raise UserError(f"the new environment is not whole ({shown(found)}): run `make setup` again.")
        with contextlib.suppress(OSError):  # one that cannot be written to is looked at anew each time
            write_atomic(venv / STAMP, sha256_file(LOCK) + "\n")


def shown(found: list[str]) -> str:
    return "; ".join(found[:3]) + " …" * (len(found) > 3)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    folder = os.open(ROOT, os.O_RDONLY)  # the lock is on the folder itself: nothing to leave behind
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where it is made (default: .venv)")
    parser.add_argument("--torch", choices=("", "cpu"), default="", help="cpu: without CUDA, 1.5 instead of 6 GB")
    parser.add_argument("--this-python", action="store_true", help="it has to have the version that runs this")
    asked = parser.parse_args()
    if reason := unfit():
        raise UserError(f"{reason}: install one, or name it with PYTHON=.")
    try:
        install(asked.venv.absolute(), asked.torch, "{}.{}".format(*sys.version_info) if asked.this_python else "")
    except OSError as error:
        what = f"{error.filename or asked.venv} cannot be written ({error.strerror})"
        raise UserError(f"{what}: mend that, or name another place with VENV=.") from error


if __name__ == "__main__":
    run_main(main)
