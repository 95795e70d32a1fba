"""The two scripts of the paper, run in this process (their imports cost more than a small run) or in processes of their own."""

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shared.errors import run_main
from shared.experiment.store import Store

ROOT = Path(__file__).resolve().parents[3]
CPU2 = ROOT / "shared" / "experiment" / "launch" / "cpu2.yaml"


@dataclass(frozen=True)
class Outcome:
    """What a script left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def run_here(script: str, *options: object) -> Outcome:
    """`python -m papers.pmg_aft.<script> <options>` without a process of its own."""
    main = importlib.import_module(f"papers.pmg_aft.{script}").main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [script, *map(str, options)])
        try:
            run_main(main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Outcome(code, out.getvalue(), err.getvalue())


class Launched:
    """A script on two processes, started by the launcher in a process group of its own."""

    def __init__(self, log: Path, script: str, *options: object):
        command = [sys.executable, "-m", "shared.experiment.launch", "--config_file", str(CPU2), "-m", f"papers.pmg_aft.{script}", *map(str, options)]
        self.log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=out, stderr=out,
                                            start_new_session=True)

    def wait_until(self, condition, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.005)

    def children(self) -> list[int]:
        """Processes whose parent is the launcher."""
        stats = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit():
                    stats.append((int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()))
        return [pid for pid, stat in stats if int(stat[1]) == self.process.pid and stat[0] != "Z"]

    def kill_group(self) -> None:
        """kill -9 of the process group, then wait until the scripts, which are in groups of their own, are gone too."""
        scripts = self.children()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + 20
        while any(_alive(pid) for pid in scripts):
            assert time.monotonic() < end, "a script outlived its launcher"
            time.sleep(0.02)

    def finish(self, seconds: float = 300) -> str:
        assert self.process.wait(seconds) == 0, self.log.read_text()
        return self.log.read_text()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def contents(results: Path, scale: str = "smoke") -> dict[str, tuple[str, np.ndarray]]:
    """slug -> (key, values) of every planned measurement that is there."""
    return {m.slug: (m.key, m.values) for m in Store(results / scale / "pmg_aft").planned()}


@pytest.fixture(scope="session")
def script():
    return run_here


@pytest.fixture(scope="session")
def launched():
    return Launched


@pytest.fixture(scope="session")
def measured():
    return contents


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
