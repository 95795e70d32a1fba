"""Data sets by one name."""

import shutil

import numpy as np
import pytest
import torch

from shared.data.arrays import ArrayImages
from shared.data.catalogue import Source, open_set
from shared.data.scene_sets import SceneSet
from shared.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    for k, name in enumerate(("ant", "bee", "cat", "dog", "emu")):
        for split, n in (("train", 3), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(np.full((20, 30, 3), 40 * k + i, np.uint8)).save(root / split / name / f"{i}.png")
    return root


def test_scenes_need_no_files():
    data = open_set("scenes:colour", "train", Source(), n=77)
    assert len(data) == 77 and data.name == "colour"
    assert torch.equal(data[5][0], SceneSet("colour", "train")[5][0])
    assert not torch.equal(data[5][0], open_set("scenes:colour", "test", Source())[5][0])


def test_parts_of_an_image_folder(folder):
    source = Source(root=str(folder), size="32")
    whole, seen, unseen = (open_set(f"folder:{part}", "test", source) for part in ("all", "seen", "unseen"))
    assert whole.classes == ("ant", "bee", "cat", "dog", "emu") and len(whole) == 10
    assert seen.classes == ("ant", "cat", "emu") and unseen.classes == ("bee", "dog")
    assert sorted(set(seen.labels)) == [0, 1, 2] and len(seen) == 6
    x, y = seen.__getitems__([0, 5])
    assert x.shape == (2, 3, 32, 32) and y.tolist() == [0, 2]
    assert [round(float(v) * 255) // 40 for v in x.mean((1, 2, 3))] == [0, 4]
    assert len(open_set("folder:seen", "train", source)) == 9
    assert len({whole.version, seen.version, unseen.version}) == 3


def test_settings_are_chosen_on_the_same_pictures_of_all_parts_of_a_folder(folder):
    source = Source(root=str(folder), size="32")
    said = {}
    for split in ("validation", "fit", "train"):
        for part in ("all", "seen"):
            data = open_set(f"folder:{part}", split, source)
            x, y = data.__getitems__(range(len(data)))
            said[part, split] = {(data.classes[k], float(p.mean())) for k, p in zip(y.tolist(), x, strict=True)}
        assert said["seen", split] == {one for one in said["all", split] if one[0] in ("ant", "cat", "emu")}
    assert len(said["all", "validation"]) == 5 and not said["all", "validation"] & said["all", "fit"]
    assert said["all", "validation"] | said["all", "fit"] == said["all", "train"]


def test_cifar10_below_the_root_is_found(library, any_checksum):
    data = open_set("folder:unseen", "test", Source(root=str(library)))
    assert data.classes == ("automobile", "cat", "dog", "horse", "truck")


def test_named_sets_come_from_the_library(library, any_checksum):
    data = open_set("named:DTD", "test", Source(root=str(library)))
    assert data.name == "DTD" and data.num_classes == 47


def test_the_fast_way_is_asked_for_in_one_place(folder, library, any_checksum):
    for spec, root in (("folder:seen", folder), ("named:DTD", library)):
        slow, fast = (open_set(spec, "test", Source(root=str(root), size="32", fast=f)) for f in (False, True))
        sizes = [getattr(data, "data", data).size for data in (slow, fast)]
        assert sizes[1] == sizes[0].fast() and slow.version != fast.version
        assert (slow[0][0] - fast[0][0]).abs().max() <= 1.01 / 255
    assert isinstance(open_set("named:cifar10", "test", Source(root=str(library), fast=True)), ArrayImages)


def test_parts_of_a_folder_need_two_classes_each(folder, tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "bee", "cat"):
            shutil.copytree(folder / split / name, tmp_path / split / name)
    source = Source(root=str(tmp_path), size="32")
    assert open_set("folder:all", "train", source).num_classes == 3
    for part in ("seen", "unseen"):  # the first would train, and the second then have a single class
        with pytest.raises(UserError, match=f"{tmp_path} has 3 classes, .* have four or more"):
            open_set(f"folder:{part}", "train", source)


def test_names_of_folders_can_be_changed_and_those_of_published_sets_cannot(folder, library, any_checksum):
    assert open_set("folder:seen", "test", Source(root=str(folder), size="32")).renameable
    assert not open_set("folder:seen", "test", Source(root=str(library))).renameable


@pytest.mark.parametrize("spec", ["imagenet", "scene:shape", "folder:", "named", "", "folder"])
def test_a_spec_that_is_not_understood_is_refused(spec):
    with pytest.raises(UserError, match="is not understood"):
        open_set(spec, "test", Source(root="/nowhere"))


@pytest.mark.parametrize("spec", ["folder:all", "named:cifar10"])
def test_a_missing_root_is_asked_for(spec):
    for root in (None, ""):
        with pytest.raises(UserError, match="DATA_ROOT"):
            open_set(spec, "test", Source(root))


def test_unknown_sets_and_parts_are_refused(folder):
    with pytest.raises(UserError, match="no scenes set 'shapes'"):
        open_set("scenes:shapes", "test", Source())
    with pytest.raises(UserError, match="use all, seen or unseen"):
        open_set("folder:half", "test", Source(root=str(folder), size="32"))
    with pytest.raises(UserError):
        open_set("named:CIFAR-1000", "test", Source(root=str(folder)))
    with pytest.raises(UserError):
        open_set("folder:all", "test", Source(root=str(folder / "nothing")))
