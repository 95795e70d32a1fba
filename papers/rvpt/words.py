"""Adversarial prompt tuning (table 12): context vectors before the class names are learned, both towers stay frozen.

    t_k = text( [V]_1 … [V]_n name_k ),   min_V E[ CE( s·cos(F(x_a), t_k), y ) ]

    once   x_a is made once, by PGD on KL( softmax F(x) ‖ softmax F(x_a) ), without any text; V is learned from the bank of F(x_a).
           AdvPT, Zhang et al., ECCV 2024 (jiamingzhang94/Adversarial-Prompt-Tuning: n = 32, 10 steps of ε/8, 100 epochs
           at 0.002)
    each   x_a is made anew in each update, by PGD on the cross-entropy with the present t_k. APT, Li et al., CVPR 2024

The table's number of this reference could belong to either. The vision tower is as easy to attack as before: such a
defence gains what the text side can give. `papers.rvpt.baselines.tune_adversarially` has the visual prompts instead.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt.tuning import Tuning, optimise, same_classes
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.models.victim import ZeroShot
from shared.repeat import joined_all, parts_of
from shared.rng import SampleRng
from shared.training.adversarial import TrainAttack

WORD = "a"  # stands where a vector goes; every tokenizer has it


class LearnedWords(nn.Module):
    """n context vectors V (n, d_t), shared by K classes; only they are parameters.

    clip: an open_clip CLIP, borrowed; its parameters are set to need no gradient. length: n. std, seed: of the Gaussian
    that V is drawn from (0.02 as in CoOp). Raises UserError where the text tower has no token embedding or no room for
    so many words.
    """

    def __init__(self, clip: nn.Module, classes: Sequence[str], length: int = 32, std: float = 0.02, seed: int = 0):
        super().__init__()
        table = getattr(getattr(clip, "text", clip), "token_embedding", None)
        if not isinstance(table, nn.Embedding):
            raise UserError(
                f"the text tower of a {type(clip).__name__} has no table of tokens: use a CLIP with open_clip's own "
                "text tower."
            )
        self._borrowed = (clip.requires_grad_(False).eval(), table)
        self.tokens = clip.tokenizer([" ".join([WORD] * length + [name]) for name in classes])
        if length < 1 or not (self.tokens[:, 1 : 1 + length] == self.tokens[0, 1]).all():
            raise UserError(
                f"{length} words before a class name do not fit this text tower: use 1 or more, and fewer than its "
                "context."
            )
        draw = torch.randn(length, table.embedding_dim, generator=torch.Generator().manual_seed(seed)) * std
        self.words = nn.Parameter(draw.to(table.weight.device))

    def forward(self) -> Tensor:
        """Unit text embeddings t_k (K, D)."""
        clip, table = self._borrowed
        n = len(self.words)

        def put(module, args, out):
            return torch.cat((out[:, :1], self.words.to(out.dtype).expand(len(out), -1, -1), out[:, 1 + n :]), dim=1)

        hook = table.register_forward_hook(put)
        try:
            return clip.encode_text(self.tokens.to(self.words.device), normalize=True)
        finally:
            hook.remove()


def embedding_divergence(victim: ZeroShot, x: Tensor) -> Callable[[Tensor], Tensor]:
    """x_a -> KL( softmax F(x) ‖ softmax F(x_a) ) over the D entries of an embedding, (N,): what AdvPT's attack
    raises."""
    with torch.no_grad():
        target = victim.embed(x).log_softmax(1)
    return lambda x_adv: F.kl_div(victim.embed(x_adv).log_softmax(1), target, log_target=True, reduction="none").sum(1)


class _Bank(torch.utils.data.Dataset):
    """F(x_a) of every picture, and its label."""

    def __init__(self, victim: ZeroShot, data, threat: Threat, attack: TrainAttack, seed: int, device):
        def embedded(indices: list[int]) -> tuple[Tensor, Tensor]:
            x, y = data.__getitems__(indices)
            x = x.to(device)
            x_adv = attack(embedding_divergence(victim, x), x, threat, SampleRng(seed, indices, "bank"))
            with torch.no_grad():
                return victim.embed(x_adv).cpu(), y

        self.embeddings, self.labels = joined_all(embedded, parts_of(list(range(len(data))), 64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices):
        return self.embeddings[list(indices)], self.labels[list(indices)]


def tune_words(
    victim: ZeroShot,
    words: LearnedWords,
    data,
    tuning: Tuning,
    threat: Threat,
    attack: TrainAttack,
    seed: int,
    device="cpu",
    when: Literal["once", "each"] = "once",
    checkpoint: Path | None = None,
    name: str = "adversarial word tuning",
) -> ZeroShot:
    """Learn V in place; returns the victim with the learned t_k in place of its own. The victim and its towers are not
    changed.

    data: labelled pictures with batched access, e.g. `few_shot`. Raises UserError where the classes are not the
    victim's, and for augmentation of pictures that are attacked once.
    """
    same_classes(victim, data)
    if when not in ("once", "each") or (when == "once" and tuning.augment != "none"):
        raise UserError(
            f"attacks made {when!r} with augmentation {tuning.augment!r}: use 'once' without augmentation, or 'each'."
        )
    words.requires_grad_(True)

    def learned(text: Tensor) -> ZeroShot:
        other = ZeroShot(victim.visual, text, victim.scale)
        other.pixels = victim.pixels
        return other

    def from_bank(f: Tensor, y: Tensor, indices: list[int], step: int) -> Tensor:
        return F.cross_entropy(learned(words()).classify(f), y)

    def anew(x: Tensor, y: Tensor, indices: list[int], step: int) -> Tensor:
        now = learned(words())
        fixed = learned(now.text.detach())
        rng = SampleRng(seed, indices, f"train{step}")
        x_adv = attack(lambda z: F.cross_entropy(fixed(z), y, reduction="none"), x, threat, rng)
        with torch.no_grad():
            f = victim.embed(x_adv)
        return F.cross_entropy(now.classify(f), y)

    bank = _Bank(victim, data, threat, attack, seed, device) if when == "once" else data
    try:
        optimise(words, from_bank if when == "once" else anew, bank, tuning, seed, device, checkpoint, None, name)
    finally:
        words.requires_grad_(False)
    return learned(words().detach())
