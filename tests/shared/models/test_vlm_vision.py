"""open_clip's vision tower under transformers' names computes the same, layer by layer, in both of transformers' vision models."""

import copy

import open_clip
import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.models.clip import create_clip, small_config
from shared.models.vlm.open import _vision_sizes
from shared.models.vlm.vision import activation, load_vision, vision_state
from tests.accuracy import assert_as_accurate, float64


def clip_model(sizes):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**sizes))


def idefics_model(sizes):
    from transformers.models.idefics.configuration_idefics import IdeficsVisionConfig
    from transformers.models.idefics.vision import IdeficsVisionTransformer

    config = IdeficsVisionConfig(
        embed_dim=sizes["hidden_size"], **{k: v for k, v in sizes.items() if k != "hidden_size"}
    )
    config._attn_implementation = "sdpa"
    return IdeficsVisionTransformer(config)


def randomised(model: nn.Module) -> nn.Module:
    """With weights that leave nothing at 0 or 1, where a mistake in biases and norms would not show."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = p.data + 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "quick_gelu"])
def clip(request):
    config = small_config("scenes-vit-s8")
    with torch.random.fork_rng():
        return randomised(
            open_clip.CLIP(**{**config, "text_cfg": {**config["text_cfg"], "vocab_size": 9}}, quick_gelu=request.param)
        )


@pytest.fixture(params=[clip_model, idefics_model])
def target(request, clip):
    with torch.random.fork_rng():
        return request.param(_vision_sizes(clip.visual)).eval().requires_grad_(False)


def layers_of(model: nn.Module, blocks, run) -> list[torch.Tensor]:
    """What goes into the first block and what comes out of each."""
    seen = []
    hooks = [
        blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    ]
    hooks += [b.register_forward_hook(lambda _, args, out: seen.append(out)) for b in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def test_all_layers_and_gradients_are_equal(clip, target):
    visual, x = clip.visual, torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 4 - 2
    load_vision(target, activation(visual), visual)
    x.requires_grad_()

    def found(out, layers, x):
        return [*layers, out, torch.autograd.grad(out.square().sum(), x)[0]]

    ours = layers_of(target, target.encoder.layers, lambda: target(pixel_values=x))
    ours = found(target(pixel_values=x).pooler_output @ visual.proj, ours, x)
    theirs = []
    for tower, image in ((visual, x), float64((visual, x))):
        layers = layers_of(tower, tower.transformer.resblocks, lambda tower=tower, image=image: tower(image))
        theirs.append(found(tower(image), layers, image))
    assert len(theirs[0]) == 7 and theirs[0][0].std() > 0.1
    assert_as_accurate(ours, *theirs, terms=4 * 96)


def test_a_tower_may_come_as_a_module_or_a_state_dict_alone_or_in_a_clip(clip, target):
    load_vision(target, activation(clip.visual), clip.visual)
    expected = copy.deepcopy(target.state_dict())
    hub = {f"vision_model.{k}": v for k, v in expected.items()} | {"text_model.final_layer_norm.weight": torch.ones(2)}
    for source in (
        clip,
        clip.state_dict(),
        clip.visual.state_dict(),
        {f"module.{k}": v for k, v in clip.state_dict().items()},
        hub,
        expected,
    ):
        for p in target.parameters():
            p.zero_()
        load_vision(target, activation(clip.visual), source)
        for k, v in target.state_dict().items():
            assert torch.equal(v, expected[k]), k


def test_the_state_is_a_copy_where_it_was_cut_out(clip):
    state = vision_state(clip.visual)
    state["encoder.layers.0.self_attn.q_proj.weight"].zero_()
    assert clip.visual.transformer.resblocks[0].attn.in_proj_weight[:96].abs().sum() > 0


def test_a_tower_with_another_activation_or_of_another_shape_is_refused(clip, target):
    other = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[activation(clip.visual)]
    with pytest.raises(
        UserError, match=f"trained with the activation {activation(clip.visual)} and this model's has {other}"
    ):
        load_vision(target, other, clip.visual)
    before, smaller = copy.deepcopy(target.state_dict()), create_clip("scenes-vit-xs8").visual
    with pytest.raises(UserError, match="does not fit this model"):
        load_vision(target, "gelu", smaller.state_dict())
    positions = {**clip.visual.state_dict(), "positional_embedding": torch.zeros(50, 96)}
    with pytest.raises(
        UserError,
        match=r"1 tensors differ, the first is 'embeddings.position_embedding.weight', which is of another shape",
    ):
        load_vision(target, activation(clip.visual), positions)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize("wrong", [{}, {"weight": torch.zeros(2)}, nn.Linear(2, 2)], ids=["empty", "other", "module"])
def test_what_is_no_tower_is_refused(wrong):
    with pytest.raises(UserError, match="not the vision tower of a CLIP"):
        vision_state(wrong)
