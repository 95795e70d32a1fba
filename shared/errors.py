"""Errors a user caused and can mend."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from shared.lifeline import STARTED, fail_first

DONE = "VLM_ROBUSTNESS_DONE"  # environment variable: a file that a script makes when it has come to its end
INTERRUPTED = "interrupted: everything finished so far is saved; run the same command again to continue."
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}


class UserError(Exception):
    """One sentence for the user: what is wrong and what to do. Scripts print it without a traceback and exit with 2."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; turn what a user can mend, and an interrupt, into one line on stderr and an exit code.

    Exit codes: 2 for a `UserError` and a file that may not be read or written, 130 for Ctrl-C (128 + n for another
    signal n), 28 (ENOSPC) for a full disk or quota.
    """
    if STARTED in os.environ:  # a launcher ends its scripts by SIGTERM: as Ctrl-C would, but that the launcher says so
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except UserError as error:
        sys.exit(_say(f"error: {error}", 2))
    except KeyboardInterrupt as stop:
        code = 128 + getattr(stop, "number", signal.SIGINT)
        sys.exit(code if STARTED in os.environ else _say(INTERRUPTED, code))
    except OSError as error:
        if error.errno in FULL:
            where = f" at {error.filename}" if error.filename else ""
            advice = "free some space and run the same command again; finished work is kept."
            sys.exit(_say(f"error: {FULL[error.errno]}{where}: {advice}", 28))
        if not error.filename:
            raise
        what = f"{error.filename} cannot be used ({error.strerror})"
        sys.exit(_say(f"error: {what}: mend that, or choose another folder (RESULTS=…); finished work is kept.", 2))
    except SystemExit as stop:
        if not stop.code:
            _note_end()
        raise
    except Exception:
        if int(os.environ.get(STARTED, "1")) > 1:
            traceback.print_exc()
            fail_first(1)
        raise
    _note_end()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _note_end() -> None:
    if DONE in os.environ:
        Path(os.environ[DONE]).touch()


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    fail_first(code)
    return code
