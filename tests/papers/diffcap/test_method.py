"""DiffCAP against a literal loop, its gradient, its rules, the calibration, and what theory computes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers.diffcap.method import Calibration, DiffCAP, StopRule, calibrate_tau
from papers.diffcap.theory import bound_time, kl, pixel_correlation, recovery_time, total_variation
from shared.attacks import Threat, ascend
from shared.attacks.adaptive import AdaptiveAttack, predict, resubmit
from shared.diffusion import GaussianDenoiser, Purifier, Sampler, Schedule, open_denoiser
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

DEEP = 5 * 9 * 32  # terms of the longest sum, a convolution of the tiny U-Net, for each of five steps

SCHEDULE = Schedule.linear()
N, SIZE = 6, 8


class Phi(nn.Module):
    """A small smooth encoder whose similarities lie well apart."""

    def __init__(self, size=SIZE, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("w", torch.randn(3 * size * size, 12, generator=generator) / size)
        self.looks = []

    def forward(self, x):
        self.looks.append(len(x))
        return torch.tanh(6 * (x - 0.4).flatten(1) @ self.w.to(x))


@pytest.fixture(scope="module")
def x():
    return torch.rand(N, 3, 10, 10, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def rng():
    return SampleRng(11, [40, 3, 17, 8, 21, 5])


@pytest.fixture(scope="module")
def unet():
    return open_denoiser("random:tiny")


def make(denoiser=None, rule=None, sampler=None, phi=None):
    denoiser = denoiser or GaussianDenoiser(0.1, 0.6, SCHEDULE, size=SIZE)
    return DiffCAP(
        Purifier(denoiser, 100, sampler or Sampler("ddim", 4)),
        phi or Phi(denoiser.size),
        rule or StopRule(tau=0.87, dt=60, t_max=600),
    )


def literally(image, index, seed, rule, sampler, denoiser, phi):
    """DiffCAP of one image in plain steps, with tables of its own: (stop time, similarities, purified image)."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cat((torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0))).tolist()
    one = SampleRng(seed, [index])
    small = F.interpolate(image[None], size=(SIZE, SIZE), mode="bilinear", antialias=True)
    x0 = 2 * small - 1

    def look(state, t):
        if rule.encode == "x_t/alpha":
            state = state / math.sqrt(bar[t])
        picture = (state + 1) / 2
        return phi(picture.clamp(0, 1) if rule.clamp else picture)[0]

    x_t, t, k, last, trace, states = x0, 0, 0, look(x0, 0), [], []
    while True:
        k += 1
        noise = SampleRng(seed, [index], f"/step{k}").normal((3, SIZE, SIZE))
        t_next = t + rule.dt
        if rule.coupling == "cumulative":
            ratio = bar[t_next] / bar[t]
            x_t = math.sqrt(ratio) * x_t + math.sqrt(1 - ratio) * noise
        else:
            x_t = math.sqrt(bar[t_next]) * x0 + math.sqrt(1 - bar[t_next]) * noise
        t = t_next
        now = look(x_t, t)
        similarity = float((last * now).sum() / (last.norm() * now.norm()))
        trace.append(similarity)
        states.append((t, x_t))
        last = now
        if similarity >= rule.tau:
            break
        if t == rule.t_max:
            if rule.fallback == "max_similarity":
                t, x_t = states[max(range(len(trace)), key=trace.__getitem__)]
            elif rule.fallback == "none":
                t, x_t = 0, x0
            break
    back = sampler.sample(denoiser, x_t, torch.tensor([t]), one.child("reverse"))
    return (
        t,
        trace,
        F.interpolate((back + 1) / 2, size=image.shape[-2:], mode="bilinear", antialias=True).clamp(0, 1)[0],
    )


