"""Where weights come from: one way to write it, for every paper, and what tells one source from another in the key of a
measurement."""

from pathlib import Path

import torch
from torch import nn

from shared.files import sha256_file, sha256_folder
from shared.models import zoo
from shared.models.clip import create_clip, is_path, weights_file


def locate(weights: str, option: str) -> tuple[str | Path | None, str]:
    """(what `create_clip` loads, its identity): a path with its sha256, a tag of open_clip as it is, or (None,
    "random").

    weights: zoo:<name>, a tag of open_clip, the path of a checkpoint, or `random`. option: the command-line option to
    name in an error.
    """
    if weights == "random":
        return None, "random"
    if weights.startswith("zoo:"):
        path = zoo.weights(weights.removeprefix("zoo:"))
    elif is_path(weights):
        path = weights_file(weights, option)
    else:
        return weights, weights
    return path, sha256_file(path)


def open_clip_model(name: str, pretrained: str | Path | None, device: torch.device | str = "cpu") -> nn.Module:
    """A CLIP that is not trained; with pretrained None its weights are random, the same in every process."""
    if pretrained is None:
        torch.manual_seed(0)  # random weights are for rehearsals; the global generator draws them, in this process only
    return create_clip(name, pretrained).to(device).requires_grad_(False)


def identity(source: str) -> str:
    """What tells a model by name from another, for keys: the contents of a zoo model, of a file or of every file of a
    folder (after a prefix such as `guided:`), or the name itself."""
    kind, _, rest = source.partition(":")
    if kind == "zoo":
        return sha256_file(zoo.weights(rest))
    path = Path(rest or source)
    if path.is_file():
        return sha256_file(path)
    if path.is_dir():
        return sha256_folder(path)
    return source
