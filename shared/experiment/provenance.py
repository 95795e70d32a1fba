"""Where a number came from: commit, command, versions, machine."""

import os
import platform
import subprocess
import sys
import time
from functools import cache
from importlib import metadata


@cache
def provenance() -> dict:
    """What produced the numbers of this process: commit (and whether files differed), command, package versions,
    machine, start (UTC)."""
    packages = ("torch", "torchvision", "open_clip_torch", "numpy", "accelerate")
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "device": _device(),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*args: str) -> str:
    try:
        return subprocess.run(["git", *args], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # a copy without git still runs


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as handle:
            return next(line.split(":", 1)[1].strip() for line in handle if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _device() -> str:
    torch = sys.modules.get("torch")  # not imported for this: a report has no need of it
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"
