"""Samplers: against the closed form of Gaussian data, and step by step against diffusers' schedulers."""

from itertools import pairwise

import pytest
import torch

from shared.diffusion import Denoiser, GaussianDenoiser, Prediction, Sampler, Schedule
from shared.diffusion.weights import random_denoiser
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

SCHEDULE = Schedule.linear()
MEAN, STD = 0.3, 0.5
UNET = 4 * 9 * 32  # terms of the longest sum in the tiny U-Net, a convolution, for each of four steps
ATTAINABLE = [Sampler("ddim"), Sampler("ddim", eta=0.6), Sampler("ddpm"), Sampler("dpm++")]


def kind(sampler):
    return f"{sampler.kind}-{sampler.eta}"


def noised(n, t, size=2, seed=0, dtype=torch.float32):
    """Images of the Gaussian data, noised to time t."""
    rng = SampleRng(seed, range(n), "data")
    x = MEAN + STD * rng.child("x").normal((3, size, size)).to(dtype)
    return SCHEDULE.diffuse(x, t, rng.child("noise").normal((3, size, size)).to(dtype))


class Noted(Denoiser):
    """Notes at which times a denoiser is asked, and for how many samples."""

    def __init__(self, denoiser):
        super().__init__()
        self.inner, self.schedule, self.size, self.asked = denoiser, denoiser.schedule, denoiser.size, []

    def forward(self, x_t, t):
        self.asked.append(t.tolist())
        return self.inner(x_t, t)


# ---- Gaussian closed form --------------------------------------------------------------------------------------------------


def alphas(t):
    """α, σ as Python numbers."""
    bar = SCHEDULE.alpha_bar(t).item()
    return bar**0.5, (1 - bar) ** 0.5


def moments(sampler, start):
    """Mean and variance of x_0, when x_t ~ N(αμ, α²s² + σ²) is taken back: every step is affine in x and Gaussian in z. By hand."""
    a, b = alphas(start)
    mean, variance = a * MEAN, (a * STD) ** 2 + b**2
    times = [round(start * (sampler.steps - k) / sampler.steps) for k in range(sampler.steps + 1)]
    for t, s in pairwise(times):
        (at, st), (as_, ss) = alphas(t), alphas(s)
        gain = at * STD**2 / (at**2 * STD**2 + st**2)  # x̂₀ = μ + gain (x − α μ), ε̂ = (x − α x̂₀)/σ
        x0, eps = (gain, MEAN - gain * at * MEAN), ((1 - at * gain) / st, -at * (MEAN - gain * at * MEAN) / st)
        beta = 1 - (at / as_) ** 2
        small = ss**2 / st**2 * beta
        if sampler.kind == "ddim":
            added = sampler.eta**2 * small
            direction = (ss**2 - added) ** 0.5
            slope, shift = (as_ * x0[i] + direction * eps[i] for i in (0, 1))
        else:
            added = (beta if sampler.variance == "large" else small) if s else 0.0
            c0, ct = as_ * beta / st**2, at / as_ * ss**2 / st**2
            slope, shift = c0 * x0[0] + ct, c0 * x0[1]
        mean, variance = slope * mean + shift, slope**2 * variance + (added if s else 0.0)
    return mean, variance


@pytest.mark.parametrize(
    "sampler, start",
    [
        (Sampler("ddim", 5, clip=False), 100),
        (Sampler("ddim", 20, clip=False), 1000),
        (Sampler("ddim", 7, eta=1.0, clip=False), 400),
        (Sampler("ddim", 10, eta=0.5, clip=False), 300),
        (Sampler("ddpm", 30, clip=False), 200),
        (Sampler("ddpm", 10, variance="large", clip=False), 300),
        (Sampler("ddpm", 4, clip=False), 1000),
    ],
)
def test_mean_and_variance_after_k_steps(sampler, start):
    n = 160
    x = sampler.sample(
        GaussianDenoiser(MEAN, STD), noised(n, start, 8), torch.full((n,), start), SampleRng(1, range(n))
    )
    mean, variance = moments(sampler, start)
    numbers = x.numel()  # 30,720: bounds of five standard errors
    assert x.mean().item() == pytest.approx(mean, abs=5 * (variance / numbers) ** 0.5)
    assert x.var().item() == pytest.approx(variance, rel=5 * (2 / numbers) ** 0.5)


