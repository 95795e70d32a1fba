"""Claims and numbers in words: how a claim is tested, an estimate with its unit, a number for people."""

import math

from shared.claims.claims import Claim
from shared.metrics.intervals import Estimate

_NAMED = {"method", "attack", "role", "set", "group", "variant"}  # tags whose value says what it is


def how_tested(claim: Claim) -> str:
    """In words: what is compared with what, e.g. `pmg_aft − tecoa; pgd10, zero_shot, main; above 0`."""
    if claim.how:
        return claim.how
    other, sign = (claim.ratio, "/") if claim.ratio is not None else (claim.minus or {}, "−")
    sides = [f"{words({k: claim.quantity.get(k, 'any')})} {sign} {tag(v)}" for k, v in other.items()]
    shared = {k: v for k, v in claim.quantity.items() if k not in other}
    rest = words(shared) if shared else ""
    unit = "" if claim.unit == "ratio" else f" {claim.unit}"
    test = {
        "greater": lambda: f"above {margin(claim):g}",
        "at_least": lambda: f"at least {claim.threshold:g}{unit}",
        "at_most": lambda: f"at most {claim.threshold:g}{unit}",
        "within": lambda: f"the paper's number ± {claim.tolerance:g}{unit}",
        "equal_within": lambda: f"equal within ± {claim.tolerance:g}{unit}",
        "monotone": lambda: f"{claim.order} along {_steps(claim)}",
        "exceeds_all": lambda: (
            f"above each of {', '.join(map(words, claim.rivals))}{f' by {claim.margin:g}' if claim.margin else ''}"
        ),
    }[claim.predicate]()
    matters = f"no difference: within ± {claim.equivalence:g}{unit}" if claim.equivalence else ""
    return "; ".join(filter(None, [*sides, rest, test, matters]))


def _steps(claim: Claim) -> str:
    names = {name for step in claim.sequence for name in step}
    if len(names) == 1 and all(len(step) == 1 for step in claim.sequence):
        name = names.pop()
        return f"{name} = {', '.join(tag(step[name]) for step in claim.sequence)}"
    return " → ".join(words(step) for step in claim.sequence)


def margin(claim: Claim) -> float:
    """What `greater` compares with: the stated margin, else 1 for a ratio and 0 for a difference."""
    return claim.margin if claim.margin is not None else 1.0 if claim.ratio is not None else 0.0


def show(e: Estimate, claim: Claim) -> tuple[str, str]:
    """(value with its unit, interval): `+5.21 points`, `[3.90, 6.40]`; differences carry their sign, ratios a ×."""
    digits = decimals(e.value, claim.unit)
    value = number(e.value, digits, plus=claim.minus is not None or bool(claim.rivals))
    return with_unit(value, claim.unit), f"[{number(e.low, digits)}, {number(e.high, digits)}]"


def detectable(e: Estimate, claim: Claim) -> str:
    """The smallest difference that could have been seen (`Estimate.detectable`), with its unit; of a ratio, whose
    interval is lopsided, on its logarithm."""
    if claim.ratio is None:
        return with_unit(number(e.detectable, decimals(e.detectable, claim.unit)), claim.unit)
    if e.low <= 0 or not math.isfinite(e.high):
        return ""
    logarithm = Estimate(0.0, math.log(e.low / e.value), math.log(e.high / e.value), e.n)
    return with_unit(number(math.exp(logarithm.detectable), 2), claim.unit)


def with_unit(value: str, unit: str) -> str:
    """`4.99 points`, `1.43×`."""
    return f"{value}×" if unit == "ratio" else f"{value} {unit}"


def decimals(x: float, unit: str) -> int:
    """Two for percent, points and ratios; else what gives three significant digits."""
    if unit in ("%", "points", "ratio") or x == 0 or math.isinf(x):
        return 2
    return max(0, 2 - math.floor(math.log10(abs(x))))


def number(x: float, digits: int, plus: bool = False) -> str:
    """A number for people: a true minus sign, no minus zero, a plus sign where `plus` asks for one."""
    text = f"{x:.{digits}f}" if math.isfinite(x) else "∞" if x > 0 else "-∞"
    if text.startswith("-") and not text.strip("-0."):
        text = text[1:]
    return ("+" if plus and x > 0 and text.strip("0.") else "") + text.replace("-", "−")


def words(selector) -> str:
    """A selector: `tecoa, pgd10, eps 1`."""
    return (
        ", ".join(f"{v}" if k in _NAMED and isinstance(v, str) else f"{k} {tag(v)}" for k, v in selector.items())
        or "everything"
    )


def tag(wanted: object) -> str:
    """One wanted value of a selector."""
    if isinstance(wanted, dict):
        return f"not {tag(wanted['not'])}"
    return " or ".join(map(str, wanted)) if isinstance(wanted, list | tuple) else str(wanted)
