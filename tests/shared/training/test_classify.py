"""Training a classifier: against a loop written by hand, continued after a kill, and the script that puts it into the zoo."""

import copy
import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest

from shared.attacks import Threat
from shared.data.scene_sets import SceneSet
from shared.errors import UserError
from shared.files import sha256_file
from shared.models import zoo
from shared.models.classifier import open_classifier, random_classifier
from shared.rng import SampleRng
from shared.training import classify as script
from shared.training.classify import (
    AveragedWithStatistics,
    ClassifierTraining,
    accuracy,
    hardest,
    shift_flip,
    train_classifier,
    unseen,
)
from shared.training.contrastive import batch_indices
from tests.accuracy import assert_within_rounding

DATA = SceneSet("ten", "train", 60)
SMALL = {"steps": 4, "batch": 8, "lr": 0.02, "warmup": 1, "every": 2}
EPS = 8 / 255


@pytest.fixture
def model():
    return random_classifier("resnet8", 10)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def train(model, data=DATA, seed=3, checkpoint=None, **changes):
    return train_classifier(model, data, ClassifierTraining(**{**SMALL, **changes}), seed, checkpoint=checkpoint)


class Killed(BaseException):
    pass


class Watched(SceneSet):
    """Notes what is read, and is killed at the k-th batch."""

    def __init__(self, kill=None):
        super().__init__("ten", "train", 60)
        self.kill, self.read = kill, []

    def __getitems__(self, indices):
        self.read.append(list(indices))
        if len(self.read) == self.kill:
            raise Killed
        return super().__getitems__(indices)


# ---- augmentation ----------------------------------------------------------------------------------------------------------


def test_shifts_and_flips_are_those_drawn():
    """Pixels are numbered, so that where each came from can be read off."""
    n, rng = 300, SampleRng(4, range(300))
    x = (torch.arange(1, 65).view(1, 1, 8, 8) + 64 * torch.arange(n).view(n, 1, 1, 1)).float()
    out, shifts, flips = shift_flip(x, rng), rng.child("shift").integers(9, (2,)), rng.child("flip").integers(2)
    for i in range(n):
        dy, dx = shifts[i].tolist()
        expected = F.pad(x[i], (4,) * 4)[:, dy : dy + 8, dx : dx + 8]
        assert torch.equal(out[i], expected.flip(2) if flips[i] else expected)
    assert flips.float().mean().item() == pytest.approx(0.5, abs=0.1) and set(shifts.flatten().tolist()) == set(
        range(9)
    )


def test_the_augmentation_of_a_picture_depends_on_its_index_alone():
    x = SampleRng(0, range(6)).uniform((3, 8, 8))
    whole = shift_flip(x, SampleRng(1, range(6)))
    assert torch.equal(shift_flip(x[[4, 1]], SampleRng(1, [4, 1])), whole[[4, 1]])


# ---- the loop --------------------------------------------------------------------------------------------------------------


