import time

import numpy as np
import pytest

from shared.errors import UserError
from shared.metrics.intervals import Estimate, bootstrap_mean, paired_difference, ratio, student_t, unpaired_difference, wilson


# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3
@pytest.mark.parametrize(("k", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
])  # fmt: skip
def test_wilson_against_the_published_table(k, n, low, high):
    e = wilson(k, n)
    assert (e.value, e.n, e.seeds) == (k / n, n, 1)
    assert (round(e.low, 4), round(e.high, 4)) == (low, high)


def test_wilson_is_symmetric_and_exact_at_the_ends():
    assert wilson(0, 64).low == 0.0 and wilson(64, 64).high == 1.0
    assert wilson(64, 64).low == pytest.approx(1 - wilson(0, 64).high)
    for k, n in ((-1, 4), (5, 4), (0, 0)):
        with pytest.raises(UserError, match="a rate needs"):
            wilson(k, n)


def test_student_t_against_scipy():
    from scipy.stats import t

    for df in (1, 2, 3, 9, 10, 11, 15, 40, 1000):
        assert student_t(df) == pytest.approx(t.ppf(0.975, df), abs=2e-4)
    for df in (1.2, 1.5, 2.5, 7.7):
        assert student_t(df) == pytest.approx(t.ppf(0.975, df), rel=0.035)


def test_one_set_one_seed_of_zeros_and_ones_is_wilson():
    values = np.array([1, 1, 0, 1, 0])
    assert bootstrap_mean({"a": values}) == bootstrap_mean([values[None]]) == wilson(3, 5)


def test_value_is_the_mean_over_sets_not_over_examples():
    e = bootstrap_mean({"small": np.ones(10), "large": np.zeros(1000)})
    assert e.value == 0.5 and e.n == 1010


def test_width_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    sets = {f"s{k}": rng.random(n) < p for k, (n, p) in enumerate([(200, 0.3), (600, 0.6), (3000, 0.5)])}  # all three ways of drawing
    sets["cont"] = rng.random(700)
    error = np.sqrt(sum(np.var(v) / len(v) for v in sets.values())) / len(sets)
    e = bootstrap_mean(sets)
    assert e.half_width == pytest.approx(1.96 * error, rel=0.06)
    assert e.low < e.value < e.high


def test_sets_are_drawn_independently():
    """Ten equal sets: were they drawn alike, the interval would be as wide as that of one."""
    values = np.random.default_rng(0).random(100)
    one, ten = bootstrap_mean([values]), bootstrap_mean([values] * 10)
    assert ten.half_width == pytest.approx(one.half_width / np.sqrt(10), rel=0.1)


def test_seeds_that_differ_give_about_the_t_interval():
    from scipy.stats import t

    seeds = np.array([0.40, 0.47, 0.55, 0.44, 0.52])
    e = bootstrap_mean([np.repeat(seeds[:, None], 50, axis=1)])
    half = t.ppf(0.975, 4) * seeds.std(ddof=1) / np.sqrt(5)
    assert e.half_width == pytest.approx(half, rel=0.1)
    assert e.seeds == 5


def test_seeds_that_agree_add_nothing():
    values = (np.random.default_rng(1).random((1, 300)) < 0.4).astype(float)
    one, three = bootstrap_mean([values, values]), bootstrap_mean([np.repeat(values, 3, 0)] * 2)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize(("seed_effect", "at_least"), [(0.0, 0.92), (0.03, 0.90), (0.1, 0.85)])
def test_coverage_with_three_seeds(seed_effect, at_least):
    rng, rates, hits, runs = np.random.default_rng(7), (0.3, 0.5, 0.6), 0, 250
    for _ in range(runs):
        shift = rng.normal(0, seed_effect, (3, 1))
        hardness = [rng.random((1, 80)) for _ in rates]  # the same examples for all seeds
        sets = [np.abs(h + rng.normal(0, 0.05, (3, 80))) < p + shift for h, p in zip(hardness, rates, strict=True)]
        e = bootstrap_mean(sets)
        hits += e.low <= np.mean(rates) <= e.high
    assert hits / runs >= at_least


