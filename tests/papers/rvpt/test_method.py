"""RVPT against its equations written out: the prompted forward pass, both losses, how much is trained, what is kept."""

import copy
import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

from papers.rvpt.costs import trained_share
from papers.rvpt.method import DeepPrompts, Repulsion, encode, prompted, repulsion_loss, rvpt_loss
from papers.rvpt.prompt_file import facts_of, load_prompts, tower_digest
from shared.errors import UserError
from shared.models.clip import PatchEmbedding, create_clip, save_tensors
from shared.models.victim import ZeroShot
from tests.accuracy import assert_as_accurate, assert_within_rounding, in_both

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP of the widest tower here, for each of four blocks


def pictures(n=3, size=12, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ---- the forward pass ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(1, 4), (0, 4), (3, 4), (0, 2), (2, 3)])
def test_prompted_forward_is_the_literal_one(tower_kind, first, last, tools):
    options, quick = tower_kind
    tower, x = tools.tower_of(**options), pictures()
    p = DeepPrompts(tower, first, length=5, last=last, std=1.0, seed=2)

    def by_hand(p, x):
        embedding, tokens = tools.literal(p.tower, x, p.by_layer, quick=quick)
        plain, untouched = tools.literal(p.tower, x, {}, quick=quick)
        return [embedding, tokens[:, first:last], embedding, untouched[:, first:last], plain, untouched, plain, tokens]

    states, theirs = p.states(x), in_both(by_hand, p, x)
    assert len(states) == 5 and all(s.shape == (3, 10, 12) for s in states)
    ours = [*p.finish(p.begin(x)), p(x), p.reference(p.begin(x)), *encode(tower, x)]
    ours += [tower(x), torch.stack([s[:, 0] for s in states[1:]], 1)]  # the transcription is that of open_clip's tower
    assert_as_accurate(ours, *theirs, terms=DEEP)
    assert (theirs[0][0] - theirs[0][4]).abs().max() > 0.05


def test_gradients_of_prompts_and_pictures_are_those_of_the_literal_pass(tower_kind, tools):
    options, quick = tower_kind
    p = DeepPrompts(tools.tower_of(**options), 1, length=2, std=1.0)
    weights = torch.randn(2, 7, generator=torch.Generator().manual_seed(3)).double()

    def derivatives(run, dtype):
        p.to(dtype)
        z = pictures(2).to(dtype).requires_grad_()
        return torch.autograd.grad((run(z).double() * weights).sum(), (p.prompts, z))

    def by_hand(z):
        return tools.literal(p.tower, z, p.by_layer, quick=quick)[0]

    exact = derivatives(by_hand, torch.float64)
    assert_within_rounding(derivatives(p, torch.float64), exact, terms=DEEP)
    assert_as_accurate(derivatives(p, torch.float32), derivatives(by_hand, torch.float32), exact, terms=DEEP)


@pytest.mark.parametrize(
    "options",
    [{"qk_norm": True}, {"scale_heads": True, "scale_fc": True, "scale_attn": True}, {"attentional_pool": True}],
)
def test_other_blocks_and_poolings_get_the_same_tokens(options, tools):
    tower, x = (
        tools.tower_of(**options, **({"attn_pooler_heads": 1} if "attentional_pool" in options else {})),
        pictures(),
    )
    p = DeepPrompts(tower, 1, length=2, std=1.0)
    f = tower._embeds(x)
    for d, block in enumerate(tower.transformer.resblocks):
        if d >= 1:
            f = torch.cat([f[:, :1], p.prompts[d - 1].repeat(3, 1, 1), f[:, 1:]], 1)
        f = block(f)
        if d >= 1:
            f = f[:, [0, *range(3, 12)]]
    assert_within_rounding(p(x), tower._pool(f)[0] @ tower.proj, terms=DEEP)
    assert_within_rounding(encode(tower, x)[0], tower(x), terms=DEEP)


@pytest.mark.parametrize("lean", [False, True])
def test_blocks_that_want_the_sequence_first(lean, tools):
    tower, x = tools.tower_of(lean=lean), pictures()
    turned = copy.deepcopy(tower)
    turned.transformer.batch_first = False
    for block in turned.transformer.resblocks:
        block.attn.batch_first = False
    assert_within_rounding(DeepPrompts(turned, 1, 2, std=1.0)(x), DeepPrompts(tower, 1, 2, std=1.0)(x), terms=DEEP)


def test_the_quick_last_block_steps_aside_for_hooks(tools):
    tower, x, seen = tools.tower_of(lean=True), pictures(), []
    p = DeepPrompts(tower, 1, 2, std=1.0)
    quick = p(x)
    tower.transformer.resblocks[-1].register_forward_hook(lambda m, a, out: seen.append(out.shape))
    assert_within_rounding(p(x), quick, terms=DEEP)
    assert seen == [(3, 12, 12)]


