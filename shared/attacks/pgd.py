"""Projected gradient ascent with a fixed step: `ascend` (any per-sample loss; also used in training), `pgd` and `fgsm`
on a victim.

    x₀ = random point of B(x), or x;   x_{k+1} = Π_B( x_k + η·d(∇_x Σ_i ℓ_i(x_k)) ),   d = sign (linf) or g/||g||₂ (l2)

Madry et al. 2018; FGSM is Goodfellow et al. 2015. B and Π are those of `shared.attacks.threat`.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from shared.attacks.goal import Goal, Loss, check_batch, check_rng
from shared.attacks.gradient import eval_mode, input_gradient
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.options import Count, Weight, Whole, bounded
from shared.repeat import EARLY, repeated
from shared.rng import SampleRng


@bounded
def ascend(
    loss_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    threat: Threat,
    *,
    steps: Whole,
    step_size: Weight,
    rng: SampleRng | None = None,
    random_start: bool = True,
    reduction: Literal["sum", "mean"] = "sum",
    autocast: Literal["fp16", "bf16"] | None = None,
) -> Tensor:
    """The last iterate of `steps` steps up `loss_fn`, detached, in B(x). x (N, …) in [0, 1] is not changed.

    loss_fn: x' -> per-sample losses (N,) to raise. It must treat samples apart (a model in train mode with batch
    statistics does not; see `eval_mode`). step_size is in pixel units. `rng` is needed for a random start only.
    `reduction` and `autocast` are for fidelity to released code (see `input_gradient`); the default is a summed loss in
    fp32, also inside a caller's autocast.
    """
    project = threat.projector(x)
    x_adv = _start(x, threat, rng, random_start)
    for _ in repeated(range(steps)):
        _, grad = input_gradient(loss_fn, x_adv, reduction=reduction, autocast=autocast)
        x_adv = project(threat.direction(grad).mul_(step_size).add_(x_adv))
    return x_adv


def fgsm(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, loss: Loss = "ce", kappa: Weight = 50.0) -> Tensor:
    """One step of size ε from x itself, for every sample. Arguments and errors as in `pgd`."""
    return pgd(
        victim, x, y, threat, steps=1, step_size=threat.eps, random_start=False, loss=loss, kappa=kappa, keep="last"
    )


@bounded
def pgd(
    victim: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: Whole,
    step_size: Weight,
    rng: SampleRng | None = None,
    restarts: Count = 1,
    random_start: bool = True,
    loss: Loss = "ce",
    kappa: Weight = 50.0,
    targeted: Tensor | None = None,
    keep: Literal["best", "last"] = "best",
    drop: bool | None = None,
    eot_iter: Count = 1,
    reduction: Literal["sum", "mean"] = "sum",
    autocast: Literal["fp16", "bf16"] | None = None,
) -> Tensor:
    """Adversarial images (N, C, H, W), detached, in B(x). x in [0, 1], y (N,) labels; the victim maps x to logits, used
    in eval mode.

    loss: "ce", "cw" (the margin with `kappa`, see `losses.margin`), "margin", "dlr", or a function (logits, labels) ->
    (N,) to raise. targeted: labels (N,) to reach; the loss is then lowered at the target, and success means that the
    target is predicted. keep: "best" returns the iterate that succeeded, else the one of highest loss, over all steps
    and restarts;
        "last" the last iterate of the last restart, as most released code does: success at some step is not success at
        the last.
    drop: samples leave the batch at their first success (a sample misclassified to begin with comes back unperturbed).
    Default: on
        for keep="best" with a summed loss. Switch it off for victims that are random: one lucky draw is not success.
    eot_iter: gradients and losses are averages over so many evaluations (for random victims).
    reduction, autocast: fidelity to released code, see `input_gradient`.
    Raises UserError for images outside [0, 1], labels that are no class, settings out of bounds or that contradict each
    other, and a random start without rng.
    """
    check_batch(x, y)
    if targeted is not None:
        check_batch(x, targeted)
    if random_start:
        check_rng(x, rng)
    if restarts > 1 and not random_start:
        raise UserError(
            f"{restarts} restarts without a random start are all the same: use a random start, or 1 restart."
        )
    drop = (keep == "best" and reduction == "sum") if drop is None else drop
    if drop and (keep == "last" or reduction == "mean"):
        raise UserError(
            "drop=True contradicts keep='last' and reduction='mean' (both need the whole batch): leave drop out."
        )
    goal = Goal(
        victim,
        loss,
        kappa=kappa,
        targeted=targeted is not None,
        eot_iter=eot_iter,
        reduction=reduction,
        autocast=autocast,
    )
    labels = y if targeted is None else targeted
    with eval_mode(victim):
        if keep == "last":
            start = None if not random_start else rng.child(f"restart{restarts - 1}")  # type: ignore[union-attr]
            return _run_last(goal, x, labels, threat, steps, step_size, start)
        best = _Best(x, drop)
        if drop:
            best.record(torch.arange(len(x), device=x.device), x, *goal.judge(x, labels))
        for restart in repeated(range(restarts)):
            todo = best.open()
            if len(todo) == 0:
                break
            start = rng.child(f"restart{restart}").subset(todo) if random_start else None  # type: ignore[union-attr]
            _run_best(goal, x[todo], labels[todo], todo, threat, steps, step_size, start, best)
        return best.x_adv


class _Best:
    """For each sample the best point so far: success first, then the higher loss; the earlier one among equals."""

    def __init__(self, x: Tensor, drop: bool):
        self.x_adv, self.drop = x.detach().clone(), drop
        self.loss = torch.full(x.shape[:1], -torch.inf, device=x.device)
        self.done = torch.zeros(x.shape[:1], dtype=torch.bool, device=x.device)

    def record(self, where: Tensor, x_adv: Tensor, values: Tensor, done: Tensor) -> None:
        better = (done & ~self.done[where]) | ((done == self.done[where]) & (values > self.loss[where]))
        if better.any():
            rows = where[better]
            self.x_adv[rows], self.loss[rows], self.done[rows] = x_adv[better].detach(), values[better], done[better]

    def open(self) -> Tensor:
        """Positions of the samples still to be attacked."""
        return (~self.done).nonzero().flatten() if self.drop else torch.arange(len(self.done), device=self.done.device)


def _run_last(goal: Goal, x, labels, threat, steps, step_size, start: SampleRng | None) -> Tensor:
    project = threat.projector(x)
    x_adv = _start(x, threat, start, start is not None)
    for _ in repeated(range(steps)):
        x_adv = project(threat.direction(goal.gradient(x_adv, labels)[2]).mul_(step_size).add_(x_adv))
    return x_adv


def _run_best(
    goal: Goal, x, labels, where: Tensor, threat, steps, step_size, start: SampleRng | None, best: _Best
) -> None:
    project = threat.projector(x)
    x_adv = _start(x, threat, start, start is not None)
    for _ in repeated(range(steps), EARLY if best.drop else 1.0):
        values, done, grad = goal.gradient(x_adv, labels)
        best.record(where, x_adv, values, done)
        if best.drop and done.any():
            stay = ~done
            if not stay.any():
                return
            x, x_adv, grad, labels, where = x[stay], x_adv[stay], grad[stay], labels[stay], where[stay]
            project = threat.projector(x)
        x_adv = project(threat.direction(grad).mul_(step_size).add_(x_adv))
    best.record(where, x_adv, *goal.judge(x_adv, labels))


def _start(x: Tensor, threat: Threat, rng: SampleRng | None, random_start: bool) -> Tensor:
    return threat.random_start(x.detach(), check_rng(x, rng)) if random_start else x.detach().clone()
