"""The purifier: bridge, gradients, memory, and purification as it should work on data that are known."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from shared.diffusion import GaussianDenoiser, Purifier, Sampler
from shared.diffusion.weights import random_denoiser
from shared.errors import UserError
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

UNET = 4 * 9 * 32  # terms of the longest sum in the tiny U-Net, a convolution, for each of up to four steps
SAMPLERS = [Sampler("ddim", 3), Sampler("ddim", 3, eta=0.8), Sampler("ddpm", 3), Sampler("dpm++", 3)]


def kind(sampler):
    return f"{sampler.kind}-{sampler.eta}"


def images(n=3, size=(8, 8), dtype=torch.float32):
    return SampleRng(0, range(n), "images").uniform((3, *size)).to(dtype)


@pytest.fixture(scope="module")
def tiny():
    return random_denoiser("tiny")


# ---- the bridge ------------------------------------------------------------------------------------------------------------


def test_the_bridge_to_the_native_size_and_back(tiny):
    purifier = Purifier(tiny, 10)
    x = images(size=(8, 8))
    assert torch.equal(purifier.to_native(x), 2 * x - 1)
    assert_within_rounding(purifier.from_native(2 * x - 1, (8, 8)), x, terms=2)
    for size in ((16, 12), (5, 30), (8, 24)):
        big = images(size=size)
        native = purifier.to_native(big)
        assert native.shape == (3, 3, 8, 8) and purifier.from_native(native, size).shape == big.shape
        assert_within_rounding(
            native,
            2 * F.interpolate(big, (8, 8), mode="bilinear", align_corners=False, antialias=True) - 1,
            terms=4 * 4 * 2,
        )
    assert (purifier.from_native(torch.full((1, 3, 8, 8), 7.0), (8, 8)) == 1).all()
    assert (purifier.from_native(torch.full((1, 3, 8, 8), -7.0), (9, 9)) == 0).all()


def test_down_is_the_mean_of_the_pixels_and_flat_images_stay(tiny):
    """Antialiased: halving an image weighs neighbours in, so a checkerboard becomes grey instead of black or white."""
    purifier, board = Purifier(tiny, 10), torch.zeros(1, 3, 16, 16)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 1
    assert purifier.to_native(board)[..., 1:-1, 1:-1].abs().max() < 0.01
    assert_within_rounding(
        purifier.to_native(torch.full((1, 3, 20, 31), 0.3)), torch.full((1, 3, 8, 8), -0.4), terms=20 * 31
    )


# ---- purification ----------------------------------------------------------------------------------------------------------


def test_it_is_noise_and_the_sampler(tiny):
    x, rng, sampler = images(), SampleRng(5, [3, 1, 7]), Sampler("ddpm", 4)
    t = torch.full((3,), 120)
    x_t = tiny.schedule.diffuse(2 * x - 1, t, rng.child("noise").normal((3, 8, 8)))
    expected = ((sampler.sample(tiny, x_t, t, rng.child("reverse")) + 1) / 2).clamp(0, 1)
    assert_within_rounding(Purifier(tiny, 120, sampler)(x, rng), expected, terms=UNET)


def test_noise_on_known_data_is_removed():
    """The data are one picture: whatever is added to it is gone after purification."""
    picture = 0.8 * images(1)[0]
    purifier = Purifier(GaussianDenoiser(2 * picture - 1, 0.0), 100, Sampler("ddim", 5))
    attacked = (picture + 0.1 * torch.randn(4, 3, 8, 8).sign()).clamp(0, 1)
    assert_within_rounding(
        purifier(attacked, SampleRng(0, range(4))), picture.expand(4, 3, 8, 8), terms=1000
    )  # of the table of ᾱ


def test_more_time_removes_more(tiny):
    """On Gaussian data a perturbation is damped, and the more the later the time; t = 0 changes nothing."""
    x, delta = images(64), 0.05
    left = []
    for t in (0, 50, 150, 400):
        purifier = Purifier(GaussianDenoiser(0.0, 0.3), t, Sampler("ddim", 5, clip=False))
        pair = [purifier(0.4 + 0.1 * x + d, SampleRng(0, range(64))) for d in (0.0, delta)]
        left.append(((pair[1] - pair[0]).mean() / delta).item())
    assert left[0] == pytest.approx(1, abs=1e-3) and all(a > b + 0.05 for a, b in pairwise(left))
    assert torch.equal(Purifier(tiny, 0)(x, SampleRng(0, range(64))), (2 * x - 1 + 1) / 2)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=kind)
def test_an_image_does_not_depend_on_its_batch(tiny, sampler, quiet_generator):
    x, rng, purifier = images(5, (12, 10)), SampleRng(2, [9, 4, 0, 7, 1]), Purifier(tiny, 80, sampler)
    whole = purifier(x, rng)
    assert torch.equal(purifier(x, rng), whole) and ((whole >= 0) & (whole <= 1)).all()
    for i in range(5):
        assert_within_rounding(purifier(x[i : i + 1], rng.subset(torch.tensor([i]))), whole[i : i + 1], terms=UNET)
    assert not torch.equal(purifier(x, SampleRng(3, [9, 4, 0, 7, 1])), whole)


@pytest.mark.parametrize("t", [-1, 1001])
def test_impossible_times_are_refused(tiny, t):
    with pytest.raises(UserError, match="the purification time is a whole number of steps from 0 to 1000"):
        Purifier(tiny, t)


# ---- gradients -------------------------------------------------------------------------------------------------------------

DOUBLE = [s for s in SAMPLERS if s.kind != "dpm++"]  # diffusers' solver computes in single precision


@pytest.mark.parametrize("recomputed", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("sampler", DOUBLE, ids=kind)
def test_the_gradient_is_that_of_finite_differences(sampler, recomputed):
    denoiser = random_denoiser("tiny").double()
    purifier, rng = Purifier(denoiser, 60, sampler, recomputed), SampleRng(0, range(2))
    x = (0.3 + 0.4 * images(2, (10, 8), torch.float64)).requires_grad_()
    weight = torch.randn(2, 3, 10, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def f(x):
        return (weight * purifier(x, rng)).sum()

    (gradient,) = torch.autograd.grad(f(x), x)
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
        with torch.no_grad():
            difference = (f(x + 1e-6 * direction) - f(x - 1e-6 * direction)) / 2e-6
        assert difference.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-7)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=kind)
def test_recomputation_changes_neither_value_nor_derivatives(tiny, sampler, quiet_generator):
    def derivatives(recomputed):
        x = images(2, (10, 9)).requires_grad_()
        out = Purifier(tiny, 90, sampler, recomputed)(x, SampleRng(0, range(2)))
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return out, first, second

    stored = derivatives(False)
    assert_within_rounding(derivatives(True), stored, terms=UNET)
    assert all(value.abs().max() > 0 for value in stored)


def test_the_second_derivative_is_that_of_finite_differences():
    purifier = Purifier(random_denoiser("tiny").double(), 60, Sampler("ddim", 2, eta=0.5))
    x, direction = (
        (0.3 + 0.4 * images(1, (8, 8), torch.float64)),
        torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double(),
    )

    def slope(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(purifier(x, SampleRng(0, [0])).pow(3).sum(), x, create_graph=True)[0], x

    first, at = slope(x)
    (second,) = torch.autograd.grad((first * direction).sum(), at)
    difference = (slope(x + 1e-5 * direction)[0] - slope(x - 1e-5 * direction)[0]) / 2e-5
    assert (second - difference).abs().max() < 1e-4 * second.abs().max()  # of a difference quotient


def test_the_gradient_through_a_stop_time_takes_it_as_given(tiny):
    """`reverse` at times found on the way: the straight-through gradient."""
    purifier, x, rng = Purifier(tiny, 0, Sampler("ddim", 3)), images(3).requires_grad_(), SampleRng(0, range(3))

    def through(t):
        out = purifier.from_native(purifier.reverse(purifier.noise(purifier.to_native(x), t, rng), t, rng), (8, 8))
        return torch.autograd.grad(out.square().sum(), x)[0]

    found = (100 * x.mean((1, 2, 3))).long()  # depends on x, but not differentiably
    assert len(found.unique()) > 1
    assert_within_rounding(through(found), through(torch.tensor(found.tolist())), terms=UNET)


# ---- memory ----------------------------------------------------------------------------------------------------------------


def saved_bytes(sampler, recomputed, denoiser, x):
    """What autograd keeps for the backward pass, each storage once, without the weights."""
    weights, kept = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = Purifier(denoiser, 100, sampler, recomputed)(x, SampleRng(0, range(len(x))))
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    "name, eta, images_per_step", [("ddim", 0.0, 1), ("ddim", 1.0, 2), ("ddpm", 0.0, 2), ("dpm++", 0.0, 1)]
)
def test_memory_grows_by_an_image_a_step(tiny, name, eta, images_per_step):
    """With recomputation: x and, where there is any, its noise; without it 167 images a step in this small network."""
    x = images(4).requires_grad_()
    image = x.numel() * 4
    few, many, more = (saved_bytes(Sampler(name, k, eta), True, tiny, x) for k in (4, 8, 16))
    assert more - many == pytest.approx(2 * (many - few), rel=0.3)
    growth, without = (
        (many - few) / 4,
        (saved_bytes(Sampler(name, 8, eta), False, tiny, x) - saved_bytes(Sampler(name, 4, eta), False, tiny, x)) / 4,
    )
    assert 0 < growth <= images_per_step * image + 4096
    assert without > 50 * growth
