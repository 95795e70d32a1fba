"""Gradients with respect to the input only, and the victim's mode while it is attacked."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from shared.attacks.fp16 import HalfProducts
from shared.errors import UserError

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@contextlib.contextmanager
def eval_mode(victim: nn.Module) -> Iterator[None]:
    """The victim in eval mode; on leaving, every submodule gets back the mode it had (they need not all have been the
    same). Raises UserError for what is no module."""
    if not hasattr(victim, "modules"):
        raise UserError(f"the victim is a {type(victim).__name__}: give an nn.Module that maps pictures to logits.")
    modes = [(module, module.training) for module in victim.modules()]
    victim.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def precision(x: Tensor, autocast: str | None) -> Iterator[None]:
    """fp32 whatever the caller's autocast (None), or autocast to "fp16" / "bf16" on the device of `x`."""
    if autocast is not None and autocast not in HALF:
        raise UserError(f"unknown autocast {autocast!r}: use None (fp32), 'fp16' or 'bf16'.")
    with torch.autocast(
        x.device.type,
        dtype=HALF.get(autocast, torch.bfloat16),  # type: ignore[arg-type]
        enabled=autocast is not None,
    ):
        yield


def input_gradient(
    loss_fn: Callable[[Tensor], Tensor], x: Tensor, *, reduction: str = "sum", autocast: str | None = None
) -> tuple[Tensor, Tensor]:
    """Per-sample losses ℓ_i (N,) in fp32 and ∇_x Σ_i ℓ_i, both detached. Parameters get no gradient, their `.grad`
    stays as it is.

    `reduction="mean"` differentiates (1/N) Σ_i ℓ_i instead. In exact arithmetic that is the same direction; under
    unscaled fp16 autocast the factor 1/N pushes gradients below the smallest fp16 number, and the more so the larger
    the batch. Both knobs exist to reproduce that defect of released code, nothing else. On a CPU fp16 is emulated by
    rounding (`shared.attacks.fp16`). Raises UserError if the losses are not of shape (N,): a reduced loss would couple
    the samples of a batch.
    """
    if reduction not in ("sum", "mean"):
        raise UserError(f"unknown reduction {reduction!r}: use 'sum' or 'mean'.")
    if autocast == "fp16" and x.device.type == "cpu":
        with HalfProducts():
            return input_gradient(loss_fn, x, reduction=reduction)
    with torch.enable_grad(), precision(x, autocast):
        x = x.detach().requires_grad_()
        losses = loss_fn(x)
        if losses.shape != x.shape[:1]:
            raise UserError(f"the loss has shape {tuple(losses.shape)}, expected one value per sample, ({len(x)},).")
        losses = losses.float()
        total = losses.sum() if reduction == "sum" else losses.mean()
    with precision(x, None):  # a caller's autocast would turn the backward's products to half precision too
        return losses.detach(), torch.autograd.grad(total, x)[0]
