"""The guided purifier: each term against its written definition, scales and means in closed form, the second-order gradient, and its edges."""

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from papers.distshift.method import RELEASED, Calls, Distshift, Guidance, log_prob, mean_factor, unit_vectors
from shared.diffusion import Denoiser, GaussianDenoiser, Purifier, Sampler, open_denoiser
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding
from tests.papers.distshift.guided import (
    BAR,
    SCHEDULE,
    SIZE,
    N,
    Smooth,
    alphas,
    of_the_release,
    pictures,
    streams,
    written,
)

MEAN, STD = 0.1, 0.6
CASES = [
    Guidance("G1", "x_adv"),
    Guidance("G1", "running"),
    Guidance("G1", "moving", rescale="x_t/alpha"),
    Guidance("G1", "running", clamp=True),
    Guidance("G1", "x_adv", "x0_hat", unit="score"),
    Guidance("G2", rescale="x_t/alpha", unit="score"),
    Guidance("G2", domain="x0_hat", unit="mean"),
    Guidance("G3", "running", "x0_hat"),
    Guidance("G3", "x_adv", "x0_hat", clamp=True, unit="mean"),
    Guidance("G4"),
    Guidance("G4", output="features", rescale="x_t/alpha", unit="score"),
    Guidance("G4", domain="x0_hat", output="features", unit="mean"),
    RELEASED,
    Guidance("G5", weights=(0.3, 1.0, 0.7)),
]


def name(g):
    return (
        "-".join(
            str(v) for v in (g.kind, g.label, g.domain, g.rescale, g.unit, g.output) if v not in ("none", "logits")
        )
        + "-clamp" * g.clamp
    )


def make(guidance=None, t=300, sampler=None, denoiser=None, victim=None, recompute=True, **more):
    denoiser = denoiser or GaussianDenoiser(MEAN, STD, SCHEDULE, size=SIZE)
    return Distshift(
        Purifier(denoiser, t, sampler or Sampler("ddim", 3, clip=False), recompute),
        victim or Smooth(),
        guidance,
        **more,
    )


@pytest.fixture(scope="module")
def unet():
    return open_denoiser("random:tiny").double()


# ---- terms -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guidance, large", [(g, False) for g in CASES] + [(g, True) for g in CASES if g.unit == "mean"]
)
def test_a_term_is_its_written_definition(guidance, large, unet):
    """At every step of a chain, sample by sample; δ is zero only in the first step of G4, where x_t is the reference."""
    guidance = replace(guidance, scale=0.7)
    sampler = Sampler("ddim", 3, variance="large" if large else "auto", clip=False)
    denoiser = (
        unet if guidance.kind == "G3" and not guidance.clamp else GaussianDenoiser(MEAN, STD, SCHEDULE, size=SIZE)
    )
    defence, x, rng = make(guidance, sampler=sampler, denoiser=denoiser), pictures(), streams()
    x_0, noise = 2 * x - 1, rng.child("noise").normal((3, SIZE, SIZE)).double()
    delta = defence.guide(x, x_0, rng, exact=False)
    for t, s in ((300, 200), (200, 100), (100, 0)):
        for moved in (0.0, 0.3):
            state = (
                alphas(t)[0] * x_0
                + alphas(t)[1] * noise
                + moved * rng.child(f"moved{t}").normal((3, SIZE, SIZE)).double()
            )
            state.requires_grad_()
            times = torch.full((N,), t)
            eps = denoiser(state, times).eps
            found = delta(state, times, (state - alphas(t)[1] * eps) / alphas(t)[0], eps)
            assert not found.requires_grad
            for i in range(N):
                if guidance.kind == "G4" and not moved:
                    assert found[i].abs().max() < 1e-9
                    continue
                expected, g = written(
                    guidance, defence.victim, denoiser, state[i : i + 1], t, s, x[i : i + 1], noise[i : i + 1], large
                )
                assert g.norm() > 0
                torch.testing.assert_close(found[i : i + 1].detach(), expected, rtol=1e-7, atol=1e-12)


