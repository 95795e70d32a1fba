"""Random access to the pairs in the tar files of a web data set, through a table of contents that is made once.

The table says where in which file each picture begins and ends, and holds the texts (captions, or labels): reading a
pair is one seek. It is kept beside the files, or where nothing can be written there, in the user's cache folder, and it
is made anew when a file has come, gone or changed its length or its time.

The webdataset package is not the reader: it is a stream, so a run could go on only by reading everything before once
more; its keys end at the first dot (v1.5_0001 and v1.5_0002 become one); and samples that lack a part are not counted.
Its patterns are those of the package braceexpand, as here.

A key is the name up to its last dot, folders included. Of a sample, one picture and one text (see `Text`) are
read; further members, such as 0001.cls or 0001.seg.png beside a complete 0001, hidden files and those that network
disks and archivers leave, are counted by kind. Everything else that is no pair is a problem: a key without picture or
text, or with several; texts that are no UTF-8; links; what a break hides. Tars that were joined end to end are
read to their end.
"""

import functools
import glob
import json
import math
import os
import posixpath
import re
import stat
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from braceexpand import UnbalancedBracesError, braceexpand

from shared.data.files import unreadable
from shared.data.folders import is_service
from shared.data.skipped import say_unread, shown
from shared.errors import UserError
from shared.files import atomic_path, digest, sha256_file

FORMAT = 2  # of the table; raise it when what is in it changes
PICTURES = ("jpg", "jpeg", "png", "webp")
MOST_FILES = 1_000_000  # that a pattern may stand for
LONGEST = 2**20  # bytes of a text's file
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")
_DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError)


@dataclass(frozen=True)
class Text:
    """What stands beside a picture, by its name, and where it is looked for; of several places the first counts.

    pairs: name of the pairs with it. suffixes: of the members of a shard. keys: of a .json, whose value has one of
    `types`. columns: of a table.
    """

    name: str
    pairs: str
    suffixes: tuple[str, ...]
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    types: tuple[type, ...] = (str,)

    def of_json(self, content: bytes) -> str:
        """What a .json says, "" where it does not. Raises ValueError or RecursionError where it cannot be read."""
        said = json.loads(content)
        found = [said[key] for key in self.keys if type(said.get(key)) in self.types] if isinstance(said, dict) else []
        return str(found[0]).strip() if found else ""


CAPTION = Text("caption", "pairs", ("txt", "json"), ("caption",), ("caption", "title", "text"))
LABEL = Text(
    "label",
    "labels",
    ("cls", "txt", "json"),
    ("label", "class", "caption"),
    ("label", "class", *CAPTION.columns),
    (str, int),
)


def expand(pattern: str) -> list[str]:
    """A pattern without its braces, as bash and webdataset read it.

    a{08..10}.tar is a08.tar, a09.tar, a10.tar; {a,b} is a and b; {0..8..4} is 0, 4 and 8. Raises UserError for braces
    that do not close, and for more than MOST_FILES names.
    """
    if math.prod(abs(int(b) - int(a)) + 1 for a, b in _RANGE.findall(pattern)) > MOST_FILES:
        raise UserError(f"the pattern {pattern!r} stands for more than {MOST_FILES:,} files: write smaller ranges.")
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError:
        raise UserError(
            f"the pattern {pattern!r} has a brace without its partner: write e.g. {{00000..00331}} or {{a,b}}."
        ) from None


def shard_files(root: Path, pattern: str) -> list[str]:
    """Paths relative to root, each once: what braces stand for, there or not, and * and ? in alphabetical order."""
    found: list[str] = []
    for name in expand(pattern):
        is_pattern = glob.has_magic(name) and not os.path.lexists(root / name)
        found += (is_pattern and sorted(glob.glob(name, root_dir=root))) or [name]
    return list(dict.fromkeys(map(os.path.normpath, found)))


