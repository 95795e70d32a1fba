"""Which pairs are poisoned, and how target images are chosen."""

import pytest
import torch

from papers.roclip.poisons import Poisoned, labelled_targets, unlabelled_targets
from shared.attacks.triggers import make_trigger
from shared.data.poison import Held
from shared.data.scene_sets import ScenePairs, SceneSet
from shared.data.targets import scene_target
from shared.errors import UserError

COLOURS = [scene_target("colour", name) for name in SceneSet("colour", "test", 8).classes]


@pytest.fixture(scope="module")
def clean():
    return Held(ScenePairs(120))


def poisoned(clean, rates, m=2, seed=0):
    images = SceneSet("colour", "validation", 16)
    backdoors = {
        name: (make_trigger(name, "textbook", size=32), COLOURS[k], rate, "real")
        for k, (name, rate) in enumerate(rates.items())
    }
    return Poisoned(clean, backdoors, images, [2, 5], [COLOURS[0], COLOURS[1]], m, seed)


def test_every_backdoor_has_its_share_of_all_pairs_and_none_is_poisoned_twice(clean):
    pairs = poisoned(clean, {"badnet": 0.3, "blended": 0.3, "sig": 0.3})
    rows = [row.index for name in ("badnet", "blended", "sig") for row in pairs.manifests[name].rows]
    assert len(rows) == len(set(rows)) == 108 and len(pairs) == 124
    for name, k in (("badnet", 0), ("blended", 1), ("sig", 2)):
        texts = pairs.captions([row.index for row in pairs.manifests[name].rows])
        assert all(COLOURS[k].named_in(text) for text in texts)
    x, texts = pairs.__getitems__([123, 5, 0, 120])
    assert torch.equal(x[0], pairs.targeted.images[5][0]) and texts == pairs.captions([123, 5, 0, 120])


def test_other_rates_targets_or_seeds_are_another_set(clean):
    one = poisoned(clean, {"badnet": 0.1})
    assert one.version == poisoned(clean, {"badnet": 0.1}).version
    assert (
        len(
            {
                one.version,
                poisoned(clean, {"badnet": 0.2}).version,
                poisoned(clean, {"badnet": 0.1}, m=3).version,
                poisoned(clean, {"badnet": 0.1}, seed=1).version,
            }
        )
        == 4
    )
    with pytest.raises(UserError, match="of 36 pairs are to be poisoned"):
        poisoned(clean, {"badnet": 0.7, "blended": 0.7})


def test_targets_show_another_class_or_are_drawn_among_named_ones(clean):
    images = SceneSet("colour", "validation", 16)
    chosen, classes = labelled_targets(images, 8, 0)
    assert len(set(chosen)) == 8 and all(images.labels[i] != k for i, k in zip(chosen, classes, strict=True))
    chosen, classes = unlabelled_targets(clean, 30, COLOURS, 2, 6, 0)
    assert len(set(chosen)) == len(set(classes)) == 6 and max(chosen) < 30
    assert (
        (chosen, classes)
        == unlabelled_targets(clean, 30, COLOURS, 2, 6, 0)
        != unlabelled_targets(clean, 30, COLOURS, 2, 6, 1)
    )
    assert len(set(unlabelled_targets(clean, 30, COLOURS[:2], 2, 6, 0)[1])) == 2
    with pytest.raises(UserError, match="ask for 1 to 3"):
        unlabelled_targets(clean, 3, COLOURS, 2, 6, 0)
    with pytest.raises(UserError, match="take fewer captions"):
        unlabelled_targets(clean, 30, COLOURS, 1000, 6, 0)
