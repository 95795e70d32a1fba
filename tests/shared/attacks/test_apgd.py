"""APGD against a literal transcription, and what its streaming of runs must not change. The comparison with a library is in test_oracle."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat, apgd, apgd_ce, apgd_dlr, apgd_t
from shared.attacks import losses as L
from shared.attacks.apgd_engine import checkpoint_windows
from shared.attacks.reach import reach, score
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

PIXELS = 3 * 12 * 12  # terms of the longest sum: a norm of a picture, a logit
THREATS = [Threat("linf", 10 / 255), Threat("l2", 0.6)]


def test_checkpoints_of_100_steps_are_the_published_ones():
    at = [k for k, window in enumerate(checkpoint_windows(100)) if window]
    assert at == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [checkpoint_windows(100)[k] for k in at] == [22, 19, 16, 13, 10, 7, 6, 6]


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_short_budgets_have_checkpoints_too(steps):
    windows = checkpoint_windows(steps)
    assert len(windows) == steps + 1 and windows[0] == 0 and sum(windows) <= steps and any(windows)


def one_run(loss_fn, x, start, threat, steps, first_step=2.0):
    """APGD on one sample as in the paper's Algorithm 1, with plain Python control flow; returns the point of highest loss."""

    def project(v):
        delta = v - x
        if threat.norm == "linf":
            return (x + delta.clamp(-threat.eps, threat.eps)).clamp(0, 1)
        norm = delta.norm()
        return (x + delta * min(1.0, threat.eps / norm.item()) if norm > 0 else v).clamp(0, 1)

    def f(v):
        v = v.clone().requires_grad_()
        value = loss_fn(v)
        return value.item(), torch.autograd.grad(value, v)[0]

    checkpoints, gap = [0, int(0.22 * steps)], int(0.22 * steps)
    while checkpoints[-1] < steps:
        gap = max(gap - int(0.03 * steps), int(0.06 * steps))
        checkpoints.append(checkpoints[-1] + gap)
    eta, values = first_step * threat.eps, []
    value, g = f(start)
    values.append(value)
    current = previous = best = start
    best_value, best_g = value, g
    eta_before, best_before = None, None
    for k in range(steps):
        d = g.sign() if threat.norm == "linf" else g / g.norm()
        z = project(current + eta * d)
        a = 1.0 if k == 0 else 0.75
        previous, current = current, project(current + a * (z - current) + (1 - a) * (current - previous))
        value, g = f(current)
        values.append(value)
        if value > best_value:
            best, best_value, best_g = current, value, g
        if k + 1 in checkpoints:
            since = k + 1 - checkpoints[checkpoints.index(k + 1) - 1]
            rises = sum(values[j + 1] > values[j] for j in range(k + 1 - since, k + 1))
            eta_here, best_here = eta, best_value
            if rises <= 0.75 * since or (eta_before == eta and best_before == best_value):
                eta, current, g = eta / 2, best, best_g
            eta_before, best_before = eta_here, best_here
    return best


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_its_algorithm(exact, images, threat, loss):
    x, y = images[0][:4], images[1][:4]
    rng = SampleRng(3, range(4))
    ours = apgd(exact, x, y, threat, loss=loss, steps=50, rng=rng, drop=False, batch_size=3)
    starts = threat.random_start(x, rng.child("run0"))
    formula = {"ce": lambda z, t: F.cross_entropy(z, t, reduction="none"), "dlr": L.dlr}[loss]
    for i in range(4):
        theirs = one_run(lambda v, i=i: formula(exact(v[None]).float(), y[i : i + 1])[0], x[i], starts[i], threat, 50)
        assert_within_rounding(ours[i], theirs, terms=50 * PIXELS)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("drop", [True, False])
def test_full_batches_give_what_one_run_after_another_gives(exact, images, threat, drop):
    x, y = images[0][:12], images[1][:12]
    settings = {"steps": 8, "targets": 3, "rng": SampleRng(0, range(12)), "drop": drop}
    alone, five, wide = (apgd_t(exact, x, y, threat, batch_size=size, **settings) for size in (1, 5, 36))
    assert_within_rounding(five, alone, terms=8 * PIXELS)
    assert_within_rounding(wide, alone, terms=8 * PIXELS)
    assert (exact(alone).argmax(dim=1) != y).any() and (exact(alone).argmax(dim=1) == y).any()


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_giving_up_saves_calls_and_no_sample(net, images, counted, accuracy, threat):
    x, y = images[0][:100], images[1][:100]
    left, calls = {}, {}
    for give_up in (None, 7.0):
        victim = counted(net)
        x_adv = apgd_t(victim, x, y, threat, steps=40, rng=SampleRng(0, range(100)), give_up=give_up)
        left[give_up], calls[give_up] = accuracy(net, x_adv, y), victim.images
    assert left[7.0] == left[None]
    assert calls[7.0] < calls[None] / 1.5


