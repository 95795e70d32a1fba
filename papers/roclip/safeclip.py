"""SafeCLIP (arXiv, October 2023), by authors of RoCLIP and later than it: it compares with RoCLIP, and could be no
baseline in RoCLIP's paper.

    1  in-modality epochs     L_IN = ½·(L_CLIP(z^I, n(z̃^I, P^I)) + L_CLIP(z^T, n(z̃^T, P^T)))      tilde: a second augmentation of the same
    2  slow epochs            L_CLIP(z^I, z^T) at a small learning rate, so that the modalities can be compared
    3  the rest               before each epoch all pairs are split by a mixture of two Gaussians over cos(z^I, z^T): safe, if the nearer mode's share
                              of the likelihood is at least `confidence`; then L_CLIP on the safe pairs + L_IN on the
                              others

Our facts have of this method no more than its outline (in-modality training with nearest neighbours from a pool, a
split by similarity, CLIP's loss on the safe part and the in-modality loss on the rest). All else is inferred: the slow
epochs, the mixture, its threshold and its least share, that the safe part grows by nothing but the similarities, equal
weights of the two losses, and every number below: "SafeCLIP (inferred)" in a table.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from papers.roclip.augment import MILD, CaptionAugmentation, ImageAugmentation
from papers.roclip.method import clip_loss
from papers.roclip.pool import Pool
from papers.roclip.training import Training, embedding_width, optimizer_of
from shared.data.augment import EDA
from shared.errors import UserError
from shared.models.victim import Pixels
from shared.options import Bounded, Count, Part, Range, Share
from shared.repeat import joined, parts_of
from shared.training.contrastive import batch_indices, clamp_scale
from shared.training.loop import Fit, cosine_schedule

TRAINING = Training()


@dataclass(frozen=True)
class SafeClip(Bounded):
    """Raises UserError for shares out of range, or fewer than one epoch in either of the first two phases."""

    alone: Count = 2
    """In-modality epochs at the beginning."""
    slow: Count = 1
    """Epochs of phase 2."""
    slow_lr: Part = 0.1
    """Their learning rate, as a share of the scheduled one."""
    confidence: Annotated[float, Range(0.5, 1, below=True)] = 0.9
    """Of a safe pair's belonging to the nearer mode."""
    least: Share = 0.2
    """Share of the pairs, the nearest, that are safe in any case: where the two modes cannot be told apart, none would
    be."""
    share: Part = 0.02
    """Entries of either pool as a share of the pairs."""
    images: ImageAugmentation = MILD
    captions: CaptionAugmentation = CaptionAugmentation()


def safe_pairs(cosine: Tensor, confidence: float = 0.9, rounds: int = 100) -> Tensor:
    """(N,) bool, which of N similarities belong to the upper of two Gaussians, fitted by EM from the lower and the
    upper half.

    Raises UserError for fewer than four similarities.
    """
    if len(cosine) < 4:
        raise UserError(f"{len(cosine)} similarities cannot be split in two: give at least 4.")
    x = cosine.double()
    low, high = x.sort().values.chunk(2)
    mean, std = torch.stack([low.mean(), high.mean()]), torch.stack([low.std(), high.std()]).clamp(min=1e-4)
    weight = x.new_tensor([0.5, 0.5])
    for _ in range(rounds):
        each = weight.log() - std.log() - 0.5 * ((x[:, None] - mean) / std) ** 2
        part = each.softmax(dim=1)
        count = part.sum(0).clamp(min=1e-9)
        mean, weight = (part * x[:, None]).sum(0) / count, count / len(x)
        std = ((part * (x[:, None] - mean) ** 2).sum(0) / count).sqrt().clamp(min=1e-4)
    upper = int(mean.argmax())
    # far below both, the wider of the two wins, which may be the upper one
    return (part[:, upper] >= confidence) & (x > mean[1 - upper])


class SafeTrained(NamedTuple):
    """What a training leaves besides the weights."""

    loss: float
    safe: Tensor
    """(N,) bool, which pairs were safe in the last epoch."""
    history: list[dict]
    """One dictionary per epoch: epoch, matched (False), and what `after_epoch` gave."""


class _State(nn.Module):
    def __init__(self, clip: nn.Module, pools: dict[str, Pool], pairs: int):
        super().__init__()
        self.clip, self.pools, self.history = clip, nn.ModuleDict(pools), []
        self.register_buffer("safe", torch.zeros(pairs, dtype=torch.bool))

    def get_extra_state(self) -> str:
        return json.dumps(self.history)

    def set_extra_state(self, state: str) -> None:
        self.history = json.loads(state)