def test_the_gradient_of_each_term_is_that_of_differences():
    """The written definition itself, against values only: log p and the distance, at one point."""
    defence, x = make(Guidance("G1", "moving", unit="score", scale=1.0)), pictures(1)
    x_t = (2 * x - 1).requires_grad_()
    t, sigma = torch.tensor([100]), alphas(100)[1]
    delta = defence.guide(x, 2 * x - 1, streams(1), exact=False)(x_t, t, x_t, x_t)
    direction, h = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1e-5
    up, down = (defence.victim((x_t.detach() + sign * h * direction + 1) / 2).log_softmax(1).max() for sign in (1, -1))
    assert -(delta * direction).sum().item() / sigma == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-7)


def test_kinds_that_are_the_same_by_definition():
    x, rng = pictures(), streams()

    def out(*given, **more):
        return make(Guidance(*given, scale=0.5, **more))(x, rng)

    assert torch.equal(out("G2"), out("G1", "moving")) and torch.equal(out("G2"), out("G2", "x_adv"))
    assert torch.equal(out("G3", "x_adv", "x0_hat"), out("G1", "x_adv", "x0_hat"))
    assert torch.equal(out("G1", "running", "x0_hat"), out("G1", "moving", "x0_hat"))  # `in` is x̂₀ itself


def test_label_sources_differ_and_the_attackers_class_is_what_x_adv_guides_to():
    """A victim that sees class 1 in the picture that came in, and class 0 wherever the denoiser has been: the trap of G1."""

    class Fooled(nn.Module):
        def forward(self, x):
            bright, stripes = x.mean(dim=(1, 2, 3)), (x[..., ::2] - x[..., 1::2]).mean(dim=(1, 2, 3))
            return torch.stack([10 * bright, 100 * stripes + 2], dim=1)

    x = torch.full((N, 3, SIZE, SIZE), 0.55, dtype=torch.float64)
    x[..., ::2] += 0.04
    x[..., 1::2] -= 0.04
    victim = Fooled()
    sampler = Sampler("ddim", 5, clip=False)
    data = GaussianDenoiser(0.1, 0.05, SCHEDULE, size=SIZE)  # takes the stripes away
    outs = {
        label: make(Guidance("G1", label, scale=0.3), 100, sampler, data, victim)(x, streams())
        for label in ("x_adv", "running", "moving")
    }
    bare = make(None, 100, sampler, data, victim)(x, streams())
    assert (victim(x).argmax(1) == 1).all() and (victim(bare).argmax(1) == 0).all()

    def margin(out):  # of the class of the attacker
        return victim(out)[:, 1] - victim(out)[:, 0]

    assert (margin(outs["x_adv"]) > margin(bare) + 0.1).all() and (margin(outs["running"]) < margin(bare) - 0.1).all()
    assert torch.equal(outs["moving"], outs["x_adv"])  # x_t keeps the stripes, and then the guide does
    x = pictures(8, seed=9)
    rng = SampleRng(0, range(8))
    outs = [make(Guidance("G1", label, scale=0.3))(x, rng) for label in ("x_adv", "running", "moving")]
    assert all((a - b).abs().max() > 0.01 for a, b in ((outs[0], outs[1]), (outs[0], outs[2]), (outs[1], outs[2])))


@pytest.mark.parametrize("last", [False, True])
def test_the_release_adds_the_negative_gradient_to_the_sample_of_the_step(last):
    """p_sample with cond_fn, transcribed for a batch: mean + √V z, then −(c grad3 + a grad1 + grad2) of x_t, with errors that
    are means over the batch; w = 1/N is that. The last step adds it too."""
    guidance, t, s = replace(RELEASED, weights=(0.01, 1.0, 0.5), scale=1 / N), 100, 0 if last else 99
    sampler = Sampler("ddpm", 0, clip=False)
    defence, x, rng = make(guidance, sampler=sampler), pictures(), streams()
    noise = rng.child("noise").normal((3, SIZE, SIZE)).double()
    x_t = alphas(t)[0] * (2 * x - 1) + alphas(t)[1] * noise
    z = None if last else torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = (defence.purifier.denoiser, x_t, torch.full((N,), t), torch.full((N,), s), z)
    guided = sampler._step(*step, defence.guide(x, 2 * x - 1, rng, exact=False))
    x_0 = x_t.detach().requires_grad_()
    summed = of_the_release(guidance, defence.victim, x_0, x, noise)
    (gradient,) = torch.autograd.grad(summed, x_0)
    torch.testing.assert_close(guided, sampler._step(*step, None) - gradient, rtol=1e-9, atol=1e-12)
    assert gradient.flatten(1).abs().amax(1).min() > 1e-4
    assert RELEASED.scale == 1 / 128 and RELEASED.weights == (1 / 100, 1, 0)


