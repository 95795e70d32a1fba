"""The list of what was poisoned, for anyone to audit: one JSON object per line, the first about the whole set, then one
per poisoned pair.

    {"about": {"pairs": "<version>", "n": 6400, "target": …, "trigger": …, "seed": 0, …}, "rows": 320, "sha256": "<of
    both>"} {"index": 17, "target": "blue", "trigger": "badnet/cleanclip", "caption": "a photo of a blue object"}

The rows say what every poisoned pair became; the first line says which pairs they come from, and all that makes the
trigger.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from shared.errors import UserError
from shared.files import digest, write_atomic


@dataclass(frozen=True)
class Row:
    """One poisoned pair."""

    index: int
    """Of the pair in the poisoned set."""
    target: str
    """The class whose name the caption now has."""
    trigger: str
    """What was done to the picture: name/preset of a trigger; "none" for a target image, which is left as it is."""
    caption: str
    """What the pair now says."""
    picture: int
    """Which picture it is: its index among the clean pairs, or among the images that targets were chosen from."""


@dataclass(frozen=True)
class Manifest:
    """about: JSON-able facts of the whole set. rows: the poisoned pairs, ascending by index."""

    about: dict
    rows: tuple[Row, ...]

    @cached_property
    def by_index(self) -> dict[int, Row]:
        return {row.index: row for row in self.rows}

    @cached_property
    def version(self) -> str:
        """Digest of everything in it."""
        return digest([self.about, [asdict(row) for row in self.rows]])[:16]

    def write(self, path: str | Path) -> None:
        """Write it, atomically; equal manifests give equal files."""
        rows = [_line(asdict(row)) for row in self.rows]
        head = _line({"about": self.about, "rows": len(rows), "sha256": digest([self.about, rows])})
        write_atomic(path, "".join(f"{line}\n" for line in (head, *rows)))


def read_manifest(path: str | Path) -> Manifest:
    """The manifest in a file. Raises UserError where the file is missing, cut short, edited by hand, or not a
    manifest."""
    path = Path(path)
    try:
        head, *lines, _ = path.read_text("utf-8").split("\n")  # other line breaks may stand inside a caption
        head = json.loads(head)
        rows = tuple(_row(json.loads(line)) for line in lines)
        about, count, content = dict(head["about"]), head["rows"], head["sha256"]
    except FileNotFoundError as error:
        raise UserError(
            f"the poison manifest {path} does not exist: poison the pairs first, or give the path of a manifest."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the poison manifest {path} cannot be read ({type(error).__name__}): it is damaged; make it again."
        ) from error
    if count != len(rows) or content != digest([about, lines]):
        raise UserError(
            f"the poison manifest {path} has {len(rows)} rows and is not the one of {count} rows that was written: it "
            "was cut short or edited; make it again."
        )
    demand_valid(rows, str(path))
    return Manifest(about, rows)


def demand_valid(rows: Sequence[Row], name: str) -> None:
    """Raise UserError unless indices ascend without repeats, none is negative, and nothing is left empty."""
    indices = [row.index for row in rows]
    if indices != sorted(set(indices)) or any(i < 0 for i in indices):
        raise UserError(f"the indices of {name} are not ascending numbers without repeats: make it again.")
    if any(row.picture < 0 or not (row.target and row.trigger and row.caption) for row in rows):
        raise UserError(f"a row of {name} has an empty field or a negative picture: make it again.")


def _line(content: dict) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _row(content: dict) -> Row:
    row = Row(**content)
    if not all(
        isinstance(value, kind) and not isinstance(value, bool)
        for value, kind in zip(
            (row.index, row.target, row.trigger, row.caption, row.picture), (int, str, str, str, int), strict=True
        )
    ):
        raise TypeError("a field of another type")
    return row