class Shards:
    """The pairs of tar files, as a store of `shared.data.pairs`. of: the text of a pair.

    problems: missing, broken and compressed files, and members that are no pair. Raises UserError where
    there is no file at all.
    """

    def __init__(self, root: Path, pattern: str, of: Text = CAPTION):
        self.root, self.names, self.of = Path(root), shard_files(Path(root), pattern), of
        present = [self._facts(name) for name in self.names]
        if not any(size >= 0 for _, size, _ in present):
            raise UserError(
                f"there is no file {self.root / pattern}: put the shards there, or set DATA_ROOT (judge: --data-root) "
                "to the folder that holds them."
            )
        table = self._table(pattern, present)
        self.problems: list[str] = table["about"]["problems"]
        say_unread(str(self.root / pattern), Counter(table["about"]["unread"]))
        self._shard, self._start, self._length, self._ends, self._texts, self._keys, self._key_ends = (
            table[k] for k in ("shard", "start", "length", "ends", "texts", "keys", "key_ends")
        )

    def __len__(self) -> int:
        return len(self._shard)

    def caption(self, number: int) -> str:
        return _cut(self._texts, self._ends, number)

    def name(self, number: int) -> str:
        return f"{shown(_cut(self._keys, self._key_ends, number))} in {self._path(number)}"

    def identity(self, number: int) -> list:
        shard = int(self._shard[number])
        return [os.path.basename(self.names[shard]), _cut(self._keys, self._key_ends, number), self._digest(shard)]

    @functools.cache  # noqa: B019 - a store lives as long as its set
    def _digest(self, shard: int) -> str:
        return sha256_file(self.root / self.names[shard])

    def content(self, number: int) -> bytes:
        length = int(self._length[number])
        try:
            with open(self._path(number), "rb") as file:
                file.seek(int(self._start[number]))
                content = file.read(length)
        except OSError as error:
            raise UserError(f"the shard {self._path(number)} cannot be read: {error.strerror}.") from None
        if len(content) < length:
            raise unreadable(self.name(number), "is cut off")
        return content

    def _path(self, number: int) -> Path:
        return self.root / self.names[self._shard[number]]

    # -- the table of contents ----------------------------------------------------------------------------------------------------------------

    def _facts(self, name: str) -> list:
        try:
            facts = os.stat(self.root / name)
        except OSError:
            return [name, -1, 0]
        return [name, facts.st_size, facts.st_mtime_ns] if stat.S_ISREG(facts.st_mode) else [name, -1, 0]

    def _table(self, pattern: str, present: list) -> dict:
        file = f".{self.of.pairs}-{digest(pattern)[:12]}.npz"
        folder = self.root / os.path.dirname(next(name for name, size, _ in present if size >= 0))
        places = [folder / file, cache_folder() / f"{digest(str(self.root.absolute()))[:12]}{file}"]
        for place in places:
            table = _load(place)
            if table is not None and table["about"]["files"] == present:
                return table
        print(f"{self.of.pairs}: reading the contents of {len(self.names)} shards, once", file=sys.stderr, flush=True)
        table = contents(self.root, present, self.of)
        for place in places:
            try:
                with atomic_path(place) as temporary:
                    np.savez(temporary, **{**table, "about": np.array(json.dumps(table["about"]))})
                break
            except OSError:
                continue  # read-only, or full: the next place, or none, and the contents are read again next time
        return table


def contents(root: Path, present: Sequence[Sequence], of: Text) -> dict:
    """The table of some files (name, length, time): arrays over the pairs, and in "about" which files it is of and what
    is left out."""
    rows: list[tuple] = []
    problems: list[str] = []
    unread: Counter = Counter()
    for k, (name, size, _) in enumerate(present):
        if size < 0:
            problems.append(f"the shard {root / name} is missing, or no file")
            continue
        found, wrong, others = _members(root / name, of)
        rows += [(k, *row) for row in found]
        problems += wrong
        unread += others
    texts, keys = ([row[i].encode("utf-8", "surrogateescape") for row in rows] for i in (4, 1))
    return {
        "about": {"format": FORMAT, "files": [list(p) for p in present], "problems": problems, "unread": unread},
        "shard": np.array([row[0] for row in rows], np.int32),
        "start": np.array([row[2] for row in rows], np.int64),
        "length": np.array([row[3] for row in rows], np.int64),
        "texts": np.frombuffer(b"".join(texts), np.uint8),
        "ends": _ends(texts),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_ends": _ends(keys),
    }


class _Sample:
    """What a shard has under one key: where its pictures lie, and the contents of its texts by suffix.

    wrong: why it cannot be read.
    """

    def __init__(self, of: Text):
        self.of, self.wrong = of, ""
        self.pictures: list[tuple[int, int]] = []
        self.texts: dict[str, bytes] = {}

    def problem(self) -> str:
        """Why it is no pair; empty for a pair."""
        no_text = "" if self.texts else f"has no {self.of.name}"
        return self.wrong or ("" if self.pictures else "has no picture") or no_text

    def text(self) -> str:
        """What the first of its texts says. Raises ValueError, in words that go on after the key."""
        text = ""
        try:
            for suffix in self.of.suffixes:
                content = b"" if text else self.texts.get(suffix, b"")
                if content:
                    text = self.of.of_json(content) if suffix == "json" else content.decode("utf-8-sig").strip()
            text.encode()  # JSON can spell halves of characters
        except UnicodeError:
            raise ValueError(f"has a {self.of.name} that is not UTF-8") from None
        except (ValueError, RecursionError):
            raise ValueError(f"has a .json that cannot be read, and no {self.of.name}") from None
        if not text or "\0" in text:
            no_text = f"has a {self.of.name} with a character of number 0" if text else f"has no {self.of.name}"
            raise ValueError(no_text)
        return text


