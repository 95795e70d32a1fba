"""What of a data set is not read: refused, or counted and named. Every reader says it through this file."""

import os
import sys
from collections import Counter
from collections.abc import Sequence

HOW = "pass --skip-corrupt to go on without and count them"


def shown(name: str | os.PathLike) -> str:
    """A file name for people, on one line: bytes that are not UTF-8 as \\xNN, a line break as \\n."""
    text = os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_utf8(text: str) -> bool:
    """Whether a text that was read with surrogates in the place of other bytes has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def say(name: str, what: str, items: Sequence[str]) -> None:
    """One line on stderr: "NAME: WHAT: a, b, c …"."""
    few = ", ".join(map(shown, items[:3]))
    print(f"{shown(name)}: {what}: {few}{' …' if len(items) > 3 else ''}", file=sys.stderr, flush=True)


def say_unread(name: str, kinds: Counter) -> None:
    """One line on stderr about files that no picture or caption depends on, by kind. Nothing where there are none."""
    if kinds:
        found = "; ".join(f"{count:,} × {shown(kind)}" for kind, count in kinds.most_common(8))
        print(f"{shown(name)}: not read: {found}{'; …' if len(kinds) > 8 else ''}", file=sys.stderr, flush=True)


class Skipped:
    """Pictures that were found to be unreadable, each under a key: counted and named while the set is used."""

    def __init__(self, name: str):
        self.name, self._found = name, {}

    def __contains__(self, key: int) -> bool:
        return key in self._found

    def __len__(self) -> int:
        return len(self._found)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the keys."""
        return tuple(self._found[key] for key in sorted(self._found))

    def add(self, key: int, what: str) -> bool:
        """Whether it is new."""
        new = key not in self._found
        self._found.setdefault(key, what)
        return new

    def replaced(self, key: int, what: str) -> None:
        """Another one stands in for it; said at the first, the tenth, the hundredth …"""
        if self.add(key, what) and str(len(self)).strip("0") == "1":
            what_for = f"{len(self):,} pictures so far cannot be read and others stand in for them, the last is"
            say(self.name, what_for, [what])
