"""What the numbers mean, in words, by a rule declared before any model was judged. The first that holds counts.

1. no verdict     The strongest pictures, shown again as they are stored, give another figure: without noise more than
                  2 % of them are judged otherwise, with noise the interval of the paired difference excludes 0.
2. no verdict     The interval of the clean accuracy reaches down to chance, 1/K.
3. no verdict     There is a defence, and the attack leaves the undefended model more than half of its clean accuracy:
                  there was nothing to defend against.
4. broken         The worst case leaves at most 10 %.
5. not believed   There are signs of gradient masking: a sanity check of PGD or the cascade failed, or transfer or BPDA
                  leaves less, by over 5 points, than the gradient through the defence. It is an upper bound.
6. stands         None of these: the figure is what the attacks leave, and no check speaks against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.experiment.store import Measurement
from shared.metrics.intervals import Estimate, mean, paired_difference
from shared.report.panels import sanity_outcomes

CHANGED = 0.02
UNBROKEN = 0.5
BROKEN = 0.10
MASKED = 0.05
CAUSES = {
    "same": "noise that no seed fixes",
    "batches": "answers depend on the other pictures of a batch, as with batch statistics in train mode",
}
Numbers = Mapping[tuple[str, str], Measurement]  # (attack, judged), as in `shared.judge.page`


@dataclass(frozen=True)
class Verdict:
    """status: one of the five above; words: the sentence; robust: the worst case."""

    status: str
    words: str
    robust: Estimate


def percent(e: Estimate) -> str:
    """43 % [38, 48]"""
    return f"{100 * e.value:.0f} % [{100 * e.low:.0f}, {100 * e.high:.0f}]"


def judge(numbers: Numbers, classes: int, random: bool) -> Verdict:
    """By the rule. classes: K; random: whether two looks of the system at a picture may differ."""

    def of(attack: str, judged: str = "mean") -> Estimate:
        return mean([numbers[attack, judged].values], share=True)

    robust, clean, masked = of("worst"), of("clean"), signs(numbers)
    seen = f"gradient masking: {'; '.join(masked) or 'no sign'}."
    if why := changed(numbers, random):
        return Verdict("no verdict", f"No verdict: {why}", robust)
    if clean.low <= 1 / classes:
        words = f"No verdict: the clean accuracy, {percent(clean)}, is not above chance, {100 / classes:.0f} %."
        return Verdict("no verdict", words, robust)
    if ("transfer", "bare") in numbers:
        bare, left = of("clean", "bare"), of("transfer", "bare")
        if left.value > UNBROKEN * bare.value:
            words = (
                f"Say nothing: the attack did not break the undefended model, which keeps {percent(left)} of "
                f"{percent(bare)}; take a larger ε or a stronger attack."
            )
            return Verdict("no verdict", words, robust)
    if robust.value <= BROKEN:
        return Verdict("broken", f"Broken: {percent(robust)} is left; {seen}", robust)
    if masked:
        words = f"Robustness of {percent(robust)} is an upper bound and not to be believed; {seen}"
        return Verdict("not believed", words, robust)
    return Verdict("stands", f"Robustness of {percent(robust)} stands; {seen}", robust)


def signs(numbers: Numbers) -> list[str]:
    """What speaks for gradient masking, a phrase each."""
    out = []
    for (attack, _), m in numbers.items():
        if attack == "bpda":  # a wrong gradient by design: its checks are shown beside it
            continue
        failed = [name for name, (passed, _) in sanity_outcomes(m.sanity or {}).items() if passed is False]
        if failed:
            out.append(f"of the checks of {attack} failed {', '.join(failed)}")
    best = min(numbers[attack, "mean"].value for attack in ("pgd", "cascade"))
    for weaker in ("bpda", "transfer"):
        left = numbers[weaker, "mean"].value if (weaker, "mean") in numbers else best
        if best - left > MASKED:
            out.append(f"{weaker} leaves {left:.0%}, the gradient through the defence {best:.0%}")
    return out


def changed(numbers: Numbers, random: bool) -> str:
    """Why the figure is another when measured again, "" where it is the same. Rounding to 8 bits is told beside it."""
    for how, cause in CAUSES.items():
        m = numbers["worst", how]
        before, after = m.extra["before"], m.values
        difference = paired_difference([after], [before], share=True)
        apart = not difference.low <= 0 <= difference.high
        if apart if random else (before != after).mean() > CHANGED:
            first, then = f"{before.mean():.1%}", f"{after.mean():.1%}"
            return f"the strongest pictures gave {first} and give {then} when shown again: {cause}."
    return ""
