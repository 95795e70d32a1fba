"""Pairs of picture and caption by one name: `scenes`, `labelled:<set>`, `csv:<file>`, `shards:<pattern>`: what CLIPs
are poisoned, cleaned and defended with.

scenes   drawn on the spot, see `shared.data.scene_sets`, and kept in memory
labelled the training pictures of a set of `shared.data.catalogue` without the tenth that settings are chosen on, each
         with its class name in a template (`shared.data.captioned`); kept in memory, as large as the set has them
csv      below DATA_ROOT a table with a line of column names, comma or tab between them: the first of path, image,
         filepath that is there for the picture (relative to the table's folder) and the first of caption, title, text.
         A row is one line: between commas a field may stand in quotes, between tabs a quote is a character like others
shards   below DATA_ROOT tar files as web data sets have them, see `shared.data.shards`: pictures <key>.jpg (.jpeg,
         .png, .webp) with <key>.txt or <key>.json {"caption": …} beside them. The pattern has ranges {00000..00331},
         lists {a,b}, or *, ? and [ ]

Which n of the pairs there are is a function of the seed, and fewer of them are the beginning of more. Pictures are
squashed, not cropped, to size × size pixels (bicubic), as the code of the CLIP backdoor literature does. Rows and
members that are no pair stop the run, with how many there are and what the first is; with skip_corrupt they are left
out and counted. A pair whose picture cannot be read stops the run and is named; with skip_corrupt another one stands in
for it (the first that can be read of those behind the chosen ones in the order of the seed), which is counted. Captions
alone are those of the table or the shards in any case.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from shared.data.base import Subset, stack
from shared.data.captioned import Captioned
from shared.data.catalogue import Source, open_set
from shared.data.files import Squashed, UnreadableImage, decode, read_picture
from shared.data.poison import Held
from shared.data.scene_sets import ScenePairs
from shared.data.shards import CAPTION, Shards, Text
from shared.data.skipped import HOW, Skipped, is_utf8, say
from shared.data.targets import captions_of
from shared.errors import UserError
from shared.files import digest, sha256_file
from shared.rng import SampleRng

PICTURES = ("path", "image", "filepath")  # names of columns
STAND_INS = 100  # pairs that are tried in the place of one that cannot be read


class Store(Protocol):
    """Where pairs lie: numbered, each with a caption (or another `Text`) and the bytes of a picture.

    problems: what is no pair and left out, in words.
    """

    problems: Sequence[str]

    def __len__(self) -> int: ...

    def caption(self, number: int) -> str: ...

    def name(self, number: int) -> str:
        """The picture's, for people."""

    def identity(self, number: int) -> list:
        """What tells the pair from another: its name, and the contents of the file that its picture is in."""

    def content(self, number: int) -> bytes:
        """The picture as it is stored. Raises UnreadableImage if it is not there."""


