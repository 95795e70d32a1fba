"""Label spaces on the scenes world: enough of them, balanced, and what a label says is what the picture was drawn from."""

from collections import Counter

import numpy as np
import pytest
import torch

from shared.data.base import loader, subset
from shared.data.language import VOCABULARY, words
from shared.data.scene_sets import CLASSIFIED, FINE_TUNING, HOLD_OUT, SETS, ZERO_SHOT, ScenePairs, SceneSet
from shared.data.scenes import ATTRIBUTES, COLOURS, SHAPES, SURFACES
from shared.errors import UserError
from shared.models.clip import WordTokenizer, small_config


def test_there_are_enough_sets():
    assert len(ZERO_SHOT) >= 15 and FINE_TUNING not in ZERO_SHOT and HOLD_OUT not in ZERO_SHOT
    train, held = SceneSet(FINE_TUNING).classes, SceneSet(HOLD_OUT).classes
    assert len(train) >= 40 and len(held) >= 40 and not set(train) & set(held)
    spaces = {(SETS[name].attributes, repr(SETS[name].domain)) for name in ZERO_SHOT}
    assert len(spaces) == len(ZERO_SHOT)
    assert len({SETS[name].attributes for name in ZERO_SHOT}) >= 8


@pytest.mark.parametrize("name", SETS)
def test_classes_and_prompts_are_unique_and_in_the_vocabulary(name):
    data = SceneSet(name)
    assert len(set(data.classes)) == len(set(data.prompts)) == data.num_classes >= 3
    assert {w for p in data.prompts for w in words(p)} <= set(VOCABULARY)
    assert not data.duplicates
    WordTokenizer(VOCABULARY, small_config("scenes-vit-s8")["text_cfg"]["context_length"])(data.prompts)
    if set(SETS[name].attributes) <= {"shape", "colour", "surface", "size"}:
        assert all(set(words(c)) <= set(words(p)) for c, p in zip(data.classes, data.prompts, strict=True))


def test_prompts_in_words():
    assert SceneSet("colour").prompts[COLOURS.index("orange")] == "a photo of an orange object"
    assert SceneSet("count").prompts == ("a photo of one object", "a photo of two objects", "a photo of three objects")
    assert SceneSet("position").prompts[0] == "a photo of an object on the left"
    assert SceneSet("background").prompts[4] == "a photo of an object on a navy background"
    assert SceneSet(FINE_TUNING).prompts[0] == "a photo of a plain red circle"
    assert "a photo of a dotted blue circle" in SceneSet(FINE_TUNING).prompts
    assert "a photo of a plain red triangle" in SceneSet(HOLD_OUT).prompts


