"""Training a denoiser: against a plain loop, continued after a kill, and the script that puts it into the zoo."""

import copy
import json
import math
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from shared.data.scene_sets import FINE_TUNING, ScenePairs, SceneSet
from shared.diffusion import GaussianDenoiser, Schedule, open_denoiser
from shared.diffusion.weights import CONFIGS, random_denoiser, read_denoiser
from shared.errors import UserError
from shared.files import sha256_file
from shared.models import zoo
from shared.rng import SampleRng
from shared.training import denoising as script
from shared.training import zoo as making
from shared.training.denoising import (
    Averaged,
    DenoisingConfig,
    error_ratio,
    fit_denoiser,
    mirrored,
    purified_accuracy,
    times_and_noise,
    train_denoiser,
)
from tests.accuracy import assert_same_loss, assert_same_training, assert_same_way, assert_within_rounding, float64
from tests.processes import saved_by_one_and_two

CONFIG = DenoisingConfig(steps=6, batch=4, warmup=2, every=2, average=0.6)


@pytest.fixture
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


@pytest.fixture
def tiny():
    return random_denoiser("tiny")


class Pictures(ScenePairs):
    """Scenes of 8 pixels, whose reading is killed at the k-th batch."""

    def __init__(self, n=100, kill=None):
        super().__init__(n, size=8)
        self.left = kill

    def __getitems__(self, indices):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return super().__getitems__(indices)


class Killed(BaseException):
    pass


# ---- times, noise, averages ------------------------------------------------------------------------------------------------


def test_times_are_drawn_as_said_and_are_functions_of_seed_and_index(quiet_generators):
    schedule = Schedule.linear()
    t, noise = times_and_noise(3, range(4000), (1,), schedule, 0.8)
    assert (t.min(), t.max()) == (1, 1000)
    assert (t <= 500).double().mean().item() == pytest.approx(0.8, abs=0.03)
    assert t[t <= 500].double().mean().item() == pytest.approx(250, abs=10) and t[
        t > 500
    ].double().mean().item() == pytest.approx(750, abs=20)
    assert noise.mean().abs() < 0.06 and noise.std().item() == pytest.approx(1, abs=0.05)
    again = times_and_noise(3, [17, 5], (1,), schedule, 0.8)
    assert torch.equal(again[0], t[[17, 5]]) and torch.equal(again[1], noise[[17, 5]])
    assert not torch.equal(times_and_noise(4, range(100), (1,), schedule, 0.8)[0], t[:100])
    assert times_and_noise(3, range(300), (1,), Schedule.linear(0.1, 5, 20), 0.5)[0].unique().tolist() == list(
        range(1, 21)
    )


def test_the_average_by_hand():
    both = Averaged(torch.nn.Linear(1, 1, bias=False), 0.9)
    expected = both.average.weight.item()
    for step in range(1, 40):
        with torch.no_grad():
            both.network.weight.fill_(float(step))
        both.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert_within_rounding(both.average.weight, torch.tensor([[expected]]), terms=40)
    assert not both.average.weight.requires_grad and both.network.weight.requires_grad


# ---- the loop --------------------------------------------------------------------------------------------------------------


def plain_loop(denoiser, pictures, config, seed):
    """The same training without the shared loop: returns the averaged weights and the last loss."""
    unet = denoiser.unet.train().requires_grad_(True)
    matrices, vectors = ([p for p in unet.parameters() if (p.ndim >= 2) == many] for many in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    average = [p.detach().clone() for p in unet.parameters()]
    bars = torch.cat(
        (torch.ones(1, dtype=torch.float64), (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
    )
    for step in range(config.steps):
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(1_000_003 * seed)).tolist()
        indices = order[step * config.batch : (step + 1) * config.batch]
        x = 2 * torch.stack([pictures[i][0] for i in indices]) - 1
        t, noise = times_and_noise(seed, indices, (3, 8, 8), denoiser.schedule, config.early)
        x, noise = x.to(average[0].dtype), noise.to(average[0].dtype)
        bar = bars[t].to(x.dtype).view(-1, 1, 1, 1)
        loss = F.mse_loss(unet(bar.sqrt() * x + (1 - bar).sqrt() * noise, t - 1).sample, noise)
        progress = max(0, step - config.warmup) / (config.steps - config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (
                (step + 1) / config.warmup if step < config.warmup else 0.5 * (1 + math.cos(math.pi * progress))
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), config.clip_norm)
        optimizer.step()
        decay = min(config.average, (2 + step) / (11 + step))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, unet.parameters(), strict=True)]
    return average, loss.item()


def test_training_is_the_plain_loop(tiny, accelerator, quiet_generators):
    plain, exact, start = copy.deepcopy(tiny), float64(tiny), [p.clone() for p in tiny.parameters()]
    average, loss = fit_denoiser(tiny, Pictures(), CONFIG, 5, accelerator)
    expected, last = plain_loop(plain, Pictures(), CONFIG, 5)
    weights, value = plain_loop(exact, Pictures(), CONFIG, 5)
    assert_same_loss(loss, last, value, terms=9 * 32)
    assert_same_training(average.parameters(), expected, weights, start, steps=CONFIG.steps)
    for model in (tiny, average):
        assert (
            not model.training
            and not any(p.requires_grad for p in model.parameters())
            and all(p.grad is None for p in model.parameters())
        )


