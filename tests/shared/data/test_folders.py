"""Image folders: both layouts, what counts as a picture, and one clear sentence per thing that can be wrong."""

import os
import tarfile
from pathlib import Path

import pytest
import torch

from shared.data.base import loader, subset
from shared.data.files import ImageSize
from shared.data.folders import image_folder
from shared.errors import UserError

COPY = (
    Path(__file__).resolve().parents[4] / "shared" / "data" / "cifar10-jpeg"
)  # beside the repository on some machines


def fill(root, picture, classes=("Zebra_fish", "ape", "Big-cat"), n=10, suffix=".png"):
    for k, name in enumerate(classes):
        for i in range(n):
            picture(root / name / f"{i:02d}{suffix}", 100 * k + i)
    return root


def test_one_folder_per_class(tmp_path, picture):
    data = image_folder(fill(tmp_path / "zoo", picture))
    assert data.name == "zoo" and len(data) == 30 and data.num_classes == 3
    assert data.classes == ("big cat", "zebra fish", "ape")  # sorted by folder name, as image-folder readers do
    assert data.prompts == tuple(f"This is a photo of a {name}" for name in data.classes)
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
    picture(tmp_path / "b" / "1.png")
    for name in ("1.PNG", "2.Jpeg", "3.jpg", "4.ppm", "5.bmp", "6.WEBP", "deeper/7.png"):
        picture(tmp_path / "a" / name)
    for name in ("._1.png", ".hidden.png", ".cache/8.png", "@eaDir/9.jpg", ".AppleDouble/1.PNG"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("no picture")
    for name in (".ipynb_checkpoints", "__MACOSX", "lost+found", ".git"):
        (tmp_path / name).mkdir()
    assert len(image_folder(tmp_path)) == 8 and capsys.readouterr().err == ""
    for name in ("9.gif", "9.TIFF", "8.gif", "Thumbs.db", "notes"):
        (tmp_path / "a" / name).write_bytes(b"x")
    picture(tmp_path / "stray.png")
    picture(tmp_path / "@eaDir" / "1.jpg")
    assert len(image_folder(tmp_path)) == 8
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: not read: 2 × .gif; ")
    for kind in (".tiff", ".db", "files without a suffix", "pictures outside the class folders", "folder @eaDir"):
        assert f"1 × {kind}" in said


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


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: None, "there is no folder"),
        (lambda root: root.mkdir(), "has no class folders"),
        (lambda root: (root / "train").mkdir(parents=True), "none for test.* has no class folders"),
        (lambda root: (root / "train" / "a").mkdir(parents=True), "train/a holds no picture.*one class folder, a: "),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(tmp_path, damage, says):
    damage(tmp_path / "root")
    with pytest.raises(UserError, match=says) as error:
        image_folder(tmp_path / "root", "train")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_split_and_a_class_too_small_to_divide(tmp_path, picture):
    fill(tmp_path / "a" / "train", picture, n=1)
    for split in ("train", "test"):
        with pytest.raises(UserError, match="none for test"):
            image_folder(tmp_path / "a", split)
    with pytest.raises(UserError, match="two are needed"):
        image_folder(tmp_path / "a" / "train", "test")
    with pytest.raises(UserError, match="use train or test"):
        image_folder(tmp_path / "a", "tset")


def test_a_class_list_that_is_not_the_expected_one(tmp_path, picture):
    fill(tmp_path / "train", picture, n=1)
    fill(tmp_path / "test", picture, ("Zebra_fish", "ape", "cow", "dog"), n=1)
    for split in ("train", "test"):  # before anything is trained
        what = r"not the 3 expected ones: it lacks 1 \(Big-cat\) and has in excess 2 \(cow, dog\)"
        with pytest.raises(UserError, match=what):
            image_folder(tmp_path, split)


# ---- what must be mended, before anything is trained --------------------------------------------------------------


def refused(root, *says):
    for split in ("train", "test"):
        with pytest.raises(UserError) as error:
            image_folder(root, split)
        assert "\n" not in str(error.value)
        for what in says:
            assert what in str(error.value)


def test_links_that_lead_in_a_circle_add_nothing(tmp_path, picture, capsys):
    fill(tmp_path / "zoo", picture, n=5)
    for name, target in (
        ("self", "."),
        ("up", ".."),
        ("above", "../.."),
        ("root", "/"),
        ("again", "deep"),
        ("deep/loop", "../deep"),
    ):
        (tmp_path / "zoo" / "ape" / "deep").mkdir(exist_ok=True)
        (tmp_path / "zoo" / "ape" / name).symlink_to(target)
    (tmp_path / "zoo" / "ape" / "copy.png").symlink_to("00.png")
    (tmp_path / "zoo" / "ape" / "eternal").symlink_to("eternal")
    data = image_folder(tmp_path / "zoo")
    assert len(data) == 15 and len({Path(p).resolve() for p in data.paths}) == 15
    assert "7 × links to what is read already" in capsys.readouterr().err


