"""What is measured, what is missing, what the rest would take: `python -m shared.experiment.status PAPER --scale cpu …`

Takes the options of train and evaluate, measures nothing, and can be asked while they are at work. A number that is
missing is expected to take as long as those of its kind that are there; of trainings no times are kept.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from shared.errors import run_main
from shared.experiment.scripts import further, is_there, open_run
from shared.experiment.step import Trained, closure


def status(paper: str, argv: Sequence[str]) -> str:
    """A line for the trainings and one for each kind of number."""
    _, scale, _, lab, numbers, looks = open_run(paper, __doc__, argv)
    everything = [*numbers, *further(looks)]
    trained = [step for step in closure(n.step for n in everything) if isinstance(step, Trained)]
    lines = [f"{paper} at SCALE={scale}", _line("trainings", sum(map(lab.is_made, trained)), len(trained))]
    seconds: dict[str, list[float]] = defaultdict(list)
    planned: dict[str, int] = defaultdict(int)
    for n in everything:
        kind = str(n.tags["kind"])
        planned[kind] += 1
        if is_there(lab, n):
            seconds[kind].append(lab.store.read(n.name, lab.key(n.step)).seconds)
    left, unknown = 0.0, 0
    for kind, count in planned.items():
        there = seconds[kind]
        rest = sum(there) / len(there) * (count - len(there)) if there else None
        left, unknown = left + (rest or 0.0), unknown + (count if rest is None else 0)
        lines.append(_line(kind, len(there), count, "unknown" if rest is None else _clock(rest)))
    lines.append(_line("all numbers", sum(map(len, seconds.values())), len(everything), _clock(left)))
    if unknown:
        lines.append(f"  and {unknown} of kinds of which nothing is measured yet")
    return "\n".join(lines)


def _line(what: str, there: int, count: int, rest: str = "") -> str:
    missing = f", {count - there} missing" + (f": {rest} processor time" if rest else "") if there < count else ""
    return f"  {what:<14} {there:>5} of {count}{missing}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    run_main(lambda: print(status(sys.argv[1], sys.argv[2:]), flush=True))
