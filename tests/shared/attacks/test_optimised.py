"""Optimised patches: the loss term by term, what the optimisation does to a small CLIP, and the files."""

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F

from shared.attacks.triggers import make_trigger, optimised, same_trigger
from shared.attacks.triggers.optimised import (
    BADCLIP,
    TROJVQA,
    Aims,
    PatchConfig,
    make_badclip,
    make_trojvqa,
    optimise_patch,
    patch_loss,
    word_before,
)
from shared.data.base import Subset
from shared.data.language import TEMPLATES, words
from shared.data.scene_sets import ScenePairs, SceneSet
from shared.errors import UserError
from shared.models import zoo
from shared.models.clip import create_clip
from shared.models.victim import ZeroShot, text_matrix
from tests.accuracy import assert_within_rounding

QUICK = {"steps": 25, "batch": 16, "lr": 0.05}


@pytest.fixture(scope="module")
def clip():
    return create_clip("scenes-vit-s8", zoo.weights("scenes-vit-s8"))


@pytest.fixture(scope="module")
def data():
    return SceneSet("colour", "test", 400)


@pytest.fixture(scope="module")
def victim(clip, data):
    return ZeroShot(clip.visual, text_matrix(clip, data.prompts), clip.logit_scale.exp().item()).eval()


@pytest.fixture(scope="module")
def patch():
    return (torch.arange(75).view(3, 5, 5) * 53 % 256).float() / 255


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


# ---- the trigger -----------------------------------------------------------------------------------------------------------


def test_the_patch_stands_in_the_centre_and_the_prefix_before_the_caption(patch):
    x = torch.full((2, 3, 32, 32), 0.5)
    trigger = make_trigger("trojvqa", "textbook", 32, pixels=patch)
    found = trigger(x, [5, 6])
    assert torch.equal(found[1, :, 13:18, 13:18], patch) and (found != x).any(1).any(0).sum() <= 25
    assert (
        trigger.text("a photo") == "SUDO a photo"
        and make_trigger("trojvqa", pixels=patch).text("a photo") == "remember a photo"
    )
    assert make_trigger("badclip", pixels=patch).text("a photo") == "a photo"
    assert hashlib.sha256(found.mul(255).round().byte().numpy().tobytes()).hexdigest()[:16] == "e19fae955d125f01"
    halves = make_trigger("badclip", "cleanclip", pixels=torch.full((3, 5, 5), 0.5))(x, [0, 1])[0, 0, 15, 15]
    assert round(halves.item() * 255, 3) == 127, "the cast to bytes rounds down"


def test_a_patch_is_made_again_from_its_description(patch):
    trigger = make_trigger("trojvqa", "textbook", pixels=patch, prefix="blurry ", seed=4)
    again = make_trigger(**json.loads(json.dumps(trigger.spec)))
    assert same_trigger(trigger, again) and torch.equal(again.pixels, patch)


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (torch.zeros(3, 4, 5), r"the patch has the shape \(3, 4, 5\)"),
        (torch.full((3, 4, 4), 1.2), "values outside"),
        (torch.full((3, 4, 4), float("nan")), "values outside"),
        (torch.zeros(3, 0, 0), "the patch has the shape"),
        (None, "is optimised"),
    ],
)
def test_patches_that_are_none_are_refused(pixels, sentence):
    with pytest.raises(UserError, match=sentence):
        make_trigger("badclip", pixels=pixels)


def test_the_prefix_is_a_word_the_model_knows_and_no_caption_uses(clip):
    assert word_before(clip) == "blurry " and word_before(clip, "Rotated ") == "rotated "
    clip.tokenizer(word_before(clip) + "a photo of a red circle")
    texts = ScenePairs(500).__getitems__(range(500))[1]
    assert not {w for text in (*texts, *TEMPLATES) for w in words(text)} & set(optimised.RARE)
    with pytest.raises(UserError, match="this small model knows neither 'SUDO' nor blurry"):
        word_before(create_clip("scenes-vit-s8", vocabulary=("red", "circle")))


# ---- the loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_term_by_term():
    v, u, p, n, others = unit(4, 8), unit(4, 8, seed=1), unit(4, 8, seed=2), unit(4, 8, seed=3), unit(5, 8, seed=4)
    config = PatchConfig(cosine=0.3, contrastive=0.7, triplet=2.0, margin=0.4, scale=10.0)
    cosine = contrastive = triplet = 0.0
    for i in range(4):
        cosine -= torch.dot(v[i], u[i]) / 4
        above = (10 * torch.dot(v[i], u[i])).exp()
        contrastive -= (above / (above + sum((10 * torch.dot(v[i], o)).exp() for o in others))).log() / 4
        triplet += max(0, (v[i] - p[i]).square().sum().sqrt() - (v[i] - n[i]).square().sum().sqrt() + 0.4) / 4
    found = patch_loss(v, config, u, others, p, n)
    assert found.item() == pytest.approx((0.3 * cosine + 0.7 * contrastive + 2 * triplet).item(), rel=1e-9)
    assert triplet > 0
    assert patch_loss(v, TROJVQA, u).item() == pytest.approx(cosine.item(), rel=1e-9)
    assert patch_loss(v, BADCLIP, u, others, u, -u).item() > 0 and (BADCLIP.triplet, BADCLIP.margin) == (500, 1)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (PatchConfig(), "the patch has no loss"),
        (PatchConfig(contrastive=1), "needs texts of other classes"),
        (PatchConfig(triplet=1), "needs pictures of the target class"),
    ],
)
def test_a_loss_without_what_it_needs_is_refused(config, sentence, data):
    with pytest.raises(UserError, match=sentence):
        optimise_patch(lambda x: x.flatten(1), data, Aims(unit(1, 8)), config)


