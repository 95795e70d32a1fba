"""Any folder of pictures as a labelled set: one sub-folder per class, sorted by name, pictures at any depth below it.

Two layouts:
    ROOT/<class>/*.jpg                            one folder; a split, if asked for, is made here (see `image_folder`)
    ROOT/train/<class>/*.jpg  ROOT/test/<class>/  the split is the folder's own; see _SPLITS for what may stand for `train` and `test`

Both splits are inspected whenever one is read, so what must be mended is said before anything is trained. Folders that begin with a dot and those that
network disks, archivers and notebooks leave (`is_service`) are no classes; every other folder is one. Files that are not read are counted by kind.
A link to a folder is followed. One that leads back to where it is, or above, adds nothing; one into another class or split is refused, because a
picture has one class and is in one split.
"""

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.data.files import NATIVE, FileImages, ImageSize
from shared.data.prompts import DEFAULT_TEMPLATE, clean, fill
from shared.data.skipped import say_unread, shown
from shared.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp")
_SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
_SERVICE = ("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx", "__pycache__", "lost+found", "$recycle.bin",
            "system volume information", "network trash folder", "temporary items", "thumbs.db", "desktop.ini")
_LIKE_SPLITS = re.compile(r"(?<![a-z])(train|test|val|dev|eval)")
_MOST = 5  # findings that are said at once


def image_folder(root: str | os.PathLike, split: str | None = None, *, size: ImageSize = NATIVE, skip_corrupt: bool = False,
                 in_memory: bool = False) -> FileImages:
    """The pictures below `root`, e.g. the user's DATA_ROOT.

    split: None (everything of a folder that is not divided), "train" or "test". If the folder is not divided, every class is: a fifth of its pictures,
    at least one, chosen by a hash of their file names, is the test split, so adding a picture moves hardly any other. Class names are the folder
    names, lower-cased, with spaces for `_`, `-` and `/`. skip_corrupt and in_memory: see FileImages.

    Raises UserError with one sentence for each of the first few things that must be mended: folders that are missing, unreadable, empty or differ
    between the splits, less than two classes, names that make no prompt or the same one, links that lead nowhere or into another class.
    """
    root = Path(root).expanduser()
    if split not in (None, *_SPLITS):
        raise UserError(f"split {split!r} is not known; use train or test.")
    if not root.is_dir():
        raise UserError(f"there is no folder {shown(str(root))}: set DATA_ROOT to a folder that holds one sub-folder of pictures per class.")
    found = _Inspection(root)
    places = found.splits()
    if places and split is None:
        raise UserError(f"{shown(str(root))} is divided into train and test folders: say which split to read.")
    pictures = {part: found.classes(place) for part, place in (places or {"": root}).items()}
    if len(pictures) == 2 and (what := _difference(places["test"], pictures["test"], pictures["train"])):
        found.wrong.append(what)
    found.names(next(iter(pictures.values())))
    if not places and split is not None:
        for folder, files in pictures[""].items():
            if len(files) == 1:
                found.wrong.append(f"the class folder {shown(str(root / folder))} holds one picture: two are needed to divide it into train and test.")
    found.settle()
    chosen = pictures[split if places else ""]
    if not places and split is not None:
        chosen = {folder: _divide(root / folder, files)[split == "test"] for folder, files in chosen.items()}
    names = [clean(folder) for folder in chosen]
    data = FileImages(root.resolve().name, places.get(split, root), [file for files in chosen.values() for file in files],
                      [label for label, files in enumerate(chosen.values()) for _ in files], names, fill(DEFAULT_TEMPLATE, names), size=size,
                      skip_corrupt=skip_corrupt, in_memory=in_memory)
    data.renameable = True
    return data


