"""What sanity checks leave: {check: {"passed": bool, "value": float, "threshold": float, "detail": str}, …, "passed":
bool}.

A check passes if value ≤ threshold; a value that is no number passes none.
"""

from torch import Tensor

from shared.attacks.threat import Threat

TOLERANCE = 1e-6  # of the distance, in pixel units
UNBOUNDED_MARGIN = 0.05  # accuracy above chance, 1/K, that an unbounded attack may leave
ZERO_SAMPLES = 0.01  # share of samples whose gradient is exactly zero everywhere
ZERO_PIXELS = 0.05  # share of pixel values whose gradient is exactly zero


class Checks:
    """Checks as they are made, and the record of them."""

    def __init__(self) -> None:
        self._made: dict[str, dict] = {}

    def add(self, name: str, value: float, threshold: float, detail: str) -> None:
        """One check more."""
        passed = bool(value <= threshold)
        self._made[name] = {
            "passed": passed,
            "value": float(value),
            "threshold": float(threshold),
            "detail": detail,
        }

    def in_ball(self, x_adv: Tensor, x: Tensor, threat: Threat, says: str) -> None:
        """Whether pictures (N, …) are in B(x)."""
        too_far = (threat.distance(x_adv, x).max() - threat.eps).item()
        outside = max(too_far, -x_adv.min().item(), x_adv.max().item() - 1)
        self.add("in_ball", outside, TOLERANCE, f"largest step outside the ball or [0, 1]; {says}")

    def gradient(self, gradient: Tensor) -> None:
        """Whether the gradient (N, …) of the pixels is there."""
        zero = (gradient == 0).flatten(1)
        everywhere = zero.all(dim=1).float().mean().item()
        self.add("zero_samples", everywhere, ZERO_SAMPLES, "samples whose gradient is exactly zero everywhere")
        values = zero.float().mean().item()
        self.add("zero_pixels", values, ZERO_PIXELS, "pixel values whose gradient is exactly zero")

    def larger_eps(self, rise: float, margin: float, wide: Threat, threat: Threat, what: str = "accuracy") -> None:
        """Whether an attack in a wider ball leaves more: `rise` is what it leaves above the attack."""
        self.add("larger_eps", rise, margin, f"{what} at eps {wide.eps:.4g} above that at {threat.eps:.4g}")

    def unbounded(self, left: float, classes: int, boundless: Threat) -> None:
        """Whether an attack without a bound leaves more accuracy than chance, 1/K."""
        chance = 1 / classes
        detail = f"accuracy at eps {boundless.eps:.4g}; chance is {chance:.3f}"
        self.add("unbounded", left, chance + UNBOUNDED_MARGIN, detail)

    def record(self) -> dict:
        """Of all that were made."""
        return self._made | {"passed": all(entry["passed"] for entry in self._made.values())}
