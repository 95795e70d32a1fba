"""Measure every cell of every table.

    accelerate launch -m papers.pmg_aft.evaluate --scale cpu

First the gates: the pre-trained model must be good and the attack must break it, or no defence is measured. Then all models, shared out over the
processes; what was measured under the same key is skipped, so an interrupted run continues. Options are those of train.py.
"""

from papers.pmg_aft.config import PRESETS, check
from shared.errors import run_main
from shared.lifeline import tie_to_launcher


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.pmg_aft.cells import CLIP, cells
    from papers.pmg_aft.measure import Measurer
    from papers.pmg_aft.models import Bench
    from shared.experiment.evaluation import Evaluation
    from shared.experiment.share import opened

    accelerator, bench = opened(Bench, config, scale)
    measurer = Measurer(bench)
    evaluation = Evaluation("pmg_aft", scale, measurer, accelerator, cells(config), lambda group: group[0].method)
    # the gate's own cells, one share each; everyone waits, for the gates read all of them
    of_gates = [c for c in evaluation.cells if c.method == CLIP and c.kind == "accuracy" and c.strength.name in ("clean", "pgd")]
    evaluation.measure(_by_model(of_gates, single=True))
    evaluation.pass_gates("the undefended model does not pass its gates", "Use a better pre-trained model or an ε that breaks it (--attack.eps).")
    evaluation.measure(_by_model([c for c in evaluation.left() if c in evaluation.stale]))
    evaluation.end(lambda cell: cell.strength.name if cell.kind == "accuracy" else cell.kind)


def _by_model(cells: list, single: bool = False) -> list[list]:
    groups: dict = {}
    for k, cell in enumerate(cells):
        # dear kinds are tasks of their own, so that the processes finish together
        name = k if single else (cell.model, cell.kind, cell.strength.kind == "auto" if cell.strength else None)
        groups.setdefault(name, []).append(cell)
    return list(groups.values())


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
