"""What an attack sees: pixels in, logits out. Mean/std, resizing and temperature are inside, so that every ε is in
pixels."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.data.base import LabelledImages
from shared.data.skipped import say
from shared.errors import UserError
from shared.models.clip import MEAN_STD
from shared.options import bounded
from shared.repeat import joined, parts_of

Norm = str | tuple[Sequence[float], Sequence[float]]  # a key of MEAN_STD, or mean and std per channel


class Pixels(nn.Module):
    """x in [0, 1] at any size -> what a vision tower expects: pictures of its input size, then (x − mean)/std.

    Larger pictures go the way of open_clip's own preprocessing: resized with antialias, the short side to the tower's
    (`shortest`), the middle cut out, or both sides at once (`squash`), values kept in [0, 1]. Pillow, which does this
    there, also rounds to 8 bits and clamps between its passes. Pictures no larger than the tower are enlarged to its
    size as in TeCoA's code: bicubic, a = −0.75, values may leave [0, 1].

    size: (H, W) of the tower, "shortest" being for square ones; norm: a key of MEAN_STD, or (mean, std) per channel;
    interpolation: "bicubic" or "bilinear"; resize_mode: "shortest" or "squash". Differentiable. Raises UserError for an
    unknown key.
    """

    @bounded
    def __init__(
        self,
        size: tuple[int, int],
        norm: Norm = "clip",
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        resize_mode: Literal["shortest", "squash"] = "shortest",
    ):
        super().__init__()
        if isinstance(norm, str) and norm not in MEAN_STD:
            raise UserError(f"there is no normalisation named {norm!r}: choose one of {', '.join(MEAN_STD)}.")
        self.size, self.interpolation = tuple(size), interpolation
        self.crop = resize_mode == "shortest" and self.size[0] == self.size[1]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN_STD[norm] if isinstance(norm, str) else norm))
        # (x − mean)/std as x·scale + shift
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    @classmethod
    def of(cls, visual: nn.Module, norm: Norm = "clip") -> "Pixels":
        """What the tower of an open_clip model expects. norm: "clip" for its own mean and std, or another key of
        MEAN_STD to have those instead."""
        own = getattr(visual, "preprocess_cfg", {})
        if norm == "clip" and own:
            norm = (own["mean"], own["std"])
        return cls(image_size(visual), norm, own.get("interpolation", "bicubic"), own.get("resize_mode", "shortest"))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height > self.size[0] or width > self.size[1]:
            x = self._shrunk(x)
        elif (height, width) != self.size:
            x = F.interpolate(x, size=self.size, mode=self.interpolation, align_corners=False)
        return torch.mul(x, self.scale).add_(self.shift)  # in two passes: twice as fast on a CPU as a broadcast addcmul

    def _shrunk(self, x: Tensor) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode, functional

        size = [self.size[0]] if self.crop else list(self.size)
        x = functional.resize(x, size, InterpolationMode(self.interpolation), antialias=True).clamp(0, 1)
        return functional.center_crop(x, list(self.size))


def image_size(visual: nn.Module) -> tuple[int, int]:
    """(H, W) that an open_clip vision tower expects."""
    size = visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


@torch.no_grad()
def text_matrix(model: nn.Module, prompts: Sequence[str]) -> Tensor:
    """Unit text embeddings T (K, D) of K prompts, computed once; row k is t_k = text(prompt_k)/‖·‖₂."""
    device = next(model.parameters()).device
    parts = parts_of(list(prompts), 256)
    return joined(lambda some: model.encode_text(model.tokenizer(some).to(device), normalize=True), parts).float()


def class_matrix(model: nn.Module, data: LabelledImages) -> Tensor:
    """T (K, D) of the prompts of a set's K classes; see `tell_apart`."""
    tell_apart(model, data)
    return text_matrix(model, data.prompts)


def tell_apart(model: nn.Module, data: LabelledImages, prompts: Sequence[str] | None = None) -> None:
    """Look for classes of a set whose prompts (default: the set's own) are the same tokens.

    They have one embedding, bit for bit, and nothing can tell them apart. Raises UserError with their names where they
    are the user's folders; those of a published set are said on stderr.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, row in zip(data.classes, model.tokenizer(list(prompts or data.prompts)).tolist(), strict=True):
        alike.setdefault(tuple(row), []).append(name)
    same = [" = ".join(names) for names in alike.values() if len(names) > 1]
    if same and data.renameable:
        raise UserError(
            f"{data.name}: to this model the class names {same[0]} are the same words, so it cannot tell "
            "them apart: rename the folders."
        )
    if same:
        say(data.name, f"{len(same)} prompts have several classes, which the model cannot tell apart", same)


def predicted(logits: Tensor) -> Tensor:
    """The classes with the largest logits: (N, K) -> (N,) int64.

    Raises UserError where a logit is not finite: NaN is no class, and no attack raises a loss that is NaN, so that a
    broken model would pass for a robust one.
    """
    broken = ~torch.isfinite(logits).all(dim=1)
    if broken.any():
        raise UserError(
            f"the model's outputs are not finite for {int(broken.sum())} of {len(logits)} pictures: its weights, or "
            "what stands before it, are broken."
        )
    return logits.argmax(dim=1)


@torch.no_grad()
def labels_of(victim: nn.Module, x: Tensor, batch: int) -> Tensor:
    """The classes that a victim names in pictures (N, 3, H, W), `batch` at a time: (N,) int64; see `predicted`."""
    return joined(lambda part: predicted(victim(part)), x.split(batch))


_compiled = False


def set_compiled(compiled: bool) -> None:
    """For this process: whether towers that become victims from now on run through torch.compile. Results differ by
    rounding; a second derivative then raises torch's error."""
    global _compiled
    _compiled = compiled


class ZeroShot(nn.Module):
    """The zero-shot classifier of a CLIP: logits z_k = s·cos(F(x), t_k), with F the vision tower and s the logit scale.

    visual: open_clip vision tower; text: unit text embeddings (K, D); scale: s (100 for OpenAI's CLIP, 1 where a
    temperature was cancelled); norm: as in `Pixels.of`. Input (N, 3, H, W) in [0, 1] of any size, output (N, K).
    """

    def __init__(self, visual: nn.Module, text: Tensor, scale: float, norm: str = "clip"):
        super().__init__()
        self.visual, self.pixels, self.scale = visual, Pixels.of(visual, norm), float(scale)
        self.register_buffer("text", text, persistent=False)
        if _compiled:
            visual.compile()  # in place: names and weights stay

    @property
    def num_classes(self) -> int:
        return len(self.text)

    def embed(self, x: Tensor) -> Tensor:
        """F(x): image embeddings (N, D), not normalised."""
        return self.visual(self.pixels(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (N, K) of embeddings (N, D)."""
        return self.scale * F.normalize(embedding, dim=-1) @ self.text.T

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))
