"""Processes that end when they should: none outlives what started it, several end together, a mistake is said once."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STARTED = "VLM_ROBUSTNESS_STARTED"  # environment variable: how many processes `supervise` has started together
# What launchers set for their children: `supervise`, `accelerate launch` with one process, torch's elastic agent with
# several.
MARKS = (STARTED, "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds for putting things away
FAILING = b"\0failing\n"


class Interrupted(KeyboardInterrupt):
    """`supervise` was told to stop, and all that it had started is gone. number: of the signal."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def tie_to_launcher(marks: Sequence[str] | None = MARKS) -> bool:
    """Ask the kernel to end this process when what started it ends; True if that was done.

    `kill -9` of a launcher passes its children by: they would compute on as orphans and race the next run for the same
    files. A script calls this first. Only where one of `marks` is in the environment (None: in any case), since a
    script started by hand may well outlive its shell (nohup); only on Linux, which offers it.
    """
    if sys.platform != "linux" or not (marks is None or any(mark in os.environ for mark in marks)):
        return False
    # SIGTERM, not SIGINT: Python's handler for the latter waits for a collective operation that can no longer end.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        return False
    if os.getppid() == 1:  # the launcher was gone before we asked
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def supervise(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> int:
    """Run commands at the same time until all have ended; returns 0, or the exit code of the first that failed.

    The code is 128 + n for a process that signal n has ended. Where one fails the others are ended. On SIGINT, SIGTERM
    or SIGHUP every process gets a second to put its things away; then it is killed with all that it started, and
    `Interrupted` raised. Several processes have one stderr: a line that all print comes once, and none from those that
    are ended because another has failed, or because of a signal.
    """
    told: list[int] = []
    # nohup, and `&` in a script, have some ignored
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda received, _: told.append(received)) for number in heeded}
    make, error = _Make(), _Error() if len(commands) > 1 else None
    running: list[subprocess.Popen] = []
    failed = None
    try:
        for command, environment in zip(commands, environments, strict=True):
            # A group of its own, so that it can be ended with what it started, such as the processes that read
            # pictures.
            process = subprocess.Popen(
                command,
                env={**environment, STARTED: str(len(commands))},
                process_group=0,
                stderr=subprocess.PIPE if error else None,
            )
            running.append(process)
            if error:
                error.pass_on(process)
        while failed is None and not told and any(process.poll() is None for process in running):
            time.sleep(0.03)
            failed = (error and error.failing) or next((process for process in running if process.poll()), None)
            told += make.told()
    finally:
        if error:
            error.only(None if told else failed)
        _end(running)
        if error:
            error.finish()
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        raise Interrupted(told[0])
    code = failed.returncode if failed else 0
    return code if code >= 0 else 128 - code


def fail_first(code: int) -> None:
    """In one of several processes of `supervise`, before it ends by a mistake: the others are ended first.

    Otherwise they would lose their connection to this one, each with a long trace.
    """
    if int(os.environ.get(STARTED, "1")) > 1:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(2, FAILING)
        time.sleep(10 * GRACE)


def _end(running: Sequence[subprocess.Popen]) -> None:
    """Let every process put its things away, then kill it with its group."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + GRACE
    while time.monotonic() < until and any(process.poll() is None for process in running):
        time.sleep(0.02)
    for process in running:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Error:
    """The stderr of several processes as one. failing: the process that said that it is about to fail."""

    def __init__(self) -> None:
        self.failing: subprocess.Popen | None = None
        self._printed: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._heard: list[subprocess.Popen | None] = []
        self._threads: list[threading.Thread] = []

    def pass_on(self, process: subprocess.Popen) -> None:
        """Print what comes from a process, but for lines that another has printed as often."""
        self._threads.append(threading.Thread(target=self._read, args=(process,), daemon=True))
        self._threads[-1].start()

    def only(self, process: subprocess.Popen | None) -> None:
        """Print nothing any more but what comes from this process."""
        with self._lock:
            self._heard.append(process)

    def finish(self) -> None:
        """Wait for what was written before the processes ended."""
        for thread in self._threads:
            thread.join(GRACE)

    def _read(self, process: subprocess.Popen) -> None:
        own: Counter[bytes] = Counter()
        for line in process.stderr:
            with self._lock:
                if line == FAILING:
                    self.failing = self.failing or process
                    continue
                own[line] += 1
                heard = not self._heard or self._heard[-1] is process
                if heard and self.failing in (None, process) and own[line] > self._printed[line]:
                    self._printed[line] = own[line]
                    os.write(2, line)


class _Make:
    """The make that waits for this process. It passes on SIGTERM only.

    That it got another signal shows in its status: it no longer catches that signal, and waits for this process to end.
    """

    def __init__(self) -> None:
        self._status = Path(f"/proc/{os.getppid()}/status")
        self._caught = self._catches()

    def told(self) -> list[int]:
        """The signals that make has got since."""
        dropped = self._caught & ~self._catches()
        return [number for number in SIGNALS if dropped >> (number - 1) & 1]

    def _catches(self) -> int:
        try:
            fields = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        except (OSError, ValueError):
            return ~0  # none waits, or this system does not tell
        return int(fields["SigCgt"], 16) if fields["Name"].strip() in ("make", "gmake") else ~0