class FilePairs(torch.utils.data.Dataset):
    """n pairs of a store: pictures (N, 3, size, size) float32 in [0, 1] and captions.

    skipped: what the store left out, and the pictures for which another one stands in.
    """

    def __init__(
        self, spec: str, store: Store, n: int, seed: int, size: int, skip_corrupt: bool = False, fast: bool = False
    ):
        settle(spec, store.problems, skip_corrupt)
        _demand(n, spec, len(store))
        self.name, self.store, self.n, self.seed, self.size, self.skip_corrupt = (
            spec,
            store,
            n,
            seed,
            size,
            skip_corrupt,
        )
        self.fit = Squashed(size, size, "bicubic-fast" if fast else "bicubic")
        self._order = _order(len(store), seed)
        self._bad = Skipped(spec)

    def __len__(self) -> int:
        return self.n

    @cached_property
    def version(self) -> str:
        """Digest of the captions of the chosen pairs, of what their pictures are read from, and of the size."""
        chosen = [[self.store.caption(i), *self.store.identity(i)] for i in self._order[: self.n].tolist()]
        fast = [self.fit.interpolation] if self.fit.interpolation.endswith("-fast") else []
        return digest([*chosen, self.size, *fast])[:16]

    @property
    def skipped(self) -> tuple[str, ...]:
        return (*self.store.problems, *self._bad.names)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions without their pictures."""
        return [self.store.caption(self._number(i)) for i in indices]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, size, size) in [0, 1] and N captions. Raises IndexError outside 0 … n − 1, UserError as the
        module says."""
        rows = [self._read(int(i)) for i in indices]
        if not rows:
            return torch.empty(0, 3, self.size, self.size), []
        return stack([x for x, _ in rows], self.name).float().div_(255), [text for _, text in rows]

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        x, texts = self.__getitems__([index])
        return x[0], texts[0]

    def _number(self, index: int) -> int:
        if not 0 <= int(index) < self.n:
            raise IndexError(f"{self.name}: there are {self.n} pairs, 0 … {self.n - 1}")
        return int(self._order[int(index)])

    def _read(self, index: int) -> tuple[Tensor, str]:
        number = self._number(index)
        for turn in range(STAND_INS):
            try:
                return self._picture(number), self.store.caption(number)
            except UnreadableImage:
                if not self.skip_corrupt:
                    raise
                self._bad.replaced(number, self.store.name(number))
            # a function of the index and the files alone: whatever was read before, a pair is the same
            number = int(self._order[(self.n + index + turn) % len(self.store)])
        raise UserError(
            f"{self.name}: {STAND_INS} pictures in a row cannot be read, the last is {self.store.name(number)}: check "
            "the files."
        )

    def _picture(self, number: int) -> Tensor:
        """(3, size, size) uint8."""
        return decode(self.store.content(number), self.store.name(number), self.fit)


def _order(n: int, seed: int) -> Tensor:
    """A permutation of 0 … n − 1, of which the first are the choice."""
    draw = int(SampleRng(seed, [0], "pairs").integers(2**62))
    return torch.randperm(n, generator=torch.Generator().manual_seed(draw))


def _demand(n: int, spec: str, there: int) -> None:
    """Refuse more pairs than there are."""
    if n > there:
        raise UserError(
            f"{spec} has {there} pairs that can be used, and {n} are wanted: ask for fewer, or put more there."
        )


def settle(name: str, problems: Sequence[str], skip_corrupt: bool) -> None:
    """Refuse what is no pair, or with skip_corrupt count and name it on stderr."""
    if problems and not skip_corrupt:
        raise UserError(
            f"{name}: {len(problems):,} things cannot be read, the first is: {problems[0]}. Mend them, or {HOW}."
        )
    if problems:
        say(name, f"{len(problems):,} things cannot be read and are left out", problems)