@pytest.mark.parametrize("name", (FINE_TUNING, HOLD_OUT))
def test_every_value_is_equally_often_in_the_classes_to_tune_on(name):
    combos = [c.split() for c in SceneSet(name).classes]
    for k, values in enumerate((SURFACES, COLOURS, SHAPES)):
        assert Counter(c[k] for c in combos) == dict.fromkeys(values, len(combos) // len(values))
    # and no value gives another one away: all colours come with all shapes of the right parity, as often
    pairs = Counter((c[1], c[2]) for c in combos)
    assert set(pairs.values()) == {1}


@pytest.mark.parametrize("name", SETS)
def test_labels_are_the_attributes_and_balanced(name):
    data = SceneSet(name, "test", 3 * SceneSet(name).num_classes + 2)
    x, y = data.__getitems__(range(len(data)))
    assert x.shape == (len(data), 3, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert np.array_equal(y.numpy(), data.labels)
    count = np.bincount(data.labels, minlength=data.num_classes)
    assert count.max() - count.min() <= 1
    s = data.scenes(range(len(data)))
    for i, label in enumerate(data.labels):
        value = [ATTRIBUTES[a][s.values(a)[i]] for a in data.space.attributes]
        assert data.classes[label] == " ".join(value)
    for attribute, allowed in data.space.domain.fixed.items():
        assert {ATTRIBUTES[attribute][v] for v in s.values(attribute)} <= set(allowed)
    assert (s.n_objects == 1).all() or "count" in data.space.attributes


def test_an_attribute_does_not_depend_on_the_label():
    """The label is i mod K; nothing else of a picture may follow it."""
    data = SceneSet("shape", n=4000)
    s = data.scenes(range(4000))
    for name in ("colour", "surface", "size", "position", "background"):
        table = np.zeros((len(ATTRIBUTES[name]), 8))
        np.add.at(table, (s.values(name), data.labels), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        chi2, freedom = ((table - expected) ** 2 / expected).sum(), 7 * (len(table) - 1)
        assert chi2 < freedom + 4 * np.sqrt(2 * freedom), name


def test_splits_sets_and_pairs_have_pictures_of_their_own():
    seen = [
        p.numpy().tobytes()
        for name in SETS
        for split in ("train", "test", "validation")
        for p in SceneSet(name, split).__getitems__(range(6))[0]
    ]
    seen += [p.numpy().tobytes() for p in ScenePairs(100).__getitems__(range(6))[0]]
    assert len(set(seen)) == len(seen) == 6 * (3 * len(SETS) + 1)


def test_a_picture_is_a_function_of_its_index():
    data = SceneSet("textured", n=50)
    whole, labels = data.__getitems__(range(50))
    some = list(loader(data, [[7, 3, 49], [0]], workers=0))
    assert torch.equal(some[0][0], whole[[7, 3, 49]]) and torch.equal(some[1][1], labels[[0]])
    assert torch.equal(data[12][0], whole[12]) and data[12][1] == int(labels[12]) and isinstance(data[12][1], int)
    assert torch.equal(SceneSet("textured", n=1000)[12][0], whole[12])  # n only says where the set ends


def test_a_set_ends():
    data = SceneSet("shape", n=11)
    assert len(list(data)) == len(data) == 11
    pairs = ScenePairs(5)
    assert len(list(pairs)) == 5
    for wrong in ([11], [-1], [0, 99]):
        with pytest.raises(IndexError):
            data.__getitems__(wrong)
        with pytest.raises(IndexError):
            pairs.__getitems__(wrong)


def test_versions_tell_pictures_apart():
    versions = [
        SceneSet(name, split, 10, size).version for name in SETS for split in ("train", "test") for size in (32, 64)
    ]
    versions += [ScenePairs(10).version, ScenePairs(10, seed=1).version, ScenePairs(10, size=64).version]
    assert len(set(versions)) == len(versions)
    assert SceneSet("shape", "test", 10).version == SceneSet("shape", "test", 500).version


def test_pairs_differ_by_seed_and_have_a_caption_each():
    x, texts = ScenePairs(100).__getitems__([4, 9])
    assert x.shape == (2, 3, 32, 32) and len(texts) == 2 and all(isinstance(t, str) for t in texts)
    picture, text = ScenePairs(100)[9]
    assert torch.equal(picture, x[1]) and text == texts[1]
    assert not torch.equal(ScenePairs(100, seed=1)[9][0], picture)


def test_balanced_subset_works_on_a_scene_set():
    data = SceneSet("colour", n=100_000)
    chosen = subset(data, 16, 0)
    assert Counter(data.labels[chosen]) == dict.fromkeys(range(8), 2)


@pytest.mark.parametrize("name, split", [("shapes", "test"), ("shape", "pretrain"), ("shape", "val")])
def test_unknown_names_are_refused(name, split):
    with pytest.raises(UserError, match=r"combinations.*validation"):
        SceneSet(name, split)


# ---- the sets for classifiers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, k", [("ten", 10), ("thirty", 30)])
def test_the_sets_for_classifiers_are_single_objects_of_so_many_classes(name, k):
    data = SceneSet(name, "train", 8 * k)
    assert data.num_classes == len(set(data.classes)) == len(set(data.prompts)) == k and not data.duplicates
    x, y = data.__getitems__(range(len(data)))
    assert x.shape == (8 * k, 3, 32, 32) and np.bincount(y.numpy()).tolist() == [8] * k
    s = data.scenes(range(len(data)))
    for i, label in enumerate(data.labels):
        assert data.classes[label] == " ".join(ATTRIBUTES[a][s.values(a)[i]] for a in data.space.attributes)
    assert (s.n_objects == 1).all() and {ATTRIBUTES["size"][v] for v in s.size} == set(data.space.domain.fixed["size"])
    assert len(set(s.background)) == 6 and len(set(s.position)) == 5


def test_the_sets_for_classifiers_are_beside_the_others():
    assert not set(CLASSIFIED) & set(SETS) and not set(CLASSIFIED) & set(ZERO_SHOT)
    assert not torch.equal(SceneSet("ten")[0][0], SceneSet("thirty")[0][0])
