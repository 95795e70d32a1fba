"""COCO, Flickr30k, VQAv2 and TextVQA from tiny files in their own formats."""

import json
from pathlib import Path

import pytest
import torch

from shared.data.annotated import coco
from shared.data.catalogue import Source, open_vl
from shared.data.files import ImageSize, UnreadableImage
from shared.data.vision_language import CaptionSet, QuestionSet
from shared.errors import UserError

SETS = ("coco", "flickr30k", "vqav2", "textvqa")


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def sentences(k: int, n: int = 5) -> list[dict]:
    return [{"raw": f"caption {j} of picture {k}. ", "tokens": ["caption"]} for j in range(n)]


def build_coco(root: Path, picture, karpathy: bool = True) -> None:
    for year, first in (("train2014", 0), ("val2014", 100)):
        images = [
            {"id": first + k, "file_name": f"COCO_{year}_{first + k:012d}.jpg", "height": 9, "width": 12}
            for k in range(20)
        ]
        for image in images:
            picture(root / "coco" / year / image["file_name"], image["id"])
        notes = [
            {"image_id": i["id"], "id": 10 * i["id"] + j, "caption": f" a {j} {i['id']}"}
            for j in range(6)
            for i in images[::-1]
        ]
        write(
            root / "coco" / "annotations" / f"captions_{year}.json",
            {"info": {}, "images": images, "annotations": notes},
        )
    if karpathy:
        splits = ["test", "val", "restval", "train"]
        images = [
            {
                "filepath": "val2014" if k % 4 < 3 else "train2014",
                "cocoid": k,
                "split": splits[k % 4],
                "sentences": sentences(k),
                "filename": f"COCO_val2014_{100 + k:012d}.jpg" if k % 4 < 3 else f"COCO_train2014_{k:012d}.jpg",
            }
            for k in range(20)
        ]
        write(root / "coco" / "dataset_coco.json", {"images": images, "dataset": "coco"})


