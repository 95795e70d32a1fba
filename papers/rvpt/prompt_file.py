"""A file of prompts: kilobytes, and it knows the tower that they belong to."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from papers.rvpt.method import DeepPrompts, depth_of
from shared.errors import UserError
from shared.models.clip import read_metadata, read_weights


def tower_digest(tower: nn.Module) -> str:
    """sha256 of a tower's tensors: names, types, shapes, values."""
    h = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def facts_of(prompts: DeepPrompts) -> dict[str, str]:
    """What stands beside the prompts in the file's metadata: D, E and the sha256 of their tower."""
    return {"tower": tower_digest(prompts.tower), "first": str(prompts.first), "last": str(prompts.last)}


def load_prompts(path: str | Path, tower: nn.Module) -> DeepPrompts:
    """The prompts of a file, on the tower that they were tuned on, frozen.

    Raises UserError for another tower, a missing file, a wrong file.
    """
    tensors, facts = read_weights(path), read_metadata(path)
    p = tensors.get("prompts")
    try:
        first, last, owner = int(facts["first"]), int(facts["last"]), facts["tower"]
    except (KeyError, ValueError):
        p = None
    if p is None or p.dim() != 3 or len(p) != last - first:
        raise UserError(f"the file {path} holds no deep visual prompts with their `facts_of`: give one that has them.")
    depth_of(tower)
    if tower_digest(tower) != owner:
        advice = "open the one that they belong to (model, poison, seed, precision), or tune them again"
        raise UserError(f"the prompts {path} were tuned on another vision tower: {advice}.")
    prompts = DeepPrompts(tower, first, p.shape[1], last)
    with torch.no_grad():
        prompts.prompts.copy_(p)
    return prompts.requires_grad_(False)
