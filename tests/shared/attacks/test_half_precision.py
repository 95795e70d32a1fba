"""The defect of released code (pmg_aft.md §5.1): a mean loss under unscaled fp16 autocast blinds the attack.

The larger the batch, the blinder.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat, ascend, input_gradient, pgd
from shared.attacks.losses import cross_entropy
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding


class Cosine(nn.Module):
    """A head of cosines at scale 1, as after the double normalisation of the released code."""

    def __init__(self, classes: int = 100, width: int = 64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, width), nn.GELU(), nn.Linear(width, width))
            with torch.no_grad():
                self.body[1].weight.mul_(1e-3)  # gradients per pixel as small as those of a 224-pixel image
            self.text = nn.Parameter(F.normalize(torch.randn(classes, width), dim=1))

    def forward(self, x):
        return F.normalize(self.body(x), dim=1) @ self.text.T


@pytest.fixture(scope="module")
def setting():
    generator = torch.Generator().manual_seed(1)
    return Cosine(), torch.rand(512, 3, 16, 16, generator=generator), torch.randint(100, (512,), generator=generator)


def gradient(setting, n, **knobs):
    victim, x, y = setting
    return input_gradient(lambda p: cross_entropy(victim(p), y[:n]), x[:n], **knobs)[1]


def test_the_mean_under_fp16_goes_blind_as_the_batch_grows(setting):
    blind = [
        (gradient(setting, n, reduction="mean", autocast="fp16")[:8] == 0).float().mean().item() for n in (8, 64, 512)
    ]
    assert blind[0] < blind[1] < blind[2] and blind[2] > 0.3, blind


def test_the_signs_turn_with_it(setting):
    honest = gradient(setting, 512)
    agree = {
        n: (gradient(setting, n, reduction="mean", autocast="fp16")[:8].sign() == honest[:8].sign())
        .float()
        .mean()
        .item()
        for n in (8, 512)
    }
    assert agree[512] < agree[8] - 0.2, agree


@pytest.mark.parametrize("knobs", [{}, {"reduction": "mean"}, {"autocast": "fp16"}, {"autocast": "bf16"}], ids=str)
def test_either_half_of_the_defect_alone_is_harmless(setting, knobs):
    assert (gradient(setting, 512, **knobs) == 0).float().mean() < 0.01


def test_the_summed_fp32_gradient_of_a_sample_ignores_its_batch(setting):
    assert_within_rounding(gradient(setting, 512)[:8], gradient(setting, 8), terms=3 * 16 * 16)


def test_attacks_pass_the_knobs_on(setting):
    victim, x, y = setting
    rng = SampleRng(0, range(512))
    knobs = {"steps": 1, "step_size": 0.01, "rng": rng, "reduction": "mean", "autocast": "fp16"}
    start = Threat("linf", 0.02).random_start(x, rng)
    moved = ascend(lambda p: cross_entropy(victim(p), y), x, Threat("linf", 0.02), **knobs)
    assert (moved == start).float().mean() > 0.3
    start = Threat("linf", 0.02).random_start(x, rng.child("restart0"))
    assert (pgd(victim, x, y, Threat("linf", 0.02), keep="last", **knobs) == start).float().mean() > 0.3


def test_rounding_does_what_autocast_does(setting):
    """On a CPU fp16 is emulated; real autocast (slow there) is the reference: as many zeros, the same signs where both are non-zero."""
    victim, x, y = setting
    real = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        losses = cross_entropy(victim(real), y)
    real = torch.autograd.grad(losses.float().mean(), real)[0]
    ours = gradient(setting, 512, reduction="mean", autocast="fp16")
    assert abs((real == 0).float().mean() - (ours == 0).float().mean()) < 0.05
    both = (real != 0) & (ours != 0)
    assert both.float().mean() > 0.1
    assert (real.sign() == ours.sign())[both].float().mean() > 0.95
