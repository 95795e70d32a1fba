"""Attacks on victims: nn.Modules that map images (N, C, H, W) in [0, 1] to logits (N, K), with mean/std, resize and
scale inside.

threat      B(x): norm and ε in pixel units; projection, random start, distance
losses      what is raised: cross-entropy, margin with κ, DLR, targeted DLR
gradient    gradients of the input alone, fp32 and summed by default; eval mode set and given back
goal        a victim with a loss and the rule of success; mean over evaluations for random victims
pgd         ascend (any loss; used in training), pgd, fgsm
apgd        apgd, apgd_ce, apgd_dlr, apgd_t, on an engine that keeps them full (apgd_engine); reach: when a run is hopeless
fab         fab_t, which looks for the nearest point of another class
square      gradient-free random search
autoattack  the cascade APGD-CE -> APGD-T -> Square on the survivors; `STANDARD` has FAB-T, too
sanity      checks that an attack can be trusted on a victim
language    attacks on vision-language models, by the likelihood of texts; language_sanity: their checks
triggers    triggers of backdoors, drawn, optimised or trained

Every attack returns detached images in B(x), changes neither x nor the victim, draws its random numbers per sample
index from the `SampleRng` it is given, and gives a sample the same result in whatever batch it comes (up to the
victim's own float error).
"""

from shared.attacks.apgd import apgd, apgd_ce, apgd_dlr, apgd_t
from shared.attacks.autoattack import autoattack, cascade
from shared.attacks.fab import fab_t
from shared.attacks.gradient import input_gradient
from shared.attacks.pgd import ascend, fgsm, pgd
from shared.attacks.sanity import check_attack
from shared.attacks.square import square
from shared.attacks.threat import Threat

__all__ = [
    "Threat", "apgd", "apgd_ce", "apgd_dlr", "apgd_t", "ascend", "autoattack", "cascade", "check_attack",
    "fab_t", "fgsm", "input_gradient", "pgd", "square",
]  # fmt: skip
