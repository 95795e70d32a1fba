"""An open_clip vision tower under transformers' names: the same numbers for CLIPVisionModel (LLaVA) and for Idefics'
vision transformer.

open_clip keeps query, key and value in one matrix, in this order; otherwise the two differ in names alone. The
projection to the joint space of image and text has no place there and is left out.
"""

import re

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.models.clip import PatchEmbedding, demand_fit

_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def tower_state(tower: dict[str, Tensor] | nn.Module) -> dict[str, Tensor]:
    """The state of the vision tower in a model or state dict, under the names it has there."""
    state = tower.state_dict() if isinstance(tower, nn.Module) else dict(tower)
    for prefix in ("module.", "visual.", "vision_model."):  # of a larger model: the rest of it is not wanted
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} or state
    return state


def vision_state(tower: dict[str, Tensor] | nn.Module) -> dict[str, Tensor]:
    """The state of a vision tower under transformers' names.

    tower: an open_clip CLIP, its `visual`, a state dict of either (or of transformers' CLIPVisionModel, alone or in a
    CLIPModel). Raises UserError for anything else.
    """
    state = tower_state(tower)
    if "conv1.weight" in state:
        state = {new: v for old, value in state.items() for new, v in _renamed(old, value)}
    if "embeddings.patch_embedding.weight" not in state:
        raise UserError(
            "this is not the vision tower of a CLIP (a ViT of open_clip or transformers): give such a tower, or its "
            "state dict."
        )
    return {k: v for k, v in state.items() if not k.endswith("position_ids")}


def _renamed(name: str, value: Tensor):
    if name == "proj":
        return
    block = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    prefix, rest = (f"encoder.layers.{block[1]}.", block[2]) if block else ("", name)
    if rest.startswith("attn.in_proj_"):
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{prefix}self_attn.{letter}_proj.{rest.removeprefix('attn.in_proj_')}", part.clone()
        return
    stem, dot, leaf = rest.rpartition(".")
    yield prefix + (_NAMES.get(rest) or _NAMES.get(stem, stem) + dot + leaf), value


def activation(tower: nn.Module) -> str | None:
    """What transformers calls the activation of an open_clip tower's blocks ("gelu", "quick_gelu"), or None if it
    cannot be told."""
    names = {type(m).__name__ for m in tower.modules()}
    return "quick_gelu" if "QuickGELU" in names else "gelu" if "GELU" in names else None


def load_vision(target: nn.Module, hidden_act: str, tower: dict[str, Tensor] | nn.Module) -> None:
    """Copy the numbers of `tower` into `target`, a vision model of transformers. Raises UserError if they do not
    fit."""
    if isinstance(tower, nn.Module):
        tower = getattr(tower, "visual", tower)
        if activation(tower) not in (None, hidden_act):
            raise UserError(
                f"the vision tower was trained with the activation {activation(tower)} and this model's has "
                f"{hidden_act}: give the tower of the CLIP that the model was built on, or one fine-tuned from it."
            )
    state, own = vision_state(tower), target.state_dict()
    demand_fit(own, state, "the vision tower", "give one of the same architecture and image size")
    with torch.no_grad():
        for k, v in own.items():
            v.copy_(state[k])


def quick_patches(embeddings: nn.Module) -> None:
    """Compute the patch embedding of a vision model as a matrix product, see `shared.models.clip.PatchEmbedding`."""
    if type(embeddings.patch_embedding) is nn.Conv2d:
        embeddings.patch_embedding.__class__ = PatchEmbedding