def test_the_full_chain_visits_every_time_of_every_sample():
    """No respacing: t, t − 1, …, 0, each sample from its own start, with the noise that it would have alone."""
    denoiser, sampler = Noted(GaussianDenoiser(MEAN, STD)), Sampler("ddpm", 0)
    x, t, rng = noised(2, 6), torch.tensor([6, 3]), SampleRng(0, range(2))
    together = sampler.sample(denoiser, x, t, rng)
    assert denoiser.asked == [[6, 3], [5, 2], [4, 1], [3], [2], [1]]
    for i in range(2):
        alone = sampler.sample(denoiser, x[i : i + 1], t[i : i + 1], rng.subset(torch.tensor([i])))
        assert_within_rounding(alone, together[i : i + 1], terms=6)
    respaced = Sampler("ddpm", 6).sample(denoiser, x[:1], t[:1], rng.subset(torch.tensor([0])))
    assert_within_rounding(respaced, together[:1], terms=6)
    assert sampler.sample(denoiser, x[:0], t[:0], SampleRng(0, [])).shape == (0, 3, 2, 2)


def test_one_step_is_the_prediction_at_the_start_and_asks_no_guide():
    denoiser, x, t = Noted(GaussianDenoiser(MEAN, STD)), noised(3, 400), torch.tensor([400, 300, 0])
    sampler = Sampler("one_step", clip=False)
    out = sampler.sample(denoiser, x, t, SampleRng(0, range(3)), guide=lambda *given: pytest.fail("asked"))
    assert denoiser.asked == [[400, 300]]
    assert_within_rounding(out[:2], denoiser.inner.posterior_mean(x[:2], t[:2]), terms=4)
    assert torch.equal(out[2], x[2])


def test_a_guide_on_the_sample_moves_it_after_the_step():
    guide = lambda x, t, x0, eps: torch.full_like(x, 0.25)  # noqa: E731
    guide.on_sample = True
    step = (GaussianDenoiser(MEAN, STD), noised(2, 100), torch.tensor([100, 100]), torch.tensor([60, 60]), None)
    for sampler in (Sampler("ddim"), Sampler("ddpm")):
        assert torch.equal(sampler._step(*step, guide), sampler._step(*step, None) + 0.25)


def test_the_closed_form_tells_samplers_apart():
    """What the test above compares with differs by more than its tolerance."""
    values = [
        moments(Sampler(k, 10, variance=v), 400)[1] for k, v in (("ddim", "auto"), ("ddpm", "small"), ("ddpm", "large"))
    ]
    assert min(abs(a / b - 1) for i, a in enumerate(values) for b in values[:i]) > 0.1


def test_many_small_steps_give_back_the_data():
    """Mean and variance of the data itself, from pure noise, for every sampler."""
    n = 300
    x = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for sampler in (
        Sampler("ddim", 200, clip=False),
        Sampler("ddpm", 200, clip=False),
        Sampler("dpm++", 30, clip=False),
    ):
        back = sampler.sample(GaussianDenoiser(MEAN, STD), x, torch.full((n,), 1000), SampleRng(0, range(n)))
        # β̃ is too small a variance for long steps
        close = 0.05 if sampler.kind == "ddpm" else 0.02
        assert back.mean().item() == pytest.approx(MEAN, abs=0.02) and back.std().item() == pytest.approx(
            STD, rel=close
        ), sampler


