"""Contrastive pre-training against a literal transcription of the loss and a plain loop."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from shared.data.scene_sets import ScenePairs
from shared.errors import UserError
from shared.models.clip import MEAN_STD, create_clip
from shared.training.contrastive import Batches, ContrastiveConfig, PixelCLIP, adamw, batch_indices, pretrain
from tests.accuracy import (
    assert_as_accurate,
    assert_same_loss,
    assert_same_training,
    assert_same_way,
    assert_within_rounding,
    float64,
    in_both,
)
from tests.processes import saved_by_one_and_two

WIDEST = 4 * 96  # terms of the longest sum of a forward pass, in an MLP
CONFIG = ContrastiveConfig(steps=6, batch=8, lr=1e-3, warmup=2, weight_decay=0.1, clip_norm=1.0, every=2)


@pytest.fixture(scope="module")
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def literal_loss(clip, x, texts):
    """½(CE over texts + CE over images) of s·cos, written out."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in MEAN_STD["clip"])
    image, text = clip.encode_image((x - mean) / std), clip.encode_text(clip.tokenizer(texts))
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    z = clip.logit_scale.exp() * image @ text.T
    by_image = -(z.diag() - z.logsumexp(1)).mean()
    by_text = -(z.diag() - z.logsumexp(0)).mean()
    return (by_image + by_text) / 2


# ---- which samples ---------------------------------------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_less_a_short_batch():
    seen = [batch_indices(23, 5, step) for step in range(12)]
    assert all(len(b) == 5 for b in seen)
    epochs = [[i for b in seen[k : k + 4] for i in b] for k in (0, 4, 8)]
    for epoch in epochs:
        assert len(set(epoch)) == 20 and set(epoch) <= set(range(23))
    assert epochs[0] != epochs[1] != epochs[2] and set(epochs[0]) != set(epochs[1])
    exact = [i for step in range(4) for i in batch_indices(20, 5, step, seed=3)]
    assert sorted(exact) == list(range(20)) and exact != list(range(20))


def test_batches_are_functions_of_their_arguments(quiet_generators):
    later = batch_indices(100, 10, 57, 4)
    for step in (3, 90, 0):
        batch_indices(100, 10, step, 4)
    assert batch_indices(100, 10, 57, 4) == later
    assert batch_indices(100, 10, 57, 5) != later and batch_indices(100, 10, 58, 4) != later


def test_small_and_endless_sets():
    assert sorted(batch_indices(3, 10, 0)) == sorted(batch_indices(3, 10, 5)) == [0, 1, 2]
    assert batch_indices(3_000_000, 4, 2) == [8, 9, 10, 11]
    assert batch_indices(3_000_001, 4, 750_000) == [3_000_000, 0, 1, 2]


# ---- one step --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_literal_one(clip):
    import open_clip

    x, texts = ScenePairs(16).__getitems__(range(16))
    image, text, scale = PixelCLIP(clip)(x, clip.tokenizer(texts))
    assert_within_rounding(image.norm(dim=1), torch.ones(16), terms=image.shape[1])
    assert_within_rounding(scale.detach(), clip.logit_scale.detach().exp(), terms=1)

    def by_hand(clip, x):
        loss = literal_loss(clip, x, texts)
        return loss, torch.autograd.grad(
            loss, [clip.logit_scale, clip.visual.conv1.weight, clip.token_embedding.weight]
        )

    loss = open_clip.ClipLoss()(image, text, scale)
    ours = loss, torch.autograd.grad(loss, [clip.logit_scale, clip.visual.conv1.weight, clip.token_embedding.weight])
    assert_as_accurate(ours, *in_both(by_hand, clip, x), terms=WIDEST)


def test_decay_is_for_matrices(clip):
    groups = adamw(clip, 1e-3, 0.2).param_groups
    decayed, free = ({id(p) for p in g["params"]} for g in groups)
    assert [g["weight_decay"] for g in groups] == [0.2, 0.0]
    names = {id(p): name for name, p in clip.named_parameters()}
    assert decayed | free == set(names) and not decayed & free
    assert {"logit_scale", "visual.ln_post.bias"} <= {names[p] for p in free} and "visual.proj" in {
        names[p] for p in decayed
    }


