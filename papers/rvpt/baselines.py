"""What RVPT is compared with, and its loss on other parameters than prompts (CleanCLIP is shared).

    VPT                deep visual prompts without repulsion: Repulsion(alpha=0) in `papers.rvpt.tuning.tune`
    linear probe       z = W·F(x) + b on the frozen tower, SGD at a constant 0.01, momentum 0.9, batch 32, 40 epochs (appendix C.2)
    full fine-tuning   L_CE + α·L_FR over the whole vision tower (table 8); σ comes from a frozen copy, the tower as it was
    contrastive        L_InfoNCE + α·L_FR over the whole CLIP on pairs of picture and caption (table 8)
    adversarial        min_p E[ max_{x' ∈ B(x)} CE ]: the same visual prompts against PGD (table 12)

Table 12 compares with "adversarial prompt tuning", which learns text prompts (papers.rvpt.words); the one here has
RVPT's own prompts. How many shots the linear probe has is not written.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt.method import Repulsion, depth_of, encode, repulsion_loss, rvpt_loss
from papers.rvpt.tuning import Tuning, optimise, same_classes
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.models.victim import Pixels, ZeroShot
from shared.repeat import joined_all, parts_of
from shared.rng import SampleRng
from shared.training.adversarial import TrainAttack
from shared.training.contrastive import ContrastiveConfig, batch_indices, fit_clip

VPT = Repulsion(alpha=0.0)
LINEAR = Tuning(epochs=40, batch=32, lr=0.01, momentum=0.9, weight_decay=0.0, schedule="constant")


class LinearProbe(nn.Module):
    """z = W·F(x) + b: logits (N, K) of pictures (N, 3, H, W) in [0, 1]; no text tower is asked, so a text trigger has
    no effect on it.

    victim: whose pixels and tower are used, frozen; F is its embedding, not normalised (normalise: F/‖F‖). seed: of W
    and b.
    """

    def __init__(self, victim: ZeroShot, normalise: bool = False, seed: int = 0):
        super().__init__()
        self._borrowed, self.normalise = (victim,), normalise
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(victim.text.shape[1], victim.num_classes)
        self.head.to(victim.text.device)

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    def _apply(self, fn, recurse=True):  # to(device) moves the victim too
        self._borrowed[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def embed(self, x: Tensor) -> Tensor:
        """F(x) (N, D)."""
        embedding = self._borrowed[0].embed(x)
        return F.normalize(embedding, dim=-1) if self.normalise else embedding

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class _Embedded(torch.utils.data.Dataset):
    def __init__(self, probe: LinearProbe, data, device):
        @torch.no_grad()
        def embedded(part: list[int]) -> tuple[Tensor, Tensor]:
            x, y = data.__getitems__(part)
            return probe.embed(x.to(device)).cpu(), y

        self.embeddings, self.labels = joined_all(embedded, parts_of(list(range(len(data))), 256))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices):
        return self.embeddings[list(indices)], self.labels[list(indices)]


def linear_probe(
    victim: ZeroShot, data, tuning: Tuning = LINEAR, seed: int = 0, normalise: bool = False, device="cpu"
) -> LinearProbe:
    """A trained linear probe on labelled pictures, each of which is embedded once. Raises UserError where the classes
    are not the victim's."""
    same_classes(victim, data)
    probe = LinearProbe(victim, normalise, seed)
    optimise(
        probe,
        lambda f, y, indices, step: F.cross_entropy(probe.head(f), y),
        _Embedded(probe, data, device),
        replace(tuning, augment="none"),
        seed,
        device,
        name="linear probe",
    )
    return probe.requires_grad_(False).eval()