@pytest.mark.parametrize("coupling", ["cumulative", "redraw"])
@pytest.mark.parametrize("encode", ["x_t", "x_t/alpha"])
@pytest.mark.parametrize(
    "fallback, tau, clamp", [("t_max", 0.87, True), ("max_similarity", 0.95, False), ("none", 0.87, True)]
)
def test_the_batch_is_the_literal_loop_over_images(x, rng, unet, coupling, encode, fallback, tau, clamp):
    rule = StopRule(tau=tau, dt=60, t_max=420, coupling=coupling, encode=encode, fallback=fallback, clamp=clamp)
    sampler = Sampler("ddpm", 5)
    diffcap = make(unet, rule, sampler)
    with torch.no_grad():
        stop, out = diffcap.stop_times(x, rng), diffcap(x, rng)
        singly = [literally(x[i], rng.indices[i], rng.seed, rule, sampler, unet, diffcap.phi) for i in range(N)]
    assert stop.t.tolist() == [t for t, _, _ in singly]
    for i, (_, trace, purified) in enumerate(singly):
        assert_within_rounding(stop.similarity[i, : len(trace)], torch.tensor(trace), terms=DEEP)
        assert (
            stop.similarity[i, len(trace) :].isnan().all()
            and stop.reached[i] == (trace[-1] >= tau)
            and stop.encoded[i] == 1 + len(trace)
        )
        assert_within_rounding(out[i], purified, terms=DEEP)
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1


def test_a_similarity_of_just_tau_stops(x, rng):
    """As drawn, the loop goes on while s < τ."""
    seen = make(rule=StopRule(tau=2.0, dt=60, t_max=600)).stop_times(x, rng).similarity
    first = seen[0, 0].item()
    assert make(rule=StopRule(tau=first, dt=60, t_max=600)).stop_times(x, rng).t[0] == 60
    above = torch.nextafter(seen[0, 0], torch.tensor(2.0)).item()
    assert make(rule=StopRule(tau=above, dt=60, t_max=600)).stop_times(x, rng).t[0] > 60


def test_the_first_pair_is_the_picture_as_it_came_in_and_its_first_noisy_state(x, rng):
    diffcap = make(rule=StopRule(tau=2.0, dt=60, t_max=600))
    x_0 = diffcap.purifier.to_native(x)
    (_, first), (time, second), *_ = diffcap.chain(x, diffcap.rule.times, rng)
    assert torch.equal(first, x_0) and time == 60
    wanted = F.cosine_similarity(diffcap.look(x_0, 0), diffcap.look(second, 60), dim=1)
    assert_within_rounding(diffcap.stop_times(x, rng).similarity[:, 0], wanted, terms=DEEP)


def test_stop_times_differ_and_an_image_stops_where_it_would_alone(x, rng):
    diffcap = make()
    stop = diffcap.stop_times(x, rng)
    assert len(stop.t.unique()) > 2 and stop.reached.any()
    diffcap.phi.looks.clear()
    again = diffcap.stop_times(x, rng)
    looks = diffcap.phi.looks
    assert torch.equal(again.t, stop.t) and sum(looks) == stop.encoded.sum() and looks[0] == N
    assert looks[1:] == [int((stop.encoded > k).sum()) for k in range(1, len(looks))]  # finished images leave
    rows = torch.tensor([5, 0, 2])
    part = diffcap.stop_times(x[rows], rng.subset(rows))
    assert torch.equal(part.t, stop.t[rows])
    assert_within_rounding(diffcap(x[rows], rng.subset(rows)), diffcap(x, rng)[rows], terms=DEEP)
    assert not torch.equal(diffcap(x, rng.child("another draw")), diffcap(x, rng))
    empty = diffcap.stop_times(x[:0], rng.subset(rows[:0]))
    assert empty.t.shape == (0,) and diffcap(x[:0], rng.subset(rows[:0])).shape == (0, 3, 10, 10)


def test_the_state_at_the_stop_has_the_noise_level_of_its_time():
    """The law of x_t given x does not depend on the coupling: mean α(t) x, deviation σ(t)."""
    n = 600
    x = torch.full((n, 3, SIZE, SIZE), 0.9)
    for coupling in ("cumulative", "redraw"):
        stop = make(rule=StopRule(tau=2.0, dt=50, t_max=200, coupling=coupling)).stop_times(x, SampleRng(0, range(n)))
        assert (stop.t == 200).all() and not stop.reached.any()
        assert abs(stop.state.mean() - 0.8 * SCHEDULE.alpha(200)) < 3e-3  # of a sample
        assert abs(stop.state.std() - SCHEDULE.sigma(200)) < 3e-3


