"""What is measured, what is missing, what the rest would take: `python -m shared.experiment.status PAPER --scale cpu …`

Takes the options of train and evaluate, measures nothing, and can be asked while they are at work. What is missing is
expected to take as long as those of its kind that are there: numbers of one kind, trainings and preparations (what is
made once for several numbers) of one class and weight.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from shared.errors import run_main
from shared.experiment.lab import Lab
from shared.experiment.scripts import further, is_there, open_run
from shared.experiment.step import Kept, Trained, closure


def status(paper: str, argv: Sequence[str]) -> str:
    """A line for the trainings and one for each kind of number."""
    _, scale, _, lab, numbers, looks = open_run(paper, __doc__, argv)
    everything = [*numbers, *further(looks)]
    made = [step for step in closure(n.step for n in everything) if isinstance(step, Kept)]
    lines = [f"{paper} at SCALE={scale}"]
    for what, some in (
        ("trainings", [step for step in made if isinstance(step, Trained)]),
        ("preparations", [step for step in made if not isinstance(step, Trained)]),
    ):
        lines += [_line(what, *_made(lab, some))] if some else []
    seconds: dict[str, list[float]] = defaultdict(list)
    planned: dict[str, int] = defaultdict(int)
    for n in everything:
        kind = str(n.tags["kind"])
        planned[kind] += 1
        if is_there(lab, n):
            seconds[kind].append(lab.store.read(n.name, lab.key(n.step)).seconds)
    known: list[float] = []
    unknown = 0
    for kind, count in planned.items():
        there = seconds[kind]
        rest = sum(there) / len(there) * (count - len(there)) if there else None
        if rest is None:
            unknown += count
        else:
            known.append(rest)
        lines.append(_line(kind, len(there), count, "unknown" if rest is None else _clock(rest)))
    left = _clock(sum(known)) if known else "unknown"
    lines.append(_line("all numbers", sum(map(len, seconds.values())), len(everything), left))
    if unknown and known:
        lines.append(f"  and {unknown} of kinds of which nothing is measured yet")
    return "\n".join(lines)


def _made(lab: Lab, steps: Sequence[Kept]) -> tuple[int, int, str]:
    """(how many are there, how many there are, what the rest would take)."""
    there = {step: lab.seconds(step) for step in steps if lab.is_made(step)}
    took: dict[object, list[float]] = defaultdict(list)
    for step, seconds in there.items():
        if seconds is not None:
            took[type(step), step.weight].append(seconds)
    left = [took[type(step), step.weight] for step in steps if step not in there]
    known = [sum(some) / len(some) for some in left if some]
    rest = f"at least {_clock(sum(known))}" if len(known) < len(left) else _clock(sum(known))
    return len(there), len(steps), rest if known else "unknown"


def _line(what: str, there: int, count: int, rest: str = "") -> str:
    missing = f", {count - there} missing" + (f": {rest} processor time" if rest else "") if there < count else ""
    return f"  {what:<14} {there:>5} of {count}{missing}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    run_main(lambda: print(status(sys.argv[1], sys.argv[2:]), flush=True))
