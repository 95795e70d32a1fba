"""Training in epochs: against a loop over plain torch, exact continuation, what is trained when, and the schedule of the released code."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from papers.roclip.augment import MILD, CaptionAugmentation
from papers.roclip.method import AS_RELEASED, TWO_SIDED, Matching
from papers.roclip.training import RELEASED, Method, Training, make_pools, optimizer_of, tower_parameters, train
from shared.errors import UserError
from shared.models.clip import MEAN_STD, create_clip
from shared.training.contrastive import batch_indices
from tests.accuracy import assert_same_way, assert_within_rounding
from tests.processes import saved_by_one_and_two, script_in

SMALL = Training(epochs=3, batch=64, lr=1e-3, warmup=2)
ONE_SIDED = Matching(sides="image", query="cross", share=None, size=80, start="gaussian", wrap="drop")


def parameters(clip):
    return {name: p.detach().clone() for name, p in clip.named_parameters()}


def literally(clip, pairs, matching, training):
    """The same training with nothing but torch: every tower with a graph, zero gradients by a factor, pools in lists."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD["clip"])
    clip.requires_grad_(True).train()
    optimizer, per_epoch = optimizer_of(clip, training), len(pairs) // training.batch
    noise = {
        m: torch.randn(80, 16, generator=torch.Generator().manual_seed(k)) for k, m in enumerate(("text", "image"))
    }
    pools, places = {m: list(v) for m, v in noise.items()}, {"text": 0, "image": 0}

    def neighbour(q, pool):
        stack = torch.stack(pool)
        return stack[(F.normalize(q, dim=1) @ F.normalize(stack, dim=1).T).argmax(1)].detach()

    def ce(a, b):
        s, y = clip.logit_scale.exp(), torch.arange(len(a))
        return (F.cross_entropy(s * a @ b.T, y) + F.cross_entropy((s * a @ b.T).T, y)) / 2

    for step in range(training.epochs * per_epoch):
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, len(pairs))
        x, texts = pairs.__getitems__(batch_indices(len(pairs), training.batch, step))
        image = F.normalize(clip.visual((x - mean) / std), dim=-1)
        text = F.normalize(clip.encode_text(clip.tokenizer(texts)), dim=-1)
        if (step // per_epoch + 1) % 2 == 0:
            if matching.sides == "image":
                loss = ce(image, neighbour(image.detach(), pools["text"])) + 0 * text.sum()
            else:
                loss = (
                    ce(image, neighbour(text.detach(), pools["text"]))
                    + ce(text, neighbour(image.detach(), pools["image"]))
                ) / 2
            for m, batch in (("text", text), ("image", image)):
                for row in batch.detach():
                    if places[m] < 80:  # released: the rest of the batch is dropped at the end
                        pools[m][places[m]] = row
                        places[m] += 1
                places[m] %= 80
        else:
            loss = ce(image, text)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), training.clip_norm)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
    return loss.item()


@pytest.mark.parametrize(
    "matching", [ONE_SIDED, Matching(share=None, size=80, start="gaussian", wrap="drop")], ids=["released", "two-sided"]
)
def test_a_run_of_each_version_is_the_one_written_out(clip, pairs, matching):
    other, start = copy.deepcopy(clip), parameters(clip)
    trained, expected = train(clip, pairs, Method(matching), SMALL), literally(other, pairs, matching, SMALL)
    assert_within_rounding(torch.tensor(trained.loss), torch.tensor(expected), terms=6 * 4 * 96)  # six steps
    after = parameters(other)
    assert [row["matched"] for row in trained.history] == [False, True, False]
    for (
        name,
        p,
    ) in clip.named_parameters():  # Adam: an update whose gradient is rounding alone has the size of any other
        moved = (p - start[name]).norm()
        assert (p - after[name]).norm() <= 0.02 * moved + 1e-6, name


def test_in_released_epochs_the_text_tower_has_zeros_which_decay_and_momentum_follow(clip, pairs):
    """Every epoch a RoCLIP epoch: from no momentum, matrices shrink by 1 − lr·wd per step and vectors stay as they are."""
    before, training = parameters(clip), Training(epochs=1, batch=64, lr=1e-2, warmup=0, weight_decay=0.5)
    train(clip, pairs, Method(Matching(sides="image", query="cross", every=1, start="gaussian")), training)
    factor = math.prod(1 - 0.5 * training.rate(step, len(pairs)) for step in range(3))
    after, image_moved = parameters(clip), 0
    texts = {id(p) for p in tower_parameters(clip)[1]}
    assert len(texts) == len(list(clip.parameters())) - len(list(clip.visual.parameters())) - 1
    for name, p in clip.named_parameters():
        if id(p) in texts:
            assert_within_rounding(after[name], before[name] * (factor if p.ndim >= 2 else 1), terms=3, what=name)
        else:
            image_moved += not torch.allclose(after[name], before[name] * factor, rtol=1e-3)
    assert image_moved > 5
    assert torch.equal(clip.logit_scale, clip.logit_scale.clamp(0, math.log(100)))


