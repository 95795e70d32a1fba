"""What is kept of a defence, and how much it is: prompts alone, in a file of kilobytes that knows the tower they belong to."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from papers.rvpt.method import DeepPrompts, depth_of
from shared.errors import UserError
from shared.models.clip import read_metadata, read_weights, save_tensors


def tower_digest(tower: nn.Module) -> str:
    """sha256 of a tower's tensors: names, types, shapes, values."""
    h = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def save_prompts(prompts: DeepPrompts, path: str | Path, **metadata: str) -> None:
    """Write the prompts alone (.safetensors, 4·(E − D)·b·d_v bytes) with D, E and the sha256 of their tower. metadata: more of it, e.g. a key."""
    own = {"tower": tower_digest(prompts.tower), "first": str(prompts.first), "last": str(prompts.last)}
    save_tensors({"prompts": prompts.prompts}, path, {**metadata, **own})


def load_prompts(path: str | Path, tower: nn.Module) -> DeepPrompts:
    """The prompts of a file, on the tower that they were tuned on, frozen. Raises UserError for another tower, a missing file, a wrong file."""
    tensors, facts = read_weights(path), read_metadata(path)
    p = tensors.get("prompts")
    try:
        first, last, owner = int(facts["first"]), int(facts["last"]), facts["tower"]
    except (KeyError, ValueError):
        p = None
    if p is None or p.dim() != 3 or len(p) != last - first:
        raise UserError(f"the file {path} holds no deep visual prompts: give one that `save_prompts` wrote.")
    depth_of(tower)
    if tower_digest(tower) != owner:
        raise UserError(f"the prompts {path} were tuned on another vision tower: open the one that they belong to (model, poison, seed, precision), "
                        "or tune them again.")
    prompts = DeepPrompts(tower, first, p.shape[1], last)
    with torch.no_grad():
        prompts.prompts.copy_(p)
    return prompts.requires_grad_(False)


class Share(NamedTuple):
    """How many parameters are trained, of how many."""

    trained: int
    whole: int
    """Of the CLIP, both towers."""
    without_table: int
    """The same without the token embedding table, the denominator behind the paper's 0.27 %."""

    @property
    def of_whole(self) -> float:
        return self.trained / self.whole

    @property
    def of_rest(self) -> float:
        return self.trained / self.without_table


def trained_share(clip: nn.Module, prompts: DeepPrompts) -> Share:
    """The share of prompts under both denominators. clip: an open_clip CLIP, which may be on the meta device."""
    whole = sum(p.numel() for p in clip.parameters())
    table = sum(m.weight.numel() for m in clip.modules() if isinstance(m, nn.Embedding))
    return Share(prompts.prompts.numel(), whole, whole - table)