@pytest.mark.parametrize("coupling", ["cumulative", "redraw"])
def test_pixel_correlation_of_consecutive_states(coupling):
    """With φ the identity on pictures of unit variance the similarities are those of theory; they fall with t."""
    size, times = 64, range(40, 401, 40)
    picture = SampleRng(3, range(8)).normal((3, size, size)) / 2 + 0.5
    diffcap = DiffCAP(
        Purifier(GaussianDenoiser(0.0, 1.0, SCHEDULE, size=size), 0),
        lambda seen: (2 * seen - 1).flatten(1),
        StopRule(tau=2.0, dt=40, t_max=400, coupling=coupling, clamp=False),
    )
    seen = diffcap.similarities(picture, times, SampleRng(0, range(8)))
    expected = pixel_correlation(SCHEDULE, torch.arange(0, 400, 40), 40, coupling)
    assert (seen.mean(dim=0) - expected).abs().max() < 5e-3  # of a sample
    assert (expected.diff() < 0).all()
    assert_within_rounding(diffcap.stop_times(picture, SampleRng(0, range(8))).similarity, seen, terms=3 * 64 * 64)


def test_theory_has_the_numbers_of_the_fact_sheet():
    for dt, early, late in ((1, 0.9994, 0.9985), (10, 0.994, 0.984), (50, 0.961, 0.914)):
        assert (
            pixel_correlation(SCHEDULE, torch.tensor([50, 150]), dt) - torch.tensor([early, late])
        ).abs().max() < 1e-3  # as printed
    assert kl(12.2, SCHEDULE, torch.tensor([100, 150, 300])).tolist() == pytest.approx([640, 275, 49], rel=0.02)


@pytest.mark.parametrize("fallback", ["t_max", "max_similarity", "none"])
def test_fallback_and_immediate_stop(x, rng, fallback):
    never, at_once = (make(rule=StopRule(tau=tau, dt=20, t_max=120, fallback=fallback)) for tau in (2.0, -2.0))
    stop = never.stop_times(x, rng)
    assert not stop.reached.any() and not stop.similarity.isnan().any()
    best = 20 * (stop.similarity.argmax(dim=1) + 1)
    assert torch.equal(
        stop.t,
        {"t_max": torch.full((N,), 120), "max_similarity": best, "none": torch.zeros(N, dtype=torch.int64)}[fallback],
    )
    states = dict(never.chain(x, range(20, 121, 20), rng))
    for i in range(N):
        assert_within_rounding(stop.state[i], states[int(stop.t[i])][i], terms=DEEP)
    if fallback == "none":
        assert_within_rounding(
            never(x, rng), never.purifier.from_native(never.purifier.to_native(x), (10, 10)), terms=DEEP
        )
    assert (at_once.stop_times(x, rng).t == 20).all() and at_once.stop_times(x, rng).reached.all()


def test_noise_can_look_stable_too():
    """To φ that reads only how dark and bright a picture is, pure noise is the most stable of all: similarities near 1 need not mean recovery."""

    def histogram(picture):
        return torch.stack(
            [torch.sigmoid(20 * (picture - edge)).flatten(1).mean(dim=1) for edge in torch.linspace(0.1, 0.9, 9)], dim=1
        )

    x = torch.full((4, 3, 32, 32), 0.5)
    x[:, :, 8:24, 8:24] = 1.0
    diffcap = make(GaussianDenoiser(0.0, 1.0, SCHEDULE, size=32), StopRule(tau=2.0, dt=50, t_max=1000), phi=histogram)
    stop = diffcap.stop_times(x, SampleRng(0, range(4)))
    assert stop.similarity[:, :2].max() < 0.9992 < 0.9996 < stop.similarity[:, -5:].min()
    assert (F.cosine_similarity(stop.state.flatten(1), (2 * x - 1).flatten(1)).abs() < 0.1).all()