def test_draws_are_gaussian_of_the_given_deviation_and_belong_to_the_seed(tools):
    tower = tools.tower_of()
    before = torch.get_rng_state()
    a, b, c = (DeepPrompts(tower, 1, 500, std=0.02, seed=s).prompts for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.get_rng_state())
    assert a.mean().abs() < 1e-3 and abs(a.std() - 0.02) < 1e-3 and a.shape == (3, 500, 12)
    assert not torch.equal(a[0], a[1])


@pytest.mark.parametrize(
    "bad",
    [
        {"first": 4},
        {"first": -1},
        {"first": 2, "last": 2},
        {"first": 1, "last": 5},
        {"first": 1, "length": 0},
        {"first": 1, "std": -1.0},
        {"first": 1, "std": math.nan},
    ],
)
def test_prompts_that_fit_no_layer_are_refused(bad, tools):
    with pytest.raises(UserError):
        DeepPrompts(tools.tower_of(), **bad)


def test_a_tower_without_class_token_is_refused():
    with pytest.raises(UserError, match="ModifiedResNet"):
        DeepPrompts(open_clip.model.ModifiedResNet((1, 1, 1, 1), 8, 2, 32, 4))


# ---- losses ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [None, -1.0, 0.1, 1.0])
def test_losses_are_the_literal_ones(margin, tools):
    g = torch.Generator().manual_seed(0)
    logits, c, r = torch.randn(5, 4, generator=g), torch.randn(5, 3, 6, generator=g), torch.randn(5, 3, 6, generator=g)
    y = torch.tensor([0, 3, 1, 1, 2])
    ce = fr = 0.0
    for i in range(5):
        ce += -(logits[i, y[i]] - math.log(sum(math.exp(z) for z in logits[i]))) / 5
        each = sum(tools.cosine(c[i, d], r[i, d]) for d in range(3)) / 3
        fr += (each if margin is None else max(each, margin)) / 5
    total, terms = rvpt_loss(logits, y, c, r, Repulsion(2.5, margin))
    assert_within_rounding(
        [total, terms["ce"], terms["fr"]],
        [torch.as_tensor(v, dtype=torch.float64) for v in (ce + 2.5 * fr, ce, fr)],
        terms=30,
    )


def test_margins_at_the_ends(tools):
    c = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    r = torch.cat(
        (c.detach()[:3], torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(1)))
    )  # cosine 1 (or more, rounded) and others
    (whole,) = torch.autograd.grad(repulsion_loss(c, r), c)
    (lowest,) = torch.autograd.grad(repulsion_loss(c, r, -1.0), c)
    (none,) = torch.autograd.grad(repulsion_loss(c, r, 1.0), c)
    assert torch.equal(whole, lowest) and whole[3:].abs().min() > 0 and none.abs().max() == 0
    assert repulsion_loss(c, r, 1.0) == 1 and repulsion_loss(c, -c.detach()).item() == pytest.approx(-1, abs=1e-5)
    (middle,) = torch.autograd.grad(repulsion_loss(c, r, 0.2), c)
    below = torch.nn.functional.cosine_similarity(c, r, dim=-1).mean(1) < 0.2
    assert below.any() and middle[below].abs().max() == 0 and torch.equal(middle[~below], whole[~below])


@pytest.mark.parametrize("bad", [{"alpha": -1}, {"alpha": math.inf}, {"margin": 1.5}, {"margin": math.nan}])
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(UserError):
        Repulsion(**bad)


# ---- the paper's numbers ----------------------------------------------------------------------------------------------------


def test_the_papers_parameter_counts_on_the_real_architecture():
    config = {k: v for k, v in open_clip.get_model_config("ViT-B-32").items() if k not in ("custom_text", "quick_gelu")}
    with torch.device("meta"):
        clip = open_clip.CLIP(**config)
    prompts = DeepPrompts(clip.visual)  # D = 3, b = 50
    share = trained_share(clip, prompts)
    assert prompts.prompts.shape == (9, 50, 768) and share.trained == 345_600
    assert share.whole == 151_277_313 and share.without_table == 125_980_417
    assert f"{share.of_rest:.2%}" == "0.27%" and f"{share.of_whole:.3%}" == "0.228%"
    assert sum(p.numel() for p in prompts.parameters() if p.requires_grad) == 345_600
    short = trained_share(clip, DeepPrompts(clip.visual, length=5))
    assert short.trained == 34_560 and round(short.of_rest * 1e4, 1) == 2.7


