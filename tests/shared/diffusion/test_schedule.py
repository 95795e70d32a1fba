"""The noise schedule: the table against a plain product, the discrete view against the continuous one, and noise added in one go or in two."""

import math

import pytest
import torch

from shared.diffusion import Schedule
from shared.errors import UserError
from tests.accuracy import assert_within_rounding

SCHEDULE = Schedule.linear()


def test_the_table_is_the_plain_product():
    """β from 1e-4 to 0.02 in 1000 steps, as in DDPM."""
    product = 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        for t, expected in ((i + 1, product),):
            assert SCHEDULE.alpha_bar(t).item() == pytest.approx(expected, rel=1e-9)
    assert SCHEDULE.alpha_bar(0) == 1


def test_the_cosine_is_the_one_of_improved_diffusion():
    """ᾱ from cos² with β capped at .999, T = 4,000: .962 after 470 steps, noise of 25/255 on pixels of [0, 1]."""
    schedule, product = Schedule(steps=4000, cosine=True), 1.0

    def f(share):
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    for i in range(4000):
        product *= 1 - min(1 - f((i + 1) / 4000) / f(i / 4000), 0.999)
        assert schedule.alpha_bar(i + 1).item() == pytest.approx(product, rel=1e-9)
    bar = schedule.alpha_bar(470).item()
    assert bar == pytest.approx(0.962, abs=5e-4)
    assert math.sqrt((1 - bar) / bar) / 2 * 255 == pytest.approx(25, abs=0.5)


def test_alpha_and_sigma():
    t = torch.tensor([0, 1, 50, 100, 500, 1000])
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float32 and alpha.shape == (6,)
    assert_within_rounding(alpha**2 + sigma**2, torch.ones(6), terms=2)
    assert (alpha[0], sigma[0]) == (1, 0) and alpha[-1] < 0.01 and (alpha.diff() < 0).all()
    assert abs(sigma[1].item() - 0.01) < 0.01 * 2**-22  # √β_1; 1 − ᾱ in float32 would lose digits


def test_the_discrete_view_becomes_the_continuous_one_in_small_steps():
    """ᾱ(t) = exp(−∫β): the difference is of order 1/T, for the same β."""
    worst = []
    for steps in (250, 1000, 4000):
        schedule, t = Schedule.linear(steps=steps), torch.arange(steps + 1)
        worst.append((schedule.alpha_bar(t) - schedule.continuous_alpha_bar(t.double() / steps)).abs().max().item())
    assert worst[1] < 5e-3
    assert worst[0] / worst[1] == pytest.approx(4, rel=0.2) and worst[1] / worst[2] == pytest.approx(4, rel=0.2)


def test_the_continuous_view_is_the_integral():
    s = torch.tensor(0.37, dtype=torch.float64)
    grid = torch.linspace(0, 0.37, 100_001, dtype=torch.float64)
    integral = torch.trapezoid(0.1 + grid * 19.9, grid)
    assert SCHEDULE.continuous_alpha_bar(s).item() == pytest.approx(math.exp(-integral), rel=1e-9)


def test_diffusing_takes_a_time_per_sample():
    x, noise, t = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([0, 10, 900])
    noised = SCHEDULE.diffuse(x, t, noise)
    for i in range(3):
        assert_within_rounding(noised[i], SCHEDULE.alpha(t[i]) * x[i] + SCHEDULE.sigma(t[i]) * noise[i], terms=2)
        assert_within_rounding(SCHEDULE.diffuse(x, int(t[i]), noise)[i], noised[i], terms=2)
    assert torch.equal(noised[0], x[0])


@pytest.mark.parametrize("s, t", [(0, 100), (40, 41), (100, 400), (70, 70)])
def test_advancing_in_two_steps_has_the_mean_and_variance_of_one(s, t):
    x, n = torch.full((1, 1, 1), 0.7, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    zero = torch.zeros_like(n)
    first, second = SCHEDULE.diffuse(zero, s, n), SCHEDULE.advance(zero, s, t, n)  # standard deviations
    shrink = SCHEDULE.advance(n, s, t, zero)
    assert (shrink * SCHEDULE.diffuse(x, s, zero)).item() == pytest.approx(
        SCHEDULE.diffuse(x, t, zero).item(), rel=1e-9
    )
    assert ((shrink * first) ** 2 + second**2).item() == pytest.approx(
        SCHEDULE.diffuse(zero, t, n).item() ** 2, rel=1e-9
    )
    assert s < t or second == 0


def test_many_small_advances_keep_the_variance():
    x = torch.zeros(2000, 1)
    generator = torch.Generator().manual_seed(0)
    for t in range(0, 500, 25):
        x = SCHEDULE.advance(x, t, t + 25, torch.randn(2000, 1, generator=generator))
    assert x.var().item() == pytest.approx(SCHEDULE.sigma(500).item() ** 2, rel=0.1)


@pytest.mark.parametrize("t", [-1, 1001, torch.tensor([3, 1001]), torch.tensor([-2]), 3.0, torch.tensor([0.5])])
def test_times_outside_are_refused(t):
    with pytest.raises(UserError, match="a diffusion time is a whole number of steps from 0 to 1000, not"):
        SCHEDULE.alpha(t)


def test_going_back_by_adding_noise_is_refused():
    with pytest.raises(UserError, match="noise is only added going forward"):
        SCHEDULE.advance(torch.zeros(1, 1), 10, 9, torch.zeros(1, 1))


@pytest.mark.parametrize("given", [(0, 20, 1000), (20, 0.1, 1000), (0.1, 20, 20), (0.1, 20, 0)])
def test_impossible_schedules_are_refused(given):
    with pytest.raises(UserError, match="a linear schedule needs 0 < beta_min <= beta_max < steps"):
        Schedule.linear(*given)


def test_schedules_are_values():
    assert Schedule.linear() == Schedule(0.1, 20.0, 1000) != Schedule.linear(steps=100) and hash(SCHEDULE) == hash(
        Schedule()
    )
