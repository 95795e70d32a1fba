"""CleanCLIP against its loss written out, and as a training loop."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from shared.data.augment import EDA, CropAndJitter
from shared.data.scene_sets import ScenePairs
from shared.errors import UserError
from shared.models.clip import MEAN_STD, create_clip
from shared.training.cleanclip import CleanClipConfig, cleanclip, cleanclip_loss, self_supervised
from shared.training.contrastive import batch_indices
from tests.accuracy import assert_same_loss, assert_same_training, assert_same_way, assert_within_rounding, float64
from tests.processes import saved_by_one_and_two, script_in

CONFIG = CleanClipConfig(steps=5, batch=8, lr=1e-3, warmup=2, every=2, image_weight=0.7, text_weight=0.3, seed=4)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def literal_self_supervised(a, b, s):
    """−1/N Σ_j log( exp(s<a_j, b_j>) / Σ_k exp(s<a_j, b_k>) ), term by term."""
    n, total = len(a), 0.0
    for j in range(n):
        terms = [math.exp(s * float(a[j] @ b[k])) for k in range(n)]
        total -= math.log(terms[j] / sum(terms)) / n
    return total


def literal(image, text, image_aug, text_aug, s, weight_image, weight_text):
    cross = (literal_self_supervised(image, text, s) + literal_self_supervised(text, image, s)) / 2
    return (
        cross
        + weight_image * literal_self_supervised(image, image_aug, s)
        + weight_text * literal_self_supervised(text, text_aug, s)
    )


@pytest.mark.parametrize("weights", [(0.5, 0.5), (2.0, 0.0), (0.0, 0.0), (0.0, 1.5)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_loss_is_the_literal_one(weights, scale):
    parts = [unit(6, 5, seed=k) for k in range(4)]
    config = CleanClipConfig(image_weight=weights[0], text_weight=weights[1])
    assert cleanclip_loss(*parts, torch.tensor(scale), config).item() == pytest.approx(
        literal(*parts, scale, *weights), rel=1e-9
    )


def test_the_papers_weights_are_one_half_each():
    """λ₁ L_CLIP + λ₂ (L_SS of pictures + L_SS of captions)/2 with λ₁ = λ₂ = 1."""
    parts, s = [unit(6, 5, seed=k) for k in range(4)], torch.tensor(10.0)
    cross = (self_supervised(parts[0], parts[1], s) + self_supervised(parts[1], parts[0], s)) / 2
    within = (self_supervised(parts[0], parts[2], s) + self_supervised(parts[1], parts[3], s)) / 2
    assert_within_rounding(cleanclip_loss(*parts, s, CleanClipConfig()), cross + within, terms=6)


def test_the_self_supervised_loss_has_a_direction():
    a, b = unit(6, 5), unit(6, 5, seed=1)
    assert self_supervised(a, b, torch.tensor(9.0)) != self_supervised(b, a, torch.tensor(9.0))


def plain_loop(clip, pairs, config):
    """The loop one would write by hand."""
    clip.train()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in MEAN_STD["clip"])
    images, texts = CropAndJitter(seed=config.seed), EDA.of(clip.tokenizer, seed=config.seed)
    matrices, vectors = ([p for p in clip.parameters() if (p.ndim >= 2) == large] for large in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    for step in range(config.steps):
        indices = batch_indices(len(pairs), config.batch, step, config.seed)
        x, said = pairs.__getitems__(indices)
        both = (v.to(clip.logit_scale.dtype) for v in (x, images(x, step, indices)))
        image, image_aug = (F.normalize(clip.encode_image((v - mean) / std), dim=1) for v in both)
        text, text_aug = (
            F.normalize(clip.encode_text(clip.tokenizer(t)), dim=1) for t in (said, texts(said, step, indices))
        )
        s, own = clip.logit_scale.exp(), torch.arange(config.batch)
        loss = (F.cross_entropy(s * image @ text.T, own) + F.cross_entropy(s * text @ image.T, own)) / 2
        loss = loss + config.image_weight * F.cross_entropy(s * image @ image_aug.T, own)
        loss = loss + config.text_weight * F.cross_entropy(s * text @ text_aug.T, own)
        progress = max(0, step - config.warmup) / (config.steps - config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (
                (step + 1) / config.warmup if step < config.warmup else 0.5 * (1 + math.cos(math.pi * progress))
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), config.clip_norm)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
    return loss.item()


def test_training_is_the_plain_loop(clip, quiet_generators):
    plain, exact, pairs = copy.deepcopy(clip), float64(clip), ScenePairs(100)
    start = [p.detach().clone() for p in clip.parameters()]
    loss = cleanclip(clip.requires_grad_(False), pairs, CONFIG)
    assert_same_loss(loss, plain_loop(plain, pairs, CONFIG), plain_loop(exact, pairs, CONFIG), terms=4 * 96)
    assert not clip.training and not any(p.requires_grad or p.grad is not None for p in clip.parameters())
    assert_same_training(clip.parameters(), plain.parameters(), exact.parameters(), start, steps=CONFIG.steps)


def test_killed_and_continued_is_bit_equal(clip, tmp_path):
    straight, killed, pairs, left = copy.deepcopy(clip), copy.deepcopy(clip), ScenePairs(100), iter(range(3))
    loss = cleanclip(straight, pairs, CONFIG)

    class Killed(BaseException):
        pass

    def fragile(texts, step, indices):
        if next(left, None) is None:
            raise Killed
        return EDA.of(clip.tokenizer, seed=CONFIG.seed)(texts, step, indices)

    with pytest.raises(Killed):
        cleanclip(killed, pairs, CONFIG, tmp_path / "c.ckpt", augment_texts=fragile)
    assert cleanclip(clip, pairs, CONFIG, tmp_path / "c.ckpt") == loss
    for (name, a), b in zip(clip.state_dict().items(), straight.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_augmentations_are_those_given_and_follow_the_seed(clip):
    calls = []

    def images(x, step, indices):
        calls.append(("images", step, tuple(indices)))
        return 1 - x

    def texts(said, step, indices):
        calls.append(("texts", step, tuple(indices)))
        return list(said)

    config = CleanClipConfig(steps=2, batch=4, warmup=0, seed=7)
    cleanclip(copy.deepcopy(clip), ScenePairs(20), config, augment_images=images, augment_texts=texts)
    assert calls == [
        (what, step, tuple(batch_indices(20, 4, step, 7))) for step in range(2) for what in ("images", "texts")
    ]
    losses = {
        cleanclip(copy.deepcopy(clip), ScenePairs(20), CleanClipConfig(steps=1, batch=20, warmup=0, seed=seed))
        for seed in (0, 1)
    }
    assert len(losses) == 2


def test_a_model_with_open_clips_own_tokenizer(clip):
    """Any words and any length: what the tokenizer is given is text, and it decides."""
    seen = []

    class Full:
        def __call__(self, texts):
            seen.extend(texts)
            return inner(["a red circle"] * len(texts))

    class Foreign(ScenePairs):
        def __getitems__(self, indices):
            return super().__getitems__(indices)[0], ["A Dog; chasing the postman, red, " + "very " * 60] * len(indices)

    inner, clip.tokenizer = clip.tokenizer, Full()
    cleanclip(clip, Foreign(8), CleanClipConfig(steps=1, batch=4, warmup=0))
    assert (
        len(seen) == 8 and seen[:4] == [Foreign(8)[0][1]] * 4 and all("," not in t and t == t.lower() for t in seen[4:])
    )


@pytest.mark.parametrize(
    "config, message",
    [({"batch": 4, "image_weight": -1}, "image_weight is -1"), ({"batch": 64}, "larger than the set, which has 20")],
)
def test_what_is_refused(clip, config, message):
    with pytest.raises(UserError, match=message):
        cleanclip(clip, ScenePairs(20), CleanClipConfig(**config))


def test_unequal_shares_are_refused(clip):
    with pytest.raises(UserError, match="has no equal shares for 3 processes"):
        cleanclip(
            clip,
            ScenePairs(20),
            CleanClipConfig(batch=8),
            accelerator=SimpleNamespace(process_index=0, num_processes=3),
        )


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from shared.data.scene_sets import ScenePairs
from shared.models.clip import create_clip, save_clip
from shared.training.cleanclip import CleanClipConfig, cleanclip

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
clip = create_clip("scenes-vit-xs8")
cleanclip(clip, ScenePairs(64), CleanClipConfig(steps=3, batch=16, warmup=1), accelerator=accelerator)
if accelerator.is_main_process:
    save_clip(clip, sys.argv[1])
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tmp_path):
    one, two = saved_by_one_and_two(tmp_path, script_in(tmp_path, SCRIPT))
    torch.manual_seed(0)
    assert_same_way(one, two, create_clip("scenes-vit-xs8").state_dict())