@pytest.mark.parametrize("coupling", ["cumulative", "redraw"])
@pytest.mark.parametrize("denoiser", ["gaussian", "unet"])
def test_gradient_against_finite_differences(unet, rng, coupling, denoiser):
    """In float64, at the stop index found: noising, bridge, reverse process, all of it."""
    import copy

    model = copy.deepcopy(unet).double() if denoiser == "unet" else GaussianDenoiser(0.1, 0.6, SCHEDULE, size=SIZE)
    diffcap = make(model, StopRule(tau=0.87, dt=60, t_max=300, coupling=coupling), Sampler("ddpm", 3, clip=False))
    x = (0.5 + 0.1 * torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))).double()
    weights = SampleRng(1, range(3)).normal((3, 10, 10)).double()
    some = rng.subset(torch.tensor([0, 1, 2]))

    def value(image):
        return (diffcap(image, some).clamp(0.02, 0.98) * weights).sum()

    image = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(image), image)
    direction = SampleRng(2, range(3)).normal((3, 10, 10)).double()
    with torch.no_grad():
        h = 1e-6
        slope = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert (grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)  # of a difference quotient
    assert (grad != 0).float().mean() > 0.3 and grad.isfinite().all()
    kept = DiffCAP(Purifier(model, 0, diffcap.purifier.sampler, recompute=False), diffcap.phi, diffcap.rule)
    assert_within_rounding(
        torch.autograd.grad((kept(image, some).clamp(0.02, 0.98) * weights).sum(), image)[0], grad, terms=DEEP
    )


def test_attacks_reach_through_it(x, rng):
    """PGD through DiffCAP with the exact gradient moves the victim; without one the images are the same."""
    diffcap, w = (
        make(rule=StopRule(tau=0.87, dt=60, t_max=180)),
        torch.randn(300, 2, generator=torch.Generator().manual_seed(0)),
    )
    victim = nn.Sequential(nn.Flatten(), nn.Linear(300, 2, bias=False)).requires_grad_(False)
    victim[1].weight.copy_(w.T)
    own = SampleRng(0, range(N))
    y = resubmit(predict(victim), diffcap, x, rng, 9).mode(dim=1).values
    x_adv = AdaptiveAttack(draws=4, steps=6, optimiser="pgd")(
        victim, diffcap, x, y, Threat("linf", 0.1), rng=own, defence_rng=rng
    )
    before, after = (
        (resubmit(predict(victim), diffcap, images, rng, 9) == y[:, None]).float().mean() for images in (x, x_adv)
    )
    assert after < before - 0.3


