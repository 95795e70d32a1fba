"""What an attack raises on a victim and when it has succeeded: logits, losses and gradients of whole batches, EOT
included."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from shared.attacks import losses as L
from shared.attacks.gradient import input_gradient, precision
from shared.errors import UserError
from shared.models.victim import predicted
from shared.options import Count, Weight, bounded
from shared.repeat import repeated
from shared.rng import SampleRng

LossName = Literal["ce", "cw", "dlr", "margin"]
Loss = LossName | Callable[..., Tensor]


def check_batch(x: Tensor, y: Tensor) -> None:
    """Raise UserError unless x is a floating (N, …) batch in [0, 1] with int64 labels y (N,)."""
    if not x.is_floating_point() or y.shape != x.shape[:1] or y.dtype != torch.int64:
        got = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        raise UserError(f"expected floating images (N, …) and int64 labels (N,), got {got}.")
    if len(x) and not (x.min() >= 0 and x.max() <= 1):
        raise UserError(
            "images must lie in [0, 1] and be finite: attack before mean/std, which belong inside the victim."
        )


def check_rng(x: Tensor, rng: SampleRng | None) -> SampleRng:
    """The given rng; raise UserError unless it has one stream per sample of x."""
    if rng is None:
        raise UserError(
            "this attack draws random numbers: pass rng=SampleRng(seed, sample indices), or random_start=False to pgd."
        )
    if len(rng) != len(x):
        raise UserError(f"rng is for {len(rng)} samples, the batch has {len(x)}: use rng.subset.")
    return rng


class Goal:
    """A victim, a loss to raise and the rule of success.

    loss: "ce", "cw" (margin with `kappa`), "margin" (without), "dlr", or a function (logits, labels, *more) -> (N,) to
    raise. targeted: labels are to be reached instead of left; the loss is then lowered. eot_iter: every evaluation is
    the mean over so many calls of the victim (expectation over transformation, for random victims).
    """

    @bounded
    def __init__(
        self,
        victim: nn.Module,
        loss: Loss,
        *,
        kappa: Weight = 50.0,
        targeted: bool = False,
        eot_iter: Count = 1,
        reduction: str = "sum",
        autocast: str | None = None,
    ):
        table = {"ce": L.cross_entropy, "cw": lambda z, y: L.margin(z, y, kappa), "margin": L.margin, "dlr": L.dlr}
        self.loss = table[loss] if isinstance(loss, str) else loss
        self.classes = isinstance(loss, str)  # whether labels have to be classes
        self.victim, self.sign, self.targeted = victim, -1.0 if targeted else 1.0, targeted
        self.eot_iter, self.reduction, self.autocast = eot_iter, reduction, autocast

    def done(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Success of each sample, (N,) bool. Raises UserError where a logit is not finite, and as `hold`."""
        self.hold(logits, labels)
        return (predicted(logits) == labels) == self.targeted

    def hold(self, logits: Tensor, labels: Tensor) -> None:
        """Raise UserError unless labels (N,) are classes of logits (N, K); for a loss that is a function they may be
        more."""
        wrong = (labels < 0) | (labels >= logits.shape[1])
        if self.classes and wrong.any():
            outside = labels[wrong]
            raise UserError(
                f"{len(outside)} of {len(labels)} labels are no class of the victim, which has {logits.shape[1]}, "
                f"numbered from 0, such as {int(outside[0])}: give labels of its own classes."
            )

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The victim's logits, (N, K)."""
        with precision(x, self.autocast):
            return (
                self.victim(x)
                if self.eot_iter == 1
                else torch.stack([self.victim(x) for _ in repeated(range(self.eot_iter))]).mean(dim=0)
            )

    def judge(self, x: Tensor, labels: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (N,) and success (N,)."""
        logits = self.logits(x)
        done = self.done(logits, labels)
        return self.sign * self.loss(logits, labels, *more), done

    def gradient(self, x: Tensor, labels: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (N,), success (N,) and the gradient of the summed losses, shaped as x."""
        seen = []

        def loss_fn(point: Tensor) -> Tensor:
            logits = self.victim(point)
            self.hold(logits, labels)
            seen.append(logits.detach())
            return self.sign * self.loss(logits, labels, *more)

        parts = [
            input_gradient(loss_fn, x, reduction=self.reduction, autocast=self.autocast)
            for _ in repeated(range(self.eot_iter))
        ]
        if self.eot_iter == 1:
            return parts[0][0], self.done(seen[0], labels), parts[0][1]
        values, grad, logits = (
            torch.stack(part).mean(dim=0) for part in ([p[0] for p in parts], [p[1] for p in parts], seen)
        )
        return values, self.done(logits, labels), grad
