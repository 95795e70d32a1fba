"""The checks pass on an honest victim under an honest attack, and fail where they must."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat, check_attack, pgd
from shared.attacks.sanity import default_attack
from shared.errors import UserError
from shared.rng import SampleRng

THREAT = Threat("linf", 10 / 255)
RNG = SampleRng(0, range(48))


@pytest.fixture
def batch(images):
    return images[0][:48], images[1][:48]


def failed(report):
    return {name for name, entry in report.items() if name != "passed" and not entry["passed"]}


class Rounded(nn.Module):
    """Logits on a grid: the gradient is zero everywhere."""

    def __init__(self, net, grid=4.0):
        super().__init__()
        self.net, self.grid = net, grid

    def forward(self, x):
        return (self.net(x) * self.grid).round() / self.grid


class Saturated(nn.Module):
    """Logits so large that the softmax rounds to one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) * 1e4


class Shattered(nn.Module):
    """A ripple, too small to change a prediction, whose slope drowns the true gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        phase = 1e4 * x.mean(dim=1).flatten(1)[:, :100]
        return self.net(x + 1e-3 * torch.sin(1e4 * x)) + 1e-2 * torch.sin(phase).view(len(x), 10, 10).sum(dim=2)


@pytest.mark.parametrize("threat", [THREAT, Threat("l2", 0.5)], ids=lambda t: t.norm)
def test_an_honest_setting_passes_and_can_be_stored(net, plain_net, batch, threat):
    report = check_attack(net, *batch, threat, rng=RNG, surrogate=plain_net, queries=30)
    assert report["passed"], failed(report)
    assert len(report) == 11 and json.loads(json.dumps(report, allow_nan=False)) == report
    assert all(
        set(entry) == {"passed", "value", "threshold", "detail"} for name, entry in report.items() if name != "passed"
    )


@pytest.mark.parametrize(
    "mask, must_fail",
    [
        (Rounded, {"zero_samples", "zero_pixels", "transfer", "black_box"}),
        (Saturated, {"zero_samples", "zero_pixels", "transfer", "black_box"}),
        (Shattered, {"transfer", "black_box"}),
    ],
)
def test_masked_gradients_are_caught(net, batch, mask, must_fail):
    report = check_attack(mask(net), *batch, THREAT, rng=RNG, surrogate=net, queries=100)
    assert not report["passed"] and must_fail <= failed(report), failed(report)


def with_step(size, **settings):
    def attack(victim, x, y, threat, *, steps, rng):
        return pgd(victim, x, y, threat, steps=steps, step_size=size * threat.eps, rng=rng, **settings)

    return attack


def outside(victim, x, y, threat, *, steps, rng):
    return default_attack(victim, x, y, Threat("linf", min(1.5 * threat.eps, 1.0)), steps=steps, rng=rng)


def by_batch(victim, x, y, threat, *, steps, rng):
    """An attack that shares one step between the samples of a batch."""
    return pgd(victim, x, y, threat, steps=steps, step_size=3 * threat.eps / len(x) / steps, random_start=False)


@pytest.mark.parametrize(
    "attack, must_fail",
    [
        (with_step(0.01, random_start=False), {"iterative", "more_steps"}),  # does not get far
        (with_step(0.003, random_start=False), {"iterative", "unbounded"}),  # does not get anywhere
        (outside, {"in_ball"}),
        (by_batch, {"batch_size"}),
        (
            with_step(0.3, drop=False, loss=lambda z, y: -F.cross_entropy(z, y, reduction="none")),
            {"iterative"},
        ),  # runs downhill
    ],
    ids=["timid", "lame", "outside", "by_batch", "downhill"],
)
def test_crippled_attacks_are_caught(net, batch, attack, must_fail):
    report = check_attack(net, *batch, THREAT, attack, rng=RNG)
    assert not report["passed"] and must_fail <= failed(report), failed(report)


def test_fp16_with_a_mean_shows_in_the_zeros(images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = nn.Sequential(nn.Flatten(), nn.Linear(432, 32), nn.GELU(), nn.Linear(32, 10))
    with torch.no_grad():
        victim[1].weight.mul_(1e-4)
    x, y = images
    knobs = {"rng": SampleRng(0, range(200)), "images": 200, "steps": 2}
    assert check_attack(victim, x, y, THREAT, **knobs)["zero_pixels"]["passed"]
    blind = check_attack(victim, x, y, THREAT, reduction="mean", autocast="fp16", **knobs)["zero_pixels"]
    assert not blind["passed"] and blind["value"] > 0.1


def test_no_images_and_no_eps_are_refused(net, batch):
    x, y = batch
    with pytest.raises(UserError, match="at least one image"):
        check_attack(net, x[:0], y[:0], THREAT, rng=SampleRng(0, []))
    with pytest.raises(UserError, match="eps above 0"):
        check_attack(net, x, y, Threat("linf", 0.0), rng=RNG)
