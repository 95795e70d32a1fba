"""When is a run of APGD hopeless? A first-order answer, checked against the run itself.

Write m(x') for a score that must become positive before the sample can be misclassified, and

    R(x') = max { ⟨∇m(x'), v − x'⟩ : v in the ball of radius ε (linf: cut with [0, 1]) },

the most that m can gain by its linear model, i.e. the Frank-Wolfe gap. A run is given up once m + c·R < 0, that is, once even c times
what the gradient promises would not do. c = 5 by default, and never before the first checkpoint (22 % of the steps) or 10 steps.
The promise must have been kept: if the best m of the run exceeds any of its m + c·R, its gradients understate what steps achieve
(masked or scaled gradients, BPDA) and the run goes to its end.

m is the loss itself for DLR, targeted DLR and the margin, and log((1 − p_y)/p_y) for the cross-entropy −log p_y, which does not
saturate. Other losses have no such threshold and their runs go to the end.
"""

import torch
from torch import Tensor

from shared.attacks import losses as L
from shared.attacks.threat import Threat

SCORE_IS_LOSS = ("margin", "dlr", L.dlr_targeted)


def has_score(loss: object) -> bool:
    """Whether `score` knows the threshold of this loss (a name or a function, as given to the attack)."""
    return loss == "ce" or loss in SCORE_IS_LOSS


def reach(threat: Threat, x: Tensor, x_adv: Tensor, grad: Tensor) -> Tensor:
    """R with the gradient of the loss, (N,). For l2: ε||g||₂ − ⟨g, x' − x⟩, without the cut."""
    if threat.norm == "l2":
        return threat.eps * grad.flatten(1).norm(dim=1) - (grad * (x_adv - x)).flatten(1).sum(dim=1)
    room_up = (x + threat.eps).clamp_(max=1).sub_(x_adv)
    room_down = (x - threat.eps).clamp_(min=0).sub_(x_adv)
    return torch.where(grad > 0, room_up, room_down).mul_(grad).flatten(1).sum(dim=1)


def score(loss: object, values: Tensor, reach_of_loss: Tensor) -> tuple[Tensor, Tensor]:
    """m and R from the loss's values and its reach, (N,) each. Where p_y rounds to 1 both are not numbers: no verdict."""
    if loss != "ce":
        return values, reach_of_loss
    wrong = -torch.expm1(-values)  # 1 − p_y; dm/dℓ = 1/(1 − p_y)
    return wrong.log() + values, reach_of_loss / wrong
