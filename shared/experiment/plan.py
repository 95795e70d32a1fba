"""What a paper at a scale would take, before anybody pays.

    python -m shared.experiment.plan PAPER GPU[,GPU…] --scale paper …

For each stage, the steps of one kind: how many there are, floating-point operations, peak memory, disk, pictures read,
hours on machines of `shared.experiment.machines`. Needs no GPU, no weights and no data (`shared.experiment.planned`).
Attacks that leave out pictures which they have broken are expected to take half of their steps. Tensors without
numbers are the CPU's also where a GPU is priced, since without one torch runs no backward pass of theirs: half
precision and the CPU's own noise count as the GPU's single precision. One process makes everything here: what several
would each make for themselves counts once.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass

import torch

from shared.errors import run_main
from shared.experiment.machines import Machine, Measured, machine
from shared.experiment.planned import PlanLab, name_in, own, planning
from shared.experiment.scale import parse
from shared.experiment.step import Kept, Step, Trained, closure
from shared.experiment.tally import Cost
from shared.options import changed

READ = 0.003  # seconds of one core for a 500 × 375 JPEG to 224 pixels, measured; anew for sets that can be opened
USABLE = 0.92  # of a device's memory: the rest is the libraries' and lost between blocks; an assumption


@dataclass
class Stage:
    """Steps of one kind. script: which makes them, and what; why: reasons for which some have no estimate, with their
    number; largest: the one with the highest peak."""

    script: str = ""
    count: int = 0
    cost: Cost = field(default_factory=Cost)
    why: Counter = field(default_factory=Counter)
    largest: Step | None = None


def stages(numbers: Sequence, lab: PlanLab) -> dict[str, Stage]:
    """Every step of a plan by its stage, in the order in which they are made."""
    found: dict[str, Stage] = {}
    seen: set = set()
    for step, name in names(numbers).items():
        stage = found.setdefault(name, Stage(_script(step)))
        stage.count += 1
        try:
            traced = lab.trace(step)
        except Exception as error:
            stage.why[str(error)] += 1
            continue
        if traced.cost.peak > stage.cost.peak:
            stage.largest = step
        stage.cost.add(traced.cost)
        for parts_of_name, cost in traced.shared:
            own = name_in(step, parts_of_name)
            if own not in seen:
                seen.add(own)
                stage.cost.add(cost)
    return found


def names(numbers: Sequence) -> dict[Step, str]:
    """Every step of a plan with its stage, in the order in which they are made."""
    kinds = {n.step: kind_of(n.tags) for n in reversed(numbers)}
    return {step: kinds.get(step) or _name(step) for step in closure(n.step for n in numbers)}


def kind_of(tags: Mapping[str, object]) -> str:
    """The stage of a measurement."""
    return " ".join(filter(None, [str(tags["kind"]), str(tags.get("attack", "")).split("_x")[0]]))


def _script(step: Step) -> str:
    if isinstance(step, Trained):
        return "train.py: trainings and choices"
    return "evaluate.py: pictures that are attacked first" if isinstance(step, Kept) else "evaluate.py: measurements"


def _name(step: Step) -> str:
    what = getattr(step, "objective", getattr(step, "attack", ""))
    return f"{type(step).__name__} {what if isinstance(what, str) else ''}".strip()


def price(found: Mapping[str, Stage], lab: PlanLab, on: Machine | Measured) -> dict[str, float]:
    """Seconds of the stages: of one process on a CPU, reading included; on a GPU others read ahead."""
    return {
        name: sum(count * on.seconds(operation) for operation, count in stage.cost.operations.items())
        + (reading(stage, lab) if on.device == "cpu" else 0.0)
        for name, stage in found.items()
    }


def reading(stage: Stage, lab: PlanLab) -> float:
    """Seconds of one core for its pictures."""
    return sum(n * (lab.rates.get(name) or READ) for name, n in stage.cost.pictures.items())


def plan(paper: str, gpu: str, argv: Sequence[str]) -> Iterator[str]:
    """The table with what has no estimate; then what does not fit, which takes longer."""
    made = importlib.import_module(f"papers.{paper}.paper").PAPER
    scale, config = parse(made.presets, __doc__, argv, check=made.check)
    machines = [machine(name) for name in gpu.split(",")]
    lab = PlanLab(torch.device("cpu"), config.source, half=machines[0].device != "cpu")
    with planning(lab):
        found = stages(made.plan(config), lab)
    yield _table(f"{paper} at SCALE={scale}", found, lab, machines)
    for on in machines:
        with planning(lab):
            said = misfits(found, made, config, lab, on)
        yield from said


def _table(title: str, found: Mapping[str, Stage], lab: PlanLab, machines: Sequence[Machine | Measured]) -> str:
    spent = [price(found, lab, on) for on in machines]
    lines = [title, *(f"{on.name}: {on.source}" for on in machines)]
    head = ("stage", "steps", "TFLOP", "peak GB", "disk GB", "pictures", *(f"h {on.name}" for on in machines))
    rows = [head]
    for script in dict.fromkeys(stage.script for stage in found.values()):
        of_script = {name: stage for name, stage in found.items() if stage.script == script}
        rows += [_row(f"  {name}", stage, [seconds[name] for seconds in spent]) for name, stage in of_script.items()]
        rows.append(_row(script, _together(of_script), [sum(map(seconds.get, of_script)) for seconds in spent]))
    rows.append(_row("all", _together(found), [sum(seconds.values()) for seconds in spent]))
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    for row in rows:
        first, *others = row
        lines.append("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    read = _hours(sum(reading(stage, lab) for stage in found.values()))
    lines.append(f"reading the pictures takes {read} hours of one core; on a CPU they are among the others")
    for on, seconds in zip(machines, spent, strict=True):
        hours = _hours(sum(seconds.values()) / on.processes)
        lines.append(f"{on.name}: {hours} hours with {on.processes} process{'es' if on.processes > 1 else ''}")
    for name, stage in found.items():
        lines += [f"not estimated: {n} of {stage.count} {name}: {why}" for why, n in stage.why.items()]
    return "\n".join(lines)


def _together(found: Mapping[str, Stage]) -> Stage:
    whole = Stage()
    for stage in found.values():
        whole.count += stage.count
        whole.cost.add(stage.cost)
        whole.why.update(stage.why)
    return whole


def misfits(
    found: Mapping[str, Stage], made: object, config: object, lab: PlanLab, on: Machine | Measured
) -> list[str]:
    """What does not fit the memory of a machine, and which option makes it fit. To be used inside `planning`."""
    room, said = USABLE * on.memory, []
    for name, stage in found.items():
        if stage.cost.peak > room and stage.largest is not None:
            needs = f"{name} needs {_digits(stage.cost.peak / 1e9)} GB, {on.name} has {_digits(on.memory / 1e9)}"
            said.append(f"{needs}: {smaller(stage, made, config, lab, room)}")
    return said


def smaller(stage: Stage, made: object, config: object, lab: PlanLab, room: float) -> str:
    """The first option that has a batch with which the largest step of a stage fits: halved for as long as that
    helps."""
    place = list(names(made.plan(config))).index(stage.largest)
    for path, x in _options(config):
        batch, peak = x.batch, stage.cost.peak
        while batch > 1:
            batch, before = batch // 2, peak
            step = list(names(made.plan(changed(config, path, batch))))[place]
            if own(step) == own(stage.largest):
                break  # it is an option of others
            peak = lab.trace(step).cost.peak
            if peak <= room:
                return f"use --{path.replace('_', '-')} {batch} ({_digits(peak / 1e9)} GB)"
            if peak > 0.95 * before:
                break
    return "no batch makes it fit"


def _options(x: object, path: str = "") -> Iterator[tuple[str, object]]:
    """The batches among the options of a configuration, with the dataclasses that have them."""
    for f in fields(x):
        inside = getattr(x, f.name)
        if f.name == "batch" and isinstance(inside, int):
            yield f"{path}batch", x
        if is_dataclass(inside):
            yield from _options(inside, f"{path}{f.name}.")


def _row(name: str, stage: Stage, spent: Sequence[float]) -> tuple[str, ...]:
    """≥ where some steps have no estimate."""
    c, missing = stage.cost, sum(stage.why.values())
    sizes = (c.flops / 1e12, c.peak / 1e9, c.disk / 1e9, sum(c.pictures.values()))
    least = "≥ " if missing else ""
    values = [f"{least}{_digits(x)}" if missing < stage.count else "?" for x in (*sizes, *(s / 3600 for s in spent))]
    return (name, f"{stage.count:,}", *values)


def _hours(seconds: float) -> str:
    return _digits(seconds / 3600)


def _digits(x: float) -> str:
    """One digit behind the point, fewer of large numbers, more of small ones."""
    return f"{x:,.0f}" if x >= 100 or x == 0 else f"{x:.1f}" if x >= 1 else f"{x:.1g}"


if __name__ == "__main__":
    run_main(lambda: [print(said, flush=True) for said in plan(sys.argv[1], sys.argv[2], sys.argv[3:])])
