"""PGD on a defended model, and the attacker who knows it: within the ball, through the prompts, and the same in any batch."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from papers.rvpt import adversary, runs
from papers.rvpt.adversary import adaptive, adversarial, known_patch, through
from papers.rvpt.cells import Cell
from papers.rvpt.config import PRESETS, Backbone, Place
from papers.rvpt.method import DeepPrompts
from papers.rvpt.models import Bench, Model
from shared.attacks import Threat
from shared.attacks.triggers import make_trigger
from shared.attacks.triggers.optimised import PatchConfig
from shared.metrics import backdoor

PATCH = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1))


class Rehearsal(Bench):
    """A bench whose models are one random CLIP, with random prompts where the method has prompts."""

    random_clip = None

    def model(self, poison, defence=None):
        clip = self.random_clip
        prompts = defence is not None and defence.method in ("vpt", "rvpt")
        return Model(clip, DeepPrompts(clip.visual, 1, 3, std=1.0, seed=len(defence.method)).requires_grad_(False) if prompts else clip.visual)

    def trigger(self, attack, backbone="first"):
        if attack in runs.OPTIMISED:
            return make_trigger(attack, pixels=PATCH)
        return super().trigger(attack, backbone)


@pytest.fixture
def room(clip):
    def make(batch=16, **changes):
        config = PRESETS["smoke"]
        config = replace(config, data=replace(config.data, main=Place("scenes:colour", "red"), n=24), batch=batch,
                         models=replace(config.models, first=Backbone("scenes-vit-xs8", "random")),
                         adversary=replace(config.adversary, **{"n": 10, "steps": 3, "sanity_n": 4, **changes}))
        bench = Rehearsal(config, "smoke", torch.device("cpu"))
        bench.random_clip = clip.requires_grad_(False).eval()
        return SimpleNamespace(bench=bench, config=config, held={})
    return make


def cell(method, measure, **point):
    return Cell("adaptive" if point else "adversarial", method, "badclip" if point else "badnet", measure, point=tuple(point.items()))


# ---- PGD -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "rvpt"])
def test_pgd_stays_in_the_ball_and_is_judged_by_the_same_classifier(room, method, monkeypatch):
    m, seen = room(), []
    inner = adversary.pgd
    monkeypatch.setattr(adversary, "pgd", lambda model, x, y, inside, **o: seen.append((model, x, inner(model, x, y, inside, **o), o)) or seen[-1][2])
    clean, robust = adversarial(m, cell(method, "clean")), adversarial(m, cell(method, "robust"))
    world, victim = m.bench.world("scenes:colour").part(10), m.bench.classifier(cell(method, "clean"))
    assert clean.values.tolist() == (victim(world.x).argmax(1) == world.y).double().tolist() and clean.sanity is None
    model, x, x_adv, options = seen[0]
    threat = Threat("linf", 8 / 255)
    assert torch.equal(x, world.x) and threat.distance(x_adv, x).max() <= 8 / 255 + 1e-6
    assert options["steps"] == 3 and options["step_size"] == pytest.approx(2.5 * 8 / 255 / 3)
    assert isinstance(model.visual, DeepPrompts) == (method == "rvpt")
    assert robust.values.tolist() == (victim(x_adv).argmax(1) == world.y).double().tolist()
    assert (robust.values <= clean.values).all() and robust.values.shape == (10,)
    assert {"in_ball", "more_steps", "zero_samples", "passed"} <= set(robust.sanity) and robust.sanity["in_ball"]["passed"]


def test_pgd_in_any_batch_and_on_all_pictures(room):
    a, b = (adversarial(room(batch=k), cell("vpt", "robust")).values for k in (16, 3))
    assert np.array_equal(a, b)
    assert len(adversarial(room(n=0), cell("none", "robust")).values) == 24


# ---- who knows the defence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["clean", "rvpt"])
def test_the_planted_patch_is_scored_as_elsewhere(room, method):
    m = room()
    world, label = m.bench.world("scenes:colour"), m.bench.label("main")
    x = m.bench.trigger("badclip")(world.x, world.indices)
    said = m.bench.classifier(cell(method, "asr", against="planted"))(x).argmax(1).numpy()
    asr, ta = (adaptive(m, cell(method, q, against="planted")) for q in ("asr", "ta"))
    assert asr.values.tolist() == backdoor.asr(said, world.y.numpy(), label).tolist() and len(ta.values) == 24
    assert ta.values.tolist() == backdoor.triggered_accuracy(said, world.y.numpy()).tolist() and not asr.extra


def test_through_is_what_the_user_sees(room):
    m = room()
    model = m.bench.of(cell("rvpt", "asr", against="knowing"))
    x = m.bench.world("scenes:colour").x[:4]
    embed = through(model, torch.device("cpu"))
    assert torch.equal(embed(x), model.zero_shot(["a photo"]).embed(x))
    assert not torch.allclose(embed(x), m.bench.of(cell("none", "asr", against="knowing")).zero_shot(["a photo"]).embed(x), atol=1e-3)
    z = x.clone().requires_grad_()
    embed(z).sum().backward()
    assert z.grad.abs().sum() > 0 and model.visual.prompts.grad is None


def test_the_knowing_patch_is_made_through_the_model_and_as_large_as_the_planted_one(room):
    m = room()
    patches = {}
    for method in ("none", "rvpt", "vpt"):
        asr, ta = (adaptive(m, cell(method, q, against="knowing")) for q in ("asr", "ta"))
        patches[method] = asr.extra["patch"]
        assert patches[method].shape == (3, 7, 7) and np.array_equal(patches[method], ta.extra["patch"])
    assert not np.array_equal(patches["none"], patches["rvpt"]) and not np.array_equal(patches["vpt"], patches["rvpt"])
    again = known_patch(room(), cell("rvpt", "asr", against="knowing"))
    assert np.array_equal(again.pixels.numpy(), patches["rvpt"]) and again.preset == "cleanclip"
    other = known_patch(room(seed=1), cell("rvpt", "asr", against="knowing"))
    assert not np.array_equal(other.pixels.numpy(), patches["rvpt"])
    small = known_patch(room(patch=PatchConfig(steps=1, batch=4, patch=5, contrastive=1.0)), cell("rvpt", "asr", against="knowing"))
    assert small.pixels.shape == (3, 5, 5)


def test_a_patch_that_is_optimised_longer_comes_nearer_to_the_target(room):
    def loss(steps):
        m = room(patch=PatchConfig(steps=steps, batch=32, lr=0.05, contrastive=1.0))
        c = cell("rvpt", "asr", against="knowing")
        world, trigger = m.bench.world("scenes:colour"), known_patch(m, c)
        logits = m.bench.classifier(c)(trigger(world.x, world.indices))
        return -logits.log_softmax(1)[:, m.bench.label("main")].mean().item()

    assert loss(30) < loss(1)