def test_the_gradient_itself_is_zero_and_not_missing(clip, pairs, monkeypatch):
    seen = {}

    def watched(self, *rest, **kwargs):
        seen["grads"] = [p.grad for p in tower_parameters(clip)[1]]
        return original(self, *rest, **kwargs)

    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(clip, pairs, Method(Matching(sides="image", query="cross", every=1)), Training(epochs=1, batch=200, warmup=0))
    assert all(g is not None and torch.count_nonzero(g) == 0 for g in seen["grads"])
    train(clip, pairs, Method(Matching(every=1)), Training(epochs=1, batch=200, warmup=0))
    assert any(torch.count_nonzero(g) for g in seen["grads"])


def test_pairs_that_are_read_ahead_by_other_processes_are_the_same(clip, pairs):
    other, method = copy.deepcopy(clip), Method(ONE_SIDED, MILD, CaptionAugmentation(0.1, 1))
    alone, ahead = train(clip, pairs, method, SMALL), train(other, pairs, method, replace(SMALL, workers=2))
    assert alone.loss == ahead.loss and all(
        torch.equal(a, b) for a, b in zip(clip.parameters(), other.parameters(), strict=True)
    )


def test_a_pool_is_asked_before_the_batch_enters_it(clip, pairs, monkeypatch):
    from papers.roclip.pool import Pool

    order, nearest, add = [], Pool.nearest, Pool.add
    monkeypatch.setattr(Pool, "nearest", lambda self, *a: (order.append("ask"), nearest(self, *a))[1])
    monkeypatch.setattr(Pool, "add", lambda self, *a: (order.append("add"), add(self, *a))[1])
    trained = train(clip, pairs, Method(ONE_SIDED), SMALL)
    assert order == ["ask", "add"] * 3  # three updates per epoch, in epoch 2 alone: the pool is stale over plain epochs
    last = [i for step in (3, 4) for i in batch_indices(len(pairs), 64, step)][
        :80
    ]  # 64 + 16, and the third batch begins at 0 again
    assert trained.pools["text"].ids.tolist() == batch_indices(len(pairs), 64, 5) + last[64:]


@pytest.mark.parametrize("start", ["unit", "pairs"])
def test_refreshed_always(clip, pairs, start):
    ids = []
    train(
        clip,
        pairs,
        Method(Matching(share=None, size=64, refresh="always", start=start)),
        SMALL,
        after_epoch=lambda epoch, model, pools: ids.append(pools["image"].ids.tolist()) or {},
    )
    assert ids == [batch_indices(len(pairs), 64, step) for step in (2, 5, 8)]


def test_a_pool_that_begins_with_pairs_has_them_at_its_first_use(clip, pairs, monkeypatch):
    from papers.roclip.pool import Pool

    puts = []
    put = Pool.put
    monkeypatch.setattr(Pool, "put", lambda self, e, ids: (puts.append((e.clone(), list(ids))), put(self, e, ids))[1])
    train(clip, pairs, Method(Matching(share=0.5)), SMALL)
    assert len(puts) == 2 and all(len(set(map(int, ids))) == 103 for _, ids in puts)
    assert_within_rounding([e.norm(dim=1) for e, _ in puts], [torch.ones(103)] * 2, terms=16)
    assert not torch.allclose(puts[0][0], puts[1][0])


def test_killed_and_continued_is_the_same_run(clip, pairs, tmp_path):
    class Killed(Exception):
        pass

    class Mortal:
        version = pairs.version

        def __init__(self, lives):
            self.lives = lives

        def __len__(self):
            return len(pairs)

        def __getitems__(self, indices):
            self.lives -= 1
            if self.lives < 0:
                raise Killed
            return pairs.__getitems__(indices)

    method = Method(Matching(share=0.3), MILD, CaptionAugmentation())
    training, checkpoint = Training(epochs=4, batch=64, warmup=2, every=2), tmp_path / "run.ckpt"

    def after(epoch, model, pools):
        assert not model.training and set(pools) == {"text", "image"}
        return {"scale": float(model.logit_scale)}

    straight, other = copy.deepcopy(clip), copy.deepcopy(clip)
    whole = train(straight, pairs, method, training, after_epoch=after)
    with pytest.raises(Killed):
        train(clip, Mortal(11), method, training, checkpoint=checkpoint, after_epoch=after)
    state = torch.load(checkpoint, weights_only=True)["model"]
    assert state["pools.text.ids"].shape == (62,) and '"epoch": 2' in state["_extra_state"]
    rest = train(other, pairs, method, training, checkpoint=checkpoint, after_epoch=after)
    assert [row["matched"] for row in rest.history] == [False, True, False, True]
    assert (
        rest.history == whole.history
        and [row["epoch"] for row in rest.history] == [1, 2, 3, 4]
        and rest.loss == whole.loss
    )
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), other.parameters(), strict=True))
    for name, pool in whole.pools.items():
        assert all(torch.equal(v, rest.pools[name].state_dict()[k]) for k, v in pool.state_dict().items())