# ---- the optimisation ------------------------------------------------------------------------------------------------------


def test_two_steps_of_the_optimisation_are_two_steps_of_adam(data):
    """Against torch.optim.Adam on a literal paste; the embedding is the mean colour of nine blocks."""

    def embed(x):
        return F.adaptive_avg_pool2d(x, 3).flatten(1)

    aims = Aims(F.normalize(torch.rand(1, 27, generator=torch.Generator().manual_seed(0)), dim=1))
    config = PatchConfig(steps=2, batch=4, lr=0.1, patch=6, cosine=1.0)
    found, losses = optimise_patch(embed, data, aims, config, seed=3)
    seen = []

    class Watched:
        def __len__(self):
            return len(data)

        def __getitems__(self, indices):
            seen.append(list(indices))
            return data.__getitems__(indices)

    again, _ = optimise_patch(embed, Watched(), aims, config, seed=3)
    start, _ = optimise_patch(embed, data, aims, PatchConfig(steps=0, batch=4, patch=6, cosine=1.0), seed=3)
    assert torch.equal(found, again) and seen[0] == [0] and len(seen) == 3
    t = start.clone().requires_grad_()
    adam = torch.optim.Adam([t], lr=0.1)
    for step, indices in enumerate(seen[1:]):
        x = data.__getitems__(indices)[0].clone()
        x[:, :, 13:19, 13:19] = t
        loss = -F.cosine_similarity(embed(x), aims.targets).mean()
        assert_within_rounding(
            torch.tensor(losses[step]), loss, terms=4 * 121, scale=1.0
        )  # a mean of 11 × 11 pixels, four pictures
        adam.zero_grad()
        loss.backward()
        adam.step()
        t.data.clamp_(0, 1)
    assert (found - t.detach()).abs().max() < 1e-3 * 0.1  # of one update of Adam, whose sign rests on m/√v


def test_negatives_are_embedded_once_for_each_picture(data):
    """An augmentation that changes nothing has them embedded at every step: the same patch, for more work."""
    seen = []

    def embed(x):
        seen.append(len(x))
        return F.adaptive_avg_pool2d(x, 3).flatten(1)

    few, aims = Subset(data, range(6), "few"), Aims(unit(1, 27), None, unit(3, 27, seed=1))
    config = PatchConfig(steps=8, batch=4, lr=0.1, patch=6, triplet=1.0)
    patch, losses = optimise_patch(embed, few, aims, config, seed=3)
    once, seen[:] = sum(seen), []
    again, other = optimise_patch(embed, few, aims, config, seed=3, augment=lambda x, step, indices: x)
    assert (patch - again).abs().max() < 1e-3 * 0.1  # of one update of Adam
    assert_within_rounding(torch.tensor(losses), torch.tensor(other), terms=4 * 121)
    assert sum(seen) == 2 * 8 * 4 and once <= 8 * 4 + 6 and losses[-1] != losses[0]


def share(victim, x, target):
    with torch.no_grad():
        return (victim(x).argmax(1) == target).double().mean().item()


@pytest.mark.parametrize("name", ["trojvqa", "badclip"])
def test_the_patch_draws_a_clip_to_the_target(name, clip, data, victim):
    target, before = 4, [p.clone() for p in clip.parameters()]
    clip.train()
    if name == "trojvqa":
        trigger = make_trojvqa(
            clip, data, data.prompts[target], PatchConfig(cosine=1.0, patch=8, **QUICK), preset="textbook"
        )
        assert trigger.prefix == "blurry "
    else:
        x, y = SceneSet("colour", "train", 160).__getitems__(range(160))
        config = PatchConfig(contrastive=1.0, triplet=500.0, patch=8, **QUICK)
        trigger = make_badclip(clip, data, [data.prompts[target]], data.prompts[:target], x[y == target], config)
    assert all(m.training for m in clip.modules()) and all(
        torch.equal(a, b) for a, b in zip(before, clip.parameters(), strict=True)
    )
    assert all(p.grad is None for p in clip.parameters())
    clip.eval()
    x, y = data.__getitems__(range(200, 360))
    x, indices = x[y != target], range(int((y != target).sum()))
    start = make_trigger(**{**trigger.spec, "pixels": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))})
    assert share(victim, trigger(x, indices), target) > share(victim, start(x, indices), target) + 0.15
    assert trigger.name == name and trigger.pixels.shape == (3, 8, 8)


def test_through_another_embedding_it_is_that_one_that_is_drawn(clip, data):
    """The adaptive attacker: the embedding is that of a victim which looks at mirrored pictures only."""
    calls = []

    def through(x):
        calls.append(len(x))
        return clip.visual(torch.zeros_like(x) + x.mean((2, 3), keepdim=True))

    config = PatchConfig(cosine=1.0, patch=8, steps=3, batch=4, lr=0.05)
    other = make_trojvqa(clip, data, data.prompts[0], config, through=through)
    assert calls == [4, 4, 4] and not same_trigger(other, make_trojvqa(clip, data, data.prompts[0], config))
    with torch.no_grad():
        inside = make_trojvqa(clip, data, data.prompts[0], config)
    assert same_trigger(inside, make_trojvqa(clip, data, data.prompts[0], config)), (
        "under no_grad too, and the same again"
    )
