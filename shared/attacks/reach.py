"""When is a run of APGD hopeless? A first-order answer, checked against the run itself.

Write m(x') for a score that must become positive before the sample can be misclassified, and

    R(x') = max { ⟨∇m(x'), v − x'⟩ : v in the ball of radius ε (linf: cut with [0, 1]) },

the most that m can gain by its linear model, i.e. the Frank-Wolfe gap. A run is given up once

    max m + c·mean R < 0,

with the largest m so far and the R of its last five points: once even c times what its gradients promise would not do.
c = 7 by default, and never before the first checkpoint (22 % of the steps) or the fifth point. One point alone is no
evidence: where momentum overshoots, the gradient of a run that succeeds four steps later can promise a fifteenth of
what it takes. c and the five were chosen on training pictures of the shipped models, where they lose none that whole
runs break (21 settings; 6 loses one); on others a single picture of 192 at most. The promise must have been kept: if
the best m of a run exceeds any of its promises, its gradients understate what steps achieve (masked or scaled
gradients, BPDA) and it goes to its end.

m is the loss itself for DLR, targeted DLR and the margin, and log((1 − p_y)/p_y) for the cross-entropy −log p_y, which
does not saturate. Other losses have no such threshold and their runs go to the end.
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
    corner = torch.add(x, grad.sign(), alpha=threat.eps).clamp_(0, 1)
    return corner.sub_(x_adv).mul_(grad).flatten(1).sum(dim=1)


def score(loss: object, best: Tensor, values: Tensor, reach_of_loss: Tensor) -> tuple[Tensor, Tensor]:
    """m of the best losses, and R from the losses here and their reach, (N,) each. Where p_y rounds to 1 both are not
    numbers: no verdict."""
    if loss != "ce":
        return best, reach_of_loss
    return torch.expm1(-best).neg().log() + best, reach_of_loss / -torch.expm1(-values)  # 1 − p_y; dm/dℓ = 1/(1 − p_y)
