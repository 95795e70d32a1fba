"""Attackers who know the guided purifier: which gradient each uses, what it raises, and where it applies."""

from types import SimpleNamespace

import pytest
import torch

from papers.distshift.adaptive import NAMES, attack_of, attacked, fits
from papers.distshift.baselines import GDMP
from papers.distshift.method import Distshift, Guidance
from shared.attacks import Threat
from shared.attacks.adaptive import draws_of, predict, resubmit
from shared.diffusion import GaussianDenoiser, Purifier, Sampler
from shared.errors import UserError
from shared.rng import SampleRng
from tests.papers.distshift.guided import SCHEDULE, SIZE, Smooth, pictures

BUDGET = SimpleNamespace(steps=6, eot=2)
COUNT = 6


@pytest.fixture(scope="module")
def victim():
    return Smooth(gain=2.0).eval()


@pytest.fixture(scope="module")
def setting(victim):
    purifier = Purifier(GaussianDenoiser(0.0, 0.4, SCHEDULE, size=SIZE), 60, Sampler("ddim", 3))
    x = pictures(COUNT)
    guided = Distshift(purifier, victim, Guidance("G1", "running", scale=0.3))
    defences = {"diffpure": purifier, "gdmp": GDMP(purifier, rounds=1), "distshift": guided}
    return defences, x, victim(x).argmax(dim=1), SampleRng(0, range(COUNT)), SampleRng(5, range(COUNT), "known")


def run(name, setting, victim, defence="distshift", threat=None, **more):
    defences, x, y, rng, noise = setting
    return attacked(name, defences[defence], victim, x, y, threat or Threat("linf", 0.05), rng, noise, BUDGET, **more)


@pytest.mark.parametrize("threat", [Threat("linf", 0.05), Threat("l2", 0.5)], ids=lambda t: t.norm)
def test_every_attack_stays_in_the_ball_and_repeats(setting, victim, threat):
    x = setting[1]
    seen = {}
    for name in NAMES:
        x_adv = run(name, setting, victim, threat=threat)
        assert (
            threat.distance(x_adv, x).max() <= threat.eps * (1 + 1e-6)
            and x_adv.min() >= 0
            and x_adv.max() <= 1
            and not x_adv.requires_grad
        )
        if name in ("guide", "bpda_eot"):
            assert torch.equal(x_adv, run(name, setting, victim, threat=threat))
        seen[name] = x_adv
    assert torch.equal(seen["control"], x) and seen["control"] is not x
    moved = list(seen.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(moved) for b in moved[:i])


def test_a_batch_does_not_matter(setting, victim):
    for name in ("exact", "guide"):
        torch.testing.assert_close(run(name, setting, victim, batch=4), run(name, setting, victim), atol=1e-9, rtol=0)


def test_the_attack_on_the_guidance_raises_the_guides_loss_on_noise_it_did_not_see(setting, victim):
    """And the defended victim is left with less."""
    defences, _, y, _, noise = setting
    defence = defences["distshift"]

    def loss(x_adv):
        many = draws_of(noise.child("fresh"), 0, 8)
        return defence.guide_loss(x_adv.repeat_interleave(8, 0), y.repeat_interleave(8), many).mean().item()

    pictures = {name: run(name, setting, victim) for name in ("control", "guide")}
    assert loss(pictures["guide"]) > loss(pictures["control"]) + 0.5
    left = {
        name: (resubmit(predict(victim), defence, x_adv, noise, 8) == y[:, None]).float().mean()
        for name, x_adv in pictures.items()
    }
    assert left["guide"] < left["control"]


def test_exact_uses_the_second_order_and_the_other_hides_it(setting, victim):
    """One draw, one step, worked by hand: the sign of the gradient of either defence."""
    defences, x, y, rng, noise = setting
    one = SimpleNamespace(steps=1, eot=1)
    defence, threat = defences["distshift"], Threat("linf", 1e-3)
    for name, which in (("exact", defence), ("exact_first_order", defence.with_(second_order=False))):
        found = attacked(name, defence, victim, x, y, threat, rng, noise, one)
        start = attacked(name, defence, victim, x, y, Threat("linf", 0.0), rng, noise, one)
        assert torch.equal(start, x)
        # The start of PGD is random in the ball; a step of 2.5 ε ends at the side the gradient's sign shows
        z = x.clone().requires_grad_()
        ce = torch.nn.functional.cross_entropy(
            victim(which(z, draws_of(noise.child("attack"), 0, 1))), y, reduction="sum"
        )
        (g,) = torch.autograd.grad(ce, z)
        clear = g.abs() > 0.2 * g.abs().flatten(1).mean(1)[:, None, None, None]
        assert ((found - x).sign() == g.sign())[clear].double().mean() > 0.97
    assert not torch.equal(run("exact", setting, victim), run("exact_first_order", setting, victim))
    assert defence.second_order  # the defence itself was left as it is


def test_the_exact_gradient_is_the_stronger_attack_on_the_loss(setting, victim):
    """Judged by the loss of the defended victim over fresh draws: exact above transfer, and not below the others by much."""
    defences, _, y, _, noise = setting

    def loss(x_adv):
        with torch.no_grad():
            out = victim(defences["distshift"](x_adv.repeat_interleave(8, 0), draws_of(noise.child("fresh"), 0, 8)))
        return torch.nn.functional.cross_entropy(out, y.repeat_interleave(8)).item()

    at = {name: loss(run(name, setting, victim)) for name in NAMES}
    assert at["exact"] > at["control"] + 0.2 and at["exact"] >= at["transfer"] and at["exact"] > 0.9 * max(at.values())


def test_which_attack_fits_which_defence(setting, victim):
    defences = setting[0]
    table = {name: [key for key, defence in defences.items() if fits(name, defence)] for name in NAMES}
    everything = list(defences)
    assert table == {
        **dict.fromkeys(NAMES, everything),
        "exact_first_order": ["gdmp", "distshift"],
        "guide": ["distshift"],
    }
    unguided = Distshift(defences["diffpure"], victim, None)
    assert not fits("guide", unguided)
    for name, defence in (("guide", "gdmp"), ("guide", "diffpure"), ("exact_first_order", "diffpure")):
        with pytest.raises(UserError, match="is for a guided purifier"):
            run(name, setting, victim, defence)
    for name in ("exact", "bpda", "transfer"):
        assert run(name, setting, victim, "diffpure").shape == setting[1].shape
    assert run("exact_first_order", setting, victim, "gdmp").shape == setting[1].shape
    for name in ("control", "pgd"):
        with pytest.raises(UserError, match="there is no attack"):
            attack_of(BUDGET, name)
    assert attack_of(BUDGET, "bpda_eot").average == "logits" and attack_of(BUDGET, "apgd").optimiser == "apgd"
    assert attack_of(BUDGET, "exact").draws == 2 and attack_of(BUDGET, "bpda").draws == 1
