"""The checks of costly attacks, on a model that is right where a picture's mean is above 0.3."""

import pytest
import torch

from shared.attacks import Threat
from shared.attacks.sanity_balls import check_balls

X = torch.full((8, 3, 2, 2), 0.5)
BALL = Threat("linf", 0.1)


def right(x: torch.Tensor) -> torch.Tensor:
    return (x.flatten(1).mean(dim=1) > 0.3)[:, None]


@pytest.mark.parametrize(
    ("attack", "failed"),
    [
        (lambda ball: (X - ball.eps).clamp(0, 1), []),
        (lambda ball: X - 1.5 * min(ball.eps, 0.3), ["in_ball"]),
        (lambda ball: X - ball.eps if ball.eps == BALL.eps else X, ["unbounded"]),
    ],
)
def test_each_check_finds_its_fault(attack, failed):
    report = check_balls(attack, right, X, BALL, 2 if failed != ["unbounded"] else 10)
    assert [name for name, entry in report.items() if name != "passed" and not entry["passed"]] == failed
    assert report["passed"] == (not failed)


def test_an_attack_that_is_weaker_in_a_larger_ball_is_found():
    found = {0.25: X - 0.21, 0.5: X, 1.0: X * 0}
    report = check_balls(lambda ball: found[ball.eps], right, X, Threat("linf", 0.25), 2)
    assert not report["larger_eps"]["passed"] and report["larger_eps"]["value"] == 1.0 and report["unbounded"]["passed"]
