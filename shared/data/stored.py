"""Labelled pictures of a table, of web shards, or of a folder of `datasets`: `csv:FILE`, `shards:PATTERN`, `hf:FOLDER`.

csv      a table as of `shared.data.pairs`, whose text is the first column of label, class, caption, title, text
shards   tar files as of `shared.data.shards`: <key>.jpg with <key>.cls, else <key>.txt, else <key>.json {"label": …}
         (or "class", or "caption") beside it
hf       what `save_to_disk` of the package `datasets` has written: its one column of pictures, and the column label or
         class, or its one ClassLabel; of a divided one the test split, else the validation split, else the only one

Classes are sorted by name, cleaned as names of folders are. Where every label is a whole number, they are the numbers
that occur, in their order (`numbered`), and someone has to say what they mean. All examples are of one split, which is
why the papers, which train as well, do not read these.
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from shared.data.files import FileImages, ImageSize, decode, read_picture, unreadable
from shared.data.pairs import PICTURES, Store, Table, settle
from shared.data.prompts import DEFAULT_TEMPLATE, clean, fill
from shared.data.shards import LABEL, Shards
from shared.data.skipped import say
from shared.errors import UserError
from shared.files import digest, sha256_file

KINDS = ("csv", "shards", "hf")
SPLITS = ("test", "validation", "val")  # of a divided folder, the first that is there
_NUMBER = re.compile(r"-?[0-9]+")


class StoredImages(FileImages):
    """The pictures of a store, whose captions are labels. numbered: whether these are numbers, which are no names.

    Raises UserError for what is no labelled picture (with skip_corrupt it is left out and counted), fewer than two
    classes, a number below 0, which is no class, and a picture with two labels.
    """

    def __init__(self, spec: str, store: Store, size: ImageSize, skip_corrupt: bool):
        settle(spec, store.problems, skip_corrupt)
        said = [store.caption(i) for i in range(len(store))]
        paths = [store.name(i) for i in range(len(store))]
        self.store, self.numbered = store, all(map(_NUMBER.fullmatch, said))
        found = [str(int(text)) if self.numbered else clean(text) for text in said]
        classes = sorted(set(found), key=int if self.numbered else None)
        if len(classes) < 2:
            has = f"one label, {classes[0]}" if classes else "no labelled picture"
            raise UserError(f"{spec} has {has}: a classifier needs two classes.")
        if self.numbered and int(classes[0]) < 0:
            first = paths[found.index(classes[0])]
            raise UserError(
                f"{spec}: the label of {first} is {classes[0]}, and classes have numbers from 0: leave it out."
            )
        place = {name: k for k, name in enumerate(classes)}
        labels = [place[name] for name in found]
        if broken := next((path for path, text in zip(paths, said, strict=True) if len(text.splitlines()) > 1), ""):
            raise UserError(f"{spec}: the label of {broken} has several lines: give one.")
        spelled = dict(zip(said, found, strict=True))
        if not self.numbered and len(spelled) > len(classes):
            joined = [text for text, name in spelled.items() if list(spelled.values()).count(name) > 1]
            say(spec, "labels that are one class with another spelling of it", joined)
        first: dict[str, str] = {}
        for path, name in zip(map(os.path.normpath, paths), found, strict=True):
            if first.setdefault(path, name) != name:
                raise UserError(f"{spec}: the picture {path} is {first[path]!r} and {name!r}: keep one of them.")
        prompts = fill(DEFAULT_TEMPLATE, classes)
        super().__init__(spec, ".", paths, labels, classes, prompts, size=size, skip_corrupt=skip_corrupt)
        self.renameable = True

    @cached_property
    def version(self) -> str:
        """Digest of what the pictures are read from, labels, prompts and image size."""
        examples = [[label, *self.store.identity(i)] for i, label in enumerate(self.labels.tolist())]
        return digest([examples, self.classes, self.prompts, repr(self.size)])[:12]

    @property
    def skipped(self) -> tuple[str, ...]:
        return (*self.store.problems, *super().skipped)

    def _decode(self, index: int) -> Tensor:
        return decode(self.store.content(index), self.paths[index], self.size)


class ArrowFolder:
    """The pictures of a folder that `save_to_disk` of the package `datasets` has written, as a store of
    `shared.data.pairs`; a caption is a label. problems: rows without one.

    Raises UserError without that package, for another folder, and where the columns are not told apart.
    """

    def __init__(self, folder: Path):
        try:
            import datasets
        except ImportError:
            raise UserError(
                f"hf:{folder} is read by the package datasets, which is not installed: pip install datasets."
            ) from None
        self.folder = folder
        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:  # whatever the packages raise of a folder that is missing, another or damaged
            said = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"hf:{folder} cannot be read ({said}): give a folder that save_to_disk of datasets has written."
            ) from error
        if isinstance(found, dict):
            split = next((name for name in SPLITS if name in found), next(iter(found)) if len(found) == 1 else None)
            if split is None:
                raise UserError(f"hf:{folder} has the splits {', '.join(found)}: give the folder of one of them.")
            found = found[split]
        kinds = found.features
        pictures = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
        numbers = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
        plain = [name for name, kind in kinds.items() if isinstance(kind, datasets.Value)]
        picture = self._one("column of pictures", pictures, PICTURES)
        label = self._one("column of labels", numbers, ("label", "class"), plain)
        names = kinds[label].names if label in numbers else None
        self._rows = found.cast_column(picture, datasets.Image(decode=False)).with_format(None)
        self._picture = picture
        self._files = [sha256_file(file["filename"]) for file in found.cache_files]
        texts = [_text(value, names) for value in found.select_columns(label)[label]]
        self._numbers = [i for i, text in enumerate(texts) if text]
        self._texts = [text for text in texts if text]
        self.problems = [f"row {i} of {folder} has no {label}" for i, text in enumerate(texts) if not text]

    def _one(self, what: str, found: list[str], known: tuple[str, ...], beside: Sequence[str] = ()) -> str:
        """The column by a known name, or the only one found. Raises UserError where it is not told."""
        named = [name for name in known if name in (*found, *beside)]
        if not named and len(found) != 1:
            listed = f"several ({', '.join(found)})" if found else "none"
            raise UserError(f"hf:{self.folder} needs one {what} and has {listed}: call it {known[0]}.")
        return (named or found)[0]

    def __len__(self) -> int:
        return len(self._numbers)

    def caption(self, number: int) -> str:
        return self._texts[number]

    def name(self, number: int) -> str:
        return f"of row {self._numbers[number]} in {self.folder}"

    def identity(self, number: int) -> list:
        return [*self._files, self._numbers[number]]

    def content(self, number: int) -> bytes:
        held = self._rows[self._numbers[number]][self._picture]
        if held is None or not (held["bytes"] or held["path"]):
            raise unreadable(self.name(number), "is missing")
        return held["bytes"] or read_picture(held["path"])


def _text(value: str | int | None, names: list[str] | None) -> str:
    """A label in words: of a ClassLabel its name; "" where there is none (-1 stands for that)."""
    if value is None or (names is not None and value < 0):
        return ""
    return str(value if names is None else names[value]).strip()


def stored(spec: str, root: str | os.PathLike, size: ImageSize, skip_corrupt: bool) -> StoredImages:
    """The labelled pictures of a spec of the module's kinds, its file, pattern or folder below `root` where it is
    relative. Raises UserError for what is missing or damaged there."""
    kind, _, name = spec.partition(":")
    root, name = Path(root).expanduser(), os.path.expanduser(name)
    makers: dict[str, Callable[[], Store]] = {
        "csv": lambda: Table(root / name, LABEL),
        "shards": lambda: Shards(root, name, LABEL),
        "hf": lambda: ArrowFolder(root / name),
    }
    return StoredImages(spec, makers[kind](), size, skip_corrupt)