def test_the_schedule_of_the_released_code():
    """Facts: 1.954e-5 at the end of epoch 1; about 0 at the end of epoch 23 of 24; 3.4e-7 at the end."""
    n = 1_000_500
    assert RELEASED.per_epoch(n) == 1954
    rate = [RELEASED.rate(1954 * e - 1, n) for e in range(1, 25)]
    assert (
        rate[0] == pytest.approx(1.954e-5)
        and rate[22] == pytest.approx(0, abs=1e-12)
        and rate[23] == pytest.approx(3.4e-7, rel=0.02)
    )
    assert RELEASED.rate(1954 * 22 - 1, n) == pytest.approx(3.5e-7, rel=0.05) and RELEASED.rate(
        1954 * 21, n
    ) == pytest.approx(1.4e-6, rel=0.05)
    plain = Training(epochs=24, batch=512, lr=5e-5, warmup=10_000)
    assert (
        plain.rate(0, n) == pytest.approx(5e-9)
        and plain.rate(24 * 1954 - 1, n) < 1e-12
        and plain.rate(9_999, n) == pytest.approx(5e-5)
    )


def test_what_the_released_code_decays(clip):
    groups = optimizer_of(clip, RELEASED).param_groups
    names = {id(p): name for name, p in clip.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in groups)
    assert "visual.class_embedding" in decayed and "logit_scale" in spared and len(decayed | spared) == len(names)
    assert (
        all("ln" in name or "bias" in name or name == "logit_scale" for name in spared)
        and groups[0]["weight_decay"] == 0.1
    )
    assert groups[0]["betas"] == (0.9, 0.999) and groups[0]["eps"] == 1e-8


def test_both_versions_have_the_pools_they_need(clip):
    assert set(make_pools(clip, TWO_SIDED, 1000)) == {"text", "image"} and set(make_pools(clip, AS_RELEASED, 1000)) == {
        "text"
    }
    assert make_pools(clip, None, 1000) == {}
    assert make_pools(clip, TWO_SIDED, 1000)["text"].directions.shape == (20, 16)


def test_it_learns(clip, pairs):
    """Plain CLIP, from random weights and again from what came out of it."""
    first = train(clip, pairs, training=Training(epochs=15, batch=64, lr=4e-3, warmup=5))
    second = train(clip, pairs, Method(TWO_SIDED), Training(epochs=2, batch=64, lr=1e-4, warmup=2), name="fine-tuning")
    assert first.history[0]["loss"] > 4 > 3.3 > first.history[-1]["loss"] and math.isfinite(second.loss)
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())


@pytest.mark.parametrize("fields", [{"epochs": 0}, {"batch": 1}, {"warmup": -1}, {"lr": 0.0}, {"decayed": "all"}])
def test_numbers_that_are_refused(fields):
    with pytest.raises(UserError):
        Training(**fields)


def test_batches_that_are_refused(clip, pairs):
    with pytest.raises(UserError, match="larger than the set, which has 206"):
        train(clip, pairs, training=Training(batch=256))
    with pytest.raises(UserError, match="no equal shares for 3 processes"):
        train(clip, pairs, training=SMALL, accelerator=SimpleNamespace(process_index=0, num_processes=3, device="cpu"))


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from papers.roclip.method import Matching
from papers.roclip.training import Method, Training, train
from shared.data.scene_sets import ScenePairs
from shared.models.clip import create_clip, save_tensors

accelerator = Accelerator(cpu=True)
out = {}
for name, matching in (("one", Matching(sides="image", query="cross", share=0.5)), ("two", Matching(share=0.5, own="excluded"))):
    torch.manual_seed(0)
    clip = create_clip("scenes-vit-xs8")
    trained = train(clip, ScenePairs(48), Method(matching), Training(epochs=3, batch=16, warmup=1), accelerator)
    out |= {f"{name}.{k}": v for k, v in clip.state_dict().items()}
    mine = {f"{name}.pool.{m}.{k}": v for m, pool in trained.pools.items() for k, v in pool.state_dict().items()}
    out |= mine
    for key, value in mine.items():
        everywhere = accelerator.gather(value.float().reshape(1, -1))
        assert (everywhere == everywhere[:1]).all(), f"{key} differs between processes"
if accelerator.is_main_process:
    save_tensors(out, sys.argv[1])
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_train_the_same_model_and_hold_the_same_pools_as_one(tmp_path):
    one, two = saved_by_one_and_two(tmp_path, script_in(tmp_path, SCRIPT))
    assert sum(".ids" in name for name in one) == 3
    torch.manual_seed(0)
    start = create_clip("scenes-vit-xs8").state_dict()
    for run in ("one", "two"):
        ways = ({k: saved[f"{run}.{k}"] for k in start} for saved in (one, two))
        assert_same_way(*ways, start)
    for name in one:
        if name.endswith((".ids", ".next")):
            assert torch.equal(one[name], two[name]), name
