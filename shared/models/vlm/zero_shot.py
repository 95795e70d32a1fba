"""Zero-shot CLIP as a VLM that only ever says the name of a class."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.models.clip import load
from shared.models.victim import ZeroShot, predicted, text_matrix
from shared.models.vlm.base import VLM, check_lengths
from shared.models.vlm.vision import tower_state
from shared.repeat import joined


class ZeroShotVLM(VLM):
    """Answers with the class whose prompt is nearest; nll is the cross-entropy of the class that the target names. What
    is asked is not heard.

    clip: an open_clip CLIP; classes: K names, what is answered; prompts: K sentences, what images are compared with.
    """

    def __init__(self, clip: nn.Module, classes: Sequence[str], prompts: Sequence[str]):
        super().__init__()
        if len(classes) != len(prompts) or len(set(classes)) != len(classes) or not classes:
            raise UserError(
                f"{len(classes)} class names and {len(prompts)} prompts do not make a classifier: give one prompt for "
                "each, names that are all different."
            )
        self.classes, self._number = tuple(classes), {c: k for k, c in enumerate(classes)}
        self.victim = ZeroShot(clip.visual, text_matrix(clip, prompts), clip.logit_scale.exp().item())
        self.size = self.victim.pixels.size[0]

    def _labels(self, targets: Sequence[str]) -> Tensor:
        unknown = [t for t in targets if t not in self._number]
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is none of the {len(self.classes)} classes (the first are "
                f"{', '.join(self.classes[:3])}): a zero-shot CLIP can be made to say class names only."
            )
        return torch.tensor([self._number[t] for t in targets], dtype=torch.long, device=self.victim.text.device)

    @torch.no_grad()
    def answer(self, x, prompts, max_tokens=20, batch=64):
        check_lengths(x, prompts)
        said = joined(lambda part: predicted(self.victim(part)), x.split(batch)).tolist() if len(x) else []
        return [self.classes[k] for k in said]

    def nll(self, x, prompts, targets):
        check_lengths(x, prompts, targets)
        return F.cross_entropy(self.victim(x), self._labels(targets), reduction="none")

    def embed(self, x):
        """In the space that images share with text, not normalised."""
        return self.victim.embed(x)

    def set_vision(self, tower):
        load(
            self.victim.visual,
            tower_state(tower),
            "the vision tower",
            "give an open_clip tower of the same architecture",
        )
