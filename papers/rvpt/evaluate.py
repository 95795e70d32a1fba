"""Measure every cell of every table and figure.

    accelerate launch -m papers.rvpt.evaluate --scale cpu

First what the gates read (every attack must take at little cost in clean accuracy, or no defence is measured), then all else, shared out over the
processes by poisoned model. What was measured under the same key is skipped, so an interrupted run continues. Options are those of train.py.
"""

from papers.rvpt.config import PRESETS, check
from shared.errors import run_main
from shared.lifeline import tie_to_launcher

FAILED = ("the attacks do not pass their gates", "See papers/rvpt/README.md, \"Gates\": more updates, a higher rate or another learning rate "
          "(--attacks.<name>.steps, .rate, .lrs), or leave the attack out.")


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.rvpt.cells import cells, gate_cells
    from papers.rvpt.measure import Measurer
    from papers.rvpt.models import Bench
    from shared.experiment.evaluation import Evaluation
    from shared.experiment.share import opened

    accelerator, bench = opened(Bench, config, scale)
    measurer = Measurer(bench)
    evaluation = Evaluation("rvpt", scale, measurer, accelerator, cells(config), lambda group: f"{group[0].kind} {group[0].method} {group[0].attack}")
    evaluation.measure(groups(gate_cells(config)))
    evaluation.pass_gates(*FAILED)
    evaluation.measure(groups(evaluation.left()))
    evaluation.end()


def groups(cells: list) -> list[list]:
    """Cells of one defended model are measured together, those of one poisoned model after one another."""
    out: dict = {}
    for cell in sorted(cells, key=lambda c: (c.poison.slug, c.defence.slug if c.defence else "")):
        out.setdefault((cell.poison, cell.defence, cell.method, cell.kind if cell.kind in ("adaptive", "cost", "caption") else ""), []).append(cell)
    return list(out.values())


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
