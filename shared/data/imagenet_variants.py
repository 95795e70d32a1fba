"""ImageNet's four shifted test sets, as their archives unpack below DATA_ROOT; the classes are ImageNet's, or 200 of
them.

    ImageNetV2       imagenetv2-matched-frequency-format-val/<0 … 999>/*.jpeg    the number is the label: the place of the WNID in alphabetical order
    ImageNetA        imagenet-a/<WNID>/*.jpg                                     200 classes
    ImageNetR        imagenet-r/<WNID>/*.jpg                                     200 classes
    ImageNetSketch   sketch/<WNID>/*.JPEG                                        1,000 classes

Labels of A and R are 0 … 199 in alphabetical order of WNIDs, and a classifier chooses among these 200, the common
practice: CoOp, on which RVPT's code seems to be built, numbers the folders in the same way (its imagenet_a.py). Whether
RVPT chooses among 200 or 1,000 is unknown. All four are test sets without a train split.

Class names are those of "ImageNet" in shared.data.named. No list of them is kept here: they are read from ImageNet's
own folder below the same root, which needs no pictures for it: imagenet/meta.bin, as torchvision writes it, or
ILSVRC2012_devkit_t12.tar.gz, of which torchvision makes it.
"""

from dataclasses import dataclass
from pathlib import Path

from shared.data.folders import class_folders, pictures_below
from shared.errors import UserError


@dataclass(frozen=True)
class Variant:
    """folder: below the root. num_classes: how many a complete copy has. numbered: folders are labels, not WNIDs."""

    folder: str
    num_classes: int
    archive: str
    numbered: bool = False


VARIANTS = {
    "ImageNetV2": Variant(
        "imagenetv2-matched-frequency-format-val", 1000, "imagenetv2-matched-frequency.tar.gz", numbered=True
    ),
    "ImageNetA": Variant("imagenet-a", 200, "imagenet-a.tar"),
    "ImageNetR": Variant("imagenet-r", 200, "imagenet-r.tar"),
    "ImageNetSketch": Variant("sketch", 1000, "ImageNet-Sketch.zip"),
}
ALL = 1000  # classes of ImageNet
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def read(name: str, root: Path, split: str, download: bool) -> tuple[Path, list[str], list[int], list[str]]:
    """(folder, paths, labels, one class name per label) of a set of VARIANTS.

    Raises UserError for the split "train" and for `download`, where the folder or ImageNet's class names are missing,
    where the class folders are not as many as the set has or not those of ImageNet, and where a class holds no picture.
    """
    variant = VARIANTS[name]
    where = root / variant.folder
    if split == "train":
        raise UserError(f"{name} has no 'train' split: it is a test set.")
    if download:
        raise UserError(f"{name} cannot be downloaded: unpack {variant.archive} in {root}.")
    if not where.is_dir():
        raise UserError(
            f"{name} is not at {where}: unpack {variant.archive} in {root}, or set the data root to where it is."
        )
    names = imagenet_names(root, name)
    folders = class_folders(where)
    known = {str(k) for k in range(len(names))} if variant.numbered else set(names)
    if strange := [f for f in folders if f not in known]:
        what = f"label from 0 to {len(names) - 1}" if variant.numbered else "WNID of ImageNet"
        raise UserError(
            f"{name} at {where} has the folder {strange[0]}, which is no {what}: remove what does not belong to the "
            "set."
        )
    if len(folders) != variant.num_classes:
        raise UserError(
            f"{name} at {where} has {len(folders)} class folders instead of {variant.num_classes}: the copy is "
            "incomplete."
        )
    folders.sort(key=int if variant.numbered else str)
    paths, labels = [], []
    for label, folder in enumerate(folders):
        files = pictures_below(where / folder)
        if not files:
            raise UserError(
                f"the class folder {where / folder} of {name} holds no picture: unpack {variant.archive} again."
            )
        paths += files
        labels += [label] * len(files)
    return where, paths, labels, list(names.values()) if variant.numbered else [names[wnid] for wnid in folders]


def imagenet_names(root: Path, wanted_by: str) -> dict[str, str]:
    """WNID -> first name of each class of ImageNet, sorted by WNID, from ImageNet's folder below the root. Raises
    UserError where it has none."""
    from torchvision.datasets import imagenet

    folder = root / "imagenet"
    try:
        if not (folder / imagenet.META_FILE).is_file():
            imagenet.parse_devkit_archive(folder)
        found = {str(wnid): names[0] for wnid, names in sorted(imagenet.load_meta_file(folder)[0].items())}
    except Exception as error:  # whatever a missing or damaged file makes torchvision, torch and scipy raise
        if isinstance(error, OSError) and error.errno == 28:
            raise  # a full disk has its own message
        raise UserError(
            f"{wanted_by} needs the names of ImageNet's classes, and they cannot be read from {folder}: put {DEVKIT} "
            f"(or the {imagenet.META_FILE} that torchvision made of it) there, the pictures are not needed for it."
        ) from error
    if len(found) != ALL:
        raise UserError(
            f"{wanted_by} needs the names of ImageNet's {ALL} classes, and {folder / imagenet.META_FILE} has "
            f"{len(found)}: delete it and put {DEVKIT} there."
        )
    return found
