"""ImageNet30 (Hendrycks et al. 2019, ss-ood): 30 classes of ImageNet with 1,300 training and 100 test pictures each.

    ROOT/one_class_train/<class>/*.JPEG   ROOT/one_class_test/<class>/*.JPEG     the original archives, folders named as CLASSES
    ROOT/train/<WNID>/*.JPEG              ROOT/val/<WNID>/*.JPEG                 else: from ILSVRC 2012, as `torchvision` unpacks it

The official test pictures are of ILSVRC's test split, so they cannot be had from its validation split (50 per class):
what is read from there says so. That Hendrycks's thirty are what a paper calls ImageNet30 is an assumption: the code
of distshift's first author has other classes in that set (brambling, tench, goldfish, tiger shark, electric ray,
cock, …: eleven of its folders are known, and only n01698640 is among the thirty), the rest of which nobody has seen.
So a list of WNIDs may be given: a text file, one a line in the order of labels.

Labels are the alphabetical order of the class names, which is neither that of the WNIDs nor that of the 1,000
classes. Files may also lie in ROOT/imagenet30 or ROOT/imagenet.
"""

import os
import re
from pathlib import Path

from shared.data.files import CLIP_INPUT, FileImages, ImageSize
from shared.data.folders import pictures_below
from shared.data.prompts import DEFAULT_TEMPLATE, clean, fill
from shared.errors import UserError

# (folder, WNID, index among the 1,000 classes)
CLASSES = (
    ("acorn", "n12267677", 988), ("airliner", "n02690373", 404), ("ambulance", "n02701002", 407), ("american_alligator", "n01698640", 50),
    ("banjo", "n02787622", 420), ("barn", "n02793495", 425), ("bikini", "n02837789", 445), ("digital_clock", "n03196217", 530),
    ("dragonfly", "n02268443", 319), ("dumbbell", "n03255030", 543), ("forklift", "n03384352", 561), ("goblet", "n03443371", 572),
    ("grand_piano", "n03452741", 579), ("hotdog", "n07697537", 934), ("hourglass", "n03544143", 604), ("manhole_cover", "n03717622", 640),
    ("mosque", "n03788195", 668), ("nail", "n03804744", 677), ("parking_meter", "n03891332", 704), ("pillow", "n03938244", 721),
    ("revolver", "n04086273", 763), ("rotary_dial_telephone", "n03187595", 528), ("schooner", "n04147183", 780), ("snowmobile", "n04252077", 802),
    ("soccer_ball", "n04254680", 805), ("stingray", "n01498041", 6), ("strawberry", "n07745940", 949), ("tank", "n04389033", 847),
    ("toaster", "n04442312", 859), ("volcano", "n09472597", 980),
)  # fmt: skip
FOLDERS, WNIDS, LOGITS = (tuple(entry[k] for entry in CLASSES) for k in range(3))
NAME = "ImageNet30"
OFFICIAL = {"train": ("one_class_train", 1300), "test": ("one_class_test", 100)}  # folder, pictures per class
ILSVRC = {"train": ("train", 1300), "test": ("val", 50)}


class ImageNet30(FileImages):
    """ImageNet30. label: where the pictures come from, in words; it is in `name` too unless these are the whole
    official set."""

    label: str


def imagenet30(
    root: str | os.PathLike,
    split: str = "test",
    *,
    size: ImageSize | None = None,
    skip_corrupt: bool = False,
    in_memory: bool = False,
    wnids: str | os.PathLike | None = None,
) -> ImageNet30:
    """ImageNet30 below the folder `root`, split "train" or "test"; the original archives where they lie there, else
    ILSVRC's train or val folder.

    wnids: a list of classes in the place of Hendrycks's, in ILSVRC's folders; classes are then named by their WNIDs.
    size: by default the short side at 256 pixels and the central 224×224, as in ss-ood. Raises UserError if neither
    layout is there, or a class folder is missing or empty (it is named).
    """
    root = Path(root).expanduser()
    if split not in OFFICIAL:
        raise UserError(f"split {split!r} is not known; use train or test.")
    given = None if wnids is None else read_wnids(wnids)
    where, folders, each, official = _find(root, split, given)
    classes = given or FOLDERS
    paths, labels = [], []
    for label, folder in enumerate(folders):
        if not (where / folder).is_dir():
            raise UserError(
                f"{NAME} lacks the class folder {where / folder} ({classes[label]}): all {len(classes)} are needed, "
                "since labels go by their order."
            )
        files = pictures_below(where / folder)
        if not files:
            raise UserError(
                f"the class folder {where / folder} holds no picture ({classes[label]}): unpack the archive again."
            )
        paths += files
        labels += [label] * len(files)
    names = [clean(folder) for folder in classes]
    complete = len(paths) == len(classes) * each
    data = ImageNet30(
        NAME,
        where,
        paths,
        labels,
        names,
        fill(DEFAULT_TEMPLATE, names),
        size=size or CLIP_INPUT,
        skip_corrupt=skip_corrupt,
        in_memory=in_memory,
    )
    data.label = _label(split, official, len(paths), complete)
    if given:
        data.label = f"{len(given)} classes of {Path(wnids).name}, {data.label}"
    data.name = NAME if official and complete else f"{NAME} ({data.label})"
    return data


def read_wnids(path: str | os.PathLike) -> tuple[str, ...]:
    """The WNIDs of a list, in its order. Raises UserError for anything but two or more different WNIDs, one a line."""
    try:
        found = tuple(Path(path).expanduser().read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list of classes {path} cannot be read: {error}.") from None
    wrong = [wnid for wnid in found if not re.fullmatch(r"n\d{8}", wnid)]
    if wrong or len(found) < 2 or len(set(found)) < len(found):
        what = f"{wrong[0]!r} is no WNID" if wrong else "classes occur twice, or there are fewer than two"
        raise UserError(f"the list of classes {path} is not understood, {what}: write one WNID a line, e.g. n01530575.")
    return found


def _find(root: Path, split: str, given: tuple[str, ...] | None = None) -> tuple[Path, tuple[str, ...], int, bool]:
    """(folder of class folders, their names in the order of labels, pictures per class, whether it is the official
    set)."""
    wnids = given or WNIDS
    layouts = ((OFFICIAL[split], FOLDERS, True), (ILSVRC[split], wnids, False))
    places = [place for place in (root, root / "imagenet30", root / NAME, root / "imagenet") if place.is_dir()]
    for (folder, each), folders, official in layouts[1:] if given else layouts:
        for place in places:
            # a folder `val` or `train` of another set has none of these classes
            if (place / folder).is_dir() and (official or any((place / folder / wnid).is_dir() for wnid in wnids)):
                return place / folder, folders, each, official
    raise UserError(
        f"{NAME} is not at {root}: unpack the original archives there ({OFFICIAL[split][0]}/<class>), or put ILSVRC "
        f"2012's {ILSVRC[split][0]}/<WNID> folders there."
    )


def _label(split: str, official: bool, n: int, complete: bool) -> str:
    if official:
        return f"original archives, {n:,} {'training' if split == 'train' else 'test'} pictures" + (
            "" if complete else ", not all of them"
        )
    if split == "train":
        return f"ILSVRC training split, {n:,} pictures"
    return f"ILSVRC validation split, {n:,} pictures, not the official test set"
