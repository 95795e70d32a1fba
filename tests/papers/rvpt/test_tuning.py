"""Tuning prompts: the loop against one by hand, what moves and what stays, resume, the few shots and their augmentation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from papers.rvpt.method import DeepPrompts, Repulsion, encode, prompted, repulsion_loss, rvpt_loss
from papers.rvpt.tuning import Tuning, crop_flip, few_shot, optimise, tune
from shared.data.scene_sets import SceneSet
from shared.errors import UserError
from shared.rng import SampleRng
from shared.training.contrastive import batch_indices
from tests.accuracy import assert_within_rounding

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP, for each of four blocks

TUNING = Tuning(epochs=3, batch=8, lr=0.05)


def defended(victim, **options):
    return prompted(victim, DeepPrompts(victim.visual, 1, **{**{"length": 4}, **options}))


@pytest.mark.parametrize(
    ("repulsion", "cache"),
    [(Repulsion(), True), (Repulsion(), False), (Repulsion(1.0, 0.3), True), (Repulsion(0.0), True)],
)
def test_tuning_is_the_loop_by_hand(victim, data, repulsion, cache):
    tuning = replace(TUNING, cache=cache, warmup=2)
    mine, shots = defended(victim), few_shot(data, 3, 0)
    p = mine.visual.prompts.detach().clone().requires_grad_()
    by_hand = defended(victim)
    momentum, steps = torch.zeros_like(p), tuning.epochs * (len(shots) // 8)
    for step in range(steps):
        x, y = shots.__getitems__(batch_indices(len(shots), 8, step, 7))
        by_hand.visual._parameters["prompts"] = p
        f = by_hand.visual.begin(victim.pixels(x))
        e, c = by_hand.visual.finish(f)
        z = victim.pixels(x)
        r = encode(victim.visual, z)[1][:, 1:]
        each = F.cosine_similarity(c, r, dim=-1).mean(1)
        if repulsion.margin is not None:
            each = each.clamp(min=repulsion.margin)
        loss = F.cross_entropy(10 * F.normalize(e, dim=1) @ victim.text.T, y) + repulsion.alpha * each.mean()
        (g,) = torch.autograd.grad(loss, p)
        factor = (step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (steps - 2)))
        with torch.no_grad():
            momentum = 0.9 * momentum + g + 5e-4 * p
            p -= 0.05 * factor * momentum
    last = tune(mine, shots, tuning, repulsion, 7)
    assert_within_rounding([mine.visual.prompts, torch.tensor(last)], [p, loss], terms=steps * DEEP)


def test_the_tower_without_prompts_stays_as_it_was_bit_for_bit(clip, victim, data):
    x = data.__getitems__(list(range(9)))[0]
    before, state = victim(x), {k: v.clone() for k, v in clip.state_dict().items()}
    mine = defended(victim)
    tune(mine, few_shot(data, 2, 0), TUNING, Repulsion(), 0)
    assert torch.equal(victim(x), before) and not torch.equal(mine(x), before)
    assert all(torch.equal(v, state[k]) for k, v in clip.state_dict().items())
    assert all(p.grad is None for p in clip.parameters()) and not mine.visual.prompts.requires_grad


def test_gradients_reach_prompts_only(clip, victim, data):
    clip.requires_grad_(True)
    mine = defended(victim)
    x, y = data.__getitems__(list(range(8)))
    f = mine.visual.begin(victim.pixels(x))
    assert not f.requires_grad and not mine.visual.reference(f).requires_grad
    e, c = mine.visual.finish(f)
    rvpt_loss(mine.classify(e), y, c, mine.visual.reference(f), Repulsion())[0].backward()
    assert mine.visual.prompts.grad.flatten(1).abs().amax(1).min() > 0  # in every layer
    assert all(p.grad is None for p in clip.parameters())


def test_margin_one_and_alpha_zero_are_visual_prompt_tuning(victim, data):
    shots, tuned = few_shot(data, 2, 0), []
    for repulsion in (Repulsion(2.0, 1.0), Repulsion(0.0), Repulsion(2.0, -1.0), Repulsion(2.0)):
        mine = defended(victim)
        tune(mine, shots, TUNING, repulsion, 0)
        tuned.append(mine.visual.prompts)
    assert torch.equal(tuned[0], tuned[1]) and torch.equal(tuned[2], tuned[3]) and not torch.equal(tuned[0], tuned[2])


def test_repulsion_lowers_the_cosine_and_tuning_the_loss(victim, data):
    shots, cosines = few_shot(data, 8, 0), []
    x, y = shots.__getitems__(list(range(len(shots))))
    for alpha in (0.0, 2.0):
        mine = defended(victim)
        first = F.cross_entropy(mine(x), y)
        tune(mine, shots, Tuning(epochs=25, batch=16, lr=0.1), Repulsion(alpha), 0)
        f = mine.visual.begin(victim.pixels(x))
        cosines.append(float(repulsion_loss(mine.visual.finish(f)[1], mine.visual.reference(f))))
        assert alpha or F.cross_entropy(mine(x), y) < first
    assert cosines[1] < cosines[0] - 0.1


@pytest.mark.parametrize(
    "tuning", [replace(TUNING, every=2), replace(TUNING, every=2, augment="crop_flip", schedule="constant")]
)
def test_an_interrupted_tuning_continues_exactly(victim, data, tuning, tmp_path):
    shots, whole, cut = few_shot(data, 3, 0), defended(victim), defended(victim)
    tune(whole, shots, tuning, Repulsion(), 1)

    class Killed(Exception):
        pass

    def kill(step):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        tune(cut, shots, tuning, Repulsion(), 1, checkpoint=tmp_path / "c.ckpt", after_step=kill)
    assert (tmp_path / "c.ckpt").stat().st_size < 20_000  # prompts and momentum, not the tower
    again = defended(victim, seed=9)
    tune(again, shots, tuning, Repulsion(), 1, checkpoint=tmp_path / "c.ckpt")
    assert torch.equal(again.visual.prompts, whole.visual.prompts) and not torch.equal(
        cut.visual.prompts, whole.visual.prompts
    )


def test_cached_or_not_is_the_same_up_to_rounding_and_the_seed_matters(victim, data):
    shots, tuned = few_shot(data, 2, 0), []
    for tuning, seed in (
        (TUNING, 0),
        (replace(TUNING, cache=False), 0),
        (TUNING, 1),
        (replace(TUNING, augment="crop_flip"), 0),
    ):
        mine = defended(victim)
        tune(mine, shots, tuning, Repulsion(), seed)
        tuned.append(mine.visual.prompts)
    assert_within_rounding(tuned[0], tuned[1], terms=9 * DEEP)  # nine steps
    assert (tuned[0] - tuned[2]).abs().max() > 1e-3 and (tuned[0] - tuned[3]).abs().max() > 1e-3


def test_a_set_of_other_classes_is_refused(victim):
    with pytest.raises(UserError, match="classes"):
        tune(defended(victim), SceneSet("size", "train", 9), TUNING, Repulsion(), 0)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [0.5, 1, 1, 1, 1]), ("cosine", [0.5, 1, 1, 0.75, 0.25])]
)
def test_a_constant_rate_stays_and_a_cosine_falls(data, schedule, expected):
    module, values = torch.nn.Linear(1, 1, bias=False), []
    start = module.weight.item()
    tuning = Tuning(epochs=5, batch=8, lr=1.0, momentum=0, weight_decay=0, warmup=2, schedule=schedule)
    optimise(
        module,
        lambda x, y, indices, step: module.weight.sum(),
        few_shot(data, 1, 0),
        tuning,
        0,
        after_step=lambda step: values.append(module.weight.item()),
    )
    assert -np.diff([start, *values]) == pytest.approx(expected, abs=1e-5)


# ---- few shots -------------------------------------------------------------------------------------------------------------


def test_few_shots_are_so_many_of_each_class_and_nested(data):
    sets = {n: few_shot(data, n, 3) for n in (1, 4, 5, 100)}
    for n, shots in sets.items():
        assert np.bincount(shots.labels, minlength=8).tolist() == [min(n, 8)] * 8
        assert set(sets[1].indices) <= set(shots.indices) and len(set(shots.indices.tolist())) == len(shots)
    assert set(few_shot(data, 4, 4).indices) != set(sets[4].indices)
    x, y = sets[4].__getitems__([0, 5])
    assert (
        torch.equal(x, data.__getitems__(sets[4].indices[[0, 5]])[0])
        and y.tolist() == data.labels[sets[4].indices[[0, 5]]].tolist()
    )


def test_an_emerging_class_has_no_shots_and_the_others_keep_theirs(data):
    some, all_ = few_shot(data, 4, 3, without=[2]), few_shot(data, 4, 3)
    assert np.bincount(some.labels, minlength=8).tolist() == [4, 4, 0, 4, 4, 4, 4, 4]
    assert some.indices.tolist() == all_.indices[np.asarray(all_.labels) != 2].tolist()
    for bad in ({"shots": 0}, {"shots": 1, "without": range(8)}):
        with pytest.raises(UserError):
            few_shot(data, seed=0, **bad)


def test_crops_are_per_picture_within_the_picture_and_sometimes_mirrored():
    x = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rng = SampleRng(0, range(40))
    y = crop_flip(x, rng)
    assert_within_rounding(y[7:9], crop_flip(x[7:9], SampleRng(0, [7, 8])), terms=4 * 16 * 16)
    assert y.shape == x.shape and y.min() >= 0 and y.max() <= 1
    same = crop_flip(x, rng, 1.0)  # the whole area: where the aspect cuts nothing off, the picture or its mirror image
    ramp = torch.linspace(0, 1, 16).expand(40, 3, 16, 16)
    slopes = (crop_flip(ramp, rng)[:, 0, 0, -1] - crop_flip(ramp, rng)[:, 0, 0, 0]).sign()
    assert 8 < (slopes > 0).sum() < 32 and same.shape == x.shape
    widths = crop_flip(ramp, rng)[:, 0, 0].diff(dim=-1).abs().median(-1).values * 15
    assert widths.min() < 0.5 and widths.max() <= 1.0001
    for bad in (0.0, 1.5):
        with pytest.raises(UserError):
            crop_flip(x, rng, bad)
