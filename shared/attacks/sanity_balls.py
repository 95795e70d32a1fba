"""Can this attack be trusted? What two more runs tell, for attacks that cost many times PGD.

Records and thresholds are those of `shared.attacks.sanity` and `shared.attacks.sanity_random`.
"""

from collections.abc import Callable

from torch import Tensor

from shared.attacks.record import Checks
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
    wide, boundless, checks = threat.doubled(), threat.boundless(x), Checks()
    x_adv = attack(threat)
    left, twice, free = (right(found).float().mean().item() for found in (x_adv, attack(wide), attack(boundless)))
    checks.in_ball(x_adv, x, threat, f"{left:.3f} left, {len(x)} images")
    checks.larger_eps(twice - left, LARGER_EPS_MARGIN, wide, threat)
    checks.unbounded(free, classes, boundless)
    return checks.record()
