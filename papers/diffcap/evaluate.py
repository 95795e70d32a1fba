"""Measure every cell of every table.

    accelerate launch -m papers.diffcap.evaluate --scale cpu

In this order: the pictures under attack that the gates need, the gates (the undefended models must be good and the attack must break them, or no
defence is measured), τ, the other pictures under attack, and all measurements, each shared out over the processes. What was made or measured under
the same key is skipped, so an interrupted run continues. Options are those of train.py.
"""

from papers.diffcap.config import PRESETS, check
from shared.errors import run_main
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.diffcap.attacked import sources
    from papers.diffcap.cells import cells, gate_cells
    from papers.diffcap.measure import Measurer
    from papers.diffcap.models import Bench
    from shared.experiment.evaluation import Evaluation
    from shared.experiment.share import opened

    accelerator, bench = opened(Bench, config, scale)
    measurer = Measurer(bench)
    evaluation = Evaluation("diffcap", scale, measurer, accelerator, cells(config),
                            lambda group: f"{group[0].kind} {group[0].method} {group[0].model}")
    stale, first = [c for c in evaluation.cells if c in evaluation.stale], gate_cells(config)
    attack(evaluation, sources([c for c in first if c in evaluation.stale]))
    evaluation.measure([[c] for c in first])
    evaluation.pass_gates("the undefended models do not pass their gates", "Use better models or an ε that breaks them (--attack.eps).")
    evaluation.measure([[c] for c in measurer.tau_cells])
    attack(evaluation, sources(stale))
    evaluation.measure(groups(evaluation.left()))
    evaluation.end()


def attack(evaluation, found: list) -> None:
    """Make the attacked pictures that are missing, and the missing checks of these attacks."""
    attacked = evaluation.measurer.attacked
    checked = dict.fromkeys(attacked.checked(s) for s in found)
    tasks = [(s, False) for s in found if attacked.missing(s)] + [(s, True) for s in checked if attacked.unchecked(s)]
    evaluation.prepare("attacks", tasks, lambda task: attacked.check_cost(task[0]) if task[1] else attacked.cost(task[0]),
                       lambda task: attacked.check(task[0]) if task[1] else attacked.make(task[0]),
                       lambda task: task[0].name + (", sanity checks" if task[1] else ""))


def groups(cells: list) -> list[list]:
    """Cells that share a model, its pictures or an attack are measured together."""
    out: dict = {}
    for cell in cells:
        point = dict(cell.point)
        shared = {"adaptive": (cell.method, point.get("against")), "adaptive_caption": (cell.method, point.get("against")),
                  "targeted": (cell.tower, point.get("string")), "cost": (cell.method,), "similarity": (cell.method,), "fading": (),
                  "score": (cell.model, cell.spec, cell.eps, cell.method), "digits": (), "digits_stop": ()}
        kind = "digits" if cell.kind.startswith("digits") else cell.kind
        if point.get("against") in ("exact", "from_diffpure") and cell.kind == "adaptive" and (cell.method == "diffpure" or
                                                                                           point["against"] == "from_diffpure"):
            name = ("adaptive", "exact on diffpure")  # one attack, judged behind both defences
        else:
            name = (kind, *shared.get(kind, (cell.method, cell.spec, cell.eps, *point.values())))
        out.setdefault(name, []).append(cell)
    return list(out.values())


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