@pytest.mark.parametrize("guidance", [RELEASED, replace(RELEASED, scale=1e6), Guidance("G1", scale=3.0)], ids=name)
def test_in_one_step_mode_guidance_has_no_effect_bit_for_bit(guidance):
    """As in the release, where x̂₀ is returned and the guide moves the sample; a chain of one step more shows that it guides."""
    x, rng = pictures(size=10, dtype=torch.float32), streams()
    denoiser, victim = open_denoiser("random:tiny"), Smooth()
    guided, bare = (make(g, 100, Sampler("one_step"), denoiser, victim) for g in (guidance, None))
    assert torch.equal(guided(x, rng), bare(x, rng)) and victim.seen == 0
    assert guided.calls == bare.calls == Calls(1, 0, 0)
    two = [make(g, 100, Sampler("ddpm", 2), denoiser, victim)(x, rng) for g in (guidance, None)]
    assert not torch.equal(*two)


# ---- scales ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("t, s", [(300, 200), (37, 36), (50, 0)])
def test_mean_moves_the_mean_of_a_ddpm_step_by_variance_times_gradient(t, s, variance):
    """condition_mean: μ + w V g, without noise; and condition_score: μ + w (β/√(1 − β)) g, which for V = β is α_s/α_t times as much."""
    sampler, denoiser, w = (
        Sampler("ddpm", 1, variance=variance, clip=False),
        GaussianDenoiser(MEAN, STD, SCHEDULE, size=SIZE),
        0.8,
    )
    x_t = pictures(seed=5)
    g = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times, ends = torch.full((N,), t), torch.full((N,), s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alphas(t), alphas(s)
    beta = 1 - (alpha_t / alpha_s) ** 2
    v = beta if variance == "large" else beta * sigma_s**2 / sigma_t**2

    def step(unit):
        defence = make(Guidance(scale=w, unit=unit), 300, sampler, denoiser)
        guide = None if unit is None else lambda x, t, x0, eps: -w * defence._scaled(g, eps, int(t[0]), s)
        return sampler._step(denoiser, x_t, times, ends, None, guide)

    bare = sampler._step(denoiser, x_t, times, ends, None, None)
    torch.testing.assert_close(step("mean") - bare, w * v * g, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(step("score") - bare, w * beta / (alpha_t / alpha_s) * g, rtol=1e-9, atol=1e-12)
    assert mean_factor(SCHEDULE, t, s, variance == "large") * alpha_s / alpha_t == pytest.approx(
        sigma_t * v / beta, rel=1e-12
    )


def test_score_adds_to_the_score_and_ratio_is_a_ratio_of_norms():
    defence, x, rng = make(Guidance("G2", scale=0.25, unit="ratio")), pictures(), streams()
    x_t = defence.purifier.noise(2 * x - 1, torch.full((N,), 300), rng).requires_grad_()
    eps = defence.purifier.denoiser(x_t, torch.full((N,), 300)).eps
    given = (x_t, torch.full((N,), 300), x_t, eps)
    ratio = defence.guide(x, 2 * x - 1, rng, False)(*given)
    torch.testing.assert_close(
        ratio.flatten(1).norm(dim=1), 0.25 * eps.detach().flatten(1).norm(dim=1), rtol=1e-12, atol=0
    )
    score = defence.with_(guidance=replace(defence.guidance, unit="score")).guide(x, 2 * x - 1, rng, False)(*given)
    (g,) = torch.autograd.grad(defence.victim((x_t + 1) / 2).softmax(1).amax(1).log().sum(), x_t)
    torch.testing.assert_close(-(eps.detach() + score) / alphas(300)[1], -eps.detach() / alphas(300)[1] + 0.25 * g)
    torch.testing.assert_close(unit_vectors(score), unit_vectors(ratio))


# ---- known means -----------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """log p(1 | x) = −a·x − 500 up to e^−500: class 1 is all but impossible, so its log-density is linear."""

    def __init__(self, a):
        super().__init__()
        self.register_buffer("a", a)

    def forward(self, x):
        away = (self.a * x).flatten(1).sum(dim=1) + 500
        return torch.stack([torch.zeros_like(away), -away], dim=1)


def towards_one(guidance, a, t, sampler):
    """A purifier that guides to class 1 whatever the victim says."""
    defence = make(guidance, t, sampler, victim=Linear(a))
    defence._argmax = lambda pictures: torch.ones(len(pictures), dtype=torch.int64)
    return defence


@pytest.mark.parametrize("unit", ["score", "mean"])
@pytest.mark.parametrize("kind, variance", [("ddim", "auto"), ("ddpm", "small"), ("ddpm", "large")])
def test_a_linear_victim_on_x_t_moves_the_mean_by_a_known_amount(kind, variance, unit):
    """g = −a/2 everywhere. By hand: a step maps x to slope·x + shift + push·g, so x_0 is moved by Σ push Π (later slopes) g, noise or not."""
    w, t, steps = 0.6, 300, 4
    a = 0.05 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sampler = Sampler(kind, steps, variance=variance, clip=False)
    x, rng, times = pictures(), streams(), torch.full((N,), t)
    defence = towards_one(Guidance("G1", "x_adv", scale=w, unit=unit), a, t, sampler)
    x_t = defence.purifier.noise(2 * x - 1, times, rng)
    guided, bare = (
        defence.purifier.reverse(x_t, times, rng, guide) for guide in (defence.guide(x, 2 * x - 1, rng, False), None)
    )
    moved = 0.0
    for now, then in pairwise([300, 225, 150, 75, 0]):
        (at, st), (as_, ss) = alphas(now), alphas(then)
        beta = 1 - (at / as_) ** 2
        v = beta if variance == "large" else beta * ss**2 / st**2
        delta = -w * st if unit == "score" else -w * v * at * st / (as_ * beta)
        gain = at * STD**2 / (at**2 * STD**2 + st**2)  # of x̂₀ by x_t
        by_eps = -as_ * st / at + ss if kind == "ddim" else -as_ * beta / (at * st)  # derivative of the step by ε̂
        slope = (
            as_ * gain + ss * (1 - at * gain) / st
            if kind == "ddim"
            else as_ * beta / st**2 * gain + at / as_ * ss**2 / st**2
        )
        moved = slope * moved + by_eps * delta
    torch.testing.assert_close(guided - bare, (moved * -a / 2).expand_as(x), rtol=1e-8, atol=1e-12)
    assert (guided - bare).abs().max() > (1e-3 if unit == "score" else 1e-5)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler("ddim", 6, clip=False),
        Sampler("ddim", 6, eta=1.0, clip=False),
        Sampler("ddpm", 6, clip=False),
        Sampler("dpm++", 6, clip=False),
    ],
    ids=lambda s: f"{s.kind}-{s.eta}",
)
def test_a_linear_victim_on_the_prediction_tilts_the_gaussian(sampler):
    """N(μ, s²) e^{w k x} is N(μ + w k s², s²), and E[e^{w k x_0} | x_t] is linear in x̂₀: G3 on the score is the tilted denoiser, in every step."""
    w, t = 0.7, 300
    a = 0.4 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    defence = towards_one(Guidance("G3", "x_adv", "x0_hat", scale=w, unit="score"), a, t, sampler)
    x_t = 0.2 * torch.randn(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x, rng, times = pictures(), streams(), torch.full((N,), t)
    guided = defence.purifier.reverse(x_t, times, rng, defence.guide(x, 2 * x - 1, rng, False))
    tilted = Purifier(GaussianDenoiser(MEAN - w * a / 2 * STD**2, STD, SCHEDULE, size=SIZE), t, sampler).reverse(
        x_t, times, rng
    )
    close = 1e-5 if sampler.kind == "dpm++" else 1e-9  # diffusers' solver computes in float32
    torch.testing.assert_close(guided, tilted, rtol=close, atol=close)
    assert (guided - defence.purifier.reverse(x_t, times, rng)).abs().max() > 1e-2


def test_many_steps_from_pure_noise_have_the_tilted_mean():
    n, w = 60, 0.8
    a = torch.linspace(-2, 2, 3, dtype=torch.float64).view(3, 1, 1).expand(3, SIZE, SIZE)
    defence = towards_one(
        Guidance("G3", "x_adv", "x0_hat", scale=w, unit="score"), a, 1000, Sampler("ddim", 60, clip=False)
    )
    x_t = torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rng = SampleRng(0, range(n))
    x = torch.full_like(x_t, 0.5)
    out = defence.purifier.reverse(x_t, torch.full((n,), 1000), rng, defence.guide(x, 2 * x - 1, rng, False))
    expected = MEAN - w * a[:, 0, 0] / 2 * STD**2
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), expected, atol=5 * STD / (n * SIZE**2) ** 0.5, rtol=0)


