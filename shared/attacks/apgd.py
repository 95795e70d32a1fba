"""Auto-PGD (Croce & Hein 2020): gradient ascent that chooses its step size for each sample.

    z = Π( x_k + η_k·d(g_k) );   x_{k+1} = Π( x_k + a·(z − x_k) + (1 − a)·(x_k − x_{k−1}) ),   a = 1 in the first step, then 0.75

from a random point of B(x), with η_0 = 2ε (or 1ε). At checkpoints (after 22 % of the steps, then at gaps that shrink by
3 % of the steps and are never below 6 %) a sample's η is halved, and it returns to its best point, if at most ρ = 75 %
of the steps since the last checkpoint raised its loss, or if neither η nor its best loss changed since. Π, d and B are
those of `shared.attacks.threat`.
"""

from torch import Tensor, nn

from shared.attacks import losses as L
from shared.attacks.apgd_engine import Runs
from shared.attacks.goal import Loss
from shared.attacks.gradient import eval_mode
from shared.attacks.threat import Threat
from shared.options import Count, bounded


@bounded
def apgd(
    victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, loss: Loss = "ce", restarts: Count = 1, **settings
) -> Tensor:
    """Adversarial images (N, C, H, W), detached, in B(x). x in [0, 1], y (N,) labels; the victim is used in eval mode.

    loss: as in `pgd`. restarts: runs per sample, each from its own random point. Keyword settings, the same for all
    attacks here: rng: SampleRng of the N samples (required). steps: gradient steps of a run (default 100); a run
    evaluates its start too, so it costs steps + 1 gradients at most.
    first_step: η_0 in units of ε (default 2).   rho: ρ above (default 0.75).
    eot_iter: every gradient and loss is the mean over so many evaluations (default 1). batch_size: images in the victim
    at a time (default N). give_up: c of `shared.attacks.reach` (default 7): a run that is hopeless by c times its
    linear model ends early. It saves up to two
        thirds of the calls on samples that hold. None: every run that does not succeed goes to its end, as published.
    drop: samples leave at their first success (default; those misclassified to begin with come back as they are), and
    the others
        come back at their point of highest loss. With drop=False every run goes to its end and all samples come back at
        that point: use it for random victims, where one lucky draw is not success. It switches give_up off.
    Raises UserError for images outside [0, 1], a missing or ill-sized rng, labels that are no class, and settings out
    of bounds.
    """
    runs = Runs(victim, x, y, threat, **settings)
    if len(x) == 0:
        return x.clone()
    with eval_mode(victim):
        runs.clean()
        return runs.ascend(loss, restarts)


def apgd_ce(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, **settings) -> Tensor:
    """`apgd` on the cross-entropy."""
    return apgd(victim, x, y, threat, loss="ce", **settings)


def apgd_dlr(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, **settings) -> Tensor:
    """`apgd` on the DLR loss; on the plain margin for two classes, since DLR needs three."""
    return apgd(
        victim,
        x,
        y,
        threat,
        loss=lambda z, labels: L.dlr(z, labels) if z.shape[1] > 2 else L.margin(z, labels),
        **settings,
    )


@bounded
def apgd_t(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, targets: Count = 9, **settings) -> Tensor:
    """APGD on the targeted DLR loss: one run for each of the min(targets, K − 1) wrong classes that the clean image
    scores highest.

    Targeted DLR needs K ≥ 4 classes: with K = 3 this is one run on DLR, with K = 2 one on the margin, so that heads of
    every size can be attacked (the original crashes below K = 10). Settings, result and errors are those of `apgd`.
    """
    runs = Runs(victim, x, y, threat, **settings)
    if len(x) == 0:
        return x.clone()
    with eval_mode(victim):
        logits = runs.clean()
        classes = logits.shape[1]
        if classes < 4:
            return runs.ascend("dlr" if classes == 3 else "margin", 1)
        wanted = L.likeliest_wrong(logits, y, targets)
        return runs.ascend(L.dlr_targeted, len(wanted), wanted)