def test_links_that_are_meant_are_followed(tmp_path, picture):
    fill(tmp_path / "store", picture, n=2)
    for name in ("Zebra_fish", "ape"):
        (tmp_path / "zoo").mkdir(exist_ok=True)
        (tmp_path / "zoo" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "zoo" / "cat").mkdir()
    for i in range(2):
        (tmp_path / "zoo" / "cat" / f"{i}.png").symlink_to(tmp_path / "store" / "Big-cat" / f"{i:02d}.png")
    assert image_folder(tmp_path / "zoo").labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_link_into_another_class_or_split_is_refused(tmp_path, picture):
    def undivided(name, link, target):
        root = fill(tmp_path / name, picture, n=2)
        (root / link).symlink_to(target)
        refused(root, "are the same by a link")

    undivided("a", "ape/more", "../Big-cat")
    undivided("b", "twin", "ape")
    undivided("c", "ape/cat.png", "../Big-cat/00.png")
    undivided("d", "loop", ".")
    outside = fill(tmp_path / "e", picture, n=2)
    picture(tmp_path / "outside" / "1.png")
    for name in ("ape", "Big-cat"):
        (outside / name / "more").symlink_to(tmp_path / "outside")
    refused(outside, "are the same by a link")
    divided = fill(tmp_path / "f" / "train", picture, n=2).parent
    (divided / "test").symlink_to("train")
    refused(divided, "are one folder")
    divided = fill(tmp_path / "g" / "train", picture, n=2).parent
    fill(divided / "test", picture, ("Zebra_fish", "ape"), n=1)
    (divided / "test" / "Big-cat").symlink_to("../train/Big-cat")
    refused(divided, "test/Big-cat and ", "train/Big-cat are the same")
    (divided / "test" / "Big-cat").unlink()
    picture(divided / "test" / "Big-cat" / "1.png")
    (divided / "test" / "Big-cat" / "0.png").hardlink_to(divided / "train" / "Big-cat" / "00.png")
    refused(divided, "test/Big-cat/0.png and ", "train/Big-cat/00.png are the same")


def test_a_class_link_that_leads_nowhere_is_no_class_less(tmp_path, picture):
    fill(tmp_path, picture)
    (tmp_path / "emu").symlink_to(tmp_path / "gone")
    (tmp_path / ".#lock").symlink_to("nobody@nowhere")  # as editors make them
    refused(tmp_path, f"{tmp_path}/emu is a link that leads nowhere")


def test_a_class_may_begin_with_two_underscores(tmp_path, picture):
    data = image_folder(fill(tmp_path, picture, ("__background__", "ape", "@home")))
    assert data.classes == ("@home", "  background  ", "ape")


@pytest.mark.parametrize("name", ["train", "test", "val", "Train", "validation"])
def test_a_class_called_like_a_split_among_others_is_a_class(tmp_path, picture, name):
    fill(tmp_path, picture, ("bus", "car", name))
    assert {name.lower(), "bus", "car"} == set(image_folder(tmp_path, "train").classes)
    assert len(image_folder(tmp_path, "train")) == 24


def test_a_class_called_like_a_split_inside_a_split(tmp_path, picture):
    for part in ("train", "test"):
        fill(tmp_path / part, picture, ("bus", "train"), n=2)
    assert image_folder(tmp_path, "test").classes == ("bus", "train")


@pytest.mark.parametrize(
    "parts", [("Train", "TEST"), ("training", "testing"), ("train", "valid"), ("TRAIN", "Validation")]
)
def test_other_names_of_the_splits(tmp_path, picture, parts):
    for n, part in enumerate(parts, 1):
        fill(tmp_path / part, picture, n=n)
    assert [len(image_folder(tmp_path, split)) for split in ("train", "test")] == [3, 6]


def test_folders_beside_the_splits(tmp_path, picture, capsys):
    for part in ("train", "test", "val"):
        fill(tmp_path / part, picture, n=2)
    (tmp_path / "annotations").mkdir()
    assert "/test/" in image_folder(tmp_path, "test").paths[0]
    said = capsys.readouterr().err
    assert "1 × folder annotations" in said and "1 × folder val" in said
    picture(tmp_path / "bus" / "1.png")
    refused(tmp_path, "which has folders in it", "(bus)")


