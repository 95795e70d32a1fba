"""No number is planned or dropped by accident: plan.txt names what each paper measures."""

import pytest

from tests.golden import plan


@pytest.mark.parametrize("paper", plan.PAPERS)
def test_the_plans_are_the_golden_ones(paper):
    kept = {title: lines for title, lines in plan.golden().items() if title.split()[0] == paper}
    assert plan.listing(paper) == kept, (
        f"see `python -m tests.golden.plan {paper} --diff`; where it is meant: --write, and say why in the commit"
    )


def test_every_difference_is_named():
    before = {
        "a": {"kind": "score", "eps": 0.5},
        "b": {"kind": "score", "eps": 1},
        "c": {"kind": "cost"},
        "d": {"kind": "d"},
    }
    after = {
        "a": {"kind": "score", "eps": 0.25},
        "b2": {"kind": "score", "eps": 1.0},
        "d": {"kind": "d"},
        "e": {"kind": "cost", "n": 1},
    }
    assert [line.split()[:2] for line in plan.differences(before, after)] == [
        ["renamed", "b"],
        ["vanished", "c"],
        ["new", "e"],
        ["tags", "a"],
    ]
    assert not plan.differences(before, dict(reversed(before.items())))
    assert plan.summary({"a": {**before["a"], "method": "m"}}) != plan.summary({"a": {**after["a"], "method": "m"}})