def test_ddim_is_the_linear_map_by_hand():
    """x_0 = μ + Π (α_t α_s s² + σ_t σ_s)/(α_t² s² + σ_t²) (x_t − α μ): no noise, no clipping, double precision."""
    x, start, steps = noised(4, 500, dtype=torch.float64), 500, 6
    factor = 1.0
    for k in range(steps):
        (at, st), (as_, ss) = alphas(round(500 * (steps - k) / steps)), alphas(round(500 * (steps - k - 1) / steps))
        factor *= (at * as_ * STD**2 + st * ss) / (at**2 * STD**2 + st**2)
    back = Sampler("ddim", steps, clip=False).sample(
        GaussianDenoiser(MEAN, STD), x, torch.full((4,), start), SampleRng(0, range(4))
    )
    assert_within_rounding(back, MEAN + factor * (x - alphas(start)[0] * MEAN), terms=start, scale=1 / alphas(start)[0])


def test_solvers_approach_the_flow_and_the_second_order_one_sooner():
    """The probability flow takes x_t to μ + s (x_t − αμ)/√(α²s² + σ²); from t = 400, to the first noise level."""
    x, t = noised(20, 400), torch.full((20,), 400)
    alpha, sigma = alphas(400)
    exact = MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5
    error = {}
    for name, steps in (("ddim", 10), ("ddim", 40), ("dpm++", 10), ("dpm++", 40)):
        back = Sampler(name, steps, clip=False).sample(GaussianDenoiser(MEAN, STD), x, t, SampleRng(0, range(20)))
        error[name, steps] = (back - exact).abs().max().item()
    assert error["ddim", 40] < error["ddim", 10] / 3
    assert error["dpm++", 10] < error["ddim", 10] / 3
    assert error["dpm++", 40] < 0.01


# ---- diffusers -------------------------------------------------------------------------------------------------------------


class Fixed(Denoiser):
    """Predicts what a random network does, by time; with a variance if asked."""

    def __init__(self, learned=False):
        super().__init__()
        self.net = random_denoiser("tiny-learned-variance" if learned else "tiny")
        self.schedule, self.size = self.net.schedule, 8

    def forward(self, x_t, t):
        eps, v = self.net(x_t, t)
        return Prediction(1.5 * eps, v)

    def raw(self, x_t, index):
        eps, v = self(x_t, torch.full((len(x_t),), index + 1))
        return eps if v is None else torch.cat((eps, 2 * v - 1), 1)


class Streams:
    """Noise in double precision: diffusers keeps its tables in single precision, so the two are compared where rounding hides nothing."""

    def __init__(self, rng):
        self.rng = rng

    def __len__(self):
        return len(self.rng)

    def child(self, name):
        return Streams(self.rng.child(name))

    def subset(self, rows):
        return Streams(self.rng.subset(rows))

    def normal(self, shape, device=None):
        return self.rng.normal(shape, device).double()


def in_double(scheduler):
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


