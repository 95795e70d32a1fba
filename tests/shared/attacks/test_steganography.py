"""The steganographic trigger: the encoder's bounds, the training against a plain loop, its continuation, the script, and the one in the zoo."""

import copy
import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from shared.attacks.triggers import make_trigger, same_trigger
from shared.attacks.triggers.steganography import Steganographer, bits_of, read_steganographer, save_steganographer
from shared.data.scene_sets import ScenePairs, SceneSet
from shared.errors import UserError
from shared.files import sha256_file
from shared.models import zoo
from shared.models.clip import save_tensors
from shared.models.preprocess import JPEG
from shared.rng import SampleRng
from shared.training import steganography as script
from shared.training import zoo as making
from shared.training.steganography import (
    StegaConfig,
    as_read,
    fit_steganographer,
    quality,
    random_steganographer,
    strength_at,
)
from tests.accuracy import assert_within_rounding

CONFIG = StegaConfig(steps=6, batch=4, warmup=2, every=2)


@pytest.fixture(scope="module")
def x():
    return SceneSet("colour", "test", 8).__getitems__(range(8))[0]


@pytest.fixture
def tiny():
    return random_steganographer(16, 1, bits=8, width=8)


@pytest.fixture
def source(tmp_path):
    save_steganographer(random_steganographer(32, 2, width=8), tmp_path / "s.safetensors")
    return str(tmp_path / "s.safetensors")


class Pictures(ScenePairs):
    """Scenes of 16 pixels, whose reading is killed at the k-th batch."""

    def __init__(self, n=100, kill=None):
        super().__init__(n, size=16)
        self.left = kill

    def __getitems__(self, indices):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return super().__getitems__(indices)


class Killed(BaseException):
    pass


# ---- encoder and trigger ---------------------------------------------------------------------------------------------------


def test_the_bits_of_a_text():
    assert bits_of("A", 10).tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert len(bits_of("Stega!!", 56)) == 56
    with pytest.raises(UserError, match="the secret 'Stega!!' has 56 bits and the encoder hides 48"):
        bits_of("Stega!!", 48)


@pytest.mark.parametrize("side", [16, 32, 47])
def test_the_residual_has_a_fixed_energy_at_any_size(tiny, side):
    x, bits = SampleRng(0, range(5)).uniform((3, side, side)), SampleRng(0, range(5), "b").integers(2, (8,)).float()
    r = tiny.residual(x, bits)
    assert r.shape == x.shape
    assert_within_rounding(r.square().mean((1, 2, 3)).sqrt(), torch.ones(5), terms=3 * side**2)
    hidden = tiny.encode(x, bits)
    assert hidden.min() >= 0 and hidden.max() <= 1 and tiny.decode(hidden).shape == (5, 8)
    assert ((hidden - x).square().mean((1, 2, 3)) <= tiny.strength**2 * 1.0001).all(), "PSNR ≥ −20 log ρ"
    assert torch.equal(hidden, (x + 0.03 * r).clamp(0, 1)) and not torch.equal(r, tiny.residual(x, 1 - bits))
    assert not torch.equal(r[:1], tiny.residual(x[1:2], bits[:1])), "other pictures, other residuals"


@pytest.mark.parametrize("preset", ["cleanclip", "textbook"])
def test_a_sample_gets_the_same_in_every_batch(preset, source, x):
    trigger, state = make_trigger("issba", preset, 32, source=source), torch.get_rng_state()
    whole = trigger(x, range(8))
    assert torch.equal(trigger(x[[5, 2]], [5, 2]), whole[[5, 2]]) and torch.equal(trigger(x[7:], [3]), whole[7:])
    assert whole.dtype == torch.float32 and torch.equal(torch.get_rng_state(), state)
    network, bits = read_steganographer(source), bits_of("Stega!!", 56).expand(8, -1)
    assert (whole - network.encode(x, bits)).abs().max() < (1.01 / 255 if preset == "cleanclip" else 1e-5)
    again = make_trigger(**json.loads(json.dumps(trigger.spec)))
    assert again == trigger and same_trigger(again, trigger)
    assert not torch.equal(make_trigger("issba", preset, 32, source=source, secret="other")(x, range(8)), whole)


