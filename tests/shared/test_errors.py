"""What a script says when it cannot go on, and with which exit code."""

import errno
import os
import signal

import pytest

from shared.errors import DONE, UserError, run_main
from shared.lifeline import Interrupted


def end(capsys, error: BaseException | None) -> tuple[object, str]:
    """(exit code, stderr) of a script that ends by `error`."""

    def main() -> None:
        if error is not None:
            raise error

    code: object = 0
    try:
        run_main(main)
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


KEPT = "finished work is kept.\n"


@pytest.mark.parametrize(("error", "code", "said"), [
    (None, 0, ""),
    (UserError("bad input."), 2, "error: bad input.\n"),
    (KeyboardInterrupt(), 130, "interrupted: everything finished so far is saved; run the same command again to continue.\n"),
    (Interrupted(signal.SIGHUP), 129, "interrupted: everything finished so far is saved; run the same command again to continue.\n"),
    (OSError(errno.ENOSPC, "No space left"), 28, f"error: the disk is full: free some space and run the same command again; {KEPT}"),
    (OSError(errno.EDQUOT, "Quota", "/a"), 28, f"error: the quota is used up at /a: free some space and run the same command again; {KEPT}"),
    (OSError(errno.EROFS, "Read-only file system", "/a"), 2,
     f"error: /a cannot be used (Read-only file system): mend that, or choose another folder (RESULTS=…); {KEPT}"),
    (SystemExit(3), 3, ""),
])  # fmt: skip
def test_one_line_and_an_exit_code(capsys, error, code, said):
    assert end(capsys, error) == (code, said)


def test_what_the_user_cannot_mend_keeps_its_trace(capsys):
    for error in (ZeroDivisionError(), OSError("no number and no file"), OSError(errno.ECONNRESET, "Connection reset")):
        with pytest.raises(type(error)):
            end(capsys, error)


@pytest.mark.parametrize(
    ("error", "noted"), [(None, True), (SystemExit(0), True), (SystemExit(2), False), (UserError("bad."), False)]
)
def test_a_script_notes_that_it_came_to_its_end(capsys, monkeypatch, tmp_path, error, noted):
    monkeypatch.setitem(os.environ, DONE, str(tmp_path / "done"))
    end(capsys, error)
    assert (tmp_path / "done").exists() == noted
