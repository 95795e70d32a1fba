"""Any folder of pictures as a labelled set: one sub-folder per class, sorted by name, pictures at any depth below it.

Two layouts:
    ROOT/<class>/*.jpg                            one folder; a split, if asked for, is made here (see `image_folder`)
    ROOT/train/<class>/*.jpg  ROOT/test/<class>/  the split is the folder's own; _SPLITS has the other names of both

Both splits are inspected whenever one is read, so what must be mended is said before anything is trained. Hidden
folders and those that network disks, archivers and notebooks leave (`is_service`) are no classes; every other folder
is one. Files that are not read are counted by kind. A link to a folder is followed. One that leads back to where it is,
or above, adds nothing; one into another class or split is refused, since a picture has one class and is in one split.
"""

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from shared.data.files import NATIVE, FileImages, ImageSize
from shared.data.prompts import DEFAULT_TEMPLATE, clean, fill
from shared.data.skipped import is_utf8, say_unread, shown
from shared.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp")
_SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_LIKE_SPLITS = re.compile(r"(?<![a-z])(train|test|val|dev|eval)")
_SERVICE = (
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@tmp",
    "#recycle",
    "#snapshot",
    "__macosx",
    "__pycache__",
    "lost+found",
    "$recycle.bin",
    "system volume information",
    "network trash folder",
    "temporary items",
)
_MOST = 5  # findings that are said at once


def _there(root: str | os.PathLike) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"there is no folder {shown(root)}: set DATA_ROOT to a folder that holds one sub-folder of "
            "pictures per class."
        )
    return root


def is_divided(root: str | os.PathLike) -> bool:
    """Whether a folder has train and test folders of its own; raises UserError as `image_folder` does."""
    return bool(_Inspection(_there(root)).splits())


def image_folder(
    root: str | os.PathLike,
    split: str | None = None,
    *,
    size: ImageSize = NATIVE,
    skip_corrupt: bool = False,
    in_memory: bool = False,
) -> FileImages:
    """The pictures below `root`, e.g. the user's DATA_ROOT.

    split: None (everything in a folder that is not divided), "train" or "test". If the folder is not divided, every
    class is: a fifth of its pictures, at least one, chosen by a hash of their file names, is the test split, so adding
    a picture moves hardly any other. Class names are the folder names, lower-cased, with spaces for `_`, `-` and `/`.
    skip_corrupt and in_memory: see FileImages.

    Raises UserError with one sentence for each of the first few things that must be mended: folders that are missing,
    unreadable, empty or differ between the splits, fewer than two classes, names that make no prompt or the same one,
    links that lead nowhere or into another class.
    """
    if split not in (None, *_SPLITS):
        raise UserError(f"split {split!r} is not known; use train or test.")
    root = _there(root)
    found = _Inspection(root)
    places = found.splits()
    if places and split is None:
        raise UserError(f"{shown(root)} is divided into train and test folders: say which split to read.")
    parts = {part: found.classes(place) for part, place in (places or {"": root}).items()}
    if len(parts) == 2 and (what := _difference(places["test"], parts["test"], parts["train"])):
        found.wrong.append(what)
    found.judge_names(next(iter(parts.values())))
    if split is not None and not places:
        found.wrong += [
            f"the class folder {shown(root / folder)} holds one picture: two are needed to divide it into "
            "train and test."
            for folder, files in parts[""].items()
            if len(files) == 1
        ]
    found.settle()
    classes = parts[split if places else ""]
    if split is not None and not places:
        classes = {folder: _divide(root / folder, files)[split == "test"] for folder, files in classes.items()}
    names = [clean(folder) for folder in classes]
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    data = FileImages(
        root.resolve().name,
        places.get(split, root),
        [f for files in classes.values() for f in files],
        labels,
        names,
        fill(DEFAULT_TEMPLATE, names),
        size=size,
        skip_corrupt=skip_corrupt,
        in_memory=in_memory,
    )
    data.renameable = True
    return data


def is_service(name: str) -> bool:
    """Whether a name is hidden, or of a folder that a network disk, an archiver or a file manager leaves."""
    return name.startswith(".") or name.casefold() in _SERVICE


def class_folders(where: Path) -> list[str]:
    """Names of the sub-folders, sorted, without those of `is_service`.

    Raises UserError if there is none, and for a link that leads nowhere.
    """
    found = _Inspection(where)
    folders = found.folders(where)
    found.settle()
    return folders