@pytest.mark.parametrize("preset", ["cleanclip", "textbook"])
def test_another_strength_scales_the_same_residual(preset, source, x):
    own, same, strong = (make_trigger("issba", preset, 32, source=source, strength=rho) for rho in (None, 0.03, 0.12))
    assert torch.equal(own(x, range(8)), same(x, range(8))) and not same_trigger(own, same)
    network, bits = read_steganographer(source), bits_of("Stega!!", 56).expand(8, -1)
    assert (strong(x, range(8)) - (x + 0.12 * network.residual(x, bits)).clamp(0, 1)).abs().max() < (
        1.01 / 255 if preset == "cleanclip" else 1e-5
    )
    assert same_trigger(make_trigger(**json.loads(json.dumps(strong.spec))), strong)
    assert network.strength == 0.03, "the encoder is shared by all triggers: it must not change"


@pytest.mark.parametrize("strength", [0, -0.1, 1.5, math.nan])
def test_a_strength_out_of_range_is_refused(strength, source):
    with pytest.raises(UserError, match=r"ISSBA\.strength is .*: use a number above 0 and at most 1"):
        make_trigger("issba", source=source, strength=strength)


def test_a_trigger_knows_its_encoder(source, tmp_path, x):
    spec = make_trigger("issba", source=source).spec
    assert spec["sha256"] == sha256_file(source)
    save_steganographer(random_steganographer(32, 3, width=8), source)
    with pytest.raises(UserError, match=r"issba: the encoder .* is not the one that was described"):
        make_trigger(**spec)
    other = make_trigger("issba", source=source)
    assert other.sha256 != spec["sha256"] and other(x, range(8)).shape == x.shape
    for missing, sentence in (
        (str(tmp_path / "no.safetensors"), "issba: there is no encoder at"),
        ("zoo:no", "there is no zoo model named 'no'"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_trigger("issba", source=missing)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        make_trigger("issba", source=str(tmp_path / "bad.safetensors"))(x, range(8))
    with pytest.raises(UserError, match="the secret 'too long a secret' has 136 bits and the encoder hides 56"):
        make_trigger("issba", source=source, secret="too long a secret")(x, range(8))


def test_the_file_says_what_it_is(tiny, tmp_path):
    save_steganographer(tiny, tmp_path / "s.safetensors")
    read = read_steganographer(tmp_path / "s.safetensors")
    assert read.config == tiny.config and not read.training and not any(p.requires_grad for p in read.parameters())
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), tiny.parameters(), strict=True))
    save_tensors(tiny.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not a steganographic encoder that this project wrote"):
        read_steganographer(tmp_path / "other.safetensors")


# ---- training --------------------------------------------------------------------------------------------------------------


def test_the_strength_falls_geometrically_to_its_last_value():
    config = StegaConfig(steps=100, start=0.32, ramp=0.5)
    assert [strength_at(k, config, 0.02) for k in (0, 25, 50, 99)] == pytest.approx([0.32, 0.08, 0.02, 0.02])


def test_pictures_are_read_as_bytes_or_from_jpeg(x):
    z = x[:, :, :16, :16].clone().requires_grad_()
    rng = SampleRng(3, range(8))
    noisy, coded = as_read(z, rng, 0.0), as_read(z, rng, 1.0)
    assert 0 < (noisy - z).abs().max() <= 1.001 / 510 and torch.equal(coded, JPEG(75)(z))
    half, rows = as_read(z, rng, 0.5), rng.child("jpeg").uniform(()) < 0.5
    assert torch.equal(half, torch.where(rows[:, None, None, None], coded, noisy)) and 0 < rows.sum() < 8
    half.sum().backward()
    assert (z.grad == 1).all(), "straight through"
    assert torch.equal(as_read(z[[4, 1]], SampleRng(3, [4, 1]), 0.5), half[[4, 1]])


def plain_loop(network, pictures, config, seed):
    """The same training without the shared loop: returns the last loss."""
    matrices, vectors = ([p for p in network.parameters() if (p.ndim >= 2) == many] for many in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(1_000_003 * seed)).tolist()
    for step in range(config.steps):
        indices = order[step * config.batch : (step + 1) * config.batch]
        x, rng = pictures.__getitems__(indices)[0], SampleRng(seed, indices, "steganography/epoch0")
        bits = rng.child("bits").integers(2, (8,)).float()
        message = F.linear(2 * bits - 1, network.message.weight, network.message.bias).view(-1, 12, 8, 8)

        def residuals(x, message=message):
            r = F.pixel_shuffle(network.encoder(torch.cat((F.pixel_unshuffle(2 * x - 1, 2), message), 1)) + message, 2)
            return torch.stack([one / (one**2).mean().sqrt() for one in r])

        r, other = residuals(x), residuals(x[[3, 0, 1, 2]])
        cosines = (r * other).mean((1, 2, 3))  # that of the first quarter counts
        rho = 0.2 * (0.03 / 0.2) ** min(1, step / (0.5 * config.steps))
        hidden = as_read((x + rho * r).clamp(0, 1), rng, config.jpeg)
        p = torch.sigmoid(network.decoder(F.pixel_unshuffle(2 * hidden - 1, 2)))
        loss = -(bits * p.log() + (1 - bits) * (1 - p).log()).mean() + config.apart * (cosines[0] - 0.5).clamp(min=0)
        progress = max(0, step - config.warmup) / (config.steps - config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (
                (step + 1) / config.warmup if step < config.warmup else 0.5 * (1 + math.cos(math.pi * progress))
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
    return loss.item()


def test_training_is_the_plain_loop(tiny):
    from accelerate import Accelerator

    plain, start = copy.deepcopy(tiny), [p.clone() for p in tiny.parameters()]
    together = copy.deepcopy(tiny)
    loss = fit_steganographer(tiny, Pictures(), CONFIG, 5)
    assert loss == pytest.approx(plain_loop(plain, Pictures(), CONFIG, 5), rel=1e-4)
    for ours, theirs, before in zip(tiny.parameters(), plain.parameters(), start, strict=True):
        assert (ours - theirs).norm() < 0.02 * (ours - before).norm() + 1e-6
    assert not tiny.training and not any(p.requires_grad for p in tiny.parameters())
    assert fit_steganographer(together, Pictures(), CONFIG, 5, Accelerator(cpu=True)) == pytest.approx(loss, rel=1e-5)


def test_killed_and_continued_is_bit_equal(tiny, tmp_path):
    whole, killed = copy.deepcopy(tiny), copy.deepcopy(tiny)
    loss = fit_steganographer(whole, Pictures(10), CONFIG, 0)
    with pytest.raises(Killed):
        fit_steganographer(killed, Pictures(10, kill=5), CONFIG, 0, checkpoint=tmp_path / "s.ckpt")
    assert fit_steganographer(tiny, Pictures(10), CONFIG, 0, checkpoint=tmp_path / "s.ckpt") == loss
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), tiny.parameters(), strict=True))


