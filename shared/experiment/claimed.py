"""Who makes what, where several runs work on one results folder at once: the nodes of a cluster, or the tasks of a
Slurm array.

For everything that is to be made a process locks one byte of <root>/.claims, at a place that follows from its key, and
makes it only with the lock. The system gives a lock back when its process ends, however that is, so that another takes
over what a killed one has left; nothing has to be tidied up, and no clocks are compared. Such locks work on NFS; they
are between processes, so they do for the processes of one run too.
"""

import fcntl
import hashlib
import os
from pathlib import Path

from shared.errors import UserError

PLACES = 1 << 62  # offsets in a file are 63 bits


class Claims:
    """The locks of one process. One object for a folder and process: closing the file would give all of them back."""

    def __init__(self, root: Path):
        """Raises UserError where the folder cannot be written."""
        root.mkdir(parents=True, exist_ok=True)
        self._path = root / ".claims"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def take(self, key: str) -> bool:
        """Whether this process may make what has the key; not while another does. Raises UserError on a file system
        without locks."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise UserError(
                f"{self._path} is on a file system without locks ({error.strerror}): leave --join out, and start one "
                "run at a time there."
            ) from error
        return True

    def give_back(self, key: str) -> None:
        """Let others have it."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(key))


def _place(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % PLACES
