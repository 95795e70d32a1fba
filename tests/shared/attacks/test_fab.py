"""FAB-T: its projection against independent solvers, its search against pyautoattack 0.2.0."""

import numpy as np
import pytest
import torch

from shared.attacks import Threat, cascade, fab_t
from shared.attacks.fab import search, to_plane
from shared.rng import SampleRng

pytestmark = pytest.mark.numeric
STEPS = 20
CASES = [
    pytest.param(("net", "linf", 12 / 255), id="net-linf"),
    pytest.param(("plain_net", "l2", 0.85), id="plain_net-l2"),
]


@pytest.fixture(params=CASES)
def case(request):
    name, norm, eps = request.param
    return request.getfixturevalue(name), Threat(norm, eps)


def by_bisection(x, normal, rise, norm):
    """|δ_i| = min(s·u_i, room_i), s by 200 halvings in float64."""
    up = np.sign(normal) * np.sign(rise)
    room = np.where(up > 0, 1 - x, x)
    unit = np.ones_like(x) if norm == "linf" else np.abs(normal)
    low, high = 0.0, 1e6
    for _ in range(200):
        s = (low + high) / 2
        enough = (np.abs(normal) * np.minimum(s * unit, room)).sum() >= abs(rise)
        low, high = (low, s) if enough else (s, high)
    return up * np.minimum(high * unit, room)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_the_way_to_a_plane_is_the_shortest_that_stays_in_the_box(norm, share):
    """share: of the most that any δ can rise; some pixels are at an end of the range, some of the normal are zero."""
    rng = np.random.default_rng(0)
    x, normal = rng.random((6, 300)), rng.normal(size=(6, 300))
    x[:, :30], x[:, 30:60], normal[:, 60:90] = 0, 1, 0
    sign = np.array([1, -1, 1, -1, 1, -1])[:, None]
    most = (np.abs(normal) * np.where(normal * sign > 0, 1 - x, x)).sum(1)
    rise = share * most * sign[:, 0]
    ours = to_plane(*(torch.tensor(v) for v in (x, normal, rise)), norm).numpy()
    assert ours == pytest.approx(
        np.stack([by_bisection(*row, norm) for row in zip(x, normal, rise, strict=True)]), abs=1e-9
    )
    assert (normal * ours).sum(1) == pytest.approx(rise, rel=1e-9)
    assert (x + ours).min() >= 0 and (x + ours).max() <= 1


@pytest.mark.parametrize("norm, order", [("linf", np.inf), ("l2", 2)])
def test_no_other_way_to_a_plane_is_shorter(norm, order):
    """A solver that knows only the constraints finds none."""
    from scipy.optimize import linprog, minimize

    rng = np.random.default_rng(1)
    x, normal = rng.random(12), rng.normal(size=12)
    rise = 0.6 * float(np.abs(normal) @ np.where(normal > 0, 1 - x, x))
    ours = to_plane(*(torch.tensor(v)[None] for v in (x, normal)), torch.tensor([rise]).double(), norm)[0].numpy()
    if norm == "linf":
        bounds = np.concatenate([np.eye(12), -np.eye(12)]), -np.ones((24, 1))
        box = [(-a, 1 - a) for a in x] + [(0, None)]
        cost, equal = np.append(np.zeros(12), 1), np.append(normal, 0)[None]
        least = linprog(cost, np.hstack(bounds), np.zeros(24), equal, [rise], box).fun
    else:
        plane = {"type": "eq", "fun": lambda d: normal @ d - rise}
        found = minimize(lambda d: d @ d, np.zeros(12), bounds=[(-a, 1 - a) for a in x], constraints=[plane], tol=1e-14)
        least = found.fun**0.5
    assert np.linalg.norm(ours, order) == pytest.approx(least, rel=1e-6)


