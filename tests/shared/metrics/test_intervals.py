import math
import time

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm, t, ttest_1samp

from shared.errors import UserError
from shared.metrics.intervals import Estimate, mean, paired_difference, ratio, unpaired_difference


def rate(k, n):
    return mean([np.arange(n) < k])


def pair(gained, lost, n, both=0):
    """The paired difference of two methods: `gained` examples only the first has, `lost` only the second, `both` both."""
    only = np.arange(n)
    a = (only < gained) | (only >= n - both)
    b = ((only >= gained) & (only < gained + lost)) | (only >= n - both)
    return paired_difference([a], [b])


# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 5
@pytest.mark.parametrize(("k", "n", "low", "high"), [
    (81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776),
])  # fmt: skip
def test_one_set_one_seed_against_the_published_table(k, n, low, high):
    e = rate(k, n)
    assert (e.value, e.n, e.seeds) == (k / n, n, 1)
    assert (round(e.low, 4), round(e.high, 4)) == (low, high)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_a_rate_is_exact_at_every_level(level):
    for k, n in ((0, 20), (3, 20), (20, 20), (127, 128)):
        theirs = binomtest(k, n).proportion_ci(level, method="exact")
        assert rate(k, n).interval(level) == pytest.approx((theirs.low, theirs.high), abs=1e-10)


@pytest.mark.parametrize("sets", [1, 2, 4])
def test_an_end_never_falls_when_one_more_example_is_right(sets):
    n = 128 // sets
    for order in (np.arange(128), np.arange(128).reshape(sets, n).T.ravel()):  # set after set, or one of each in turn
        ends = []
        for k in range(129):
            right = np.zeros(128)
            right[order[:k]] = 1
            e = mean(list(right.reshape(sets, n)))
            ends.append((e.low, e.high))
        assert (np.diff(ends, axis=0) > -1e-12).all()


def test_one_wrong_answer_in_one_of_three_seeds_raises_no_end():
    right = np.ones((3, 128))
    wrong = right.copy()
    wrong[0, 5] = 0
    assert mean([wrong]).low < mean([right]).low and mean([right]).low == rate(128, 128).low


def literal_tango(gained, lost, n, difference):
    """Tango's score statistic, its restricted estimate found by maximising the likelihood over a grid."""
    q = np.linspace(max(0.0, -difference), (1 - difference) / 2, 400_001)[1:-1]  # share of `lost`
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [gained * np.log(q + difference) if gained else 0, lost * np.log(q) if lost else 0]
        terms.append((n - gained - lost) * np.log(1 - 2 * q - difference))
    share = q[np.argmax(sum(terms))]
    return (gained - lost - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 3, 50), (1, 0, 30), (0, 0, 40), (12, 12, 40), (20, 1, 24)])
def test_pairs_against_a_literal_score_test(gained, lost, n):
    e = pair(gained, lost, n)
    assert literal_tango(gained, lost, n, e.low) == pytest.approx(1.96, abs=2e-3)
    assert literal_tango(gained, lost, n, e.high) == pytest.approx(-1.96, abs=2e-3)


def test_pairs_agree_with_mcnemar():
    for gained, lost in ((1, 0), (3, 0), (4, 0), (5, 1), (6, 0), (9, 2), (10, 10), (30, 14)):
        for n in (60, 1000):
            statistic = abs(gained - lost) / math.sqrt(gained + lost)
            e = pair(gained, lost, n)
            assert (e.low > 0) == (statistic > 1.959964)
            assert e.p_value(0) == pytest.approx(2 * norm.sf(statistic), rel=1e-4)


def test_one_picture_of_a_thousand_shows_nothing():
    for e in (pair(0, 1, 1000, both=700), pair(1, 0, 1000, both=700), pair(1, 1, 1000), pair(0, 0, 1000)):
        assert e.low < -1e-4 and e.high > 1e-4 and e.p_value(0) > 0.3


@pytest.mark.parametrize("seeds", [1, 3])
def test_both_directions_are_alike(seeds):
    rng = np.random.default_rng(3)
    for draw in (lambda n: rng.random((seeds, n)) < 0.9, lambda n: rng.random((seeds, n))):
        a, b = ([draw(n) for n in (60, 90)] for _ in "ab")
        for difference in (paired_difference, unpaired_difference):
            there, back = difference(a, b), difference(b, a)
            assert (there.value, there.low, there.high) == pytest.approx(
                (-back.value, -back.high, -back.low), abs=1e-10
            )
            assert there.p_value(0.01) == pytest.approx(back.p_value(-0.01), rel=1e-6)
    assert mean([1 - np.eye(1, 64)[0]]).low == pytest.approx(1 - mean([np.eye(1, 64)[0]]).high)


