"""Tiny copies of the data sets, each in its own format on disk, as their archives unpack."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CALTECH101 = ["Faces", "Faces_easy", "Leopards", "yin_yang", *(f"object_{k:02d}" for k in range(97))]
CALTECH256 = [
    "001.ak47",
    *(f"{k:03d}.thing-{k}" for k in range(2, 251)),
    "251.airplanes-101",
    "252.car-side-101",
    *(f"{k:03d}.more-things" for k in range(253, 257)),
    "257.clutter",
]
EUROSAT = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]
WNIDS = ["n03126707", "n02124075", "n01443537", "n09999999"]  # not sorted, as in the original list
WORDS = {
    "n03126707": "crane",
    "n02124075": "Egyptian cat",
    "n01443537": "goldfish, Carassius auratus",
    "n09999999": "crane, bird",
}


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (12, 9)) -> Path:
    """A noise picture of (width, height) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def cifar(root: Path, kind: int) -> np.ndarray:
    """Pickled batches of rows (red plane, green plane, blue plane). Returns the test pictures (N, 3, 32, 32)."""
    folder = root / {10: "cifar-10-batches-py", 100: "cifar-100-python"}[kind]
    folder.mkdir(parents=True)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    names = names if kind == 10 else [f"thing_{k}" for k in range(100)]
    key, meta, meta_key, files = {
        10: ("labels", "batches.meta", "label_names", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]),
        100: ("fine_labels", "meta", "fine_label_names", ["train", "test"]),
    }[kind]
    for k, file in enumerate(files):
        rows = np.random.default_rng(k).integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": rows, key: [i % kind for i in range(20)]}))
    (folder / meta).write_bytes(pickle.dumps({meta_key: names}))
    return rows.reshape(20, 3, 32, 32)


def stl10(root: Path) -> np.ndarray:
    """Planes stored column by column, labels from 1. Returns the test pictures (N, 3, 96, 96)."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split, n in (("train", 4), ("test", 6)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
        pixels.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        (np.arange(n, dtype=np.uint8) % 10 + 1).tofile(folder / f"{split}_y.bin")
    text(
        folder / "class_names.txt",
        ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"],
    )
    return pixels


def sun397(root: Path) -> None:
    names = ["/a/abbey", "/a/apartment_building/outdoor", *(f"/b/place_{k:03d}" for k in range(395))]
    text(root / "SUN397" / "ClassName.txt", names)
    for k, name in enumerate(names):
        draw(root / "SUN397" / name[1:] / f"sun_{k:04d}.jpg", k)


def food101(root: Path) -> None:
    names = ["apple_pie", "ice_cream", *(f"meal_{k:03d}" for k in range(99))]
    for split, picture in (("train", 0), ("test", 1)):
        lists = {n: [f"{n}/{picture}{k}" for k in range(2)] for n in names}
        text(root / "food-101" / "meta" / f"{split}.json", [json.dumps(lists)])
        for k, files in enumerate(lists.values()):
            for file in files:
                draw(root / "food-101" / "images" / f"{file}.jpg", k)


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    names = ["Abyssinian", "american_bulldog", *(f"breed_{k:02d}" for k in range(35))]
    for split in ("trainval", "test"):
        text(folder / "annotations" / f"{split}.txt", [f"{n}_{k + 1} {k + 1} 1 1" for k, n in enumerate(names)])
    for k, n in enumerate(names):
        draw(folder / "images" / f"{n}_{k + 1}.jpg", k)


def flowers(root: Path) -> None:
    from scipy.io import savemat

    folder = root / "flowers-102"
    labels = np.array([k % 102 + 1 for k in range(204)])
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(
        folder / "setid.mat", {"trnid": np.arange(1, 103), "valid": np.arange(1, 103), "tstid": np.arange(103, 205)}
    )
    for k in range(1, 205):
        draw(folder / "jpg" / f"image_{k:05d}.jpg", k)


def dtd(root: Path) -> None:
    names = ["banded", "polka-dotted", *(f"surface_{k:02d}" for k in range(45))]
    for split in ("train", "val", "test"):
        text(root / "dtd/dtd/labels" / f"{split}1.txt", [f"{n}/{n}_0001.jpg" for n in names])
    for k, n in enumerate(names):
        draw(root / "dtd/dtd/images" / n / f"{n}_0001.jpg", k)


def eurosat(root: Path) -> None:
    for k, name in enumerate(EUROSAT):
        for i in range(2):
            draw(root / "eurosat/2750" / name / f"{name}_{i}.jpg", k)


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    names = ["707-320", "737-800", "A300B4", "F/A-18", *(f"Type_{k}-X" for k in range(96))]
    text(folder / "variants.txt", names)
    for split in ("trainval", "test"):
        text(folder / f"images_variant_{split}.txt", [f"{k:07d} {n}" for k, n in enumerate(names)])
    for k in range(100):
        draw(folder / "images" / f"{k:07d}.jpg", k)


def imagenet(root: Path) -> None:
    import torch

    names = {f"n{k:08d}": (f"thing {k}", f"object {k}") for k in range(1000)}
    names["n00000000"], names["n00000007"] = ("kit fox", "Vulpes macrotis"), ("kit fox", "another")
    for k, wnid in enumerate(names):
        draw(root / "imagenet/val" / wnid / f"ILSVRC2012_val_{k:08d}.JPEG", 0, (4, 4))
    torch.save((names, []), root / "imagenet" / "meta.bin")


def imagenet_meta(root: Path, names: dict[str, tuple[str, ...]]) -> None:
    """What torchvision makes of the devkit, alone."""
    import torch

    (root / "imagenet").mkdir(parents=True, exist_ok=True)
    torch.save((names, []), root / "imagenet" / "meta.bin")


def imagenet_variants(root: Path, wnids: list[str], few: list[str], size: tuple[int, int] = (4, 4)) -> None:
    """V2 (one picture per label, three for label 1), A and R (of the WNIDs `few`) and Sketch."""
    content = draw(root / "picture.jpeg", 0, size).read_bytes()
    (root / "picture.jpeg").unlink()
    v2 = [
        f"imagenetv2-matched-frequency-format-val/{k}/{i}.jpeg"
        for k in range(len(wnids))
        for i in range(3 if k == 1 else 1)
    ]
    sketch, a, r = (
        [f"{folder}/{wnid}/{name}" for wnid in part]
        for folder, part, name in (
            ("sketch", wnids, "sketch_0.JPEG"),
            ("imagenet-a", few, "0.0001_digital clock _ digital clock_0.86.jpg"),
            ("imagenet-r", few, "art_0.jpg"),
        )
    )
    for name in (*v2, *sketch, *a, *r):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for folder in ("imagenet-a", "imagenet-r"):
        text(root / folder / "README.txt", ["what the archive says of itself"])


def caltech101(root: Path, each: int = 1) -> None:
    for k, name in enumerate(["BACKGROUND_Google", *CALTECH101]):
        for i in range(each):
            draw(root / "caltech101/101_ObjectCategories" / name / f"image_{i + 1:04d}.jpg", k + 1000 * i)


def coop_split(root: Path) -> None:
    """CoOp's split of three classes; of each the first picture trains."""
    folders = {"Faces": "face", "Leopards": "leopard", "object_00": "object 00"}
    parts = {
        part: [[f"{folder}/image_{i:04d}.jpg", k, name] for k, (folder, name) in enumerate(folders.items())]
        for part, i in (("train", 1), ("val", 1), ("test", 2))
    }
    (root / "caltech101/split_zhou_Caltech101.json").write_text(json.dumps(parts))