def pictures_below(folder: Path) -> list[str]:
    """Paths of the pictures at any depth, sorted by path; pictures of other formats are counted on stderr.

    For published sets, which have lists and annotations beside the pictures. Raises UserError for a folder that cannot
    be listed.
    """
    found = _Inspection(folder)
    pictures = found.pictures(str(folder))
    if found.unread:
        found.unread = Counter({kind: n for kind, n in found.unread.items() if kind in Image.registered_extensions()})
    found.settle()
    return pictures


def check_classes(where: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises UserError unless both lists hold the same names."""
    if what := _difference(where, found, expected):
        raise UserError(what)


def _difference(where: Path, found: Iterable[str], expected: Iterable[str]) -> str:
    found, expected = set(found), set(expected)
    parts = [
        f"{verb} {len(names)} ({', '.join(map(shown, sorted(names)[:3]))}{' …' if len(names) > 3 else ''})"
        for verb, names in (("lacks", expected - found), ("has in excess", found - expected))
        if names
    ]
    if not parts:
        return ""
    return f"the class folders in {shown(where)} are not the {len(expected)} expected ones: it {' and '.join(parts)}."


class _Inspection:
    """One look at a folder. wrong: what must be mended, a sentence each; unread: what is left out, by kind."""

    def __init__(self, root: Path):
        self.root, self.name = root, shown(root)
        self.wrong: list[str] = []
        self.unread: Counter[str] = Counter()
        # (device, inode) -> (its class, its path); no class: it holds classes, and a link to it leads in a circle
        self._met = {_identity(os.stat(place)): ("", str(place)) for place in (root, *root.resolve().parents)}

    def settle(self) -> None:
        """Raise UserError for what is wrong, or say what is not read."""
        if self.wrong:
            more = len(self.wrong) - _MOST
            raise UserError(" ".join(self.wrong[:_MOST]) + (f" {more:,} more things are wrong." if more > 0 else ""))
        say_unread(self.name, self.unread)

    def splits(self) -> dict[str, Path]:
        """The folders of the splits; none where the root is not divided.

        A class may have a split's name: then there are other classes, and its pictures lie directly in it.
        """
        folders = self._sub_folders(self.root)
        special = [f for f in folders if f.casefold() in _SPLIT_OF]
        others = [f for f in folders if f not in special]
        divided = [f for f in special if self._holds_folders_only(f)]
        if not special:
            self._judge_disguised_splits(folders)
        if not special or (others and not divided):
            return {}
        if filled := [f for f in others if _has_picture(self.root / f)]:
            raise UserError(
                f"{self.name} holds {divided[0]}, which has folders in it as a split has, and other folders of "
                f"pictures ({shown(filled[0])}): keep train and test alone there, or put the pictures of every class "
                "directly into its folder."
            )
        self.unread.update(f"folder {shown(f)}" for f in others)
        found: dict[str, Path] = {}
        for split, names in _SPLITS.items():
            own = [f for name in names for f in special if f.casefold() == name]
            self.unread.update(f"folder {f}" for f in own[1:])
            if own:
                found[split] = self.root / own[0]
            else:
                self.wrong.append(
                    f"{self.name} has a folder for the other split but none for {split}: add "
                    f"{shown(self.root / split)} with one folder per class."
                )
        if len(found) == 2 and os.path.samefile(*found.values()):
            raise UserError(
                f"{shown(found['train'])} and {shown(found['test'])} are one folder: what is tested on "
                "must not be trained on."
            )
        self._met.update((_identity(os.stat(place)), ("", str(place))) for place in found.values())
        return found

    def _judge_disguised_splits(self, folders: Sequence[str]) -> None:
        inside = [self._sub_folders(self.root / f) for f in folders]
        if len(folders) > 1 and all(_LIKE_SPLITS.search(f.casefold()) and self._holds_folders_only(f) for f in folders):
            self.wrong.append(
                f"the folders {', '.join(map(shown, folders[:3]))} in {self.name} seem to be splits, not "
                "classes: call them train and test."
            )
        elif folders and all(len(names) > 1 and all(n.casefold() in _SPLIT_OF for n in names) for names in inside):
            self.wrong.append(
                f"the class folders in {self.name} hold {' and '.join(inside[0])}: turn it round, with "
                "one folder per class in train and in test."
            )

    def folders(self, where: Path) -> list[str]:
        """Names of the class folders, sorted."""
        for entry in self._list(where):
            is_folder, hidden = os.path.isdir(entry.path), is_service(entry.name)
            if not hidden and not os.path.exists(entry.path):
                self.wrong.append(f"{shown(entry.path)} is a link that leads nowhere: mend or remove it.")
            elif hidden and is_folder and _has_picture(entry.path):
                self.unread[f"folder {shown(entry.name)}"] += 1
            elif _is_picture(entry.name) and not hidden and not is_folder:
                self.unread["pictures outside the class folders"] += 1
        folders = self._sub_folders(where)
        if not folders:
            self.wrong.append(
                f"{shown(where)} has no class folders: it must hold one sub-folder of pictures per class."
            )
        return folders

    def classes(self, where: Path) -> dict[str, list[str]]:
        """The pictures of each class of a split, by folder."""
        places = {folder: str(where / folder) for folder in self.folders(where)}
        for place in places.values():  # all of them before any is read: a link may lead from one into another
            _, before = self._met.setdefault(_identity(os.stat(place)), (place, place))
            if before != place:
                self._refuse_link(place, before)
        found = {folder: self.pictures(place) for folder, place in places.items()}
        self.wrong += [
            f"the class folder {shown(places[folder])} holds no picture ({', '.join(EXTENSIONS)}): add some "
            "or remove the folder."
            for folder, files in found.items()
            if not files
        ]
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
                    facts = None  # a link that leads nowhere: where it is called like a picture, that one is missing
                if facts is not None and stat.S_ISDIR(facts.st_mode):
                    todo += [entry.path] if self._is_new(facts, entry.path, folder) else []
                elif _is_picture(entry.name):
                    paths += [entry.path] if facts is None or self._is_new(facts, entry.path, folder) else []
                elif facts is None:
                    self.unread["links that lead nowhere"] += 1
                else:
                    self.unread[os.path.splitext(entry.name)[1].lower() or "files without a suffix"] += 1
        return sorted(paths)

    def _is_new(self, facts: os.stat_result, path: str, owner: str) -> bool:
        """Whether a folder or file of the class `owner` is met for the first time."""
        of_class, before = self._met.setdefault(_identity(facts), (owner, path))
        if before == path:
            return True
        if of_class in ("", owner):
            self.unread["links to what is read already"] += 1
        else:
            self._refuse_link(path, before)
        return False

    def _refuse_link(self, path: str, other: str) -> None:
        self.wrong.append(
            f"{shown(path)} and {shown(other)} are the same by a link: a picture has one class and is in "
            "one split, so remove one of them."
        )

    def judge_names(self, folders: Iterable[str]) -> None:
        """There must be two classes, and every name must make a prompt of its own."""
        folders, alike = list(folders), {}
        if len(folders) == 1:
            self.wrong.append(f"{self.name} has one class folder, {shown(folders[0])}: a classifier needs two classes.")
        for folder in folders:
            words = " ".join(unicodedata.normalize("NFC", clean(folder)).split())
            if not is_utf8(folder):
                self.wrong.append(
                    f"the name of the class folder {shown(folder)} is not UTF-8, so it makes no prompt: rename it."
                )
            elif not words:
                self.wrong.append(
                    f"the name of the class folder {folder!r} has no word in it, so it makes no prompt: rename it."
                )
            else:
                alike.setdefault(words, []).append(folder)
        self.wrong += [
            f"the class folders {' and '.join(map(shown, same))} make one prompt, "
            f"{fill(DEFAULT_TEMPLATE, [words])[0]!r}: rename or join them."
            for words, same in alike.items()
            if len(same) > 1
        ]

    def _list(self, where: str | os.PathLike) -> list[os.DirEntry]:
        try:
            return sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError as error:
            what = f"the folder {shown(where)} cannot be listed: {error.strerror}."
            self.wrong += [] if what in self.wrong else [what]
            return []

    def _sub_folders(self, where: Path) -> list[str]:
        return [entry.name for entry in self._list(where) if os.path.isdir(entry.path) and not is_service(entry.name)]

    def _holds_folders_only(self, name: str) -> bool:
        """Whether there are folders in it, and no pictures beside them."""
        entries = [entry for entry in self._list(self.root / name) if not is_service(entry.name)]
        files = [entry.name for entry in entries if not os.path.isdir(entry.path)]
        return len(files) < len(entries) and not any(map(_is_picture, files))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _has_picture(place: str | os.PathLike) -> bool:
    return any(_is_picture(file) for _, _, files in os.walk(place) for file in files)


def _divide(folder: Path, files: list[str]) -> tuple[list[str], list[str]]:
    ranked = sorted(files, key=lambda f: hashlib.blake2b(os.fsencode(os.path.relpath(f, folder))).digest())
    test = set(ranked[: max(1, len(files) // 5)])
    return [f for f in files if f not in test], [f for f in files if f in test]
