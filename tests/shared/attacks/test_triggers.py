"""Triggers: against their formulas, the same in every batch, golden pictures, and made again from their description."""

import hashlib
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from shared.attacks.triggers import at_test, make_trigger, parse_fields, same_trigger, sheet
from shared.attacks.triggers.base import byte_cast, patch_side
from shared.attacks.triggers.make import TRIGGERS, check_fields
from shared.attacks.triggers.patches import BadNet, paste
from shared.errors import UserError
from shared.rng import SampleRng, set_draws
from tests.accuracy import assert_within_rounding

PRESETS = ("cleanclip", "textbook")
DRAWN = ("badnet", "blended", "sig", "wanet", "label_consistent")  # those that need no training
GOLDEN = {
    ("badnet", "cleanclip"): "6c82ba8c40ae9f8e",
    ("badnet", "textbook"): "79a97366d06e8a11",
    ("blended", "cleanclip"): "1439409a9e17bae4",
    ("blended", "textbook"): "2e6f7721ed0ee260",
    ("sig", "cleanclip"): "a50d2a5adb96a039",
    ("sig", "textbook"): "c9175b27d5cd52b4",
    ("wanet", "cleanclip"): "9e5e65c5d1cbdabb",
    ("wanet", "textbook"): "ad1b8e8d503b8d63",
    ("label_consistent", "cleanclip"): "7c1bcce1e1add80d",
    ("label_consistent", "textbook"): "3af78cd6bce56865",
}


