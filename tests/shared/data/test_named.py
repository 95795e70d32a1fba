"""The sixteen sets through torchvision's own classes, from tiny copies in their own formats."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.base import loader, subset
from shared.data.files import NATIVE, ImageSize, decode, read_picture
from shared.data.named import SIXTEEN, ZERO_SHOT, canonical, named
from shared.data.prompts import WORDINGS, class_names
from shared.errors import UserError

pytestmark = pytest.mark.usefixtures("any_checksum")

# set -> number of classes, some (label, released prompt, corrected prompt)
PROMPTS = {
    "cifar10": (10, [(0, "This is a photo of a airplane", None)]),
    "cifar100": (100, [(7, "This is a photo of a thing 7", None)]),
    "STL10": (10, [(2, "This is a photo of a car", None)]),
    "SUN397": (
        397,
        [(0, "This is a photo of a abbey", None), (1, "This is a photo of a apartment building outdoor", None)],
    ),
    "Food101": (101, [(0, "A photo of apple pie, a type of food.", None)]),
    "OxfordPets": (37, [(1, "A photo of a american bulldog, a type of pet.", None)]),
    "Flowers102": (
        102,
        [
            (0, "A photo of a pink primrose, a type of flower.", None),
            (11, "A photo of a colts foot, a type of flower.", "A photo of a colt's foot, a type of flower."),
            (
                59,
                "A photo of a pink yellow dahlia?, a type of flower.",
                "A photo of a pink yellow dahlia, a type of flower.",
            ),
            (87, "A photo of a cyclamen , a type of flower.", "A photo of a cyclamen, a type of flower."),
        ],
    ),
    "DTD": (47, [(1, "A surface with a polka dotted texture.", None)]),
    "EuroSAT": (10, [(2, "A centered satellite photo of brushland or shrubland.", None)]),
    "FGVC-Aircraft": (
        100,
        [
            (1, "A photo of a boeing 737-800, a type of aircraft.", "A photo of a 737-800, a type of aircraft."),
            (3, "A photo of a f/a-18, a type of aircraft.", None),
        ],
    ),
    "TinyImageNet": (4, [(0, "This is a photo of a goldfish", None), (1, "This is a photo of a egyptian cat", None)]),
    "ImageNet": (1000, [(0, "This is a photo of a kit fox", None), (1, "This is a photo of a thing 1", None)]),
    "Caltech101": (101, [(1, "A photo of a faces easy.", None), (3, "A photo of a object 00.", None)]),
    "Caltech256": (
        257,
        [
            (0, "A photo of a ak47.", None),
            (250, "A photo of a airplanes 101.", "A photo of a airplanes."),
            (251, "A photo of a car side 101.", "A photo of a car side."),
        ],
    ),
    "StanfordCars": (
        196,
        [
            (0, "A photo of a am general hummer suv.", "A photo of a am general hummer suv 2000."),
            (1, "A photo of a ram c/v cargo van minivan.", "A photo of a ram c/v cargo van minivan 2012."),
        ],
    ),
    "PCAM": (
        2,
        [
            (0, "Tthis is a photo of healthy lymph node tissue.", "This is a photo of healthy lymph node tissue."),
            (1, "This is a photo of lymph node tumor tissue.", None),
        ],
    ),
}
NATIVE_SIZE = {"cifar10": 32, "cifar100": 32, "STL10": 96}


def test_the_list():
    assert len(SIXTEEN) == 16 and len(ZERO_SHOT) == 15 and set(PROMPTS) == set(SIXTEEN)


@pytest.mark.parametrize("name", SIXTEEN)
def test_set(library, name):
    data = named(name, library)
    classes, examples = PROMPTS[name]
    assert data.name == name and data.num_classes == classes == len(data.prompts)
    corrected = named(name, library, wording="corrected")
    for label, released, mended in examples:
        assert data.prompts[label] == released and corrected.prompts[label] == (mended or released)
    assert (corrected.version == data.version) == (corrected.prompts == data.prompts)

    copy = pickle.loads(pickle.dumps(data))  # what a spawned worker is sent
    chosen = subset(copy, 6, 0)
    ((x, y),) = loader(copy, [chosen])
    side = NATIVE_SIZE.get(name, 224)
    assert x.shape == (6, 3, side, side) and x.dtype == torch.float32 and 0 <= x.min() < x.max() <= 1
    assert y.tolist() == data.labels[chosen].tolist() == [data[i][1] for i in chosen]
    assert len(set(y.tolist())) == min(6, classes)
    assert copy.version == named(name, library).version


@pytest.mark.parametrize(
    "name", [name for name in SIXTEEN if name not in ("cifar10", "cifar100", "STL10", "PCAM", "TinyImageNet")]
)
def test_pictures_and_labels_belong_together(library, name):
    """Example i is example i of torchvision's own class, which decodes the picture itself."""
    from torchvision import datasets

    data = named(name, library, size=NATIVE)
    pairs = {"SUN397": "SUN397", "OxfordPets": "OxfordIIITPet", "FGVC-Aircraft": "FGVCAircraft"}
    split = {"SUN397": {}, "EuroSAT": {}, "Caltech101": {}, "Caltech256": {}, "ImageNet": {"split": "val"}}.get(
        name, {"split": "test"}
    )
    theirs = getattr(datasets, pairs.get(name, name))(
        str(library / "imagenet" if name == "ImageNet" else library), **split
    )
    assert len(data) == len(theirs)
    if name == "SUN397":  # torchvision's own order is that of the disk
        assert data.paths == sorted(data.paths)
        assert {p: int(y) for p, y in zip(data.paths, data.labels, strict=True)} == {
            str(p): y for p, y in zip(theirs._image_files, theirs._labels, strict=True)
        }
        return
    for i in (0, len(data) // 3, len(data) - 1):
        picture, label = theirs[i]
        assert (
            torch.equal(data[i][0], torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255) and data[i][1] == label
        )


def test_arrays_are_the_pictures_on_disk(tmp_path, builders):
    for name, n in (("cifar10", 20), ("cifar100", 20), ("STL10", 6), ("PCAM", 6)):
        pixels = builders[name](tmp_path)
        data = named(name, tmp_path, size=NATIVE)
        pixels = pixels.transpose(0, 3, 1, 2) if name == "PCAM" else pixels
        x, y = data.__getitems__(range(n))
        assert torch.equal(x, torch.from_numpy(pixels.copy()) / 255)
        assert y.tolist() == [i % (2 if name == "PCAM" else data.num_classes) for i in range(n)]
        assert torch.equal(data[4][0], x[4])


def test_a_set_in_memory_can_be_resized(library):
    from torchvision.transforms import CenterCrop, Resize

    data, large = named("cifar10", library), named("cifar10", library, size=ImageSize(48, 40))
    picture = Image.fromarray(data.pixels[3].permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(CenterCrop(40)(Resize(48)(picture)))).permute(2, 0, 1) / 255
    assert torch.equal(large[3][0], expected) and large.version != data.version


def test_splits(library):
    assert len(named("cifar10", library, "train")) == 100 and len(named("cifar10", library)) == 20
    assert len(named("TinyImageNet", library, "train")) == 12
    assert all("/train/" in p or "/0" in p for p in named("Food101", library, "train").paths)
    with pytest.raises(UserError, match="SUN397 has no 'train' split"):
        named("SUN397", library, "train")
    with pytest.raises(UserError, match="use train or test"):
        named("DTD", library, "val")
    with pytest.raises(UserError, match="wording 'printed' is not known"):
        named("DTD", library, wording="printed")


def test_workers_read_pcam_and_files(library):
    for name in ("PCAM", "DTD"):
        data = named(name, library)
        data[0]  # the parent's handle must not be the worker's
        batches = [[0, 1], [2, 3], [4, 5]]
        for (x, y), (u, v) in zip(loader(data, batches, 2), loader(data, batches), strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


def test_a_handle_of_another_process_is_not_used(library):
    data = named("PCAM", library)
    expected = data[0][0]
    data._handle = (os.getpid() + 1, {"x": np.zeros((6, 96, 96, 3), np.uint8)})  # as a forked worker finds its parent's
    assert torch.equal(data[0][0], expected)


def test_imagenet_has_three_names_twice():
    raw = ("Cardigan", "cardigan", "crane", "crane", "maillot", "maillot")
    for wording in WORDINGS:
        assert class_names("ImageNet", raw, wording) == tuple(sorted(name.lower() for name in raw))


def test_duplicate_names_stay_and_are_reported(library):
    assert named("ImageNet", library).duplicates == {"This is a photo of a kit fox": (0, 7)}
    assert named("TinyImageNet", library).duplicates == {"This is a photo of a crane": (2, 3)}
    assert named("DTD", library).duplicates == {}


@pytest.mark.parametrize("name", SIXTEEN)
def test_a_missing_set_says_where_it_should_be_and_makes_no_folder(tmp_path, name):
    with pytest.raises(UserError) as error:
        named(name, tmp_path)
    message = str(error.value)
    assert name in message and str(tmp_path) in message and "\n" not in message
    assert "--download" in message or name in ("ImageNet", "StanfordCars", "TinyImageNet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ImageNet", "StanfordCars", "TinyImageNet"])
def test_what_cannot_be_downloaded_says_so(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} cannot be downloaded"):
        named(name, tmp_path, download=True)


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    import urllib.error

    from torchvision.datasets import dtd

    def fail(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(dtd, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"DTD could not be downloaded .*no network here.*Check the network") as error:
        named("DTD", tmp_path, download=True)
    assert "\n" not in str(error.value)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dtd, "download_and_extract_archive", full)
    with pytest.raises(OSError, match="No space"):
        named("DTD", tmp_path, download=True)


def test_an_incomplete_copy_is_refused(tmp_path, builders):
    import shutil

    for name in ("EuroSAT", "Caltech101", "DTD", "STL10"):
        builders[name](tmp_path)
    shutil.rmtree(tmp_path / "eurosat/2750/Forest")
    with pytest.raises(UserError, match=r"EuroSAT .* has 9 classes instead of 10"):
        named("EuroSAT", tmp_path)
    shutil.rmtree(tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google")
    with pytest.raises(UserError, match="Caltech101 could not be read"):
        named("Caltech101", tmp_path)
    (tmp_path / "dtd/dtd/labels/test1.txt").unlink()
    with pytest.raises(UserError, match="DTD could not be read"):
        named("DTD", tmp_path)
    (tmp_path / "stl10_binary/test_y.bin").unlink()
    with pytest.raises(UserError, match="STL10 could not be read"):
        named("STL10", tmp_path)


def test_a_checksum_that_differs_is_an_error(tmp_path, builders, monkeypatch):
    monkeypatch.undo()  # torchvision's own check again
    builders["cifar10"](tmp_path)
    with pytest.raises(UserError, match="cifar10 could not be read"):
        named("cifar10", tmp_path)


def test_pcam_without_h5py(library, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="h5py is not installed"):
        named("PCAM", library)


def test_a_pcam_file_that_is_no_hdf5(tmp_path, builders):
    builders["PCAM"](tmp_path)
    path = tmp_path / "pcam" / "camelyonpatch_level_2_split_test_y.h5"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="copy it again") as error:
        named("PCAM", tmp_path)
    assert str(path) in str(error.value)


def test_a_picture_that_is_listed_but_missing(tmp_path, builders, capsys):
    builders["DTD"](tmp_path)
    data = named("DTD", tmp_path)
    Path(data.paths[3]).unlink()
    with pytest.raises(UserError, match="is missing") as error:
        data[3]
    assert data.paths[3] in str(error.value)
    data = named("DTD", tmp_path, skip_corrupt=True)
    assert len(subset(data, None, 0)) == 46 and data.skipped == (data.paths[3],)
    assert "DTD: 1 of 47 chosen pictures" in capsys.readouterr().err


def test_names():
    assert (
        canonical("CIFAR-10") == "cifar10"
        and canonical("fgvc_aircraft") == "FGVC-Aircraft"
        and canonical("oxfordpet") == "OxfordPets"
    )
    with pytest.raises(UserError, match=r"no data set 'cifar11'; did you mean .*cifar10"):
        canonical("cifar11")
    with pytest.raises(UserError, match="did you mean TinyImageNet"):
        canonical("TinyImagNet")
    with pytest.raises(UserError, match="there are cifar10, cifar100"):
        canonical("zzz")


@pytest.mark.parametrize("rearranged", [False, True])
def test_tiny_imagenet_val_in_both_layouts(tmp_path, builders, rearranged):
    builders["TinyImageNet"](tmp_path, rearranged)
    for root in (tmp_path, tmp_path / "tiny-imagenet-200"):  # the folder, or the one that holds it
        data = named("TinyImageNet", root, size=NATIVE)
        assert data.classes == ("goldfish", "egyptian cat", "crane", "crane")  # sorted wnids, first names
        assert [Path(p).name for p in data.paths] == [f"val_{i}.JPEG" for i in (2, 6, 1, 5, 0, 4, 3, 7)]
        assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert torch.equal(data[3][0] * 255, decode(read_picture(data.paths[3]), data.paths[3]).float())
        train = named("TinyImageNet", root, "train", size=NATIVE)
        assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        assert Path(train.paths[0]).name == "n01443537_0.JPEG"


def test_tiny_imagenet_without_inner_images_folders(tmp_path, builders, picture):
    builders["TinyImageNet"](tmp_path, rearranged=True)
    val = tmp_path / "tiny-imagenet-200" / "val"
    for wnid in [f for f in val.iterdir() if f.is_dir() and f.name != "images"]:
        for file in (wnid / "images").iterdir():
            file.rename(wnid / file.name)
        (wnid / "images").rmdir()
    assert named("TinyImageNet", tmp_path).labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def damage_words(folder):
    (folder / "words.txt").write_text("n00001740\tentity\n")


def damage_annotations(folder):
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn00000000\t0\t0\t1\t1\n")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "wnids.txt").unlink(), "unpack tiny-imagenet-200.zip"),
        (lambda folder: (folder / "words.txt").unlink(), "lacks .*words.txt"),
        (damage_words, "has no name for n01443537"),
        (lambda folder: (folder / "val" / "val_annotations.txt").unlink(), "lacks .*val_annotations.txt"),
        (damage_annotations, "line 1 of .*val_annotations.txt"),
        (lambda folder: (folder / "val" / "n03126707").mkdir(), r"not the 4 expected ones: it lacks 3"),
    ],
)
def test_a_broken_tiny_imagenet_says_what_is_wrong(tmp_path, builders, damage, says):
    builders["TinyImageNet"](tmp_path)
    damage(tmp_path / "tiny-imagenet-200")
    with pytest.raises(UserError, match=says):
        named("TinyImageNet", tmp_path)