# ---- gradient --------------------------------------------------------------------------------------------------------------


def slope(f, x, direction, h=1e-5):
    return ((f(x + h * direction) - f(x - h * direction)) / (2 * h)).item()


GRADIENTS = [
    (Guidance("G1", "running", scale=0.3), {}),
    (Guidance("G1", "x_adv", rescale="x_t/alpha", scale=1.5, unit="score"), {"rounds": 2}),
    (Guidance("G2", scale=0.3), {"recompute": False}),
    (Guidance("G3", "running", "x0_hat", scale=0.3), {"sampler": Sampler("ddpm", 3, clip=False)}),
    (Guidance("G4", scale=0.2, output="features", unit="score"), {"rounds": 2}),
    (Guidance("G4", domain="x0_hat", scale=0.2), {}),
    (Guidance("G2", scale=4.0, unit="mean"), {"sampler": Sampler("ddpm", 3, variance="large", clip=False)}),
    (Guidance("G1", "moving", scale=0.3), {"sampler": Sampler("ddim", 3, clip=True)}),
    (replace(RELEASED, scale=0.3), {"sampler": Sampler("ddpm", 3, clip=False)}),
    (Guidance("G5", scale=0.2), {"recompute": False}),
]


@pytest.mark.parametrize(
    "guidance, more, network", [(*case, False) for case in GRADIENTS] + [(*GRADIENTS[i], True) for i in (0, 3)]
)
def test_the_whole_gradient_is_that_of_differences_and_needs_the_second_order(guidance, more, network, unet):
    x, rng, t = pictures(2), streams(2), 60
    defence = make(guidance, t, denoiser=unet if network else None, **more)
    generator = torch.Generator().manual_seed(7)
    c, direction = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def f(z, which=defence):
        return (c * which(z, rng)).sum() + 5 * defence.victim(which(z, rng)).log_softmax(1)[:, 0].sum()

    with torch.no_grad():
        expected, out = slope(f, x, direction), defence(x, rng)
    inside = ((out > 0) & (out < 1)).double().mean()
    assert inside > (0.3 if network else 0.95)
    z = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(f(z), z)
    assert (exact * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    first = defence.with_(second_order=False)
    (hidden,) = torch.autograd.grad(f(z, first), z)
    assert all(
        (f - out).abs().max() < 1e-12 for f in (first(z, rng), first(x, rng))
    )  # the same purifier, but for the rounding of its kernels
    assert (hidden - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize(
    "guidance",
    [Guidance("G1", "running"), Guidance("G3", "running", "x0_hat"), Guidance("G4", output="features")],
    ids=name,
)
def test_recomputing_changes_no_gradient(guidance, unet):
    x, rng = pictures(), streams()
    grads = []
    for recompute in (True, False):
        z = x.clone().requires_grad_()
        defence = make(guidance, denoiser=unet, recompute=recompute)
        grads.append(torch.autograd.grad(defence.victim(defence(z, rng)).logsumexp(1).sum(), z)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


def test_parameters_get_no_gradient(unet):
    defence = make(Guidance("G1", "running"), denoiser=unet)
    z = pictures().requires_grad_()
    torch.autograd.grad(defence(z, streams()).sum(), z)
    with torch.no_grad():
        assert not defence(z, streams()).requires_grad
    assert not defence(z.detach(), streams()).requires_grad
    assert all(p.grad is None for p in defence.parameters())


# ---- what it reduces to ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, Guidance("G4", scale=0.0)])
def test_without_guidance_it_is_the_purifier_bit_for_bit(guidance, unet):
    x, rng = pictures(size=10, dtype=torch.float32), streams()
    defence = make(guidance, sampler=Sampler("ddpm", 4), denoiser=open_denoiser("random:tiny"))
    assert torch.equal(defence(x, rng), defence.purifier(x, rng))
    z = x.clone().requires_grad_()
    assert torch.equal(*(torch.autograd.grad(f(z, rng).square().sum(), z)[0] for f in (defence, defence.purifier)))
    assert torch.equal(make(Guidance(), t=0)(x, rng), make(None, t=0)(x, rng))
    assert defence.victim.seen == 0


def test_rounds_are_purifications_with_streams_of_their_own():
    x, rng = pictures(), streams()
    twice, once = make(None, 60, rounds=2), make(None, 60)
    assert torch.allclose(twice(x, rng), once(once(x, rng), rng.child("round1")), atol=1e-12, rtol=0)
    assert not torch.equal(make(Guidance("G2"), 60, rounds=2)(x, rng), make(Guidance("G2"), 60)(x, rng))


@pytest.mark.parametrize("guidance", CASES, ids=name)
def test_an_image_comes_out_as_it_would_alone(guidance):
    x, rng = pictures(size=10, dtype=torch.float32), streams()
    defence = make(guidance, sampler=Sampler("ddpm", 4), rounds=2)
    whole = defence(x, rng)
    assert (
        whole.shape == x.shape
        and whole.dtype == x.dtype
        and whole.min() >= 0
        and whole.max() <= 1
        and whole.isfinite().all()
    )
    for rows in (torch.tensor([2, 0]), torch.tensor([1])):
        assert_within_rounding(
            defence(x[rows], rng.subset(rows)), whole[rows], terms=8 * 3 * SIZE**2
        )  # two rounds of four steps
    assert not torch.equal(defence(x, rng.child("another draw")), whole) and torch.equal(defence(x, rng), whole)
    assert defence(x[:0], rng.subset(torch.tensor([], dtype=torch.int64))).shape == (0, 3, 10, 10)


class Counted(Denoiser):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.schedule, self.size, self.asked = inner, inner.schedule, inner.size, 0

    def forward(self, x_t, t):
        self.asked += len(x_t)
        return self.inner(x_t, t)


@pytest.mark.parametrize("t, steps", [(300, 3), (2, 5), (0, 3)])
@pytest.mark.parametrize("guidance", [None, *CASES], ids=lambda g: name(g) if g else "none")
def test_calls_are_counted(guidance, t, steps):
    denoiser = Counted(GaussianDenoiser(MEAN, STD, SCHEDULE, size=SIZE))
    defence = make(guidance, t, Sampler("ddim", steps, clip=False), denoiser, rounds=2)
    with torch.no_grad():
        defence(pictures(), streams())
    calls = defence.calls
    assert (denoiser.asked, defence.victim.seen) == (N * calls.denoiser, N * calls.victim)
    assert calls.gradients == (0 if guidance is None else 2 * min(t, steps))
    if guidance == CASES[1] and t == 300:
        assert calls == Calls(6, 12, 6)


# ---- the attack on the guidance --------------------------------------------------------------------------------------------


def test_guide_loss_is_the_cross_entropy_of_what_the_guide_is_shown():
    x, rng, y = pictures(), streams(), torch.tensor([0, 2, 1])
    alpha, sigma = alphas(300)
    x_t = alpha * (2 * x - 1) + sigma * rng.child("noise").normal((3, SIZE, SIZE)).double()
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    x0 = MEAN + gain * (x_t - alpha * MEAN)
    victim = Smooth()

    def ce(native):
        return nn.functional.cross_entropy(victim((native + 1) / 2), y, reduction="none")

    for guidance, shown in (
        (Guidance("G2"), [x_t]),
        (Guidance("G1", "moving", rescale="x_t/alpha"), [x_t / alpha]),
        (Guidance("G4"), [x_t]),
        (Guidance("G1", "running"), [x_t, x0]),
        (Guidance("G1", "x_adv"), [x_t, 2 * x - 1]),
        (Guidance("G3", "running", "x0_hat"), [x0]),
        (Guidance("G3", "x_adv", "x0_hat"), [x0, 2 * x - 1]),
    ):
        defence = make(guidance, victim=victim)
        torch.testing.assert_close(
            defence.guide_loss(x, y, rng), sum(map(ce, shown)) / len(shown), rtol=1e-9, atol=1e-12
        )
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(defence.guide_loss(z, y, rng).sum(), z)
        assert (defence.guide_loss(x + 1e-3 * g.sign(), y, rng) > defence.guide_loss(x, y, rng)).all()
    for defence in (make(None), make(Guidance(), t=0), make(Guidance(scale=0))):
        with pytest.raises(UserError, match="needs a guided purifier"):
            defence.guide_loss(x, y, rng)


# ---- parts and mistakes ----------------------------------------------------------------------------------------------------


def test_log_prob_keeps_its_gradient_where_log_softmax_loses_it():
    logits, y = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(),
        torch.tensor([0, 1, 2, 3, 0]),
    )
    torch.testing.assert_close(log_prob(logits, y), logits.log_softmax(1).gather(1, y[:, None])[:, 0])
    assert torch.autograd.gradcheck(lambda z: log_prob(z, y), logits) and torch.autograd.gradgradcheck(
        lambda z: log_prob(z, y), logits
    )
    sure = torch.tensor([[40.0, 0.0, -3.0]], requires_grad=True)
    (g,) = torch.autograd.grad(log_prob(sure, torch.tensor([0])).sum(), sure)
    (exact,) = torch.autograd.grad(sure.double().log_softmax(1)[0, 0], sure)
    assert g[0, 0] > 0 and g[0, 0].item() == pytest.approx(
        (1 - torch.tensor([40.0, 0, -3]).double().softmax(0)[0]).item(), rel=0.05
    )
    assert_within_rounding(g[0, 1], exact[0, 1], terms=3 * 40**2)  # an error of the exponent 40 is one of e⁴⁰'s digits
    assert torch.autograd.grad(sure.log_softmax(1)[0, 0], sure)[0][0, 0] == 0


def test_unit_vectors():
    g = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(unit_vectors(g), g / g.flatten(1).norm(dim=1)[:, None, None])
    assert torch.autograd.gradcheck(unit_vectors, g.requires_grad_()) and torch.autograd.gradgradcheck(unit_vectors, g)
    small = torch.stack([torch.zeros(2, 3), torch.full((2, 3), 1e-25), torch.full((2, 3), 1e-38)]).requires_grad_()
    out = unit_vectors(small)
    torch.testing.assert_close(out.detach()[1], torch.full((2, 3), 6**-0.5))
    assert (out[[0, 2]] == 0).all()
    (grad,) = torch.autograd.grad((out * torch.arange(18.0).view(3, 2, 3)).sum(), small)
    assert grad.isfinite().all()


def test_a_victim_that_says_nothing_guides_nowhere():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 2.0, 0.0]).to(x)

    x, rng = pictures().requires_grad_(), streams()
    defence = make(Guidance("G2", scale=1.0), victim=Constant())
    out = defence(x, rng)
    torch.testing.assert_close(out, make(None)(x, rng), rtol=0, atol=1e-14)
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="G3 is G1 at the predicted clean image"):
        Guidance("G3")
    for field in ("kind", "label", "domain", "rescale", "unit", "output"):
        with pytest.raises(UserError, match=f"Guidance.{field} is 'odd'"):
            Guidance(**{field: "odd"})
    with pytest.raises(UserError, match="for domain 'x_t'"):
        Guidance(domain="x0_hat", rescale="x_t/alpha")
    for wrong in ({"kind": "G5"}, {"kind": "G2", "unit": "sample"}):
        with pytest.raises(UserError, match="use them with domain 'x_t'"):
            Guidance(**wrong, domain="x0_hat")
    with pytest.raises(UserError, match=r"dpm\+\+ has no sample of a single step"):
        make(RELEASED, sampler=Sampler("dpm++", 3))(pictures(), streams())
    for scale in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="use a finite number of 0 or more"):
            Guidance(scale=scale)
    with pytest.raises(UserError, match="needs a victim with features"):
        make(Guidance("G4", output="features"), victim=Linear(torch.zeros(3, SIZE, SIZE)))
    with pytest.raises(UserError, match="rounds of purification are 1 or more"):
        make(rounds=0)
    with pytest.raises(UserError, match="this one is learned"):
        make(Guidance(unit="mean"), sampler=Sampler("ddpm", 3), denoiser=open_denoiser("random:tiny-learned-variance"))
    make(
        Guidance(unit="mean"),
        sampler=Sampler("ddpm", 3, variance="large"),
        denoiser=open_denoiser("random:tiny-learned-variance"),
    )
    with pytest.raises(UserError, match="no setting 'guide_scale'"):
        make().with_(guide_scale=1)
    defence, x, rng = make(Guidance()), pictures(), streams()
    for call in (
        lambda: defence(x, streams(2)),
        lambda: defence.guide_loss(x, torch.zeros(N, dtype=torch.int64), streams(2)),
    ):
        with pytest.raises(UserError, match="rng is for 2 samples, the batch has 3"):
            call()
    guide = defence.guide(x, 2 * x - 1, rng, False)
    for times, rows in (([300, 200, 300], 3), ([300, 300], 2)):
        with pytest.raises(UserError, match="all images of a batch at one time"):
            defence.purifier.sampler.sample(
                defence.purifier.denoiser, x[:rows], torch.tensor(times), streams(rows), guide=guide
            )


