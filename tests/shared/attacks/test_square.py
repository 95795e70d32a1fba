import pytest
import torch
from torch import nn

from shared.attacks import Threat, pgd, square
from shared.attacks.square import bump, window_side
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding


def test_windows_shrink_as_published():
    sides = [
        window_side(query, 0.8, 32, 32)
        for query in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 9000)
    ]
    assert sides == [29, 29, 20, 20, 14, 14, 10, 10, 7, 7, 5, 5, 4, 1]


@pytest.mark.parametrize("side", [3, 4, 5, 9])
def test_bumps_have_unit_norm_and_two_signs(side):
    eta = bump(side, torch.zeros(()))
    assert eta.shape == (side, side)
    assert_within_rounding(eta.norm(), torch.ones(()), terms=side**2)
    assert (eta[: side // 2] > 0).all() and (eta[side // 2 :] < 0).all()


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 13, 17), (3, 5, 5)])
@pytest.mark.parametrize("threat", [Threat("linf", 0.1), Threat("l2", 1.0)], ids=lambda t: t.norm)
def test_any_shape_stays_in_the_ball(shape, threat):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 4))
        x = torch.rand(9, *shape)
    y = victim(x).argmax(dim=1)
    x_adv = square(victim, x, y, threat, queries=120, rng=SampleRng(0, range(9)))
    assert (
        x_adv.shape == x.shape
        and threat.distance(x_adv, x).max() <= threat.eps + 1e-6
        and x_adv.min() >= 0
        and x_adv.max() <= 1
    )
    before, after = victim(x), victim(x_adv)
    rows = torch.arange(9)
    assert (after.topk(2).values[rows, 0] - after[rows, y] >= before.topk(2).values[rows, 0] - before[rows, y]).all()


def test_more_queries_are_not_weaker_and_get_near_the_white_box(net, images, accuracy):
    x, y = images[0][:100], images[1][:100]
    threat = Threat("linf", 20 / 255)
    few, many = (
        accuracy(net, square(net, x, y, threat, queries=q, rng=SampleRng(0, range(100))), y) for q in (20, 400)
    )
    white = accuracy(net, pgd(net, x, y, threat, steps=20, step_size=threat.eps / 4, rng=SampleRng(0, range(100))), y)
    assert white <= many < few - 15


def test_it_needs_no_gradient(images, net):
    class Rounded(nn.Module):
        def forward(self, x):
            return (net(x) * 8).round() / 8

    x, y = images[0][:60], images[1][:60]
    threat, rng = Threat("linf", 22 / 255), SampleRng(0, range(60))
    assert (Rounded()(square(Rounded(), x, y, threat, queries=300, rng=rng)).argmax(dim=1) != y).float().mean() > 0.5


def test_windows_reach_every_pixel():
    """A victim that looks at the last pixel only: a search that leaves out the last row or column never moves it in time."""

    class Corner(nn.Module):
        def forward(self, x):
            score = x[:, 0, -1, -1] - x[:, 1, -1, -1] + 0.1
            return torch.stack([score, -score], dim=1)

    x = torch.full((40, 3, 8, 8), 0.5)
    y = torch.zeros(40, dtype=torch.int64)
    x_adv = square(Corner(), x, y, Threat("linf", 0.1), queries=300, rng=SampleRng(0, range(40)))
    assert (Corner()(x_adv).argmax(dim=1) == 1).all()


def test_flat_inputs_and_tiny_pictures_are_refused(images):
    victim = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    y = torch.zeros(2, dtype=torch.int64)
    for shape, norm in (((2, 30), "linf"), ((2, 3, 4, 4), "l2")):
        with pytest.raises(UserError, match="images"):
            square(victim, torch.rand(shape), y, Threat(norm, 0.1), rng=SampleRng(0, range(2)))
