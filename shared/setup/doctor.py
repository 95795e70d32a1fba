"""What is wrong with this machine, in plain words.

    python -m shared.setup.doctor [--results results]      (or: make doctor)

Each line is `ok`, `warning` (it will run, but see the advice) or `problem` (it will not); the exit code is 1 if there
is a problem. Standard library only, so that it has something to say where nothing is installed; torch is tried in a
process of its own, which may crash.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import run_main
from shared.setup import pins

SETUP = "run `make setup`"
AGAIN = "delete .venv and run `make setup`"  # for what the quick look of make does not see


@dataclass(frozen=True)
class Line:
    """One finding: `level` is ok, warning or problem; `text` says what was found and, unless ok, what to do."""

    level: str
    topic: str
    text: str


def python(version: tuple[int, int, int] = sys.version_info[:3]) -> Line:
    if reason := pins.unfit(version):
        return Line("problem", "python", f"{reason}: install one, then {SETUP}")
    return Line("ok", "python", f"{'.'.join(map(str, version))} at {sys.executable}")


def packages(differences: list[str] | None = None, damaged: list[str] | None = None) -> Line:
    """The installed packages against requirements.lock."""
    if not pins.LOCK.exists():
        return Line(
            "problem", "packages", "requirements.lock is not there: restore it with `git checkout requirements.lock`"
        )
    found = pins.differences() if differences is None else differences
    if found:
        level = "problem" if any("is missing" in difference for difference in found) else "warning"
        return Line(level, "packages", f"{len(found)} differ from requirements.lock ({'; '.join(found[:3])}): {SETUP}")
    if broken := pins.damaged(pins.parse_pins(pins.LOCK.read_text())) if damaged is None else damaged:
        return Line("problem", "packages", f"files of {', '.join(broken[:3])} are missing or cut short: {AGAIN}")
    return Line("ok", "packages", "every package of requirements.lock, whole and at its version")


def pairing(probe: Mapping) -> Line:
    """Can torch and torchvision be used together? torch 2.n goes with torchvision 0.(n+15)."""
    fix = AGAIN if "torch" in probe or "No module named 'torch'" not in _why(probe) else SETUP
    if "torch" not in probe:
        return Line("problem", "torch", f"torch cannot be imported ({_why(probe)}): {fix}")
    if "torchvision" not in probe:
        return Line("problem", "torch", f"torch {probe['torch']} works, torchvision does not ({_why(probe)}): {fix}")
    minor = [int(re.match(r"\d+\.(\d+)", probe[name])[1]) for name in ("torch", "torchvision")]
    both = f"torch {probe['torch']} and torchvision {probe['torchvision']}"
    if minor[1] != minor[0] + 15:
        return Line(
            "problem",
            "torch",
            f"{both} are not a pair (torchvision 0.{minor[0] + 15} is the one for this torch): {fix}",
        )
    if not probe.get("operators"):
        return Line("problem", "torch", f"{both} do not work together ({_why(probe)}): {fix}")
    return Line("ok", "torch", f"{both} work together, {probe.get('threads', '?')} threads")


def gpu(probe: Mapping, driver: list[str], given: Mapping[str, str] = os.environ) -> Line:
    """The GPUs that the driver lists (one line each) against those that torch can compute on."""
    hidden = given.get("CUDA_VISIBLE_DEVICES")
    devices = probe.get("gpus", [])
    bad = [f"{device['name']} ({device['error']})" for device in devices if device.get("error")]
    if bad:
        return Line(
            "problem", "gpu", f"visible but cannot compute: {'; '.join(bad)}: use DEVICE=cpu until the driver is mended"
        )
    if devices:
        listed = ", ".join(f"{device['name']} {device['gib']:.0f} GiB" for device in devices)
        return Line("ok", "gpu", f"{len(devices)} can compute: {listed}; `make` uses the first (DEVICE=gpus: all)")
    if driver and hidden is not None and hidden.strip() in ("", "-1"):
        return Line(
            "warning",
            "gpu",
            f"CUDA_VISIBLE_DEVICES={hidden!r} hides {len(driver)} from torch: unset it, or use DEVICE=cpu",
        )
    if driver and "torch" in probe:
        why = (
            "this torch has no CUDA" if not probe.get("cuda") else f"the driver may be too old for CUDA {probe['cuda']}"
        )
        return Line(
            "problem",
            "gpu",
            f"the driver lists {driver[0]!r}, torch cannot use it ({why}): mend that, or use DEVICE=cpu",
        )
    if driver:
        return Line(
            "warning",
            "gpu",
            f"the driver lists {driver[0]!r}; torch has to be importable to tell whether it can be used",
        )
    return Line("ok", "gpu", "none; SCALE=cpu and photos do without, SCALE=evening and paper need one")


def memory(available: float | None = None) -> Line:
    """`available` in bytes; by default what Linux reports, or the container's limit if that is lower."""
    available = _available_memory() if available is None else available
    if available is None:
        return Line("warning", "memory", "cannot be told on this system; SCALE=cpu needs about 4 GB")
    shown = f"{available / 1e9:.1f} GB available"
    if available < 2e9:
        return Line(
            "problem",
            "memory",
            f"{shown}, too little even for SCALE=cpu: free some, or raise the container's limit to 4 GB",
        )
    if available < 4e9:
        return Line(
            "warning",
            "memory",
            f"{shown}: enough for one process at SCALE=cpu, tight for DEVICE=cpu2 and for SCALE=photos",
        )
    return Line("ok", "memory", shown)


