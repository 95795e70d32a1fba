import math

import pytest
import torch

from shared.attacks import Threat
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding


@pytest.mark.parametrize("norm, eps", [("l1", 0.1), ("linf", 8), ("linf", -0.1), ("l2", math.nan), ("l2", math.inf)])
def test_nonsense_is_refused(norm, eps):
    with pytest.raises(UserError):
        Threat(norm, eps)


def test_eps_in_255ths_is_recognised():
    with pytest.raises(UserError, match="8/255"):
        Threat("linf", 8)


def test_linf_projection_is_the_nearest_point():
    x, far = torch.tensor([[0.0, 0.5, 0.98]]), torch.tensor([[-1.0, 0.53, 2.0]])
    assert_within_rounding(Threat("linf", 0.1).project(far, x), torch.tensor([[0.0, 0.53, 1.0]]), terms=75)


def test_l2_projection_scales_and_then_cuts():
    x = torch.full((2, 4), 0.5)
    far = x + torch.tensor([[0.3, 0.0, 0.0, 0.4], [0.03, 0.0, 0.0, 0.04]])
    near = Threat("l2", 0.25).project(far, x)
    assert_within_rounding(near - x, torch.tensor([[0.15, 0.0, 0.0, 0.2], [0.03, 0.0, 0.0, 0.04]]), terms=4, scale=1.0)
    edge = Threat("l2", 0.5).project(torch.tensor([[2.0, 0.5]]), torch.tensor([[0.9, 0.5]]))
    assert_within_rounding(edge, torch.tensor([[1.0, 0.5]]), terms=75)


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 1.0)])
def test_projection_changes_neither_argument(norm, eps):
    x, far = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4) * 3
    copies = x.clone(), far.clone()
    Threat(norm, eps).project(far, x)
    assert torch.equal(x, copies[0]) and torch.equal(far, copies[1])


def test_linf_start_fills_the_cube_evenly():
    x = torch.full((200, 50), 0.5)
    delta = Threat("linf", 0.2).random_start(x, SampleRng(0, range(200))) - x
    counts = ((delta + 0.2) / 0.1).floor().long().clamp(0, 3).flatten().bincount() / delta.numel()
    assert (counts - 0.25).abs().max() < 0.02  # of a sample


def test_l2_start_fills_the_ball_evenly():
    x = torch.full((4000, 2), 0.5)
    radius = Threat("l2", 0.2).distance(Threat("l2", 0.2).random_start(x, SampleRng(0, range(4000))), x)
    assert radius.max() <= 0.2 + 1e-6
    assert abs((radius < 0.1).float().mean() - 0.25) < 0.03  # a quarter of a disc lies within half its radius


def test_starts_stay_in_the_picture():
    x = torch.cat([torch.zeros(4, 3, 5, 5), torch.ones(4, 3, 5, 5)])
    for threat in (Threat("linf", 0.3), Threat("l2", 2.0)):
        start = threat.random_start(x, SampleRng(1, range(8)))
        assert start.min() >= 0 and start.max() <= 1 and threat.distance(start, x).max() <= threat.eps + 1e-6


def test_direction_has_unit_norm_whatever_the_size_of_the_gradient():
    grad = torch.randn(4, 3, 5, 5) * torch.tensor([1e-30, 1e-10, 1.0, 1e10]).view(-1, 1, 1, 1)
    assert Threat("linf", 0.1).direction(grad).abs().unique().tolist() == [1.0]
    assert_within_rounding(Threat("l2", 0.1).direction(grad).flatten(1).norm(dim=1), torch.ones(4), terms=75)


def test_direction_of_zero_and_of_not_a_number_is_zero():
    grad = torch.tensor([[0.0, 0.0, 0.0], [math.nan, 3.0, -4.0]])
    assert_within_rounding(
        Threat("linf", 0.1).direction(grad), torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, -1.0]]), terms=75
    )
    assert_within_rounding(
        Threat("l2", 0.1).direction(grad), torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.6, -0.8]]), terms=75
    )


def test_distance_is_per_sample():
    x = torch.zeros(2, 1, 1, 2)
    moved = torch.tensor([[[[0.3, 0.4]]], [[[0.0, 0.1]]]])
    assert_within_rounding(Threat("linf", 1).distance(moved, x), torch.tensor([0.4, 0.1]), terms=4)
    assert_within_rounding(Threat("l2", 1).distance(moved, x), torch.tensor([0.5, 0.1]), terms=4)
