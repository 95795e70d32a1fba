"""Few-shot tuning: which pictures, how they are varied, and the loop that RVPT and what it is compared with share.

The order of the pictures and their augmentation are functions of (seed, step, picture), so an interrupted tuning
continues exactly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt.method import Repulsion, rvpt_loss
from shared.data.base import LabelledImages, Subset, loader
from shared.errors import UserError
from shared.models.victim import ZeroShot
from shared.options import Batch, Bounded, Count, Decay, Part, Positive, Weight, Whole, Workers, free, shortened
from shared.repeat import joined_all, parts_of
from shared.rng import SampleRng
from shared.training.contrastive import Batches
from shared.training.loop import Fit


@dataclass(frozen=True)
class Tuning(Bounded):
    """Optimiser and schedule of a few-shot tuning; the defaults are the paper's, or Dassl's where it gives none."""

    epochs: Count = 50
    """Passes through the few shots; a last short batch is dropped."""
    batch: Batch = 32
    """Pictures per update (all, where there are fewer)."""
    lr: Positive = 0.002
    """Learning rate of SGD, at its peak."""
    momentum: Decay = 0.9
    """Not in the paper: Dassl's default."""
    weight_decay: Weight = 5e-4
    """Not in the paper: Dassl's default."""
    warmup: Whole = 0
    """Updates of linear warm-up; no more than there are (a note says so)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up."""
    augment: Literal["none", "crop_flip"] = "none"
    """crop_flip: a random part of the picture at its own size, mirrored half of the time (CoOp's; the paper says
    nothing)."""
    crop: Part = 0.08
    """Smallest part, as a share of the area."""
    cache: bool = free(True)
    """Without augmentation and attack: compute what no prompt touches once, n·(M + 1 + E − D)·d_v numbers."""
    every: Whole = free(0)
    """Updates between checkpoints of an unfinished run (0: none)."""
    workers: Workers = free(0)
    """Processes that read pictures ahead."""

    def steps(self, n: int) -> int:
        """Updates on n pictures."""
        return self.epochs * max(1, n // self.batch)


@dataclass(frozen=True)
class PromptTuning(Tuning):
    """The same for visual prompts."""

    length: Count = 50
    """b, prompts per layer."""


def few_shot(data: LabelledImages, shots: int, seed: int, without: Sequence[int] = ()) -> Subset:
    """`shots` random pictures of each class (all of a smaller class), the same for the same seed; a smaller number
    gives a part of a larger one's.

    without: labels of which no picture is taken (an emerging class); labels keep their numbers. Raises UserError if
    nothing is left.
    """
    if shots < 1:
        raise UserError(f"{data.name}: {shots} shots per class: use 1 or more.")
    labels, indices = np.asarray(data.labels), []
    for label in sorted(set(range(data.num_classes)) - set(without)):
        order = np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        indices += data.usable(order[: 2 * shots].tolist())[
            :shots
        ]  # the second half stands in for files that cannot be read
    if not indices:
        raise UserError(f"{data.name}: no class is left to take shots of.")
    return Subset(data, indices, f"{data.name}-{shots}shot")


def crop_flip(x: Tensor, rng: SampleRng, smallest: float = 0.08) -> Tensor:
    """A random part of each picture x (N, 3, H, W), scaled to H × W (bilinear) and mirrored with probability 1/2.

    Its share of the area is uniform on [smallest, 1], its aspect log-uniform on [3/4, 4/3]; a side that would be too
    long is cut to the picture.
    """
    if not 0 < smallest <= 1:
        raise UserError(f"the smallest crop is {smallest} of the area: use a share above 0 and at most 1.")
    u = rng.uniform((5,), device=x.device)
    area, aspect = smallest + (1 - smallest) * u[:, 0], ((2 * u[:, 1] - 1) * math.log(4 / 3)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * torch.where(u[:, 4] < 0.5, -1, 1), height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * u[:, 2] - 1) * (1 - width), (2 * u[:, 3] - 1) * (1 - height)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


def optimise(
    module: nn.Module,
    loss_fn: Callable[[Tensor, Tensor, list[int], int], Tensor],
    data,
    tuning: Tuning,
    seed: int,
    device="cpu",
    checkpoint: Path | None = None,
    after_step: Callable[[int], None] | None = None,
    name: str = "tuning",
) -> float:
    """SGD on those parameters of `module` that need a gradient; returns the last loss.

    loss_fn(x, y, indices, step): a scalar of pictures (augmented, where asked), labels and their numbers in `data`.
    checkpoint: file to continue from, removed by nobody. after_step(step): called after each update. Raises UserError
    if the loss is no number at the end.
    """
    steps = tuning.steps(len(data))
    warmup = shortened(tuning.warmup, steps)
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad],
        lr=tuning.lr,
        momentum=tuning.momentum,
        weight_decay=tuning.weight_decay,
    )
    batches = Batches.shuffled(data, tuning.batch, steps, seed, tuning.workers)

    def step_fn(step: int) -> Tensor:
        if tuning.schedule == "constant" and step >= warmup:
            for group in optimizer.param_groups:  # over the cosine that the loop has just set
                group["lr"] = tuning.lr
        x, y = (t.to(device, non_blocking=True) for t in batches(step))
        at = batches.indices(step)
        if tuning.augment == "crop_flip":
            x = crop_flip(x, SampleRng(seed, at, f"augment{step}"), tuning.crop)
        return loss_fn(x, y, at, step)

    fit = Fit(
        module,
        optimizer,
        steps,
        tuning.lr,
        step_fn,
        warmup,
        checkpoint,
        tuning.every,
        after_step=after_step,
        name=name,
    )
    return fit.run()