# ---- the victim ------------------------------------------------------------------------------------------------------------


def test_prompted_victim_is_a_zero_shot_classifier(victim, data):
    victim.pixels.scale.mul_(1.5)  # its own pixels, whatever they are
    p = DeepPrompts(victim.visual, 1, 4, std=0.5)
    defended, x = prompted(victim, p), data.__getitems__([0, 1, 2])[0]
    assert isinstance(defended, ZeroShot) and defended.num_classes == victim.num_classes
    e = p(victim.pixels(x))
    assert_within_rounding(defended.embed(x), e, terms=DEEP)
    literal = torch.stack([torch.stack([10 * F.cosine_similarity(a, t, dim=0) for t in victim.text]) for a in e])
    assert_within_rounding(defended(x), literal, terms=DEEP, scale=10.0)
    assert [n for n, _ in defended.named_parameters()] == ["visual.prompts"] and list(p.state_dict()) == ["prompts"]


def test_moving_and_copying_takes_the_tower_along(victim):
    p = DeepPrompts(victim.visual, 1, 4)
    other = copy.deepcopy(p)
    other.to(torch.float64)
    assert (
        other.tower is not p.tower
        and other.tower.proj.dtype == other.prompts.dtype == torch.float64
        and p.tower.proj.dtype == torch.float32
    )
    p.train()
    assert p.training and not p.tower.training


# ---- files -----------------------------------------------------------------------------------------------------------------


def defended(victim, **options):
    return prompted(victim, DeepPrompts(victim.visual, 1, **{"length": 4, **options}))


def test_prompts_are_kept_alone_and_come_back_on_their_own_tower(victim, data, tmp_path, tools):
    mine = defended(victim, last=2, seed=4)
    save_tensors({"prompts": mine.visual.prompts}, tmp_path / "p.safetensors", facts_of(mine.visual))
    assert (tmp_path / "p.safetensors").stat().st_size < 4 * 4 * 64 + 500
    back = prompted(victim, load_prompts(tmp_path / "p.safetensors", victim.visual))
    x = data.__getitems__([0, 1, 2])[0]
    assert torch.equal(back(x), mine(x)) and not back.visual.prompts.requires_grad
    assert (back.visual.first, back.visual.last, back.visual.length) == (1, 2, 4)
    other = copy.deepcopy(victim.visual)
    other.proj.data[3, 4] = torch.nextafter(other.proj.data[3, 4], torch.tensor(9.0))
    for tower in (other, tools.tower_of(), copy.deepcopy(victim.visual).half()):
        with pytest.raises(UserError, match="another vision tower"):
            load_prompts(tmp_path / "p.safetensors", tower)


def test_files_that_are_no_prompts_are_refused(victim, tmp_path):
    save_tensors({"prompts": torch.zeros(2, 3, 64)}, tmp_path / "bare.safetensors")
    save_tensors({"x": torch.zeros(2)}, tmp_path / "other.safetensors", {"first": "1", "last": "3", "tower": "t"})
    save_tensors(
        {"prompts": torch.zeros(3, 3, 64)}, tmp_path / "count.safetensors", {"first": "1", "last": "3", "tower": "t"}
    )
    (tmp_path / "broken.safetensors").write_bytes(b"12")
    for name in ("bare", "other", "count", "broken", "missing"):
        with pytest.raises(UserError, match=name):
            load_prompts(tmp_path / f"{name}.safetensors", victim.visual)


def test_the_hash_of_a_tower_is_of_its_tensors_not_of_its_classes(tools):
    assert (
        tower_digest(tools.tower_of())
        == tower_digest(tools.tower_of(lean=True))
        != tower_digest(tools.tower_of(seed=1))
    )


# ---- the real size ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_vit_b_32_with_prompts():
    torch.manual_seed(0)
    clip = create_clip("ViT-B-32-quickgelu").requires_grad_(False)
    assert type(clip.visual.conv1) is PatchEmbedding
    p, x = DeepPrompts(clip.visual, std=0.5), torch.randn(2, 3, 224, 224)
    f = clip.visual._embeds(x)
    for d, block in enumerate(clip.visual.transformer.resblocks):
        f = torch.cat([f[:, :1], p.prompts[d - 3].repeat(2, 1, 1), f[:, 1:]], 1) if d >= 3 else f
        f = block(f)
        f = torch.cat([f[:, :1], f[:, 51:]], 1) if d >= 3 else f
        assert f.shape == (2, 50, 768)
    assert_within_rounding(p(x), clip.visual.ln_post(f[:, 0]) @ clip.visual.proj, terms=DEEP)
