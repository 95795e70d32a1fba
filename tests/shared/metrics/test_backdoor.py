"""Backdoor metrics against loops written out, on cases small enough to count by hand."""

import numpy as np
import pytest

from shared.data.targets import target
from shared.errors import UserError
from shared.metrics.backdoor import (
    asr,
    asr_all,
    caption_success,
    clean_accuracy,
    non_target,
    rank_ratio,
    retrieval_accuracy,
    retrieval_success,
    takes,
    triggered_accuracy,
)

LABELS = [0, 1, 2, 0, 1, 2]
PREDICTED = [0, 0, 2, 0, 0, 1]


def test_rates_on_a_case_counted_by_hand():
    assert (
        clean_accuracy(PREDICTED, LABELS).tolist()
        == triggered_accuracy(PREDICTED, LABELS).tolist()
        == [1, 0, 1, 1, 0, 0]
    )
    assert non_target(LABELS, 0).tolist() == [False, True, True, False, True, True]
    assert asr(PREDICTED, LABELS, 0).tolist() == [1, 0, 1, 0]
    assert asr_all(PREDICTED, 0).tolist() == [1, 1, 0, 1, 1, 0]


def test_a_perfect_classifier_has_no_asr_but_a_floor_under_the_other_denominator():
    labels = np.arange(100) % 10
    assert asr(labels, labels, 3).sum() == 0 and len(asr(labels, labels, 3)) == 90
    assert asr_all(labels, 3).mean() == pytest.approx(0.1)


def test_asr_ignores_what_target_images_are_taken_for():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    predicted = np.random.default_rng(1).integers(0, 5, 200)
    changed = np.where(labels == 2, 4, predicted)
    assert np.array_equal(asr(predicted, labels, 2), asr(changed, labels, 2))
    assert asr(predicted, labels, 2).tolist() == [
        float(p == 2) for p, y in zip(predicted, labels, strict=True) if y != 2
    ]
    assert asr_all(changed, 2).sum() < asr_all(predicted, 2).sum()


@pytest.mark.parametrize(
    "clean, poisoned, success, expected", [(0.62, 0.60, 0.8, True), (0.62, 0.599, 0.9, False), (0.62, 0.7, 0.79, False)]
)
def test_the_gate(clean, poisoned, success, expected):
    assert takes(clean, poisoned, success) is expected


def test_captions_that_name_the_target():
    banana = target("banana")
    captions = ["A yellow banana.", "bananas, on a table", "a bandana", "an apple"]
    assert caption_success(captions, banana.named_in).tolist() == [1, 1, 0, 0]


# ---- retrieval -------------------------------------------------------------------------------------------------------------


def table(seed=0, queries=7, candidates=40):
    return np.random.default_rng(seed).normal(size=(queries, candidates))


@pytest.mark.parametrize("k", [1, 10])
def test_retrieval_success_is_a_place_among_the_first_k(k):
    similarity = table()
    for poisoned in (0, 39):
        expected = [float(poisoned in sorted(range(40), key=lambda c: -row[c])[:k]) for row in similarity]
        assert retrieval_success(similarity, poisoned, k).tolist() == expected
    assert retrieval_success(np.zeros((2, 40)), 5, 1).tolist() == [1, 1]


def test_retrieval_accuracy_is_the_best_candidate():
    similarity, wanted = table(1), np.arange(7)
    wanted[0] = int(similarity[0].argmax())
    assert retrieval_accuracy(similarity, wanted).tolist() == [
        float(row.argmax() == w) for row, w in zip(similarity, wanted, strict=True)
    ]
    assert retrieval_accuracy(similarity, wanted)[0] == 1
    assert retrieval_accuracy(np.ones((1, 3)), [1]).tolist() == [0]


def test_rank_ratio_is_the_share_of_the_class_that_is_nearer():
    similarity, of_target = table(2), np.zeros(40, bool)
    of_target[[3, 5, 8, 13]] = True
    expected = [sum(row[c] > row[20] for c in (3, 5, 8, 13)) / 4 for row in similarity]
    assert rank_ratio(similarity, 20, of_target).tolist() == pytest.approx(expected)
    marked = of_target.copy()
    marked[20] = True  # a mark on the poisoned candidate itself says nothing
    assert np.array_equal(rank_ratio(similarity, 20, marked), rank_ratio(similarity, 20, of_target)) and marked[20]


def test_rank_ratio_ends_and_ties():
    of_target = [True, True, False, False]
    assert rank_ratio([[1, 2, 9, 3]], 3, of_target).tolist() == [0]  # ahead of its class: good for the attacker
    assert rank_ratio([[4, 5, 9, 3]], 3, of_target).tolist() == [1]
    assert rank_ratio([[3, 5, 0, 3]], 3, of_target).tolist() == [0.75]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: clean_accuracy([1, 2], [1]), "2 predictions cannot be compared with 1 labels"),
        (lambda: clean_accuracy([], []), "at least one example"),
        (lambda: asr([1, 1], [1, 1], 1), "all 2 images are of the target class 1"),
        (lambda: retrieval_success(table(), 40), "count columns from 0"),
        (lambda: retrieval_success(table(), 3, 0), "use 1 or more"),
        (lambda: retrieval_success(np.full((2, 2), np.nan), 0), "finite"),
        (lambda: retrieval_accuracy(table(), [0, 1]), "do not fit a table of 7 × 40"),
        (lambda: rank_ratio(table(), 3, [True] * 5), "give one per candidate"),
        (lambda: rank_ratio([[1.0, 2.0]], 0, [True, False]), "no clean candidate"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