class Understated(nn.Module):
    """A victim whose gradient arrives 10,000 times too small, with its direction intact."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(1e-4 * x + (1 - 1e-4) * x.detach())


@pytest.mark.parametrize("attack", [apgd_ce, apgd_t, apgd_dlr])
def test_gradients_that_understate_what_steps_achieve_are_not_believed(net, images, accuracy, attack):
    x, y = images[0][:60], images[1][:60]
    victim, settings = Understated(net), {"steps": 20, "rng": SampleRng(0, range(60))}
    believed = accuracy(victim, attack(victim, x, y, THREATS[0], **settings), y)
    assert believed == accuracy(victim, attack(victim, x, y, THREATS[0], give_up=None, **settings), y)
    assert believed < accuracy(victim, x, y) - 30


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_reach_is_the_best_corner_for_a_linear_loss(threat):
    generator = torch.Generator().manual_seed(0)
    grad, x = torch.randn(5, 3, 4, 4, generator=generator), 0.5 + 0.1 * torch.rand(5, 3, 4, 4, generator=generator)
    x_adv = threat.project(x + 0.1 * torch.randn(5, 3, 4, 4, generator=generator), x)
    best = x + threat.eps * threat.direction(grad)
    assert_within_rounding(reach(threat, x, x_adv, grad), (grad * (best - x_adv)).flatten(1).sum(1), terms=PIXELS)


def test_the_score_of_the_cross_entropy_is_the_log_odds_against_the_label():
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 3.0], [12.0, 0.0, 0.0]], requires_grad=True)
    y = torch.zeros(3, dtype=torch.int64)
    values = L.cross_entropy(logits, y)
    odds = logits[:, 1:].logsumexp(dim=1) - logits[:, 0]
    (slope,) = torch.autograd.grad(values.sum(), logits, retain_graph=True)
    (odds_slope,) = torch.autograd.grad(odds.sum(), logits)
    m, r = score("ce", values.detach(), values.detach(), slope[:, 0])
    # p_y = e^−CE is near 1 here, and what is left of 1 − p_y carries an error of ε/(1 − p_y)
    lost = 1 / (1 - (-values.detach()).exp()).min().item()
    assert_within_rounding(m, odds.detach(), terms=6, scale=lost)
    assert_within_rounding(r, odds_slope[:, 0], terms=6, scale=lost)
    m, r = score("ce", torch.zeros(1), torch.zeros(1), torch.zeros(1))  # p_y rounds to 1
    assert not (m + 5 * r < 0).any()


def test_restarts_and_targets_are_not_weaker_than_one(net, images, accuracy):
    x, y = images
    settings = {"steps": 8, "rng": SampleRng(0, range(200))}
    one, three = (accuracy(net, apgd_ce(net, x, y, THREATS[0], restarts=n, **settings), y) for n in (1, 3))
    assert three <= one
    one, nine = (accuracy(net, apgd_t(net, x, y, THREATS[0], targets=n, **settings), y) for n in (1, 9))
    assert nine < one


@pytest.mark.parametrize("classes", range(2, 10))
def test_heads_of_every_size_can_be_attacked(make_net, make_set, accuracy, classes):
    net = make_net(classes, steps=25, eps=0)
    x, y = make_set(24, classes, seed=50)
    clean = accuracy(net, x, y)
    for attack in (apgd_ce, apgd_dlr, apgd_t):
        assert (
            accuracy(net, attack(net, x, y, Threat("linf", 0.2), steps=10, rng=SampleRng(0, range(24))), y) < clean / 2
        ), attack


@pytest.mark.parametrize("classes", [4, 6])
def test_more_targets_than_wrong_classes_means_all_of_them(make_net, make_set, counted, classes):
    net = make_net(classes, steps=10, eps=0)
    x, _ = make_set(5, classes, seed=1)
    victim = counted(net)
    tiny = Threat("linf", 1e-6)  # nothing breaks, so every run goes to its end
    apgd_t(victim, x, net(x).argmax(dim=1), tiny, steps=3, rng=SampleRng(0, range(5)), give_up=None)
    assert victim.images == 5 + 5 * (classes - 1) * 4


def test_two_losses_see_the_scale_of_the_logits_and_one_does_not(net, images):
    class Scaled(nn.Module):
        def forward(self, x):
            return 64 * net(x)  # a power of two: DLR's numbers change by nothing but the tiny constant

    x, y = images[0][:16], images[1][:16]
    settings = {"steps": 8, "rng": SampleRng(0, range(16)), "drop": False}
    assert_within_rounding(
        apgd_t(Scaled(), x, y, THREATS[0], **settings), apgd_t(net, x, y, THREATS[0], **settings), terms=8
    )
    assert (
        apgd_ce(Scaled(), x, y, THREATS[0], **settings) - apgd_ce(net, x, y, THREATS[0], **settings)
    ).abs().max() > 1e-3


def test_one_class_and_empty_budgets_are_refused(net, images):
    x, y, rng = images[0][:4], images[1][:4], SampleRng(0, range(4))
    with pytest.raises(UserError, match="one class"):
        apgd_t(nn.Sequential(nn.Flatten(), nn.Linear(432, 1)), x, y * 0, THREATS[0], rng=rng)
    for bad in ({"steps": 0}, {"batch_size": 0}, {"targets": 0}):
        with pytest.raises(UserError, match="is 0: use a whole number from 1 to"):
            apgd_t(net, x, y, THREATS[0], rng=rng, **bad)
    with pytest.raises(UserError, match="is 0: use a whole number from 1 to"):
        apgd_ce(net, x, y, THREATS[0], rng=rng, restarts=0)
