"""The scenes world: pure in (seed, index), and every picture shows what its attributes say."""

import os
import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import ndimage

from shared.data import scenes
from shared.data.scene_sets import SETS
from shared.data.scenes import (
    ATTRIBUTES,
    BACKGROUND_RGB,
    COLOURS,
    POSITIONS,
    RADIUS,
    RGB,
    SHAPES,
    SURFACES,
    Domain,
    render,
    sample,
)

DOMAINS = {"pre-training": Domain(), **{name: space.domain for name, space in SETS.items()}}
ONE = Domain(kinds=(1.0, 0.0, 0.0))
PLAIN = Domain(kinds=(1.0, 0.0, 0.0), fixed={"surface": ("plain",)})


def draw(domain, indices, size=32, seed=11):
    return render(sample(seed, indices, domain), domain, size)


def mask(s, domain):
    """Where the objects cover at least half of a pixel: where a picture changes if only the colour of its objects does."""
    change = np.abs(render(s, domain) - render(replace(s, colour=(s.colour + 3) % len(COLOURS)), domain)).max(1)
    return change > 0.5 * change.max((1, 2), keepdims=True)


SIGNATURE = """
import hashlib
import numpy as np
from shared.data.language import captions, questions
from shared.data.scenes import Domain, render, sample

indices = np.arange(200)
s = sample(5, indices)
pictures = render(s), render(s, Domain(grey=True, texture=True)), render(s, Domain(clutter=2, contrast=0.5, outline=True), 24)
sentences = repr((captions(s, 5, indices), questions(s, 5, indices))).encode()
signature = hashlib.sha256(b"".join(p.tobytes() for p in pictures) + sentences).hexdigest()
"""


@pytest.mark.parametrize("name", DOMAINS)
def test_a_picture_does_not_depend_on_its_batch(name):
    whole = draw(DOMAINS[name], np.arange(160))
    order = np.random.default_rng(0).permutation(160)
    for part in np.split(order, [1, 2, 5, 12, 33, 90]):
        assert np.array_equal(draw(DOMAINS[name], part), whole[part])
    assert len({p.tobytes() for p in whole}) == 160
    assert not np.array_equal(draw(DOMAINS[name], np.arange(8), seed=12), whole[:8])


@pytest.mark.parametrize("size", [16, 48])
def test_other_sizes_do_not_depend_on_the_batch_either(size):
    for name in ("tiny", "cluttered"):
        whole = draw(DOMAINS[name], np.arange(450), size)  # more than 400 objects are drawn in other groups than fewer
        assert whole.shape == (450, 3, size, size)
        assert all(np.array_equal(draw(DOMAINS[name], [i], size)[0], whole[i]) for i in range(0, 450, 25))


def test_long_batches_are_the_same_across_their_blocks():
    whole = draw(Domain(), np.arange(1100))
    assert np.array_equal(draw(Domain(), np.arange(1000, 1100)), whole[1000:])