@pytest.mark.slow
def test_it_learns_to_read_its_messages_and_to_hide_them_differently_in_every_picture(tiny):
    x = Pictures().__getitems__(range(64))[0]
    tiny.strength = 0.2
    same, before = copy.deepcopy(tiny), quality(tiny, x)
    config = StegaConfig(steps=150, batch=16, lr=5e-3, warmup=5)
    fit_steganographer(tiny, Pictures(3000), config, 0)
    fit_steganographer(same, Pictures(3000), replace(config, apart=0.0), 0)
    after, alike = quality(tiny, x), quality(same, x)["alike"]
    assert (
        after["bit_accuracy"]["bytes"] > max(0.75, before["bit_accuracy"]["bytes"] + 0.2)
        and after["bit_accuracy"]["jpeg75"] > 0.65
    )
    assert after["alike"] < 0.6 < alike


def test_what_does_not_fit_is_refused(tiny):
    from types import SimpleNamespace

    with pytest.raises(UserError, match="a batch of 4 pictures has no equal shares for 3 processes"):
        fit_steganographer(tiny, Pictures(), CONFIG, 0, SimpleNamespace(process_index=0, num_processes=3))
    with pytest.raises(UserError, match="a batch of 4 pictures is larger than the set, which has 3"):
        fit_steganographer(tiny, Pictures(3), CONFIG, 0)
    with pytest.raises(UserError, match="the size is 30: use a multiple of 4"):
        random_steganographer(30)


