"""ImageNet-V2, -A, -R and -Sketch in the layouts of their archives, and what is said of copies that are not whole."""

import re
import shutil
from pathlib import Path

import pytest

from shared.data.catalogue import Source, open_set
from shared.data.imagenet_variants import VARIANTS
from shared.data.named import canonical, named
from shared.errors import UserError

WNIDS = [f"n{k:08d}" for k in range(1000)]
FEW = WNIDS[3::5]


@pytest.fixture(scope="module")
def makers():
    """The writers beside the fixtures: `--import-mode=importlib` lets no test import its conftest."""
    from tests.papers.ends import load

    return load("shared/data/conftest.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory, makers):
    """The four sets, and ImageNet's names in the devkit's order, which is not that of the WNIDs. Read only."""
    root = tmp_path_factory.mktemp("variants")
    makers.imagenet_variants(root, WNIDS, FEW)
    names = {w: (f"Thing-{k}", f"object {k}") for k, w in enumerate(WNIDS)} | {WNIDS[8]: ("banana",)}
    makers.imagenet_meta(root, dict(reversed(names.items())))
    return root


@pytest.mark.parametrize(
    ("name", "wnids"), [("ImageNetV2", WNIDS), ("ImageNetSketch", WNIDS), ("ImageNetA", FEW), ("ImageNetR", FEW)]
)
def test_labels_are_in_the_order_of_the_wnids(root, name, wnids):
    data = named(name, root)
    number = [int(w[1:]) for w in wnids]
    assert data.name == name and data.classes == tuple("banana" if k == 8 else f"thing {k}" for k in number)
    assert data.prompts[2] == f"This is a photo of a {data.classes[2]}"
    folders = [Path(p).parent.name for p in data.paths]
    for folder, label in zip(folders, data.labels.tolist(), strict=True):
        assert folder == (str(label) if name == "ImageNetV2" else wnids[label])
    assert len(data) == len(wnids) + (2 if name == "ImageNetV2" else 0) and set(data.labels.tolist()) == set(
        range(len(wnids))
    )
    x, y = data.__getitems__([0, len(data) - 1])
    assert x.shape == (2, 3, 224, 224) and y.tolist() == [0, len(wnids) - 1]
    assert "banana" in data.classes  # what is planted in ImageNet's copy is a class of each


def test_names_in_any_spelling_and_in_the_catalogue(root):
    for text, name in (
        ("imagenet-v2", "ImageNetV2"),
        ("IMAGENET_A", "ImageNetA"),
        ("imagenet-r", "ImageNetR"),
        ("imagenetsketch", "ImageNetSketch"),
    ):
        assert canonical(text) == name
    version = open_set("named:imagenet-a", "test", Source(root=str(root))).version
    assert version == named("ImageNetA", root).version != named("ImageNetR", root).version
    with pytest.raises(UserError, match=r"did you mean .*ImageNetSketch"):
        canonical("ImageNet-Sketches")
    with pytest.raises(UserError, match=r"there are cifar10, .*ImageNetV2"):
        canonical("zzz")


@pytest.mark.parametrize("name", VARIANTS)
def test_what_cannot_be_had_is_one_sentence(root, tmp_path, name):
    variant = VARIANTS[name]
    with pytest.raises(UserError, match="has no 'train' split"):
        named(name, root, "train")
    with pytest.raises(UserError, match=f"{name} cannot be downloaded: unpack {re.escape(variant.archive)}"):
        named(name, root, download=True)
    missing = re.escape(f"{name} is not at {tmp_path / variant.folder}: unpack {variant.archive}")
    with pytest.raises(UserError, match=missing):
        named(name, tmp_path)
    (tmp_path / variant.folder / WNIDS[0]).mkdir(parents=True)
    with pytest.raises(
        UserError, match=rf"{name} needs the names of ImageNet's classes.*ILSVRC2012_devkit_t12\.tar\.gz"
    ) as error:
        named(name, tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path / "imagenet") in str(error.value)
    (tmp_path / "imagenet").mkdir(exist_ok=True)
    (tmp_path / "imagenet" / "meta.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match="needs the names of ImageNet's classes"):
        named(name, tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_copy_that_is_not_whole_is_refused(root, tmp_path, makers, name):
    where = tmp_path / VARIANTS[name].folder
    shutil.copytree(root / VARIANTS[name].folder, where)
    shutil.copytree(root / "imagenet", tmp_path / "imagenet")
    chosen = where / ("8" if name == "ImageNetV2" else FEW[1])
    picture = next(chosen.iterdir())
    picture.rename(tmp_path / picture.name)
    with pytest.raises(UserError, match=rf"{chosen} of {name} holds no picture"):
        named(name, tmp_path)
    chosen.rmdir()
    with pytest.raises(
        UserError, match=rf"has {VARIANTS[name].num_classes - 1} class folders instead of {VARIANTS[name].num_classes}"
    ):
        named(name, tmp_path)
    (where / "n99999999").mkdir()
    with pytest.raises(
        UserError, match=r"has the folder n99999999, which is no (label from 0 to 999|WNID of ImageNet): remove"
    ):
        named(name, tmp_path)
    makers.imagenet_meta(tmp_path, {WNIDS[0]: ("one",)})
    with pytest.raises(UserError, match=r"the names of ImageNet's 1000 classes, and .*meta.bin has 1"):
        named(name, tmp_path)


def test_caltech101_in_two_parts(tmp_path, makers):
    makers.caltech101(tmp_path, 4)
    whole, train, test = (
        named("Caltech101", tmp_path),
        named("Caltech-101-split", tmp_path, "train"),
        named("Caltech101Split", tmp_path),
    )
    assert train.classes == test.classes == whole.classes and train.prompts == whole.prompts
    assert sorted(train.paths + test.paths) == sorted(whole.paths) and train.version != test.version
    assert train.labels.tolist() == [k for k in range(101) for _ in range(3)] and test.labels.tolist() == list(
        range(101)
    )
    assert {Path(p).parent.name: y for p, y in zip(train.paths, train.labels, strict=True)} == {
        Path(p).parent.name: y for p, y in zip(whole.paths, whole.labels, strict=True)
    }
    assert len({Path(p).name for p in test.paths}) > 1  # not the first of each class
    for path in (Path(p) for p in train.paths if "/Faces/" in p):
        path.unlink()
    with pytest.raises(UserError, match="the class 'faces' of Caltech101 has one picture"):
        named("Caltech101Split", tmp_path)


def test_caltech101_has_the_parts_and_the_names_of_coops_split(tmp_path, makers):
    makers.caltech101(tmp_path, 2)
    with pytest.raises(UserError, match=r"split_zhou_Caltech101\.json is missing"):
        named("Caltech101CoOp", tmp_path)
    makers.coop_split(tmp_path)
    train, test = (named("caltech101-coop", tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("face", "leopard", "object 00")
    assert "faces easy" not in train.classes and train.prompts[1].endswith("leopard.")
    assert [(Path(p).parent.name, y) for p, y in zip(test.paths, test.labels, strict=True)] == [
        ("Faces", 0),
        ("Leopards", 1),
        ("object_00", 2),
    ]
    assert not set(train.paths) & set(test.paths) and test[0][0].shape == (3, 224, 224)
    Path(test.paths[1]).unlink()
    with pytest.raises(UserError, match=r"Leopards/image_0002\.jpg is missing"):
        named("Caltech101CoOp", tmp_path)
    makers.text(tmp_path / "caltech101/split_zhou_Caltech101.json", ["[]"])
    with pytest.raises(UserError, match="no split in CoOp's format"):
        named("Caltech101CoOp", tmp_path)
