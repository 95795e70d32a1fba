"""Looks: published constants, and the error under the null by simulation."""

import math

import numpy as np
import pytest

from shared.claims.looks import LOOKS, bound, crossing, repeated
from shared.metrics.intervals import Z, mean, paired_difference


@pytest.mark.parametrize("bounds", [
    [2.178] * 2, [2.289] * 3, [2.361] * 4, [2.413] * 5, [2.555] * 10,  # Pocock
    [4.049, 2.863, 2.337, 2.024], [2.797, 1.977],  # O'Brien & Fleming
], ids=str)  # fmt: skip
def test_published_constants_for_equal_steps(bounds):
    """Two-sided 5 %: Jennison & Turnbull 2000, tables 2.1 and 2.3."""
    assert crossing(bounds, range(1, len(bounds) + 1)) == pytest.approx(0.05, abs=1e-4)


def test_the_bound_for_looks_that_double():
    doubling = [2.0**k for k in range(LOOKS)]
    for z in (0.5, 1.645, Z, 3.0, 6.0):
        error = math.erfc(z / math.sqrt(2))
        assert crossing([bound(z)] * LOOKS, doubling) == pytest.approx(error, rel=1e-3)
        assert bound(z, 1) == pytest.approx(z, abs=1e-6)
    assert bound(Z) == pytest.approx(2.4085, abs=1e-4)
    assert bound(9.0) > 9 and bound(20.0) > 20


def test_a_repeated_interval_is_wider_and_its_p_value_belongs_to_it():
    e = mean([np.random.default_rng(0).normal(0.3, 1, 100)])
    r = repeated(e)
    assert r.value == e.value and r.low < e.low and e.high < r.high and repeated(e, 1) is e
    assert r.p_value(r.low) == pytest.approx(0.05, abs=1e-4) and r.p_value(0.0) > e.p_value(0.0)
    assert r.scaled(2).interval(0.9)[0] == pytest.approx(2 * r.interval(0.9)[0])


def errors(runs: int, n: int, rates: bool) -> tuple[float, float]:
    """Under the null: the share of runs that are decided at some look, judged as repeated and as single intervals."""
    rng, wrong = np.random.default_rng(1), np.zeros(2)
    for _ in range(runs):
        a, b = rng.random((2, n * 2 ** (LOOKS - 1)))
        values = [(a < 0.5).astype(float), (b < 0.5).astype(float)] if rates else [a, b]
        looks = [paired_difference(*([v[: n * 2**k]] for v in values)) for k in range(LOOKS)]
        for k, intervals in enumerate(([repeated(e) for e in looks], looks)):
            wrong[k] += any(e.low > 0 or e.high < 0 for e in intervals)
    return tuple(wrong / runs)


def test_looks_keep_the_error_and_single_intervals_do_not():
    looks, single = errors(600, 24, rates=False)
    assert looks < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600) and single > 0.09


@pytest.mark.slow
@pytest.mark.parametrize("rates", [False, True])
def test_the_error_of_looks_is_five_percent(rates):
    looks, single = errors(20_000, 48, rates)
    assert (0.03 if rates else 0.045) < looks < 0.055 and single > 0.1
