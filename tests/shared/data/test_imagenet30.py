"""ImageNet30: which classes it has and in which order, and its two layouts."""

import shutil

import pytest
import torch

from shared.data.catalogue import Source, open_set
from shared.data.imagenet30 import CLASSES, FOLDERS, LOGITS, WNIDS, imagenet30
from shared.errors import UserError

# from ss-ood's list, by label (facts, section 3)
TABLE = """acorn n12267677 988|airliner n02690373 404|ambulance n02701002 407|american_alligator n01698640 50|banjo n02787622 420|barn n02793495 425
bikini n02837789 445|digital_clock n03196217 530|dragonfly n02268443 319|dumbbell n03255030 543|forklift n03384352 561|goblet n03443371 572
grand_piano n03452741 579|hotdog n07697537 934|hourglass n03544143 604|manhole_cover n03717622 640|mosque n03788195 668|nail n03804744 677
parking_meter n03891332 704|pillow n03938244 721|revolver n04086273 763|rotary_dial_telephone n03187595 528|schooner n04147183 780
snowmobile n04252077 802|soccer_ball n04254680 805|stingray n01498041 6|strawberry n07745940 949|tank n04389033 847|toaster n04442312 859
volcano n09472597 980"""


def make(root, folders, per_class, picture):
    for k, folder in enumerate(folders):
        for i in range(per_class):
            picture(root / folder / f"{i}.JPEG", 7 * k + i, (40, 30))


@pytest.fixture
def official(tmp_path, picture):
    make(tmp_path / "one_class_test", FOLDERS, 1, picture)
    make(tmp_path / "one_class_train", FOLDERS, 2, picture)
    return tmp_path


@pytest.fixture
def ilsvrc(tmp_path, picture):
    make(tmp_path / "val", (*WNIDS, "n01440764"), 1, picture)  # tench is none of the 30
    return tmp_path


def test_the_classes_are_those_of_the_facts():
    expected = tuple(
        (name, wnid, int(index)) for name, wnid, index in (e.split() for e in TABLE.replace("\n", "|").split("|"))
    )
    assert expected == CLASSES


def test_labels_are_alphabetical_and_neither_by_wnid_nor_by_logit():
    assert len(CLASSES) == 30 and list(FOLDERS) == sorted(FOLDERS)
    assert list(WNIDS) != sorted(WNIDS) and list(LOGITS) != sorted(LOGITS)
    assert len(set(WNIDS)) == len(set(LOGITS)) == 30 and all(0 <= i < 1000 for i in LOGITS)
    # WNIDs and logits are in one order: the 1,000 classes are sorted by WNID
    assert sorted(range(30), key=WNIDS.__getitem__) == sorted(range(30), key=LOGITS.__getitem__)


def test_the_original_archives(official):
    for split, n in (("test", 30), ("train", 60)):
        data = imagenet30(official, split)
        assert len(data) == n and data.num_classes == 30 and data.classes[3] == "american alligator"
        assert [f"/{FOLDERS[y]}/" in p for p, y in zip(data.paths, data.labels, strict=True)] == [True] * n
        assert data.label.startswith("original archives") and "not all of them" in data.name  # 1 of 100
    x, y = data[31]
    assert x.shape == (3, 224, 224) and 0 <= x.min() < x.max() <= 1 and y == 15


def test_a_whole_official_set_is_called_by_its_name_alone(official, monkeypatch):
    monkeypatch.setitem(
        __import__("shared.data.imagenet30", fromlist=["OFFICIAL"]).OFFICIAL, "test", ("one_class_test", 1)
    )
    data = imagenet30(official)
    assert data.name == "ImageNet30" and data.label == "original archives, 30 test pictures"


def test_the_validation_split_is_labelled_as_such(ilsvrc, picture):
    data = imagenet30(ilsvrc)
    assert len(data) == 30 and [WNIDS[y] in p for p, y in zip(data.paths, data.labels, strict=True)] == [True] * 30
    assert data.label == "ILSVRC validation split, 30 pictures, not the official test set" and data.label in data.name
    with pytest.raises(UserError, match=r"ImageNet30 is not at .* \(one_class_train/<class>\)"):
        imagenet30(ilsvrc, "train")
    make(ilsvrc / "train", WNIDS, 2, picture)
    assert (
        len(imagenet30(ilsvrc, "train")) == 60
        and imagenet30(ilsvrc, "train").label == "ILSVRC training split, 60 pictures"
    )


def test_the_original_archives_come_first(ilsvrc, picture):
    make(ilsvrc / "one_class_test", FOLDERS, 1, picture)
    assert "original archives" in imagenet30(ilsvrc).label


def test_it_is_a_named_set(ilsvrc):
    (ilsvrc / "imagenet").mkdir()
    shutil.move(ilsvrc / "val", ilsvrc / "imagenet" / "val")  # where torchvision keeps it
    data = open_set("named:ImageNet30", "test", Source(root=str(ilsvrc)))
    assert "not the official test set" in data.name and data.__getitems__([0, 29])[1].tolist() == [0, 29]
    with pytest.raises(UserError, match="ImageNet30 cannot be downloaded"):
        open_set("named:imagenet-30", "test", Source(root=str(ilsvrc), download=True))


@pytest.mark.parametrize("kind", ["official", "ilsvrc"])
def test_a_missing_or_empty_class_folder_is_named(kind, request):
    root = request.getfixturevalue(kind)
    doomed = root / ("one_class_test/nail" if kind == "official" else f"val/{WNIDS[17]}")
    shutil.rmtree(doomed)
    with pytest.raises(UserError, match=rf"lacks the class folder {doomed} \(nail\)"):
        imagenet30(root)
    doomed.mkdir()
    with pytest.raises(UserError, match=rf"the class folder {doomed} holds no picture"):
        imagenet30(root)


def test_nothing_there_and_an_unknown_split(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)  # another set
    with pytest.raises(UserError, match="ImageNet30 is not at"):
        imagenet30(tmp_path)
    with pytest.raises(UserError, match="split 'val' is not known"):
        imagenet30(tmp_path, "val")


def test_a_list_of_classes_takes_the_place_of_hendrycks(ilsvrc, tmp_path):
    """In the order of the list, from ILSVRC's folders, and the name says so."""
    listed = tmp_path / "mine.txt"
    listed.write_text(f"{WNIDS[4]}\n{WNIDS[1]}\n")
    data = open_set("named:ImageNet30", "test", Source(root=str(ilsvrc), wnids=str(listed)))
    assert list(data.classes) == [WNIDS[4], WNIDS[1]]
    assert data.name.startswith("ImageNet30 (2 classes of mine.txt, ILSVRC validation split")
    whole = imagenet30(ilsvrc)
    x, y = data.__getitems__([0, 1])
    assert torch.equal(x, whole.__getitems__([4, 1])[0])
    assert y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [("n1", "'n1' is no WNID"), ("n01530575", "fewer than two"), ("n01530575 n01530575", "occur twice")],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        imagenet30(tmp_path, wnids=tmp_path / "list.txt")
    with pytest.raises(UserError, match="cannot be read"):
        imagenet30(tmp_path, wnids=tmp_path / "none.txt")
