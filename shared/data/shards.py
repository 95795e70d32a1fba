"""Random access to the pairs in the tar files of a web data set, through a table of contents that is made once.

The table says where in which file each picture begins and ends, and holds the captions: reading a pair is one seek. It is kept beside the files, or
where nothing can be written there, in the user's cache folder, and it is made anew when a file has come, gone or changed its length or its time.
"""

import functools
import glob
import json
import os
import re
import sys
import tarfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from shared.data.files import UnreadableImage
from shared.errors import UserError
from shared.files import atomic_path, digest, sha256_file

FORMAT = "pairs-1"  # of the table; raise it when what is in it changes
SUFFIXES = ("jpg", "jpeg", "png", "webp")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError)


def expand(pattern: str) -> list[str]:
    """A pattern without its ranges: "a{08..10}.tar" is a08.tar, a09.tar, a10.tar. Raises UserError for a range that goes down."""
    texts, ranges = _RANGE.split(pattern)[::3], _RANGE.findall(pattern)
    if any(int(a) > int(b) for a, b in ranges):
        raise UserError(f"the pattern {pattern!r} has a range that goes down: write the smaller number first, e.g. {{00000..00331}}.")
    options = [[f"{k:0{len(a)}d}" for k in range(int(a), int(b) + 1)] for a, b in ranges]
    return ["".join(part for both in zip(texts, [*choice, ""], strict=True) for part in both) for choice in product(*options)]


def shard_files(root: Path, pattern: str) -> list[str]:
    """Paths relative to root, each once; those of ranges also where they are missing, those of * and ? in alphabetical order."""
    found: list[str] = []
    for name in expand(pattern):
        found += sorted(glob.glob(name, root_dir=root)) if glob.has_magic(name) else [name]
    return list(dict.fromkeys(found))


class Shards:
    """The pairs of tar files, as a store of `shared.data.pairs`.

    Raises UserError for files that are missing, broken or compressed and for members without a caption or a picture, with what they are; with
    skip_corrupt these are left out and counted in one line on stderr. `problems`: what is left out, in words.
    """

    def __init__(self, root: Path, pattern: str, skip_corrupt: bool = False):
        self.root, self.names = Path(root), shard_files(Path(root), pattern)
        present = [self._facts(name) for name in self.names]
        if not any(size >= 0 for _, size, _ in present):
            raise UserError(f"there is no file {self.root / pattern}: put the shards there, or set DATA_ROOT to the folder that holds them.")
        table = self._table(pattern, present)
        self.problems: list[str] = table["about"]["problems"]
        if self.problems:
            what = f"{len(self.problems)} things are wrong with the shards {self.root / pattern}, the first is: {self.problems[0]}"
            if not skip_corrupt:
                raise UserError(f"{what}. Mend them, or pass --skip-corrupt to leave these out and count them.")
            print(f"{what}; they are left out", file=sys.stderr, flush=True)
        self._shard, self._start, self._length, self._ends, self._texts, self._keys, self._key_ends = (
            table[k] for k in ("shard", "start", "length", "ends", "texts", "keys", "key_ends"))

    def __len__(self) -> int:
        return len(self._shard)

    def caption(self, number: int) -> str:
        return _cut(self._texts, self._ends, number)

    def name(self, number: int) -> str:
        return f"{_cut(self._keys, self._key_ends, number)} in {self._path(number)}"

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
            raise UnreadableImage(f"the picture {self.name(number)} is cut off: get the shard again, or pass --skip-corrupt to let others stand in "
                                  "for such pictures and count them.")
        return content

    def _path(self, number: int) -> Path:
        return self.root / self.names[self._shard[number]]

    # -- the table of contents ----------------------------------------------------------------------------------------------------------------

    def _facts(self, name: str) -> list:
        try:
            facts = os.stat(self.root / name)
            return [name, facts.st_size, facts.st_mtime_ns]
        except OSError:
            return [name, -1, 0]

    def _table(self, pattern: str, present: list) -> dict:
        file = f".pairs-{digest(pattern)[:12]}.npz"
        folder = self.root / os.path.dirname(next(name for name, size, _ in present if size >= 0))
        places = [folder / file, cache_folder() / f"{digest(str(self.root.absolute()))[:12]}{file}"]
        for place in places:
            table = _load(place)
            if table is not None and table["about"]["files"] == present:
                return table
        print(f"pairs: reading the contents of {len(self.names)} shards, once", file=sys.stderr, flush=True)
        table = contents(self.root, present)
        for place in places:
            try:
                with atomic_path(place) as temporary:
                    np.savez(temporary, **{**table, "about": np.array(json.dumps(table["about"]))})
                break
            except OSError:
                continue  # read-only, or full: the next place, or none, and the contents are read again next time
        return table


