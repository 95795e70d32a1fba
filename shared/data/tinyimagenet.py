"""TinyImageNet-200 in the folder layout it comes in.

    wnids.txt                             the 200 classes
    words.txt                             wnid <tab> names, separated by commas; the first one is used
    train/<wnid>/images/*.JPEG
    val/images/*.JPEG                     with val/val_annotations.txt: file <tab> wnid <tab> box
    val/<wnid>/images/*.JPEG              what some scripts turn val/ into, also without the inner images/; an `images` folder left
                                          beside the class folders is no class

Labels follow the sorted wnids, as an image-folder reader numbers them.
"""

from pathlib import Path

from shared.data.folders import check_classes, class_folders, pictures_below
from shared.errors import UserError

FOLDER = "tiny-imagenet-200"


def read(root: Path, split: str) -> tuple[Path, list[str], list[int], list[str]]:
    """(folder, paths, labels, first name per class) of the split "train" or "test" (= val). `root` is the folder or
    holds it.

    Raises UserError if a file of the layout is missing or does not agree with wnids.txt.
    """
    folder = root if (root / "wnids.txt").is_file() else root / FOLDER
    if not (folder / "wnids.txt").is_file():
        raise UserError(
            f"TinyImageNet is not at {root / FOLDER}: unpack tiny-imagenet-200.zip in {root}, or set the data root."
        )
    wnids = sorted(_lines(folder / "wnids.txt"))
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    unnamed = [w for w in wnids if w not in words]
    if unnamed:
        raise UserError(
            f"{folder / 'words.txt'} has no name for {unnamed[0]}, which wnids.txt lists: unpack the archive again."
        )
    label = {wnid: i for i, wnid in enumerate(wnids)}
    where = folder / ("train" if split == "train" else "val")
    if not where.is_dir():
        raise UserError(f"TinyImageNet has no folder {where}: unpack the archive again.")
    pairs = (
        _flat(where, label)
        if split == "test" and not any((where / w).is_dir() for w in wnids)
        else _by_class(where, wnids)
    )
    pairs.sort(key=lambda pair: (pair[1], Path(pair[0]).name))  # one order, however val/ is arranged
    return where, [p for p, _ in pairs], [y for _, y in pairs], [words[w].split(",")[0].strip() for w in wnids]


def _by_class(where: Path, wnids: list[str]) -> list[tuple[str, int]]:
    check_classes(where, [f for f in class_folders(where) if f != "images"], wnids)
    pairs = [(path, i) for i, wnid in enumerate(wnids) for path in pictures_below(where / wnid)]
    empty = set(range(len(wnids))) - {i for _, i in pairs}
    if empty:
        raise UserError(f"the class folder {where / wnids[min(empty)]} holds no picture: unpack the archive again.")
    return pairs


def _flat(where: Path, label: dict[str, int]) -> list[tuple[str, int]]:
    annotations = where / "val_annotations.txt"
    pairs = []
    for number, line in enumerate(_lines(annotations), 1):
        file, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label:
            raise UserError(
                f"line {number} of {annotations} does not name a class of wnids.txt: unpack the archive again."
            )
        pairs.append((str(where / "images" / file), label[wnid]))
    if not pairs:
        raise UserError(f"{annotations} lists no picture: unpack the archive again.")
    return pairs


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"TinyImageNet lacks {path}: unpack the archive again.")
    return [line for line in path.read_text().splitlines() if line.strip()]
