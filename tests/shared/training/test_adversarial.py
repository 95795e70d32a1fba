"""Adversarial fine-tuning: TeCoA and FARE against literal transcriptions, and the loop against one written by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from shared.attacks import Threat
from shared.data.scene_sets import SceneSet
from shared.errors import UserError
from shared.models.victim import ZeroShot, text_matrix
from shared.rng import SampleRng
from shared.training.adversarial import FARE, TeCoA, TrainAttack, Tuning, finetune, frozen
from shared.training.contrastive import batch_indices
from tests.accuracy import assert_as_accurate, assert_within_rounding, in_both

THREAT = Threat("linf", 4 / 255)
NOTHING = 1e-30  # added to what it is added to, in float32
TUNING = Tuning(steps=6, batch=8, lr=0.02, warmup=2, every=2)
DATA = SceneSet("colour_shape", "train", 60)
WIDEST = 4 * 96  # terms of the longest sum of a forward pass, in an MLP


@pytest.fixture
def victim(clip):
    return ZeroShot(clip.visual, text_matrix(clip, DATA.prompts), 20.0)


class Clean:
    """Cross-entropy on the clean images; no attack."""

    def attack_loss(self, victim, x, y):
        return None

    def loss(self, victim, x, x_adv, y):
        assert x_adv is x
        return F.cross_entropy(victim(x), y)


def state(victim):
    return {k: v.clone() for k, v in victim.visual.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def tune(victim, objective=None, tuning=TUNING, data=DATA, attack=None, seed=3, **rest):
    return finetune(victim, objective or TeCoA(), data, tuning, THREAT, attack or TrainAttack(), seed, **rest)


# ---- losses ----------------------------------------------------------------------------------------------------------------


def test_tecoa_is_the_cross_entropy_of_the_adversarial_images(victim):
    x, y = DATA.__getitems__([3, 40, 17, 5])
    x_adv = (x + 0.02).clamp(0, 1)

    def literal(victim, x_adv):
        z = torch.stack(
            [torch.stack([20 * F.cosine_similarity(e, t, dim=0) for t in victim.text]) for e in victim.embed(x_adv)]
        )
        losses = -torch.stack([z[i, y[i]] - torch.log(z[i].exp().sum()) for i in range(4)])
        return losses.mean(), losses

    ours = TeCoA().loss(victim, x, x_adv, y), TeCoA().attack_loss(victim, x, y)(x_adv)
    assert_as_accurate(ours, *in_both(literal, victim, x_adv), terms=WIDEST, scale=20.0)


def test_fare_is_the_squared_distance_to_the_original_embedding(victim):
    original = frozen(victim)
    with torch.no_grad():
        victim.visual.proj.mul_(1.3)
    x, y = DATA.__getitems__([3, 40, 17])
    x_adv = (x - 0.02).clamp(0, 1)

    def literal(victim, original, x, x_adv):
        distances = torch.stack(
            [
                sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
                for u, v in zip(victim.embed(x_adv), original.embed(x), strict=True)
            ]
        )
        assert distances.min() > 0
        return distances.mean(), distances

    objective = FARE(original)
    ours = objective.loss(victim, x, x_adv, y), objective.attack_loss(victim, x, y)(x_adv)
    assert_as_accurate(ours, *in_both(literal, victim, original, x, x_adv), terms=WIDEST)
    objective.loss(victim, x, x_adv, y).backward()
    assert victim.visual.proj.grad is not None and all(p.grad is None for p in original.parameters())


def test_a_frozen_copy_stays_as_it_was(victim):
    original = frozen(victim)
    before = state(original)
    tune(victim, FARE(original))
    assert same(before, state(original)) and not same(before, state(victim))
    assert not original.training and not any(p.requires_grad for p in original.parameters())


# ---- the loop --------------------------------------------------------------------------------------------------------------


def by_hand(victim, seed, tuning):
    """TeCoA with PGD-2 and SGD with momentum, written out."""
    parameters = list(victim.visual.parameters())
    velocity, eps = [torch.zeros_like(p) for p in parameters], 4 / 255
    for step in range(tuning.steps):
        indices = batch_indices(len(DATA), tuning.batch, step, seed)
        x, y = DATA.__getitems__(indices)
        noise = SampleRng(seed, indices).child(f"train{step}").uniform(x.shape[1:], -eps, eps)
        x_adv = (x + noise).clamp(0, 1)
        for _ in range(2):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(victim(x_adv), y, reduction="sum"), x_adv)
            x_adv = torch.minimum(torch.maximum(x_adv.detach() + eps * grad.sign(), x - eps), x + eps).clamp(0, 1)
        loss = F.cross_entropy(victim(x_adv), y)
        grads = torch.autograd.grad(loss, parameters)
        progress = (step - tuning.warmup) / (tuning.steps - tuning.warmup)
        rate = (step + 1) / tuning.warmup if step < tuning.warmup else 0.5 * (1 + math.cos(math.pi * progress))
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, grads, strict=True):
                v.mul_(0.9).add_(g + tuning.weight_decay * p)
                p.sub_(tuning.lr * rate * v)
    return loss.item()


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_fine_tuning_is_the_loop_written_by_hand(victim, decay):
    tuning = Tuning(steps=3, batch=8, lr=0.02, warmup=1, weight_decay=decay)
    plain, before = copy.deepcopy(victim), state(victim)
    loss = tune(victim, tuning=tuning)
    assert loss == pytest.approx(by_hand(plain, 3, tuning), rel=1e-3)
    for name, value in victim.visual.state_dict().items():
        moved = (value - before[name]).norm()
        assert (value - plain.visual.state_dict()[name]).norm() <= 0.02 * moved + 1e-6, name


def test_what_is_left_behind(victim, clip, quiet_generators):
    """Only the vision tower changes; no gradient, no train mode, nothing that asks for a gradient."""
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    text = victim.text.clone()
    tune(victim)
    after = clip.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if k.startswith("visual.")}
    assert torch.equal(victim.text, text) and victim.scale == 20.0
    assert all(p.grad is None and not p.requires_grad for p in victim.parameters())
    assert all(p.grad is None for p in clip.parameters()) and not any(m.training for m in victim.modules())


@pytest.mark.parametrize("last", [1, 3, 14, 60, 10_000])  # the tower has fewer than 60
def test_only_the_last_tensors_are_trained(victim, last):
    before, names = state(victim), [name for name, _ in victim.visual.named_parameters()]
    tune(victim, tuning=Tuning(steps=2, batch=4, lr=0.05, warmup=0, last=last))
    after = state(victim)
    assert {k for k in before if not torch.equal(before[k], after[k])} == set(names[-last:])


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match=r"nothing to train \(`last`\)"):
        Tuning(last=0)


def test_the_first_step_of_adamw_by_hand(victim):
    """m/√v is the sign of the gradient after one step: p ← (1 − lr·decay)·p − lr·sign(g)."""
    before, tuning = state(victim), Tuning(steps=1, batch=4, lr=1e-3, warmup=0, optimizer="adamw", weight_decay=0.5)
    plain = copy.deepcopy(victim)
    tune(victim, Clean(), tuning)
    x, y = DATA.__getitems__(batch_indices(60, 4, 0, 3))
    (grad,) = torch.autograd.grad(F.cross_entropy(plain(x), y), plain.visual.proj)
    clear = grad.abs() > 1e-5  # beside AdamW's own 1e-8
    expected = (1 - 5e-4) * before["proj"] - 1e-3 * grad.sign()
    assert clear.float().mean() > 0.9
    assert (victim.visual.proj - expected)[
        clear
    ].abs().max() < 1e-3 * 1e-3 + 2**-23 * expected.abs().max()  # AdamW's 1e-8 beside 1e-5


@pytest.mark.parametrize("attack", [TrainAttack(steps=0), TrainAttack()])
def test_clean_training_does_not_attack(victim, attack):
    other, tuning = copy.deepcopy(victim), Tuning(steps=2, batch=8, lr=0.02, warmup=0)
    tune(victim, Clean(), tuning, attack=attack)
    tune(other, TeCoA(), tuning, attack=TrainAttack(steps=0))
    assert same(state(victim), state(other))


def test_the_random_start_is_a_function_of_seed_step_and_index(victim):
    starts = []

    class Watch(TeCoA):
        def loss(self, victim, x, x_adv, y):
            starts.append(x_adv - x)
            return super().loss(victim, x, x_adv, y)

    tune(victim, Watch(), Tuning(steps=2, batch=8, lr=NOTHING, warmup=0), attack=TrainAttack(steps=1, ratio=NOTHING))
    for step, start in enumerate(starts):
        indices = batch_indices(60, 8, step, 3)
        x, noise = (
            DATA.__getitems__(indices)[0],
            SampleRng(3, indices).child(f"train{step}").uniform((3, 32, 32), -4 / 255, 4 / 255),
        )
        assert_within_rounding(start, (x + noise).clamp(0, 1) - x, terms=2, scale=1.0)
    assert starts[0].abs().mean() > 0.3 * 4 / 255


def test_the_step_size_is_a_multiple_of_eps(victim):
    """After one step of size 2ε from inside the ball every pixel is on its edge, or at 0 or 1."""
    seen = []

    class Watch(TeCoA):
        def loss(self, victim, x, x_adv, y):
            seen.append((x, x_adv))
            return super().loss(victim, x, x_adv, y)

    tune(victim, Watch(), Tuning(steps=1, batch=8, lr=NOTHING, warmup=0), attack=TrainAttack(steps=1, ratio=2.0))
    ((x, x_adv),) = seen
    on_the_edge = ((x_adv - x).abs() - 4 / 255).abs() < 1e-6
    assert (on_the_edge | (x_adv == 0) | (x_adv == 1)).float().mean() > 0.999  # a gradient may be exactly zero
    assert not x_adv.requires_grad


# ---- order, noise, resume --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Watched(SceneSet):
    """Notes what is read, and is killed at the k-th batch."""

    def __init__(self, kill=None):
        super().__init__("colour_shape", "train", 60)
        self.kill, self.read = kill, []

    def __getitems__(self, indices):
        self.read.append(list(indices))
        if len(self.read) == self.kill:
            raise Killed
        return super().__getitems__(indices)


def test_the_order_is_a_function_of_seed_and_step(victim):
    data = Watched()
    tune(victim, Clean(), data=data)
    assert data.read == [batch_indices(60, 8, step, 3) for step in range(6)]
    other = Watched()
    tune(victim, Clean(), data=other, seed=4)
    assert other.read != data.read


def test_seeds_give_other_weights_and_the_same_seed_the_same(victim):
    copies = [copy.deepcopy(victim) for _ in range(3)]
    for copied, seed in zip(copies, (3, 3, 4), strict=True):
        tune(copied, tuning=Tuning(steps=2, batch=8, lr=0.02, warmup=0), seed=seed)
    assert same(state(copies[0]), state(copies[1])) and not same(state(copies[0]), state(copies[2]))


def test_reading_ahead_changes_nothing(victim, quiet_generators):
    other = copy.deepcopy(victim)
    settings = {"steps": 3, "batch": 8, "lr": 0.02, "warmup": 0}
    assert tune(victim, tuning=Tuning(**settings)) == tune(other, tuning=Tuning(**settings, workers=2))
    assert same(state(victim), state(other))


@pytest.mark.parametrize(
    "kill, settings", [(4, {}), (6, {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1}), (4, {"last": 5})]
)
def test_killed_and_continued_is_bit_equal(victim, tmp_path, settings, kill):
    tuning = Tuning(**{"steps": 6, "batch": 4, "lr": 0.02, "warmup": 2, "every": 2, **settings})
    straight, killed = copy.deepcopy(victim), copy.deepcopy(victim)
    loss = tune(straight, tuning=tuning)
    with pytest.raises(Killed):
        tune(killed, tuning=tuning, data=Watched(kill), checkpoint=tmp_path / "f.ckpt")
    data = Watched()
    assert tune(victim, tuning=tuning, data=data, checkpoint=tmp_path / "f.ckpt") == loss
    assert len(data.read) == 6 - (kill - 1) // 2 * 2  # the finished steps are not read again
    assert same(state(victim), state(straight))


def test_snapshots_come_after_every_update(victim):
    seen = []
    tune(victim, Clean(), snapshot=lambda step: seen.append((step, victim.visual.proj.detach().clone())))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(seen[-1][1], victim.visual.proj) and not torch.equal(seen[0][1], seen[1][1])


def test_a_damaged_checkpoint_is_a_sentence(victim, tmp_path):
    (tmp_path / "f.ckpt").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(UserError, match="cannot be continued from"):
        tune(victim, checkpoint=tmp_path / "f.ckpt")
