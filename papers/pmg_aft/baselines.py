"""What only this paper compares with: fine-tuning with CLIP's own contrastive loss, on clean and on adversarial images.

    L = ½·( CE(s·I Tᵀ, diagonal) + CE(s·T Iᵀ, diagonal) ),  I the unit image embeddings of the batch, T the embeddings of their class prompts

Two images of one class are negatives of each other, as the loss has it. FT-Clean takes I of clean images, FT-Adv of
adversarial ones; what FT-Adv's attack raises is not written anywhere we could read, so we take the cross-entropy over
the class prompts, as for TeCoA. (TeCoA and FARE are shared.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrastive:
    """FT-Clean (`adversarial=False`) and FT-Adv (`adversarial=True`)."""

    def __init__(self, adversarial: bool):
        self.adversarial = adversarial

    def attack_loss(self, victim, x: Tensor, y: Tensor):
        """Cross-entropy over the class prompts, or None for clean training."""
        if not self.adversarial:
            return None
        return lambda x_adv: F.cross_entropy(victim(x_adv), y, reduction="none")

    def loss(self, victim, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The loss of the module docstring on x_adv (= x for FT-Clean)."""
        image = F.normalize(victim.embed(x_adv), dim=1)
        logits = victim.scale * image @ victim.text[y].T
        diagonal = torch.arange(len(y), device=y.device)
        return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