def build_flickr(root: Path, picture) -> None:
    images = [
        {"filename": f"{k}.jpg", "split": ("train", "val", "test")[k % 3], "sentences": sentences(k), "imgid": k}
        for k in range(12)
    ]
    for image in images:
        picture(root / "flickr30k" / "flickr30k-images" / image["filename"], image["imgid"], (20, 15))
    write(root / "flickr30k" / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


def build_vqa(root: Path) -> None:
    for year, first in (("train2014", 0), ("val2014", 100)):
        asked = [{"image_id": first + k // 2, "question": f"what is {k}?", "question_id": 1000 + k} for k in range(40)]
        notes = [
            {
                "question_id": q["question_id"],
                "image_id": q["image_id"],
                "question_type": "what is",
                "multiple_choice_answer": "x",
                "answers": [
                    {"answer": f"answer {q['question_id']}", "answer_confidence": "yes", "answer_id": j + 1}
                    for j in range(10)
                ],
            }
            for q in asked[::-1]
        ]
        write(
            root / "vqav2" / f"v2_OpenEnded_mscoco_{year}_questions.json",
            {"questions": asked, "task_type": "Open-Ended"},
        )
        write(root / "vqav2" / f"v2_mscoco_{year}_annotations.json", {"annotations": notes})


def build_textvqa(root: Path, picture, train: int = 40) -> None:
    for part, n in (("train", train), ("val", 6)):
        data = [
            {
                "question_id": k,
                "image_id": f"{part}{k:04x}",
                "question": f"what does {k} say?",
                "answers": [f"word {k}"] * 10,
                "image_classes": ["Sign"],
                "set_name": part,
            }
            for k in range(n)
        ]
        for entry in data:
            picture(root / "textvqa" / "train_images" / f"{entry['image_id']}.jpg", entry["question_id"], (16, 16))
        write(root / "textvqa" / f"TextVQA_0.5.1_{part}.json", {"dataset_type": part, "data": data})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from PIL import Image

    def picture(path, seed, size=(12, 9)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (seed % 256, 50, 90)).save(path, quality=95)

    where = tmp_path_factory.mktemp("annotated")
    build_coco(where, picture)
    build_flickr(where, picture)
    build_vqa(where)
    build_textvqa(where, picture)
    return where


@pytest.mark.parametrize("name", SETS)
def test_splits_share_no_picture(root, name):
    parts = [open_vl(name, split, Source(str(root)), 8) for split in ("train", "validation", "test")]
    files = [set(part.images.paths) for part in parts]
    assert all(files) and not (files[0] & files[1] or files[0] & files[2] or files[1] & files[2])
    assert len({part.version for part in parts}) == 3
    x = parts[2].pictures([0, 2, 1])
    assert x.shape == (3, 3, 8, 8) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1


def test_captions_of_karpathys_split_keep_the_order_of_the_file(root):
    data = open_vl("coco", "test", Source(str(root)), 8)
    assert isinstance(data, CaptionSet) and len(data) == 5 and data.prompt == "Provide a short caption for this image."
    assert [Path(p).name for p in data.images.paths] == [f"COCO_val2014_{100 + k:012d}.jpg" for k in range(0, 20, 4)]
    assert data.references([1, 0])[0] == [f"caption {j} of picture 4." for j in range(5)]
    assert abs(data.pictures([1])[0, 0].mean().item() * 255 - 104) < 3  # the picture of the captions
    train = open_vl("coco", "train", Source(str(root)), 8)
    assert {Path(p).parent.name for p in train.images.paths} == {"train2014", "val2014"}  # restval is in val2014
    assert len(open_vl("flickr30k", "validation", Source(str(root)), 8)) == 4


def test_coco_without_karpathys_file(tmp_path, picture):
    build_coco(tmp_path, picture, karpathy=False)
    data = coco(tmp_path, "test", ImageSize(8, 8))
    assert len(data) == 20 and data.references([3]) == [[f"a {j} 103" for j in range(6)]]
    assert len(coco(tmp_path, "train", ImageSize(8, 8))) + len(coco(tmp_path, "validation", ImageSize(8, 8))) == 20


def test_coco_pictures_without_a_caption_are_counted_and_named(tmp_path, picture, capsys):
    build_coco(tmp_path, picture, karpathy=False)
    path = tmp_path / "coco" / "annotations" / "captions_val2014.json"
    content = json.loads(path.read_text())
    first = content["images"][0]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != first["id"]]
    path.write_text(json.dumps(content))
    assert len(coco(tmp_path, "test", ImageSize(8, 8))) == 19
    said = "1 pictures of captions_val2014.json have no caption and are left out"
    assert f"coco: {said}: {first['file_name']}" in capsys.readouterr().err


def test_questions(root):
    data = open_vl("vqav2", "test", Source(str(root)), 8)
    assert isinstance(data, QuestionSet) and len(data) == 40 and len(data.images) == 20
    assert data.questions([5]) == ["what is 5?"] and data.answers([5]) == [
        ["answer 1005"] * 10
    ]  # matched by id, not by place
    assert torch.equal(data.pictures([4]), data.pictures([5])) and not torch.equal(
        data.pictures([4]), data.pictures([39])
    )
    text = open_vl("textvqa", "test", Source(str(root)), 8)
    assert text.questions([2]) == ["what does 2 say?"] and text.answers([2, 3]) == [["word 2"] * 10, ["word 3"] * 10]


def test_sizes(root):
    assert open_vl("coco", "test", Source(str(root))).pictures([0]).shape == (1, 3, 9, 12)
    assert open_vl("coco", "test", Source(str(root), size="8:6")).pictures([0]).shape == (1, 3, 6, 6)
    versions = {open_vl("coco", "test", Source(str(root)), size).version for size in (8, "8:6", None)}
    assert len(versions) == 3


def test_an_unreadable_picture_is_named_or_counted(tmp_path, picture, capsys):
    build_coco(tmp_path, picture)
    build_vqa(tmp_path)
    (tmp_path / "coco/val2014/COCO_val2014_000000000104.jpg").write_bytes(b"no picture")
    (tmp_path / "coco/val2014/COCO_val2014_000000000108.jpg").unlink()
    data = open_vl("coco", "test", Source(str(tmp_path)), 8)
    assert data.usable([0, 1]) == [0, 1]
    with pytest.raises(UnreadableImage, match=r"000000000104\.jpg is corrupt"):
        data.pictures([0, 1])
    with pytest.raises(UnreadableImage, match=r"000000000108\.jpg is missing"):
        data.pictures([2])
    data = open_vl("coco", "test", Source(str(tmp_path), skip_corrupt=True), 8)
    assert data.usable([3, 2, 1, 0]) == [3, 0] and len(data.skipped) == 2
    assert "2 of 4 chosen pictures cannot be read" in capsys.readouterr().err
    assert data.references([3]) == open_vl("coco", "test", Source(str(tmp_path)), 8).references(
        [3]
    )  # indices do not shift
    questions = open_vl("vqav2", "test", Source(str(tmp_path), skip_corrupt=True), 8)
    assert questions.usable([7, 8, 9, 10]) == [7, 10]  # both questions about the broken picture


def test_the_version_follows_the_content_and_not_the_folder(tmp_path, picture):
    for name in ("a", "b"):
        build_coco(tmp_path / name, picture)
    one, two = (open_vl("coco", "test", Source(str(tmp_path / name)), 8).version for name in ("a", "b"))
    assert one == two
    path = tmp_path / "b/coco/dataset_coco.json"
    path.write_text(path.read_text().replace("caption 3 of picture 4.", "another"))
    assert open_vl("coco", "test", Source(str(tmp_path / "b")), 8).version != one


def test_missing_and_damaged_files_are_one_sentence(tmp_path, picture):
    source = Source(str(tmp_path))
    for name in SETS:
        with pytest.raises(UserError, match=r"there is no file .*json"):
            open_vl(name, "test", source)
    build_coco(tmp_path, picture)
    build_vqa(tmp_path)
    path = tmp_path / "coco/dataset_coco.json"
    for content, said in (
        (path.read_text()[:100], "damaged"),
        ('{"pictures": []}', "it lacks 'images'"),
        ("[1]", "damaged"),
        ('{"images": []}', "no example of this split"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=said):
            open_vl("coco", "test", source)
    notes = tmp_path / "vqav2/v2_mscoco_val2014_annotations.json"
    write(notes, {"annotations": json.loads(notes.read_text())["annotations"][1:]})
    with pytest.raises(UserError, match="lacks the answers to 1 of the 40"):
        open_vl("vqav2", "test", source)


def test_unknown_names_and_a_missing_root():
    with pytest.raises(UserError, match=r"no vision-language set 'cocoa'.*coco, flickr30k"):
        open_vl("cocoa", "test", Source())
    with pytest.raises(UserError, match="set DATA_ROOT"):
        open_vl("coco", "test", Source())
    with pytest.raises(UserError, match="split 'val' is not known"):
        open_vl("coco", "val", Source("/nowhere"))
