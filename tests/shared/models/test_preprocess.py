"""Input transformations: against written-out computations, per-sample draws, gradients, ranges."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from shared.diffusion import GaussianDenoiser, Purifier, Schedule
from shared.errors import UserError
from shared.models.preprocess import (
    JPEG,
    BitDepth,
    GaussianBlur,
    Identity,
    MedianBlur,
    NoiseOnly,
    ResizeOnly,
    ResizePad,
    TotalVariation,
    straight_through,
)
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

SCHEDULE = Schedule.linear()
ALL = [
    Identity(),
    JPEG(50),
    BitDepth(3),
    MedianBlur(),
    GaussianBlur(0.8),
    ResizeOnly(12),
    ResizePad(),
    NoiseOnly(SCHEDULE, 100),
    TotalVariation(),
]
PIXELS = 20 * 20  # terms of the longest sum: a denoised picture's own, a resampled pixel's at most
NAMES = [type(d).__name__ for d in ALL]


@pytest.fixture(scope="module")
def x():
    smooth = F.interpolate(
        torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0)), size=(20, 20), mode="bilinear"
    )
    return (smooth + 0.1 * SampleRng(0, range(6)).normal((3, 20, 20))).clamp(0, 1)


@pytest.mark.parametrize("defence", ALL, ids=NAMES)
def test_shape_range_name_and_batch_independence(defence, x):
    rng = SampleRng(3, range(6))
    before = x.clone()
    out = defence(x, rng)
    assert (
        out.shape == x.shape and out.dtype == x.dtype and out.min() >= 0 and out.max() <= 1 and torch.equal(x, before)
    )
    rows = torch.tensor([4, 1])
    assert_within_rounding(defence(x[rows], rng.subset(rows)), out[rows], terms=PIXELS)
    assert isinstance(defence.name, str) and defence.random is (type(defence) in (ResizePad, NoiseOnly))
    assert torch.equal(defence(x, rng.child("other")), out) is not defence.random
    assert defence(x[:0], rng.subset(torch.arange(0))).shape == (0, 3, 20, 20)
    assert torch.equal(x, before)


@pytest.mark.parametrize("defence", ALL, ids=NAMES)
def test_gradients_are_finite_and_reach_the_pixels(defence, x):
    image = x.clone().requires_grad_()
    weights = SampleRng(9, range(6)).normal((3, 20, 20))
    (grad,) = torch.autograd.grad((defence(image, SampleRng(3, range(6))) * weights).sum(), image)
    assert grad.isfinite().all() and (grad != 0).flatten(1).any(dim=1).all()
    if type(defence) in (Identity, JPEG, BitDepth, TotalVariation):
        assert torch.equal(grad, weights)


@pytest.mark.parametrize(
    "defence",
    [GaussianBlur(0.8), ResizeOnly(5), ResizePad(), NoiseOnly(SCHEDULE, 30), MedianBlur()],
    ids=lambda d: d.name,
)
def test_gradients_against_finite_differences(defence):
    x = (0.4 + 0.2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda image: defence(image, SampleRng(0, range(2))), x, atol=1e-6, fast_mode=True)


def test_straight_through_is_exact(x):
    value, source = x * 3 + 1 / 3, x.clone().requires_grad_()
    out = straight_through(value, source)
    assert torch.equal(out, value) and torch.equal(torch.autograd.grad(out.sum(), source)[0], torch.ones_like(x))


@pytest.mark.parametrize(("quality", "cut"), [(1, 0), (10, 3), (75, 0), (95, 1)])
def test_jpeg_is_the_codec(x, quality, cut):
    x = x[..., cut:]
    out = JPEG(quality)(x)
    for picture, found in zip(x, out, strict=True):
        buffer = io.BytesIO()
        content = (picture.permute(1, 2, 0).numpy() * 255).round().astype("uint8")
        Image.fromarray(content).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        expected = np.array(Image.open(buffer)).transpose(2, 0, 1)
        assert torch.equal(found.mul(255).round().byte(), torch.from_numpy(expected))
    error = (out - x).square().mean()
    assert error > 0 and (quality < 10 or error < (JPEG(5)(x) - x).square().mean())


def test_bit_depth_by_hand():
    x = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.9, 1.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    expected = torch.tensor([0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0])  # 0.5·3 = 1.5 rounds to the even 2
    assert_within_rounding(BitDepth(2)(x)[0, 0, 0], expected, terms=4)
    assert torch.equal(BitDepth(1)(x).unique(), torch.tensor([0.0, 1.0]))


def test_blurs_by_hand(x):
    one = torch.zeros(1, 3, 9, 9)
    one[:, :, 4, 4] = 1
    out = GaussianBlur(1.0)(one)
    assert_within_rounding(out.sum(dim=(2, 3)), torch.ones(1, 3), terms=PIXELS)
    assert_within_rounding(
        out[0, 0, 4, 5] / out[0, 0, 4, 4], torch.tensor(np.exp(-0.5), dtype=torch.float32), terms=PIXELS
    )
    assert_within_rounding(out[0, 0, 5, 6], out[0, 0, 6, 5], terms=PIXELS)
    assert MedianBlur(3)(one).abs().max() == 0  # a single bright pixel is an outlier
    assert_within_rounding(MedianBlur(3)(x)[1, 2, 7, 8], x[1, 2, 6:9, 7:10].flatten().median(), terms=PIXELS)


@pytest.mark.parametrize("size", [12, 32])
def test_resize_only_is_the_bridge_of_the_purifier(x, size):
    bridge = Purifier(GaussianDenoiser(0.0, 1.0, SCHEDULE, size=size), t=0)
    assert_within_rounding(ResizeOnly(size)(x), bridge(x, SampleRng(0, range(6))), terms=PIXELS)
    assert ResizeOnly(20)(x) is x


def test_resize_pad_is_what_its_docstring_says(x):
    """A white picture shows where it was put: a square of side r·S/L at the corner that was drawn, black around it."""
    n, size, ratio = 200, 20, 1.5  # canvas 30, sides 20 … 29
    out = ResizePad(ratio)(torch.ones(n, 3, size, size), SampleRng(0, range(n)))
    assert torch.equal(out[:, 0], out[:, 1])
    area = out[:, 0].sum(dim=(1, 2)) / size**2
    share = area.sqrt() * 30  # r, up to half-covered border pixels
    assert share.min() > 19 and share.max() < 30 and len(area.unique()) > 8
    mass, at = out[:, 0].sum(dim=1), torch.arange(size) + 0.5
    centre = (mass * at).sum(dim=1) / mass.sum(dim=1)
    r = share.round()
    corner = centre * 1.5 - r / 2
    assert corner.min() > -1 and (corner - (30 - r)).max() < 1 and corner.std() > 1
    u = SampleRng(5, [7]).uniform((3,))[0].double()
    side = 20 + int(u[0] * 10)
    top, left = int(u[1] * (31 - side)), int(u[2] * (31 - side))
    picture = x[:1]
    small = F.interpolate(picture, size=(side, side), mode="bilinear", align_corners=False)
    canvas = F.pad(small, (left, 30 - side - left, top, 30 - side - top))
    two_steps = F.interpolate(canvas, size=(size, size), mode="bilinear", align_corners=False)
    one_step = ResizePad(ratio)(picture, SampleRng(5, [7]))
    assert (one_step - two_steps).abs().mean() < 0.04 < (picture - two_steps).abs().mean()


def test_noise_only_is_the_forward_process_rescaled(x):
    rng, t = SampleRng(0, range(6)), 150
    native = SCHEDULE.diffuse(2 * x - 1, t, rng.normal((3, 20, 20)))
    expected = ((native / SCHEDULE.alpha_bar(t).sqrt().float() + 1) / 2).clamp(0, 1)
    assert_within_rounding(NoiseOnly(SCHEDULE, t)(x, rng), expected, terms=PIXELS)
    grey = torch.full((400, 3, 8, 8), 0.5)
    spread = (NoiseOnly(SCHEDULE, 30)(grey, SampleRng(1, range(400))) - 0.5).std()
    assert spread.item() == pytest.approx((SCHEDULE.sigma(30) / SCHEDULE.alpha(30) / 2).item(), rel=0.01)  # of a sample
    assert torch.equal(NoiseOnly(SCHEDULE, 0)(x, rng), x)


def test_total_variation_falls(x):
    def variation(image):
        return (image.diff(dim=2).abs().sum() + image.diff(dim=3).abs().sum()).item()

    some, much = TotalVariation(0.05)(x), TotalVariation(0.5)(x)
    assert variation(much) < variation(some) < variation(x)
    assert (some.mean(dim=(2, 3)) - x.mean(dim=(2, 3))).abs().max() < 2e-3  # of an iteration that has not ended


def chambolle(x: torch.Tensor, weight: float, steps: int) -> torch.Tensor:
    """z = x + div p after so many steps p <- (p + ∇z/4) / (1 + |∇z|/(4·weight)) from p = 0, ∇ by forward differences; as the library counts, the
    first of its iterations has z = x."""

    def divergence(p):
        d = p.sum(0)
        d[..., 1:, :] -= p[0][..., :-1, :]
        d[..., 1:] -= p[1][..., :-1]
        return d

    p, z = torch.zeros(2, *x.shape, dtype=x.dtype), x
    for k in range(steps):
        z = x if k == 0 else x + divergence(p)
        g = torch.zeros_like(p)
        g[0][..., :-1, :], g[1][..., :-1] = z.diff(dim=-2), z.diff(dim=-1)
        p = (p + g / 4) / (1 + g.square().sum(0).sqrt() / (4 * weight))
    return z


@pytest.mark.parametrize("weight", [0.01, 0.05])  # at large weights a step multiplies rounding errors
@pytest.mark.parametrize("steps", [1, 2, 30, 200])
def test_total_variation_takes_as_many_steps_as_it_is_asked_for(x, weight, steps):
    x = x.double()
    assert_within_rounding(TotalVariation(weight, steps)(x), chambolle(x, weight, steps).clamp(0, 1), terms=8 * steps)


def test_total_variation_comes_near_its_minimum(x):
    """The objective falls with the steps; the default's is nearer to the minimum than the library's own end is."""
    from skimage.restoration import denoise_tv_chambolle

    def objective(z):
        g = torch.zeros(2, *x.shape, dtype=torch.float64)
        g[0][..., :-1, :], g[1][..., :-1] = z.diff(dim=-2), z.diff(dim=-1)
        return float((z - x).square().sum() / 2 + 0.05 * g.square().sum(0).sqrt().sum())

    x = x.double()
    early = torch.stack([torch.from_numpy(denoise_tv_chambolle(p.numpy(), weight=0.05, channel_axis=0)) for p in x])
    best, default, stopped = (objective(z) for z in (TotalVariation(0.05, 3000)(x), TotalVariation(0.05)(x), early))
    assert best <= default < best + (stopped - best) / 5


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: TotalVariation(iterations=0), "iterations is 0: use a whole number from 1"),
        (lambda: JPEG(0), "quality is 0: use a whole number from 1 to 95."),
        (lambda: BitDepth(9), "bits is 9: use a whole number from 1 to 8."),
        (lambda: MedianBlur(4), "odd number"),
        (lambda: GaussianBlur(0.0), "above 0"),
        (lambda: GaussianBlur(3.0)(torch.zeros(1, 3, 8, 8)), "more than 9 pixels a side"),
        (lambda: MedianBlur(9)(torch.zeros(1, 3, 4, 4)), "more than 4 pixels a side"),
        (lambda: ResizeOnly(8, "nearest"), "'bilinear' or 'bicubic'"),
        (lambda: ResizePad(0.9), "from 1 to 10"),
        (lambda: ResizePad()(torch.zeros(2, 3, 8, 8), SampleRng(0, [1])), "rng is for 1 samples, the batch has 2"),
        (lambda: NoiseOnly(SCHEDULE, 1001)(torch.zeros(1, 3, 8, 8), SampleRng(0, [1])), "from 0 to 1000"),
        (lambda: TotalVariation(-1.0), "above 0"),
    ],
)
def test_mistakes_are_told_in_a_sentence(make, says):
    with pytest.raises(UserError, match=says):
        make()
