"""The data sets of PMG-AFT by name: 16 test sets, of which TinyImageNet is also what is fine-tuned on.

Splits (facts §4): SUN397, EuroSAT, Caltech-101 and Caltech-256 are used whole; ImageNet and TinyImageNet by their val
split; the others by their test split. CIFAR-10, CIFAR-100 and STL-10 come, and so are attacked, at native size;
everything else with the short side at 256 and the central 224×224 cut out.

Beside the 16: "ImageNet30" (shared.data.imagenet30), the shifted test sets "ImageNetV2", "ImageNetA", "ImageNetR" and
"ImageNetSketch" (shared.data.imagenet_variants), and "Caltech101Split", for what learns from some pictures of
Caltech-101. That split is ours, as the set has none: of each class the three tenths (rounded down, at least one) whose
file names hash lowest are the test split, the rest is the train split. "Caltech101CoOp" is the split of CoOp (Zhou et
al. 2022), with its 100 classes and their names: without Faces_easy and the background, and face, leopard, motorbike and
airplane for four folders. Its file, split_zhou_Caltech101.json, is the user's to put beside the pictures.

    named("DTD", root)                               what is evaluated
    named("TinyImageNet", root, "train")             what is trained on
    named("PCAM", root, wording="corrected")         see shared.data.prompts for the two wordings
"""

import difflib
import hashlib
import json
import os
import re
from pathlib import Path

from shared.data import imagenet_variants, tinyimagenet, torchvision_sets
from shared.data.arrays import ArrayImages, Hdf5Images
from shared.data.base import LabelledImages
from shared.data.files import CLIP_INPUT, NATIVE, FileImages, ImageSize
from shared.data.imagenet30 import imagenet30
from shared.data.prompts import class_names, prompts
from shared.errors import UserError

SIXTEEN = (
    "cifar10",
    "cifar100",
    "STL10",
    "SUN397",
    "Food101",
    "OxfordPets",
    "Flowers102",
    "DTD",
    "EuroSAT",
    "FGVC-Aircraft",
    "TinyImageNet",
    "ImageNet",
    "Caltech101",
    "Caltech256",
    "StanfordCars",
    "PCAM",
)  # in the order of the released code
COOP_FILE = "split_zhou_Caltech101.json"
ZERO_SHOT = tuple(name for name in SIXTEEN if name != "TinyImageNet")
BESIDE = ("ImageNet30", *imagenet_variants.VARIANTS, "Caltech101Split", "Caltech101CoOp")


def named(
    name: str,
    root: str | os.PathLike,
    split: str = "test",
    *,
    wording: str = "released",
    size: ImageSize | None = None,
    download: bool = False,
    skip_corrupt: bool = False,
    in_memory: bool = False,
    wnids: str | None = None,
) -> LabelledImages:
    """The data set `name` (case, `-` and `_` do not matter) below the folder `root`, in the layout that torchvision
    keeps.

    split: "train" or "test" as above. wording: "released" or "corrected". size: overrides the size above. download: let
    torchvision fetch what is missing (it cannot fetch StanfordCars, TinyImageNet, ImageNet and the sets around it).
    skip_corrupt, in_memory: see FileImages. wnids: of ImageNet30, see there.

    Raises UserError for an unknown name or split, and if the files are missing, incomplete or unreadable.
    """
    name, root = canonical(name), Path(root).expanduser()
    if split not in ("train", "test"):
        raise UserError(f"split {split!r} is not known; use train or test.")
    keep = {"skip_corrupt": skip_corrupt, "in_memory": in_memory}
    if name == "ImageNet30":
        if download:
            raise UserError(
                f"ImageNet30 cannot be downloaded: unpack its archives, or ILSVRC 2012's folders, in {root}."
            )
        return imagenet30(root, split, size=size, wnids=wnids, **keep)
    if name == "TinyImageNet":
        if download:
            raise UserError(f"TinyImageNet cannot be downloaded: unpack tiny-imagenet-200.zip in {root}.")
        where, paths, labels, raw = tinyimagenet.read(root, split)
        names = class_names(name, raw, wording)
        return FileImages(
            name, where, paths, labels, names, prompts(name, names, wording), size=size or CLIP_INPUT, **keep
        )
    if name in imagenet_variants.VARIANTS:
        where, paths, labels, raw = imagenet_variants.read(name, root, split, download)
        names = class_names(name, raw, wording)
        return FileImages(
            name, where, paths, labels, names, prompts(name, names, wording), size=size or CLIP_INPUT, **keep
        )
    if name == "Caltech101CoOp":
        return _caltech101_coop(root, split, size, keep)
    if name == "Caltech101Split":
        return _caltech101(root, split, wording, size, download, keep)

    data = torchvision_sets.build(name, root, split, download)
    names = class_names(name, [] if name == "PCAM" else torchvision_sets.raw_classes(data), wording)
    sentences = prompts(name, names, wording)
    size = size or (NATIVE if torchvision_sets.SETS[name].native else CLIP_INPUT)
    if name == "PCAM":
        return Hdf5Images(name, *torchvision_sets.pcam_files(data), names, sentences, size)
    held = torchvision_sets.arrays(data)
    if held is not None:
        return ArrayImages(name, *held, names, sentences, size=size)
    paths, labels = torchvision_sets.samples(data)
    return FileImages(name, root, paths, labels, names, sentences, size=size, **keep)


