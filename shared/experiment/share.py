"""Whole tasks shared out over processes: which process runs a task changes nothing in its result."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Task = TypeVar("Task")


def accelerator():
    """An `accelerate.Accelerator` on the GPU where there is one. Processes wait for each other as long as it takes: tasks are shared out whole, so
    one may be done hours before another, and torch's own limit is 10 to 30 minutes."""
    from datetime import timedelta

    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])


def share(tasks: Sequence[Task], cost: Callable[[Task], float], rank: int, world: int) -> list[Task]:
    """The tasks of process `rank` of `world`: dearest first, each to the process with the least to do so far. Deterministic."""
    load, mine = [0.0] * world, []
    for task in sorted(tasks, key=cost, reverse=True):
        least = load.index(min(load))
        load[least] += cost(task)
        if least == rank:
            mine.append(task)
    return mine
