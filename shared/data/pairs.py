"""Pairs of picture and caption by one name: `scenes`, `csv:<file>`, `shards:<pattern>`; what CLIPs are poisoned, cleaned and defended with.

scenes   drawn on the spot, see `shared.data.scene_sets`, and kept in memory
csv      below DATA_ROOT a table with a line of column names, comma or tab between them: one of path, image, filepath for the picture (relative to the
         table's folder) and one of caption, title, text
shards   below DATA_ROOT tar files as web data sets have them: pictures <key>.jpg (.jpeg, .png, .webp) with <key>.txt or <key>.json {"caption": …}
         beside them, <key> up to the first dot. The pattern has ranges {00000..00331}, or *, ? and [ ]; not compressed, see `shared.data.shards`

Which n of the pairs there are is a function of the seed, and fewer of them are the beginning of more. Pictures are squashed, not cropped, to
size × size pixels (bicubic), as the code of the CLIP backdoor literature does. A pair whose picture cannot be read stops the run and is named; with
skip_corrupt another one stands in for it (the first that can be read of those behind the chosen ones in the order of the seed), which is counted.
Captions alone are those of the table or the shards in any case.
"""

import csv
import io
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from shared.data.base import stack
from shared.data.catalogue import Source
from shared.data.files import UnreadableImage, to_tensor
from shared.data.poison import Held
from shared.data.scene_sets import ScenePairs
from shared.data.shards import Shards
from shared.data.targets import captions_of
from shared.errors import UserError
from shared.files import digest, sha256_file
from shared.rng import SampleRng

PICTURES, CAPTIONS = ("path", "image", "filepath"), ("caption", "title", "text")  # names of columns
STAND_INS = 100  # pairs that are tried in the place of one that cannot be read


class Store(Protocol):
    """Where pairs lie: numbered, each with a caption and the bytes of a picture."""

    def __len__(self) -> int: ...

    def caption(self, number: int) -> str: ...

    def name(self, number: int) -> str:
        """The picture's, for people."""

    def identity(self, number: int) -> list:
        """What tells the pair from another: its name, and the contents of the file that its picture is in."""

    def content(self, number: int) -> bytes:
        """The picture as it is stored. Raises UnreadableImage if it is not there."""


class FilePairs(torch.utils.data.Dataset):
    """n pairs of a store: pictures (N, 3, size, size) float32 in [0, 1] and captions. `skipped`: the pictures for which another one stands in."""

    def __init__(self, spec: str, store: Store, n: int, seed: int, size: int, skip_corrupt: bool = False):
        if n > len(store):
            raise UserError(f"{spec} has {len(store)} pairs that can be used, and {n} are wanted: ask for fewer, or put more there.")
        self.name, self.store, self.n, self.seed, self.size, self.skip_corrupt = spec, store, n, seed, size, skip_corrupt
        draw = int(SampleRng(seed, [0], "pairs").integers(2**62))
        self._order = torch.randperm(len(store), generator=torch.Generator().manual_seed(draw))
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return self.n

    @cached_property
    def version(self) -> str:
        """Digest of the captions of the chosen pairs, of what their pictures are read from, and of the size."""
        return digest([[self.store.caption(i), *self.store.identity(i)] for i in self._order[:self.n].tolist()] + [self.size])[:16]

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(self._bad[i] for i in sorted(self._bad))

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions without their pictures."""
        return [self.store.caption(self._number(i)) for i in indices]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, size, size) in [0, 1] and N captions. Raises IndexError outside 0 … n − 1, UserError as the module says."""
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
                self._leave_out(number)
            # a function of the index and the files alone: whatever was read before, a pair is the same
            number = int(self._order[(self.n + index + turn) % len(self.store)])
        raise UserError(f"{self.name}: {STAND_INS} pictures in a row cannot be read, the last is {self.store.name(number)}: check the files.")

    def _picture(self, number: int) -> Tensor:
        """(3, size, size) uint8."""
        content = self.store.content(number)
        try:
            image = Image.open(io.BytesIO(content))
            image = image if image.mode == "RGB" else image.convert("RGB")
            return to_tensor(image.resize((self.size, self.size), Image.Resampling.BICUBIC))
        except MemoryError:
            raise
        except Exception:  # PIL raises OSError, SyntaxError, ValueError, struct.error … on broken files
            raise UnreadableImage(f"the picture {self.store.name(number)} is corrupt or truncated: replace it, or pass --skip-corrupt to let others "
                                  "stand in for such pictures and count them.") from None

    def _leave_out(self, number: int) -> None:
        if number not in self._bad:
            self._bad[number] = self.store.name(number)
            if len(self._bad) in (1, 10, 100, 1000, 10_000, 100_000):
                print(f"{self.name}: {len(self._bad)} pictures so far cannot be read and others stand in for them, the last is {self._bad[number]}",
                      file=sys.stderr, flush=True)


