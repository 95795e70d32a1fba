"""A run on two processes that is stopped at any moment ends at once and leaves a state from which the next one goes on.

`ROUNDS=100 pytest -m slow tests/test_interrupts.py` looks longer.
"""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARK = "OF_THIS_ROUND"
COMMAND = "-m shared.experiment.make reproduce-pmg_aft SCALE=smoke DEVICE=cpu2"
DEATHS = [
    (number, everybody) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for everybody in (True, False)
]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def alive(mark: str) -> dict[int, str]:
    """The processes with this mark in their environment, by their command lines, but for those that are dead and not yet buried."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if entry.name.isdigit() and state != "Z" and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def heed() -> None:
    for number, _ in DEATHS:
        signal.signal(number, signal.SIG_DFL)


class Round:
    """make with its one command, in a process group of its own as a shell would have it."""

    def __init__(self, folder: Path):
        (folder / "Makefile").write_text(f"run:\n\t@'{sys.executable}' {COMMAND} 'RESULTS={folder}/results'\n")
        self.mark, self.log = uuid.uuid4().hex, folder / "log"
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(
                ["make", "-f", str(folder / "Makefile"), "run"],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
                # a job in the background or under nohup ignores some of them, and so would all that it starts
                preexec_fn=heed,
            )

    def stop(self, number: int, everybody: bool) -> float:
        """Send the signal (to all of make's group, as a terminal does, or to make alone); the seconds until the last process was gone."""
        (os.killpg if everybody else os.kill)(self.process.pid, number)
        began = time.monotonic()
        while left := alive(self.mark):
            if self.process.poll() is not None and time.monotonic() - began > 15:
                pytest.fail(f"still there: {left}")
            time.sleep(0.02)
        self.process.wait()
        return time.monotonic() - began


@pytest.mark.slow
def test_a_run_may_be_stopped_at_any_moment(tmp_path):
    rounds, dice, late = int(os.environ.get("ROUNDS", "6")), random.Random(os.environ.get("SEED", "0")), []
    for k in range(rounds):
        started = Round(tmp_path)
        until = time.monotonic() + dice.uniform(0.3, 25)
        while time.monotonic() < until and started.process.poll() is None:
            time.sleep(0.05)
        number, everybody = DEATHS[k % len(DEATHS)]
        if started.process.poll() is not None:  # it came to its end before: begin anew
            assert started.process.returncode == 0, started.log.read_text()
            subprocess.run(["rm", "-rf", str(tmp_path / "results")], check=True)
            continue
        seconds = started.stop(number, everybody)
        said, files = started.log.read_text(), contents(tmp_path / "results")
        late.append((round(seconds, 2), signal.Signals(number).name, everybody))
        assert seconds < 5, late  # under 2 s but on a machine that has much else to do
        assert started.process.returncode == -number
        assert "Traceback" not in said and "Error:" not in said, said
        assert any(
            line.startswith("interrupted: everything finished so far is saved") for line in said.splitlines()[-2:]
        ), said
        time.sleep(0.5)
        assert (started.log.read_text(), contents(tmp_path / "results")) == (said, files), (
            "something was written after the message"
        )
    print(sorted(late)[-10:])
    last = Round(tmp_path)
    assert last.process.wait(600) == 0, last.log.read_text()
