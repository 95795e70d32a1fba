"""CleanCLIP: fine-tuning a CLIP on clean pairs so that it forgets a backdoor (Bansal et al., ICCV 2023, §4).

    L = L_CLIP(I, T) + λ_I·L_SS(I, Ĩ) + λ_T·L_SS(T, T̃)
    L_SS(A, Ã) = −1/N Σ_j log( exp(s·<a_j, ã_j>) / Σ_k exp(s·<a_j, ã_k>) )

I, T: unit embeddings of the pictures and captions of a batch; Ĩ, T̃: of augmented ones; s: the logit scale, trained
with the rest, ≤ 100. Pictures and captions are learnt apart by the last two terms, which loosens what a trigger and a
caption share. The paper weighs L_CLIP with λ₁ and (L_SS of both)/2 with λ₂; its λ₁ = λ₂ = 1 is λ_I = λ_T = ½ here. L_SS
goes from the picture to the augmented ones and not back, as in the paper and in its code. The authors augment pictures
by AutoAugment's policy for ImageNet; here they are cropped and their colours are jittered, so that it works at 32
pixels, and the captions have the synonyms that `EDA` is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.data.augment import EDA, CropAndJitter
from shared.options import Seed, Weight
from shared.training.contrastive import Batches, PixelCLIP, fit_clip
from shared.training.loop import OneProcess, check_batch
from shared.training.poisoning import FineTuning


@dataclass(frozen=True)
class CleanClipConfig(FineTuning):
    """How CleanCLIP fine-tunes."""

    image_weight: Weight = 0.5
    """λ_I."""
    text_weight: Weight = 0.5
    """λ_T."""
    seed: Seed = 0
    """Of the augmentations, and of the order of the pairs."""


AugmentImages = Callable[[Tensor, int, Sequence[int]], Tensor]
AugmentTexts = Callable[[Sequence[str], int, Sequence[int]], list[str]]


def self_supervised(embedding: Tensor, augmented: Tensor, scale: Tensor) -> Tensor:
    """L_SS of unit embeddings (N, D) of samples and of the same samples augmented."""
    return F.cross_entropy(scale * embedding @ augmented.T, torch.arange(len(embedding), device=embedding.device))


def cleanclip_loss(
    image: Tensor, text: Tensor, image_aug: Tensor, text_aug: Tensor, scale: Tensor, config: CleanClipConfig
) -> Tensor:
    """L, from unit embeddings (N, D) each."""
    cross = (self_supervised(image, text, scale) + self_supervised(text, image, scale)) / 2
    return (
        cross
        + config.image_weight * self_supervised(image, image_aug, scale)
        + config.text_weight * self_supervised(text, text_aug, scale)
    )


def cleanclip(
    clip: nn.Module,
    pairs,
    config: CleanClipConfig = CleanClipConfig(),
    checkpoint: Path | None = None,
    accelerator=None,
    augment_images: AugmentImages | None = None,
    augment_texts: AugmentTexts | None = None,
    name: str = "CleanCLIP",
) -> float:
    """Train all of `clip` on clean `pairs`, in place; returns the last loss. It is left frozen and in eval mode.

    pairs, checkpoint, accelerator: as in `finetune_clip`. augment_images(x, step, indices), augment_texts(texts, step,
    indices): None for `CropAndJitter` and `EDA`, the latter inside what the model's tokenizer can read. Raises
    UserError where a batch is larger than the set or has no equal shares for all processes, or the loss is no number at
    the end.
    """
    accelerator = accelerator or OneProcess(clip.logit_scale.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    check_batch(name, config.batch, len(pairs), world)
    augment_images = augment_images or CropAndJitter(seed=config.seed)
    augment_texts = augment_texts or EDA.of(clip.tokenizer, seed=config.seed)
    model = accelerator.prepare(PixelCLIP(clip.requires_grad_(True).train()))
    share = slice(rank, None, world)
    batches = Batches.shuffled(pairs, config.batch, config.steps, config.seed, config.workers, share)

    def step_fn(step: int) -> Tensor:
        (x, texts), indices = batches(step), batches.indices(step)
        x = torch.cat([x, augment_images(x, step, indices)]).to(accelerator.device)
        tokens = clip.tokenizer([*texts, *augment_texts(texts, step, indices)]).to(accelerator.device)
        image, text, scale = model(x, tokens)  # one pass for both halves
        parts = [part for both in (image, text) for part in both.chunk(2)]
        if world > 1:
            from torch.distributed.nn import all_gather  # hands gradients back, unlike the plain one

            parts = [torch.cat(all_gather(part)) for part in parts]
        image, image_aug, text, text_aug = parts
        return cleanclip_loss(image, text, image_aug, text_aug, scale, config)

    return fit_clip(clip, step_fn, config, checkpoint, accelerator, name)