def caltech256(root: Path) -> None:
    for k, name in enumerate(CALTECH256):
        draw(root / "caltech256/256_ObjectCategories" / name / f"{name[:3]}_0001.jpg", k)
    text(root / "caltech256/256_ObjectCategories" / CALTECH256[7] / "RENAME2", ["a stray file of the archive"])


def cars(root: Path) -> None:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    names = [
        "AM General Hummer SUV 2000",
        "Ram C/V Cargo Van Minivan 2012",
        *(f"Maker Model-{k} 2012" for k in range(194)),
    ]
    (folder / "devkit").mkdir(parents=True)
    array = np.empty(len(names), object)
    array[:] = names
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": array})
    annotations = np.array(
        [(f"{k + 1:05d}.jpg", k + 1) for k in range(196)], dtype=[("fname", object), ("class", object)]
    )
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations})
    for k in range(196):
        draw(folder / "cars_test" / f"{k + 1:05d}.jpg", k)


def pcam(root: Path) -> np.ndarray:
    """Returns the test pictures (N, 96, 96, 3)."""
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    with h5py.File(root / "pcam" / "camelyonpatch_level_2_split_test_x.h5", "w") as file:
        file["x"] = pixels
    with h5py.File(root / "pcam" / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file["y"] = np.arange(6).reshape(-1, 1, 1, 1) % 2
    return pixels


def tiny_imagenet(root: Path, rearranged: bool = False) -> None:
    folder = root / "tiny-imagenet-200"
    text(folder / "wnids.txt", WNIDS)
    text(folder / "words.txt", [f"{w}\t{names}" for w, names in WORDS.items()] + ["n00001740\tentity"])
    for k, wnid in enumerate(WNIDS):
        for i in range(3):
            draw(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * k + i, (64, 64))
    lines = [f"val_{i}.JPEG\t{WNIDS[i % 4]}\t0\t0\t63\t63" for i in range(8)]
    text(folder / "val" / "val_annotations.txt", lines)
    for i in range(8):
        inside = f"{WNIDS[i % 4]}/images" if rearranged else "images"
        draw(folder / "val" / inside / f"val_{i}.JPEG", 100 + i, (64, 64))
    if rearranged:
        (folder / "val" / "images").mkdir()  # what the usual scripts leave behind


BUILDERS = {
    "cifar10": lambda root: cifar(root, 10),
    "cifar100": lambda root: cifar(root, 100),
    "STL10": stl10,
    "SUN397": sun397,
    "Food101": food101,
    "OxfordPets": pets,
    "Flowers102": flowers,
    "DTD": dtd,
    "EuroSAT": eurosat,
    "FGVC-Aircraft": aircraft,
    "TinyImageNet": tiny_imagenet,
    "ImageNet": imagenet,
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "StanfordCars": cars,
    "PCAM": pcam,
}


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """One root with all sixteen sets in it. Read only."""
    root = tmp_path_factory.mktemp("library")
    for build in BUILDERS.values():
        build(root)
    return root


@pytest.fixture
def builders():
    return BUILDERS


@pytest.fixture
def picture():
    return draw


@pytest.fixture
def any_checksum(monkeypatch):
    """The tiny copies do not have the checksums of the real files; only that check is side-stepped."""
    from torchvision.datasets import cifar as cifar_module
    from torchvision.datasets import flowers102, stl10

    for module in (cifar_module, flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    monkeypatch.setattr(
        stl10, "check_integrity", lambda path, md5=None: Path(path).is_file() or "unlabeled" in str(path)
    )