def test_quality_of_an_encoder_that_ignores_the_picture(x):
    """A network whose residual is one pattern per message, and whose decoder knows nothing."""
    network = random_steganographer(32, 0, bits=16, width=4)
    for p in network.encoder.parameters():
        torch.nn.init.zeros_(p)
    found = quality(network, x.mul(0.8).add(0.1))
    assert found["alike"] == pytest.approx(1, abs=1e-5) and found["psnr"]["least"] == pytest.approx(
        -20 * math.log10(0.03), abs=0.05
    )
    assert 0.3 < found["bit_accuracy"]["bytes"] < 0.7 and set(found["bit_accuracy"]) == {"bytes", "jpeg75"}
    torch.nn.init.normal_(network.encoder[0][0].weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.dirac_(network.encoder[3].weight)
    for layer in network.encoder[1:3]:
        torch.nn.init.dirac_(layer[0].weight)
    assert quality(network, x)["alike"] < 0.95


# ---- the script ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the script with options, in `tmp_path`; returns its card."""
    monkeypatch.setattr(script, "VALIDATION", 8)
    state = torch.get_rng_state()

    def call(*options) -> dict:
        fixed = [
            "--out",
            str(tmp_path / "m.safetensors"),
            "--work",
            str(tmp_path / "work"),
            "--train.batch",
            "4",
            "--train.every",
            "1",
        ]
        monkeypatch.setattr(sys, "argv", ["steganography", *fixed, *options])
        script.main()
        return json.loads((tmp_path / "m.json").read_text())

    yield call
    torch.set_rng_state(state)


def test_the_card_says_how_it_was_made_and_how_good_it_is(run, tmp_path, monkeypatch):
    card = run("--train.steps", "2", "--seed", "5")
    assert card["sha256"] == sha256_file(tmp_path / "m.safetensors") and card["bytes"] <= 4 * 2**20
    assert (
        card["kind"] == "steganography"
        and card["origin"] == "re-trained, not StegaStamp"
        and card["seed"] == 5
        and card["n"] == 8
    )
    assert (
        card["config"]["steps"] == 2
        and card["network"] == Steganographer().config
        and card["data"] == ScenePairs(1, seed=5).version
    )
    assert set(card) >= {"bit_accuracy", "psnr", "alike", "loss", "seconds", "commit"} and not list(
        tmp_path.glob("work/*")
    )
    assert card["command"].startswith("python -m shared.training.steganography --out ")
    weights = (tmp_path / "m.safetensors").read_bytes()
    monkeypatch.setattr(making, "train", lambda *_: pytest.fail("trained again"))
    assert run("--card-only") == card and (tmp_path / "m.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_an_interrupted_run_continues(run, tmp_path, monkeypatch):
    straight = run("--train.steps", "3")
    read, original = [], ScenePairs.__getitems__

    def fragile(self, indices):
        read.append(1)
        if len(read) == 3:
            raise KeyboardInterrupt
        return original(self, indices)

    monkeypatch.setattr(ScenePairs, "__getitems__", fragile)
    with pytest.raises(KeyboardInterrupt):
        run("--train.steps", "3")
    (checkpoint,) = (tmp_path / "work").iterdir()
    card = run("--train.steps", "3")
    assert len(read) == 3 + 1 and not checkpoint.exists()
    assert card["sha256"] == straight["sha256"] and card["seconds"] is None and straight["seconds"] > 0


# ---- the one in the zoo ----------------------------------------------------------------------------------------------------

NAME = script.Args().out.stem
needs_the_zoo = pytest.mark.skipif(not (zoo.FOLDER / f"{NAME}.json").exists(), reason="not trained yet: make zoo")


@needs_the_zoo
def test_the_card_is_of_the_defaults_and_good_enough():
    card = zoo.card(NAME)
    assert card["config"] == asdict(script.Args().train) and card["seed"] == 0 and card["n"] == 256
    assert card["data"] == ScenePairs(1, seed=0).version, "the world has changed since: make zoo"
    assert card["bit_accuracy"]["bytes"] >= 0.95 and card["psnr"]["least"] >= 30 and card["alike"] < 0.99


@needs_the_zoo
def test_the_encoder_is_as_good_as_its_card_says():
    card = zoo.card(NAME)
    x = SceneSet(card["set"], "validation", 256).__getitems__(range(64))[0]
    found = quality(read_steganographer(zoo.weights(NAME)), x)
    assert found["bit_accuracy"]["bytes"] == pytest.approx(card["bit_accuracy"]["bytes"], abs=0.03)
    assert found["psnr"]["mean"] == pytest.approx(card["psnr"]["mean"], abs=0.5)
    trigger = make_trigger("issba", "textbook", 32)
    logits = read_steganographer(zoo.weights(NAME)).decode(trigger(x, range(64)))
    assert ((logits > 0).float() == bits_of("Stega!!", 56)).float().mean() >= 0.93
