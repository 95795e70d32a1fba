"""How often 95 % intervals hold the truth, by simulation: at least 93 % of the time, whatever the rate, the sets, the examples and the seeds."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, multinomial

from shared.metrics.intervals import mean, paired_difference, ratio

pytestmark = pytest.mark.slow
RUNS = 1500
LEAST = 0.93 - 2 * np.sqrt(0.93 * 0.07 / RUNS)  # two standard errors of the simulation below


def answers(rng, rate, n, seeds, seed_sd, noise, common=None):
    """(seeds, n) of 0/1 from normal variables per example, per seed and for both; `common` correlates two methods."""
    example = (
        rng.normal(size=(1, n)) if common is None else np.sqrt(0.8) * common + np.sqrt(0.2) * rng.normal(size=(1, n))
    )
    total = (example + noise * rng.normal(size=(seeds, n)) + seed_sd) / np.sqrt(1 + noise**2)
    return total < ndtri(rate)


def hits(truth, estimates):
    return np.mean([e.low - 1e-12 <= truth <= e.high + 1e-12 for e in estimates])


@pytest.mark.parametrize("n", [24, 64, 128, 512])
def test_one_set_is_covered_at_every_rate(n):
    ends = [mean([np.arange(n) < k]) for k in range(n + 1)]
    for rate in np.concatenate([np.logspace(-4, -1, 40), np.linspace(0.1, 0.5, 40)]):
        inside = [e.low <= rate <= e.high for e in ends]
        assert binom.pmf(np.arange(n + 1), n, rate)[inside].sum() >= 0.95 - 1e-9


@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.02), (0.1, 0.05), (0.3, 0.3), (0.05, 0.0), (0.4, 0.1)])
def test_pairs_are_covered(gained, lost):
    n, covered = 48, 0.0
    for k in range(n + 1):
        for m in range(n + 1 - k):
            weight = multinomial.pmf([k, m, n - k - m], n, [gained, lost, 1 - gained - lost])
            if weight > 1e-7:
                index = np.arange(n)
                e = paired_difference([index < k], [(index >= k) & (index < k + m)])
                covered += weight * (e.low <= gained - lost <= e.high)
    assert covered >= 0.93


@pytest.mark.parametrize(("sets", "n"), [(1, 128), (2, 64), (4, 32)])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.97, 0.995])
def test_rates_over_several_sets(rate, sets, n):
    rng = np.random.default_rng(1)
    estimates = [mean(list(rng.random((sets, n)) < rate)) for _ in range(RUNS)]
    assert hits(rate, estimates) >= LEAST


@pytest.mark.parametrize("rates", [(0.05, 0.95), (0.5, 0.99), (0.2, 0.4, 0.6, 0.9)])
def test_sets_that_differ(rates):
    rng = np.random.default_rng(2)
    estimates = [mean([rng.random(64) < rate for rate in rates]) for _ in range(RUNS)]
    assert hits(np.mean(rates), estimates) >= LEAST


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "noise"),
    [(2, 0.0, 0.5), (2, 0.2, 0.5), (3, 0.0, 0.5), (3, 0.1, 0.5), (3, 0.2, 0.2), (5, 0.3, 0.3)],
)
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_seeds(rate, seeds, seed_sd, noise):
    """Rates and paired differences of two methods that see the same examples; each method's seeds have a common shift of their own."""
    rng, alone, differences = np.random.default_rng(3), [], []
    for _ in range(RUNS):
        shift = [seed_sd * rng.normal(size=(seeds, 1)) for _ in "ab"]
        scale = np.sqrt(1 + seed_sd**2 / (1 + noise**2))  # so that the mean over all seeds is `rate`
        bar = [float(ndtri(p)) * scale for p in (rate, rate - 0.03)]
        common = [rng.normal(size=(1, 48)) for _ in range(2)]
        a, b = ([answers(rng, ndtr(bar[k]), 48, seeds, shift[k], noise, c) for c in common] for k in (0, 1))
        alone.append(mean(a))
        differences.append(paired_difference(a, b))
    assert hits(rate, alone) >= LEAST and hits(0.03, differences) >= LEAST


def test_skewed_costs():
    rng = np.random.default_rng(4)
    estimates = [ratio([rng.gamma(4, 0.5, 40)], [rng.gamma(4, 0.25, 40)]) for _ in range(RUNS)]
    assert hits(2.0, estimates) >= LEAST
