"""What a paper at a scale would take, before anybody pays: `python -m shared.experiment.plan PAPER GPU --scale paper …`

For each stage, the steps of one kind: how many there are, floating-point operations, peak memory, disk, pictures read, hours on a
machine of `shared.experiment.machines`. Needs no GPU, no weights and no data (`shared.experiment.planned`). Attacks that leave
out pictures which they have broken are expected to take half of their steps. Tensors without numbers are the CPU's also where a
GPU is priced, since without one torch runs no backward pass of theirs: half precision and the CPU's own noise count as the
GPU's single precision. One process makes everything here: what several
would each make for themselves counts once.
"""

import importlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass

import torch

from shared.errors import run_main
from shared.experiment.machines import Machine, Measured, machine
from shared.experiment.planned import PlanLab, name_in, planning
from shared.experiment.scale import parse
from shared.experiment.step import Step, Trained, closure, parts
from shared.experiment.tally import Cost

READ = 0.003  # seconds of one core for a picture from a file: 500 × 375 JPEG to 224 pixels, measured; of sets that can be opened, measured anew
USABLE = 0.92  # of a device's memory: the rest is the libraries' and lost between blocks; an assumption


@dataclass
class Stage:
    """Steps of one kind. why: reasons for which some have no estimate, with their number; largest: the one with the highest peak."""

    count: int = 0
    cost: Cost = field(default_factory=Cost)
    why: Counter = field(default_factory=Counter)
    largest: Step | None = None
    seconds: float = 0.0


def stages(numbers: Sequence, lab: PlanLab) -> dict[str, Stage]:
    """Every step of a plan by its stage, in the order in which they are made."""
    kinds = {n.step: _kind(n.tags) for n in reversed(numbers)}
    found: dict[str, Stage] = {}
    seen: set = set()
    for step in closure(n.step for n in numbers):
        stage = found.setdefault(kinds.get(step) or _name(step), Stage())
        stage.count += 1
        try:
            traced = lab.trace(step)
        except Exception as error:
            stage.why[str(error)] += 1
            continue
        if traced.cost.peak > stage.cost.peak:
            stage.largest = step
        stage.cost.add(traced.cost)
        for name, cost in traced.shared:
            own = name_in(step, name)
            if own not in seen:
                seen.add(own)
                stage.cost.add(cost)
    return found


def _kind(tags: Mapping[str, object]) -> str:
    return " ".join(filter(None, [str(tags["kind"]), str(tags.get("attack", "")).split("_x")[0]]))


def _name(step: Step) -> str:
    what = getattr(step, "objective", getattr(step, "attack", ""))
    return f"{type(step).__name__} {what if isinstance(what, str) else ''}".strip()


def price(found: Mapping[str, Stage], lab: PlanLab, on: Machine | Measured) -> None:
    """Fill in the seconds: of one process on a CPU, reading included; on a GPU others read ahead."""
    for stage in found.values():
        stage.seconds = sum(count * on.seconds(operation) for operation, count in stage.cost.operations.items())
        if on.device == "cpu":
            stage.seconds += reading(stage, lab)


def reading(stage: Stage, lab: PlanLab) -> float:
    """Seconds of one core for its pictures."""
    return sum(n * (lab.rates.get(name) or READ) for name, n in stage.cost.pictures.items())


def plan(paper: str, gpu: str, argv: Sequence[str]) -> str:
    """The table, what has no estimate, and what does not fit."""
    made = importlib.import_module(f"papers.{paper}.paper").PAPER
    scale, config = parse(made.presets, __doc__, argv, check=made.check)
    on = machine(gpu)
    lab = PlanLab(torch.device("cpu"), config.source)
    with planning(lab):
        found = stages(made.plan(config), lab)
    price(found, lab, on)
    lines = [f"{paper} at SCALE={scale} on {on.name}: {on.source}"]
    head = ("stage", "steps", "TFLOP", "peak GB", "disk GB", "pictures", "hours")
    rows = [_row(name, stage) for name, stage in found.items()]
    whole = Stage(sum(s.count for s in found.values()), seconds=sum(s.seconds for s in found.values()))
    for stage in found.values():
        whole.cost.add(stage.cost)
    rows.append(_row("all", whole))
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines += ["  ".join(t.ljust(w) if k == 0 else t.rjust(w) for k, (t, w) in enumerate(zip(row, widths, strict=True)))
              for row in (head, *rows)]  # fmt: skip
    trainings = sum(s.count for name, s in found.items() if name in {_name(t) for t in _trainings(made, config)})
    lines.append(f"{trainings} trainings; {_hours(whole.seconds / on.processes)} hours with {on.processes} processes")
    if on.device != "cpu":
        lines.append(f"reading pictures: {_hours(sum(reading(s, lab) for s in found.values()))} hours of one core")
    for name, stage in found.items():
        lines += [f"not estimated: {n} of {stage.count} {name}: {why}" for why, n in stage.why.items()]
    lines += misfits(found, config, on)
    return "\n".join(lines)


def _trainings(made: object, config: object) -> list[Step]:
    return [step for step in closure(n.step for n in made.plan(config)) if isinstance(step, Trained)]


def misfits(found: Mapping[str, Stage], config: object, on: Machine | Measured) -> Iterator[str]:
    """What does not fit the memory of a machine, and which option to change."""
    for name, stage in found.items():
        room = USABLE * on.memory
        if stage.cost.peak <= room or stage.largest is None:
            continue
        inside = {id(x) for x in parts(stage.largest)}
        same = [x for x in parts(stage.largest) if any(f.name == "batch" for f in fields(x))]
        options = [
            (path, x) for path, x in _options(config) if id(x) in inside or any(type(x) is type(s) for s in same)
        ]
        advice = "no option makes it smaller"
        for path, x in options:
            smaller = 2 ** int(math.log2(max(1.0, x.batch * room / stage.cost.peak)))
            advice = f"use --{path}.batch {smaller}"
            break
        yield f"{name} needs {stage.cost.peak / 1e9:.0f} GB, {on.name} has {on.memory / 1e9:.0f}: {advice}"


def _options(x: object, path: str = "") -> Iterator[tuple[str, object]]:
    """The dataclasses of a configuration that have a batch, with the names of their options."""
    if not is_dataclass(x):
        return
    if path and any(f.name == "batch" for f in fields(x)):
        yield path, x
    for f in fields(x):
        name = f.name.replace("_", "-")
        yield from _options(getattr(x, f.name), f"{path}.{name}" if path else name)


def _row(name: str, stage: Stage) -> tuple[str, ...]:
    c = stage.cost
    estimated = stage.count > sum(stage.why.values())
    pictures = f"{sum(c.pictures.values()):,.0f}"
    values = (f"{c.flops / 1e12:,.1f}", f"{c.peak / 1e9:.1f}", f"{c.disk / 1e9:.1f}", pictures, _hours(stage.seconds))
    return (name, str(stage.count), *(values if estimated else ("?",) * len(values)))


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}" if seconds >= 3600 else f"{seconds / 3600:.3f}"


if __name__ == "__main__":
    run_main(lambda: print(plan(sys.argv[1], sys.argv[2], sys.argv[3:]), flush=True))
