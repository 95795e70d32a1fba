"""What the measurements say about each claim, judged on 95 % intervals.

A predicate holds when the whole interval supports it, fails when the whole interval contradicts it, and is undecided otherwise.
`monotone` holds when no consecutive difference contradicts the order and at least one supports it. `exceeds_all` holds when it is above every
rival, fails when it is clearly not above one of them; the difference to the strongest rival is shown.

| scale        | holds                              | fails             | undecided      |
|--------------|------------------------------------|-------------------|----------------|
| smoke        | no verdict (smoke), always                                              |
| cpu, photos  | direction holds                    | direction fails   | inconclusive   |
| paper        | reproduced, if the number agrees   | differs           | inconclusive   |

At paper scale a number agrees when the interval lies within value ± tolerance (or, with no tolerance stated, contains the value); it
differs when the interval lies outside. A number that nobody has read (`unknown`) can never be `reproduced`: the direction is reported.
Otherwise: `not testable here`, `not measured` (with the command), `gate failed: <name>`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.errors import UserError
from shared.experiment.claims import UNKNOWN, Claim, ClaimsFile
from shared.experiment.selection import Selected
from shared.experiment.wording import margin, words
from shared.metrics.intervals import Estimate

GOOD, BAD, UNSURE, NONE = "good", "bad", "unsure", "none"  # tone of a status: what colour its badge has
FRACTIONS = ("share", "fraction", "rate")  # units of numbers in [0, 1]


@dataclass(frozen=True)
class Verdict:
    """The outcome for one claim. `estimates` are in the claim's unit: one, or one per consecutive difference of a sequence."""

    claim: Claim
    status: str
    tone: str
    sentence: str
    estimates: tuple[Estimate, ...] = ()
    slugs: tuple[str, ...] = ()


def judge(file: ClaimsFile, results, claims: Sequence[Claim] | None = None) -> list[Verdict]:
    """A verdict per claim of `file` (or per claim of `claims`, e.g. `table.claims()`).

    `results` has `.paper`, `.scale`, `.failed_gates() -> names` and `.values(selector) -> Selected | None` (shared.report.data.Results).
    """
    return [_judge(claim, results) for claim in (file.claims if claims is None else claims)]


def _judge(claim: Claim, results) -> Verdict:
    scale = results.scale
    if scale == "smoke":
        return Verdict(claim, "no verdict (smoke)", NONE, "The smoke scale only shows that the code runs.")
    if scale not in claim.testable:
        return Verdict(claim, "not testable here", NONE, claim.reason_against(scale))
    if claim.predicate == "within" and claim.value == UNKNOWN:
        return Verdict(claim, "not testable here", NONE, "Nobody here has read the paper's number, so there is nothing to compare with.")
    found = [results.values(selector) for selector in claim.selectors]
    absent = _absent(claim, found)
    if absent:
        goal = "headline" if claim.headline else "reproduce"
        command = f"make {goal}-{results.paper}" + ("" if scale == "cpu" else f" SCALE={scale}")
        return Verdict(claim, "not measured", NONE, f"{absent} Run `{command}`.")
    slugs = tuple(dict.fromkeys(slug for selected in found for slug in selected.slugs))
    if claim.ratio is not None and found[1].mean().value <= 0:
        return Verdict(claim, "inconclusive", UNSURE, "There is no ratio: what would be divided by is not above zero.", (), slugs)
    estimates = _estimates(claim, found)
    failed = results.failed_gates()
    if failed:
        sentence = "The measurement stands, but a gate of the experiment failed, so it is no evidence for or against the paper."
        return Verdict(claim, f"gate failed: {', '.join(failed)}", UNSURE, sentence, estimates, slugs)
    holds, sentence = _test(claim, estimates)
    status, tone, addition = _status(claim, scale, holds, estimates)
    return Verdict(claim, status, tone, f"{sentence} {addition}".strip(), estimates, slugs)


def _absent(claim: Claim, found: list[Selected | None]) -> str:
    for selector, selected in zip(claim.selectors, found, strict=True):
        if selected is None:
            return f"Nothing measured fits {words(selector)}."
        if selected.missing:
            few = ", ".join([*selected.missing[:3], *(["…"] if selected.missing[3:] else [])])
            return f"{len(selected.missing)} of the cells it needs are missing ({few})."
    names = [set(selected.sets) for selected in found]
    for other in names[1:]:
        if claim.ratio is None and names[0] != other and names[0] & other:
            return f"The sides have different sets ({', '.join(sorted(names[0] ^ other))} on one side only)."
    return ""


def _estimates(claim: Claim, found: list[Selected]) -> tuple[Estimate, ...]:
    factor = unit_factor(found[0].unit, claim)
    if claim.sequence:
        return tuple(b.minus(a).scaled(factor) for a, b in pairwise(found))
    if claim.rivals:
        return tuple(found[0].minus(rival).scaled(factor) for rival in found[1:])
    if claim.minus is not None:
        return (found[0].minus(found[1]).scaled(factor),)
    if claim.ratio is not None:
        return (found[0].over(found[1]),)
    return (found[0].mean().scaled(factor),)


