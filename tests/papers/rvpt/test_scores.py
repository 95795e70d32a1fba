"""What is counted from labels; PGD on a defended model and the attacker who knows it: within the ball, through the prompts, in any batch."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from papers.rvpt import scores
from papers.rvpt.config import PRESETS, check
from papers.rvpt.defences import Undefended, model_of
from papers.rvpt.method import DeepPrompts
from papers.rvpt.scores import Adversarial, Checks, HeldOut, KnownPatch, KnownScore, Said, Score, embedder
from papers.rvpt.steps import chosen, number, poisoned, stamp_of, strength_of
from papers.rvpt.tables import MAIN, METHODS
from shared.attacks import Threat
from shared.attacks.triggers import make_trigger
from shared.attacks.triggers.optimised import PatchConfig
from shared.errors import UserError
from shared.experiment.leaves import Pictures
from shared.metrics import backdoor
from shared.steps.backdoor import Aim, Pairs, PatchFile, Seen, Stamp
from tests.papers.ends import lab_of, load

made = load("papers/rvpt/nursery.py")
PATCH = made.Stamped(make_trigger("badclip", pixels=torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1))))
DATA, AIM = Pictures("scenes:colour", "test", 24, 42), Aim("scenes:colour", "red")


@pytest.fixture
def lab(tmp_path):
    return lab_of(tmp_path)


def test_scores_are_counted_over_the_pictures_that_they_are_of(lab, clip):
    given, seen = made.Given(clip, 1), Seen(DATA, PATCH)
    said, y, label = Said(given, seen, batch=7), seen.truth(lab), AIM.label(lab)
    x = PATCH.open(lab)(seen.clean(lab)[0], DATA.rows(lab))
    labels = said.classifier(lab)(x).argmax(1).numpy()
    assert np.array_equal(said.labels(lab), labels) and torch.equal(seen.pictures(lab), x)
    expected = {
        "asr": backdoor.asr(labels, y, label),
        "ta": backdoor.triggered_accuracy(labels, y),
        "asr_all": backdoor.asr_all(labels, label),
    }
    for measure, values in expected.items():
        assert Score(said, AIM, measure).make(lab).values.tolist() == values.tolist()
    assert len(expected["asr"]) == (y != label).sum() < len(y)
    record = Checks(said, made.Given(clip), AIM).record(lab)
    assert record["independent of the batch"]["passed"] and len(record) == 3


def test_a_place_may_have_a_prompt_of_its_own():
    tags = {**MAIN, "method": "none", "attack": "badnet", "measure": "ca", "seed": 0}
    config = PRESETS["cpu"]
    other = replace(config, data=replace(config.data, main=replace(config.data.main, template="a photo of a {}.")))
    assert number(config, **tags).said.template == "" != number(other, **tags).said.template
    assert number(other, **{**tags, "kind": "shifted", "at": "shift1"}).said.template == "a photo of a {}."
    assert (
        number(other, **{**tags, "kind": "hand", "method": "rvpt", "prompt": 0}).said.template
        == config.sweeps.prompts[0]
    )
    for wrong in ("a photo", "{} {}"):
        with pytest.raises(UserError, match=r"--data\.<place>\.template"):
            check(replace(config, data=replace(config.data, main=replace(config.data.main, template=wrong))))


# ---- PGD -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [None, 2])
def test_pgd_stays_in_the_ball_and_is_judged_by_the_same_classifier(lab, clip, prompts, monkeypatch):
    seen, inner = [], scores.pgd
    monkeypatch.setattr(
        scores,
        "pgd",
        lambda model, x, y, inside, **o: seen.append((model, x, inner(model, x, y, inside, **o), o)) or seen[-1][2],
    )
    said = Said(made.Given(clip, prompts), Seen(replace(DATA, n=10)), batch=16)
    x, y = said.seen.clean(lab)
    robust, victim = Adversarial(said, 8 / 255, 3, 0, 4).make(lab), said.classifier(lab)
    model, given, x_adv, options = seen[0]
    assert torch.equal(given, x) and Threat("linf", 8 / 255).distance(x_adv, x).max() <= 8 / 255 + 1e-6
    assert options["steps"] == 3 and options["step_size"] == pytest.approx(2.5 * 8 / 255 / 3)
    assert isinstance(model.visual, DeepPrompts) == (prompts is not None)
    assert robust.values.tolist() == (victim(x_adv).argmax(1) == y).double().tolist()
    assert (robust.values <= Score(said, AIM, "ca").make(lab).values).all() and robust.values.shape == (10,)
    assert {"in_ball", "more_steps", "zero_samples", "passed"} <= set(robust.sanity) and robust.sanity["in_ball"][
        "passed"
    ]


def test_pgd_in_any_batch(lab, clip):
    a, b = (
        Adversarial(Said(made.Given(clip, 3), Seen(replace(DATA, n=10)), batch=k), 8 / 255, 2, 0, 2).make(lab).values
        for k in (16, 3)
    )
    assert np.array_equal(a, b)


# ---- who knows the defence ---------------------------------------------------------------------------------------------------


def known(clip, prompts=None, seed=0, **options) -> KnownPatch:
    settings = PatchConfig(**{"steps": 2, "batch": 8, "lr": 0.05, "contrastive": 1.0, **options})
    return KnownPatch(made.Given(clip, prompts), PATCH, AIM, Pairs("scenes", 64, 3000, "scenes:colour"), settings, seed)


def test_the_attacker_sees_what_the_user_sees(lab, clip):
    model, x = model_of(lab, made.Given(clip, 4)), Seen(DATA).clean(lab)[0][:4]
    embed = embedder(model.visual, lab.device)
    assert torch.equal(embed(x), model.zero_shot(["a photo"]).embed(x))
    assert not torch.allclose(embed(x), embedder(clip.visual, lab.device)(x), atol=1e-3)
    z = x.clone().requires_grad_()
    embed(z).sum().backward()
    assert z.grad.abs().sum() > 0 and model.visual.prompts.grad is None


def test_the_known_patch_is_made_through_the_model_and_as_large_as_the_planted_one(lab, clip):
    patches = {prompts: known(clip, prompts).make(lab)[0]["pixels"] for prompts in (None, 3, 4)}
    assert all(p.shape == (3, 7, 7) for p in patches.values())
    assert not torch.equal(patches[None], patches[3]) and not torch.equal(patches[3], patches[4])
    assert torch.equal(known(clip, 3).make(lab)[0]["pixels"], patches[3])
    assert not torch.equal(known(clip, 3, seed=1).make(lab)[0]["pixels"], patches[3])
    assert known(clip, patch=5, steps=1).make(lab)[0]["pixels"].shape == (3, 5, 5)


def test_a_known_patch_that_was_kept_is_the_trigger_that_was_made(lab, clip, monkeypatch):
    step = known(clip, 3)
    tensors, facts = step.make(lab)
    monkeypatch.setattr(lab, "weights", lambda of: tensors)
    monkeypatch.setattr(lab, "facts", lambda of: facts)
    stamp = Stamp("badclip", "cleanclip", (), "scenes:colour", step)
    got = KnownScore(Said(step.clip, Seen(DATA, stamp)), AIM, "asr").make(lab)
    assert np.array_equal(got.extra["patch"], tensors["pixels"].numpy()) and got.sanity is None


def test_a_patch_that_is_optimised_longer_comes_nearer_to_the_target(lab, clip):
    x, model = Seen(DATA).clean(lab)[0], model_of(lab, made.Given(clip, 3))

    def loss(steps):
        trigger = make_trigger("badclip", pixels=known(clip, 3, steps=steps, batch=32).make(lab)[0]["pixels"])
        classifier = model.zero_shot(list(lab.data("scenes:colour").prompts))
        return -classifier(trigger(x, DATA.rows(lab))).log_softmax(1)[:, AIM.label(lab)].mean().item()

    assert loss(30) < loss(1)


# ---- what is chosen ------------------------------------------------------------------------------------------------------


def test_a_trigger_is_judged_by_the_three_gates_and_by_no_defence():
    def passed(**found):
        facts = {"validation_ca": 0.97, "validation_asr": 0.9, "validation_clean_ca": 0.98, "validation_clean_ta": 0.9}
        facts |= {f"validation_{name}": value for name, value in found.items()}
        given = SimpleNamespace(facts=lambda candidate: {"lr": "0.001", **{k: str(v) for k, v in facts.items()}})
        return Undefended(0.85, 0.02, 0.9).score(given, None).tolist()

    assert passed() == [1, 1, 1] and passed(asr=0.84) == [0, 1, 1]
    assert passed(ca=0.955) == [1, 0, 1] and passed(clean_ta=0.88) == [1, 1, 0]


def test_a_setting_is_judged_by_the_likelihood_of_clean_pictures(lab, clip):
    rule, given = HeldOut(replace(DATA, split="validation"), batch=7), made.Given(clip, 1)
    x, y = rule.data.read(lab, rule.data.rows(lab))
    logits = Said(given, Seen(rule.data)).classifier(lab)(x)
    expected = -torch.nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(rule.score(lab, given), expected, atol=1e-5, rtol=1e-5)


def test_candidates_are_as_many_for_each_defence_hold_its_own_setting_and_see_no_test_picture():
    c = PRESETS["cpu"]
    for method in ("vpt", "rvpt", "linear_probe", "cleanclip"):
        choice = chosen(c, method)
        assert len(choice.candidates) == 4 and choice.rule.data.split == "validation"
        assert {candidate.seed for candidate in choice.candidates} == {c.seeds[0]}
    settings = [(t.length, t.lr) for t in (candidate.tuning.given for candidate in chosen(c, "rvpt").candidates)]
    assert (
        settings == [(8, 0.02), (8, 0.3), (64, 0.02), (64, 0.3)] and (c.method.length, c.method.tuning.lr) in settings
    )
    tags = {**MAIN, "attack": "wanet", "measure": "asr", "seed": 1}
    vpt, rvpt = (number(c, **{**tags, "method": m}).said.clip for m in ("vpt", "rvpt"))
    assert vpt.tuning == rvpt.tuning and vpt.tuning.choice == chosen(c, "rvpt") and not vpt.repulsion.active
    assert chosen(PRESETS["paper"], "rvpt") is None and set(METHODS) > {"vpt", "rvpt"}


def test_every_seed_and_set_has_the_strength_that_was_chosen_for_it():
    c = PRESETS["cpu"]
    choice = strength_of(c, "badnet", "first", "main")
    assert [p.poison.stamp.fields for p in choice.candidates] == [("patch=4",), ("patch=5",)]
    assert all(
        poisoned(c, "badnet", b, "main", s).poison.stamp.choice == choice for b in ("first", "second") for s in (0, 1)
    )
    assert stamp_of(c, "badnet", "first", "second").choice != choice
    assert stamp_of(PRESETS["paper"], "badnet", "first", "main").choice is None


def test_a_patch_can_be_the_users_own_picture(lab, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    trigger = Stamp("badclip", "textbook", (), "scenes:colour", PatchFile(str(tmp_path / "patch.png"))).open(lab)
    assert trigger.name == "badclip" and np.array_equal(
        trigger.pixels.mul(255).round().numpy(), pixels.transpose(2, 0, 1)
    )
    with pytest.raises(UserError, match="none is no picture"):
        PatchFile("none").open()
    Image.fromarray(pixels[:4]).save(tmp_path / "flat.png")
    with pytest.raises(UserError, match="5×4 pixels: give a square one"):
        PatchFile(str(tmp_path / "flat.png")).open()
