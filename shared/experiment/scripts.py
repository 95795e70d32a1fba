"""What `python -m papers.<paper>.train` and `.evaluate` do, for every paper.

train      the claims against the plan; the gates, if they read what is trained; then everything that is trained
evaluate   the gates; then everything else that numbers need; then every number that is not there under its key

Both also do what looks at open claims ask for (`shared.experiment.looks`).

Both hold the lock of the results folder while they are at work.
"""

import contextlib
import fcntl
import importlib
import itertools
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import UserError, run_main
from shared.experiment import finished
from shared.files import look_at, looked_at, note_digests, remember_digests, remove_leftovers
from shared.lifeline import tie_to_launcher

if TYPE_CHECKING:
    from shared.claims.claims import Claim
    from shared.experiment.lab import Lab
    from shared.experiment.looks import More, Paths
    from shared.experiment.paper import Grid, Number, Paper
    from shared.experiment.scale import Options
    from shared.experiment.step import Values

    Looks = tuple[Paths, More] | None


def start(paper: str, script: str, doc: str) -> None:
    """The whole of a script, from its command line to its exit code."""
    tie_to_launcher()
    run_main(lambda: run(paper, script, doc))


def run(paper: str, script: str, doc: str, argv: Sequence[str] | None = None) -> None:
    """The same in a process that goes on. argv: the options, by default those of the command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # of several, the launcher has looked
    if alone and (text := finished.said(paper, script, argv)):
        print(text, flush=True)
        return
    looked_at.clear()
    opened = open_run(paper, doc, argv, check_claims=script == "train")
    config, lab = opened[2:4]
    digests = config.results / "digests.json"
    with locked(lab.root, config.join) if lab.accelerator.is_main_process else contextlib.nullcontext():
        text = {"train": train, "evaluate": evaluate}[script](*opened)
        if lab.accelerator.is_main_process:
            note_digests(digests)
            finished.note(paper, script, argv, text, config.source.root)
    lab.accelerator.end_training()


def paper_of(name: str) -> "Paper":
    """What papers/<name>/paper.py puts together. Raises UserError for one that does not import, half-made say."""
    try:
        return importlib.import_module(f"papers.{name}.paper").PAPER
    except UserError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}; {at.filename}, line {at.lineno}"
        raise UserError(f"the paper {name} cannot be imported ({said}): mend it.") from error


def open_run(
    paper: str, doc: str, argv: Sequence[str], check_claims: bool = False
) -> "tuple[Paper, str, Options, Lab, list[Number], Looks]":
    """What these options ask for: the paper, its scale and configuration, the laboratory, and the numbers."""
    from shared.experiment.scale import parse

    found = paper_of(paper)
    scale, config = parse(found.presets, doc, argv, check=found.check)
    if config.yours and found.yours is None:
        raise UserError(f"{paper} has no row for a method of your own ({config.yours}): leave it out.")

    from shared.experiment import source
    from shared.experiment.lab import Lab
    from shared.experiment.step import parts
    from shared.processes import accelerator

    remember_digests(config.results / "digests.json")
    root = config.results / scale / paper
    how = {"join": config.join, "draws": config.draws, "compiled": config.compiled}
    lab = Lab(root, config.source, accelerator(config.precision), **how)  # type: ignore[arg-type]
    numbers = found.plan(config)
    looks, wanted = None, lab.store.asked()
    first = check_claims and scale != "smoke" and lab.accelerator.is_main_process  # no claim is judged at smoke
    claims = claims_of(found, scale, config.headline) if first or wanted is not None else ()
    if wanted is not None:
        from shared.experiment.looks import numbers as beyond

        looks = beyond(found, config, claims, wanted)
    everything = [*numbers, *further(looks)]
    for kind in {type(part) for n in everything for part in parts(n.step)}:
        source.of(kind)  # the source that runs is the one of now, whoever edits a file while it runs
    # what is missing is said before anything is made, or downloaded by one process before the others read it
    with lab.accelerator.main_process_first() if config.source.download else contextlib.nullcontext():
        lab.open_leaves(part for n in everything for part in parts(n.step))
    found.look(lab, config)
    if config.yours:
        found.yours(lab, config)
    return found, scale, config, lab, numbers, looks


def claims_of(paper: "Paper", scale: str, headline: bool) -> "tuple[Claim, ...]":
    """The claims of a paper. Raises UserError for one that is testable at the scale and whose numbers are not planned
    there.

    The plan is that of the preset: what options leave out is no mistake of the claims.
    """
    from shared.claims.claims import load
    from shared.experiment import source

    file = load(look_at(source.ROOT / "papers" / paper.name / "claims.yaml"))
    plan = paper.plan(replace(paper.presets[scale], headline=headline))
    file.check_plan(scale, [n.tags for n in plan], headline)
    return file.claims


@contextlib.contextmanager
def locked(root: Path, join: bool = False) -> Iterator[None]:
    """Hold the results folder for this run. Raises UserError, with the owner's name, while another run holds it.

    join: together with other runs that join; see `shared.experiment.claimed`. A folder that cannot be written needs no
    lock: whoever has something to write is refused there. The system gives the lock back when its owner ends, however
    that is.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = open(root / ".lock", "a+")  # noqa: SIM115
    except OSError:
        yield
        return
    with handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if join else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            raise UserError(
                f"another run is at work in {root}: {owner}. Wait until it has ended, or choose another folder "
                "(RESULTS=…); runs that all have --join may share one."
            ) from None
        except OSError as error:
            print(
                f"note: {root} is on a file system without locks ({error.strerror}): start one run at a time there.",
                file=sys.stderr,
                flush=True,
            )
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M')}\n")
        handle.flush()
        remove_leftovers(root)
        yield


