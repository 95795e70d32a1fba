"""Files that are either whole or absent."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shared.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on leaving without an error it becomes `path` in one step,
    otherwise it is removed.

    A reader therefore never sees half a file, whatever kills the writer. The folder is made if missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes private files; results are meant to be read by others
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(folder: str | os.PathLike, name: str) -> None:
    """Make a folder and see that it can be written to.

    Raises `UserError` where it cannot. name: of the option or variable that said which folder.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(4096))
    except FileExistsError:
        what = "a link to nowhere" if folder.is_symlink() else "a file"
        advice = f"move it away, or name another folder with {name}."
        raise UserError(f"{folder} is {what} where a folder is needed: {advice}") from None
    except OSError as error:
        advice = f"mend that, or name another folder with {name}."
        raise UserError(f"{folder} cannot be written to ({error.strerror}): {advice}") from None


def remove_leftovers(folder: str | os.PathLike, seconds: float = 3600) -> None:
    """Delete temporary files of `atomic_path` below `folder` that nothing has written to for an hour: whoever made them
    was killed."""
    for path in Path(folder).rglob(".*.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > seconds:
                path.unlink()


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Write `content` to `path` through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write `content` as indented JSON, atomically. NaN and infinities are refused, since other readers cannot read
    them."""
    write_atomic(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_changed(path: str | os.PathLike, content: object) -> None:
    """`write_json` unless the file says so already: what is finished is not written again, also where nothing can be
    written."""
    with contextlib.suppress(OSError, ValueError):
        if json.loads(Path(look_at(path)).read_text()) == json.loads(json.dumps(content)):
            return
    write_json(path, content)


def sha256_bytes(content: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes. Raises OSError for what cannot be read, or is no file.

    What was read before is not read again while its size and its times are the same; see `remember_digests`.
    """
    now, known = stamp(path), _digests.get(look_at(path))
    if known is None or known[:-1] != now:
        if not os.path.isfile(path):
            raise OSError(errno.EINVAL, "a folder, a pipe or a device is no file", os.fspath(path))  # it may never end
        with open(path, "rb") as handle:
            known = [*now, hashlib.file_digest(handle, "sha256").hexdigest()]
        if (
            time.time_ns() - now[1] > 50_000_000
        ):  # a clock is coarse: what was written just now may be written again at the same time
            _digests[os.path.abspath(path)] = known
    return known[-1]


def stamp(path: str | os.PathLike) -> list[int]:
    """What changes when somebody writes to a file or folder: its size and its times."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def look_at(path: str | os.PathLike) -> str:
    """Note that what this process says depends on a file; returns its absolute path. See
    `shared.experiment.finished`."""
    name = os.path.abspath(path)
    looked_at.add(name)
    return name


looked_at: set[str] = set()


def sha256_folder(folder: str | os.PathLike) -> str:
    """Hex sha256 over the names and contents of every file below a folder; hidden files and folders are left out."""
    files = {p.relative_to(folder): p for p in Path(folder).rglob("*") if p.is_file()}
    return digest(
        [
            [name.as_posix(), sha256_file(p)]
            for name, p in sorted(files.items())
            if not any(part.startswith(".") for part in name.parts)
        ]
    )


_digests: dict[str, list] = {}  # absolute path -> [size, mtime, ctime, sha256]


def remember_digests(path: str | os.PathLike) -> None:
    """Take up the digests that an earlier process noted in `path`; a file that cannot be read notes none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        _digests.update(json.loads(Path(path).read_text()))


def note_digests(path: str | os.PathLike) -> None:
    """Note the digests of this process for later ones; where nothing can be written, they are worked out again."""
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps({**_digests}))


def digest(content: object) -> str:
    """Hex sha256 of a JSON-able object in canonical form: the identity of a configuration."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
