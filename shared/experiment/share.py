"""Whole tasks shared out over processes: which process runs a task changes nothing in its result."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Task = TypeVar("Task")


def share(tasks: Sequence[Task], cost: Callable[[Task], float], rank: int, world: int) -> list[Task]:
    """The tasks of process `rank` of `world`: dearest first, each to the process with the least to do so far. Deterministic."""
    load, mine = [0.0] * world, []
    for task in sorted(tasks, key=cost, reverse=True):
        least = load.index(min(load))
        load[least] += cost(task)
        if least == rank:
            mine.append(task)
    return mine
