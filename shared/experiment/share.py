"""Whole tasks shared out over processes: which process runs a task changes nothing in its result."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from shared.processes import accelerator

Task = TypeVar("Task")


def opened(bench: Callable, config, scale: str) -> tuple:
    """(accelerator, bench) of this process, from a paper's class of benches; what is to be downloaded is there."""
    started = accelerator()
    made = bench(config, scale, started.device)
    made.fetch(started)
    return started, made


def share(tasks: Sequence[Task], cost: Callable[[Task], float], rank: int, world: int) -> list[Task]:
    """The tasks of process `rank` of `world`: dearest first, each to the process with the least to do so far. Deterministic."""
    load, mine = [0.0] * world, []
    for task in sorted(tasks, key=cost, reverse=True):
        least = load.index(min(load))
        load[least] += cost(task)
        if least == rank:
            mine.append(task)
    return mine


def work_off(accelerator, what: str, tasks: Sequence[Task], cost: Callable[[Task], float], work: Callable[[Task], str | None],
             name: Callable[[Task], str]) -> None:
    """Share tasks out, do this process's, one line each (`work` may return what to add to it), and wait until all processes are done.

    Give every process the same list: it is the same if it is made before anyone adds to what is there, so all wait for each other first.
    """
    accelerator.wait_for_everyone()
    mine = share(tasks, cost, accelerator.process_index, accelerator.num_processes)
    for k, task in enumerate(mine, 1):
        began = time.monotonic()
        said = work(task)
        print(f"{what}: {name(task)} ({k}/{len(mine)} of process {accelerator.process_index}), {said + ', ' if said else ''}"
              f"{time.monotonic() - began:.1f} s", flush=True)
    accelerator.wait_for_everyone()