def test_another_process_draws_the_same():
    root = scenes.__file__.rsplit("/shared/", 1)[0]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": root}
    result = subprocess.run(
        [sys.executable, "-c", SIGNATURE + "print(signature)"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    here = {}
    exec(SIGNATURE, here)
    assert result.stdout.strip() == here["signature"]


@pytest.mark.parametrize("name", DOMAINS)
def test_pictures_are_eight_bit_values(name):
    x = draw(DOMAINS[name], np.arange(64))
    assert x.dtype == np.float32 and x.shape == (64, 3, 32, 32)
    assert x.min() >= 0 and x.max() <= 1
    assert np.array_equal(np.rint(x * 255).astype(np.uint8).astype(np.float32) / np.float32(255), x)


def test_no_global_generator_is_used():
    before = np.random.get_state()[1].copy()
    draw(Domain(clutter=3, texture=True), np.arange(5))
    assert np.array_equal(np.random.get_state()[1], before)


def test_uniforms_are_uniform_and_streams_are_independent():
    u = scenes.uniforms(3, np.arange(20_000), 1, 4)
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u[:, 0], 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    others = [scenes.uniforms(seed, np.arange(20_000), stream, 2) for seed, stream in ((3, 2), (4, 1))]
    columns = np.column_stack([u, *others, np.roll(u[:, :1], 1, 0)])
    assert np.abs(np.corrcoef(columns.T) - np.eye(9)).max() < 0.03


def test_empty_batch():
    assert draw(Domain(), np.arange(0)).shape == (0, 3, 32, 32)


# ---- attributes ------------------------------------------------------------------------------------------------------------


def test_kinds_and_values_have_their_shares():
    s = sample(0, np.arange(20_000))
    assert np.bincount(s.kind) / 20_000 == pytest.approx([0.6, 0.2, 0.2], abs=0.015)
    for name in ("shape", "colour", "surface", "position", "background"):
        share = np.bincount(s.values(name), minlength=len(ATTRIBUTES[name])) / 20_000
        assert share == pytest.approx(1 / len(ATTRIBUTES[name]), abs=0.012), name
    single = s.kind == 0
    assert np.bincount(s.size[single]) / single.sum() == pytest.approx(1 / 3, abs=0.02)
    assert (s.size[~single] == 0).all()


def test_kind_and_number_of_objects_agree():
    s = sample(1, np.arange(5000))
    assert (s.n_objects[s.kind == 0] == 1).all() and (s.n_objects[s.kind == 2] == 2).all()
    assert set(s.n_objects[s.kind == 1]) == {2, 3}
    for name in ("shape", "colour", "surface"):
        a = getattr(s, name)
        assert (a[s.kind == 1] == a[s.kind == 1][:, :1]).all()
    two = s.kind == 2
    assert (s.shape[two, 0] != s.shape[two, 1]).all() and (s.colour[two, 0] != s.colour[two, 1]).all()


def test_given_and_fixed_attributes_are_kept():
    n = np.arange(400)
    given = {"shape": n % 8, "colour": n % 5, "surface": n % 4, "size": n % 3, "position": n % 5, "background": n % 6}
    s = sample(2, n, ONE, **given)
    assert all(np.array_equal(s.values(name), values) for name, values in given.items())
    s = sample(2, n, Domain(fixed={"colour": ("pink", "red"), "background": ("white",), "count": ("one", "three")}))
    assert {COLOURS[c] for c in s.colour[:, 0]} == {"pink", "red"} and {
        ATTRIBUTES["background"][b] for b in s.background
    } == {"white"}
    assert set(s.n_objects) == {1, 3}
    s = sample(2, n, ONE, count=n % 3)
    assert np.array_equal(s.values("count"), n % 3) and np.array_equal(s.n_objects, n % 3 + 1)


def test_objects_stay_inside_the_picture():
    s = sample(3, np.arange(3000))
    seen = np.arange(3) < s.n_objects[:, None]
    for centre in (s.cx, s.cy):
        assert (np.minimum(centre, 32 - centre)[seen] > 0.95 * s.radius[seen]).all()


def test_attributes_of_one_scene_are_a_function_of_its_index():
    whole, part = sample(4, np.arange(50)), sample(4, [17, 3])
    for f in fields(whole):
        assert np.array_equal(getattr(part, f.name), getattr(whole, f.name)[[17, 3]]), f.name


# ---- pictures --------------------------------------------------------------------------------------------------------------


def centres(x, s, reach):
    """(N, 3, 2·reach + 1, 2·reach + 1) around the first object's centre."""
    corners = zip(s.cy[:, 0].astype(int) - reach, s.cx[:, 0].astype(int) - reach, strict=True)
    return np.stack(
        [
            p[:, top : top + 2 * reach + 1, left : left + 2 * reach + 1]
            for p, (top, left) in zip(x, corners, strict=True)
        ]
    )


def test_plain_objects_have_the_named_colour():
    n = np.arange(640)
    filled = [SHAPES.index(name) for name in ("circle", "square", "triangle", "star", "cross", "heart")]
    s = sample(6, n, PLAIN, shape=np.array(filled)[n % 6], colour=n % 8, size=1 + n % 2)
    mean = centres(render(s, PLAIN), s, 1).mean((2, 3))
    light = (mean * RGB[s.colour[:, 0]]).sum(1) / (RGB[s.colour[:, 0]] ** 2).sum(1)  # of the picture, at that place
    assert ((light > 0.75) & (light < 1.2)).all()
    assert np.abs(mean / light[:, None] - RGB[s.colour[:, 0]]).max() < 0.1
    direction = RGB / np.linalg.norm(RGB, axis=1, keepdims=True)
    assert np.array_equal((mean @ direction.T / np.linalg.norm(mean, axis=1, keepdims=True)).argmax(1), s.colour[:, 0])


def test_patterned_objects_have_two_tones_and_plain_ones_one():
    n = np.arange(400)
    s = sample(7, n, ONE, shape=n % 2, surface=n % 4, size=np.full(400, 2))  # large circles and squares
    spread = centres(render(s, ONE), s, 4).mean(1).std((1, 2))
    plain = s.surface[:, 0] == 0
    assert 2 * spread[plain].max() < 0.04 < spread[~plain].min()


def test_stripes_run_one_way_and_dots_and_checks_do_not():
    n = np.arange(300)
    s = sample(8, n, ONE, shape=np.ones(300, int), surface=1 + n % 3, size=np.full(300, 2))
    patch = centres(render(s, ONE), s, 5).mean(1)
    patch = patch - patch.mean((1, 2), keepdims=True)
    dy, dx = np.gradient(patch, axis=(1, 2))
    tensor = np.stack(
        [(dx * dx).mean((1, 2)), (dx * dy).mean((1, 2)), (dx * dy).mean((1, 2)), (dy * dy).mean((1, 2))], 1
    ).reshape(-1, 2, 2)
    low, high = np.linalg.eigvalsh(tensor).T
    striped = s.surface[:, 0] == SURFACES.index("striped")
    assert (low / high)[striped].max() < 0.25 < np.quantile((low / high)[~striped], 0.02)


def test_count_is_the_number_of_connected_components():
    n = np.arange(600)
    s = sample(9, n, PLAIN, count=n % 3, shape=n // 3 % 8)
    labels = [ndimage.label(m, np.ones((3, 3)))[0] for m in mask(s, PLAIN)]
    found = [int((np.bincount(part.ravel())[1:] > 5).sum()) for part in labels]  # the tip of a moon may come off
    assert found == s.n_objects.tolist()


def test_position_is_the_side_of_the_centroid():
    n = np.arange(500)
    round_ones = np.array([SHAPES.index(name) for name in ("circle", "square", "star", "cross", "ring")])
    s = sample(10, n, PLAIN, position=n % 5, size=n // 5 % 2, shape=round_ones[n // 10 % 5])
    y, x = np.array([ndimage.center_of_mass(m) for m in mask(s, PLAIN)]).T - 15.5
    across, along = np.where(x < 0, "left", "right"), np.where(y < 0, "top", "bottom")
    side = np.where(np.hypot(x, y) < 3, "centre", np.where(np.abs(x) > np.abs(y), across, along))
    assert side.tolist() == [POSITIONS[p] for p in s.position]


def test_size_is_the_size_of_the_object():
    n = np.arange(300)
    s = sample(11, n, PLAIN, shape=np.zeros(300, int), size=n % 3)
    radius = np.sqrt(mask(s, PLAIN).sum((1, 2)) / np.pi) / 0.95
    assert np.abs(radius - s.radius[:, 0]).max() < 0.4
    assert ((s.radius[:, 0] >= RADIUS[s.size][:, 0]) & (s.radius[:, 0] <= RADIUS[s.size][:, 1])).all()
    assert (
        radius[s.size == 0].max() < radius[s.size == 1].min() and radius[s.size == 1].max() < radius[s.size == 2].min()
    )


def test_background_is_the_colour_around_the_objects():
    s = sample(12, np.arange(400))
    x, outside = render(s), ~np.array([ndimage.binary_dilation(m, iterations=2) for m in mask(s, Domain())])
    mean = np.stack([p[:, o].mean(1) for p, o in zip(x, outside, strict=True)])
    distance = np.linalg.norm(mean[:, None] - 0.97 * BACKGROUND_RGB, axis=2)
    assert np.array_equal(distance.argmin(1), s.background) and distance.min(1).max() < 0.14


def test_shapes_are_distinct_and_objects_are_visible():
    """Each shape's mask is nearer to the average of its own kind than to any other, upright and centred."""
    domain = replace(PLAIN, rotation=0.0)
    n = np.arange(320)
    s = sample(13, n, domain, shape=n % 8, position=np.full(320, POSITIONS.index("centre")), size=np.full(320, 2))
    s = replace(s, cx=np.full((320, 3), 16.0), cy=np.full((320, 3), 16.0), radius=np.full((320, 3), 12.0))
    masks = mask(s, domain).astype(float)
    average = np.stack([masks[:160][s.shape[:160, 0] == k].mean(0) for k in range(8)])
    assert np.array_equal(np.abs(masks[160:, None] - average).mean((2, 3)).argmin(1), s.shape[160:, 0])
    inside = masks > 0
    x = render(s, domain)
    contrast = [np.abs(p[:, m].mean(1) - p[:, ~m].mean(1)).max() for p, m in zip(x, inside, strict=True)]
    assert min(contrast) > 0.15


def test_two_different_objects_stand_side_by_side():
    s = sample(14, np.arange(300), Domain(kinds=(0.0, 0.0, 1.0)))
    assert (s.cx[:, 0] < 11).all() and (s.cx[:, 1] > 21).all()


# ---- domains ---------------------------------------------------------------------------------------------------------------


def test_outlines_are_hollow():
    n = np.arange(80)
    s = sample(15, n, PLAIN, shape=n % 2, size=np.full(80, 2))
    filled, contour = mask(s, PLAIN), mask(s, replace(PLAIN, outline=True))
    assert (contour.sum((1, 2)) < 0.5 * filled.sum((1, 2))).all()
    assert not contour[np.arange(80), s.cy[:, 0].astype(int), s.cx[:, 0].astype(int)].any()


def test_grey_pictures_have_no_colour():
    domain = Domain(grey=True)
    x, colourful = draw(domain, np.arange(60)), draw(Domain(), np.arange(60))
    noise = 2 * 0.03 + 1.5 / 255
    assert (x.max(1) - x.min(1)).max() <= noise < (colourful.max(1) - colourful.min(1)).max()
    luminance = np.einsum("c,nchw->nhw", [0.299, 0.587, 0.114], colourful)
    assert np.abs(x.mean(1) - luminance).max() < 0.06  # the same pictures otherwise


def test_low_contrast_pictures_are_pulled_to_mid_grey():
    flat, full = draw(Domain(contrast=0.35), np.arange(40)), draw(Domain(), np.arange(40))
    # 0.005: both are rounded to eight bits; what was cut off at 0 and 1 is still there in the flat one
    cut = (full == 0) | (full == 1)
    assert np.abs(flat - (0.5 + 0.35 * (full - 0.5)))[~cut].max() < 0.005
    assert flat.max() - flat.min() < 0.5


def test_clutter_and_texture_lie_behind_the_objects():
    n = np.arange(80)
    s = sample(16, n, PLAIN, size=np.full(80, 1), shape=n % 2)
    clean, inside = render(s, PLAIN), np.array([ndimage.binary_erosion(m, iterations=2) for m in mask(s, PLAIN)])
    for domain in (replace(PLAIN, clutter=8), replace(PLAIN, texture=True)):
        change = np.abs(render(s, domain) - clean).max(1)
        assert change[inside].max() == 0
        assert ((change > 0.05).mean((1, 2)) > 0.02).all()


def test_rotation_and_radius_are_those_of_the_domain():
    s = sample(17, np.arange(2000), Domain(rotation=60.0, radius=(3.0, 3.8)))
    assert np.rad2deg(np.abs(s.angle)).max() == pytest.approx(60, abs=0.5)
    assert s.radius.min() >= 3 and s.radius.max() <= 3.8
    turned = sample(17, [0], replace(PLAIN, rotation=0.0), shape=np.array([SHAPES.index("cross")]), size=np.array([2]))
    quarter = replace(turned, angle=turned.angle + np.pi / 2)
    eighth = replace(turned, angle=turned.angle + np.pi / 4)
    upright = mask(turned, PLAIN)
    assert (mask(quarter, PLAIN) ^ upright).mean() < 0.02 < (mask(eighth, PLAIN) ^ upright).mean()


# ---- speed -----------------------------------------------------------------------------------------------------------------


def rate(n: int, calls: int, rounds: int) -> float:
    """Pictures of the pre-training domain per second of this process's CPU time, the best of several."""
    s, best = sample(18, np.arange(n)), np.inf
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(calls):
            render(s)
        best = min(best, time.process_time() - began)
    return n * calls / best


def test_the_renderer_is_vectorised():
    assert rate(512, 1, 3) > 3 * rate(1, 20, 3)


@pytest.mark.bench
def test_the_renderer_draws_5000_pictures_a_second():
    assert rate(1024, 1, 8) >= 5000
