"""Errors a user caused and can mend."""

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """One sentence for the user: what is wrong and what to do. Scripts print it without a traceback and exit with 2."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; turn a `UserError`, an interrupt or a full disk into one line on stderr and a non-zero exit code.

    Exit codes: 2 for a `UserError` and a file that may not be read or written, 130 for Ctrl-C, 28 (ENOSPC) for a full disk.
    """
    try:
        main()
    except UserError as error:
        sys.exit(_say(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted: everything finished so far is saved; run the same command again to continue.", 130))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            sys.exit(_say(f"error: {error.filename} cannot be used ({error.strerror}): give it the rights, or choose another folder (RESULTS=…).", 2))
        if error.errno != errno.ENOSPC:
            raise
        where = f" at {error.filename}" if error.filename else ""
        sys.exit(_say(f"error: the disk is full{where}: free some space and run the same command again; finished work is kept.", 28))


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return code
