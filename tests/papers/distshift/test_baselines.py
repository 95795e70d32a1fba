"""GDMP against a literal transcription of its loop, with the tables and the arithmetic of its own definition."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from papers.distshift.baselines import GDMP, Pull, ssim
from papers.distshift.method import Calls
from shared.diffusion import GaussianDenoiser, Purifier, Sampler, open_denoiser
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding
from tests.papers.distshift.guided import BAR, INDICES, SCHEDULE, SIZE, N, pictures, streams

MEAN, STD = 0.1, 0.6


def make(pull=None, t=36, sampler=None, denoiser=None, **more):
    sampler = sampler or Sampler("ddpm", 36, variance="large", clip=False)
    return GDMP(Purifier(denoiser or GaussianDenoiser(MEAN, STD, SCHEDULE, size=SIZE), t, sampler), pull, **more)


def literally(x_adv, index, seed, rounds, t_star, guide_scale, eps, denoiser, large, times, batch_target):
    """One image: noise, then for every step the ddpm mean, plus variance · scale · gradient of minus the mean square, plus noise."""
    x_adv = 2 * x_adv[None] - 1
    x = x_adv
    for r in range(rounds):
        stream = "" if r == 0 else f"/round{r}"
        draw = SampleRng(seed, [index], stream)
        x = math.sqrt(BAR[t_star]) * x + math.sqrt(1 - BAR[t_star]) * draw.child("noise").normal(x.shape[1:]).double()
        for k, (t, s) in enumerate(pairwise(times)):
            beta = 1 - BAR[t] / BAR[s]
            eps_hat = denoiser(x, torch.tensor([t])).eps
            x0 = (x - math.sqrt(1 - BAR[t]) * eps_hat) / math.sqrt(BAR[t])
            mean = (
                math.sqrt(BAR[s]) * beta / (1 - BAR[t]) * x0
                + math.sqrt(BAR[t] / BAR[s]) * (1 - BAR[s]) / (1 - BAR[t]) * x
            )
            variance = beta if large else beta * (1 - BAR[s]) / (1 - BAR[t])
            target = x_adv
            if batch_target == "diffused":
                fresh = draw.child(f"target{t}").normal(x.shape[1:]).double()
                target = math.sqrt(BAR[t]) * x_adv + math.sqrt(1 - BAR[t]) * fresh
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(-F.mse_loss(leaf, target), leaf)
            scale = math.sqrt(1 - BAR[t]) / (eps * 2 / 3 / guide_scale * math.sqrt(BAR[t]))
            x = mean + variance * scale * gradient
            if s:
                x = x + math.sqrt(variance) * draw.child("reverse").child(f"step{k}").normal(x.shape[1:]).double()
    return ((x + 1) / 2).clamp(0, 1)[0].detach()


@pytest.mark.parametrize(
    "t, steps, variance, rounds, target, network",
    [
        (36, 36, "large", 2, "diffused", False),
        (90, 5, "large", 1, "x_adv", True),
        (90, 5, "small", 2, "diffused", False),
    ],
)
def test_it_is_the_literal_loop(t, steps, variance, rounds, target, network):
    denoiser = open_denoiser("random:tiny").double() if network else GaussianDenoiser(MEAN, STD, SCHEDULE, size=SIZE)
    pull = Pull(target=target, scale=6e3)
    defence, x = (
        make(pull, t, Sampler("ddpm", steps, variance=variance, clip=False), denoiser, rounds=rounds),
        pictures(),
    )
    times = [round(t * (steps - k) / steps) for k in range(steps + 1)]
    with torch.no_grad():
        out = defence(x, streams())
    bare = make(Pull(scale=0.0), t, defence.purifier.sampler, denoiser, rounds=rounds)(x, streams())
    for i in range(N):
        expected = literally(
            x[i], INDICES[i], 11, rounds, t, 6e3, 8 / 255, denoiser, variance == "large", times, target
        )
        torch.testing.assert_close(out[i], expected, rtol=0, atol=1e-9)
    assert (out - bare).abs().max() > 0.01


def test_the_published_scale_over_a_batch_is_that_over_an_image_divided_by_the_batch():
    """mse_loss of a whole batch has the gradient of one image's divided by the images: 60,000 at a batch of 100 is 600."""
    x, target = torch.randn(2, 100, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    (batch,) = torch.autograd.grad(-F.mse_loss(x, target), x)
    (each,) = torch.autograd.grad(-(x - target).square().flatten(1).mean(1).sum(), x)
    torch.testing.assert_close(60_000 * batch, 600 * each)
    assert Pull().scale == 600 and Pull().eps == 8 / 255
    strength = make().strength(36)
    assert strength == pytest.approx(math.sqrt(1 - BAR[36]) / (2 * 8 / 255 / 3 / 600 * math.sqrt(BAR[36])), rel=1e-12)


def test_ssim_is_that_of_scikit_image_away_from_the_edges():
    from skimage.metrics import structural_similarity

    x, y = torch.rand(2, 2, 3, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 0.7 * x + 0.3 * y
    inner = slice(5, -5)
    for a, b in zip(x, y, strict=True):
        how = {
            "channel_axis": 0,
            "data_range": 1.0,
            "gaussian_weights": True,
            "sigma": 1.5,
            "use_sample_covariance": False,
            "full": True,
        }
        expected = structural_similarity(a.numpy(), b.numpy(), **how)[1][:, inner, inner].mean()
        line = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / 4.5)
        window = torch.outer(line, line) / line.sum() ** 2
        value = 0.0
        for c in range(3):
            p, q = (z[c].unfold(0, 11, 1).unfold(1, 11, 1) for z in (a, b))
            mp, mq = ((window * z).sum((-1, -2)) for z in (p, q))
            pp, qq, pq = ((window * z).sum((-1, -2)) for z in (p * p, q * q, p * q))
            lower = (mp**2 + mq**2 + 1e-4) * (pp - mp**2 + qq - mq**2 + 9e-4)
            value += ((2 * mp * mq + 1e-4) * (2 * (pq - mp * mq) + 9e-4) / lower).mean().item() / 3
        assert value == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    z = x[:1, :, :6, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ssim(v, y[:1, :, :6, :6]), z)


@pytest.mark.parametrize("loss", ["MSE", "SSIM"])
@pytest.mark.parametrize("target", ["diffused", "x_adv"])
def test_the_whole_gradient_is_that_of_differences(loss, target):
    x, rng = pictures(2), streams(2)
    defence = make(
        Pull(loss, target, scale=3e3 if loss == "MSE" else 20.0),
        60,
        Sampler("ddpm", 3, variance="large", clip=False),
        rounds=2,
    )
    c, direction = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    h = 1e-7  # the third derivative of SSIM is large
    with torch.no_grad():
        expected = sum((c * (sign * defence(x + sign * h * direction, rng))).sum() for sign in (1, -1)) / (2 * h)
    z = x.clone().requires_grad_()
    exact, hidden = (
        torch.autograd.grad((c * which(z, rng)).sum(), z)[0] for which in (defence, defence.with_(second_order=False))
    )
    torch.testing.assert_close((exact * direction).sum(), expected, rtol=1e-5, atol=1e-6)
    assert (hidden - exact).norm() > 0.01 * exact.norm()


def test_interface():
    x, rng = pictures(size=10, dtype=torch.float32), streams()
    defence = make(Pull(scale=6e3), 60, Sampler("ddim", 4, eta=1.0), rounds=2)
    out = defence(x, rng)
    assert (
        out.shape == x.shape
        and out.min() >= 0
        and out.max() <= 1
        and defence.random
        and defence.calls == Calls(8, 0, 0)
    )
    rows = torch.tensor([2, 0])
    assert_within_rounding(
        defence(x[rows], rng.subset(rows)), out[rows], terms=8 * 3 * SIZE**2
    )  # two rounds of four steps
    plain = make(Pull(scale=0), 60, Sampler("ddim", 4), rounds=1)
    assert torch.equal(plain(x, rng), plain.purifier(x, rng)) and make().rounds == 4
    for given in ({"loss": "L1"}, {"target": "x"}):
        with pytest.raises(UserError, match=r"^Pull\.(loss is 'L1': use 'MSE' or 'SSIM'|target is 'x': use)"):
            Pull(**given)
    for given in ({"scale": -1.0}, {"scale": float("nan")}, {"eps": 0.0}, {"eps": 8.0}):
        with pytest.raises(UserError, match=r"^Pull\.(scale is .* 0 or more|eps is .* above 0 and at most 1)"):
            Pull(**given)
    with pytest.raises(UserError, match="this one is learned"):
        make(sampler=Sampler("ddpm", 3), denoiser=open_denoiser("random:tiny-learned-variance"))