def _caltech101(root: Path, split: str, wording: str, size: ImageSize | None, download: bool, keep: dict) -> FileImages:
    """One of the two parts of Caltech-101. Raises UserError where a class is too small for both."""
    data = torchvision_sets.build("Caltech101", root, "test", download)
    names = class_names("Caltech101", torchvision_sets.raw_classes(data), wording)
    by_class: dict[int, list[str]] = {}
    for path, label in zip(*torchvision_sets.samples(data), strict=True):
        by_class.setdefault(label, []).append(path)
    paths, labels = [], []
    for label, files in sorted(by_class.items()):
        if len(files) < 2:
            raise UserError(
                f"the class {names[label]!r} of Caltech101 has one picture, and a train and a test split need two: "
                "copy a complete set."
            )
        ranked = sorted(files, key=lambda f: hashlib.blake2b(f"{Path(f).parent.name}/{Path(f).name}".encode()).digest())
        cut = max(1, 3 * len(files) // 10)
        part = sorted(ranked[:cut] if split == "test" else ranked[cut:])
        paths += part
        labels += [label] * len(part)
    return FileImages(
        "Caltech101Split",
        root,
        paths,
        labels,
        names,
        prompts("Caltech101", names, wording),
        size=size or CLIP_INPUT,
        **keep,
    )


def _caltech101_coop(root: Path, split: str, size: ImageSize | None, keep: dict) -> FileImages:
    """A part of CoOp's split: {"train" | "val" | "test": [[path below 101_ObjectCategories, label, name], …]}.

    Raises UserError where the file is missing or is no such file, or a picture that it names is missing.
    """
    file, folder = root / "caltech101" / COOP_FILE, root / torchvision_sets.SETS["Caltech101"].needs
    try:
        parts = json.loads(file.read_text())
        names = {int(label): str(name) for part in ("train", "val", "test") for _, label, name in parts[part]}
        paths = [folder / path for path, *_ in parts[split]]
        labels = [int(label) for _, label, _ in parts[split]]
    except OSError:
        raise UserError(
            f"{file} is missing: Caltech101CoOp needs CoOp's split of Caltech-101 beside the pictures."
        ) from None
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file} is no split in CoOp's format: train, val and test, each a list of [path, label, name]."
        ) from None
    absent = [path for path in paths if not path.is_file()]
    if absent or sorted(names) != list(range(len(names))):
        what = f"{absent[0]} is missing" if absent else "its labels do not count from 0 without gaps"
        raise UserError(f"{file}: {what}: copy a complete set and the split that belongs to it.")
    classes = [names[label] for label in range(len(names))]
    said, size = prompts("Caltech101", classes, "released"), size or CLIP_INPUT
    return FileImages("Caltech101CoOp", root, list(map(str, paths)), labels, classes, said, size=size, **keep)


def canonical(name: str) -> str:
    """The spelling of a set's name in SIXTEEN or BESIDE. Raises UserError with the closest names if there is none."""
    spellings = {_plain(known): known for known in SIXTEEN + BESIDE} | {
        "oxfordpet": "OxfordPets",
        "oxfordiiitpet": "OxfordPets",
    }
    if _plain(name) not in spellings:
        close = dict.fromkeys(spellings[s] for s in difflib.get_close_matches(_plain(name), spellings, n=3, cutoff=0.5))
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(SIXTEEN + BESIDE)}."
        raise UserError(f"there is no data set {name!r}; {hint}")
    return spellings[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