def _members(path: Path, of: Text) -> tuple[list[tuple[str, int, int, str]], list[str], Counter]:
    """([(key, where its picture begins, how long it is, text)], what is wrong, further members by kind) of one file.

    What comes before a break is kept.
    """
    samples: dict[str, _Sample] = {}
    problems: list[str] = []
    unread: Counter = Counter()
    try:
        with open(path, "rb") as whole:
            for tar, member in _archives(whole):
                _take(tar, member, samples, unread, of)
    except OSError as error:
        problems.append(f"the shard {path} cannot be read ({error.strerror or error})")
    except _DAMAGED as error:
        problems.append(f"the shard {path} is broken or compressed ({error})")
    rows = []
    for key, sample in samples.items():
        try:
            if what := sample.problem():
                raise ValueError(what)
            rows.append((key, *sample.pictures[0], sample.text()))
        except ValueError as error:
            folder, base = posixpath.split(key)
            owner = samples.get(posixpath.join(folder, base.partition(".")[0]))
            if "." in base and not sample.wrong and owner is not None and not owner.problem():
                unread[f".{base.partition('.')[2]}.* (beside a pair)"] += 1
            else:
                problems.append(f"{shown(key)} in {path} {error}")
    return rows, problems, unread


def _archives(whole: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Every member of a file of one tar or several joined ones. Raises EOFError or tarfile's errors at a break."""
    while True:
        with tarfile.open(fileobj=whole, mode="r:") as tar:
            for member in tar:
                yield tar, member
            whole.seek(tar.offset)
        if whole.read(512) != bytes(512):  # tarfile does not mind a file that stops between two members
            raise EOFError(f"its end is missing at byte {tar.offset:,}")
        while (block := whole.read(512)) == bytes(512):
            pass
        if not block.strip(b"\0"):
            return
        whole.seek(-len(block), os.SEEK_CUR)


def _take(
    tar: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, _Sample], unread: Counter, of: Text
) -> None:
    name = posixpath.normpath(member.name)
    stem, dot, suffix = name.rpartition(".")
    suffix = suffix.lower() if dot and "/" not in suffix else ""
    if member.isdir():
        return
    if any(map(is_service, name.split("/"))):
        unread["hidden files"] += 1
    elif suffix not in (*PICTURES, *of.suffixes):
        unread[f".{suffix}" if suffix else "files without a suffix"] += 1
    else:
        sample = samples.setdefault(stem, _Sample(of))
        if not member.isreg() or member.issparse():
            sample.wrong = f"is a link or no plain file ({posixpath.basename(name)})"
        elif suffix in PICTURES:
            sample.pictures.append((member.offset_data, member.size))
        elif suffix in sample.texts:
            sample.wrong = f"has more than one .{suffix}"
        elif member.size > LONGEST:
            sample.wrong = f"has a .{suffix} of {member.size:,} bytes, which is no {of.name}"
        else:
            sample.texts[suffix] = tar.extractfile(member).read()
        if len(sample.pictures) > 1:
            sample.wrong = "has more than one picture"


def _ends(parts: Sequence[bytes]) -> np.ndarray:
    return np.cumsum([len(p) for p in parts], dtype=np.int64)


def _cut(everything: np.ndarray, ends: np.ndarray, number: int) -> str:
    return everything[ends[number - 1] if number else 0 : ends[number]].tobytes().decode("utf-8", "surrogateescape")


def _load(place: Path) -> dict | None:
    """A table that was kept, or None: none there, damaged, or of another format."""
    try:
        with np.load(place, allow_pickle=False) as kept:
            table = {**kept, "about": json.loads(str(kept["about"]))}
        lengths = {len(table[k]) for k in ("shard", "start", "length", "ends", "key_ends")}
        return table if table["about"]["format"] == FORMAT and len(lengths) == 1 else None
    except Exception:  # whatever a damaged archive makes NumPy and zipfile raise
        return None


def cache_folder() -> Path:
    """Where tables go that cannot be kept beside their files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm-robustness"
