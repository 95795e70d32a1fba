"""Sharing tasks out: every task once, the same answer in every process, and no process much later than the others."""

import random

import pytest

from shared.experiment.share import share


def tasks(n: int, seed: int = 0) -> list[tuple[str, float]]:
    rng = random.Random(seed)
    return [(f"task{k}", rng.choice([1.0, 1.0, 2.5, 4.0, 30.0])) for k in range(n)]


def cost(task) -> float:
    return task[1]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 60])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_task_is_done_once(n, world):
    todo = tasks(n)
    parts = [share(todo, cost, rank, world) for rank in range(world)]
    assert sorted(t for part in parts for t in part) == sorted(todo)


def test_every_process_finds_the_same_division():
    todo = tasks(40)
    assert [share(todo, cost, r, 3) for r in range(3)] == [share(list(todo), cost, r, 3) for r in range(3)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("world", [2, 3, 4])
def test_loads_are_balanced(seed, world):
    """Dearest first to the least loaded: no two processes differ by more than the dearest task."""
    todo = tasks(50, seed)
    loads = [sum(map(cost, share(todo, cost, rank, world))) for rank in range(world)]
    assert max(loads) - min(loads) <= max(map(cost, todo))


def test_the_dearest_comes_first():
    todo = [("a", 1.0), ("b", 9.0), ("c", 5.0), ("d", 5.0)]
    assert [name for name, _ in share(todo, cost, 0, 1)] == ["b", "c", "d", "a"]
    assert [name for name, _ in share(todo, cost, 0, 2)] == ["b", "a"]
    assert [name for name, _ in share(todo, cost, 1, 2)] == ["c", "d"]


def test_nothing_is_changed():
    todo = tasks(9)
    before = list(todo)
    share(todo, cost, 0, 2)
    assert todo == before