def same_classes(victim: ZeroShot, data) -> None:
    """Raise UserError unless the victim's classes are those of the set, as far as their number tells."""
    classes = getattr(data, "num_classes", victim.num_classes)
    if classes != victim.num_classes:
        raise UserError(
            f"the victim has {victim.num_classes} classes and the few shots have {classes}: give text embeddings of "
            "the same set."
        )


class _Begun(torch.utils.data.Dataset):
    """f^D of every picture, its label, and σ: what tuning needs of pictures that do not change."""

    def __init__(self, victim: ZeroShot, data, repulsion: Repulsion, device, workers: int):
        prompts = victim.visual

        @torch.no_grad()
        def begun(part: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            f = prompts.begin(victim.pixels(part[0].to(device)))
            return f.cpu(), prompts.reference(f).cpu() if repulsion.active else torch.empty(len(f), 0), part[1]

        batches = parts_of(list(range(len(data))), 256)
        self.states, self.reference, self.labels = joined_all(begun, loader(data, batches, workers))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.states[list(indices)], self.labels[list(indices)]


def tune(
    victim: ZeroShot,
    data,
    tuning: Tuning,
    repulsion: Repulsion,
    seed: int,
    device="cpu",
    checkpoint: Path | None = None,
    after_step: Callable[[int], None] | None = None,
    name: str = "prompt tuning",
) -> float:
    """Tune the prompts of a prompted victim (see `prompted`) in place with L of `papers.rvpt.method`; returns the last
    loss.

    data: labelled pictures with batched access, e.g. `few_shot`. seed: of order and augmentation. The prompts are left
    frozen. Raises UserError where the classes are not the victim's.
    """
    same_classes(victim, data)
    prompts = victim.visual.requires_grad_(True)
    begun = (
        _Begun(victim, data, repulsion, device, tuning.workers) if tuning.cache and tuning.augment == "none" else None
    )

    def loss_fn(x: Tensor, y: Tensor, indices: list[int], step: int) -> Tensor:
        if begun is None:
            with torch.no_grad():
                x = prompts.begin(victim.pixels(x))
        embedding, tokens = prompts.finish(x)
        logits = victim.classify(embedding)
        if not repulsion.active:
            return F.cross_entropy(logits, y)
        reference = prompts.reference(x) if begun is None else begun.reference[indices].to(device)
        return rvpt_loss(logits, y, tokens, reference, repulsion)[0]

    try:
        return optimise(
            prompts, loss_fn, data if begun is None else begun, tuning, seed, device, checkpoint, after_step, name
        )
    finally:
        victim.requires_grad_(False).eval()