STEEPEST = 1 / alphas(1000)[0]  # what an error in ε̂ becomes in x̂₀ at the last time


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_is_diffusers_step_by_step(clip, eta):
    from diffusers import DDIMScheduler

    reference = in_double(DDIMScheduler(clip_sample=clip, timestep_spacing="trailing"))
    reference.set_timesteps(10)
    assert reference.timesteps.tolist() == list(range(999, 0, -100))
    denoiser, rng = Fixed().double(), Streams(SampleRng(3, range(2)))
    x = start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for k, index in enumerate(reference.timesteps.tolist()):
            noise = rng.child(f"step{k}").normal((3, 8, 8))
            x = reference.step(
                denoiser.raw(x, index), index, x, eta=eta, use_clipped_model_output=clip, variance_noise=noise
            ).prev_sample
    ours = Sampler("ddim", 10, eta=eta, clip=clip).sample(denoiser, start, torch.tensor([1000, 1000]), rng)
    assert_within_rounding(ours, x, terms=1000, scale=STEEPEST)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    "variance, theirs", [("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range")]
)
def test_ddpm_is_diffusers_step_by_step(monkeypatch, clip, variance, theirs):
    """Over the last 8 times, where the chain is not respaced, and over a respaced chain without its last step."""
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    denoiser, rng, drawn = Fixed(variance == "learned").double(), Streams(SampleRng(3, range(2))), []
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: drawn[-1])
    for steps, begin, count in ((1000, 8, 8), (10, 1000, 9)):
        reference = in_double(DDPMScheduler(clip_sample=clip, timestep_spacing="trailing", variance_type=theirs))
        reference.set_timesteps(steps)
        x, visited = start, [i for i in reference.timesteps.tolist() if i < begin][:count]
        seen = []
        for k, index in enumerate(visited):
            drawn.append(rng.child(f"step{k}").normal((3, 8, 8)))
            x = reference.step(denoiser.raw(x, index), index, x).prev_sample
            seen.append(x)
        noted = _Trace(denoiser)
        sampler = Sampler(
            "ddpm", len([i for i in reference.timesteps.tolist() if i < begin]), variance=variance, clip=clip
        )
        last = sampler.sample(noted, start, torch.tensor([begin, begin]), rng)
        ours = [*noted.given[1:], last][:count]
        assert_within_rounding(ours, seen, terms=1000, scale=STEEPEST)


class _Trace(Denoiser):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.schedule, self.size, self.given = inner, inner.schedule, inner.size, []

    def forward(self, x_t, t):
        self.given.append(x_t)
        return self.inner(x_t, t)


def test_dpm_is_diffusers_solver_on_our_times():
    from diffusers import DPMSolverMultistepScheduler

    denoiser = Fixed()
    reference = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02)
    reference.set_timesteps(timesteps=[119, 89, 59, 29])
    x = start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for index in reference.timesteps.tolist():
            x = reference.step(denoiser.raw(x, index), index, x).prev_sample
        ours = Sampler("dpm++", 4, clip=False).sample(denoiser, start, torch.tensor([120, 120]), SampleRng(0, range(2)))
    assert_within_rounding(ours, x, terms=1000)


def test_ancestral_sampling_is_ddim_with_eta_1():
    x, t, denoiser = torch.randn(2, 3, 8, 8).double(), torch.tensor([200, 350]), Fixed().double()
    pair = [
        s.sample(denoiser, x, t, Streams(SampleRng(0, range(2))))
        for s in (Sampler("ddpm", 6), Sampler("ddim", 6, eta=1.0))
    ]
    assert_within_rounding(*pair, terms=1000)


# ---- times, noise, batches -------------------------------------------------------------------------------------------------


