import itertools

import pytest
import torch

from shared.attacks import Threat, apgd_ce, autoattack, cascade
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

PIXELS = 3 * 12 * 12  # terms of the longest sum: a norm of a picture, a logit


def test_each_stage_attacks_the_survivors_only(net, images, accuracy, counted):
    x, y = images[0][:100], images[1][:100]
    rng, threat = SampleRng(0, range(100)), Threat("linf", 10 / 255)
    result = cascade(net, x, y, threat, rng=rng, steps=10, queries=20)
    shares = result.accuracy()
    assert list(shares) == ["clean", "apgd-ce", "apgd-t", "square"]
    masks = list(result.correct.values())
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(masks))
    assert 100 * shares["clean"] == pytest.approx(accuracy(net, x, y))
    assert 100 * shares["square"] == pytest.approx(accuracy(net, result.x_adv, y))
    assert shares["apgd-t"] < shares["apgd-ce"] < shares["clean"]
    assert torch.equal(autoattack(net, x, y, threat, rng=rng, steps=10, queries=20), result.x_adv)

    # a sample that the first stage broke comes back as the first stage left it
    broken = masks[0] & ~masks[1]
    first = apgd_ce(net, x[masks[0]], y[masks[0]], threat, rng=rng.subset(masks[0]).child("apgd-ce"), steps=10)
    assert_within_rounding(result.x_adv[broken], first[broken[masks[0]]], terms=PIXELS)


@pytest.mark.parametrize("broken", ["always", "where it is attacked"])
def test_a_victim_whose_outputs_are_no_numbers_is_not_robust(net, images, broken):
    x, y = images[0][:10], images[1][:10]

    def victim(seen: torch.Tensor) -> torch.Tensor:
        logits = net(seen)
        return logits if broken != "always" and torch.equal(seen, x) else logits * float("nan")

    wrapped = torch.nn.Module()
    wrapped.forward = victim
    with pytest.raises(UserError, match=r"outputs are not finite for (\d+) of \1 pictures"):
        cascade(wrapped, x, y, Threat("linf", 10 / 255), rng=SampleRng(0, range(10)), steps=2, queries=2)


def test_small_batches_give_the_same_outcomes(exact, images):
    x, y = images[0][:40], images[1][:40]
    settings = {"rng": SampleRng(0, range(40)), "steps": 6, "targets": 3, "queries": 10}
    whole = cascade(exact, x, y, Threat("linf", 10 / 255), **settings)
    parts = cascade(exact, x, y, Threat("linf", 10 / 255), batch_size=9, **settings)
    assert all(torch.equal(whole.correct[stage], parts.correct[stage]) for stage in whole.correct)
    assert_within_rounding(whole.x_adv, parts.x_adv, terms=PIXELS)


@pytest.mark.parametrize("classes", range(2, 10))
def test_heads_of_every_size(make_net, make_set, classes):
    net = make_net(classes, steps=20, eps=0)
    x, y = make_set(12, classes, seed=3)
    shares = cascade(net, x, y, Threat("linf", 0.2), rng=SampleRng(0, range(12)), steps=6, queries=10).accuracy()
    assert shares["square"] < shares["clean"]


def test_nothing_left_to_attack(net, images):
    x = images[0][:10]
    y = (net(x).argmax(dim=1) + 1) % 10
    result = cascade(net, x, y, Threat("linf", 0.1), rng=SampleRng(0, range(10)))
    assert torch.equal(result.x_adv, x) and set(result.accuracy().values()) == {0.0}


@pytest.mark.parametrize("stages", [(), ("apgd-ce", "fab")])
def test_unknown_stages_are_named(net, images, stages):
    with pytest.raises(UserError, match=r"'fab'|no stages"):
        autoattack(net, images[0][:2], images[1][:2], Threat("linf", 0.1), rng=SampleRng(0, range(2)), stages=stages)