def further(looks: "Looks") -> "list[Number]":
    """What is measured at open claims beyond the plan."""
    return [] if looks is None else [n for new in looks[1].values() for n in new.values()]


def train(
    paper: "Paper", scale: str, config: "Options", lab: "Lab", numbers: "list[Number]", looks: "Looks" = None
) -> str:
    """Make all that is trained, and say what there is. What the gates read comes first: no defence of a model that
    fails them is trained."""
    from shared.experiment.step import Trained, closure

    needed = [s for s in closure(n.step for n in (*numbers, *further(looks))) if isinstance(s, Trained)]
    said = "training: {} runs, {} already there"
    if lab.accelerator.is_main_process:
        print(said.format(len(needed), sum(map(lab.is_made, needed))), flush=True)
    of_gates = [step for step in closure(n.step for n in gate_numbers(paper, config)) if isinstance(step, Trained)]
    if of_gates:
        lab.make(of_gates)
        pass_gates(paper, config, lab)
    lab.make(needed)
    return said.format(len(needed), sum(map(lab.is_made, needed)))


def evaluate(
    paper: "Paper", scale: str, config: "Options", lab: "Lab", numbers: "list[Number]", looks: "Looks" = None
) -> str:
    """Measure every number that is not there, and say what there is."""
    from shared.experiment.step import Kept, Trained, closure

    everything = [*numbers, *further(looks)]
    for step in closure(n.step for n in everything):
        if isinstance(step, Trained) and not lab.is_made(step):
            raise UserError(
                f"the training of {step.name} is missing or of another configuration: run the training with the same "
                "options first."
            )
    began, said = time.monotonic(), "evaluation: {} measurements, {} already there"
    left = [n for n in everything if not is_there(lab, n)]
    if lab.accelerator.is_main_process:
        write_plan(paper, scale, config, lab, numbers, looks)
        print(said.format(len(everything), len(everything) - len(left)), flush=True)
    pass_gates(paper, config, lab)
    lab.make(step for step in closure(n.step for n in left) if isinstance(step, Kept))
    lab.measure([n for n in left if not is_there(lab, n)], lambda *made: keep(lab, *made))
    if lab.accelerator.is_main_process:
        write_plan(paper, scale, config, lab, numbers, looks)
        say_times(lab, everything, time.monotonic() - began)
    return said.format(len(everything), len(everything))


def is_there(lab: "Lab", number: "Number") -> bool:
    """Whether a number has been measured under its key; its key is known once all that it needs is made."""
    return lab.is_made(number.step) and lab.store.fresh(number.name, lab.key(number.step))


