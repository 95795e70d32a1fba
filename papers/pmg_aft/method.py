"""The contribution of PMG-AFT: two KL terms beside the adversarial cross-entropy.

    P_θ(x) = softmax_k( s·cos(F_θ(x), t_k) ),  P_0 the same with the frozen pre-trained tower F_0,  x_a the adversarial image of x

    L         = L_robust + α·L_general + β·L_clean
    L_robust  = CE( P_θ(x_a), y )                        mean over the batch
    L_general = D( P_0(x_a),  P_θ(x_a) )                 the guide sees the same adversarial image
    L_clean   = D( P_θ(x),    P_θ(x_a) )

D is a Kullback-Leibler divergence. Its direction is contested between the text and two states of the released code, and
so are reduction, temperature and stop-gradients; all are fields here. Facts: papers/pmg_aft/README.md, "Differences".
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.models.victim import ZeroShot
from shared.options import Bounded, Weight


@dataclass(frozen=True)
class PMGLoss(Bounded):
    """The loss in the paper's symbols."""

    alpha: Weight = 1.0
    """α, weight of L_general (the released code has no weights: 1)."""
    beta: Weight = 1.0
    """β, weight of L_clean."""
    direction: Literal["target_first", "adversarial_first"] = "target_first"
    """target_first: KL(target ‖ P_θ(x_a)), as the code of May 2024 and later work that follows the text;
    adversarial_first: KL(P_θ(x_a) ‖ target), the code of April 2024."""
    reduction: Literal["batchmean", "sum"] = "batchmean"
    """How a KL is joined over the batch; sum, as released, weighs it by the batch size against the cross-entropy."""
    detach_clean: bool = False
    """Stop the gradient through P_θ(x). The released code does not."""


def kl_divergence(p_logits: Tensor, q_logits: Tensor, reduction: str) -> Tensor:
    """KL(P ‖ Q) = Σ_k P_k (log P_k − log Q_k) from logits (N, K); "batchmean" divides the sum by N, "sum" does not."""
    p, q = F.log_softmax(p_logits, dim=1), F.log_softmax(q_logits, dim=1)
    return F.kl_div(q, p, log_target=True, reduction=reduction)


def pmg_aft_loss(
    adversarial: Tensor, guide: Tensor, clean: Tensor, y: Tensor, config: PMGLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """(L, its terms) from logits (N, K) of P_θ(x_a), P_0(x_a), P_θ(x) and labels (N,)."""
    if config.detach_clean:
        clean = clean.detach()

    def divergence(target: Tensor) -> Tensor:
        pair = (target, adversarial) if config.direction == "target_first" else (adversarial, target)
        return kl_divergence(*pair, config.reduction)

    terms = {"robust": F.cross_entropy(adversarial, y), "general": divergence(guide), "clean": divergence(clean)}
    return terms["robust"] + config.alpha * terms["general"] + config.beta * terms["clean"], terms


class PMGAFT:
    """PMG-AFT as an objective of `shared.training.adversarial`. `guide`: the frozen pre-trained victim, P_0."""

    def __init__(self, guide: ZeroShot, config: PMGLoss):
        self.guide, self.config = guide, config

    def attack_loss(self, victim: ZeroShot, x: Tensor, y: Tensor):
        """The attack of training raises L_robust alone."""
        return lambda x_adv: F.cross_entropy(victim(x_adv), y, reduction="none")

    def loss(self, victim: ZeroShot, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """L; a term of weight 0 costs nothing."""
        c = self.config
        if c.beta == 0 or c.detach_clean:
            adversarial = victim(x_adv)
            with torch.no_grad():
                clean = adversarial if c.beta == 0 else victim(x)
        else:  # one pass over both: larger matrix products
            adversarial, clean = victim(torch.cat((x_adv, x))).chunk(2)
        with torch.no_grad():
            guide = adversarial if c.alpha == 0 else self.guide(x_adv)
        return pmg_aft_loss(adversarial, guide, clean, y, c)[0]
