"""What the measurements say about each claim, each judged at 95 %.

A predicate holds when the interval lies beyond the bar, fails when it lies on the other side, and is undecided
otherwise; an end that is the bar itself, up to rounding, decides nothing. So a verdict is a two-sided test, and
`Verdict.p` its p-value: p <= 0.05 where there is a decision.

* `within`, `equal_within`: two one-sided tests at 5 % each (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680):
  they hold when the 90 % interval lies inside, and fail when the 95 % interval lies outside. A declared `equivalence` δ
  is tested so too, where the direction stays open: "no difference" is decided, and says that there is none of δ or
  more. Of R rivals none may be ahead by δ, each at 5 %, and one must be behind by less, at 5 %/R.
* `exceeds_all` holds when every difference is above the bar, each at 95 % (an intersection-union test), and fails when
  one of R is below it at 1 − 5 %/R (Bonferroni). `monotone` holds when one of R steps supports the order and fails when
  one contradicts it, each at 1 − 5 %/R.
* Where a run goes on at open claims (`BUDGET=`), every interval is as wide as all looks need together (`looks`). The
  first look that decides a claim is the one that counts, whatever is measured later.
* Over all tested claims of a paper, `Verdict.survives` says which decisions remain when 5 % of the decisions may be
  wrong (Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57, 289-300).

| scale        | holds                              | fails             | undecided      | equivalent to the bar |
|--------------|------------------------------------|-------------------|----------------|-----------------------|
| smoke        | no verdict (smoke), always                                                                      |
| cpu, photos  | direction holds                    | direction fails   | inconclusive   | no difference         |
| evening      | direction holds at reduced budget  | … fails at …      | inconclusive   | no difference         |
| paper        | reproduced, if the number agrees   | differs           | inconclusive   | no difference         |

At paper scale a number agrees when the interval lies within value ± tolerance (or, with no tolerance stated, contains
the value); it differs when the interval lies outside. A number that nobody has read (`unknown`) can never be
`reproduced`: the direction is reported. Otherwise: `not testable here`, `not measured` (with the command),
`gate failed: <name>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from shared.claims.claims import EVENING, UNKNOWN, Claim, ClaimsFile
from shared.claims.looks import repeated
from shared.claims.selection import FRACTIONS, Selected
from shared.claims.wording import detectable, margin, number, words
from shared.errors import UserError
from shared.metrics.intervals import Estimate

GOOD, BAD, UNSURE, NONE = "good", "bad", "unsure", "none"  # tone of a status: what colour its badge has
ERROR = 0.05  # of each verdict, and the share of wrong decisions that `survives` allows
EQUIVALENT = "no difference"
LEAST_N, LEAST_SEEDS = 96, 3  # behind a headline claim
FURTHER = (2, 4, 8, 16)  # times the evidence; beyond the last there is hardly an effect to find


@dataclass(frozen=True)
class Verdict:
    """The outcome for one claim. `estimates` are in the claim's unit: one, or one per consecutive difference of a
    sequence.

    `p`: of the test behind it, None where nothing was tested. `survives`: whether the decision remains among all those
    of its paper. `readings`: the verdicts under each reading, by name, where the claim has several; the first is this.
    `look`: which of `looks` this is. `needs`: of `FURTHER`, how many times the examples, or the seeds where these vary,
    would decide an open claim if its estimates stayed as they are; None where it is decided, or none of them would.
    """

    claim: Claim
    status: str
    tone: str
    sentence: str
    estimates: tuple[Estimate, ...] = ()
    slugs: tuple[str, ...] = ()
    p: float | None = None
    survives: bool = False
    readings: Mapping[str, "Verdict"] = field(default_factory=dict)
    look: int = 1
    looks: int = 1
    needs: int | None = None

    @property
    def decided(self) -> bool:
        """Whether it was tested, and is no longer open."""
        return self.p is not None and self.tone != UNSURE

    @property
    def depends(self) -> str:
        """In words, which reading says what, where they do not agree; "" where they do (or only one was tested)."""
        tested = {name.replace("_", " "): v.status for name, v in self.readings.items() if v.p is not None}
        said = ", ".join(f"{name}: {status}" for name, status in tested.items())
        return f"Depends on the reading ({said})." if len(set(tested.values())) > 1 else ""

    @property
    def estimate(self) -> Estimate | None:
        """The one that stands for all: of rivals the smallest difference, of a sequence the most precise step."""
        rank = "half_width" if self.claim.sequence else "value"
        return min(self.estimates, key=lambda e: getattr(e, rank), default=None)

    @property
    def seen(self) -> str:
        """The smallest difference that could have been seen with 80 % power, with its unit; "" if not known."""
        return detectable(self.estimate, self.claim) if self.estimate else ""

    @property
    def short_of(self) -> str:
        """What a headline claim that was tested falls short of; "" where its evidence is enough."""
        if self.p is None or not self.claim.headline:
            return ""
        return shortfall(self.estimate.n, self.estimate.seeds)


@dataclass(frozen=True)
class _Outcome:
    """holds: None where undecided; p: of the better supported answer; equivalent: the difference is smaller than what
    would matter."""

    holds: bool | None
    p: float
    sentence: str
    equivalent: bool = False


def judge(file: ClaimsFile, results: Any, claims: Sequence[Claim] | None = None) -> list[Verdict]:
    """A verdict per claim of `file` (or per claim of `claims`, e.g. `table.claims()`).

    `results` has `.paper`, `.scale`, `.failed_gates() -> names`, `.left_out(selectors) -> names`,
    `.values(selector) -> Selected | None`, `.looks`, how many there are at most, and `.views(claim.id)`, the results
    at each of them (shared.report.data.Results).
    """
    verdicts = [_read(claim, results) for claim in (file.claims if claims is None else claims)]
    ps = sorted(verdict.p for verdict in verdicts if verdict.p is not None)
    largest = max(
        (p for rank, p in enumerate(ps, 1) if p <= ERROR * rank / len(ps)), default=-1.0
    )  # Benjamini & Hochberg's
    return [replace(v, survives=v.decided and v.p <= largest) for v in verdicts]


def shortfall(n: int, seeds: int) -> str:
    """Whether n examples and so many seeds are too few for a headline claim: "n < 96, one seed", "2 seeds", ""."""
    few = f"{seeds} seeds" if seeds > 1 else "one seed"
    return ", ".join([f"n < {LEAST_N}"] * (n < LEAST_N) + [few] * (seeds < LEAST_SEEDS))


def by_chance(verdicts: Sequence[Verdict]) -> str:
    """How many verdicts may be wrong by chance, and how many are left when that is accounted for; "" if none was
    tested."""
    tested = [verdict for verdict in verdicts if verdict.p is not None]
    if not tested:
        return ""
    decided = sum(verdict.decided for verdict in tested)
    wrong, left = number(ERROR * len(tested), 1), sum(verdict.survives for verdict in tested)
    short = sum(bool(verdict.short_of) for verdict in tested)
    thin = f"{short} headline claims rest on fewer than {LEAST_N} examples or {LEAST_SEEDS} seeds. " if short else ""
    return (
        f"{len(tested)} claims tested at 95 % each: up to {wrong} wrong verdicts are to be expected by chance. "
        f"{decided} are decided; {left} of them survive Benjamini-Hochberg at 5 % over the claims of their paper "
        "(marked °). "
        f'{thin}"Would show" is the smallest difference that would have been seen in four runs of five.'
    )


def _read(claim: Claim, results: Any) -> Verdict:
    """The verdict under the first reading, with those under all, at the first look that decides it or the last."""
    for look, view in enumerate(results.views(claim.id), 1):
        readings = {name: _judge(one, view) for name, one in claim.variants.items()}
        first = replace(next(iter(readings.values())), look=look, looks=results.looks)
        if first.decided:
            break
    if len(readings) == 1:
        return first
    first = replace(first, readings=readings)
    return replace(first, sentence=" ".join(filter(None, [first.sentence, first.depends])))


def _judge(claim: Claim, results: Any) -> Verdict:
    scale = results.scale
    if scale == "smoke":
        return Verdict(claim, "no verdict (smoke)", NONE, "The smoke scale only shows that the code runs.")
    if not claim.is_tested(scale):
        return Verdict(claim, "not testable here", NONE, claim.reason_against(scale))
    if not claim.is_testable(scale):
        return Verdict(
            claim,
            "not testable here",
            NONE,
            "Nobody here has read the paper's number, so there is nothing to compare with.",
        )
    found = [results.values(selector) for selector in claim.selectors]
    out = ", ".join(results.left_out(claim.selectors))
    if out and not all(found):
        sentence = "What it needs has failed a gate of its own: shown apart, no evidence for or against the paper."
        return Verdict(claim, f"gate failed: {out}", UNSURE, sentence)
    absent = _absent(claim, found)
    if absent:
        goal = "headline" if claim.headline else "reproduce"
        command = f"make {goal}-{results.paper}" + ("" if scale == "cpu" else f" SCALE={scale}")
        return Verdict(claim, "not measured", NONE, f"{absent} Run `{command}`.")
    slugs = tuple(dict.fromkeys(slug for selected in found for slug in selected.slugs))
    if claim.ratio is not None and (found[0].mean().value < 0 or found[1].mean().value <= 0):
        sentence = "There is no ratio: what would be divided is below zero, or by what is not above zero."
        return Verdict(claim, "inconclusive", UNSURE, sentence, (), slugs)
    estimates = tuple(repeated(e, results.looks) for e in _estimates(claim, found))
    failed = results.failed_gates()
    if failed:
        sentence = "The measurement stands, but a gate of the experiment failed, so it is no evidence for or against the paper."
        return Verdict(claim, f"gate failed: {', '.join(failed)}", UNSURE, sentence, estimates, slugs)
    outcome = _test(claim, estimates)
    status, tone, addition = _status(claim, scale, outcome, estimates)
    sentence = f"{outcome.sentence} {addition}".strip() + (f" Left out, for a failed gate: {out}." if out else "")
    needs = _needs(claim, scale, estimates) if tone == UNSURE else None
    return Verdict(claim, status, tone, sentence, estimates, slugs, outcome.p, needs=needs)


def _needs(claim: Claim, scale: str, estimates: tuple[Estimate, ...]) -> int | None:
    for times in FURTHER:
        expected = tuple(e.with_evidence(times) for e in estimates)
        if _status(claim, scale, _test(claim, expected), expected)[1] != UNSURE:
            return times
    return None


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


def _test(claim: Claim, estimates: tuple[Estimate, ...]) -> _Outcome:
    if claim.predicate == "monotone":
        return _test_order(claim, estimates)
    if claim.predicate == "exceeds_all":
        return _test_rivals(claim, estimates)
    if claim.predicate in ("within", "equal_within"):
        return _test_near(claim, estimates[0])
    return _test_bar(claim, estimates[0])


def _test_bar(claim: Claim, e: Estimate) -> _Outcome:
    bar = claim.threshold if claim.predicate in ("at_least", "at_most") else margin(claim)
    above, below = _beyond(e, bar)
    holds = (below if claim.predicate == "at_most" else above) if above or below else None
    where = f"lies {'above' if above else 'below'}" if above or below else "includes"
    sentence = f"The interval {where} {bar:g}."
    if holds is None and (p := _equivalent(claim, [e])) is not None:
        return _Outcome(None, p, f"{sentence} {_small(claim, e)}", True)
    return _Outcome(holds, e.p_value(bar), sentence)


def _test_near(claim: Claim, e: Estimate) -> _Outcome:
    centre = 0.0 if claim.predicate == "equal_within" else claim.value
    band = f"{centre:g} ± {claim.tolerance:g}"
    inside, outside = _near(e, centre, claim.tolerance)
    if inside:
        return _Outcome(True, _near_p(e, centre, claim.tolerance), f"The 90 % interval lies inside {band}.")
    bar = centre + claim.tolerance if e.value > centre else centre - claim.tolerance
    if outside:
        return _Outcome(False, e.p_value(bar), f"The interval lies outside {band}.")
    beyond = abs(e.value - centre) > claim.tolerance
    return _Outcome(
        None,
        e.p_value(bar) if beyond else _near_p(e, centre, claim.tolerance),
        f"The 90 % interval includes an end of {band}.",
    )


def _test_order(claim: Claim, estimates: tuple[Estimate, ...]) -> _Outcome:
    steps = [e if claim.order == "increasing" else e.scaled(-1) for e in estimates]
    level = 1 - ERROR / len(steps)
    sides = [_beyond(step, 0.0, level) for step in steps]
    supporting, against = (sum(side[k] for side in sides) for k in (0, 1))
    along = f"{claim.order} along {len(steps) + 1} points"
    p_for, p_against = (
        min([1.0, *(len(steps) * step.p_value(0.0) for step in steps if sign * step.value > 0)]) for sign in (1, -1)
    )
    if against:
        return _Outcome(False, p_against, f"Not {along}: {against} of {len(steps)} steps clearly the other way.")
    if supporting:
        return _Outcome(
            True, p_for, f"{along.capitalize()}: {supporting} of {len(steps)} steps clearly so, none the other way."
        )
    return _Outcome(None, min(p_for, p_against), f"None of {len(steps)} steps is larger than its interval.")


def _test_rivals(claim: Claim, estimates: tuple[Estimate, ...]) -> _Outcome:
    bar = margin(claim)
    above = [_beyond(e, bar)[0] for e in estimates]
    below = any(_beyond(e, bar, 1 - ERROR / len(estimates))[1] for e in estimates)
    if all(above):
        return _Outcome(True, max(e.p_value(bar) for e in estimates), f"Clearly above all {len(estimates)} rivals.")
    names = [words(rival) for rival, clear in zip(claim.rivals, above, strict=True) if not clear]
    few = ", ".join(names[:4]) + (", …" if names[4:] else "")
    sentence = f"Clearly above {sum(above)} of {len(estimates)} rivals; not above {few}."
    p_below = min([1.0, *(len(estimates) * e.p_value(bar) for e in estimates if e.value < bar)])
    if below:
        return _Outcome(False, p_below, sentence)
    closest = min(estimates, key=lambda e: e.value)
    if (p := _equivalent(claim, estimates)) is not None:
        return _Outcome(None, p, f"{sentence} {_small(claim, closest)}", True)
    p_above = max(e.p_value(bar) for e in estimates) if closest.value > bar else 1.0
    return _Outcome(None, min(p_below, p_above), sentence)


def _status(claim: Claim, scale: str, outcome: _Outcome, estimates: tuple[Estimate, ...]) -> tuple[str, str, str]:
    if outcome.equivalent:
        return EQUIVALENT, BAD, ""
    if outcome.holds is None:
        return "inconclusive", UNSURE, ""
    if scale != "paper":
        at = " at reduced budget" if scale == EVENING else ""
        return (f"direction holds{at}", GOOD, "") if outcome.holds else (f"direction fails{at}", BAD, "")
    if not outcome.holds:
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


def _beyond(e: Estimate, bar: float, level: float = 1 - ERROR) -> tuple[bool, bool]:
    """Whether the interval lies wholly above, or wholly below, `bar`; an end that is `bar` up to rounding does not."""
    slack = 1e-9 * max(1.0, abs(bar), abs(e.value))
    low, high = e.interval(level)
    return low > bar + slack, high < bar - slack


def _near(e: Estimate, centre: float, tolerance: float) -> tuple[bool, bool]:
    """Whether the 90 % interval lies inside, or the 95 % interval outside, centre ± tolerance."""
    inside = _beyond(e, centre - tolerance, 1 - 2 * ERROR)[0] and _beyond(e, centre + tolerance, 1 - 2 * ERROR)[1]
    return inside, _beyond(e, centre + tolerance)[0] or _beyond(e, centre - tolerance)[1]


def _near_p(e: Estimate, centre: float, tolerance: float) -> float:
    """The larger p of the two one-sided tests that e lies inside centre ± tolerance; 1 if its value does not."""
    if abs(e.value - centre) >= tolerance:
        return 1.0
    return max(e.p_value(centre - tolerance), e.p_value(centre + tolerance)) / 2


def _equivalent(claim: Claim, estimates: Sequence[Estimate]) -> float | None:
    """p of "the smallest of these differences is the bar ± δ"; None where that is not shown, or no δ is declared."""
    if claim.equivalence is None:
        return None
    least, most, count = margin(claim) - claim.equivalence, margin(claim) + claim.equivalence, len(estimates)
    small = [e for e in estimates if _beyond(e, most, 1 - 2 * ERROR / count)[1]]
    if not small or not all(_beyond(e, least, 1 - 2 * ERROR)[0] for e in estimates):
        return None
    return max(*(e.p_value(least) for e in estimates), count * min(e.p_value(most) for e in small)) / 2


def _small(claim: Claim, e: Estimate) -> str:
    low, high = e.interval(1 - 2 * ERROR)
    return f"No difference of {claim.equivalence:g} {claim.unit} or more: the 90 % interval is [{number(low, 2)}, {number(high, 2)}]."