def write_plan(
    paper: "Paper", scale: str, config: "Options", lab: "Lab", numbers: "list[Number]", looks: "Looks" = None
) -> None:
    """Write down what is shown: the numbers of this run, with `--headline` also what else has been measured with the
    same settings, and the looks at open claims as far as they are measured."""
    from shared.experiment.scale import plain
    from shared.experiment.store import DOUBLED

    own = {n.name for n in numbers}
    more = [n for n in paper.everything(config) if n.name not in own and is_there(lab, n)] if config.headline else []
    shown = [*numbers, *more]
    plan = {
        "paper": paper.name,
        "scale": scale,
        "config": {**plain(config), **paper.facts(lab, config)},
        "headline": config.headline and not more,
        "keys": {n.name: lab.key(n.step) if lab.is_made(n.step) else "" for n in shown},
        "tags": {n.name: dict(n.tags) for n in shown},
        "asked": {n.name: list(n.asked) for n in shown},
        "steps": {n.name: f"{type(n.step).__module__}.{type(n.step).__qualname__}" for n in shown},
    }
    if looks is not None:
        paths, more = looks
        whole = {at for at, new in more.items() if all(is_there(lab, n) for n in new.values())}

        def measured(path: list[str]) -> list[str]:
            at = (tuple(map(path[: k + 1].count, DOUBLED)) for k in range(len(path)))
            return path[: sum(1 for _ in itertools.takewhile(whole.__contains__, at))]

        plan["looks"] = {claim: measured(path) for claim, path in paths.items()}
        plan["more"] = [[*at, n.name, lab.key(n.step), dict(n.tags)] for at in sorted(whole) for n in more[at].values()]
    lab.store.write_plan(plan)


def gate_numbers(paper: "Paper", config: "Options") -> "list[Number]":
    """What the gates read."""
    return paper.numbers(config, [grid for gate in paper.gates(config) for grid in gate.grids])


def pass_gates(paper: "Paper", config: "Options", lab: "Lab") -> None:
    """Measure what the gates read and record them. Raises UserError where one that is about everything fails.

    Where gates are not enforced, none stops anything or sets anything apart: a verdict then says which failed.
    """
    from shared.experiment.step import Kept, closure
    from shared.experiment.store import gate

    numbers = [n for n in gate_numbers(paper, config) if not is_there(lab, n)]
    lab.make(step for step in closure(n.step for n in numbers) if isinstance(step, Kept))
    lab.measure(numbers, lambda *made: keep(lab, *made))

    def mean(grid: "Grid") -> float:
        values = [lab.store.read(n.name, lab.key(n.step)).value for n in paper.numbers(config, [grid])]
        return sum(values) / len(values)

    found = []
    for g in paper.gates(config):
        value = mean(g.grid) - (0.0 if g.minus is None else mean(g.minus))
        if g.share_of is not None:
            whole = mean(g.share_of)
            value = value / whole if whole else 1.0
        threshold, detail = (x(lab) if callable(x) else x for x in (g.threshold, g.detail))
        found.append(gate(g.name, value, threshold, g.sense, detail, g.of if config.gates.enforce else {}))
    if lab.accelerator.is_main_process:
        lab.store.write_gates(found)
    failed = "; ".join(
        f"{g['name']} is {g['value']:.3f}, must be {g['sense']} {g['threshold']:.3f}"
        for g in found
        if not g["passed"] and not g["of"]
    )
    if failed and config.gates.enforce:
        raise UserError(
            f"no defence is measured, because the undefended models do not pass their gates: {failed}. "
            f'See papers/{paper.name}/README.md, "Gates".'
        )


def keep(lab: "Lab", number: "Number", values: "Values", seconds: float) -> None:
    """Store one measurement with its interval over examples and its provenance."""
    import numpy as np

    from shared.claims.selection import kind_of
    from shared.experiment.provenance import provenance
    from shared.experiment.store import Measurement
    from shared.metrics import intervals

    given, seed = np.asarray(values.values, np.float64), number.asked.get("seed")
    mean = intervals.mean({"all": given}, **kind_of(values.unit))
    lab.store.save(
        Measurement(
            number.name,
            lab.key(number.step),
            mean.value,
            *(end if np.isfinite(end) else None for end in (mean.low, mean.high)),
            len(given),
            () if seed is None else (seed,),
            values.unit,
            round(seconds, 3),
            dict(number.tags),
            {**provenance(), "skipped": list(values.skipped)[:20], "skipped_count": len(values.skipped)},
            values.sanity,
            given=given,
            given_extra=dict(values.extra),
        )
    )


def say_times(lab: "Lab", numbers: "list[Number]", seconds: float) -> None:
    """Say how long it took, and which kinds of number took it, as recorded by all processes."""
    total: dict[str, float] = {}
    for n in numbers:
        kind = str(n.tags.get("kind"))
        total[kind] = total.get(kind, 0.0) + lab.store.read(n.name, lab.key(n.step)).seconds
    split = ", ".join(f"{kind} {spent:.0f}" for kind, spent in total.items())
    print(f"evaluation: done in {seconds:.0f} s; seconds by kind, over all processes: {split}", flush=True)
