"""Any folder of pictures as a labelled set: one sub-folder per class, sorted by name, pictures at any depth below it.

Two layouts:
    ROOT/<class>/*.jpg                            one folder; a split, if asked for, is made here (see `image_folder`)
    ROOT/train/<class>/*.jpg  ROOT/test/<class>/  the split is the folder's own; `val` or `validation` may stand for `test`
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.data.files import NATIVE, FileImages, ImageSize
from shared.data.prompts import DEFAULT_TEMPLATE, clean, fill
from shared.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp")
_OTHER_PICTURES = (".gif", ".tif", ".tiff", ".heic", ".avif", ".jfif", ".jp2")
_SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}


def image_folder(root: str | os.PathLike, split: str | None = None, *, name: str | None = None, expected: Sequence[str] | None = None,
                 template: str = DEFAULT_TEMPLATE, size: ImageSize = NATIVE, skip_corrupt: bool = False,
                 in_memory: bool = False) -> FileImages:
    """The pictures below `root`, e.g. the user's DATA_ROOT.

    split: None (everything), "train" or "test". If the folder is not divided, every class is: a fifth of its pictures, at least one,
    chosen by a hash of their file names, is the test split, so adding a picture moves hardly any other. expected: the class folders that
    must be there, no more and no fewer; by default those of train/ when reading test/. Class names are the folder names, lower-cased, with
    spaces for `_`, `-` and `/`. skip_corrupt and in_memory: see FileImages.

    Raises UserError if the folder, its classes or the pictures of a class are missing, or the classes are not the expected ones.
    """
    root = Path(root).expanduser()
    if split not in (None, *_SPLITS):
        raise UserError(f"split {split!r} is not known; use train or test.")
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set DATA_ROOT to a folder that holds one sub-folder of pictures per class.")
    divided = {s: next((root / f for f in names if (root / f).is_dir()), None) for s, names in _SPLITS.items()}
    where = root
    if any(divided.values()):
        if split is None:
            raise UserError(f"{root} is divided into train and test folders: say which split to read.")
        if divided[split] is None:
            raise UserError(f"{root} has a folder for the other split but none for {split}: add {root / split} with one folder per class.")
        where = divided[split]
        if expected is None and split == "test" and divided["train"]:
            expected = class_folders(divided["train"])
    folders = class_folders(where)
    if expected is not None:
        check_classes(where, folders, expected)
    paths, labels = [], []
    for label, folder in enumerate(folders):
        files = pictures_below(where / folder)
        if not files:
            raise UserError(f"the class folder {where / folder} holds no picture ({', '.join(EXTENSIONS)}): add some or remove the folder.")
        if split is not None and where is root:
            files = _divide(where / folder, files)[split == "test"]
        paths += files
        labels += [label] * len(files)
    names = [clean(folder) for folder in folders]
    return FileImages(name or root.name, where, paths, labels, names, fill(template, names), size=size, skip_corrupt=skip_corrupt,
                      in_memory=in_memory)


def class_folders(where: Path) -> list[str]:
    """Names of the sub-folders, sorted, hidden ones left out. Raises UserError if there is none."""
    folders = sorted(entry.name for entry in os.scandir(where) if entry.is_dir() and not entry.name.startswith((".", "__")))
    if not folders:
        raise UserError(f"{where} has no class folders: it must hold one sub-folder of pictures per class.")
    return folders


def check_classes(where: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raises UserError unless both lists hold the same names."""
    lacks, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if lacks or extra:
        parts = [f"{verb} {len(names)} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"
                 for verb, names in (("lacks", lacks), ("has in excess", extra)) if names]
        raise UserError(f"the class folders in {where} are not the {len(expected)} expected ones: it {' and '.join(parts)}.")


def pictures_below(folder: Path) -> list[str]:
    """Paths of the pictures at any depth, sorted by path; hidden files are no pictures, other picture formats are counted on stderr."""
    paths, other = [], 0
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in files:
            if file.startswith("."):
                continue
            if file.lower().endswith(EXTENSIONS):
                paths.append(os.path.join(base, file))
            other += file.lower().endswith(_OTHER_PICTURES)
    if other:
        print(f"{folder}: {other} pictures in formats that are not read here are left out; read are {', '.join(EXTENSIONS)}",
              file=sys.stderr, flush=True)
    return sorted(paths)


def _divide(folder: Path, files: list[str]) -> tuple[list[str], list[str]]:
    if len(files) < 2:
        raise UserError(f"the class folder {folder} holds one picture: two are needed to divide it into train and test.")
    ranked = sorted(files, key=lambda f: hashlib.blake2b(os.path.relpath(f, folder).encode()).digest())
    test = set(ranked[: max(1, len(files) // 5)])
    return [f for f in files if f not in test], [f for f in files if f in test]
