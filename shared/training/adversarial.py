"""Adversarial fine-tuning of a CLIP vision tower against frozen text embeddings, and the two objectives several papers
compare with.

    min_θ E[ L(θ; x, x_a, y) ],   x_a = Π-steps up the objective's own attack loss from a random start in B(x)

An objective says what the attack raises and what training lowers. TeCoA and FARE are here; a paper's own objective is
in its folder.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attacks.pgd import ascend
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.models.victim import ZeroShot
from shared.options import Batch, Bounded, Count, Decay, Positive, Range, Weight, Whole, Workers, free
from shared.rng import SampleRng
from shared.training.contrastive import Batches
from shared.training.loop import Fit


class Objective(Protocol):
    """What is attacked and what is minimised in one fine-tuning step."""

    def attack_loss(self, victim: ZeroShot, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor] | None:
        """A function x' -> per-sample losses (N,) that the attack raises; None: train on clean images."""

    def loss(self, victim: ZeroShot, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The scalar that is minimised. x, x_adv (N, 3, H, W) in [0, 1]; y (N,)."""


class TeCoA:
    """L = CE(s·cos(F_θ(x_a), T), y), mean over the batch; the attack raises the same (Mao et al., ICLR 2023)."""

    def attack_loss(self, victim, x, y):
        return lambda x_adv: F.cross_entropy(victim(x_adv), y, reduction="none")

    def loss(self, victim, x, x_adv, y):
        return F.cross_entropy(victim(x_adv), y)


class FARE:
    """L = mean_i ‖F_θ(x_a)_i − F_0(x)_i‖₂² on embeddings that are not normalised; the attack raises the same
    (Schlarmann et al., ICML 2024).

    Needs no labels. `original`: the frozen victim before fine-tuning, F_0.
    """

    def __init__(self, original: ZeroShot):
        self.original = original

    def attack_loss(self, victim, x, y):
        with torch.no_grad():
            target = self.original.embed(x)
        return lambda x_adv: (victim.embed(x_adv) - target).square().sum(1)

    def loss(self, victim, x, x_adv, y):
        with torch.no_grad():
            target = self.original.embed(x)
        return (victim.embed(x_adv) - target).square().sum(1).mean()


@dataclass(frozen=True)
class TrainAttack(Bounded):
    """The attack inside training."""

    steps: Whole = 2
    """PGD steps from a uniform random start (0: that start alone)."""
    ratio: Positive = 1.0
    """Step size as a multiple of ε."""
    reduction: Literal["sum", "mean"] = "sum"
    """How per-sample losses are joined before the gradient is taken; only matters in half precision."""
    autocast: Literal["none", "fp16"] = "none"
    """fp16: the forward pass of the attack in half precision without loss scaling, as some released code does."""

    def __call__(self, raised: Callable[[Tensor], Tensor], x: Tensor, threat: Threat, rng: SampleRng) -> Tensor:
        """x_a in B(x): PGD up `raised`, x' -> per-sample losses (N,)."""
        return ascend(
            raised,
            x,
            threat,
            steps=self.steps,
            step_size=self.ratio * threat.eps,
            rng=rng,
            reduction=self.reduction,
            autocast=None if self.autocast == "none" else self.autocast,
        )


@dataclass(frozen=True)
class Tuning(Bounded):
    """Optimiser and schedule of a fine-tuning."""

    steps: Count = 3910
    """Updates."""
    batch: Batch = 256
    """Images per update."""
    lr: Positive = 5e-5
    """Peak learning rate."""
    warmup: Whole = 1000
    """Updates of linear warm-up; a cosine to 0 follows."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    momentum: Decay = 0.9
    """Of SGD."""
    weight_decay: Weight = 0.0
    """Of either optimiser."""
    every: Whole = free(0)
    """Updates between checkpoints of an unfinished run (0: none)."""
    last: Annotated[int, Range(-1, 10_000_000)] = -1
    """Train only the last so many parameter tensors of the vision tower (-1: all)."""
    workers: Workers = free(0)
    """Processes that read images ahead of the training."""

    def __post_init__(self):
        super().__post_init__()
        if self.last == 0:
            raise UserError(
                "the last 0 parameter tensors are nothing to train (`last`): give their number, or -1 for all."
            )


def frozen(victim: ZeroShot) -> ZeroShot:
    """A copy that is never trained: the pre-trained model F_0."""
    return copy.deepcopy(victim).requires_grad_(False).eval()


def finetune(
    victim: ZeroShot,
    objective: Objective,
    data,
    tuning: Tuning,
    threat: Threat,
    attack: TrainAttack,
    seed: int,
    device="cpu",
    checkpoint: Path | None = None,
    snapshot: Callable[[int], None] | None = None,
    name: str = "fine-tuning",
) -> float:
    """Fine-tune `victim.visual` in place; returns the last loss.

    data: labelled images with batched access. seed: of the order of the data and of the attack's random starts, both
    functions of the step. snapshot(step): called after every update.
    """
    parameters = list(victim.visual.parameters())
    for p in parameters:
        p.requires_grad_(False)
    trained = parameters if tuning.last < 0 else parameters[-tuning.last :]
    for p in trained:
        p.requires_grad_(True)
    optimizer = (
        torch.optim.SGD(trained, lr=tuning.lr, momentum=tuning.momentum, weight_decay=tuning.weight_decay)
        if tuning.optimizer == "sgd"
        else torch.optim.AdamW(trained, lr=tuning.lr, weight_decay=tuning.weight_decay)
    )
    batches = Batches.shuffled(data, tuning.batch, tuning.steps, seed, tuning.workers)

    def step_fn(step: int) -> Tensor:
        x, y = (t.to(device, non_blocking=True) for t in batches(step))
        raised = objective.attack_loss(victim, x, y)
        x_adv = x
        if raised is not None and attack.steps:
            rng = SampleRng(seed, batches.indices(step)).child(f"train{step}")
            x_adv = attack(raised, x, threat, rng)
        return objective.loss(victim, x, x_adv, y)

    victim.train()
    loss = Fit(
        victim.visual,
        optimizer,
        tuning.steps,
        tuning.lr,
        step_fn,
        tuning.warmup,
        checkpoint,
        tuning.every,
        after_step=snapshot,
        name=name,
    ).run()
    victim.requires_grad_(False).eval()
    return loss
