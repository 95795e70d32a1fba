"""Can this attack be trusted? What two more runs tell, for attacks that cost many times PGD.

Records and thresholds are those of `shared.attacks.sanity` and `shared.attacks.sanity_random`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from shared.attacks.sanity import TOLERANCE, UNBOUNDED_MARGIN
from shared.attacks.sanity_random import LARGER_EPS_MARGIN
from shared.attacks.threat import Threat


def check_balls(
    attack: Callable[[Threat], Tensor], right: Callable[[Tensor], Tensor], x: Tensor, threat: Threat, classes: int
) -> dict:
    """{check: {"passed": bool, "value": float, "threshold": float, "detail": str}, …, "passed": bool}, of three checks.

    in_ball      the attack's pictures are in the ball and in [0, 1]
    larger_eps   in a ball of twice the radius it leaves no more
    unbounded    without a bound it leaves no more than chance, 1/K

    attack: a ball -> x_adv (N, C, H, W) for the pictures x. right: pictures -> (N, draws) bool. classes: K.
    """
    wide, boundless = (
        Threat(threat.norm, min(radius, 1.0) if threat.norm == "linf" else radius)
        for radius in (2 * threat.eps, x[0].numel() ** 0.5)
    )
    x_adv = attack(threat)
    left, twice, free = (right(found).float().mean().item() for found in (x_adv, attack(wide), attack(boundless)))
    outside = torch.stack([threat.distance(x_adv, x).max() - threat.eps, -x_adv.min(), x_adv.max() - 1]).max().item()
    said = {
        "in_ball": (outside, TOLERANCE, f"largest step outside the ball or [0, 1]; {left:.3f} left, {len(x)} images"),
        "larger_eps": (
            twice - left,
            LARGER_EPS_MARGIN,
            f"accuracy at eps {wide.eps:.4g} above that at {threat.eps:.4g}",
        ),
        "unbounded": (
            free,
            1 / classes + UNBOUNDED_MARGIN,
            f"accuracy at eps {boundless.eps:.4g}; chance is {1 / classes:.3f}",
        ),
    }
    report = {
        name: {"passed": bool(value <= bar), "value": value, "threshold": bar, "detail": detail}
        for name, (value, bar, detail) in said.items()
    }
    return report | {"passed": all(entry["passed"] for entry in report.values())}
