"""How long `make reproduce-<paper>` and `make headline-<paper>` took: `<results>/<scale>/<paper>/times.txt`, which the
Makefile writes.

A line "<seconds since 1970> <goal> <stage>" before each stage (train, evaluate, page), and one with the stage "end"
after the last.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

STAGES = ("train", "evaluate", "page")


@dataclass(frozen=True)
class Run:
    """One `make reproduce-<paper>` or `make headline-<paper>`. seconds: of each stage that came to its end; ended:
    whether all did."""

    goal: str
    seconds: dict[str, int]
    ended: bool

    @property
    def total(self) -> int:
        return sum(self.seconds.values())

    def text(self) -> str:
        """In words."""
        stages = ", ".join(f"{name} {clock(self.seconds[name])}" for name in STAGES if name in self.seconds)
        return (
            f"{self.goal}: {clock(self.total)}"
            + (f" ({stages})" if stages else "")
            + ("" if self.ended else ", did not come to its end")
        )


def read_runs(path: Path) -> list[Run]:
    """What make has noted, run by run; lines that are not of that form are passed over."""
    if not path.is_file():
        return []
    lines = [line.split() for line in path.read_text().splitlines()]
    marks = [
        (int(line[0]), line[1], line[2])
        for line in lines
        if len(line) == 3 and line[0].isdigit() and line[2] in (*STAGES, "end")
    ]
    runs: list[list] = []
    for mark in marks:
        if mark[2] == STAGES[0] or not runs:
            runs.append([])
        runs[-1].append(mark)
    return [Run(marks[0][1], {a[2]: b[0] - a[0] for a, b in pairwise(marks)}, marks[-1][2] == "end") for marks in runs]


def clock(seconds: float) -> str:
    """A time for people: 48 s, 7 min 12 s, 3 h 5 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"