def test_the_tables_of_these_tests_are_those_of_the_schedule():
    torch.testing.assert_close(
        torch.tensor(BAR, dtype=torch.float64), SCHEDULE.alpha_bar(torch.arange(1001)), rtol=1e-12, atol=0
    )


NODES: list[weakref.ref] = []


class Watch(torch.autograd.Function):
    """The identity; NODES knows which nodes of graphs it has made, dead or alive."""

    @staticmethod
    def forward(ctx, x):
        NODES.append(weakref.ref(ctx))
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize("guidance", [Guidance("G1", "running"), Guidance("G3", "running", "x0_hat")], ids=name)
@pytest.mark.parametrize("recompute", [True, False])
def test_a_purification_leaves_no_graph_behind(guidance, recompute):
    """tanh saves its own output: kept as it is, that holds itself alive, and every purification would keep its graph for ever."""

    class Watched(Smooth):
        def features(self, x):
            return super().features(Watch.apply(x))

    NODES.clear()
    defence, x = make(guidance, victim=Watched(), recompute=recompute), pictures()
    with torch.no_grad():
        defence(x, streams())
    z = x.clone().requires_grad_()
    torch.autograd.grad(defence(z, streams()).sum(), z)
    gc.collect()
    assert NODES and not [node for node in NODES if node() is not None]
