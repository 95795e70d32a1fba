"""MMD² against its definition, and the permutation test: its level where nothing differs, its power where something does."""

import math

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.metrics.two_sample import median_distance, mmd2, permutation_test


def normal(seed, n, d=4, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


def literal(x, y, s):
    def k(a, b):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * s * s))

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("m, n, width", [(2, 3, 0.7), (9, 5, 2.0), (6, 6, 30.0)])
def test_mmd_is_the_double_loop(m, n, width):
    x, y = normal(0, m), normal(1, n, shift=0.5)
    assert mmd2(x, y, width) == pytest.approx(literal(x, y, width), rel=1e-9, abs=1e-12)
    assert mmd2(torch.tensor(x), torch.tensor(y).requires_grad_(), width) == mmd2(x, y, width)
    assert mmd2(x, y, width) == pytest.approx(mmd2(y, x, width), abs=1e-12)
    far = 1e4  # what both have in common does not matter, nor does it cost precision
    assert mmd2(x + far, y + far, width) == pytest.approx(literal(x, y, width), abs=1e-6)


def test_the_default_width_is_the_median_distance_of_the_pooled_sample():
    x, y = normal(0, 7), normal(1, 4, shift=2.0)
    both = np.concatenate([x, y])
    width = np.median([np.linalg.norm(both[i] - both[j]) for i in range(11) for j in range(i)])
    assert median_distance(both) == pytest.approx(width) and mmd2(x, y) == pytest.approx(literal(x, y, width))


def test_it_is_unbiased():
    values = [mmd2(normal(2 * k, 10), normal(2 * k + 1, 10), 2.0) for k in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20 and min(values) < 0


def test_the_level_under_the_hypothesis():
    p = np.array([permutation_test(normal(2 * k, 12), normal(2 * k + 1, 16), n=99, seed=k)[1] for k in range(300)])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.04)
    assert p.mean() == pytest.approx(0.5, abs=0.06) and p.min() >= 1 / 100 and p.max() <= 1


def test_the_level_where_samples_are_drawn_class_by_class():
    """Classes far apart, three of each in either sample: divisions across classes are all further apart than what was drawn."""
    classes = np.arange(24) // 3
    centres = np.stack([40.0 * np.cos(classes), 40.0 * np.sin(classes), classes], axis=1)
    samples = [centres + np.random.default_rng(k).normal(size=(24, 3)) for k in range(400)]
    pairs = [(samples[2 * k], samples[2 * k + 1]) for k in range(200)]
    strata = np.concatenate([classes, classes])
    within = np.array([permutation_test(x, y, 2.0, 99, k, strata)[1] for k, (x, y) in enumerate(pairs)])
    across = np.array([permutation_test(x, y, 2.0, 99, k)[1] for k, (x, y) in enumerate(pairs[:20])])
    assert within.mean() == pytest.approx(0.5, abs=0.08) and (within <= 0.05).mean() == pytest.approx(0.05, abs=0.05)
    assert across.mean() > 0.8  # 0.5 if it were a test
    shifted = [permutation_test(x, y + 2.0, 2.0, 99, k, strata)[1] for k, (x, y) in enumerate(pairs[:20])]
    assert np.mean(np.array(shifted) <= 0.05) >= 0.9


@pytest.mark.parametrize("change", [lambda y: y + 0.8, lambda y: 3 * y], ids=["shift", "scale"])
def test_power(change):
    p = [permutation_test(normal(2 * k, 40), change(normal(2 * k + 1, 40)), n=99, seed=k)[1] for k in range(20)]
    assert np.mean(np.array(p) <= 0.05) >= 0.9


def test_the_p_value_counts_the_observed_division():
    """Samples far apart: no other division reaches the observed one, and p is 1/(n + 1), never 0."""
    x, y = normal(0, 30), normal(1, 30, shift=50)
    statistic, p = permutation_test(x, y, 1.0, n=199, seed=3)
    assert p == 1 / 200 and statistic == mmd2(x, y, 1.0)
    assert permutation_test(normal(0, 9), normal(1, 9), n=50, seed=1) == permutation_test(
        normal(0, 9), normal(1, 9), n=50, seed=1
    )
    two = np.array([[0.0], [1.0]])
    assert permutation_test(two, two, 1.0, n=100)[1] > 0.5  # ties count


@pytest.mark.parametrize(
    "x, y, options, message",
    [
        (normal(0, 1), normal(1, 5), {}, "at least 2 rows"),
        (normal(0, 5), normal(1, 5, d=3), {}, "of one width"),
        (normal(0, 5)[0], normal(1, 5), {}, "finite features"),
        (np.full((3, 2), np.nan), normal(1, 5, d=2), {}, "finite features"),
        (normal(0, 5), normal(1, 5), {"bandwidth": 0.0}, "must be positive"),
        (np.zeros((5, 2)), np.zeros((5, 2)), {}, "give a bandwidth"),
        (normal(0, 5), normal(1, 5), {"n": 0}, "at least 1 division"),
    ],
)
def test_what_cannot_be_compared_is_refused(x, y, options, message):
    with pytest.raises(UserError, match=message):
        permutation_test(x, y, **options)
