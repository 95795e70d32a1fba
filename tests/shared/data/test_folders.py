"""Image folders: both layouts, what counts as a picture, and one clear sentence per thing that can be wrong."""

import tarfile
from pathlib import Path

import pytest
import torch

from shared.data.base import loader, subset
from shared.data.files import ImageSize
from shared.data.folders import image_folder
from shared.errors import UserError

COPY = Path(__file__).resolve().parents[4] / "shared" / "data" / "cifar10-jpeg"  # beside the repository on some machines


def fill(root, picture, classes=("Zebra_fish", "ape", "Big-cat"), n=10, suffix=".png"):
    for k, name in enumerate(classes):
        for i in range(n):
            picture(root / name / f"{i:02d}{suffix}", 100 * k + i)
    return root


def test_one_folder_per_class(tmp_path, picture):
    data = image_folder(fill(tmp_path / "zoo", picture), template="a picture of {}.")
    assert data.name == "zoo" and len(data) == 30 and data.num_classes == 3
    assert data.classes == ("big cat", "zebra fish", "ape")  # sorted by folder name, as image-folder readers do
    assert data.prompts == ("a picture of big cat.", "a picture of zebra fish.", "a picture of ape.")
    assert [Path(data.paths[i]).parent.name for i in (0, 10, 20)] == ["Big-cat", "Zebra_fish", "ape"]
    assert data.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_it_reads_what_torchvision_reads(tmp_path, picture):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import to_tensor

    fill(tmp_path, picture, suffix=".jpg")
    ours, theirs = image_folder(tmp_path), ImageFolder(str(tmp_path))
    assert len(ours) == len(theirs)
    for i in (0, 7, 29):
        assert torch.equal(ours[i][0], to_tensor(theirs[i][0])) and ours[i][1] == theirs[i][1]


def test_what_counts_as_a_picture(tmp_path, picture, capsys):
    for name in ("1.PNG", "2.Jpeg", "3.jpg", "4.ppm", "5.bmp", "6.WEBP", "deeper/7.png"):
        picture(tmp_path / "a" / name)
    for name in ("._1.png", ".hidden.png", ".cache/8.png", "notes.txt"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("no picture")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    assert len(image_folder(tmp_path)) == 7 and capsys.readouterr().err == ""
    picture(tmp_path / "a" / "9.gif")
    assert len(image_folder(tmp_path)) == 7
    assert "1 pictures in formats that are not read" in capsys.readouterr().err


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_train_and_test_folders(tmp_path, picture, test):
    fill(tmp_path / "train", picture, n=3)
    fill(tmp_path / test, picture, n=2)
    train, held_out = image_folder(tmp_path, "train"), image_folder(tmp_path, "test")
    assert (len(train), len(held_out)) == (9, 6) and train.classes == held_out.classes
    assert all("/train/" in p for p in train.paths) and all(f"/{test}/" in p for p in held_out.paths)
    assert train.version != held_out.version
    with pytest.raises(UserError, match="say which split"):
        image_folder(tmp_path)


def test_an_undivided_folder_is_divided_per_class_for_good(tmp_path, picture):
    fill(tmp_path, picture)
    train, test = (set(image_folder(tmp_path, split).paths) for split in ("train", "test"))
    assert not train & test and train | test == set(image_folder(tmp_path).paths)
    assert image_folder(tmp_path, "test").labels.tolist() == [0, 0, 1, 1, 2, 2]
    for i in range(10, 13):  # a few more pictures of one class
        picture(tmp_path / "ape" / f"{i}.png")
    more = set(image_folder(tmp_path, "test").paths)
    assert {p for p in more if "/ape/" not in p} == {p for p in test if "/ape/" not in p}


def test_size_reaches_the_pictures(tmp_path, picture):
    assert image_folder(fill(tmp_path, picture), size=ImageSize(8, 6))[0][0].shape == (3, 6, 6)


@pytest.mark.parametrize(("damage", "says"), [
    (lambda root: None, "there is no folder"),
    (lambda root: root.mkdir(), "has no class folders"),
    (lambda root: (root / "train").mkdir(parents=True), "has no class folders"),
    (lambda root: (root / "train" / "a").mkdir(parents=True), "holds no picture"),
])
def test_a_folder_that_cannot_be_read_says_why(tmp_path, damage, says):
    damage(tmp_path / "root")
    with pytest.raises(UserError, match=says) as error:
        image_folder(tmp_path / "root", "train")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_split_and_a_class_too_small_to_divide(tmp_path, picture):
    fill(tmp_path / "a" / "train", picture, n=1)
    with pytest.raises(UserError, match="none for test"):
        image_folder(tmp_path / "a", "test")
    with pytest.raises(UserError, match="two are needed"):
        image_folder(tmp_path / "a" / "train", "test")
    with pytest.raises(UserError, match="use train or test"):
        image_folder(tmp_path / "a", "tset")


def test_a_class_list_that_is_not_the_expected_one(tmp_path, picture):
    fill(tmp_path / "train", picture, n=1)
    fill(tmp_path / "test", picture, ("Zebra_fish", "ape", "cow", "dog"), n=1)
    with pytest.raises(UserError, match=r"not the 3 expected ones: it lacks 1 \(Big-cat\) and has in excess 2 \(cow, dog\)"):
        image_folder(tmp_path, "test")
    with pytest.raises(UserError, match=r"lacks 1 \(eel\)"):
        image_folder(tmp_path, "train", expected=["Zebra_fish", "ape", "Big-cat", "eel"])
    assert image_folder(tmp_path, "train", expected=["ape", "Big-cat", "Zebra_fish"]).num_classes == 3


def test_a_template_without_a_place_for_the_name(tmp_path, picture):
    with pytest.raises(UserError, match="must hold"):
        image_folder(fill(tmp_path, picture), template="a photo")


@pytest.mark.skipif(not (COPY / "test.tar").is_file(), reason="the JPEG copy of CIFAR-10 is not on this machine")
def test_real_photographs(tmp_path):
    taken = {}
    with tarfile.open(COPY / "test.tar") as tar:
        for member in tar:
            name = member.name.removeprefix("./").split("/")[0]
            if member.isfile() and taken.setdefault(name, 0) < 3:
                taken[name] += 1
                tar.extract(member, tmp_path / "test", filter="data")
    data = image_folder(tmp_path, "test", name="CIFAR-10 (JPEG copy)", in_memory=True)
    assert data.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    chosen = subset(data, 20, 0)
    (x, y), = loader(data, [chosen])
    assert x.shape == (20, 3, 32, 32) and x.min() >= 0 and x.max() <= 1 and x.std() > 0.1
    assert torch.bincount(y).tolist() == [2] * 10