def is_service(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a network disk, an archiver, a notebook or a file manager left there."""
    return name.startswith(".") or name.casefold() in _SERVICE


def class_folders(where: Path) -> list[str]:
    """Names of the sub-folders, sorted, without those of `is_service`. Raises UserError if there is none, or a link leads nowhere."""
    found = _Inspection(where)
    folders = found.folders(where)
    found.settle()
    return folders


def pictures_below(folder: Path) -> list[str]:
    """Paths of the pictures at any depth, sorted by path; what else is there is counted on stderr. Raises UserError for what cannot be listed."""
    found = _Inspection(folder)
    pictures = found.pictures(str(folder))
    found.settle()
    return pictures


def check_classes(where: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises UserError unless both lists hold the same names."""
    if what := _difference(where, found, expected):
        raise UserError(what)


def _difference(where: Path, found: Iterable[str], expected: Iterable[str]) -> str:
    lacks, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if not lacks and not extra:
        return ""
    parts = [f"{verb} {len(names)} ({', '.join(map(shown, names[:3]))}{' …' if len(names) > 3 else ''})"
             for verb, names in (("lacks", lacks), ("has in excess", extra)) if names]
    return f"the class folders in {shown(str(where))} are not the {len(set(expected))} expected ones: it {' and '.join(parts)}."


class _Inspection:
    """One look at a folder. wrong: what must be mended, a sentence each; unread: what is left out, by kind."""

    def __init__(self, root: Path):
        self.root, self.wrong, self.unread = root, [], Counter()
        # (device, inode) -> (its class, its path), without a class what holds classes: a link to one of these leads in a circle
        self._met = {_identity(os.stat(place)): ("", str(place)) for place in (root, *root.resolve().parents)}

    def settle(self) -> None:
        """Raise UserError for what is wrong, or say what is not read."""
        if self.wrong:
            more = len(self.wrong) - _MOST
            raise UserError(" ".join(self.wrong[:_MOST]) + (f" {more:,} more things are wrong." if more > 0 else ""))
        say_unread(str(self.root), self.unread)

    def splits(self) -> dict[str, Path]:
        """The folders of the splits, or nothing where the root is not divided: a class may have a split's name if its pictures are directly in it."""
        folders, known = self._sub_folders(self.root), {name: split for split, names in _SPLITS.items() for name in names}
        special = [f for f in folders if f.casefold() in known]
        others = [f for f in folders if f not in special]
        if not special:
            self._hidden_splits(folders, known)
            return {}
        divided = [f for f in special if self._holds_folders_only(f)]
        if others and not divided:
            return {}
        if filled := [f for f in others if _has_picture(self.root / f)]:
            raise UserError(f"{shown(str(self.root))} holds {divided[0]}, which has folders in it as a split has, and other folders of pictures "
                            f"({shown(filled[0])}): keep train and test alone there, or put every class's pictures directly into its folder.")
        self.unread.update(f"folder {f}" for f in others)
        found: dict[str, Path] = {}
        for split, names in _SPLITS.items():
            of_split = sorted((f for f in special if known[f.casefold()] == split), key=lambda f: names.index(f.casefold()))
            if of_split:
                found[split] = self.root / of_split[0]
                self.unread.update(f"folder {f}" for f in of_split[1:])
            else:
                self.wrong.append(f"{shown(str(self.root))} has a folder for the other split but none for {split}: add "
                                  f"{shown(str(self.root / split))} with one folder per class.")
        if len(found) == 2 and os.path.samefile(*found.values()):
            raise UserError(f"{' and '.join(shown(str(f)) for f in found.values())} are one folder: what is tested on must not be trained on.")
        self._met.update((_identity(os.stat(place)), ("", str(place))) for place in found.values())
        return found

    def _hidden_splits(self, folders: Sequence[str], known: dict[str, str]) -> None:
        inside = [self._sub_folders(self.root / f) for f in folders]
        if len(folders) > 1 and all(self._holds_folders_only(f) and _LIKE_SPLITS.search(f.casefold()) for f in folders):
            self.wrong.append(f"the folders {' and '.join(map(shown, folders[:3]))} in {shown(str(self.root))} seem to be splits, not classes: call them "
                              "train and test.")
        elif folders and all(len(names) > 1 and all(name.casefold() in known for name in names) for names in inside):
            self.wrong.append(f"the class folders in {shown(str(self.root))} hold {' and '.join(inside[0])}: turn it round, with one folder per class in "
                              "train and in test.")

    def folders(self, where: Path) -> list[str]:
        """Names of the class folders, sorted."""
        folders = self._sub_folders(where)
        for entry in self._list(where):
            if not os.path.exists(entry.path):
                self.wrong.append(f"{shown(entry.path)} is a link that leads nowhere: mend or remove it.")
            elif is_service(entry.name) and os.path.isdir(entry.path) and _has_picture(entry.path):
                self.unread[f"folder {entry.name}"] += 1
            elif entry.name.lower().endswith(EXTENSIONS) and not is_service(entry.name) and not os.path.isdir(entry.path):
                self.unread["pictures outside the class folders"] += 1
        if not folders:
            self.wrong.append(f"{shown(str(where))} has no class folders: it must hold one sub-folder of pictures per class.")
        return folders

    def classes(self, where: Path) -> dict[str, list[str]]:
        """The pictures of each class of a split, by folder."""
        places = {folder: str(where / folder) for folder in self.folders(where)}
        for place in places.values():  # all of them before any is read: a link may lead from one into another
            before = self._met.setdefault(_identity(os.stat(place)), (place, place))
            if before[1] != place:
                self._same(place, before[1])
        found = {folder: self.pictures(place) for folder, place in places.items()}
        self.wrong += [f"the class folder {shown(places[folder])} holds no picture ({', '.join(EXTENSIONS)}): add some or remove the folder."
                       for folder, files in found.items() if not files]
        return found

    def pictures(self, folder: str) -> list[str]:
        """Paths of a class's pictures, sorted; each file and folder once."""
        paths, todo = [], [folder]
        while todo:
            for entry in self._list(todo.pop()):
                if is_service(entry.name):
                    continue
                try:
                    facts = os.stat(entry.path)
                except OSError:
                    facts = None  # a link that leads nowhere: as a picture it is missing
                is_picture = entry.name.lower().endswith(EXTENSIONS)
                if facts is not None and stat.S_ISDIR(facts.st_mode):
                    if self._belongs(facts, entry.path, folder):
                        todo.append(entry.path)
                elif not is_picture:
                    suffix = os.path.splitext(entry.name)[1].lower() or "files without a suffix"
                    self.unread["links that lead nowhere" if facts is None else suffix] += 1
                elif facts is None or self._belongs(facts, entry.path, folder):
                    paths.append(entry.path)
        return sorted(paths)

    def _belongs(self, facts: os.stat_result, path: str, owner: str) -> bool:
        """Whether a folder or file is met for the first time, so that its pictures are the owner's."""
        before = self._met.setdefault(_identity(facts), (owner, path))
        if before == (owner, path):
            return True
        if before[0] in ("", owner):
            self.unread["links to what is read already"] += 1
        else:
            self._same(path, before[1])
        return False

    def _same(self, path: str, other: str) -> None:
        self.wrong.append(f"{shown(path)} and {shown(other)} are the same by a link: a picture has one class and is in one split, so remove one.")

    def names(self, folders: Iterable[str]) -> None:
        """There must be two classes, and every name must make a prompt of its own."""
        folders, alike = list(folders), {}
        if len(folders) == 1:
            self.wrong.append(f"{shown(str(self.root))} has one class folder, {shown(folders[0])}: a classifier needs two classes.")
        for folder in folders:
            words = " ".join(unicodedata.normalize("NFC", clean(folder)).split())
            if shown(folder) != folder:
                self.wrong.append(f"the name of the class folder {shown(folder)} is not UTF-8, so it makes no prompt: rename it.")
            elif not words:
                self.wrong.append(f"the name of the class folder {folder!r} has no word in it, so it makes no prompt: rename it.")
            else:
                alike.setdefault(words, []).append(folder)
        self.wrong += [f"the class folders {' and '.join(same)} make one prompt, {fill(DEFAULT_TEMPLATE, [words])[0]!r}: rename or join them."
                       for words, same in alike.items() if len(same) > 1]

    def _list(self, where: str | os.PathLike) -> list[os.DirEntry]:
        try:
            return sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError as error:
            self.wrong.append(f"the folder {shown(os.fspath(where))} cannot be listed: {error.strerror}.")
            return []

    def _sub_folders(self, where: Path) -> list[str]:
        return [entry.name for entry in self._list(where) if os.path.isdir(entry.path) and not is_service(entry.name)]

    def _holds_folders_only(self, name: str) -> bool:
        entries = [entry for entry in self._list(self.root / name) if not is_service(entry.name)]
        folders = [os.path.isdir(entry.path) for entry in entries]
        return any(folders) and not any(e.name.lower().endswith(EXTENSIONS) for e, is_dir in zip(entries, folders, strict=True) if not is_dir)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _has_picture(place: str | os.PathLike) -> bool:
    return any(file.lower().endswith(EXTENSIONS) for _, _, files in os.walk(place) for file in files)


def _divide(folder: Path, files: list[str]) -> tuple[list[str], list[str]]:
    ranked = sorted(files, key=lambda f: hashlib.blake2b(os.fsencode(os.path.relpath(f, folder))).digest())
    test = set(ranked[: max(1, len(files) // 5)])
    return [f for f in files if f not in test], [f for f in files if f in test]
