"""No process outlives the launcher that started it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# What the launchers set for their children: `accelerate launch` with one process, and torch's elastic agent with several.
MARKS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


def tie_to_launcher() -> bool:
    """Ask the kernel to end this process when its launcher ends; True if that was done.

    The agent that starts several processes puts each in a session of its own, so that `kill -9` of the launcher's process group
    passes them by: they would compute on as orphans and race the next run for the same files. A script calls this first.
    Only under a launcher, since a script started by hand may well outlive its shell (nohup); only on Linux, which offers it.
    """
    if sys.platform != "linux" or not any(mark in os.environ for mark in MARKS):
        return False
    # SIGTERM, not SIGINT: Python's handler for the latter waits for a collective operation that can no longer end.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        return False
    if os.getppid() == 1:  # the launcher was gone before we asked
        os.kill(os.getpid(), signal.SIGTERM)
    return True