def safeclip(
    clip: nn.Module,
    pairs,
    config: SafeClip = SafeClip(),
    training: Training = TRAINING,
    checkpoint: Path | None = None,
    after_epoch=None,
    norm: str = "clip",
    name: str = "SafeCLIP",
) -> SafeTrained:
    """Train all of `clip` in place, in one process.

    pairs, checkpoint, after_epoch, norm: as in `papers.roclip.training.train`.
    Raises UserError where a batch is larger than the set, or there is no epoch after the first two phases.
    """
    if training.batch > len(pairs) or training.epochs <= config.alone + config.slow:
        raise UserError(
            f"{name}: {training.epochs} epochs in batches of {training.batch} of {len(pairs)} pairs: use a batch no "
            f"larger than the set, and more than {config.alone + config.slow} epochs."
        )
    device, per_epoch, dim = clip.logit_scale.device, training.per_epoch(len(pairs)), embedding_width(clip)
    size = max(1, round(config.share * len(pairs)))
    pools = {modality: Pool(size, dim, "unit", "ring", k).to(device) for k, modality in enumerate(("image", "text"))}
    state, pixels = (
        _State(clip.requires_grad_(True).train(), pools, len(pairs)).to(device),
        Pixels.of(clip.visual, norm).to(device),
    )
    static, again, optimizer = (
        config.captions.bind(clip.tokenizer),
        EDA.of(clip.tokenizer, alpha=config.captions.alpha),
        optimizer_of(clip, training),
    )

    def embed(x: Tensor, texts: list[str]) -> dict[str, Tensor]:
        return {
            "image": clip.encode_image(pixels(x.to(device)), normalize=True),
            "text": clip.encode_text(clip.tokenizer(texts).to(device), normalize=True),
        }

    def split() -> None:
        clip.eval()

        @torch.no_grad()
        def agreement(part: range) -> Tensor:
            both = embed(*pairs.__getitems__(part))
            return (both["image"] * both["text"]).sum(1)

        cosine = joined(agreement, parts_of(range(len(pairs)), 256))
        clip.train()
        state.safe.copy_(safe_pairs(cosine, config.confidence))
        state.safe[cosine.topk(round(config.least * len(pairs))).indices] = True

    def step_fn(step: int) -> Tensor:
        epoch, position = divmod(step, per_epoch)
        rate = training.lr * cosine_schedule(step, training.epochs * per_epoch, training.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * (config.slow_lr if config.alone <= epoch < config.alone + config.slow else 1.0)
        if position == 0 and epoch >= config.alone + config.slow:
            split()
        indices = batch_indices(len(pairs), training.batch, step, training.seed)
        x, texts = pairs.__getitems__(indices)
        first = embed(config.images(x, step, indices), static(texts, indices))
        scale, safe = clip.logit_scale.exp(), state.safe[indices]
        if config.alone <= epoch < config.alone + config.slow:
            return clip_loss(first["image"], first["text"], scale)
        risky = torch.ones_like(safe) if epoch < config.alone else ~safe
        loss = scale.new_zeros(()) * scale
        if risky.sum() > 1:
            rows = risky.nonzero().flatten().cpu()
            own = [indices[k] for k in rows.tolist()]
            with torch.no_grad():
                second = embed(
                    config.images(x[rows], step + training.epochs * per_epoch, own),
                    again([texts[k] for k in rows.tolist()], step, own),
                )
            terms = [clip_loss(first[m][risky], pools[m].nearest(second[m]).vectors, scale) for m in pools]
            loss = loss + torch.stack(terms).mean()
            for m, pool in pools.items():
                pool.add(first[m][risky], own)
        if epoch >= config.alone and safe.sum() > 1:
            loss = loss + clip_loss(first["image"][safe], first["text"][safe], scale)
        return loss

    def after_step(done: int) -> None:
        clamp_scale(clip)
        with torch.no_grad():
            if done % per_epoch == 0 and after_epoch is not None:
                clip.eval()
                state.history.append(
                    {"epoch": done // per_epoch, "matched": False} | (after_epoch(done // per_epoch, clip, pools) or {})
                )
                clip.train()

    fit = Fit(
        state,
        optimizer,
        training.epochs * per_epoch,
        training.lr,
        step_fn,
        training.warmup,
        checkpoint,
        training.every,
        after_step=after_step,
        clip_norm=training.clip_norm,
        name=name,
        alike=lambda step: (
            step // per_epoch >= config.alone,
            step // per_epoch < config.alone + config.slow,
            step % per_epoch == 0,
            (step + 1) % per_epoch == 0,
        ),
    )
    loss = fit.run()
    clip.requires_grad_(False).eval()
    return SafeTrained(loss, state.safe.cpu(), state.history)
