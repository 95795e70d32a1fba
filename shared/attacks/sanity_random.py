"""Can this attack be trusted on a victim behind a (random) defence? The counterpart of `shared.attacks.sanity`, with
its record format.

Accuracies are means over n resubmissions of every image, so one lucky draw decides nothing. Thresholds are written
here, before anything is measured. A failed check does not say what is wrong, but a robust accuracy whose checks fail is
not evidence of robustness.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from shared.attacks.adaptive import AdaptiveAttack, Defence, Defended, predict, resubmit
from shared.attacks.goal import Goal, check_batch, check_rng
from shared.attacks.gradient import eval_mode
from shared.attacks.record import Checks
from shared.attacks.sanity import small_batch
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.rng import SampleRng

IMAGES = 32  # how many of the images given are used
DRAWS = 8  # resubmissions of each
EXACT_MARGIN = 0.05  # accuracy the exact gradient may leave above BPDA's, and above the transfer attack's
BPDA_MARGIN = 0.05  # accuracy BPDA may leave above the transfer attack's
LARGER_EPS_MARGIN = 0.05  # accuracy by which twice the eps may be weaker
BATCH_MARGIN = 0.05  # share of submissions whose outcome may depend on the attack's batch size


def check_adaptive(
    victim: nn.Module,
    defence: Defence,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    attack: AdaptiveAttack,
    *,
    rng: SampleRng,
    defence_rng: SampleRng,
    n: int = DRAWS,
    images: int = IMAGES,
    batch: int | None = None,
) -> dict:
    """{check: {"passed": bool, "value": float, "threshold": float, "detail": str}, …, "passed": bool}; a check passes
    if value ≤ threshold.

    attack: what the robust accuracy was measured with, gradient "exact"; BPDA and transfer are the same with another
    gradient. x, y and the rngs are for N samples, of which the first `images` are used. batch: images in an attack at a
    time. About seven times the work of the attack. Raises UserError for another gradient, an eps of 0, no images, and
    what the attack refuses.
    """
    check_batch(x, y)
    first = torch.arange(min(images, len(x)))
    check_rng(x, rng), check_rng(x, defence_rng)
    x, y, rng, defence_rng = x[:images], y[:images], rng.subset(first), defence_rng.subset(first)
    if len(x) == 0 or threat.eps == 0:
        raise UserError("sanity checks need at least one image and an eps above 0.")
    if attack.gradient != "exact":
        raise UserError(f"the attack to check has gradient {attack.gradient!r}: check the one with the exact gradient.")
    wide, boundless, checks = threat.doubled(), threat.boundless(x), Checks()

    def correct(submitted: Tensor) -> Tensor:
        """(N, n) bool."""
        return resubmit(predict(victim), defence, submitted, defence_rng, n, batch or 256) == y[:, None]

    def run(inside: Threat = threat, at_once: int | None = batch, **changes) -> Tensor:
        with_changes = replace(attack, **changes)
        return with_changes(victim, defence, x, y, inside, rng=rng, defence_rng=defence_rng, batch=at_once)

    with eval_mode(victim):
        control = correct(x).float().mean().item()
        x_adv = run()
        left = correct(x_adv)
        accuracy = left.float().mean().item()
        says = f"{control:.3f} without an attack, {accuracy:.3f} attacked, mean of {n} passes of {len(x)} images"

        checks.in_ball(x_adv, x, threat, says)

        bpda = correct(run(gradient="bpda")).float().mean().item()
        moved = correct(run(gradient="none")).float().mean().item()
        checks.add("exact_bpda", accuracy - bpda, EXACT_MARGIN, f"accuracy above BPDA's, which leaves {bpda:.3f}")
        checks.add(
            "exact_transfer",
            accuracy - moved,
            EXACT_MARGIN,
            f"accuracy above the transfer attack's, which leaves {moved:.3f}",
        )
        checks.add(
            "bpda_transfer",
            bpda - moved,
            BPDA_MARGIN,
            f"accuracy that BPDA leaves above the transfer attack's {moved:.3f}",
        )

        twice = correct(run(wide)).float().mean().item()
        checks.larger_eps(twice - accuracy, LARGER_EPS_MARGIN, wide, threat)

        free = correct(run(boundless)).float().mean().item()
        target = Defended(victim, defence, defence_rng.child("sanity"), draws=attack.draws)
        checks.unbounded(free, Goal(target, "margin").logits(x).shape[1], boundless)

        grad = Goal(target, target.loss(attack.loss, attack.average)).gradient(x, y)[2]
        checks.add(
            "finite",
            (~grad.isfinite()).float().mean().item(),
            0.0,
            "pixel values whose gradient is not a number or infinite",
        )
        checks.gradient(grad)

        size = small_batch(min(batch or len(x), len(x)))
        differ = (correct(run(at_once=size)) != left).float().mean().item()
        checks.add(
            "batch_size",
            differ,
            BATCH_MARGIN,
            f"submissions that differ between attacks in batches of {min(batch or len(x), len(x))} and {size}",
        )

    return checks.record()