class Table:
    """The pairs of a CSV or TSV file. of: the text of a pair. problems: rows that are none.

    Raises UserError for a file that is missing, no table, without such columns, or with one of them twice.
    """

    def __init__(self, path: Path, of: Text = CAPTION):
        self.path, self.of, self.rows, self.problems = path, of, [], []
        unread = f"{path} cannot be read as a table of pictures and {of.name}s:"
        try:
            if path.exists() and not path.is_file():
                raise UserError(f"{unread} it is no file.")
            # what is not UTF-8 is found row by row; lines end where they end in the file
            with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                self._fill(file)
        except FileNotFoundError:
            raise UserError(
                f"there is no file {path}: put it there, or set DATA_ROOT (judge: --data-root) to the folder it is in."
            ) from None
        except OSError as error:
            raise UserError(f"{unread} {error.strerror}.") from None

    def _fill(self, lines: Iterable[str]) -> None:
        lines = iter(lines)
        first = next(lines, "")
        separator = "\t" if "\t" in first else ","
        try:
            names = [name.strip().lower() for name in _fields(first, separator)]
        except ValueError as error:
            raise UserError(
                f"{self.path}: the line of column names {error}: write the table as UTF-8, with commas or tabs."
            ) from None
        columns = [next((names.index(n) for n in known if n in names), None) for known in (PICTURES, self.of.columns)]
        if None in columns:
            found = ", ".join(names[:6]) or "nothing"
            raise UserError(
                f"{self.path} begins with the columns {found}: name one of them {' or '.join(PICTURES)}, "
                f"with the paths of downloaded pictures, and one {' or '.join(self.of.columns)}, with commas or "
                "tabs between them."
            )
        twice = [names[column] for column in columns if names.count(names[column]) > 1]
        if twice:
            raise UserError(f"{self.path} has more than one column {twice[0]}: rename those that are not meant.")
        for number, line in enumerate(lines, 2):
            if not line.strip(" \r\n"):
                continue
            try:
                row = _fields(line, separator)
                if len(row) != len(names):
                    rule = "a comma within a field needs quotes around it" if separator == "," else "no field has a tab"
                    raise ValueError(
                        f"has {len(row)} fields and the first line {len(names)} ({rule}; none has a line break)"
                    )
                picture, text = (row[column].strip() for column in columns)
                if not picture or not text:
                    raise ValueError(f"lacks a picture or a {self.of.name}")
                self.rows.append((picture, text))
            except ValueError as error:
                self.problems.append(f"row {number} of {self.path} {error}")

    def __len__(self) -> int:
        return len(self.rows)

    def caption(self, number: int) -> str:
        return self.rows[number][1]

    def name(self, number: int) -> str:
        return os.path.join(self.path.parent, self.rows[number][0])

    def identity(self, number: int) -> list:
        try:
            return [self.rows[number][0], sha256_file(self.name(number))]
        except OSError:  # whoever needs it says what is wrong with it
            return [self.rows[number][0], "unreadable"]

    def content(self, number: int) -> bytes:
        return read_picture(self.name(number))


def _fields(line: str, separator: str) -> list[str]:
    """The fields of one line. Raises ValueError, in words that go on after "row 7"."""
    line = line.rstrip("\r\n")
    if not is_utf8(line):
        raise ValueError("is not UTF-8")
    if "\0" in line:
        raise ValueError("holds a character of number 0")
    if separator == "\t":
        return line.split(separator)
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"has quotes that do not fit, or a line break within them ({error})") from None


class PairSubset(torch.utils.data.Dataset):
    """Some of the pairs of a set, by their indices."""

    def __init__(self, pairs, indices: Sequence[int]):
        self.pairs, self.indices = pairs, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def version(self) -> str:
        return digest([self.pairs.version, self.indices])[:16]

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions without their pictures."""
        return captions_of(self.pairs, [self.indices[int(i)] for i in indices])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        return self.pairs.__getitems__([self.indices[int(i)] for i in indices])


def open_pairs(spec: str, source: Source, n: int, seed: int, size: int = 32) -> Held | FilePairs:
    """n pairs of `spec` (see above): with `version`, a length, `captions(indices)`, and `__getitems__(indices)` ->
    pictures (N, 3, size, size) in [0, 1] and N captions.

    seed: of the choice; pairs of the scenes world are disjoint for different seeds, pairs from files are not. Raises
    UserError for an unknown spec, without DATA_ROOT, for fewer than n pairs, and for what is missing or damaged among
    the files.
    """
    kind, _, name = spec.partition(":")
    if n < 1 or size < 1:
        raise UserError(f"{n} pairs of {size} pixels cannot be opened: use 1 or more of each.")
    if spec == "scenes":
        return Held(ScenePairs(n, size, seed))
    if kind == "labelled" and name:
        data = open_set(name, "fit", source)
        _demand(n, spec, len(data))
        return Held(Captioned(Subset(data, _order(len(data), seed)[:n]), seed))
    if kind not in ("csv", "shards") or not name:
        raise UserError(
            f"the pairs {spec!r} are not understood: write scenes, labelled:<set>, csv:<file> or shards:<pattern>."
        )
    if not source.root:
        raise UserError(
            f"the pairs {spec!r} are read from files: set DATA_ROOT (or --data.source.root) to the folder that holds "
            "them."
        )
    root = Path(source.root).expanduser()
    store = Table(root / name) if kind == "csv" else Shards(root, name)
    return FilePairs(spec, store, n, seed, size, source.skip_corrupt, source.fast)