def test_an_attack_on_the_stop_rule_stops_it_early(x, rng):
    diffcap = make()
    s = diffcap.similarities(x, range(60, 301, 60), rng)
    by_hand = -((0.87 - s) / 0.05).sigmoid().cumprod(dim=1).mean(dim=1)
    assert_within_rounding(diffcap.early_stop_loss(x, rng, steps=5), by_hand, terms=DEEP)
    stop = diffcap.stop_times(x, rng)
    sharp = diffcap.early_stop_loss(x, rng, temperature=1e-6)
    steps = torch.where(stop.reached, stop.t // 60 - 1, 10)
    assert_within_rounding(sharp, -steps / 10, terms=DEEP)
    x_adv = ascend(
        lambda image: diffcap.early_stop_loss(image, rng, steps=4),
        x,
        Threat("linf", 0.1),
        steps=15,
        step_size=0.02,
        rng=SampleRng(0, range(N)),
    )
    assert diffcap.stop_times(x_adv, rng).t.double().mean() < stop.t.double().mean() - 60


def test_calibration_by_hand(x, rng):
    diffcap = make(rule=StopRule(encode="x_t", dt=20, t_max=240))
    moved = (x + 0.1 * torch.sign(SampleRng(4, range(N)).normal((3, 10, 10)))).clamp(0, 1)
    pairs = {"a": (x[:4], moved[:4]), "b": (x[4:], moved[4:])}
    found = calibrate_tau(pairs, diffcap, batch=3)
    small = [F.interpolate(images, size=(8, 8), mode="bilinear", antialias=True) for images in (x, moved)]
    cosines = F.cosine_similarity(*map(diffcap.phi, small), dim=1)
    assert_within_rounding(torch.cat([found.pairs["a"], found.pairs["b"]]), cosines, terms=DEEP)
    assert_within_rounding(torch.tensor(found.tau), (cosines[:4].mean() + cosines[4:].mean()) / 2, terms=DEEP)
    noisy = calibrate_tau(pairs, diffcap, level=300)
    assert found.tau < noisy.tau < 1  # the same noise on both drowns the difference
    assert_within_rounding(
        torch.tensor(calibrate_tau({"a": (x, x)}, diffcap, level=300).tau), torch.tensor(1.0), terms=DEEP
    )


def test_calibration_spread():
    values = {name: torch.rand(100, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    found = Calibration(values)
    spread = found.spread([10, 50, 100], repeats=400)
    assert spread[10].std() > 1.5 * spread[50].std() > 0
    assert_within_rounding(spread[100].float(), torch.full((400,), found.tau), terms=100)
    expected = 0.29 * math.sqrt((1 / 10) * (1 - 10 / 100) / 2)  # without replacement, mean of two sets
    assert spread[10].std().item() == pytest.approx(expected, rel=0.15)
    assert torch.equal(spread[10], found.spread([10], repeats=400)[10]) and not torch.equal(
        spread[10], found.spread([10], 400, seed=1)[10]
    )


def test_recovery_times_by_hand():
    same = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]).bool()
    assert recovery_time(same, [0, 25, 50, 100, 200]).tolist() == [100, 0, -1, 200]


def test_total_variation_by_integration():
    t, norm = torch.tensor([50, 200, 600]), 0.7
    alpha, sigma = SCHEDULE.alpha(t).double(), SCHEDULE.sigma(t).double()
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    for i in range(3):
        p, q = (
            torch.exp(-((grid - shift) ** 2) / 2) / math.sqrt(2 * math.pi)
            for shift in (0.0, float(norm * alpha[i] / sigma[i]))
        )
        tv = 0.5 * (p - q).abs().sum() * 24 / 200_000
        divergence = (q * (q / p).log()).sum() * 24 / 200_000
        assert total_variation(norm, SCHEDULE, t)[i].item() == pytest.approx(tv.item(), abs=1e-6)  # of the integration
        assert kl(norm, SCHEDULE, t)[i].item() == pytest.approx(divergence.item(), rel=1e-5)


def test_the_bound_promises_only_what_holds():
    """A threshold classifier on one noisy pixel, in closed form: wherever bound_time promises recovery, the likeliest answer is the clean one."""
    times = range(0, 1000, 50)
    grid = torch.tensor(list(times))
    alpha, sigma = SCHEDULE.alpha(grid).double(), SCHEDULE.sigma(grid).double().clamp_min(1e-9)
    clean, norms = 0.8, torch.tensor([0.2, 0.5, 0.9, 1.5, 4.0])

    def above(value):
        return torch.special.ndtr(alpha * value / sigma)

    lead = (2 * above(clean) - 1).expand(5, -1)
    promised = bound_time(norms, lead, SCHEDULE, times)
    held = recovery_time(torch.stack([above(clean - d) > 0.5 for d in norms.tolist()]), times)
    assert (
        promised.tolist()[0] == 50 and (promised[3:] == -1).all() and promised[1] > 0
    )  # at t = 0 nothing is promised: TV is 1
    assert all(h != -1 and h <= p for h, p in zip(held.tolist(), promised.tolist(), strict=True) if p != -1)


def test_the_times_of_a_rule():
    assert list(StopRule(dt=50, t_max=150).times) == [50, 100, 150]


@pytest.mark.parametrize(
    "attempt, says",
    [
        (lambda x: StopRule(coupling="fresh"), "coupling is 'fresh'"),
        (lambda x: StopRule(encode="x0"), "encode is 'x0'"),
        (lambda x: StopRule(fallback="give up"), "fallback is 'give up'"),
        (lambda x: StopRule(dt=30, t_max=100), "t_max is a multiple of dt"),
        (lambda x: StopRule(dt=0), "dt is 0"),
        (lambda x: make(rule=StopRule(dt=10, t_max=1010)), "the diffusion model has 1000 steps"),
        (lambda x: make()(x, SampleRng(0, [1])), "rng is for 1 samples, the batch has 6"),
        (lambda x: calibrate_tau({"coco": (x, x[:2])}, make()), "calibration pairs of coco"),
        (lambda x: calibrate_tau({}, make()), "at least one set"),
        (lambda x: Calibration({"a": torch.rand(5)}).spread([6]), "from 1 to 5"),
    ],
)
def test_mistakes_are_told_in_a_sentence(x, attempt, says):
    with pytest.raises(UserError, match=says):
        attempt(x)
