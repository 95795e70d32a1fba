"""Contrastive pre-training of a CLIP on image-caption pairs, with open_clip's loss.

L = ½·(CE(s·I Tᵀ, diagonal) + CE(s·T Iᵀ, diagonal)), I and T the unit embeddings of the batch, s = exp(logit_scale) ≤
100 (Radford et al. 2021).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.data.base import loader
from shared.models.victim import Pixels
from shared.options import Batch, Bounded, Count, Positive, Weight, Whole, Workers, free
from shared.training.loop import Fit, OneProcess, check_batch


@dataclass(frozen=True)
class ContrastiveConfig(Bounded):
    """How long and how fast to pre-train."""

    steps: Count = 4000
    """Updates."""
    batch: Batch = 256
    """Pairs per update, over all processes together."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW."""
    warmup: Whole = 200
    """Updates of linear warm-up."""
    weight_decay: Weight = 0.1
    """Of matrices; vectors (biases, norms, the temperature) are not decayed."""
    clip_norm: Positive = 1.0
    """Bound of the gradient norm."""
    every: Whole = free(250)
    """Updates between checkpoints."""
    workers: Workers = free(0)
    """Processes that read pairs ahead, for each process that trains; for pictures in files."""


class Batches:
    """Batches one after another, read by worker processes ahead of time: batches(step) for step, step + 1, …, beginning
    anywhere.

    data: `__getitems__(indices(step))` is the batch of a step; steps: how many there are; workers: processes (0: read
    when asked for).
    """

    def __init__(self, data, indices: Callable[[int], Sequence], steps: int, workers: int = 0):
        self.data, self.indices, self.steps, self.workers = data, indices, steps, workers
        self._next, self._stream = -1, iter(())

    @classmethod
    def shuffled(
        cls, data, batch: int, steps: int, seed: int = 0, workers: int = 0, share: slice = slice(None)
    ) -> "Batches":
        """Those of `batch_indices`. share: the part of each batch that this process takes."""
        return cls(data, lambda step: batch_indices(len(data), batch, step, seed)[share], steps, workers)

    def __call__(self, step: int):
        if step != self._next:
            to_come = (self.indices(s) for s in range(step, self.steps))
            self._next, self._stream = step, iter(loader(self.data, to_come, self.workers))
        self._next += 1
        return next(self._stream)


class PixelCLIP(nn.Module):
    """A CLIP that takes pixels in [0, 1]: forward(x, tokens) -> unit image and text embeddings (N, D) and the scale
    s."""

    def __init__(self, clip: nn.Module, norm: str = "clip"):
        super().__init__()
        self.clip, self.pixels = clip, Pixels.of(clip.visual, norm)

    def forward(self, x: Tensor, tokens: Tensor):
        return self.clip(self.pixels(x), tokens)


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    decays: Callable[[str, nn.Parameter], bool] = lambda name, p: p.ndim >= 2,
) -> torch.optim.AdamW:
    """AdamW of what is trained, with decay where `decays(name, parameter)`: by default on matrices only."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if decays(name, p) == yes], "weight_decay": weight_decay if yes else 0.0}
        for yes in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def clamp_scale(clip: nn.Module) -> None:
    """s ≤ 100, and ≥ 1."""
    with torch.no_grad():
        clip.logit_scale.clamp_(0, math.log(100))


def fit_adamw(
    model: nn.Module,
    step_fn: Callable[[int], Tensor],
    config: Any,
    checkpoint: Path | None,
    accelerator: Any,
    name: str,
    after_step: Callable[[int], None] | None = None,
    kept: nn.Module | None = None,
) -> float:
    """Train all of `model` in place with AdamW; returns the last loss. It is left frozen and in eval mode.

    config: has steps, lr, weight_decay, warmup, every and clip_norm. kept: what a checkpoint holds, if that is more
    than the model. The rest as of `Fit`.
    """
    loss = Fit(
        model if kept is None else kept,
        adamw(model, config.lr, config.weight_decay),
        config.steps,
        config.lr,
        step_fn,
        config.warmup,
        checkpoint,
        config.every,
        accelerator,
        after_step,
        config.clip_norm,
        name,
    ).run()
    model.requires_grad_(False).eval()
    return loss


def fit_clip(
    clip: nn.Module,
    step_fn: Callable[[int], Tensor],
    config: ContrastiveConfig,
    checkpoint: Path | None,
    accelerator: Any,
    name: str,
) -> float:
    """`fit_adamw` of a CLIP, whose scale stays within its bounds."""
    return fit_adamw(clip, step_fn, config, checkpoint, accelerator, name, lambda step: clamp_scale(clip))


def pretrain(
    clip: nn.Module,
    pairs,
    config: ContrastiveConfig,
    accelerator=None,
    checkpoint: Path | None = None,
    augment=None,
    name: str = "pre-training",
) -> float:
    """Train `clip` in place; returns the last loss. It is left frozen and in eval mode.

    pairs: a data set whose `__getitems__(indices)` gives pictures (N, 3, H, W) and N captions, at least steps × batch
    long (or read in epochs of a permutation that is a function of the epoch). augment(x, step, indices): optional, on
    pictures. accelerator: every process takes its share of each batch; None: this process alone. Raises UserError if
    the batch is no multiple of the number of processes.
    """
    import open_clip

    accelerator = accelerator or OneProcess(clip.logit_scale.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    check_batch(name, min(config.batch, len(pairs)), len(pairs), world)
    clip.requires_grad_(True).train()
    model = accelerator.prepare(PixelCLIP(clip))
    loss_fn = open_clip.ClipLoss(local_loss=world > 1, gather_with_grad=world > 1, rank=rank, world_size=world)
    share = slice(rank, None, world)
    batches = Batches.shuffled(pairs, config.batch, config.steps, workers=config.workers, share=share)

    def step_fn(step: int) -> Tensor:
        x, texts = batches(step)
        x, tokens = x.to(accelerator.device), clip.tokenizer(texts).to(accelerator.device)
        image, text, scale = model(x if augment is None else augment(x, step, batches.indices(step)), tokens)
        return loss_fn(image, text, scale)

    return fit_clip(clip, step_fn, config, checkpoint, accelerator, name)


def batch_indices(n: int, batch: int, step: int, seed: int = 0) -> list[int]:
    """Indices of update `step`: epoch after epoch of permutations of n samples, each a function of (seed, epoch); a
    last short batch is dropped."""
    per_epoch = max(1, n // batch)
    epoch, position = divmod(step, per_epoch)
    if n > 2_000_000:  # an endless set: read it in order
        return [(step * batch + i) % n for i in range(batch)]
    return _order(n, seed, epoch)[position * batch : (position + 1) * batch].tolist()


@functools.lru_cache(maxsize=2)  # a permutation of a million takes as long as reading a batch
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