class Table:
    """The pairs of a CSV or TSV file.

    Rows without a caption or a picture are an error, or left out and said. Raises UserError for a file that is missing, no table, without such
    columns, or with no pair in it.
    """

    def __init__(self, path: Path, skip_corrupt: bool = False):
        self.path, self.rows = path, []
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                self._fill(file, skip_corrupt)
        except FileNotFoundError:
            raise UserError(f"there is no file {path}: put it there, or set DATA_ROOT to the folder it is in.") from None
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as a table of pictures and captions ({error}): write it as UTF-8, with commas or tabs.") from None
        if not self.rows:
            raise UserError(f"{path} has no pair in it: give the complete table.")

    def _fill(self, file, skip_corrupt: bool) -> None:
        first = file.readline()
        separator = "\t" if "\t" in first else ","
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=separator), [])]
        columns = [next((names.index(n) for n in known if n in names), None) for known in (PICTURES, CAPTIONS)]
        if None in columns:
            found = ", ".join(names[:6]) or "nothing"
            raise UserError(f"{self.path} begins with the columns {found}: name one of them {' or '.join(PICTURES)}, with the paths of downloaded "
                            f"pictures, and one {' or '.join(CAPTIONS)}.")
        picture, caption = columns
        empty = 0
        for number, row in enumerate(csv.reader(file, delimiter=separator), 2):
            if not row:
                continue
            short = len(row) <= max(columns)
            if short or not row[picture].strip() or not row[caption].strip():
                if not skip_corrupt:
                    raise UserError(f"{self.path}: row {number} lacks a picture or a caption: mend it, or pass --skip-corrupt to leave out such rows "
                                    "and count them.")
                empty += 1
                continue
            self.rows.append((row[picture].strip(), row[caption].strip()))
        if empty:
            print(f"{self.path}: {empty} rows lack a picture or a caption and are left out", file=sys.stderr, flush=True)

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
        try:
            with open(self.name(number), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise UnreadableImage(f"the picture {self.name(number)} is missing: put it there, or pass --skip-corrupt to let others stand in for such "
                                  "pictures and count them.") from None
        except OSError as error:
            raise UserError(f"the picture {self.name(number)} cannot be opened: {error.strerror}.") from None


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
    """n pairs of `spec` (see above): with `version`, a length, `captions(indices)`, and `__getitems__(indices)` -> pictures (N, 3, size, size) in
    [0, 1] and N captions.

    seed: of the choice; pairs of the scenes world are disjoint for different seeds, pairs from files are not. Raises UserError for an unknown spec,
    without DATA_ROOT, for fewer than n pairs, and for what is missing or damaged among the files.
    """
    kind, _, name = spec.partition(":")
    if n < 1 or size < 1:
        raise UserError(f"{n} pairs of {size} pixels cannot be opened: use 1 or more of each.")
    if spec == "scenes":
        return Held(ScenePairs(n, size, seed))
    if kind not in ("csv", "shards") or not name:
        raise UserError(f"the pairs {spec!r} are not understood: write scenes, csv:<file> or shards:<pattern>.")
    if source.root is None:
        raise UserError(f"the pairs {spec!r} are read from files: set DATA_ROOT (or --data.source.root) to the folder that holds them.")
    root = Path(source.root).expanduser()
    if kind == "csv":
        return FilePairs(spec, Table(root / name, source.skip_corrupt), n, seed, size, source.skip_corrupt)
    return FilePairs(spec, Shards(root, name, source.skip_corrupt), n, seed, size, source.skip_corrupt)