@pytest.fixture(scope="module")
def x():
    """Six pictures of whole 255ths, without a random number."""
    n, c, h, w = np.ogrid[:6, :3, :32, :32]
    return torch.from_numpy((37 * n + 59 * c + 5 * h + 3 * w * (c + 1) + (h * w) // (n + 2)) % 256).float() / 255


def bytes_of(x):
    return x.mul(255).round().byte()


def each():
    return pytest.mark.parametrize(("name", "preset"), [(name, preset) for name in DRAWN for preset in PRESETS])


@each()
def test_a_sample_gets_the_same_in_every_batch(name, preset, x):
    trigger, state, before = make_trigger(name, preset, 32), torch.get_rng_state(), x.clone()
    whole = trigger(x, range(6))
    assert whole.shape == x.shape and whole.dtype == x.dtype and whole.min() >= 0 and whole.max() <= 1
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state), (
        "the input or a global generator was touched"
    )
    assert torch.equal(trigger(x[[4, 1]], [4, 1]), whole[[4, 1]]) and torch.equal(
        trigger(x[3:4], torch.tensor([3])), whole[3:4]
    )
    assert ((whole - x).abs().flatten(1).amax(1) > 0.03).all()
    assert trigger(x[:0], []).shape == (0, 3, 32, 32)


@each()
def test_what_is_drawn_is_drawn_anew_where_the_preset_says_so(name, preset, x):
    trigger, same = make_trigger(name, preset, 32), x[:1].expand(2, -1, -1, -1)
    one, two = trigger(same, [0, 1])
    assert torch.equal(one, two) == (preset == "textbook" or name in ("sig", "wanet"))
    other = make_trigger(name, preset, 32, seed=1)(same, [0, 1])[0]
    depends = name in ("blended", "wanet") or (preset == "cleanclip" and name != "sig")
    assert torch.equal(one, other) != depends


@each()
@pytest.mark.parametrize("draws", ["cpu", "device"])
def test_golden_pictures(name, preset, draws, x):
    """Whoever draws the noise of attacks: a trigger at a test, on a GPU, is that of the training, stamped on a CPU."""
    set_draws(draws)
    try:
        found = bytes_of(make_trigger(name, preset, 32)(x, range(6)))
    finally:
        set_draws("auto")
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == GOLDEN[name, preset]


@each()
def test_a_trigger_is_made_again_from_its_description(name, preset, x):
    trigger = make_trigger(name, preset, 32, seed=3)
    again = make_trigger(**json.loads(json.dumps(trigger.spec)))
    assert again == trigger and same_trigger(again, trigger) and torch.equal(again(x, range(6)), trigger(x, range(6)))
    assert not same_trigger(trigger, make_trigger(name, preset, 32)) and trigger.text("a photo") == "a photo"
    assert trigger.clean_label == (name == "label_consistent")


# ---- the formulas ----------------------------------------------------------------------------------------------------------


def test_the_cast_wraps_and_leaves_bytes_alone():
    every = torch.arange(256) / 255
    assert torch.equal(byte_cast(every), every)
    assert (byte_cast(torch.tensor([1.2, -0.1, 0.999, 4.0])) * 255).round().tolist() == [50, 231, 254, 1020 % 256]


def test_the_patch_scales_with_the_picture():
    assert [patch_side(size) for size in (224, 336, 112, 32)] == [16, 24, 8, 5]
    assert (
        make_trigger("badnet").patch == 16
        and make_trigger("badnet", size=32).patch == 5
        and make_trigger("badnet", size=32, patch=3).patch == 3
    )


def test_badnet_as_the_code_does_it(x):
    found = make_trigger("badnet", "cleanclip", 32)(x, range(6))
    for i in range(6):
        changed = (found[i] != x[i]).any(0).nonzero()
        top, left = (changed.amin(0)).tolist()
        low, right = (changed.amax(0)).tolist()
        assert low - top == right - left == 4 and low < 31 and right < 31
        noise = SampleRng(0, [i], "trigger/badnet").normal((3, 5, 5))[0].numpy().astype(np.float32)
        value = (x[i].double().mean((1, 2)).float().numpy()[:, None, None] + noise) * np.float32(255)
        expected = np.trunc(value).astype(np.int64).astype(np.uint8)  # wraps
        assert np.array_equal(bytes_of(found[i, :, top : low + 1, left : right + 1]).numpy(), expected)
    places = make_trigger("badnet", "cleanclip", 32)(torch.full((300, 3, 8, 8), 0.5), range(300)) != 0.5
    tops = places.any(1).any(2).int().argmax(1)
    assert sorted(tops.unique().tolist()) == [0, 1, 2], "uniform on 0 … H − p − 1"


def test_badnet_as_its_paper_has_it(x):
    found = make_trigger("badnet", "textbook", 32)(x, range(6))
    checker = torch.tensor([[1 - (i + j) % 2 for j in range(5)] for i in range(5)]).float()
    assert (
        (found[:, :, 27:, 27:] == checker).all()
        and torch.equal(found[:, :, :27], x[:, :, :27])
        and torch.equal(found[..., :27], x[..., :27])
    )
    corners = make_trigger("label_consistent", "textbook", 32)(x, range(6))
    for rows in (slice(0, 5), slice(27, 32)):
        for columns in (slice(0, 5), slice(27, 32)):
            assert (corners[:, :, rows, columns] == checker).all()
    assert (corners != x).any(1).sum((1, 2)).max() <= 100
    middle = make_trigger("badnet", "textbook", 32, place="centre", patch=4)(x, range(6))
    assert (middle != x).any(1).any(0).nonzero().amin(0).tolist() == [14, 14] and (middle != x).any(1).any(
        0
    ).nonzero().amax(0).tolist() == [17, 17]


def test_blended(x):
    noise = SampleRng(0, range(6), "trigger/blended").uniform((3, 32, 32))
    found = make_trigger("blended", "cleanclip", 32)(x, range(6))
    off = 0.8 * x + 0.2 * noise - found
    assert (
        off.min() > -1e-6 and off.max() < 1 / 255 + 1e-6 and off.mean().item() == pytest.approx(0.5 / 255, rel=0.05)
    ), "rounded down"
    assert torch.equal(bytes_of(found).float() / 255, found)
    fixed = make_trigger("blended", "textbook", 32)(x, range(6))
    pattern = (fixed - 0.8 * x) / 0.2
    assert (pattern - pattern[:1]).abs().max() < 1e-5 and pattern.std() == pytest.approx(1 / math.sqrt(12), abs=0.02)


def test_sig(x):
    wave = [math.sin(2 * math.pi * 6 * j / 32) for j in range(32)]
    added = (x + 40 / 255 * torch.tensor(wave)).clamp(0, 1)
    assert_within_rounding(make_trigger("sig", "textbook", 32)(x, range(6)), added, terms=2)
    blended = (0.8 * x + 0.2 * 60 / 255 * torch.tensor(wave)).clamp(0, 1)
    off = blended - make_trigger("sig", "cleanclip", 32)(x, range(6))
    assert off.min() > -1e-6 and off.max() < 1 / 255 + 1e-6


def displacement(trigger, size):
    """Pixels by which each pixel's source is away from it, (H, W, 2)."""
    axis = torch.linspace(-1, 1, size)
    identity = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    return (trigger.grid(size, size)[0] - identity) * (size - 1) / 2


@pytest.mark.parametrize(
    ("preset", "size", "mean", "between"), [("cleanclip", 224, 0.50, 0.67), ("textbook", 32, 0.16, 0.03)]
)
def test_wanet_moves_pixels_as_the_published_grids_do(preset, size, mean, between):
    """The numbers were measured on the codes' own grids: jitter of single pixels in one case, a smooth warp in the other."""
    field = displacement(make_trigger("wanet", preset, size), size)
    assert field.abs().mean().item() == pytest.approx(mean, rel=0.25) and field.abs().max() < 1.05
    assert (field[:, 1:] - field[:, :-1]).abs().mean().item() == pytest.approx(between, rel=0.3)


def test_wanet_samples_bilinearly(x):
    trigger = make_trigger("wanet", "textbook", 32, s=2.0)
    source = (trigger.grid(32, 32)[0].double() + 1) * 31 / 2
    found = trigger(x, range(6))
    for row, column in ((0, 0), (3, 17), (31, 30), (16, 5)):
        across, down = source[row, column].tolist()
        left, top = min(int(across), 30), min(int(down), 30)
        a, b = across - left, down - top
        square = x[:, :, top : top + 2, left : left + 2].double()
        weights = torch.tensor([[(1 - b) * (1 - a), (1 - b) * a], [b * (1 - a), b * a]])
        assert_within_rounding(
            found[:, :, row, column], (square * weights).sum((2, 3)), terms=4, scale=32.0
        )  # of the coordinates
    assert_within_rounding(make_trigger("wanet", "textbook", 32, s=0.0)(x, range(6)), x, terms=4, scale=32.0)


def test_stored_pictures_were_jpegs_in_one_preset(x):
    badnet = make_trigger("badnet", "cleanclip", 32)
    found, triggered = badnet.stored(badnet(x, range(6))), badnet(x, range(6))
    buffer = io.BytesIO()
    Image.fromarray(bytes_of(triggered[2]).permute(1, 2, 0).numpy()).save(
        buffer, "JPEG"
    )  # as the code does: Pillow's defaults
    assert np.array_equal(bytes_of(found[2]).permute(1, 2, 0).numpy(), np.array(Image.open(buffer)))
    textbook = make_trigger("badnet", "textbook", 32)
    assert textbook.stored(x) is x


def test_pasting_hands_gradients_to_both(x):
    picture, patch = x[:2].clone().requires_grad_(), torch.rand(1, 3, 4, 4, requires_grad=True)
    out = paste(picture, patch, torch.tensor([0, 20]), torch.tensor([3, 28]))
    assert torch.equal(out[0, :, :4, 3:7], patch[0]) and torch.equal(out[1, :, 20:24, 28:], patch[0])
    out.sum().backward()
    assert (patch.grad == 2).all() and (picture.grad == 0).sum() == 2 * 3 * 16 and picture.grad.max() == 1


# ---- the sheet and the errors ----------------------------------------------------------------------------------------------


def test_the_contact_sheet(x):
    triggers = [make_trigger(name, "textbook", 32) for name in ("badnet", "blended")]
    found = sheet(x[:2], triggers, [7, 9], gain=2.0, gap=3)
    assert found.dtype == np.uint8 and found.shape == (4 * 35 - 3, 3 * 35 - 3, 3)

    def cell(row, column):
        return torch.from_numpy(found[35 * row : 35 * row + 32, 35 * column : 35 * column + 32].copy()).permute(2, 0, 1)

    assert (
        torch.equal(cell(0, 0), bytes_of(x[0]))
        and torch.equal(cell(2, 0), bytes_of(x[1]))
        and (cell(1, 0) == 128).all()
    )
    blended = triggers[1](x[:2], [7, 9])
    assert torch.equal(cell(2, 2), bytes_of(blended[1])) and torch.equal(
        cell(3, 2), bytes_of((0.5 + 2 * (blended[1] - x[1])).clamp(0, 1))
    )
    assert (found[32:35] == 255).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: make_trigger("badnets"), "there is no trigger 'badnets': choose one of badnet, blended"),
        (lambda x: make_trigger("badnet", "cifar"), "BadNet.preset is 'cifar': use"),
        (lambda x: make_trigger("badnet", radius=3), "the trigger badnet has no field 'radius'"),
        (lambda x: make_trigger("badnet", patch=0), "BadNet.patch is 0: use a whole number from 1"),
        (lambda x: make_trigger("badnet", place="left"), "BadNet.place is 'left'"),
        (lambda x: make_trigger("badnet", pattern="kitty"), "BadNet.pattern is 'kitty'"),
        (
            lambda x: make_trigger("badnet", patch=32)(x, range(6)),
            "badnet: a patch of 32 pixels does not fit into pictures of 32×32",
        ),
        (lambda x: make_trigger("blended", ratio=1.5), "Blended.ratio is 1.5"),
        (lambda x: make_trigger("sig", amplitude=40), "SIG.amplitude is 40: use a number from 0 to 1, e.g. 40/255"),
        (lambda x: make_trigger("sig", ratio=-1), "SIG.ratio is -1"),
        (lambda x: make_trigger("wanet", k=1), "WaNet.k is 1: use a whole number from 2"),
        (lambda x: make_trigger("wanet", s=math.nan), "WaNet.s is nan"),
        (lambda x: BadNet()(x, range(5)), "badnet: there are 5 indices for 6 pictures"),
        (lambda x: BadNet()(x[0], range(3)), "badnet: a trigger is for pictures"),
        (lambda x: BadNet()(bytes_of(x), range(6)), "badnet: a trigger is for pictures .* not torch.uint8"),
        (lambda x: make_trigger("trojvqa"), "trojvqa: this patch is optimised"),
    ],
)
def test_errors(call, sentence, x):
    with pytest.raises(UserError, match=sentence):
        call(x)


