"""Attacks on victims: nn.Modules that map images (N, 3, H, W) in [0, 1] to logits (N, K), with mean/std, resize and scale inside."""

from shared.attacks.gradient import eval_mode, input_gradient
from shared.attacks.pgd import ascend, fgsm, pgd
from shared.attacks.threat import Threat

__all__ = ["Threat", "ascend", "eval_mode", "fgsm", "input_gradient", "pgd"]
