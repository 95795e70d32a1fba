"""The torchvision classes behind the named sets: where they look, which of their splits is used, and what comes out of
them.

torchvision reads the annotations and (if told to) downloads; the pictures are then decoded by `shared.data.files`,
which knows how to name or count an unreadable one. torchvision itself is imported only when a set is built.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.errors import UserError


@dataclass(frozen=True)
class TorchvisionSet:
    """How to build one set. `splits` maps our "train" and "test" to arguments of the class; a set used whole has only
    "test".

    needs: the folder below the root, in the layout that torchvision keeps. get: what to do where torchvision cannot
    download the set. num_classes: how many classes a complete copy has; with fewer or more folders every label would be
    another class.
    """

    cls: str
    needs: str
    num_classes: int
    splits: dict[str, dict[str, object]] = field(
        default_factory=lambda: {"train": {"split": "train"}, "test": {"split": "test"}}
    )
    native: bool = False
    get: str | None = None


_WHOLE = {"test": {}}
_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAINVAL = {"train": {"split": "trainval"}, "test": {"split": "test"}}
SETS = {
    "cifar10": TorchvisionSet("CIFAR10", "cifar-10-batches-py", 10, _TRAIN_FLAG, native=True),
    "cifar100": TorchvisionSet("CIFAR100", "cifar-100-python", 100, _TRAIN_FLAG, native=True),
    "STL10": TorchvisionSet("STL10", "stl10_binary", 10, native=True),
    "SUN397": TorchvisionSet("SUN397", "SUN397", 397, _WHOLE),
    "Food101": TorchvisionSet("Food101", "food-101", 101),
    "OxfordPets": TorchvisionSet("OxfordIIITPet", "oxford-iiit-pet", 37, _TRAINVAL),
    "Flowers102": TorchvisionSet("Flowers102", "flowers-102", 102),
    "DTD": TorchvisionSet("DTD", "dtd", 47),
    "EuroSAT": TorchvisionSet("EuroSAT", "eurosat", 10, _WHOLE),
    "FGVC-Aircraft": TorchvisionSet("FGVCAircraft", "fgvc-aircraft-2013b", 100, _TRAINVAL),
    "ImageNet": TorchvisionSet(
        "ImageNet",
        "imagenet",
        1000,
        {"train": {"split": "train"}, "test": {"split": "val"}},
        get="put ILSVRC2012_img_val.tar (or the unpacked val folder) and ILSVRC2012_devkit_t12.tar.gz there",
    ),
    "Caltech101": TorchvisionSet("Caltech101", "caltech101/101_ObjectCategories", 101, _WHOLE),
    "Caltech256": TorchvisionSet("Caltech256", "caltech256/256_ObjectCategories", 257, _WHOLE),
    "StanfordCars": TorchvisionSet(
        "StanfordCars",
        "stanford_cars",
        196,
        get="put cars_test, cars_train, devkit and cars_test_annos_withlabels.mat there",
    ),
    "PCAM": TorchvisionSet("PCAM", "pcam", 2),
}


def build(name: str, root: Path, split: str, download: bool):
    """The torchvision data set. Raises UserError, saying where the files should be and which flag downloads them."""
    spec = SETS[name]
    if split not in spec.splits:
        raise UserError(f"{name} has no {split!r} split: it is used whole, as a test set.")
    if download and spec.get:
        raise UserError(f"{name} cannot be downloaded: {spec.get}, in {root / spec.needs}.")
    folder = root / spec.needs
    if not (
        download or folder.is_dir()
    ):  # asked first: some of torchvision's classes make the folder before they look into it
        raise UserError(
            f"{name} is not at {folder}: "
            f"{spec.get or 'pass --download to fetch it, or set the data root to where it is'}."
        )
    if name == "PCAM":
        try:
            import h5py  # noqa: F401
        except ImportError:
            raise UserError(
                "PCAM comes in HDF5 files, and h5py is not installed: pip install h5py, or leave PCAM out."
            ) from None
    import torchvision.datasets

    kwargs = dict(spec.splits[split])
    if not spec.get:
        kwargs["download"] = download
    try:
        data = getattr(torchvision.datasets, spec.cls)(str(folder if name == "ImageNet" else root), **kwargs)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno == 28:
            raise  # a full disk has its own message
        doing = "could not be downloaded" if download else "could not be read"
        raise UserError(
            f"{name} {doing} below {root}: {' '.join(str(error).split()) or type(error).__name__}. "
            f"{'Check the network, or copy' if download else 'Copy'} a complete {spec.needs} folder there."
        ) from error
    count = len(raw_classes(data)) if name != "PCAM" else 2
    if count != spec.num_classes:
        raise UserError(
            f"{name} at {folder} has {count} classes instead of {spec.num_classes}: the copy is incomplete, or has "
            "folders that do not belong to it."
        )
    return data


def raw_classes(data) -> list[str]:
    """Class names as torchvision carries them; for ImageNet the first synonym, for the Caltech sets the folder
    names."""
    names = data.classes if hasattr(data, "classes") else data.categories
    return [name[0] if isinstance(name, tuple) else name for name in names]


def samples(data) -> tuple[list[str], list[int]]:
    """(paths, labels) of a torchvision set that keeps pictures in files. torchvision lists SUN397 in the disk's order:
    sorted here."""
    kind = type(data).__name__
    if kind == "Caltech101":
        paths = [
            os.path.join(data.root, "101_ObjectCategories", data.categories[y], f"image_{i:04d}.jpg")
            for y, i in zip(data.y, data.index, strict=True)
        ]
        return paths, list(data.y)
    if kind == "Caltech256":
        paths = [
            os.path.join(data.root, "256_ObjectCategories", data.categories[y], f"{y + 1:03d}_{i:04d}.jpg")
            for y, i in zip(data.y, data.index, strict=True)
        ]
        return paths, list(data.y)
    for pairs in ("samples", "_samples"):
        if hasattr(data, pairs):
            return [str(p) for p, _ in getattr(data, pairs)], [int(y) for _, y in getattr(data, pairs)]
    pairs = [
        (str(p), int(y))
        for p, y in zip(data._images if kind == "OxfordIIITPet" else data._image_files, data._labels, strict=True)
    ]
    if kind == "SUN397":
        pairs.sort()
    return [p for p, _ in pairs], [y for _, y in pairs]


def pcam_files(data) -> tuple[str, str]:
    """Paths of PCAM's pictures and of its labels."""
    files = data._FILES[data._split]
    return str(data._base_folder / files["images"][0]), str(data._base_folder / files["targets"][0])


def arrays(data) -> tuple[Tensor, np.ndarray] | None:
    """(pixels (N, 3, H, W) uint8, labels (N,)) of the sets that torchvision holds in memory: CIFAR-10, CIFAR-100,
    STL-10; else None."""
    if type(data).__name__ in ("CIFAR10", "CIFAR100"):
        return torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))), np.asarray(
            data.targets, np.int64
        )
    if type(data).__name__ == "STL10":
        return torch.from_numpy(np.ascontiguousarray(data.data)), data.labels.astype(np.int64)
    return None