class Repelled:
    """α·L_FR of a tower that is trained itself: the class tokens after blocks D + 1 … L against those of `original`,
    frozen.

    original: a copy of the tower from before the training. first: D.
    """

    def __init__(self, original: nn.Module, repulsion: Repulsion, first: int = 3):
        self.original, self.repulsion, self.first = original.requires_grad_(False).eval(), repulsion, first
        if not 0 <= first < depth_of(original):
            raise UserError(
                f"D is {first} and the tower has {depth_of(original)} blocks: use 0 to {depth_of(original) - 1}."
            )

    @torch.no_grad()
    def reference(self, x: Tensor) -> Tensor:
        """σ^{D+1} … σ^L (N, L − D, d_v). x: what the tower expects."""
        return encode(self.original, x)[1][:, self.first :]


def finetune_fully(
    victim: ZeroShot,
    repelled: Repelled,
    data,
    tuning: Tuning,
    seed: int,
    name: str = "full fine-tuning",
    **how: Any,
) -> float:
    """Train the whole vision tower of `victim` in place with L_CE + α·L_FR; returns the last loss. Text embeddings and
    scale stay.

    how: device, checkpoint and after_step of `optimise`.
    """
    same_classes(victim, data)
    tower = victim.visual.eval().requires_grad_(True)

    def loss_fn(x: Tensor, y: Tensor, indices: list[int], step: int) -> Tensor:
        x = victim.pixels(x)
        embedding, tokens = encode(tower, x)
        logits = victim.classify(embedding)
        if not repelled.repulsion.active:
            return F.cross_entropy(logits, y)
        return rvpt_loss(logits, y, tokens[:, repelled.first :], repelled.reference(x), repelled.repulsion)[0]

    try:
        return optimise(tower, loss_fn, data, tuning, seed, name=name, **how)
    finally:
        victim.requires_grad_(False).eval()


def finetune_contrastively(
    clip: nn.Module,
    repelled: Repelled,
    pairs,
    config: ContrastiveConfig,
    seed: int = 0,
    device="cpu",
    checkpoint: Path | None = None,
    augment=None,
    norm: str = "clip",
    name: str = "contrastive fine-tuning",
) -> float:
    """Train a whole CLIP in place with CLIP's own loss + α·L_FR on its vision tower; returns the last loss. It is left
    frozen and in eval mode.

    pairs: a data set whose `__getitems__(indices)` gives pictures and captions. augment(x, step, indices): optional, on
    pictures. One process.
    """
    clip.eval().requires_grad_(True)
    pixels, repulsion = Pixels.of(clip.visual, norm).to(device), repelled.repulsion

    def step_fn(step: int) -> Tensor:
        indices = batch_indices(len(pairs), config.batch, step, seed)
        x, texts = pairs.__getitems__(indices)
        x = pixels((x if augment is None else augment(x, step, indices)).to(device))
        embedding, tokens = encode(clip.visual, x)
        text = clip.encode_text(clip.tokenizer(texts).to(device), normalize=True)
        logits = clip.logit_scale.exp() * F.normalize(embedding, dim=-1) @ text.T
        diagonal = torch.arange(len(x), device=x.device)
        loss = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        if not repulsion.active:
            return loss
        return loss + repulsion.alpha * repulsion_loss(
            tokens[:, repelled.first :], repelled.reference(x), repulsion.margin
        )

    return fit_clip(clip, step_fn, config, checkpoint, None, name)


def tune_adversarially(
    victim: ZeroShot,
    data,
    tuning: Tuning,
    threat: Threat,
    attack: TrainAttack,
    seed: int,
    name: str = "adversarial prompt tuning",
    **how: Any,
) -> float:
    """Tune the prompts of a prompted victim in place on the cross-entropy of PGD examples, found anew in each update;
    returns the last loss.

    how: device and checkpoint of `optimise`.
    """
    same_classes(victim, data)
    prompts = victim.visual.requires_grad_(True)

    def loss_fn(x: Tensor, y: Tensor, indices: list[int], step: int) -> Tensor:
        rng = SampleRng(seed, indices, f"train{step}")
        x_adv = attack(lambda z: F.cross_entropy(victim(z), y, reduction="none"), x, threat, rng)
        return F.cross_entropy(victim(x_adv), y)

    try:
        return optimise(prompts, loss_fn, data, tuning, seed, name=name, **how)
    finally:
        victim.requires_grad_(False).eval()