def threads(cores: float | None = None, given: Mapping[str, str] = os.environ) -> Line:
    """The cores that this process may use (a container's quota counts) against OMP_NUM_THREADS."""
    cores = _cores() if cores is None else cores
    asked, whole = given.get("OMP_NUM_THREADS"), max(1, round(cores))
    if asked is None:
        if abs(cores - _affinity()) > 0.5:
            return Line(
                "warning",
                "threads",
                f"a quota of {cores:g} cores while {_affinity()} are seen: set OMP_NUM_THREADS={whole}",
            )
        return Line("ok", "threads", f"{cores:g} cores, OMP_NUM_THREADS not set: all are used")
    if not asked.isdigit() or int(asked) < 1:
        return Line("problem", "threads", f"OMP_NUM_THREADS={asked!r} is not a number of threads: unset it")
    if int(asked) > whole:
        return Line(
            "warning",
            "threads",
            f"OMP_NUM_THREADS={asked} on {cores:g} cores is too many: set it to {whole} or unset it",
        )
    if int(asked) < whole:
        return Line(
            "warning",
            "threads",
            f"OMP_NUM_THREADS={asked} leaves {whole - int(asked)} of {cores:g} cores idle: unset it",
        )
    return Line("ok", "threads", f"{cores:g} cores, OMP_NUM_THREADS={asked}")


def readers(probe: Mapping, cores: float | None = None) -> Line:
    """How many processes may read pictures ahead for each process that trains, which needs a core for itself."""
    if "pictures" not in probe:
        return Line("problem", "pictures", f"none can be read ({_why(probe, 'pictures_error')}): {AGAIN}")
    cores, trainers = _cores() if cores is None else cores, max(1, len(probe.get("gpus", [])))
    each = min(16, max(0, int(cores / trainers) - 1))
    rate = f"{max(each, 1) * probe['pictures']:,.0f} JPEGs a second for each"
    said = f"{each} processes can read ahead for each that trains ({rate})"
    if trainers > len(probe.get("gpus", [])) or each >= 12:
        return Line("ok", "pictures", said)
    return Line("warning", "pictures", f"{said}; SCALE=paper has up to 12: set it by the options that end in workers")


