"""What RVPT is compared with, against loops and losses written by hand."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from papers.rvpt.baselines import (
    LINEAR,
    VPT,
    LinearProbe,
    Repelled,
    finetune_contrastively,
    finetune_fully,
    linear_probe,
    tune_adversarially,
)
from papers.rvpt.method import DeepPrompts, Repulsion, encode, prompted
from papers.rvpt.tuning import Tuning, few_shot, tune
from shared.attacks import Threat
from shared.attacks.pgd import ascend
from shared.data.scene_sets import ScenePairs, SceneSet
from shared.errors import UserError
from shared.models.victim import ZeroShot
from shared.rng import SampleRng
from shared.training.adversarial import TrainAttack, frozen
from shared.training.contrastive import ContrastiveConfig, batch_indices, pretrain
from tests.accuracy import assert_within_rounding

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP, for each of four blocks

TUNING = Tuning(epochs=2, batch=8, lr=0.01)
CONTRASTIVE = ContrastiveConfig(steps=4, batch=12, lr=1e-3, warmup=2, every=2)
THREAT, ATTACK = Threat("linf", 8 / 255), TrainAttack(steps=2, ratio=0.5)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_vpt_is_rvpt_without_repulsion(victim, data):
    assert not VPT.active and replace(VPT, alpha=2.0) == Repulsion()


# ---- linear probe ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_linear_probe_is_sgd_at_a_constant_rate(victim, data, normalise):
    shots, tuning = few_shot(data, 3, 0), replace(LINEAR, epochs=3, batch=8, lr=0.1)
    before = state(victim.visual)
    probe = linear_probe(victim, shots, tuning, 5, normalise)
    start = LinearProbe(victim, normalise, 5).head
    w, b = start.weight.detach().clone(), start.bias.detach().clone()
    mw, mb = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(9):
        x, y = shots.__getitems__(batch_indices(24, 8, step, 5))
        f = victim.embed(x)
        f = f / f.norm(dim=1, keepdim=True) if normalise else f
        g = (f @ w.T + b).softmax(1)
        g[torch.arange(8), y] -= 1
        mw, mb = 0.9 * mw + g.T @ f / 8, 0.9 * mb + g.sum(0) / 8
        w, b = w - 0.1 * mw, b - 0.1 * mb
    assert_within_rounding([probe.head.weight, probe.head.bias], [w, b], terms=9 * DEEP)  # nine steps
    x = data.__getitems__([1, 2, 3])[0]
    f = victim.embed(x)
    assert_within_rounding(probe(x), (f / f.norm(dim=1, keepdim=True) if normalise else f) @ w.T + b, terms=DEEP)
    assert (
        probe.num_classes == 8
        and same(before, victim.visual.state_dict())
        and not any(p.requires_grad for p in probe.parameters())
    )
    assert [n for n, _ in probe.named_parameters()] == ["head.weight", "head.bias"]


def test_linear_probe_learns_and_lets_attacks_through(victim, data):
    probe = linear_probe(victim, data, replace(LINEAR, epochs=100, lr=0.05))
    x, y = data.__getitems__(list(range(64)))
    assert (probe(x).argmax(1) == y).float().mean() > 0.5 > 0.3 > (victim(x).argmax(1) == y).float().mean()
    z = x[:2].clone().requires_grad_()
    assert torch.autograd.grad(probe(z).square().sum(), z)[0].abs().max() > 0
    moved = copy.deepcopy(probe).double()
    assert moved(x[:2].double()).dtype == torch.float64 and victim.visual.proj.dtype == torch.float32


# ---- the loss on other parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repulsion", [Repulsion(), Repulsion(1.5, -0.2), VPT])
def test_full_fine_tuning_is_the_loop_by_hand(victim, data, repulsion):
    shots, original = few_shot(data, 2, 0), copy.deepcopy(victim.visual)
    hand = copy.deepcopy(victim).requires_grad_(True)
    optimizer = torch.optim.SGD(hand.visual.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 4))
        x, y = shots.__getitems__(batch_indices(16, 8, step, 2))
        e, c = encode(hand.visual, victim.pixels(x))
        with torch.no_grad():
            r = encode(original, victim.pixels(x))[1]
        each = F.cosine_similarity(c[:, 1:], r[:, 1:], dim=-1).mean(1)
        each = each if repulsion.margin is None else each.clamp(min=repulsion.margin)
        loss = F.cross_entropy(hand.classify(e), y) + repulsion.alpha * each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    untouched = state(original)
    repelled = Repelled(original, repulsion, first=1)
    finetune_fully(victim, repelled, shots, TUNING, 2)
    assert_within_rounding(
        victim.visual.state_dict(), hand.visual.state_dict(), terms=4 * DEEP, scale=0.1
    )  # four steps
    assert same(untouched, original.state_dict()) and not any(p.requires_grad for p in victim.parameters())
    assert not same(untouched, victim.visual.state_dict())


def test_repulsion_reaches_the_full_tower(victim, data):
    shots, cosines = few_shot(data, 2, 0), []
    x = victim.pixels(shots.__getitems__(list(range(16)))[0])
    for alpha in (0.0, 4.0):
        mine = copy.deepcopy(victim)
        original = frozen(victim).visual
        finetune_fully(mine, Repelled(original, Repulsion(alpha), 1), shots, replace(TUNING, epochs=6), 0)
        cosines.append(
            F.cosine_similarity(encode(mine.visual, x)[1][:, 1:], encode(original, x)[1][:, 1:], dim=-1).mean().item()
        )
    assert cosines[1] < cosines[0] - 0.1


@pytest.mark.parametrize("first", [-1, 3])
def test_a_depth_beyond_the_tower_is_refused(victim, first):
    with pytest.raises(UserError, match="D is"):
        Repelled(victim.visual, Repulsion(), first)


def test_contrastive_fine_tuning_without_repulsion_is_the_shared_one(clip):
    from accelerate import Accelerator

    pairs, other, start = ScenePairs(36), copy.deepcopy(clip), state(clip)
    original = copy.deepcopy(clip.visual)
    last = finetune_contrastively(clip, Repelled(original, VPT, 1), pairs, CONTRASTIVE)
    other.requires_grad_(True)
    assert last == pytest.approx(pretrain(other, pairs, CONTRASTIVE, Accelerator(cpu=True)), rel=1e-4)
    for k, v in clip.state_dict().items():  # Adam: an update whose gradient is rounding alone has the size of any other
        assert (v - other.state_dict()[k]).norm() <= 0.02 * (v - start[k]).norm() + 1e-6, k


def test_contrastive_fine_tuning_adds_the_repulsion(clip):
    pairs, original = ScenePairs(36), copy.deepcopy(clip.visual)
    config = replace(CONTRASTIVE, steps=1, warmup=0)
    x, texts = pairs.__getitems__(batch_indices(36, 12, 0, 3))
    pixels = ZeroShot(clip.visual, torch.zeros(1, 64), 1.0).pixels
    moved = copy.deepcopy(original)
    moved.positional_embedding.data.add_(
        torch.randn(moved.positional_embedding.shape, generator=torch.Generator().manual_seed(0))
    )
    e, c = encode(clip.visual, pixels(x))
    r = encode(moved, pixels(x))[1]
    image, text = F.normalize(e, dim=1), clip.encode_text(clip.tokenizer(texts), normalize=True)
    logits = clip.logit_scale.exp() * image @ text.T
    nce = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    expected = nce + 3 * F.cosine_similarity(c[:, 1:], r[:, 1:], dim=-1).mean()
    last = finetune_contrastively(clip, Repelled(moved, Repulsion(3.0), 1), pairs, config, 3)
    assert last == pytest.approx(expected.item(), rel=1e-4)
    assert not any(p.requires_grad for p in clip.parameters())


@pytest.mark.parametrize("way", ["full", "contrastive"])
def test_interrupted_runs_continue_exactly(clip, victim, data, way, tmp_path):
    original = copy.deepcopy(clip.visual)

    def run(model, **rest):
        if way == "contrastive":
            kill = rest.pop("after_step", None)
            augment = None if kill is None else lambda x, step, indices: kill(step) or x
            return finetune_contrastively(
                model, Repelled(original, Repulsion(), 1), ScenePairs(36), CONTRASTIVE, augment=augment, **rest
            )
        mine = ZeroShot(model.visual, victim.text, 10.0)
        return finetune_fully(
            mine, Repelled(original, Repulsion(), 1), few_shot(data, 2, 0), replace(TUNING, every=2), 0, **rest
        )

    class Killed(Exception):
        pass

    def kill(step):
        if step == 3:
            raise Killed

    whole, cut, again = copy.deepcopy(clip), copy.deepcopy(clip), copy.deepcopy(clip)
    run(whole)
    with pytest.raises(Killed):
        run(cut, checkpoint=tmp_path / "c.ckpt", after_step=kill)
    run(again, checkpoint=tmp_path / "c.ckpt")
    assert same(state(whole), again.state_dict()) and not same(state(whole), cut.state_dict())


# ---- adversarial prompts --------------------------------------------------------------------------------------------------------


def test_adversarial_prompt_tuning_is_the_loop_by_hand(victim, data):
    shots = few_shot(data, 2, 0)
    mine, hand = (prompted(victim, DeepPrompts(victim.visual, 1, 4)) for _ in range(2))
    before, p = state(victim.visual), hand.visual.prompts.requires_grad_(True)
    start = p.detach().clone()
    momentum = torch.zeros_like(p)
    for step in range(4):
        indices = batch_indices(16, 8, step, 6)
        x, y = shots.__getitems__(indices)
        x_adv = ascend(
            lambda z, y=y: F.cross_entropy(hand(z), y, reduction="none"),
            x,
            THREAT,
            steps=2,
            step_size=4 / 255,
            rng=SampleRng(6, indices, f"train{step}"),
        )
        (g,) = torch.autograd.grad(F.cross_entropy(hand(x_adv), y), p)
        with torch.no_grad():
            momentum = 0.9 * momentum + g + 5e-4 * p
            p -= 0.01 * 0.5 * (1 + math.cos(math.pi * step / 4)) * momentum
    tune_adversarially(mine, shots, TUNING, THREAT, ATTACK, 6)
    # a step of the attack whose gradient is rounding alone has the size of any other
    assert (mine.visual.prompts - p).norm() <= 0.02 * (p - start).norm()
    assert same(before, victim.visual.state_dict()) and not mine.visual.prompts.requires_grad
    clean = prompted(victim, DeepPrompts(victim.visual, 1, 4))
    tune(clean, shots, TUNING, VPT, 6)
    assert (clean.visual.prompts - mine.visual.prompts).abs().max() > 1e-4


def test_sets_of_other_classes_are_refused(victim):
    other = SceneSet("size", "train", 9)
    for run in (
        lambda: linear_probe(victim, other),
        lambda: finetune_fully(victim, Repelled(frozen(victim).visual, VPT, 1), other, TUNING, 0),
        lambda: tune_adversarially(prompted(victim, DeepPrompts(victim.visual, 1)), other, TUNING, THREAT, ATTACK, 0),
    ):
        with pytest.raises(UserError, match="classes"):
            run()
