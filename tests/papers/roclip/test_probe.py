"""What a trained CLIP is asked: poison and backdoor success against loops, the probe and the leak it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from papers.roclip import probe
from papers.roclip.probe import (
    Probing,
    Watch,
    classifier,
    ensemble,
    linear_probe,
    predict,
    sentences_of,
    similarity,
    targets_of,
)
from shared.attacks.triggers import make_trigger
from shared.data.manifest import Manifest
from shared.data.poison import PoisonedPairs, TargetedPairs
from shared.data.scene_sets import ScenePairs, SceneSet
from shared.data.targets import scene_target
from shared.errors import UserError
from shared.models.clip import MEAN_STD
from shared.models.victim import text_matrix
from tests.accuracy import assert_within_rounding

TEMPLATES = ("a photo of {}", "an image of {}", "there is {}")
CLASSES = SceneSet("colour").classes
SENTENCES = sentences_of([scene_target("colour", name) for name in CLASSES], TEMPLATES)


def test_the_ensemble_is_the_normalised_mean(clip):
    t = ensemble(clip, SENTENCES)
    one = F.normalize(torch.stack([text_matrix(clip, [s])[0] for s in SENTENCES[3]]).mean(0), dim=0)
    assert t.shape == (8, 16) and SENTENCES[3][1].startswith("an image of a")
    assert_within_rounding(t[3], one, terms=4 * 96)
    with pytest.raises(UserError, match="same number of sentences"):
        ensemble(clip, [["a star"], ["a star", "a box"]])


def test_targets_of_a_manifest():
    targets = [scene_target("colour", name) for name in ("blue", "red")]
    pairs = TargetedPairs(ScenePairs(300), SceneSet("colour", "validation"), [9, 4], targets, 3)
    assert targets_of(pairs.manifest, CLASSES) == ([9, 4], [CLASSES.index("blue"), CLASSES.index("red")])
    with pytest.raises(UserError, match="have no 'blue'"):
        targets_of(pairs.manifest, ("red", "green"))
    backdoor = PoisonedPairs(ScenePairs(30), make_trigger("badnet", size=32), targets[0], count=2)
    with pytest.raises(UserError, match="not about target images"):
        targets_of(backdoor.manifest, CLASSES)
    assert isinstance(backdoor.manifest, Manifest)


def test_what_is_watched(clip):
    x, y = SceneSet("colour", "test", 40).__getitems__(range(40))
    texts = ScenePairs(40).__getitems__(range(40))[1]
    watch = Watch(SENTENCES, (x, [5] * 40), (x, y, 2), (x, y), {"clean": (x, texts)})
    out = watch(1, clip)
    predicted = predict(classifier(clip, ensemble(clip, SENTENCES)), x)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD["clip"])
    image = clip.encode_image((x - mean) / std, normalize=True).detach()
    assert predicted.tolist() == (image @ ensemble(clip, SENTENCES).T).argmax(1).tolist()
    assert out["psr"] == [int(p == 5) for p in predicted] and out["accuracy"] == [
        int(a == b) for a, b in zip(predicted, y, strict=True)
    ]
    assert out["bsr"] == [int(p == 2) for p, label in zip(predicted, y, strict=True) if label != 2]
    cosine = (image @ text_matrix(clip, texts).T)[7].tolist()
    assert out["similarity_clean"][7] == pytest.approx(cosine.pop(7) - sum(cosine) / 39, abs=1e-3)
    assert set(Watch(SENTENCES)(1, clip)) == set() and len(similarity(clip, x, texts)) == 40


def test_the_probe_learns_what_a_tower_sees(clip):
    """Random features of 16 numbers tell a bright set from a dark one, and the probe is the one written out."""
    train, test = (SceneSet("background", split, n) for split, n in (("train", 256), ("test", 128)))
    predicted, labels = linear_probe(clip, train, test, Probing(epochs=8, batch=64, lr=0.05))
    assert labels.tolist() == (np.arange(128) % train.num_classes).tolist()
    assert (predicted == labels).float().mean() > 2 / train.num_classes
    again, _ = linear_probe(clip, train, test, Probing(epochs=8, batch=64, lr=0.05))
    assert torch.equal(predicted, again)


def test_the_leak_of_flowers_is_refused(clip):
    train, test = SceneSet("colour", "train", 32), SceneSet("colour", "test", 32)
    with pytest.raises(UserError, match="on the pictures it is tested on"):
        linear_probe(clip, test, SceneSet("colour", "test", 64))
    with pytest.raises(UserError, match="different classes"):
        linear_probe(clip, train, SceneSet("shape", "test", 32))

    class Renamed(SceneSet):
        """The test pictures under another version."""

        def __init__(self):
            super().__init__("colour", "test", 16)
            self.version = "another"

    with pytest.raises(UserError, match="16 of 32 test pictures of colour are training pictures"):
        linear_probe(clip, Renamed(), test)


def test_many_pictures_are_read_by_several_processes_and_only_once_for_their_digests(clip, monkeypatch):
    train, test = SceneSet("background", "train", 48), SceneSet("background", "test", 32)
    alone = linear_probe(clip, train, test, Probing(epochs=2, batch=16))
    assert len(train.digests) == 48
    monkeypatch.setattr(probe, "FEW", 0)
    monkeypatch.setattr(probe, "digests_of", None)
    assert all(map(torch.equal, alone, linear_probe(clip, train, test, Probing(epochs=2, batch=16))))