def contents(root: Path, present: Sequence[Sequence]) -> dict:
    """The table of some files (name, length, time): arrays over the pairs, and in "about" which files it is of and what is left out."""
    rows, problems = [], []
    for k, (name, size, _) in enumerate(present):
        if size < 0:
            problems.append(f"the shard {root / name} is missing")
            continue
        found, wrong = _members(root / name)
        rows += [(k, *row) for row in found]
        problems += wrong
    texts, keys = ([row[i].encode() for row in rows] for i in (4, 1))
    return {"about": {"format": FORMAT, "files": [list(p) for p in present], "problems": problems},
            "shard": np.array([row[0] for row in rows], np.int32), "start": np.array([row[2] for row in rows], np.int64),
            "length": np.array([row[3] for row in rows], np.int64), "texts": np.frombuffer(b"".join(texts), np.uint8), "ends": _ends(texts),
            "keys": np.frombuffer(b"".join(keys), np.uint8), "key_ends": _ends(keys)}


def _members(path: Path) -> tuple[list[tuple[str, int, int, str]], list[str]]:
    """([(key, where its picture begins, how long it is, caption)], what is wrong) of one tar file; what comes before a break is kept."""
    groups: dict[str, dict] = {}
    problems = []
    try:
        with open(path, "rb") as whole, tarfile.open(fileobj=whole, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                suffix = suffix.lower()
                if member.isfile() and suffix in (*SUFFIXES, "txt", "json"):
                    group = groups.setdefault(f"{folder}/{key}" if folder else key, {})
                    if suffix in SUFFIXES:
                        group.setdefault("picture", (member.offset_data, member.size))
                    else:
                        group[suffix] = tar.extractfile(member).read()
            whole.seek(tar.offset)
            if whole.read(512) != bytes(512):  # tarfile does not mind a file that stops between two members
                problems.append(f"the shard {path} is broken or compressed (its end is missing)")
    except OSError as error:
        problems.append(f"the shard {path} cannot be read ({error.strerror or error})")
    except _DAMAGED as error:
        problems.append(f"the shard {path} is broken or compressed ({error})")
    rows = []
    for key, group in groups.items():
        caption = _caption(group)
        if "picture" in group and caption:
            rows.append((key, *group["picture"], caption))
        else:
            problems.append(f"{key} in {path} has no {'caption' if 'picture' in group else 'picture'}")
    return rows, problems


def _caption(group: dict) -> str:
    """The text, or what the JSON says; empty where there is none."""
    text = group.get("txt", b"").decode("utf-8", "replace").strip()
    if text or "json" not in group:
        return text
    try:
        said = json.loads(group["json"]).get("caption")
    except (ValueError, AttributeError):
        return ""
    return said.strip() if isinstance(said, str) else ""


def _ends(parts: Sequence[bytes]) -> np.ndarray:
    return np.cumsum([len(p) for p in parts], dtype=np.int64)


def _cut(everything: np.ndarray, ends: np.ndarray, number: int) -> str:
    return everything[ends[number - 1] if number else 0:ends[number]].tobytes().decode()


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