def test_killed_and_continued_is_bit_equal(tiny, accelerator, tmp_path):
    straight, killed = copy.deepcopy(tiny), copy.deepcopy(tiny)
    whole, loss = fit_denoiser(straight, Pictures(), CONFIG, 0, accelerator)
    with pytest.raises(Killed):
        fit_denoiser(killed, Pictures(kill=5), CONFIG, 0, accelerator, tmp_path / "d.ckpt")
    average, again = fit_denoiser(tiny, Pictures(), CONFIG, 0, accelerator, tmp_path / "d.ckpt")
    assert again == loss
    for pair in ((whole, average), (straight, tiny)):
        assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in pair), strict=True))


def test_it_learns(tiny, accelerator):
    pictures = Pictures(64)
    x = pictures.__getitems__(range(32))[0]
    before = error_ratio(tiny, x, 200)
    average, _ = fit_denoiser(
        tiny, pictures, DenoisingConfig(steps=40, batch=8, lr=5e-3, warmup=4, average=0.8), 0, accelerator
    )
    assert error_ratio(average, x, 200) > 2 * before


def test_unequal_shares_are_refused(tiny):
    with pytest.raises(UserError, match="a batch of 4 pictures has no equal shares for 3 processes"):
        fit_denoiser(tiny, Pictures(), CONFIG, 0, SimpleNamespace(process_index=0, num_processes=3))


# ---- sets that are seen more than once -------------------------------------------------------------------------------------


def test_a_picture_has_other_times_noise_and_mirrors_in_every_epoch():
    schedule = Schedule.linear()
    first, again, second = (times_and_noise(3, range(50), (2,), schedule, 0.8, *epoch) for epoch in ((), (0,), (1,)))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    x = SampleRng(0, range(200)).uniform((3, 4, 4))
    once, twice = mirrored(x, 3, range(200), 0), mirrored(x, 3, range(200), 1)
    flipped = (once == x.flip(3)).flatten(1).all(1)
    assert torch.equal(once[~flipped], x[~flipped]) and flipped.float().mean().item() == pytest.approx(0.5, abs=0.12)
    assert not torch.equal(once, twice) and torch.equal(mirrored(x[[7, 3]], 3, [7, 3], 0), once[[7, 3]])


class Labelled(SceneSet):
    """A finite set of 8-pixel pictures, which notes what is read and is killed at the k-th batch."""

    def __init__(self, n=10, kill=None):
        super().__init__("ten", "train", n, size=8)
        self.read, self.kill = [], kill

    def __getitems__(self, indices):
        self.read.append(list(indices))
        if self.kill is not None and len(self.read) > self.kill:
            raise Killed
        return super().__getitems__(indices)


def test_a_labelled_set_trains_a_denoiser_without_an_accelerator(accelerator):
    alone, loss = train_denoiser(CONFIG, Labelled(), "tiny", 5, flip=False)
    together, same = fit_denoiser(random_denoiser("tiny", 5), Labelled(), CONFIG, 5, accelerator)
    assert loss == same and all(
        torch.equal(a, b) for a, b in zip(alone.parameters(), together.parameters(), strict=True)
    )
    assert not alone.training and not any(p.requires_grad for p in alone.parameters())
    flipped, _ = train_denoiser(CONFIG, Labelled(), "tiny", 5, flip=True)
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), flipped.parameters(), strict=True))


def test_epochs_of_a_labelled_set_continue_bit_equal(tmp_path):
    whole, loss = train_denoiser(CONFIG, Labelled(), "tiny", 0)
    with pytest.raises(Killed):
        train_denoiser(CONFIG, Labelled(kill=5), "tiny", 0, checkpoint=tmp_path / "d.ckpt")
    data = Labelled()
    average, again = train_denoiser(CONFIG, data, "tiny", 0, checkpoint=tmp_path / "d.ckpt")
    assert (
        again == loss
        and len(data.read) == 2
        and all(torch.equal(a, b) for a, b in zip(whole.parameters(), average.parameters(), strict=True))
    )


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="the pictures are 32×32 pixels and the denoiser is for 8×8"):
        train_denoiser(CONFIG, SceneSet("ten", "train", 10), "tiny")
    with pytest.raises(UserError, match="a batch of 4 pictures is larger than the set, which has 3"):
        train_denoiser(CONFIG, Labelled(3), "tiny")


def test_the_denoiser_of_photographs_is_a_few_million_weights():
    count = {name: sum(p.numel() for p in random_denoiser(name).parameters()) for name in ("scenes", "photos")}
    assert 1.5 * count["scenes"] < count["photos"] < 8e6


# ---- what the card says ----------------------------------------------------------------------------------------------------


