"""PGD against closed forms, a plain loop, and its own promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat, apgd_ce, apgd_t, ascend, cascade, check_attack, fgsm, pgd, square
from shared.attacks import losses as L
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

THREATS = [Threat("linf", 0.05), Threat("l2", 0.4)]


class Linear(nn.Module):
    """Two classes; the margin z₁ − z₀ = ⟨w, x⟩ + b is linear."""

    def __init__(self, shape=(3, 6, 6)):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        score = (x * self.w).sum(dim=(1, 2, 3))
        return torch.stack([-score / 2, score / 2], dim=1)


@pytest.fixture
def grey():
    """Images so far from black and white that [0, 1] never binds; labels of both classes."""
    x = 0.5 + 0.2 * (torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(1)) - 0.5)
    return x, torch.arange(12) % 2


def optimum(victim, y, threat):
    toward = victim.w * (1 - 2 * y.float()).view(-1, 1, 1, 1)  # lowers the score of class 1, raises it for class 0
    return threat.eps * (toward.sign() if threat.norm == "linf" else toward / victim.w.norm())


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("loss", ["ce", "cw", "margin"])
def test_linear_victim_has_the_closed_form(grey, threat, loss):
    victim, (x, y) = Linear(), grey
    rng = SampleRng(0, range(12))
    x_adv = pgd(victim, x, y, threat, steps=40, step_size=threat.eps / 4, rng=rng, loss=loss, drop=False)
    assert (x_adv - x - optimum(victim, y, threat)).abs().max() < 1e-3 * threat.eps  # of the convergence
    drop = L.margin(victim(x_adv), y) - L.margin(victim(x), y)
    dual = victim.w.abs().sum() if threat.norm == "linf" else victim.w.norm()
    assert_within_rounding(drop, (threat.eps * dual).expand(12), terms=40 * 108)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_fgsm_is_one_full_step(grey, threat):
    victim, (x, y) = Linear(), grey
    assert_within_rounding(fgsm(victim, x, y, threat) - x, optimum(victim, y, threat), terms=108, scale=1.0)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_targets_are_reached_not_fled(grey, threat):
    victim, (x, y) = Linear(), grey
    x_adv = pgd(victim, x, y, threat, steps=20, step_size=threat.eps / 4, random_start=False, targeted=y, drop=False)
    assert (x_adv - x + optimum(victim, y, threat)).abs().max() < 1e-2 * threat.eps  # of the convergence


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_ascend_is_the_plain_loop(net, images, threat):
    x, y = images[0][:16], images[1][:16]
    rng = SampleRng(0, range(16))
    ours = ascend(
        lambda p: F.cross_entropy(net(p), y, reduction="none"), x, threat, steps=4, step_size=threat.eps / 3, rng=rng
    )

    theirs = threat.random_start(x, rng)
    for _ in range(4):
        theirs.requires_grad_()
        F.cross_entropy(net(theirs), y, reduction="sum").backward()
        with torch.no_grad():
            g = theirs.grad
            g = g.sign() if threat.norm == "linf" else g / g.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt()
            delta = theirs + threat.eps / 3 * g - x
            if threat.norm == "linf":
                delta = delta.clamp(-threat.eps, threat.eps)
            else:
                delta = delta * (threat.eps / delta.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt()).clamp(max=1)
            theirs = (x + delta).clamp(0, 1)
    net.zero_grad(set_to_none=True)
    assert_within_rounding(ours, theirs, terms=4 * 432)
    assert not ours.requires_grad


def test_ascend_touches_no_parameter_gradient_and_works_without_grad_mode(net, images):
    x, y = images[0][:4], images[1][:4]
    marker = torch.ones_like(net[0].weight)
    net[0].weight.grad = marker.clone()
    with torch.no_grad():
        moved = ascend(
            lambda p: L.cross_entropy(net(p), y), x, THREATS[0], steps=2, step_size=0.01, rng=SampleRng(0, range(4))
        )
    assert torch.equal(net[0].weight.grad, marker) and net[3 - 1].weight.grad is None
    net[0].weight.grad = None
    assert (moved != x).any()


def test_steps_are_taken_in_fp32_inside_a_callers_autocast(net, images):
    x, y = images[0][:8], images[1][:8]
    seen = []

    def loss_fn(point):
        logits = net(point)
        seen.append(logits.dtype)
        return L.cross_entropy(logits, y)

    settings = {"steps": 2, "step_size": 0.01, "rng": SampleRng(0, range(8))}
    plain = ascend(loss_fn, x, THREATS[0], **settings)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ascend(loss_fn, x, THREATS[0], **settings)
        ascend(loss_fn, x, THREATS[0], autocast="bf16", **settings)
    assert torch.equal(plain, inside)
    assert seen == [torch.float32] * 4 + [torch.bfloat16] * 2


def test_a_reduced_loss_is_refused(net, images):
    with pytest.raises(UserError, match="one value per sample"):
        ascend(lambda p: net(p).sum(), images[0][:3], THREATS[0], steps=1, step_size=0.1, rng=SampleRng(0, range(3)))


def test_dropping_survivors_changes_no_outcome_and_saves_work(net, images, counted, accuracy):
    x, y = images
    settings = {"steps": 10, "step_size": 2.5 / 255, "rng": SampleRng(0, range(200))}
    lean, full = counted(net), counted(net)
    dropped = pgd(lean, x, y, Threat("linf", 10 / 255), **settings)
    kept = pgd(full, x, y, Threat("linf", 10 / 255), drop=False, **settings)
    assert accuracy(net, dropped, y) == accuracy(net, kept, y) < 60
    assert lean.images < 0.75 * full.images
    wrong = net(x).argmax(dim=1) != y
    assert torch.equal(dropped[wrong], x[wrong])


def test_best_is_at_least_as_strong_as_last_and_restarts_help(net, images, accuracy):
    x, y = images
    threat, settings = Threat("linf", 8 / 255), {"steps": 5, "step_size": 6 / 255, "rng": SampleRng(0, range(200))}
    last = accuracy(net, pgd(net, x, y, threat, keep="last", **settings), y)
    best = accuracy(net, pgd(net, x, y, threat, **settings), y)
    more = accuracy(net, pgd(net, x, y, threat, restarts=4, **settings), y)
    assert more <= best <= last


def test_best_without_dropping_returns_the_highest_loss_seen(net, images):
    x, y = images[0][:40], images[1][:40]
    settings = {"step_size": 6 / 255, "rng": SampleRng(0, range(40)), "drop": False}
    short = pgd(net, x, y, Threat("linf", 8 / 255), steps=3, **settings)
    long = pgd(net, x, y, Threat("linf", 8 / 255), steps=9, **settings)  # its first three steps are the same
    done_short, done_long = (net(a).argmax(dim=1) != y for a in (short, long))
    assert (done_long | ~done_short).all()
    same = done_short == done_long
    assert (L.cross_entropy(net(long), y)[same] >= L.cross_entropy(net(short), y)[same] - 1e-5).all()


def test_more_steps_and_larger_eps_are_not_weaker(net, images, accuracy):
    x, y = images
    left = {}
    for steps in (1, 4, 16):
        for eps in (4, 8, 16):
            threat, rng = Threat("linf", eps / 255), SampleRng(0, range(200))
            left[steps, eps] = accuracy(net, pgd(net, x, y, threat, steps=steps, step_size=threat.eps / 3, rng=rng), y)
    assert all(left[16, eps] <= left[4, eps] <= left[1, eps] for eps in (4, 8, 16))
    assert all(left[steps, 16] <= left[steps, 8] <= left[steps, 4] for steps in (1, 4, 16))
    assert left[16, 16] < left[16, 4] - 20


def test_averaged_evaluations_see_the_mean_of_a_random_victim():
    class Noisy(nn.Module):
        """A linear victim whose weights are drowned in noise from a generator of its own."""

        def __init__(self):
            super().__init__()
            self.base, self.generator = Linear(), torch.Generator().manual_seed(9)

        def forward(self, x):
            noise = 20 * torch.randn(self.base.w.shape, generator=self.generator)
            score = (x * (self.base.w + noise)).sum(dim=(1, 2, 3))
            return torch.stack([-score / 2, score / 2], dim=1)

    x = torch.full((1, 3, 6, 6), 0.5)
    y = torch.zeros(1, dtype=torch.int64)
    agreement = {}
    for count in (1, 400):
        victim = Noisy()
        settings = {"steps": 1, "step_size": 0.05, "random_start": False, "loss": "margin", "keep": "last"}
        x_adv = pgd(victim, x, y, THREATS[0], eot_iter=count, **settings)
        agreement[count] = ((x_adv - x).sign() == victim.base.w.sign()).float().mean()
    assert agreement[1] < 0.7 < agreement[400]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"keep": "first"}, "keep"),
        ({"loss": "l2"}, "loss is 'l2': use 'ce', 'cw', 'dlr' or 'margin', or a function"),
        ({"keep": "last", "drop": True}, "contradicts"),
        ({"reduction": "mean", "drop": True}, "contradicts"),
        ({"reduction": "median"}, "reduction"),
        ({"autocast": "int8"}, "autocast"),
        ({"restarts": 3, "random_start": False}, "random start"),
        ({"rng": None}, "SampleRng"),
        ({"rng": SampleRng(0, range(5))}, "rng is for 5"),
        ({"eot_iter": 0}, "eot_iter"),
        ({"steps": -1}, "steps is -1: use a whole number from 0"),
        ({"steps": 1.5}, "steps is 1.5: use a whole number"),
        ({"step_size": math.nan}, "step_size is nan: use a finite number of 0 or more"),
        ({"step_size": -0.1}, "step_size is -0.1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"kappa": math.inf}, "kappa is inf"),
        ({"targeted": torch.tensor([1])}, r"int64 labels \(N,\), got"),
    ],
)
def test_settings_that_make_no_sense_are_refused(net, images, change, says):
    settings = {"steps": 1, "step_size": 0.1, "rng": SampleRng(0, range(4))} | change
    with pytest.raises(UserError, match=says):
        pgd(net, images[0][:4], images[1][:4], THREATS[0], **settings)


def test_a_victim_that_is_no_module_is_one_sentence(net, images):
    with pytest.raises(UserError, match=r"the victim is a function: give an nn\.Module"):
        pgd(lambda x: net(x), *images, THREATS[0], steps=1, step_size=0.1, random_start=False)


@pytest.mark.parametrize("wrong", [10, -1, 2**40])
@pytest.mark.parametrize("attack", [
    lambda net, x, y, **how: pgd(net, x, y, THREATS[0], steps=2, step_size=0.1, **how),
    lambda net, x, y, **how: pgd(net, x, y, THREATS[0], steps=2, step_size=0.1, keep="last", **how),
    lambda net, x, y, **how: pgd(net, x, y * 0, THREATS[0], steps=2, step_size=0.1, targeted=y, **how),
    lambda net, x, y, **how: fgsm(net, x, y, THREATS[0]),
    lambda net, x, y, **how: apgd_ce(net, x, y, THREATS[0], steps=2, **how),
    lambda net, x, y, **how: apgd_ce(net, x, y, THREATS[0], steps=2, drop=False, **how),
    lambda net, x, y, **how: apgd_t(net, x, y, THREATS[0], steps=2, **how),
    lambda net, x, y, **how: square(net, x, y, THREATS[0], queries=2, **how),
    lambda net, x, y, **how: square(net, x, y, THREATS[0], queries=2, batch_size=1, **how),
    lambda net, x, y, **how: cascade(net, x, y, THREATS[0], steps=2, batch_size=1, **how),
    lambda net, x, y, **how: check_attack(net, x, y, THREATS[0], steps=2, **how),
])  # fmt: skip
def test_labels_that_are_no_class_are_refused(net, images, attack, wrong):
    y = images[1][:4].clone()
    y[3] = wrong
    with pytest.raises(
        UserError, match=rf"1 of \d labels are no class of the victim, which has 10, .* such as {wrong}: give"
    ):
        attack(net, images[0][:4], y, rng=SampleRng(0, range(4)))


@pytest.mark.parametrize(
    "spoil", [lambda x: x * 2 - 1, lambda x: x * 255, lambda x: x + torch.nan, lambda x: (x * 255).byte()]
)
def test_images_outside_the_unit_range_are_refused(net, images, spoil):
    with pytest.raises(UserError):
        pgd(net, spoil(images[0][:4]), images[1][:4], THREATS[0], steps=1, step_size=0.1, rng=SampleRng(0, range(4)))


def test_an_empty_batch_is_fine(net, images):
    assert pgd(net, images[0][:0], images[1][:0], THREATS[0], steps=2, step_size=0.1, rng=SampleRng(0, [])).shape == (
        0,
        3,
        12,
        12,
    )