def unit_factor(measured: str, claim: Claim) -> float:
    """What a measured number is multiplied with to be in the claim's unit."""
    if claim.ratio is not None or measured == claim.unit:
        return 1.0
    if measured in FRACTIONS and claim.unit in ("%", "points"):
        return 100.0
    if {measured, claim.unit} <= {"%", "points"}:
        return 1.0
    raise UserError(f"claim {claim.id} is in {claim.unit!r}, but its measurements are in {measured!r}")


def _test(claim: Claim, estimates: tuple[Estimate, ...]) -> tuple[bool | None, str]:
    """Whether the predicate holds (None: undecided), and the sentence that says so."""
    if claim.predicate == "monotone":
        return _test_order(claim, estimates)
    if claim.predicate == "exceeds_all":
        return _test_rivals(claim, estimates)
    e = estimates[0]
    if claim.predicate in ("within", "equal_within"):
        centre = 0.0 if claim.predicate == "equal_within" else claim.value
        yes, no = _near(e, centre, claim.tolerance)
        there, elsewhere, edge = (f"{word} {centre:g} ± {claim.tolerance:g}" for word in ("inside", "outside", "an end of"))
    elif claim.predicate == "at_most":
        bar = claim.threshold
        yes, no, there, elsewhere, edge = e.high <= bar, e.low > bar, f"up to {bar:g}", f"above {bar:g}", f"{bar:g}"
    elif claim.predicate == "at_least":
        bar = claim.threshold
        yes, no, there, elsewhere, edge = e.low >= bar, e.high < bar, f"from {bar:g} up", f"below {bar:g}", f"{bar:g}"
    else:
        bar = margin(claim)
        yes, no, there, elsewhere, edge = e.low > bar, e.high <= bar, f"above {bar:g}", f"not above {bar:g}", f"{bar:g}"
    holds = True if yes else False if no else None
    where = f"includes {edge}" if holds is None else f"lies {there if holds else elsewhere}"
    return holds, f"The interval {where}."


def _test_order(claim: Claim, estimates: tuple[Estimate, ...]) -> tuple[bool | None, str]:
    steps = [e if claim.order == "increasing" else e.scaled(-1) for e in estimates]
    supporting, against = sum(s.low > 0 for s in steps), sum(s.high < 0 for s in steps)
    along = f"{claim.order} along {len(steps) + 1} points"
    if against:
        return False, f"Not {along}: {against} of {len(steps)} steps clearly the other way."
    if supporting:
        return True, f"{along.capitalize()}: {supporting} of {len(steps)} steps clearly so, none the other way."
    return None, f"None of {len(steps)} steps is larger than its interval."


def _test_rivals(claim: Claim, estimates: tuple[Estimate, ...]) -> tuple[bool | None, str]:
    bar = margin(claim)
    above, below = sum(e.low > bar for e in estimates), sum(e.high <= bar for e in estimates)
    names = [words(rival) for rival, e in zip(claim.rivals, estimates, strict=True) if e.low <= bar]
    few = ", ".join(names[:4]) + (", …" if names[4:] else "")
    if above == len(estimates):
        return True, f"Clearly above all {len(estimates)} rivals."
    sentence = f"Clearly above {above} of {len(estimates)} rivals; not above {few}."
    return (False if below else None), sentence


def _status(claim: Claim, scale: str, holds: bool | None, estimates: tuple[Estimate, ...]) -> tuple[str, str, str]:
    if holds is None:
        return "inconclusive", UNSURE, ""
    if scale != "paper":
        return ("direction holds", GOOD, "") if holds else ("direction fails", BAD, "")
    if not holds:
        return "differs", BAD, ""
    if claim.value is None or claim.predicate == "within":
        return "reproduced", GOOD, ""
    if claim.value == UNKNOWN:
        return "direction holds", GOOD, "Nobody here has read the paper's number, so nothing can be called reproduced."
    paper = f"the paper's {claim.value:g} {claim.unit}"
    if claim.predicate in ("monotone", "equal_within", "exceeds_all"):
        return "direction holds", GOOD, f"The number itself ({paper}) is not what this claim measures."
    e = estimates[0]
    if claim.tolerance is None:
        if e.low <= claim.value <= e.high:
            return "reproduced", GOOD, f"It contains {paper}."
        return "differs", BAD, f"The direction holds, but {paper} lies outside."
    inside, outside = _near(e, claim.value, claim.tolerance)
    band = f"{claim.tolerance:g} {claim.unit} of {paper}"
    if inside:
        return "reproduced", GOOD, f"It lies within {band}."
    if outside:
        return "differs", BAD, f"The direction holds, but it is not within {band}."
    return "inconclusive", UNSURE, f"The direction holds; whether it is within {band} is open."


def _near(e: Estimate, centre: float, tolerance: float) -> tuple[bool, bool]:
    """Whether the interval lies wholly inside, or wholly outside, centre ± tolerance (ends inclusive, up to rounding)."""
    slack = 1e-9 * max(1.0, abs(centre))
    low, high = centre - tolerance - slack, centre + tolerance + slack
    return low <= e.low and e.high <= high, e.high < low or e.low > high
