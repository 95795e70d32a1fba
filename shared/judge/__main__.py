"""`vlm-robust judge …` and `vlm-robust compare A B`, or `python -m shared.judge …`; docs/judge.md has examples."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.errors import UserError, run_main
from shared.experiment.launch.__main__ import start
from shared.experiment.scales import ROOT
from shared.files import check_folder
from shared.judge.options import Compare, Config
from shared.judge.page import compare
from shared.lifeline import STARTED, tie_to_launcher
from shared.options import from_command_line

USAGE = "usage: vlm-robust judge [options] | vlm-robust compare A B   (--help after either)"


def parse(argv: Sequence[str]) -> Config | Compare:
    """Raises UserError for what is neither command, and for numbers out of bounds."""
    kind = {"judge": Config, "compare": Compare}.get(argv[0] if argv else "")
    if kind is None:
        raise UserError(USAGE)
    return from_command_line(kind, args=list(argv[1:]), prog=f"vlm-robust {argv[0]}")


def run(argv: Sequence[str]) -> None:
    """The whole of a command, in this process (and those that a launcher has started with it)."""
    options = parse(argv)
    check_folder(options.out, "--out")
    if isinstance(options, Compare):
        print(compare(options))
        return
    from shared.judge.run import judge  # and torch

    judge(options)


def refuse_namesakes() -> None:
    """Raises UserError where a package in this folder would be imported in place of one of ours, installed
    elsewhere."""
    for room in ("shared", "papers"):
        if Path(room, "__init__.py").is_file() and Path(room).resolve() != ROOT / room:
            raise UserError(
                f"the folder {Path.cwd()} has a package named {room}, which hides the one of vlm-robust: start "
                "elsewhere."
            )


def main() -> None:
    """From the command line to the exit code; `judge` starts its processes first."""
    tie_to_launcher()
    argv = sys.argv[1:]

    def command() -> None:
        refuse_namesakes()
        options = None if STARTED in os.environ else parse(argv)
        if isinstance(options, Config):
            sys.exit(start(["-m", "shared.judge", *argv], options.device))
        run(argv)

    run_main(command)


if __name__ == "__main__":
    main()
