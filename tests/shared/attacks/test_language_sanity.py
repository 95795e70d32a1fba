"""The checks pass on an honest attack on a small vision-language model, and fail where they must."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat
from shared.attacks.language import nll_attack, targeted_string
from shared.attacks.language_sanity import check_language_attack
from shared.errors import UserError
from shared.report.panels import sanity_outcomes
from shared.rng import SampleRng

N = 16
THREAT = Threat("linf", 4 / 255)
RNG = SampleRng(0, range(N))
PROMPTS = ["say"] * N


class OneWord(nn.Module):
    """Answers with one of six words. grid: rounds its logits, so that the gradient is zero."""

    def __init__(self, grid=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 6)).double()
        self.grid = grid

    def logits(self, x):
        z = 20 * self.net(x.double() - 0.5)
        return z if self.grid is None else (z * self.grid).round() / self.grid

    @torch.no_grad()
    def answer(self, x, prompts, max_tokens=20, batch=64):
        return [f"w{k}" for k in self.logits(x).argmax(1).tolist()]

    def nll(self, x, prompts, targets):
        return F.cross_entropy(self.logits(x), torch.tensor([int(t[1:]) for t in targets]), reduction="none")


def exact(answers, truths):
    return np.array([float(a in t) for a, t in zip(answers, truths, strict=True)])


@pytest.fixture(scope="module")
def x():
    return 0.2 + 0.6 * SampleRng(0, range(N)).uniform((3, 8, 8))


@pytest.fixture(scope="module")
def truths(x):
    return [[a] for a in OneWord().answer(x, PROMPTS)]


def attack_on(vlm, x, truths, eps=1.0, sign=False, by_batch=False, **settings):
    def attack(rows, threat, *, steps, rng):
        inside = Threat(threat.norm, min(eps * threat.eps, 1.0) / (len(rows) if by_batch else 1))
        targets = [truths[i][0] for i in rows.tolist()]
        return nll_attack(
            vlm, x[rows], PROMPTS[: len(rows)], targets, inside, rng=rng, **({"steps": steps, "lower": sign} | settings)
        )

    return attack


def failed(report):
    return {name for name, entry in report.items() if name != "passed" and not entry["passed"]}


def test_an_honest_setting_passes_and_can_be_stored(x, truths):
    vlm = OneWord()
    report = check_language_attack(vlm, x, PROMPTS, truths, exact, THREAT, attack_on(vlm, x, truths), rng=RNG, steps=8)
    assert report["passed"], failed(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        "clean",
        "in_ball",
        "iterative",
        "more_steps",
        "larger_eps",
        "unbounded",
        "batch_size",
        "zero_samples",
        "zero_pixels",
        "passed",
    }
    outcomes = sanity_outcomes(report)  # as the page reads it
    assert len(outcomes) == 9 and all(ok is True and isinstance(detail, str) for ok, detail in outcomes.values())


@pytest.mark.parametrize(
    "how, must_fail",
    [
        ({"eps": 1.5}, {"in_ball"}),
        ({"sign": True}, {"unbounded"}),  # makes the truth more likely
        ({"by_batch": True}, {"batch_size"}),
        ({"steps": 1, "first_step": 0.001}, {"unbounded"}),  # gets nowhere
    ],
    ids=["outside", "downhill", "by_batch", "lame"],
)
def test_crippled_attacks_are_caught(x, truths, how, must_fail):
    vlm = OneWord()
    report = check_language_attack(
        vlm, x, PROMPTS, truths, exact, THREAT, attack_on(vlm, x, truths, **how), rng=RNG, steps=8
    )
    assert not report["passed"] and must_fail <= failed(report), failed(report)


def test_a_timid_attack_gains_from_more_steps(x, truths):
    vlm = OneWord()
    report = check_language_attack(
        vlm, x, PROMPTS, truths, exact, THREAT, attack_on(vlm, x, truths, first_step=0.05), rng=RNG, steps=2
    )
    assert "more_steps" in failed(report)


def test_an_attack_that_does_not_scale_with_eps_is_caught(x, truths):
    vlm = OneWord()
    honest = attack_on(vlm, x, truths)

    def shy(rows, threat, *, steps, rng):
        return honest(rows, threat, steps=steps, rng=rng) if threat.eps < 1.5 * THREAT.eps else x[rows]

    assert {"larger_eps", "unbounded"} <= failed(
        check_language_attack(vlm, x, PROMPTS, truths, exact, THREAT, shy, rng=RNG, steps=8)
    )


def test_masked_gradients_are_caught(x):
    vlm = OneWord(grid=0.3)
    truths = [[a] for a in vlm.answer(x, PROMPTS)]
    report = check_language_attack(vlm, x, PROMPTS, truths, exact, THREAT, attack_on(vlm, x, truths), rng=RNG, steps=4)
    assert {"zero_samples", "zero_pixels", "unbounded"} <= failed(report)


def test_a_model_that_knows_nothing_is_reported(x):
    vlm = OneWord()
    said = vlm.answer(x, PROMPTS)
    wrong = [["w1" if a == "w0" else "w0"] for a in said]
    report = check_language_attack(vlm, x, PROMPTS, wrong, exact, THREAT, attack_on(vlm, x, wrong), rng=RNG, images=4)
    assert not report["clean"]["passed"] and not report["passed"] and "unbounded" not in report


def test_targeted_attacks_are_checked_too(x):
    """The score is then whether the target is absent."""
    vlm = OneWord()
    wanted = [["w3"]] * N

    def absent(answers, truths):
        return 1 - exact(answers, truths)

    def attack(rows, threat, *, steps, rng):
        return targeted_string(vlm, x[rows], "say", "w3", threat, steps=steps, rng=rng).x_adv

    report = check_language_attack(vlm, x, PROMPTS, wanted, absent, Threat("linf", 8 / 255), attack, rng=RNG, steps=10)
    assert report["passed"], failed(report)


def test_no_images_and_no_eps_are_refused(x, truths):
    with pytest.raises(UserError, match="at least one image"):
        check_language_attack(OneWord(), x[:0], [], [], exact, THREAT, None, rng=SampleRng(0, []))
    with pytest.raises(UserError, match="eps above 0"):
        check_language_attack(OneWord(), x, PROMPTS, truths, exact, Threat("linf", 0.0), None, rng=RNG)