def plain_loop(clip, pairs, config):
    """The loop one would write by hand."""
    clip.train()
    parameters = list(clip.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    for step in range(config.steps):
        x, texts = pairs.__getitems__(batch_indices(len(pairs), config.batch, step))
        x = x.to(clip.logit_scale.dtype)
        progress = max(0, step - config.warmup) / (config.steps - config.warmup)
        rate = (step + 1) / config.warmup if step < config.warmup else 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate
        optimizer.zero_grad()
        loss = literal_loss(clip, x, texts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
    return loss.item()


def test_training_is_the_plain_loop(clip, accelerator, quiet_generators):
    plain, exact, pairs = copy.deepcopy(clip), float64(clip), ScenePairs(100)
    start = [p.detach().clone() for p in clip.parameters()]
    loss = pretrain(clip, pairs, CONFIG, accelerator)
    losses = loss, plain_loop(plain, pairs, CONFIG), plain_loop(exact, pairs, CONFIG)
    assert_same_loss(*losses, terms=WIDEST)
    assert not clip.training and all(p.grad is None for p in clip.parameters())
    assert_same_training(clip.parameters(), plain.parameters(), exact.parameters(), start, steps=CONFIG.steps)


def test_batches_begin_anywhere_and_may_be_read_by_other_processes():
    pairs = ScenePairs(40)
    expected = [pairs.__getitems__(batch_indices(40, 8, step)) for step in range(7)]
    for workers in (0, 2):
        batches = Batches(pairs, lambda step: batch_indices(40, 8, step), 7, workers)
        for step in (3, 4, 5, 0, 1, 6):
            x, texts = batches(step)
            assert torch.equal(x, expected[step][0]) and texts == expected[step][1]


def test_training_is_the_same_where_other_processes_read(clip, accelerator):
    other, pairs = copy.deepcopy(clip), ScenePairs(40)
    config = replace(CONFIG, steps=3, every=0)
    assert pretrain(clip, pairs, config, accelerator) == pretrain(other, pairs, replace(config, workers=1), accelerator)
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), other.parameters(), strict=True))


def test_the_scale_stays_below_100(clip, accelerator):
    with torch.no_grad():
        clip.logit_scale.fill_(6.0)
    pretrain(clip, ScenePairs(100), ContrastiveConfig(steps=1, batch=4, lr=1e-30, warmup=0), accelerator)
    assert_within_rounding(
        clip.logit_scale.detach().exp(), torch.tensor(100.0), terms=25
    )  # ln 100 to half a unit in the last place, times 100


def test_pictures_are_augmented_by_step_and_index(clip, accelerator):
    calls = []

    def augment(x, step, indices):
        calls.append((step, list(indices), tuple(x.shape)))
        return 1 - x

    pretrain(clip, ScenePairs(50), ContrastiveConfig(steps=2, batch=4, warmup=0), accelerator, augment=augment)
    assert calls == [(step, batch_indices(50, 4, step), (4, 3, 32, 32)) for step in range(2)]


# ---- killed and continued, several processes -------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Fragile(ScenePairs):
    """Pairs whose reading is killed at the k-th batch."""

    def __init__(self, n, k):
        super().__init__(n)
        self.left = k

    def __getitems__(self, indices):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().__getitems__(indices)


def test_killed_and_continued_is_bit_equal(clip, accelerator, tmp_path):
    straight, killed = copy.deepcopy(clip), copy.deepcopy(clip)
    loss = pretrain(straight, ScenePairs(100), CONFIG, accelerator)
    with pytest.raises(Killed):
        pretrain(killed, Fragile(100, 5), CONFIG, accelerator, tmp_path / "c.ckpt")
    assert pretrain(clip, ScenePairs(100), CONFIG, accelerator, tmp_path / "c.ckpt") == loss
    for (name, a), b in zip(clip.state_dict().items(), straight.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("n, batch, world", [(100, 8, 3), (6, 8, 4)])
def test_unequal_shares_are_refused(clip, n, batch, world):
    several = SimpleNamespace(process_index=0, num_processes=world)
    with pytest.raises(UserError, match=f"has no equal shares for {world} processes"):
        pretrain(clip, ScenePairs(n), ContrastiveConfig(steps=1, batch=batch, warmup=0), several)


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tmp_path):
    quick = ("--train.steps", "3", "--train.batch", "16", "--train.warmup", "1", "--work", str(tmp_path / "work"))
    one, two = saved_by_one_and_two(tmp_path, "-m", "shared.training.pretrain", *quick, "--out")
    torch.manual_seed(0)
    assert_same_way(one, two, create_clip("scenes-vit-s8").state_dict())