def by_hand(model, seed, training):
    """PGD-AT with SGD and Nesterov momentum, written out; returns the running average of the parameters."""
    parameters = list(model.requires_grad_(True).parameters())
    velocity, average = [None] * len(parameters), [p.detach().clone() for p in parameters]
    for step in range(training.steps):
        indices = batch_indices(len(DATA), training.batch, step, seed)
        x, y = DATA.__getitems__(indices)
        rng = SampleRng(seed, indices).child(f"train{step}")
        if training.augment == "shift_flip":
            x = shift_flip(x, rng.child("augment"))
        x_adv = x
        if training.eps:
            model.eval()
            x_adv = (x + rng.child("attack").uniform(x.shape[1:], -EPS, EPS)).clamp(0, 1)
            for _ in range(training.attack_steps):
                x_adv.requires_grad_()
                (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
                moved = x_adv.detach() + training.attack_ratio * EPS * grad.sign()
                x_adv = torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(0, 1)
        model.train()
        loss = F.cross_entropy(model(x_adv), y)
        grads = torch.autograd.grad(loss, parameters)
        progress = (step - training.warmup) / (training.steps - training.warmup)
        rate = training.lr * (
            (step + 1) / training.warmup if step < training.warmup else 0.5 * (1 + math.cos(math.pi * progress))
        )
        with torch.no_grad():
            for k, (p, g) in enumerate(zip(parameters, grads, strict=True)):
                g = g + training.weight_decay * p
                velocity[k] = g if velocity[k] is None else 0.9 * velocity[k] + g
                p.sub_(rate * (g + 0.9 * velocity[k]))
                decay = min(training.average, (2 + step) / (11 + step))
                average[k] = decay * average[k] + (1 - decay) * p
    return average, loss.item()


@pytest.mark.parametrize("changes", [{}, {"eps": EPS, "attack_steps": 2}, {"augment": "shift_flip", "average": 0.5}])
def test_training_is_the_loop_written_by_hand(model, changes):
    plain, start = copy.deepcopy(model), copy.deepcopy(model)
    loss = train(model, steps=3, **changes)
    average, last = by_hand(plain, 3, ClassifierTraining(**{**SMALL, "steps": 3, **changes}))
    assert loss == pytest.approx(last, rel=1e-3)
    expected = average if changes.get("average") else list(plain.parameters())
    for ours, theirs, before in zip(model.parameters(), expected, start.parameters(), strict=True):
        assert (ours - theirs).norm() < 0.02 * (ours - before).norm() + 1e-6


def test_what_is_left_behind(model, quiet_generators):
    train(model, eps=EPS, attack_steps=1, augment="shift_flip")
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert model.net.bn1.num_batches_tracked == 4  # the attack's passes do not count


def test_the_attack_stays_in_the_ball_treats_pictures_apart_and_keeps_the_mode(model):
    x, y = DATA.__getitems__(range(8))
    training, rng = ClassifierTraining(eps=EPS, attack_steps=3), SampleRng(0, range(8))
    model.train()
    x_adv = hardest(model, x, y, training, rng)
    assert model.training and model.net.bn1.num_batches_tracked == 0 and not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    alone = hardest(model, x[2:3], y[2:3], training, SampleRng(0, [2]))
    assert ((alone - x_adv[2:3]).abs() > 1e-6).float().mean() < 0.02  # signs of gradients near zero
    model.eval()
    with torch.no_grad():
        assert F.cross_entropy(model(x_adv), y) > F.cross_entropy(model(x), y)


def test_the_average_has_its_own_statistics():
    both = AveragedWithStatistics(torch.nn.BatchNorm2d(1), 0.9)
    expected = 0.0
    for step in range(1, 20):
        both.network.running_mean.fill_(float(step))
        both.network.num_batches_tracked.fill_(step)
        both.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert_within_rounding(both.average.running_mean, torch.tensor([expected]), terms=20)
    assert both.average.num_batches_tracked == 19


@pytest.mark.parametrize("changes", [{}, {"eps": EPS, "attack_steps": 1, "augment": "shift_flip", "average": 0.7}])
def test_killed_and_continued_is_bit_equal(model, tmp_path, changes):
    straight, killed = copy.deepcopy(model), copy.deepcopy(model)
    loss = train(straight, steps=6, **changes)
    with pytest.raises(Killed):
        train(killed, Watched(kill=6), checkpoint=tmp_path / "c.ckpt", steps=6, **changes)
    data = Watched()
    assert train(model, data, checkpoint=tmp_path / "c.ckpt", steps=6, **changes) == loss
    assert data.read == [batch_indices(60, 8, step, 3) for step in (4, 5)] and same(model, straight)


def test_seeds_and_reading_ahead(model):
    models = [copy.deepcopy(model) for _ in range(3)]
    train(models[0])
    train(models[1], workers=1)
    train(models[2], seed=4)
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_a_batch_larger_than_the_set_is_refused(model):
    with pytest.raises(UserError, match="a batch of 61 pictures is larger than the set, which has 60"):
        train(model, batch=61)


def test_it_learns(model):
    """Red and blue."""
    from shared.data.base import ClassSubset

    train_set, unseen_set = (ClassSubset(SceneSet("colour", split, 600), [0, 2]) for split in ("train", "validation"))
    two = random_classifier("resnet8", 2)
    train(two, train_set, steps=15, batch=16, lr=0.05, warmup=3, every=0)
    assert accuracy(two, unseen_set) >= 0.9


# ---- the script ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the script with options, in `tmp_path`; returns its card."""
    monkeypatch.setattr(script, "VALIDATION", 8)
    monkeypatch.setattr(script, "ATTACK_STEPS", 2)

    def call(*options) -> dict:
        fixed = [
            "--out",
            str(tmp_path / "m.safetensors"),
            "--work",
            str(tmp_path / "work"),
            "--train.batch",
            "4",
            "--train.every",
            "1",
        ]
        monkeypatch.setattr(sys, "argv", ["classify", *fixed, *options])
        script.main()
        return json.loads((tmp_path / "m.json").read_text())

    return call


def test_the_card_says_how_the_classifier_was_made_and_how_good_it_is(run, tmp_path):
    card = run("--data", "scenes:thirty", "--train.steps", "2", "--train.eps", "8/255", "--seed", "5")
    path = tmp_path / "m.safetensors"
    assert (
        card["sha256"] == sha256_file(path)
        and card["kind"] == "classifier"
        and card["model"] == "resnet8"
        and card["seed"] == 5
    )
    assert (
        card["config"]["eps"] == EPS
        and card["data"] == SceneSet("thirty", "train").version
        and len(card["classes"]) == 30
    )
    assert (
        card["command"].startswith("python -m shared.training.classify --out ")
        and card["split"] == "validation"
        and card["n"] == 8
    )
    assert card["attacked"]["attack"] == "apgd2" and card["attacked"]["eps"] == EPS
    data, _ = unseen("scenes:thirty")
    assert len(data) == 8 and card["accuracy"] == accuracy(open_classifier("resnet8", str(path), 30), data)
    assert (
        card["attacked"]["accuracy"]
        == accuracy(open_classifier("resnet8", str(path), 30), data, Threat("linf", EPS))
        <= card["accuracy"]
    )
    assert not list((tmp_path / "work").glob("*"))
    weights = path.read_bytes()
    assert run("--data", "scenes:thirty", "--card-only") == card and path.read_bytes() == weights


@pytest.mark.slow
def test_the_script_continues_an_interrupted_run(run, tmp_path, monkeypatch):
    steps = ("--train.steps", "3", "--train.average", "0.5")
    whole = run(*steps)
    weights = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").unlink()
    original, left = SceneSet.__getitems__, [2]

    def reading(self, indices):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(self, indices)

    monkeypatch.setattr(SceneSet, "__getitems__", reading)
    with pytest.raises(Killed):
        run(*steps)
    assert len(list((tmp_path / "work").glob("*.ckpt"))) == 1
    left[0] = 10**6
    card = run(*steps)
    assert (tmp_path / "m.safetensors").read_bytes() == weights and card["seconds"] is None
    assert {**card, "seconds": 0, "commit": 0} == {**whole, "seconds": 0, "commit": 0}


def test_other_processes_of_a_launcher_do_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileNotFoundError):
        run("--train.steps", "1")
    assert not list(tmp_path.iterdir())


