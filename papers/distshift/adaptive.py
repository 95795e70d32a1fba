"""Attackers who know the defence. Each makes pictures once; `shared.attacks.adaptive.resubmit` judges them.

control            nobody attacks: what repeated purification costs by itself
transfer           the undefended victim is attacked
bpda, bpda_eot     identity for the defence's derivative, one draw, or the mean of the logits over some
bpda_released      the latter with steps of ε/4, as in the first author's code (attack/bpda_eot.py, after Hill et al.
                   2021): 50 of 2/255 at 8/255, 15 draws; his begins at the picture itself, and a picture is lost once
                   the mean of its logits over 150 draws is
exact              through noising and guided reverse process with the second-order term of the guidance, loss averaged over draws of the noise
exact_first_order  the same with the guidance a constant of the backward pass (as COUP's released code): what that hides
guide              the guidance alone: raises the victim's cross-entropy on what the guide looks at in the first reverse step, so that it steers
                   towards a wrong class; the reverse process is not differentiated
apgd               exact, with APGD instead of PGD (AutoAttack's version for random defences has 20 draws and 100 steps)
"""

from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from papers.distshift.method import Distshift, Guided, nll
from shared.attacks.adaptive import AdaptiveAttack, Defence
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.rng import SampleRng
from shared.steps.purification import usual

NAMES = ("control", "transfer", "bpda", "bpda_eot", "bpda_released", "exact", "exact_first_order", "guide", "apgd")


class Budget(Protocol):
    """What is read of config.adaptive."""

    steps: int
    eot: int


def attack_of(adaptive: Budget, name: str) -> AdaptiveAttack:
    """The attack by that name: PGD with step 2.5·ε/steps, `eot` draws behind each gradient. Raises UserError for
    control and unknown names."""
    attacks = usual(adaptive.steps, adaptive.eot)
    exact = attacks["exact"]
    attacks |= {"exact_first_order": exact, "guide": replace(exact, loss=nll), "apgd": replace(exact, optimiser="apgd")}
    attacks["bpda_released"] = replace(attacks["bpda_eot"], step_size=0.25)
    if name not in attacks:
        raise UserError(f"there is no attack {name!r} on a purifier: choose one of {', '.join(attacks)}.")
    return attacks[name]


def fits(name: str, defence: Defence) -> bool:
    """Whether that attack says something about this defence that another does not: the last two need a guide."""
    if name == "exact_first_order":
        return isinstance(defence, Guided)
    return name != "guide" or (isinstance(defence, Distshift) and defence.guided)


def attacked(
    name: str,
    defence: Defence,
    victim: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    rng: SampleRng,
    defence_rng: SampleRng,
    adaptive: Budget,
    batch: int | None = None,
) -> Tensor:
    """Pictures (N, 3, H, W) in the ball around x, detached; y (N,). rng, defence_rng: of the attack and of the defence,
    N streams each.

    batch: pictures at a time; `eot` times as many go through the defence. Raises UserError for a name that does not fit
    the defence.
    """
    if name == "control":
        return x.detach().clone()
    attack = attack_of(adaptive, name)
    if not fits(name, defence):
        raise UserError(
            f"the attack {name!r} is for a guided purifier: this {type(defence).__name__} has no guide of that kind."
        )
    if name == "guide":
        victim, defence = (
            nn.Identity(),
            defence.guide_log_probs,
        )  # what comes out of the "defence" are log-probabilities already
    elif name == "exact_first_order":
        defence = defence.with_(second_order=False)
    return attack(victim, defence, x, y, threat, rng=rng, defence_rng=defence_rng, batch=batch)
