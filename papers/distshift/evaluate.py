"""Measure every cell of every table.

    accelerate launch -m papers.distshift.evaluate --scale cpu

In this order: the pictures under attack that the gates need; the gates (the undefended victims must be good and the attack must break them, or no
defence is measured); the other pictures under attack; all measurements. Each stage is shared out over the processes. What was made or measured under
the same key is skipped, so an interrupted run continues. Options are those of train.py.
"""

from papers.distshift.config import PRESETS, check
from shared.errors import run_main
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.distshift.attacked import sources
    from papers.distshift.cells import cells, gate_cells
    from papers.distshift.measure import Measurer
    from papers.distshift.models import Bench
    from shared.experiment.evaluation import Evaluation
    from shared.experiment.share import opened

    accelerator, bench = opened(Bench, config, scale)
    measurer = Measurer(bench)
    names = {p.data: bench.labelled(p.data).name for p in config.protected}  # which say what the pictures are (ImageNet30)
    evaluation = Evaluation("distshift", scale, measurer, accelerator, cells(config),
                            lambda group: f"{group[0].kind} {group[0].method} {group[0].spec}", {"names": names})
    stale, first = [c for c in evaluation.cells if c in evaluation.stale], gate_cells(config)
    attack(evaluation, sources([c for c in first if c in evaluation.stale]))
    evaluation.measure([[c] for c in first])
    evaluation.pass_gates("the undefended victims do not pass their gates",
                          "Use better victims or radii that break them (--attack.linf, --attack.l2).")
    attack(evaluation, sources(stale))
    evaluation.measure(groups(evaluation.left()))
    evaluation.end()


def attack(evaluation, found: list) -> None:
    """Make the attacked pictures that are missing, and those that hold the checks of their attacks."""
    attacked = evaluation.measurer.attacked
    missing = [s for s in dict.fromkeys([*found, *map(attacked.checked, found)]) if attacked.missing(s)]
    evaluation.prepare("attacks", missing, attacked.cost, attacked.make, lambda source: source.name)


def groups(cells: list) -> list[list]:
    """Cells that share pictures, an attack or a purification are measured together."""
    out: dict = {}
    for cell in cells:
        point = dict(cell.point)
        shared = {"adaptive": (cell.method, point.get("against"), cell.norm), "cost": (cell.method,), "distribution": (cell.method,),
                  "quality": (cell.method, cell.attack, cell.norm), "norm": (), "score": (cell.spec, cell.method, cell.attack, cell.norm)}
        name = (cell.kind, *shared.get(cell.kind, (cell.method, cell.norm, *point.values())))
        out.setdefault(name, []).append(cell)
    return list(out.values())


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
