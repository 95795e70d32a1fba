"""Can this attack be trusted on a victim behind a (random) defence? The counterpart of `shared.attacks.sanity`, with its record format.

Accuracies are means over n resubmissions of every image, so one lucky draw decides nothing. Thresholds are written here, before anything is measured.
A failed check does not say what is wrong, but a robust accuracy whose checks fail is not evidence of robustness.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from shared.attacks.adaptive import AdaptiveAttack, Defence, Defended, predict, resubmit
from shared.attacks.goal import Goal, check_batch, check_rng
from shared.attacks.gradient import eval_mode
from shared.attacks.sanity import TOLERANCE, UNBOUNDED_MARGIN, ZERO_PIXELS, ZERO_SAMPLES, small_batch
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
    """{check: {"passed": bool, "value": float, "threshold": float, "detail": str}, …, "passed": bool}; a check passes if value ≤ threshold.

    attack: what the robust accuracy was measured with, gradient "exact"; BPDA and transfer are the same with another gradient. x, y and the rngs are
    for N samples, of which the first `images` are used. batch: images in an attack at a time. About seven times the work of the attack.
    Raises UserError for another gradient, an eps of 0, no images, and what the attack refuses.
    """
    check_batch(x, y)
    first = torch.arange(min(images, len(x)))
    check_rng(x, rng), check_rng(x, defence_rng)
    x, y, rng, defence_rng = x[:images], y[:images], rng.subset(first), defence_rng.subset(first)
    if len(x) == 0 or threat.eps == 0:
        raise UserError("sanity checks need at least one image and an eps above 0.")
    if attack.gradient != "exact":
        raise UserError(f"the attack to check has gradient {attack.gradient!r}: check the one with the exact gradient.")
    wide = Threat(threat.norm, min(2 * threat.eps, 1.0) if threat.norm == "linf" else 2 * threat.eps)
    boundless = Threat(threat.norm, 1.0 if threat.norm == "linf" else x[0].numel() ** 0.5)
    report: dict[str, dict] = {}

    def check(name: str, value: float, threshold: float, detail: str) -> None:
        report[name] = {
            "passed": bool(value <= threshold),
            "value": float(value),
            "threshold": float(threshold),
            "detail": detail,
        }

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

        outside = max(
            (threat.distance(x_adv, x).max() - threat.eps).item(), -x_adv.min().item(), x_adv.max().item() - 1
        )
        check("in_ball", outside, TOLERANCE, f"largest step outside the ball or [0, 1]; {says}")

        bpda = correct(run(gradient="bpda")).float().mean().item()
        moved = correct(run(gradient="none")).float().mean().item()
        check("exact_bpda", accuracy - bpda, EXACT_MARGIN, f"accuracy above BPDA's, which leaves {bpda:.3f}")
        check(
            "exact_transfer",
            accuracy - moved,
            EXACT_MARGIN,
            f"accuracy above the transfer attack's, which leaves {moved:.3f}",
        )
        check(
            "bpda_transfer",
            bpda - moved,
            BPDA_MARGIN,
            f"accuracy that BPDA leaves above the transfer attack's {moved:.3f}",
        )

        twice = correct(run(wide)).float().mean().item()
        check(
            "larger_eps",
            twice - accuracy,
            LARGER_EPS_MARGIN,
            f"accuracy at eps {wide.eps:.4g} above that at {threat.eps:.4g}",
        )

        free = correct(run(boundless)).float().mean().item()
        target = Defended(victim, defence, defence_rng.child("sanity"), draws=attack.draws)
        logits = Goal(target, "margin").logits(x)
        chance = 1 / logits.shape[1]
        check(
            "unbounded", free, chance + UNBOUNDED_MARGIN, f"accuracy at eps {boundless.eps:.4g}; chance is {chance:.3f}"
        )

        grad = Goal(target, target.loss(attack.loss, attack.average)).gradient(x, y)[2].flatten(1)
        check(
            "finite",
            (~grad.isfinite()).float().mean().item(),
            0.0,
            "pixel values whose gradient is not a number or infinite",
        )
        zero = grad == 0
        check(
            "zero_samples",
            zero.all(dim=1).float().mean().item(),
            ZERO_SAMPLES,
            "samples whose gradient is exactly zero everywhere",
        )
        check("zero_pixels", zero.float().mean().item(), ZERO_PIXELS, "pixel values whose gradient is exactly zero")

        size = small_batch(min(batch or len(x), len(x)))
        differ = (correct(run(at_once=size)) != left).float().mean().item()
        check(
            "batch_size",
            differ,
            BATCH_MARGIN,
            f"submissions that differ between attacks in batches of {min(batch or len(x), len(x))} and {size}",
        )

    return report | {"passed": all(entry["passed"] for entry in report.values())}