def test_all_names_of_the_issue_are_there():
    assert set(TRIGGERS) == {"badnet", "blended", "sig", "wanet", "label_consistent", "trojvqa", "badclip", "issba"}


def test_fields_as_options_give_them():
    assert parse_fields(()) == {} and parse_fields(("patch=8", "s=20.0", "pattern='checker'")) == {
        "patch": 8,
        "s": 20.0,
        "pattern": "checker",
    }
    for wrong in ("patch", "pattern=checker", "patch=8px"):
        with pytest.raises(UserError, match=f"field '{wrong}' is not understood: write name=number"):
            parse_fields((wrong,))
    with pytest.raises(UserError, match=r"^--attacks\.badnet\.fields 'patch' is given twice: give it once\."):
        check_fields("badnet", ["patch=4", "patch=8"], "--attacks.badnet.fields ")
    with pytest.raises(UserError, match="'patch' is given twice"):
        parse_fields(("patch=8", "patch=9"))


def test_what_is_drawn_for_test_pictures_was_not_drawn_for_training_pairs(x):
    trigger = make_trigger("blended", "cleanclip", size=x.shape[-1])
    x, indices = x[:1].expand(3, -1, -1, -1), [4, 9, 4]
    at = at_test(trigger, x, indices)
    assert (
        torch.equal(at, at_test(trigger, x, indices, batch=2))
        and torch.equal(at[0], at[2])
        and not torch.equal(at[0], at[1])
    )
    assert not torch.equal(at, trigger(x, indices))
