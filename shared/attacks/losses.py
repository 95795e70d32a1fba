"""Losses an attacker raises, one value per sample. z (N, K) logits, y and t (N,) int64 labels, π sorts z in descending
order.

All are computed in fp32 whatever the logits' type. Success of an untargeted attack on sample i means max_{j≠y} z_j >
z_y.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError

TINY = 1e-12


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """ℓ = −log softmax(z)_y. Depends on the scale of z, as its gradient p − e_y, p = softmax(z), does.

    In fp32 p_y rounds to 1, so that ℓ and ∂ℓ/∂z_y are exactly 0, once z_y leads by 24·log 2 ≈ 16.6 nats; ∂ℓ/∂z_j = p_j
    of the other classes stays above 0 up to a lead of about 100.
    """
    return F.cross_entropy(z.float(), y, reduction="none")


def runner_up(z: Tensor, y: Tensor) -> Tensor:
    """max_{j≠y} z_j, (N,)."""
    return z.scatter(1, y[:, None], -torch.inf).amax(dim=1)


def likeliest_wrong(z: Tensor, y: Tensor, n: int) -> Tensor:
    """The min(n, K − 1) wrong classes of highest logit, (that many, N), the highest first."""
    wrong = z.scatter(1, y[:, None], -torch.inf)
    return wrong.topk(min(n, z.shape[1] - 1), dim=1).indices.T


def margin(z: Tensor, y: Tensor, kappa: float | None = None) -> Tensor:
    """ℓ = max_{j≠y} z_j − z_y, positive exactly where the sample is misclassified.

    With `kappa`: ℓ = −max(z_y − max_{j≠y} z_j + κ, 0), which stops pushing once the margin reaches κ (κ in units of z).
    This is the loss that the TeCoA line of work calls CW, κ = 50 there and 0 elsewhere (attacks.md §3.4); not Carlini's
    minimum-norm attack.
    """
    z = z.float()
    gain = runner_up(z, y) - z.gather(1, y[:, None]).squeeze(1)
    return gain if kappa is None else -F.relu(kappa - gain)


def dlr(z: Tensor, y: Tensor) -> Tensor:
    """ℓ = −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3), the difference of logits ratio of Croce & Hein 2020, eq. 6.

    Unchanged by a shift or a positive scale of z. Raises UserError for fewer than 3 classes.
    """
    _need_classes(z, 3, "DLR")
    z = z.float()
    top = z.topk(3, dim=1).values
    return margin(z, y) / (top[:, 0] - top[:, 2] + TINY)


def dlr_targeted(z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """ℓ = −(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2), the targeted ratio of Croce & Hein 2020, eq. 7. Raises UserError
    below 4 classes."""
    _need_classes(z, 4, "targeted DLR")
    z = z.float()
    top = z.topk(4, dim=1).values
    gap = z.gather(1, t[:, None]) - z.gather(1, y[:, None])
    return gap.squeeze(1) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + TINY)


def _need_classes(z: Tensor, least: int, name: str) -> None:
    if z.shape[1] < least:
        raise UserError(
            f"{name} needs at least {least} classes, this victim has {z.shape[1]}: use the margin or cross-entropy "
            "loss."
        )
