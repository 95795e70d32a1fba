"""Augmentation: ranges, independence of the batch, each operation against its definition, captions fixed for a run."""

import math

import pytest
import torch

from papers.roclip.augment import MILD, RELEASED, CaptionAugmentation, ImageAugmentation
from shared.data.scene_sets import ScenePairs
from shared.errors import UserError
from tests.accuracy import assert_within_rounding

N = 24


@pytest.fixture(scope="module")
def x():
    return ScenePairs(N).__getitems__(range(N))[0]


@pytest.mark.parametrize("augment", [MILD, RELEASED], ids=["mild", "released"])
def test_pictures_stay_pictures_and_depend_on_nothing_but_seed_step_and_index(x, augment):
    before = x.clone()
    whole = augment(x, 3, range(N))
    assert whole.shape == x.shape and whole.min() >= 0 and whole.max() <= 1 and torch.equal(x, before)
    assert_within_rounding(augment(x[5:7], 3, [5, 6]), whole[5:7], terms=32 * 32)  # the mean grey of a picture
    assert torch.equal(augment(x, 3, range(N)), whole)
    assert not torch.allclose(augment(x, 4, range(N)), whole) and not torch.allclose(
        augment(x, 3, range(1, N + 1)), whole
    )


def test_nothing_by_default(x):
    assert torch.equal(ImageAugmentation()(x, 0, range(N)), x)


def test_a_shift_moves_by_whole_pixels_and_repeats_the_edges(x):
    out, seen = ImageAugmentation(shift=2)(x, 0, range(N)), set()
    padded = torch.nn.functional.pad(x, (2,) * 4, mode="replicate")
    for k in range(N):
        moves = [
            (a, b) for a in range(5) for b in range(5) if torch.equal(out[k], padded[k, :, a : a + 32, b : b + 32])
        ]
        assert moves
        seen.add(moves[0])
    assert len(seen) > 10


def test_a_mirror_is_a_mirror_half_of_the_time(x):
    out = ImageAugmentation(mirror=0.5)(x.repeat(20, 1, 1, 1), 0, range(20 * N))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(out, x.repeat(20, 1, 1, 1), strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, out, x.repeat(20, 1, 1, 1), strict=True))
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6


def test_colours_of_a_grey_picture_do_not_appear():
    grey = torch.linspace(0.1, 0.9, 32).expand(4, 3, 32, 32)
    assert_within_rounding(ImageAugmentation(hue=0.5, saturation=0.5)(grey, 0, range(4)), grey, terms=32 * 32)


def test_brightness_and_contrast(x):
    out = ImageAugmentation(brightness=0.2)(x * 0.8, 0, range(N))
    factor = (out / (x * 0.8).clamp(min=1e-3)).flatten(1).median(1).values
    assert factor.min() >= 0.8 - 1e-4 and factor.max() <= 1.2 + 1e-4 and factor.std() > 0.05
    half = torch.full((N, 3, 8, 8), 0.5)
    assert_within_rounding(ImageAugmentation(contrast=0.5)(half, 0, range(N)), half, terms=32 * 32)


def test_a_jitter_that_is_off_changes_nothing(x):
    assert torch.equal(ImageAugmentation(jittered=0.0, brightness=0.5)(x, 0, range(N)), x)
    assert_within_rounding(
        ImageAugmentation(grey=1.0)(x, 0, range(N)).std(1), torch.zeros(N, 32, 32), terms=3, scale=1.0
    )


def test_the_blur_is_a_gaussian_of_every_picture():
    x = torch.zeros(2, 3, 32, 32)
    x[:, :, 16, 16] = 1
    out = ImageAugmentation(blur=(1.5, 1.5))(x, 0, range(2))
    assert_within_rounding(out.sum((2, 3)), torch.ones(2, 3), terms=32 * 32)
    assert_within_rounding(
        out[0, 0, 16, 18] / out[0, 0, 16, 16], torch.tensor(math.exp(-0.5 * (2 / 1.5) ** 2)), terms=32
    )
    assert_within_rounding(out, out.transpose(2, 3), terms=32)


def test_a_crop_keeps_at_least_its_share():
    ramp = torch.arange(32.0).expand(16, 3, 32, 32) / 31
    for least in (0.08, 0.5):
        out = ImageAugmentation(area=(least, 1.0))(ramp, 0, range(16))
        spread = out[:, 0, 0].amax(1) - out[:, 0, 0].amin(1)
        assert spread.min() > math.sqrt(least * 3 / 4) - 0.08 and spread.max() <= 1


def test_captions_are_changed_once(clip):
    texts = ScenePairs(64).__getitems__(range(64))[1]
    bound = CaptionAugmentation().bind(clip.tokenizer)
    first = bound(texts, range(64))
    assert (
        bound(texts[10:12], [10, 11])
        == first[10:12]
        == CaptionAugmentation().bind(clip.tokenizer)(texts[10:12], [10, 11])
    )
    assert bound(["something else"], [10]) == first[10:11]  # what it was when it was met first
    assert (
        sum(a != b for a, b in zip(first, texts, strict=True)) > 40
        and CaptionAugmentation(seed=2).bind(clip.tokenizer)(texts, range(64)) != first
    )
    clip.tokenizer(first)  # inside the vocabulary


@pytest.mark.parametrize(
    "fields",
    [
        {"mirror": 2},
        {"hue": 0.6},
        {"shift": -1},
        {"area": (0, 1)},
        {"blur": (0.0, 1.0)},
        {"blur": (1.0, 2.0), "kernel": 4},
    ],
)
def test_what_is_refused(fields):
    with pytest.raises(UserError):
        ImageAugmentation(**fields)