def test_missing_weights_have_no_card(run):
    with pytest.raises(UserError, match="no weights with a readable card"):
        run("--card-only")


# ---- those in the zoo ------------------------------------------------------------------------------------------------------

NAMES = [p.stem for p in sorted(zoo.FOLDER.glob("*.json")) if zoo.card(p.stem).get("kind") == "classifier"]


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_is_as_good_as_its_card_says(name):
    card, attacked = zoo.card(name), zoo.card(name)["attacked"]
    data, split = unseen(card["set"])
    assert (split, len(data)) == (card["split"], card["n"])
    version = SceneSet(card["set"].removeprefix("scenes:"), "train").version
    assert card["data"] == version and card["classes"] == list(data.classes), "the world has changed since: make zoo"
    classifier = open_classifier(card["model"], f"zoo:{name}", data.num_classes)
    # two pictures: hardly one in 256 is within rounding of a boundary
    assert accuracy(classifier, data) == pytest.approx(card["accuracy"], abs=2.1 / card["n"])
    assert attacked["attack"] == "apgd20" and attacked["norm"] == "linf"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_resists_as_its_card_says(name):
    card, attacked = zoo.card(name), zoo.card(name)["attacked"]
    data, _ = unseen(card["set"])
    classifier = open_classifier(card["model"], f"zoo:{name}", data.num_classes)
    # an attack multiplies rounding: other pictures survive, about as many
    said = binomtest(round(attacked["accuracy"] * card["n"]), card["n"]).proportion_ci(method="wilson")
    assert said.low <= accuracy(classifier, data, Threat("linf", attacked["eps"])) <= said.high


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_is_good_enough_to_protect(name):
    card = zoo.card(name)
    robust = card["config"]["eps"] > 0
    assert card["accuracy"] >= (3 / len(card["classes"]) if robust else 0.9)
    assert robust or card["attacked"]["accuracy"] <= 0.3
    assert not robust or card["attacked"]["accuracy"] > 2 / len(card["classes"])
