"""Labelled pictures by tables, web shards and folders of `datasets`: which label each has, and what is said of bad ones."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.catalogue import Source
from shared.data.files import NATIVE, ImageSize
from shared.data.pairs import open_pairs
from shared.data.stored import stored
from shared.errors import UserError


def picture(shade: int) -> bytes:
    """A PNG of one grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path, members: dict[str, bytes]) -> None:
    """A shard."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def shades(data) -> list[int]:
    """What the pictures are, of sets made of `picture`."""
    return [round(255 * data[i][0].mean().item()) for i in range(len(data))]


@pytest.fixture
def root(tmp_path):
    """Four pictures, and tables of them."""
    for shade in range(4):
        (tmp_path / f"{shade}.png").write_bytes(picture(shade))
    rows = {
        "names": ("Red_Fox", "cat", "cat", "red fox"),
        "numbers": (10, 2, 2, 10),
        "one": ("a",) * 4,
        "bad": (0, -1, 0, 1),
    }
    for name, labels in rows.items():
        text = "".join(f"{shade}.png,{label}\n" for shade, label in enumerate(labels))
        (tmp_path / f"{name}.csv").write_text("path,label\n" + text)
    return tmp_path


def test_a_table_names_its_classes_or_numbers_them(root, capsys):
    data = stored("csv:names.csv", root, NATIVE, False)
    assert data.classes == ("cat", "red fox") and data.labels.tolist() == [1, 0, 0, 1] and not data.numbered
    assert "one class with another spelling of it: Red_Fox, red fox\n" in capsys.readouterr().err
    assert shades(data) == [0, 1, 2, 3] and data.prompts == ("This is a photo of a cat", "This is a photo of a red fox")
    x, y = data.__getitems__([3, 0])
    assert x.shape == (2, 3, 4, 4) and x.dtype == torch.float32 and y.tolist() == [1, 1]
    numbers = stored(f"csv:{root / 'numbers.csv'}", "/nowhere", NATIVE, False)
    assert numbers.classes == ("2", "10") and numbers.labels.tolist() == [1, 0, 0, 1] and numbers.numbered
    assert numbers.version != data.version
    assert data.version == stored("csv:names.csv", root, NATIVE, False).version
    assert data.version != stored("csv:names.csv", root, ImageSize(2, 2), False).version
    (root / "0.png").write_bytes(picture(9))
    assert data.version != stored("csv:names.csv", root, NATIVE, False).version


def test_a_label_stands_before_a_caption(root):
    (root / "t.tsv").write_text("image\tcaption\tclass\n0.png\ta cat on a mat\tcat\n1.png\ta dog\tdog\n")
    assert stored("csv:t.tsv", root, NATIVE, False).classes == ("cat", "dog")
    (root / "u.csv").write_text("image,title\n0.png,cat\n1.png,dog\n")
    assert stored("csv:u.csv", root, NATIVE, False).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("first", "second", "classes"),
    [
        ({"cls": b"7\n", "txt": b"a fox that jumps"}, {"cls": b"3"}, ("3", "7")),
        ({"txt": b"fox", "json": b'{"label": "other"}'}, {"txt": b"cat"}, ("cat", "fox")),
        ({"json": b'{"label": "fox", "caption": "a fox that jumps"}'}, {"json": b'{"class": "cat"}'}, ("cat", "fox")),
        ({"json": b'{"label": 7, "caption": "a fox that jumps"}'}, {"json": b'{"label": 3}'}, ("3", "7")),
    ],
)
def test_shards_as_their_users_have_them(tmp_path, first, second, classes):
    for shard, (texts, shade) in enumerate(((first, 10), (second, 20))):
        tar(tmp_path / f"{shard}.tar", {"0001.png": picture(shade), **{f"0001.{k}": v for k, v in texts.items()}})
    data = stored("shards:{0..1}.tar", tmp_path, NATIVE, False)
    assert data.classes == classes and data.labels.tolist() == [1, 0] and shades(data) == [10, 20]
    assert data.numbered == (classes == ("3", "7"))


def test_labels_and_captions_of_the_same_shards_are_kept_apart(tmp_path):
    members = {}
    for i in range(3):
        members |= {f"{i}.png": picture(i), f"{i}.txt": f"caption {i}".encode(), f"{i}.cls": str(i % 2).encode()}
    tar(tmp_path / "a.tar", members)
    for _ in range(2):  # read, and as it is kept
        assert stored("shards:a.tar", tmp_path, NATIVE, False).labels.tolist() == [0, 1, 0]
        captions = open_pairs("shards:a.tar", Source(root=str(tmp_path)), 3, 0, 4).captions(range(3))
        assert sorted(captions) == ["caption 0", "caption 1", "caption 2"]


def test_what_cannot_be_read_is_refused_or_counted(tmp_path, capsys):
    members = {"a.png": picture(1), "a.cls": b"0", "b.png": picture(2), "b.cls": b"1"}
    broken = {
        "c.png": b"no picture",
        "c.cls": b"1",
        "d.png": picture(3),
        "e.png": picture(4),
        "e.json": json.dumps({"label": None}).encode(),
    }
    tar(tmp_path / "a.tar", members | broken)
    with pytest.raises(
        UserError, match=r"2 things cannot be read, the first is: d in .*a.tar has no label.*--skip-corrupt"
    ):
        stored("shards:a.tar", tmp_path, NATIVE, False)
    data = stored("shards:a.tar", tmp_path, NATIVE, True)
    assert "left out: d in" in capsys.readouterr().err
    assert data.usable(range(3)) == [0, 1]
    assert (
        f"1 of 3 chosen pictures cannot be read and are left out: c in {tmp_path / 'a.tar'}" in capsys.readouterr().err
    )
    assert len(data.skipped) == 3


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("csv:one.csv", "has one label, a: a classifier needs two classes"),
        ("csv:bad.csv", r"the label of .*1\.png is -1"),
        ("csv:both.csv", r"the picture .*/1\.png is 'cat' and 'dog': keep one of them"),
        ("shards:lines.tar", "the label of 0 in .*/lines.tar has several lines: give one"),
        ("csv:none.csv", "there is no file"),
        ("shards:none.tar", "there is no file"),
        ("csv:empty.csv", "has no labelled picture"),
        ("csv:columns.csv", "name one of them path or image or filepath, .* and one label or class or caption"),
    ],
)
def test_bad_sets_are_refused_in_a_sentence(root, spec, says):
    (root / "empty.csv").write_text("path,label\n")
    tar(root / "lines.tar", {"0.png": picture(0), "0.cls": b"1\n2", "1.png": picture(1), "1.cls": b"1"})
    (root / "both.csv").write_text("path,label\n0.png,cat\n1.png,cat\n./1.png,dog\n")
    (root / "columns.csv").write_text("path,kind\n0.png,a\n")
    with pytest.raises(UserError, match=says) as refused:
        stored(spec, root, NATIVE, False)
    assert "\n" not in str(refused.value)


def test_a_folder_of_datasets_needs_the_package(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        stored("hf:folder", root, NATIVE, False)


def test_a_folder_of_datasets_in_its_own_format(root):
    datasets = pytest.importorskip("datasets")
    files = [str(root / f"{shade}.png") for shade in range(4)]
    arrays = [np.full((4, 4, 3), shade, np.uint8) for shade in range(4)]
    named = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "Red_Fox"])})
    plain = datasets.Features({"img": datasets.Image(), "class": datasets.Value("int64")})
    whole = datasets.Dataset.from_dict({"image": files, "label": [1, 0, 0, 1]}, features=named)
    numbers = datasets.Dataset.from_dict({"img": arrays, "class": [5, 2, 2, 5]}, features=plain)
    whole.save_to_disk(root / "whole")
    numbers.save_to_disk(root / "numbers")
    datasets.DatasetDict({"train": whole.select([0, 1]), "test": whole.select([3, 2])}).save_to_disk(root / "divided")
    datasets.DatasetDict({"a": whole, "b": whole}).save_to_disk(root / "unclear")
    datasets.Dataset.from_dict({"image": files, "label": [1, -1, 0, None]}, features=named).save_to_disk(root / "holes")

    data = stored("hf:whole", root, NATIVE, False)
    assert data.classes == ("dog", "red fox") and data.labels.tolist() == [1, 0, 0, 1] and shades(data) == [0, 1, 2, 3]
    assert data.version == stored(f"hf:{root / 'whole'}", "/nowhere", NATIVE, False).version
    data = stored("hf:numbers", root, NATIVE, False)
    assert data.numbered and data.classes == ("2", "5") and shades(data) == [0, 1, 2, 3]
    assert shades(stored("hf:divided", root, NATIVE, False)) == [3, 2]
    with pytest.raises(UserError, match="2 things cannot be read, the first is: row 1 of"):
        stored("hf:holes", root, NATIVE, False)
    assert shades(stored("hf:holes", root, NATIVE, True)) == [0, 2]
    for folder, says in (("unclear", "has the splits a, b"), ("none", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(UserError, match=says) as refused:
            stored(f"hf:{folder}", root, NATIVE, False)
        assert "\n" not in str(refused.value)
    two = datasets.Features({"image": datasets.Image(), "fine": named["label"], "coarse": named["label"]})
    both = {"image": files, "fine": [0, 1, 0, 1], "coarse": [0, 0, 1, 1]}
    datasets.Dataset.from_dict(both, features=two).save_to_disk(root / "two")
    with pytest.raises(UserError, match=r"needs one column of labels and has several \(fine, coarse\): call it label"):
        stored("hf:two", root, NATIVE, False)