def test_the_error_ratio_of_known_data():
    """Data N(0, I·s²), seen exactly: σ²/α² against s²σ²/(α²s² + σ²)."""
    schedule, s = Schedule.linear(), 0.4
    x = (1 + s * SampleRng(0, range(300)).normal((3, 8, 8))) / 2
    for t in (50, 200):
        bar = schedule.alpha_bar(t).item()
        expected = (1 - bar) / bar / (s**2 * (1 - bar) / (bar * s**2 + 1 - bar))
        assert error_ratio(GaussianDenoiser(0.0, s), x, t) == pytest.approx(expected, rel=0.05)


def test_purification_by_a_denoiser_that_knows_nothing_loses_accuracy():
    data = SceneSet(FINE_TUNING, "validation", 16)
    nothing = purified_accuracy(random_denoiser("scenes"), data, 16, 0)
    assert (
        nothing["clean"]["before"]
        == nothing["clean"]["after"]
        >= 0.9
        > nothing["pgd10"]["before"]
        == nothing["pgd10"]["after"]
    )
    assert purified_accuracy(random_denoiser("scenes"), data, 16, 400)["clean"]["after"] < 0.5


# ---- the script ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the script with options, in `tmp_path`; returns its card."""
    monkeypatch.setattr(script, "VALIDATION", 4)
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
        monkeypatch.setattr(sys, "argv", ["denoising", *fixed, *options])
        script.main()
        return json.loads((tmp_path / "m.json").read_text())

    yield call
    torch.set_rng_state(state)


def test_the_card_says_how_the_denoiser_was_made_and_how_good_it_is(run, tmp_path, monkeypatch):
    card = run("--train.steps", "2", "--seed", "5")
    assert card["sha256"] == sha256_file(tmp_path / "m.safetensors") and card["bytes"] <= 8 * 2**20
    assert (
        card["kind"] == "denoiser" and card["model"] == "scenes" and card["seed"] == 5 and card["config"]["steps"] == 2
    )
    assert (
        card["command"].startswith("python -m shared.training.denoising --out ")
        and card["data"] == ScenePairs(1, seed=5).version
    )
    assert set(card["denoising"]) == {"50", "100", "200"} and card["n"] == 4 and card["set"] == FINE_TUNING
    assert card["purification"]["t"] == 100 and set(card["purification"]["clean"]) == {"before", "after"}
    assert not list(tmp_path.glob("work/*"))
    assert read_denoiser(tmp_path / "m.safetensors").patch == CONFIGS["scenes"]["patch"]
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


def test_photographs_are_another_set(run, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / "p" / split / label).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 32), (40 * i, 99, 10 * len(split))).save(
                    tmp_path / "p" / split / label / f"{i}.png"
                )
    options = ("--data", "folder:all", "--data-root", str(tmp_path / "p"), "--train.steps", "3")
    card = run(*options)
    assert (
        card["set"] == "folder:all"
        and card["n"] == 4
        and "purification" not in card
        and set(card["denoising"]) == {"50", "100", "200"}
    )
    assert card["sha256"] == sha256_file(tmp_path / "m.safetensors") and card["data"] != ScenePairs(1).version
    assert run(*options, "--card-only") == card


@pytest.mark.slow
def test_two_processes_train_the_same_denoiser_as_one(tmp_path):
    quick = ("--train.steps", "3", "--train.batch", "8", "--train.warmup", "1", "--work", str(tmp_path / "work"))
    one, two = saved_by_one_and_two(tmp_path, "-m", "shared.training.denoising", *quick, "--out")
    assert_same_way(one, two, random_denoiser("scenes").unet.state_dict())


# ---- the one in the zoo ----------------------------------------------------------------------------------------------------

NAME = script.Args().out.stem
needs_the_zoo = pytest.mark.skipif(not (zoo.FOLDER / f"{NAME}.json").exists(), reason="not trained yet: make zoo")


@needs_the_zoo
def test_the_card_is_of_the_defaults_and_good_enough():
    card = zoo.card(NAME)
    assert (
        card["config"] == asdict(script.Args().train)
        and card["seed"] == 0
        and card["model"] == "scenes"
        and card["n"] == 256
    )
    assert card["data"] == ScenePairs(1, seed=0).version, "the world has changed since: make zoo"
    assert all(ratio >= 3 for ratio in card["denoising"].values())
    clean, attacked = card["purification"]["clean"], card["purification"]["pgd10"]
    assert clean["after"] >= clean["before"] - 0.05 and attacked["after"] > attacked["before"] + 0.1


@pytest.mark.slow
@needs_the_zoo
def test_the_denoiser_is_as_good_as_its_card_says():
    card, data = zoo.card(NAME), SceneSet(FINE_TUNING, "validation", 256)
    denoiser, x = open_denoiser(f"zoo:{NAME}"), data.__getitems__(range(64))[0]
    for t in (50, 100, 200):
        assert error_ratio(denoiser, x, t) == pytest.approx(card["denoising"][str(t)], rel=0.15)
    found = purified_accuracy(denoiser, data, 64, card["purification"]["t"])
    assert found["clean"]["after"] >= card["purification"]["clean"]["before"] - 0.05 - 2.1 / 64
    assert found["pgd10"]["after"] == pytest.approx(card["purification"]["pgd10"]["after"], abs=0.15)