def disk(folder: Path, free: float | None = None) -> Line:
    """`free` in bytes, where the results go."""
    free = shutil.disk_usage(_existing(folder)).free if free is None else free
    shown = f"{free / 1e9:.1f} GB free for {folder}"
    if free < 1e9:
        return Line(
            "problem",
            "disk",
            f"{shown}: SCALE=cpu writes up to 1 GB, so free some space or name another folder with RESULTS=",
        )
    if free < 8e9:
        return Line("warning", "disk", f"{shown}: enough for SCALE=cpu, not for `make setup` (8 GB) or SCALE=paper")
    return Line("ok", "disk", shown)


def results(folder: Path) -> Line:
    """Can the results be written?"""
    if folder.exists() and not folder.is_dir():
        return Line("problem", "results", f"{folder} is a file: move it away or name a folder with RESULTS=")
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        return Line(
            "problem",
            "results",
            f"{folder} cannot be written ({error.strerror}): mend that, or name another with RESULTS=",
        )
    return Line("ok", "results", f"{folder} can be written")


def launcher(probe: Mapping) -> Line:
    """accelerate, by which several processes work together."""
    if "accelerate" not in probe:
        return Line(
            "problem", "launcher", f"accelerate cannot be imported ({_why(probe, 'accelerate_error')}): {SETUP}"
        )
    return Line("ok", "launcher", f"accelerate {probe['accelerate']}")


def kernel(probe: Mapping) -> Line:
    """The notebook kernel that draws tables and figures."""
    if not probe.get("kernel"):
        return Line("problem", "notebooks", f"there is no python3 kernel ({_why(probe, 'kernel_error')}): {SETUP}")
    return Line("ok", "notebooks", "the python3 kernel is there")


def tools(which: Callable[[str], str | None] = shutil.which) -> Line:
    missing = [name for name in ("git", "make") if which(name) is None]
    if missing:
        return Line(
            "warning",
            "tools",
            f"{' and '.join(missing)} not found: install it (without git, results lack their commit)",
        )
    return Line("ok", "tools", "git and make are there")


def examine(folder: Path) -> list[Line]:
    """All findings about this machine, with results to be written in `folder`."""
    probe = run_probe()
    return [
        python(),
        packages(),
        pairing(probe),
        gpu(probe, driver_list()),
        launcher(probe),
        kernel(probe),
        memory(),
        threads(),
        readers(probe),
        disk(folder),
        results(folder),
        tools(),
    ]


def run_probe(command: tuple[str, ...] = (sys.executable, "-m", "shared.setup.machine"), seconds: float = 180) -> dict:
    """What `shared.setup.machine` found out, in a process of its own; `{"error": …}` with the reason if it crashed or
    hung."""
    try:
        done = subprocess.run(command, cwd=pins.ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"importing it took more than {seconds:.0f} s"}
    if done.returncode < 0:
        return {
            "error": f"the import was killed by signal {-done.returncode}; a processor too old for this build does that"
        }
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}


def driver_list() -> list[str]:
    """The GPUs as the driver lists them, one line each; empty without a driver or GPU."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]


def _why(probe: Mapping, key: str = "error") -> str:
    return probe.get(key) or probe.get("error", "no reason given")


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores() -> float:
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        return min(_affinity(), int(quota[0]) / int(quota[1]))
    return _affinity()


def _available_memory() -> float | None:
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    amounts = [int(found[1]) * 1024] if found else []
    if limit.isdigit() and used.isdigit():
        amounts.append(int(limit) - int(used))
    return min(amounts, default=None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder that results go to")
    lines = examine(parser.parse_args().results.expanduser().absolute())
    for line in lines:
        print(f"{line.level:<8} {line.topic:<10} {line.text}")
    count = {level: sum(line.level == level for line in lines) for level in ("problem", "warning")}
    print(", ".join(f"{n} {level}{'s' * (n > 1)}" for level, n in count.items() if n) or "nothing wrong was found")
    sys.exit(1 if count["problem"] else 0)


if __name__ == "__main__":
    run_main(main)