def test_equal_values_still_have_an_interval():
    zeros = {"a": np.zeros((3, 64)), "b": np.zeros((3, 64))}
    e = bootstrap_mean(zeros)
    assert e.value == 0 and e.low == 0 and e.high == pytest.approx(wilson(0, 128).high)
    same = paired_difference(zeros, zeros)
    assert -same.low == same.high == pytest.approx(wilson(0, 128).high)
    ones = bootstrap_mean([np.ones((2, 50))])
    assert ones.high == 1.0 and 0.9 < ones.low < 1


def test_paired_is_narrower_than_unpaired_when_examples_correlate():
    rng = np.random.default_rng(2)
    hardness = rng.random((4, 1, 150))
    a = {str(k): (hardness[k] < 0.6).astype(float) for k in range(4)}
    b = {str(k): (hardness[k] < 0.5).astype(float) for k in range(4)}
    paired, unpaired = paired_difference(a, b), unpaired_difference(a, b)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.half_width < 0.6 * unpaired.half_width
    assert paired.low > 0 > unpaired.low - 0.1


def test_paired_difference_is_antisymmetric_and_repeats_a_single_seed():
    rng = np.random.default_rng(3)
    a, b = {"x": rng.random((3, 90))}, {"x": rng.random((1, 90))}
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == pytest.approx(-back.value) and there.low == pytest.approx(-back.high, abs=2e-3)
    assert there.seeds == 3
    assert there == paired_difference(a, {"x": np.repeat(b["x"], 3, 0)})


def test_pairing_errors():
    a = np.zeros((1, 5))
    with pytest.raises(UserError, match="same sets"):
        paired_difference({"x": a}, {"y": a})
    with pytest.raises(UserError, match="same examples"):
        paired_difference({"x": a}, {"x": np.zeros((1, 6))})
    with pytest.raises(UserError, match="2 and 3 seeds"):
        paired_difference([np.zeros((2, 5))], [np.zeros((3, 5))])
    with pytest.raises(UserError, match="same seeds"):
        bootstrap_mean([np.zeros((2, 5)), np.zeros((3, 5))])
    with pytest.raises(UserError, match="NaN"):
        bootstrap_mean([np.array([0.0, np.nan])])
    with pytest.raises(UserError, match="at least one"):
        bootstrap_mean({})


def test_ratio_of_costs():
    rng = np.random.default_rng(4)
    slow, fast = 3 + 0.1 * rng.random(40), 2 + 0.1 * rng.random(25)
    e = ratio([slow], [fast])
    assert e.value == pytest.approx(slow.mean() / fast.mean())
    assert e.low < e.value < e.high and e.half_width < 0.02
    with pytest.raises(UserError, match="above zero"):
        ratio([slow], [np.zeros(3)])


def test_deterministic_and_global_generators_untouched():
    values = [np.random.default_rng(5).random((3, 80)), np.random.default_rng(6).random((3, 2000))]
    before = np.random.get_state()[1].copy()
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert (np.random.get_state()[1] == before).all()


def test_order_of_a_mapping_does_not_matter():
    rng = np.random.default_rng(8)
    a, b = rng.random((2, 40)), rng.random((2, 70))
    assert bootstrap_mean({"a": a, "b": b}) == bootstrap_mean({"b": b, "a": a})


def test_scaled():
    e = Estimate(0.1, -0.1, 0.4, 9, 2)
    assert e.scaled(100) == Estimate(10.0, -10.0, 40.0, 9, 2)
    assert e.scaled(-1) == Estimate(-0.1, -0.4, 0.1, 9, 2)


@pytest.mark.bench
def test_fifteen_sets_in_fifty_milliseconds():
    sets = {f"s{k}": np.random.default_rng(k).random((3, 128)) < 0.4 for k in range(15)}
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        bootstrap_mean(sets)
        best = min(best, time.process_time() - start)
    assert best < 0.05
