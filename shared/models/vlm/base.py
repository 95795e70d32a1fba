"""What an attack on a vision-language model sees: pixels in [0, 1] and text in, the likelihood of a text or an answer
out.

    nll(x, q, t) = − Σ_j log p(t_j | x, q, t_1 … t_{j−1}),   j over the tokens of the target t and the end token

Prompts are what the user says (a question, or an instruction to describe); what the model was trained to read around it
is added inside, as are resizing and mean/std. No image of a batch has an effect on another.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.models.victim import Norm, Pixels, predicted
from shared.models.vlm.text import Text
from shared.models.vlm.vision import load_vision, quick_patches
from shared.repeat import batches, parts_of, repeated


class VLM(nn.Module):
    """size: images of any size are resized to this many pixels, inside."""

    size: int

    @abstractmethod
    def answer(self, x: Tensor, prompts: Sequence[str], max_tokens: int = 20, batch: int = 64) -> list[str]:
        """What the model says to each image (N, 3, H, W) and prompt, at most `max_tokens` tokens, greedily; `batch`
        images at a time."""

    @abstractmethod
    def nll(self, x: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> Tensor:
        """(N,) summed −log p of the target and of its end, differentiable with respect to x (N, 3, H, W)."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """(N, D) embeddings of images, of the vision tower alone."""

    @abstractmethod
    def set_vision(self, tower: dict[str, Tensor] | nn.Module) -> None:
        """Put another vision tower of the same shape in: an open_clip tower or CLIP, or a state dict of one. Raises
        UserError if it does not fit."""

    def forward(self, x: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> Tensor:
        """`nll`, so that wrappers for several processes can train the model."""
        return self.nll(x, prompts, targets)


def check_lengths(x: Tensor, *texts: Sequence[str]) -> None:
    """Raises UserError unless there is one text per image in each list, and the images are (N, 3, H, W)."""
    if x.dim() != 4 or x.shape[1] != 3:
        raise UserError(
            f"images have the shape {tuple(x.shape)}: give a batch (N, 3, height, width) with values in [0, 1]."
        )
    if any(isinstance(t, str) or len(t) != len(x) for t in texts):
        raise UserError(f"{len(x)} images need {len(x)} prompts (and targets), one each, in a list.")


class LanguageVLM(VLM):
    """A vision tower whose tokens a causal language model reads.

    Sequences are the prompt (which holds the image, the same number of tokens for all), the target and padding on the
    right. Under the causal mask nothing sees the padding, so no mask is needed and no row depends on the others.
    Answers are computed by groups of prompts equally long.
    """

    def __init__(self, model: nn.Module, text: Text, norm: Norm, resize_mode: str = "shortest"):
        super().__init__()
        self.model, self.config, self.text = model, model.config, text
        self.size = self.config.vision_config.image_size
        self.pixels = Pixels((self.size, self.size), norm, resize_mode=resize_mode)
        quick_patches(self.tower.embeddings)

    @abstractmethod
    def see(self, x: Tensor) -> Tensor:
        """Images -> what the language model is given of them, (N, L, D)."""

    @abstractmethod
    def read(self, ids: Tensor, seen: Tensor, cache=None, keep: bool = False) -> tuple[Tensor, object]:
        """Token numbers (N, T), after those in `cache`, -> last hidden states (N, T, D) and, with `keep`, the cache for
        what follows."""

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states -> logits over the vocabulary."""
        return self.model.lm_head(hidden)

    def set_vision(self, tower):
        load_vision(self.tower, self.config.vision_config.hidden_act, tower)

    def nll(self, x, prompts, targets):
        check_lengths(x, prompts, targets)
        if not len(x):
            return x.sum((1, 2, 3))
        before, after = [self.text.prompt(p) for p in prompts], [self.text.target(t) for t in targets]
        first, length = min(map(len, before)), max(len(b) + len(a) for b, a in zip(before, after, strict=True))
        ids = torch.full((len(x), length), self.text.pad)
        labels = torch.full((len(x), length), -100)
        for i, (b, a) in enumerate(zip(before, after, strict=True)):
            ids[i, : len(b) + len(a)] = torch.tensor(b + a)
            labels[i, len(b) : len(b) + len(a)] = torch.tensor(a)
        ids, labels = ids.to(x.device), labels[:, first:].to(x.device)
        hidden, _ = self.read(ids[:, :-1], self.see(x))
        logits = self.head(hidden[:, first - 1 :]).float()  # token j is told by the state before it
        return (
            F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
            .view(labels.shape)
            .sum(1)
        )

    @torch.no_grad()
    def answer(self, x, prompts, max_tokens=20, batch=64):
        check_lengths(x, prompts)
        before, answers = [self.text.prompt(p) for p in prompts], [""] * len(x)
        for length in sorted(set(map(len, before))):
            rows = [i for i, b in enumerate(before) if len(b) == length]
            for some in batches(parts_of(rows, batch)):
                ids = torch.tensor([before[i] for i in some], device=x.device)
                for i, said in zip(some, self._say(x[some], ids, max_tokens), strict=True):
                    answers[i] = self.text.say(said)
        return answers

    def _say(self, x: Tensor, ids: Tensor, max_tokens: int) -> list[list[int]]:
        seen, cache, said = self.see(x), None, []
        ended = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in repeated(range(max_tokens), alike=bool):  # the first reads the picture, too
            hidden, cache = self.read(ids, seen, cache, keep=True)
            token = predicted(self.head(hidden[:, -1]).float())
            said.append(torch.where(ended, self.text.end, token))
            ended |= token == self.text.end
            if int(ended.sum()) == len(ended):
                break
            ids = token[:, None]
        rows = torch.stack(said, 1).tolist() if said else [[]] * len(x)
        return [row[: row.index(self.text.end)] if self.text.end in row else row for row in rows]
