"""Models of transformers, from a folder or by hub name, as classifiers of pictures in [0, 1]."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from shared.data.base import LabelledImages
from shared.errors import UserError
from shared.models.hub import from_pretrained
from shared.models.victim import Pixels, ZeroShot


class Tower(nn.Module):
    """The vision tower of a CLIP of transformers, as `Pixels.of` and `ZeroShot` know those of open_clip."""

    def __init__(self, model: nn.Module, size: tuple[int, int], how: dict[str, object]):
        super().__init__()
        self.model, self.image_size, self.preprocess_cfg = model, size, how

    def forward(self, x: Tensor) -> Tensor:
        return _tensor(self.model.get_image_features(pixel_values=x))


class Logits(nn.Module):
    """A classifier of transformers."""

    def __init__(self, model: nn.Module, pixels: Pixels):
        super().__init__()
        self.model, self.pixels = model, pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=self.pixels(x)).logits


def open_hf(source: str, data: LabelledImages) -> nn.Module:
    """x (N, 3, H, W) in [0, 1] -> logits (N, K), K the classes of `data` where the model reads text.

    Raises UserError where it cannot be had, does not fit its configuration, or is neither a CLIP nor a classifier.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source)
        seen = transformers.AutoImageProcessor.from_pretrained(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source) if hasattr(config, "text_config") else None
    except (OSError, ValueError, ImportError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"--model hf:{source} cannot be had ({said}): give the whole folder, or a hub name and a network."
        ) from error
    kind = transformers.AutoModel if tokenizer else transformers.AutoModelForImageClassification
    size, how = _preprocessing(seen, source)
    model = from_pretrained(kind, source, "transformers")
    if tokenizer is None:
        return Logits(model, Pixels.of(Tower(model, size, how)))
    if not hasattr(model, "get_text_features") or not hasattr(model, "logit_scale"):
        raise UserError(
            f"--model hf:{source} is a {type(model).__name__}, neither a CLIP nor a classifier: give one of these."
        )
    with torch.no_grad():
        length = config.text_config.max_position_embeddings
        words = tokenizer(
            list(data.prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        text = F.normalize(_tensor(model.get_text_features(**words)), dim=-1)
    return ZeroShot(Tower(model, size, how), text, model.logit_scale.exp().item())


def _preprocessing(seen: object, source: str) -> tuple[tuple[int, int], dict[str, object]]:
    """(height, width) of what the model takes, and the rest as `Pixels.of` reads it. Raises UserError for what
    `Pixels` does not do."""
    told = {name: getattr(seen, name, None) for name in ("size", "crop_size", "resample", "do_normalize")}
    whole, cut = told["size"] or {}, told["crop_size"] or told["size"] or {}
    side, scale = cut.get("shortest_edge"), getattr(seen, "do_rescale", True) * getattr(seen, "rescale_factor", 1 / 255)
    size = (side, side) if side else (cut.get("height"), cut.get("width"))
    filters = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
    if None in size or told["resample"] not in filters or abs(255 * scale - 1) > 1e-6:
        raise UserError(
            f"--model hf:{source}: its preprocessing is no bilinear or bicubic way to one size with pixels of [0, 1]: "
            "give it as module:name, a model of pictures in [0, 1]."
        )
    normed = told["do_normalize"]
    return size, {
        "mean": seen.image_mean if normed else [0.0] * 3,
        "std": seen.image_std if normed else [1.0] * 3,
        "interpolation": filters[told["resample"]],
        "resize_mode": "shortest" if whole.get("shortest_edge") else "squash",
    }


def _tensor(out: object) -> Tensor:
    """The embeddings, whichever way this version of transformers hands them back."""
    return out if isinstance(out, Tensor) else out.pooler_output