def test_where_no_way_rises_so_far_every_pixel_goes_to_its_end():
    x = torch.tensor([[0.2, 0.9, 0.5]])
    for norm in ("linf", "l2"):
        way = to_plane(x, torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([50.0]), norm)
        assert way == pytest.approx(torch.tensor([[0.8, -0.9, 0.0]]))
        assert not to_plane(x, torch.zeros(1, 3), torch.tensor([1.0]), norm).any()


def oracle(victim, threat, steps):
    from pyautoattack.fab_pt import FABAttack_PT

    options = {"n_restarts": 1, "n_iter": steps, "eps": threat.eps, "targeted": True, "verbose": False, "device": "cpu"}
    return FABAttack_PT(victim, norm={"linf": "Linf", "l2": "L2"}[threat.norm], seed=0, **options)


@pytest.mark.slow
def test_it_is_as_strong_as_the_original(case, images, accuracy):
    (net, threat), (x, y) = case, images
    with torch.random.fork_rng():
        theirs = accuracy(net, oracle(net, threat, STEPS).perturb(x, y), y)
    x_adv = fab_t(net, x, y, threat, steps=STEPS)
    assert 5 < theirs < accuracy(net, x, y) - 10  # the comparison says something
    assert accuracy(net, x_adv, y) <= theirs + 0.5
    assert threat.distance(x_adv, x).max() <= threat.eps * (1 + 1e-6) and x_adv.min() >= 0 and x_adv.max() <= 1


def test_the_search_takes_the_same_way_as_the_original(case, images):
    """With a radius that nothing is within, both go on to the end and keep their nearest point."""
    (net, threat), (x, y) = case, images
    logits = net(x)
    rows = (logits.argmax(1) == y).nonzero().flatten()[:24]
    x, y, target = x[rows], y[rows], logits[rows].scatter(1, y[rows][:, None], -torch.inf).argmax(1).detach()
    _, ours = search(net, x, y, target, Threat(threat.norm, 0), 10)
    fab = oracle(net, threat, 10)
    fab.target_class = 2
    with torch.random.fork_rng():
        found = fab.attack_single_run(x, y, use_rand_start=False, is_targeted=True)
    theirs = threat.distance(found, x)
    both = torch.isfinite(ours)
    assert both.float().mean() > 0.7 and (theirs[~both] == 0).all()
    assert (ours[both] / theirs[both]).log().abs().median() < 1e-3


def test_a_sample_gets_the_same_result_in_any_batch(net, images):
    x, y = (v[:20] for v in images)
    threat = Threat("linf", 12 / 255)
    whole = fab_t(net, x, y, threat, steps=5)
    assert (fab_t(net, x, y, threat, steps=5, batch_size=7) - whole).abs().max() <= 1e-5
    assert (fab_t(net, x.flip(0), y.flip(0), threat, steps=5).flip(0) - whole).abs().max() <= 1e-5


def test_it_belongs_to_the_cascade_where_it_is_asked_for(net, images):
    x, y = (v[:40] for v in images)
    stages = ("apgd-ce", "apgd-t", "fab-t", "square")
    found = cascade(
        net, x, y, Threat("linf", 8 / 255), rng=SampleRng(0, range(40)), stages=stages, steps=5, targets=3, queries=10
    )
    assert list(found.correct) == ["clean", *stages]
    left = [found.correct[stage].sum() for stage in ("clean", *stages)]
    assert left == sorted(left, reverse=True)


def test_few_classes_and_nothing_to_attack(net, images):
    x, _ = images
    two = torch.nn.Sequential(net, torch.nn.Linear(net(x[:1]).shape[1], 2)).requires_grad_(False)
    labels = two(x[:5]).argmax(1)
    assert fab_t(two, x[:5], labels, Threat("linf", 0.1), steps=3).shape == x[:5].shape
    assert fab_t(two, x[:0], labels[:0], Threat("linf", 0.1)).shape == x[:0].shape
    wrong = fab_t(two, x[:5], 1 - labels, Threat("linf", 0.1), steps=3)
    assert torch.equal(wrong, x[:5])
