"""Perturbation resistivity against cosines written out, the perturbations, and the attention map."""

import colorsys
import math
from functools import partial

import pytest
import torch

from papers.rvpt.method import DeepPrompts, prompted
from papers.rvpt.resistivity import Perturbations, attention_map, features, flip, resistivity, torchvision_features
from shared.errors import UserError
from shared.models.victim import ZeroShot
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP, for each of four blocks


def small_victim(tools, prompts=None, **changes):
    tower = tools.tower_of(**changes)
    victim = ZeroShot(tower, torch.eye(7), 1.0)
    return victim if prompts is None else prompted(victim, DeepPrompts(tower, prompts, 3, std=1.0))


@pytest.mark.parametrize("prompts", [None, 1])
def test_resistivity_is_the_cosine_of_class_tokens_layer_by_layer(prompts, tools):
    victim = small_victim(tools, prompts, lean=True)
    tower, p = (victim.visual, {}) if prompts is None else (victim.visual.tower, victim.visual.by_layer)
    x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    other = flip(x)
    got = resistivity(partial(features, victim), x, other)
    assert got.layers.shape == (3, 4) and got.output.shape == (3,)
    with torch.no_grad():
        (e, c), (f, d) = (tools.literal(tower, victim.pixels(z), p) for z in (x, other))
    for i in range(3):
        assert_within_rounding(got.output[i], tools.cosine(e[i], f[i]), terms=DEEP, scale=1.0)
        for layer in range(4):
            assert_within_rounding(got.layers[i, layer], tools.cosine(c[i, layer], d[i, layer]), terms=DEEP, scale=1.0)
    same = resistivity(partial(features, victim), x, x)
    assert_within_rounding(same.layers, torch.ones(3, 4), terms=DEEP)
    assert same.layers.max() <= 1 and got.layers.max() < 0.9999


def test_every_perturbation_stays_a_picture_and_belongs_to_the_index():
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, perturb in Perturbations(noise=0.1).all().items():
        y = perturb(x, SampleRng(0, range(6)))
        assert y.shape == x.shape and y.min() >= 0 and y.max() <= 1 and (y - x).abs().max() > 0.05, name
        assert_within_rounding(perturb(x[4:], SampleRng(0, [4, 5])), y[4:], terms=DEEP)
        if name in ("noise", "colour"):
            assert (perturb(x, SampleRng(1, range(6))) - y).abs().max() > 0.05
        assert perturb(x[:0], SampleRng(0, [])).shape == (0, 3, 16, 16)


def test_the_values_are_those_of_the_appendix():
    x = torch.full((200, 3, 8, 8), 0.5)
    p, rng = Perturbations(), SampleRng(0, range(200))
    noise = p.add_noise(x, rng) - x
    assert abs(noise.std() - 0.001) < 3e-5 and noise.mean().abs() < 3e-5
    factors = p.jitter(x, rng)[:, 0, 0, 0] / 0.5  # a grey has no hue
    assert 0.5 <= factors.min() < 0.53 and 1.47 < factors.max() <= 1.5 and abs(factors.mean() - 1) < 0.06
    dot = torch.zeros(1, 3, 7, 7)
    dot[:, :, 3, 3] = 1
    weights = [math.exp(-1 / 10), 1.0, math.exp(-1 / 10)]
    kernel = torch.tensor([[a * b for a in weights] for b in weights])
    assert_within_rounding(p.blur(dot)[0, 1, 2:5, 2:5], kernel / kernel.sum(), terms=DEEP)
    assert p.blur(dot).count_nonzero() == 27 and torch.equal(flip(dot.roll(1, -1))[0, 0, 3], dot.roll(-1, -1)[0, 0, 3])


def test_the_hue_is_turned_by_up_to_three_tenths_of_the_circle():
    x = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1).expand(300, 3, 4, 4)
    y = Perturbations(brightness=0).jitter(x, SampleRng(0, range(300)))[:, :, 0, 0]
    turns = [colorsys.rgb_to_hsv(*p.tolist())[0] for p in y]
    turns = torch.tensor([t - 1 if t > 0.5 else t for t in turns])
    assert -0.301 < turns.min() < -0.28 and 0.28 < turns.max() < 0.301 and turns.mean().abs() < 0.04
    assert_within_rounding(y.amax(1), torch.full((300,), 0.6), terms=DEEP)


@pytest.mark.parametrize("kernel", [2, 17])
def test_windows_that_do_not_fit_are_refused(kernel):
    with pytest.raises(UserError, match="window"):
        Perturbations(kernel=kernel).blur(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("prompts", [None, 1, 3])
def test_attention_map_is_the_softmax_of_the_last_block(prompts, tools):
    victim = small_victim(tools, prompts)
    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    seen = []
    tower = victim.visual if prompts is None else victim.visual.tower
    block = tower.transformer.resblocks[-1]
    block.ln_1.register_forward_hook(lambda m, a, out: seen.append(out))
    victim(x)
    full = block.attn(seen[0], seen[0], seen[0], need_weights=True, average_attn_weights=True)[1]  # torch's own
    expected = full[:, 0, 1 if prompts is None else 4 :]
    got = attention_map(victim, x)
    assert_within_rounding(got, expected.reshape(2, 3, 3), terms=DEEP)
    assert got.sum((1, 2)).max() < 1 and got.min() > 0


def test_a_block_of_another_attention_has_no_map(tools):
    with pytest.raises(UserError, match="attention"):
        attention_map(small_victim(tools, qk_norm=True), torch.rand(1, 3, 12, 12))


def test_features_of_a_torchvision_transformer():
    from torchvision.models import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = VisionTransformer(
            image_size=8, patch_size=4, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5
        ).eval()
    torch.nn.init.normal_(net.heads.head.weight)
    x = torch.rand(2, 3, 8, 8)
    got = torchvision_features(net, x)
    assert got.layers.shape == (2, 3, 8)
    assert_within_rounding(net.heads(got.output), net(x), terms=DEEP)
    assert_within_rounding(net.encoder.ln(got.layers[:, -1]), got.output, terms=DEEP)
    assert not any(b._forward_hooks for b in net.encoder.layers) and not net.heads._forward_pre_hooks
    with pytest.raises(UserError, match="Linear"):
        torchvision_features(torch.nn.Linear(1, 1), x)
