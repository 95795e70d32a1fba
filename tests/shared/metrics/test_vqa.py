"""VQA accuracy by hand, and the rules by which answers are compared."""

import itertools

import numpy as np
import pytest

from shared.errors import UserError
from shared.metrics.vqa import first_answer, normalise, vqa_accuracy


@pytest.mark.parametrize("agree, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_by_hand(agree, expected):
    """2 of 10: the two sets that leave one of them out give 1/3, the other eight 2/3: (2/3 + 16/3)/10 = 0.6."""
    people = ["red"] * agree + [f"other {k}" for k in range(10 - agree)]
    assert vqa_accuracy(["red"], [people])[0] == pytest.approx(expected)


def test_the_closed_form_is_the_mean_over_the_ten_subsets():
    for m in range(11):
        people = ["yes"] * m + ["no"] * (10 - m)
        subsets = itertools.combinations(people, 9)
        assert vqa_accuracy(["yes"], [people])[0] == pytest.approx(np.mean([min(s.count("yes") / 3, 1) for s in subsets]))


def test_answers_are_normalised_on_both_sides():
    assert vqa_accuracy(["The Two."], [["2"] * 10]).tolist() == [1.0]
    assert vqa_accuracy(["no", "Yes"], [["yes"] * 10] * 2).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "given, compared",
    [
        ("A red bus", "red bus"),
        ("the  THE an", ""),
        ("three dogs", "3 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("what's that", "what's that"),
        ("were", "were"),
        ("blue/green", "blue green"),  # the sign stands between letters: a space
        ("blue / green", "blue green"),  # beside a space: removed
        ("t-shirt - red", "tshirt red"),  # … everywhere in the answer
        ("1,000", "1000"),
        ("5.5 ft.", "5.5 ft"),
        ("u.s.", "us"),
        ("line\nbreak\t", "line break"),
        ("yes!", "yes"),  # becomes a space at the end
    ],
)
def test_rules(given, compared):
    assert normalise(given) == compared
    assert normalise(normalise(given)) == normalise(given)


@pytest.mark.parametrize(
    "text, short", [(" yes, it is", "yes"), ("red Question: what", "red"), ("blue\nShort answer: blue", "blue"), ("two", "two")]
)
def test_first_answer(text, short):
    assert first_answer(text) == short


def test_mistakes_are_named():
    with pytest.raises(UserError, match="1 predictions cannot be scored against 2"):
        vqa_accuracy(["a"], [["a"] * 10] * 2)
    with pytest.raises(UserError, match="at least 4 people"):
        vqa_accuracy(["a"], [["a"] * 3])
    assert vqa_accuracy([], []).shape == (0,)
