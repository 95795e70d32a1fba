"""Planned against measured processor seconds, by stage: what `make plan GPU=measure` says of steps, and what they then
take here.

    python -m tests.shared.experiment.plan_measured --scale cpu --seconds 60 pmg_aft rvpt
    python -m tests.shared.experiment.plan_measured --scale cpu --record results/cpu pmg_aft rvpt

Of each kind of number one is made, with all that it needs: the one of which a plan says that it takes least, unless
that is more than so many seconds. Both are processor time of one core in one run, so that other work on the machine
changes no ratio. With --record the seconds are those that a finished run has written down for its measurements: of the
clock, so that ratios are relative to their median.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from shared.experiment.lab import Lab
from shared.experiment.machines import CORE, Measured
from shared.experiment.plan import Stage, kind_of, names, price, stages
from shared.experiment.planned import PlanLab, planning
from shared.experiment.step import Kept, Step, closure
from shared.experiment.tally import Cost

LEAST = 0.5  # seconds of a stage: less says nothing
SOME = 5  # measurements of a stage that are compared with a record


def compare(paper: str, scale: str, seconds: float) -> dict[str, tuple[float, float]]:
    """Stage -> planned and measured seconds."""
    made = importlib.import_module(f"papers.{paper}.paper").PAPER
    config, on = made.presets[scale], Measured()
    lab = PlanLab(torch.device("cpu"), config.source)
    with planning(lab):
        numbers = cheapest(made.plan(config), lab, seconds)
        found = stages(numbers, lab)
    planned = price(found, lab, on)
    spent = measured(numbers, config)
    return {f"{paper}: {name}": (planned[name], took) for name, took in spent.items() if took >= LEAST}


def recorded(paper: str, scale: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Stage -> planned and recorded seconds, the medians of some of its measurements: the first of them has opened models and
    pictures that the others share."""
    made = importlib.import_module(f"papers.{paper}.paper").PAPER
    config, on = made.presets[scale], Measured()
    lab = PlanLab(torch.device("cpu"), config.source)
    there = {}
    for file in (folder / paper / "measurements").glob("*.json"):
        number = json.loads(file.read_text())
        there[number["slug"]] = number["seconds"]
    by_kind: dict[str, list] = {}
    for number in made.plan(config):
        if number.name in there:
            by_kind.setdefault(kind_of(number.tags), []).append(number)
    found = {}
    for name, numbers in by_kind.items():
        some = numbers[:: -(-len(numbers) // SOME)]
        took = [there[number.name] for number in some]
        with planning(lab):
            costs = [_traced(number.step, lab) for number in some]
        if None not in costs and sum(took) >= LEAST:
            planned = [price({name: Stage(cost=cost)}, lab, on)[name] for cost in costs]
            found[f"{paper}: {name}"] = statistics.median(planned), statistics.median(took)
    return found


def _traced(step: Step, lab: PlanLab) -> Cost | None:
    """Its own cost, without what it shares with others; None where there is no estimate."""
    try:
        return lab.trace(step).cost
    except Exception:
        return None


def cheapest(numbers: Sequence, lab: PlanLab, most: float) -> list:
    """One number of each kind."""
    taken: dict[Step, float] = {}
    chosen: list = []
    kinds = names(numbers)
    by_kind: dict[str, list] = {}
    for number in numbers:
        by_kind.setdefault(kinds[number.step], []).append(number)

    def more(number: object) -> dict[Step, float]:
        return {step: seconds_of(step, lab) for step in closure([number.step]) if step not in taken}

    for some in by_kind.values():
        best = min(some[:40], key=lambda number: sum(more(number).values()))
        new = more(best)
        if sum(new.values()) <= most:
            taken |= new
            chosen.append(best)
    return chosen


def seconds_of(step: Step, lab: PlanLab) -> float:
    """By the rates of a core that nobody has measured; infinite where there is no estimate."""
    try:
        operations = lab.trace(step).cost.operations
    except Exception:
        return float("inf")
    return sum(count * CORE.seconds(operation) for operation, count in operations.items())


def measured(numbers: Sequence, config: object) -> Counter:
    """Stage -> processor seconds of its steps."""
    spent: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), config.source, Accelerator(cpu=True))
        for step, name in names(numbers).items():
            began = time.process_time()
            made = step.make(lab)
            spent[name] += time.process_time() - began
            if isinstance(step, Kept):
                tensors, facts = made if isinstance(made, tuple) else (made, None)
                lab.keep(step, tensors, facts=facts)
    return spent


def summary(found: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The median of |planned/measured − 1|, and the largest factor between the two."""
    ratios = [planned / took for planned, took in found.values()]
    return statistics.median(abs(r - 1) for r in ratios), max(max(r, 1 / r) for r in ratios)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("papers", nargs="+")
    options.add_argument("--scale", default="cpu")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--record", type=Path)
    given = options.parse_args()
    found: dict[str, tuple[float, float]] = {}
    for paper in given.papers:
        if given.record:
            found |= recorded(paper, given.scale, given.record)
        else:
            found |= compare(paper, given.scale, given.seconds)
    load = statistics.median(took / planned for planned, took in found.values()) if given.record else 1.0
    found = {name: (planned * load, took) for name, (planned, took) in found.items()}
    for name, (planned, took) in found.items():
        print(f"{name:50} {planned:10.2f} {took:10.2f} planned / measured = {planned / took:.2f}", flush=True)
    if given.record:
        print(f"the clock ran {load:.1f} times as long as planned")
    median, worst = summary(found)
    print(f"{len(found)} stages: median error {median:.0%}, worst {worst:.1f}×")


if __name__ == "__main__":
    main()