def test_p_values_belong_to_the_intervals():
    rng = np.random.default_rng(5)
    three = {"x": rng.random((3, 40)) < 0.7, "y": rng.random((3, 60)) < 0.5}
    costs = 2 + rng.random((1, 30))
    for e in (
        mean(three),
        paired_difference(three, {k: v[:1] for k, v in three.items()}),
        ratio([costs], [costs + 1]),
        mean([costs]),
    ):
        for level in (0.8, 0.95, 0.99):
            for end in e.interval(level):
                assert e.p_value(end) == pytest.approx(1 - level, rel=1e-4)
        assert e.p_value(e.value) == 1 and (e.scaled(-100).low, e.scaled(-100).p_value(-100 * e.low)) == pytest.approx(
            (-100 * e.high, 0.05)
        )
    assert mean([costs]).p_value(1e9) < 1e-14


def test_other_values_have_students_interval():
    values = np.random.default_rng(0).random(30)
    e, theirs = mean([values]), ttest_1samp(values, 0.4)
    assert (e.low, e.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert e.p_value(0.4) == pytest.approx(theirs.pvalue, rel=1e-4)


def test_one_value_that_is_no_rate_has_no_interval():
    """Nothing is known of its spread; it was an interval of no length, as if the value were certain."""
    alone = [np.array([0.3])], {"a": np.array([0.3]), "b": np.array([0.1, 0.4])}, [np.array([[0.3], [0.4]])]
    for sets in alone:
        e = mean(sets, share=False)
        assert (e.low, e.high) == (-math.inf, math.inf) == e.interval(0.5)
        assert e.p_value(5.0) == pytest.approx(1.0)
        assert (mean(sets, share=True).low, mean(sets, share=True).high) == (0.0, 1.0)
    one, two = [np.array([0.3])], [np.array([0.1, 0.4])]
    assert paired_difference(one, one, share=False).low == unpaired_difference(one, two).low == -math.inf
    assert (ratio(one, two).low, ratio(one, two).high) == (0.0, math.inf)
    count = mean(one, exact=True)  # of parameters, say, and no sample
    assert count.low == count.value == count.high and ratio(one, one, exact=True).high == 1.0
    assert paired_difference(one, one, exact=True).high == 0.0


def test_shares_are_shares_and_levels_levels():
    with pytest.raises(UserError, match="called shares are not all from 0 to 1"):
        mean([[0.5, 1.5]], share=True)
    with pytest.raises(UserError, match="called shares"):
        paired_difference([[0.5, -0.5]], [[0.5, 0.5]], share=True)
    for level in (0.0, 1.0, 1.5, math.nan):
        with pytest.raises(UserError, match="level of an interval is"):
            mean([[0, 1]]).interval(level)


def test_value_is_the_mean_over_sets_not_over_examples():
    e = mean({"small": np.ones(10), "large": np.zeros(1000)})
    assert e.value == 0.5 and e.n == 1010


def test_width_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    sets = {f"s{k}": rng.random(n) < p for k, (n, p) in enumerate([(200, 0.3), (600, 0.6), (3000, 0.5)])}
    sets["cont"] = rng.random(700)
    error = np.sqrt(sum(np.var(v) / len(v) for v in sets.values())) / len(sets)
    e = mean(sets)
    assert e.half_width == pytest.approx(1.96 * error, rel=0.02)
    assert e.low < e.value < e.high


def test_sets_are_drawn_independently():
    """Ten equal sets: were they drawn alike, the interval would be as wide as that of one."""
    values = np.random.default_rng(0).random(100)
    one, ten = mean([values]), mean([values] * 10)
    assert ten.half_width == pytest.approx(one.half_width / np.sqrt(10), rel=0.1)


def test_seeds_that_differ_give_about_the_t_interval():
    seeds = np.array([0.40, 0.47, 0.55, 0.44, 0.52])
    e = mean([np.repeat(seeds[:, None], 50, axis=1)])
    half = t.ppf(0.975, 4) * seeds.std(ddof=1) / np.sqrt(5)
    assert e.half_width == pytest.approx(half)
    assert e.seeds == 5


def test_seeds_that_agree_add_nothing():
    values = (np.random.default_rng(1).random((1, 300)) < 0.4).astype(float)
    one, three = mean([values, values]), mean([np.repeat(values, 3, 0)] * 2)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


def test_equal_values_still_have_an_interval():
    zeros = {"a": np.zeros((3, 64)), "b": np.zeros((3, 64))}
    e = mean(zeros)
    assert e.value == 0 and e.low == 0 and e.high == pytest.approx(beta.ppf(0.975, 1, 128))  # as 0 of 128
    same = paired_difference(zeros, zeros)
    assert -same.low == pytest.approx(same.high) and 0.02 < same.high < 0.04
    assert mean([np.ones((2, 50))]).high == 1.0


def test_a_single_seed_serves_several():
    rng = np.random.default_rng(3)
    a, b = {"x": rng.random((3, 90))}, {"x": rng.random((1, 90))}
    assert (
        paired_difference(a, b) == paired_difference(a, {"x": np.repeat(b["x"], 3, 0)})
        and paired_difference(a, b).seeds == 3
    )


def test_lopsided_intervals():
    assert rate(64, 64).lopsided and rate(63, 64).lopsided and not rate(40, 64).lopsided
    assert not Estimate(0.5, 0.4, 0.6, 9).lopsided and Estimate(1.0, 0.9, 1.0, 9).lopsided


def test_paired_is_narrower_than_unpaired_when_examples_correlate():
    rng = np.random.default_rng(2)
    hardness = rng.random((4, 1, 150))
    a = {str(k): (hardness[k] < 0.6).astype(float) for k in range(4)}
    b = {str(k): (hardness[k] < 0.5).astype(float) for k in range(4)}
    paired, unpaired = paired_difference(a, b), unpaired_difference(a, b)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.half_width < 0.6 * unpaired.half_width
    assert paired.low > 0 > unpaired.low - 0.1


def test_pairing_errors():
    a = np.zeros((1, 5))
    with pytest.raises(UserError, match="same sets"):
        paired_difference({"x": a}, {"y": a})
    with pytest.raises(UserError, match="same examples"):
        paired_difference({"x": a}, {"x": np.zeros((1, 6))})
    with pytest.raises(UserError, match="2 and 3 seeds"):
        paired_difference([np.zeros((2, 5))], [np.zeros((3, 5))])
    with pytest.raises(UserError, match="same seeds"):
        mean([np.zeros((2, 5)), np.zeros((3, 5))])
    with pytest.raises(UserError, match="NaN"):
        mean([np.array([0.0, np.nan])])
    with pytest.raises(UserError, match="at least one"):
        mean({})
    for wrong in (["a", "b"], [[1, 0], [1]], [1j]):
        with pytest.raises(UserError, match="per-example values are real numbers"):
            mean([wrong])


def test_ratio_of_costs():
    rng = np.random.default_rng(4)
    slow, fast = 3 + 0.1 * rng.random(40), 2 + 0.1 * rng.random(25)
    e = ratio([slow], [fast])
    assert e.value == pytest.approx(slow.mean() / fast.mean())
    assert e.low < e.value < e.high and e.half_width < 0.02
    with pytest.raises(UserError, match="above zero"):
        ratio([slow], [np.zeros(3)])
    with pytest.raises(UserError, match="numerator of zero or more"):
        ratio([-slow], [fast])


def test_deterministic_and_global_generators_untouched():
    values = [np.random.default_rng(5).random((3, 80)), np.random.default_rng(6).random((3, 2000))]
    before = np.random.get_state()[1].copy()
    assert mean(values) == mean(values)
    assert (np.random.get_state()[1] == before).all()


def test_order_of_a_mapping_does_not_matter():
    rng = np.random.default_rng(8)
    a, b = rng.random((2, 40)), rng.random((2, 70))
    assert mean({"a": a, "b": b}) == mean({"b": b, "a": a})


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
        mean(sets)
        best = min(best, time.process_time() - start)
    assert best < 0.05


def test_the_detectable_difference_is_seen_in_four_runs_of_five():
    rng, runs = np.random.default_rng(0), 2000
    one = paired_difference([rng.normal(size=100)], [np.zeros(100)])
    assert one.detectable == pytest.approx(0.28, rel=0.25)  # (1.96 + 0.84) / 10
    true = 0.28
    seen = sum(mean([rng.normal(true, 1, 100)]).low > 0 for _ in range(runs))
    assert seen / runs == pytest.approx(0.8, abs=0.03)


def test_the_interval_of_a_share_stays_within_its_range_and_other_values_are_no_rates():
    """Ten looks at each of few pictures: Student's interval alone would end above 1."""
    shares = np.array([1.0] * 7 + [0.7])
    assert mean([shares]).high > 1
    bounded = mean([shares], share=True)
    assert bounded.high == 1 and bounded.low == mean([shares]).low and bounded.at(5.0)[1] == 1
    far = paired_difference([shares], [1 - shares], share=True)
    assert far.high == 1 < paired_difference([shares], [1 - shares]).high
    assert unpaired_difference([shares], [1 - shares[:7]], share=True).high == 1
    similar = np.ones(24)  # an index of similarity of a picture with itself
    assert mean([similar], share=False).low == 1 > mean([similar]).low
    coin = np.array([0.0, 1.0] * 6)
    assert mean([coin], share=True) == mean([coin])
    assert mean([coin], share=False) != mean([coin])
