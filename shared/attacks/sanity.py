"""Can this attack be trusted on this victim? Cheap checks on a few dozen images, stored beside each robust accuracy.

After Carlini et al. 2019 ("On Evaluating Adversarial Robustness") and Athalye et al. 2018. Each check compares a share
of images with a threshold that is written here, before anything is measured. A failed check does not say what is wrong,
but a robust accuracy whose checks fail is not evidence of robustness.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared.attacks.goal import Goal, Loss, check_batch, check_rng
from shared.attacks.gradient import eval_mode
from shared.attacks.pgd import fgsm, pgd
from shared.attacks.record import Checks
from shared.attacks.square import square
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.options import Count, Whole, bounded
from shared.repeat import joined
from shared.rng import SampleRng

IMAGES = 48  # how many of the images given are used
ITERATIVE_MARGIN = 0.05  # accuracy the attack may leave above a single step's
MORE_STEPS_FACTOR = 4
MORE_STEPS_MARGIN = 0.05  # accuracy that so many times the steps may take away
LARGER_EPS_MARGIN = 0.02  # accuracy by which twice the eps may be weaker
TRANSFER_MARGIN = 0.05  # accuracy the white box may leave above the transfer attack's
BLACK_BOX_MARGIN = 0.05  # accuracy that a gradient-free attack may take from the survivors
BATCH_MARGIN = 0.05  # share of samples whose outcome may depend on the batch size
SMALL_BATCH = 7  # or half the images, where 7 would be no division of them

Attack = Callable[..., Tensor]  # attack(victim, x, y, threat, *, steps, rng) -> x_adv


def small_batch(n: int) -> int:
    """The batch size that n images, attacked at once, are attacked in again: 7, or half of them where there are fewer
    than 14."""
    return max(1, min(SMALL_BATCH, n // 2))


def default_attack(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int, rng: SampleRng) -> Tensor:
    """PGD on the cross-entropy, random start, step 2.5·ε/steps (Madry et al.'s rule), best iterate."""
    return pgd(victim, x, y, threat, steps=steps, step_size=2.5 * threat.eps / steps, rng=rng)


@bounded
def check_attack(
    victim: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    attack: Attack = default_attack,
    *,
    rng: SampleRng,
    steps: Count = 10,
    surrogate: nn.Module | None = None,
    queries: Whole = 0,
    loss: Loss = "ce",
    reduction: str = "sum",
    autocast: str | None = None,
    images: Count = IMAGES,
) -> dict:
    """{check: {"passed": bool, "value": float, "threshold": float, "detail": str}, …, "passed": bool}; a check passes
    if value ≤ threshold.

    x (N, C, H, W) in [0, 1] and y (N,): the first `images` are used, with `rng` for all N. attack: what the robust
    accuracy was measured with, as attack(victim, x, y, threat, steps=…, rng=…); it must set its step size by
    threat.eps, and `steps` is its budget. surrogate: another model whose adversarial images are tried on the victim;
    without one the check `transfer` is left out. queries: of the Square attack on what the attack left correct; with 0
    the check `black_box` is left out. loss, reduction, autocast: of the gradient whose zeros are counted; name those of
    the attack. Raises UserError for an eps of 0, no images, or what the attack itself refuses.
    """
    check_batch(x, y)
    check_rng(x, rng)
    x, y, rng = x[:images], y[:images], rng.subset(torch.arange(min(images, len(x))))
    if len(x) == 0 or threat.eps == 0:
        raise UserError("sanity checks need at least one image and an eps above 0.")
    wide, boundless, checks = threat.doubled(), threat.boundless(x), Checks()
    goal = Goal(victim, loss, reduction=reduction, autocast=autocast)

    with eval_mode(victim):
        logits = goal.logits(x)

        def correct(images: Tensor) -> Tensor:
            return ~goal.done(goal.logits(images), y)

        def run(budget: int = steps, inside: Threat = threat, on: nn.Module = victim) -> Tensor:
            return attack(on, x, y, inside, steps=budget, rng=rng)

        x_adv = run()
        left = correct(x_adv)
        accuracy = left.float().mean().item()
        says = f"{(~goal.done(logits, y)).float().mean():.3f} clean, {accuracy:.3f} attacked, {len(x)} images"

        checks.in_ball(x_adv, x, threat, says)

        single = correct(fgsm(victim, x, y, threat)).float().mean().item()
        checks.add(
            "iterative",
            accuracy - single,
            ITERATIVE_MARGIN,
            f"accuracy above a single step's, which leaves {single:.3f}",
        )

        both = (left & correct(run(MORE_STEPS_FACTOR * steps))).float().mean().item()
        checks.add(
            "more_steps",
            accuracy - both,
            MORE_STEPS_MARGIN,
            f"accuracy that {MORE_STEPS_FACTOR * steps} steps take from {steps}",
        )

        twice = correct(run(inside=wide)).float().mean().item()
        checks.larger_eps(twice - accuracy, LARGER_EPS_MARGIN, wide, threat)

        free = correct(run(inside=boundless)).float().mean().item()
        checks.unbounded(free, logits.shape[1], boundless)
        checks.gradient(goal.gradient(x, y)[2])

        if surrogate is not None:
            with eval_mode(surrogate):
                moved = correct(run(on=surrogate)).float().mean().item()
            checks.add(
                "transfer",
                accuracy - moved,
                TRANSFER_MARGIN,
                f"accuracy above the transfer attack's, which leaves {moved:.3f}",
            )

        if queries:
            searched = (left & correct(square(victim, x, y, threat, rng=rng, queries=queries))).float().mean().item()
            checks.add(
                "black_box",
                accuracy - searched,
                BLACK_BOX_MARGIN,
                f"accuracy that {queries} Square queries take from the attack's",
            )

        parts = torch.arange(len(x), device=x.device).split(small_batch(len(x)))
        small = joined(lambda at: attack(victim, x[at], y[at], threat, steps=steps, rng=rng.subset(at)), parts)
        differ = (correct(small) != left).float().mean().item()
        checks.add(
            "batch_size",
            differ,
            BATCH_MARGIN,
            f"samples whose outcome differs between batches of {len(x)} and {small_batch(len(x))}",
        )

    return checks.record()
