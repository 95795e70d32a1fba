"""What a script said last, when nothing has changed since: a second look at finished results costs a fraction of a
second, and no library for models.

At its end a script notes, under its options, every file that its keys and checks looked at (data, weights, what it
made, the plan), the folders where data lie, and the sources of the project, each with its size and times. While all of
them are as they were, it would say the same again.
"""

import contextlib
import json
import os
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from shared.files import digest, looked_at, stamp, write_json

ROOT = Path(__file__).resolve().parents[2]


def _note(paper: str, script: str, argv: Sequence[str]) -> Path:
    """Where the note of these options is; `--results` and `--scale` say where, and are found as the command line finds
    them."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--results", default="results")
    known, _ = parser.parse_known_args(list(argv))
    return Path(known.results) / known.scale / paper / "finished" / f"{script}-{digest([os.getcwd(), *argv])[:12]}.json"


def said(paper: str, script: str, argv: Sequence[str]) -> str | None:
    """What the script said last with these options, or None where something has changed (or it was never finished)."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, SystemExit):
        note = json.loads(_note(paper, script, argv).read_text())
        if all(_stamp(path) == then for path, then in note["files"].items()) and note["sources"] == _sources(paper):
            return note["said"]
    return None


def note(paper: str, script: str, argv: Sequence[str], text: str, data: str | None) -> None:
    """Note that the script has finished and would say `text` from now on; where nothing can be written, it looks again
    next time.

    data: the folder of the data, if there is one. A file that comes into one of its folders changes the time of that.
    """
    top = Path(data).absolute() if data else None
    folders = {str(p) for name in looked_at for p in Path(name).parents if top and (p == top or top in p.parents)}
    with contextlib.suppress(OSError):
        files = {name: _stamp(name) for name in sorted(looked_at | folders)}
        write_json(_note(paper, script, argv), {"said": text, "sources": _sources(paper), "files": files})


def _stamp(path: str) -> list[int] | None:
    """None: there is no such file, which is as much worth noting."""
    try:
        return stamp(path)
    except FileNotFoundError:
        return None


def _sources(paper: str) -> str:
    files = [
        p
        for folder in (ROOT / "shared", ROOT / "papers" / paper)
        for p in folder.rglob("*")
        if p.suffix in (".py", ".json", ".toml", ".html", ".css", ".js")
    ]
    return digest([[str(p), *stamp(p)] for p in sorted(files)])
