"""What an attack sees: pixels in, logits out. Mean/std, resizing and temperature are inside, so that every ε is in pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.models.clip import MEAN_STD


class Pixels(nn.Module):
    """x in [0, 1] at any size -> what a vision tower expects: resized (bicubic) to its input size, then (x − mean)/std.

    size: (H, W) of the tower; norm: a key of MEAN_STD.
    """

    def __init__(self, size: tuple[int, int], norm: str = "clip"):
        super().__init__()
        if norm not in MEAN_STD:
            raise UserError(f"there is no normalisation named {norm!r}: choose one of {', '.join(MEAN_STD)}.")
        self.size = tuple(size)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD[norm])
        # (x − mean)/std as x·scale + shift
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="bicubic", align_corners=False, antialias=False)
        return torch.mul(x, self.scale).add_(self.shift)  # in two passes: twice as fast on a CPU as a broadcast addcmul


def image_size(visual: nn.Module) -> tuple[int, int]:
    """(H, W) that an open_clip vision tower expects."""
    size = visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


@torch.no_grad()
def text_matrix(model: nn.Module, prompts: Sequence[str]) -> Tensor:
    """Unit text embeddings T (K, D) of K prompts, computed once; row k is t_k = text(prompt_k)/‖·‖₂."""
    device = next(model.parameters()).device
    rows = [model.encode_text(model.tokenizer(list(prompts[i:i + 256])).to(device), normalize=True) for i in range(0, len(prompts), 256)]
    return torch.cat(rows).float()


def predicted(logits: Tensor) -> Tensor:
    """The classes with the largest logits: (N, K) -> (N,) int64.

    Raises UserError where a logit is not finite: NaN is no class, and no attack raises a loss that is NaN, so that a broken model would pass for a
    robust one.
    """
    broken = ~torch.isfinite(logits).all(dim=1)
    if broken.any():
        raise UserError(f"the model's outputs are not finite for {int(broken.sum())} of {len(logits)} pictures: its weights, or what stands before "
                        "it, are broken.")
    return logits.argmax(dim=1)


class ZeroShot(nn.Module):
    """The zero-shot classifier of a CLIP: logits z_k = s·cos(F(x), t_k), with F the vision tower and s the logit scale.

    visual: open_clip vision tower; text: unit text embeddings (K, D); scale: s (100 for OpenAI's CLIP, 1 where a temperature was cancelled);
    norm: key of MEAN_STD. Input (N, 3, H, W) in [0, 1] of any size, output (N, K).
    """

    def __init__(self, visual: nn.Module, text: Tensor, scale: float, norm: str = "clip"):
        super().__init__()
        self.visual, self.pixels, self.scale = visual, Pixels(image_size(visual), norm), float(scale)
        self.register_buffer("text", text, persistent=False)

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