def test_times():
    sampler = Sampler(steps=4)
    assert sampler.times(torch.tensor([100, 3, 0])).tolist() == [[100, 75, 50, 25, 0], [3, 2, 2, 1, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("sampler", ATTAINABLE, ids=kind)
def test_equal_times_cost_nothing(sampler):
    denoiser = Noted(GaussianDenoiser(MEAN, STD))
    sampler = Sampler(sampler.kind, 6, sampler.eta)
    sampler.sample(denoiser, torch.randn(2, 3, 2, 2), torch.tensor([3, 0]), SampleRng(0, range(2)))
    assert sorted(denoiser.asked, reverse=True) == [[3], [2], [1]]


@pytest.mark.parametrize(
    "sampler",
    [*ATTAINABLE, Sampler("ddpm", variance="large"), Sampler("ddpm", variance="learned")],
    ids=lambda s: f"{s.kind}-{s.eta}-{s.variance}",
)
def test_samples_go_their_own_way(sampler):
    """Every sample as if it were alone, whatever the others' times; one at t = 0 is left as it is, one at t = 1 arrives before the others."""
    x, t, denoiser = torch.randn(5, 3, 8, 8), torch.tensor([200, 0, 1, 200, 117]), Fixed(sampler.variance == "learned")
    back, rng = sampler.sample(denoiser, x, t, SampleRng(0, range(5))), SampleRng(0, range(5))
    assert torch.equal(back[1], x[1])
    for i in range(5):
        alone = sampler.sample(denoiser, x[i : i + 1], t[i : i + 1], rng.subset(torch.tensor([i])))
        assert_within_rounding(back[i : i + 1], alone, terms=UNET)
    turned = sampler.sample(denoiser, x.flip(0), t.flip(0), SampleRng(0, range(4, -1, -1)))
    assert_within_rounding(turned.flip(0), back, terms=UNET)


@pytest.mark.parametrize("sampler", ATTAINABLE, ids=kind)
def test_noise_is_that_of_the_given_streams(sampler, quiet_generator):
    x, t, denoiser = torch.ones(2, 3, 8, 8), torch.tensor([150, 150]), Fixed()
    before = x.clone()
    first, again, other = (sampler.sample(denoiser, x, t, SampleRng(seed, [4, 9])) for seed in (0, 0, 1))
    assert torch.equal(first, again) and torch.equal(x, before)
    random = sampler.kind == "ddpm" or sampler.eta > 0
    assert torch.equal(first, other) != random
    assert torch.allclose(first[0], first[1], atol=1e-6) != random


@pytest.mark.parametrize("sampler", ATTAINABLE, ids=kind)
def test_clipping_keeps_the_prediction_inside(sampler):
    """Data far outside [−1, 1]: a clipped sampler ends at 1, up to the noise; one that does not clip ends at the data."""
    x, t, denoiser = torch.randn(2, 3, 2, 2), torch.tensor([300, 300]), GaussianDenoiser(3.0, 0.0)
    clipped, free = (
        Sampler(sampler.kind, 10, sampler.eta, clip=c).sample(denoiser, x, t, SampleRng(0, range(2)))
        for c in (True, False)
    )
    assert_within_rounding(clipped, torch.ones_like(x), terms=1000)
    assert_within_rounding(free, torch.full_like(x, 3.0), terms=1000)


# ---- guides ----------------------------------------------------------------------------------------------------------------

TARGET, WIDTH = -0.4, 0.8


def towards_the_target(x_t, t, x0_hat, eps):
    """Classifier guidance by the exact p(y | x_t), where y ~ N(x, WIDTH²) was observed to be TARGET; on Gaussian data."""
    bar = SCHEDULE.alpha_bar(t).view(-1, 1, 1, 1).to(x_t)
    spread = STD**2 * (1 - bar) / (bar * STD**2 + 1 - bar)  # Var[x | x_t]
    log_p = -(x0_hat - TARGET).square() / (2 * (spread + WIDTH**2))
    (gradient,) = torch.autograd.grad(log_p.sum(), x_t, create_graph=True)
    return -(1 - bar).sqrt() * gradient


POSTERIOR_VARIANCE = 1 / (1 / STD**2 + 1 / WIDTH**2)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * (MEAN / STD**2 + TARGET / WIDTH**2)


@pytest.mark.parametrize("sampler", ATTAINABLE, ids=kind)
def test_a_guided_step_is_that_of_the_conditional_distribution(sampler):
    """Bayes: ε̂ with guidance is the denoiser of N(posterior mean, posterior variance), so samplers agree to rounding."""
    sampler = Sampler(sampler.kind, 8, sampler.eta, clip=False)
    x, t, rng = (
        noised(5, 300, dtype=torch.float64),
        torch.tensor([300, 300, 120, 40, 1]),
        Streams(SampleRng(0, range(5))),
    )
    guided = sampler.sample(GaussianDenoiser(MEAN, STD), x, t, rng, guide=towards_the_target)
    conditional = sampler.sample(GaussianDenoiser(POSTERIOR_MEAN, POSTERIOR_VARIANCE**0.5), x, t, rng)
    assert_within_rounding(guided, conditional, terms=1000)
    assert (guided - sampler.sample(GaussianDenoiser(MEAN, STD), x, t, rng)).abs().max() > 0.05
    assert not guided.requires_grad


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("sampler", ATTAINABLE, ids=kind)
def test_the_gradient_goes_through_the_guide(sampler, recomputed):
    sampler = Sampler(sampler.kind, 4, sampler.eta, clip=False)
    x, t, rng = (
        noised(2, 300, dtype=torch.float64).requires_grad_(),
        torch.tensor([300, 200]),
        Streams(SampleRng(0, range(2))),
    )
    guided = sampler.sample(GaussianDenoiser(MEAN, STD), x, t, rng, recomputed, towards_the_target)
    conditional = sampler.sample(GaussianDenoiser(POSTERIOR_MEAN, POSTERIOR_VARIANCE**0.5), x, t, rng)
    pair = [torch.autograd.grad(out.square().sum(), x)[0] for out in (guided, conditional)]
    assert_within_rounding(*pair, terms=1000)


def test_a_guide_may_look_at_the_prediction_only():
    """∇_{x_t} through x̂₀, as universal guidance does it, also where the caller has switched gradients off."""
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([300, 100])
    seen = []

    def guide(x_t, t, x0_hat, eps):
        seen.append((x0_hat.requires_grad, eps.requires_grad, t.tolist()))
        return 0.1 * torch.autograd.grad(x0_hat.sum(), x_t)[0]

    with torch.no_grad():
        back = Sampler("ddim", 2).sample(Fixed(), x, t, SampleRng(0, range(2)), guide=guide)
    assert seen == [(True, True, [300, 100]), (True, True, [150, 50])] and not back.requires_grad


def test_a_guide_at_x_t_alone_spares_the_denoiser_its_graph_unless_somebody_wants_it():
    x, t, seen = torch.randn(2, 3, 8, 8), torch.tensor([300, 100]), []

    def guide(x_t, t, x0_hat, eps):
        seen.append(eps.requires_grad)
        return 0.1 * torch.autograd.grad(x_t.square().sum(), x_t)[0]

    def back(x):
        return Sampler("ddim", 2).sample(Fixed(), x, t, SampleRng(0, range(2)), guide=guide)

    slow = back(x)
    guide.at_x_t = True
    quick, wanted = back(x), back(x.clone().requires_grad_())
    assert seen == [True, True, False, False, True, True] and wanted.requires_grad
    assert_within_rounding(quick, slow, terms=UNET)
    assert_within_rounding(wanted, slow, terms=UNET)


# ---- what can be wrong -----------------------------------------------------------------------------------------------------


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match=r"Sampler\.kind is 'euler': use 'ddim'"):
        Sampler("euler")
    with pytest.raises(UserError, match=r"Sampler\.variance is 'huge': use 'auto'"):
        Sampler("ddpm", variance="huge")
    for given in ({"steps": -1}, {"eta": -0.1}, {"eta": 1.5}):
        with pytest.raises(
            UserError, match=r"steps is -1: use a whole number from 0|eta is .*: use a number from 0 to 1"
        ):
            Sampler("ddim", **given)
    with pytest.raises(UserError, match="has not learned a variance"):
        Sampler("ddpm", 2, variance="learned").sample(
            GaussianDenoiser(0, 1), torch.zeros(1, 3, 2, 2), torch.tensor([10]), SampleRng(0, [0])
        )
    for t, n in ((torch.tensor([5]), 2), (torch.tensor(5), 2), (torch.tensor([5, 5]), 1)):
        with pytest.raises(UserError, match="2 images need as many start times and random streams"):
            Sampler().sample(GaussianDenoiser(0, 1), torch.zeros(2, 3, 2, 2), t, SampleRng(0, range(n)))
    with pytest.raises(UserError, match="from 0 to 1000"):
        Sampler().sample(GaussianDenoiser(0, 1), torch.zeros(1, 3, 2, 2), torch.tensor([1001]), SampleRng(0, [0]))