def test_splits_under_other_names_are_no_classes(tmp_path, picture):
    for part in ("training_set", "test_set"):
        fill(tmp_path / "a" / part, picture, n=2)
    refused(tmp_path / "a", "test_set, training_set", "seem to be splits")
    for name in ("cat", "dog"):
        fill(tmp_path / "b" / name, picture, ("train", "test"), n=2)
    refused(tmp_path / "b", "turn it round")


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("hot_dog", "hot-dog", "ape"), "hot-dog and hot_dog make one prompt, 'This is a photo of a hot dog'"),
        (("Hot Dog", "hot dog", "ape"), "Hot Dog and hot dog make one prompt"),
        (("class_1", "CLASS_1"), "CLASS_1 and class_1 make one prompt"),
        (("hot__dog", "hot_dog"), "make one prompt"),
        (("caf\u00e9", "cafe\u0301"), "make one prompt"),
        (("_ape", "ape"), "make one prompt"),
        (("ape\n", "ape"), "ape and ape\\n make one prompt"),
        (("---", "ape"), "'---' has no word in it"),
        (("ape",), "has one class folder, ape: a classifier needs two classes"),
        (("caf\udce9", "ape"), "caf\\xe9 is not UTF-8"),
    ],
)
def test_class_names_that_make_no_classifier(tmp_path, picture, classes, says):
    for name in classes:
        for i in range(2):
            picture(tmp_path / "zoo" / name / f"{i}.png")
    refused(tmp_path / "zoo", says)
    with pytest.raises(UserError):
        image_folder(tmp_path / "zoo")


def test_several_things_are_said_at_once(tmp_path, picture):
    fill(tmp_path, picture, ("a", "A", "b", "B", "c"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    refused(tmp_path, f"folder {tmp_path}/empty holds no picture", "A and a make", "B and b make", "gone is a link")
    for i in range(6):
        (tmp_path / f"empty{i}").mkdir()
    refused(tmp_path, "5 more things are wrong")


def test_a_test_folder_with_an_empty_class_is_seen_when_training(tmp_path, picture):
    fill(tmp_path / "train", picture, n=2)
    fill(tmp_path / "test", picture, ("Big-cat", "ape"), n=2)
    (tmp_path / "test" / "Zebra_fish").mkdir()
    refused(tmp_path, f"{tmp_path}/test/Zebra_fish holds no picture")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, picture, monkeypatch):
    fill(tmp_path, picture)
    (tmp_path / "ape" / "secret").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused(tmp_path, "ape/secret cannot be listed: Permission denied")


def test_file_names_that_are_not_utf8(tmp_path, picture):
    fill(tmp_path, picture)
    os.rename(tmp_path / "ape" / "00.png", os.fsencode(tmp_path / "ape") + b"/caf\xe9.png")
    train, test = (image_folder(tmp_path, split) for split in ("train", "test"))
    assert len(train) + len(test) == 30 and train.version != test.version
    assert sum(os.fsencode(p).endswith(b"caf\xe9.png") for p in (*train.paths, *test.paths)) == 1
    train[len(train) - 1]


def test_the_set_has_the_name_of_the_folder(tmp_path, picture, monkeypatch):
    monkeypatch.chdir(fill(tmp_path / "zoo", picture))
    assert image_folder(".").name == "zoo"


@pytest.mark.skipif(not (COPY / "test.tar").is_file(), reason="the JPEG copy of CIFAR-10 is not on this machine")
def test_real_photographs(tmp_path):
    taken = {}
    with tarfile.open(COPY / "test.tar") as tar:
        for member in tar:
            name = member.name.removeprefix("./").split("/")[0]
            if member.isfile() and taken.setdefault(name, 0) < 4:
                taken[name] += 1
                tar.extract(member, tmp_path / "test", filter="data")
    (tmp_path / "train").mkdir()
    for name in taken:
        (tmp_path / "train" / name).mkdir()
        next((tmp_path / "test" / name).iterdir()).rename(tmp_path / "train" / name / "0.jpg")
    data = image_folder(tmp_path, "test", in_memory=True)
    assert data.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    chosen = subset(data, 20, 0)
    ((x, y),) = loader(data, [chosen])
    assert x.shape == (20, 3, 32, 32) and x.min() >= 0 and x.max() <= 1 and x.std() > 0.1
    assert torch.bincount(y).tolist() == [2] * 10
