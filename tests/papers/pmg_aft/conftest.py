"""The two scripts of the paper, run in this process (their imports cost more than a small run) or in processes of their own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def running(pid: int) -> bool:
    """Whether a process is there and not yet dead (a zombie is)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, pids, log: Path, seconds: float = 120) -> None:
    """Wait for something while processes run; what they said if one ends, or if it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert all(map(running, pids)) and time.monotonic() < end, log.read_text()
        time.sleep(0.003)


class Nursery:
    """Scripts in processes that need not import anything; see nursery.py."""

    def __init__(self):
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout.readline() == "ready\n"

    def order(self, **given) -> list[int]:
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, log: Path, processes: int, script: str, *options: object, late: float = 0) -> "Started":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log.touch()
        pids = self.order(
            script=script, options=list(map(str, options)), processes=processes, port=port, log=str(log), late=late
        )
        return Started(self, pids, log)


@dataclass(frozen=True)
class Started:
    """A script on one or several processes, all in one process group."""

    nursery: Nursery
    pids: list[int]
    log: Path

    def wait_until(self, condition) -> None:
        wait_until(condition, self.pids, self.log)

    def kill_group(self) -> None:
        os.killpg(self.pids[0], signal.SIGKILL)
        assert self.nursery.order(wait=self.pids) == [-signal.SIGKILL] * len(self.pids)

    def finish(self) -> str:
        assert self.nursery.order(wait=self.pids) == [0] * len(self.pids), self.log.read_text()
        return self.log.read_text()


class Launched:
    """A script on two processes, by the launcher: what make does. The launcher is in a process group of its own."""

    def __init__(self, log: Path, script: str, *options: object):
        command = [
            sys.executable,
            "-m",
            "shared.experiment.launch",
            "--device",
            "cpu2",
            "-m",
            f"papers.pmg_aft.{script}",
            *map(str, options),
        ]
        self.log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_until(self, condition) -> None:
        wait_until(condition, [self.process.pid], self.log)

    def kill_group(self) -> None:
        """kill -9 of the process group, then wait until the scripts, which are in groups of their own, are gone too."""
        scripts = [
            int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._started(entry)
        ]
        assert len(scripts) == 2
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + 20
        while any(map(running, scripts)):
            assert time.monotonic() < end, "a script outlived its launcher"
            time.sleep(0.02)

    def _started(self, entry: Path) -> bool:
        with contextlib.suppress(OSError):
            return int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == self.process.pid
        return False

    def finish(self, seconds: float = 300) -> str:
        assert self.process.wait(seconds) == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture(scope="session")
def nursery():
    out = Nursery()
    yield out
    out.process.kill()
    out.process.communicate()


@pytest.fixture(scope="session")
def launched():
    return Launched
