"""Measure every cell of every table and figure.

    accelerate launch -m papers.roclip.evaluate --scale cpu

First what the gates read (plain CLIP must learn the poison, or no defence is measured), then all else, shared out over the processes by trained CLIP.
What was measured under the same key is skipped, so an interrupted run continues. Options are those of train.py.
"""

from papers.roclip.config import PRESETS, check
from shared.errors import run_main
from shared.lifeline import tie_to_launcher

FAILED = ("plain CLIP does not learn the poison, or nothing else", "See papers/roclip/README.md, \"Gates\": more captions per target image "
          "(--attacks.targets.m), a higher rate (--attacks.<name>.rate), more epochs, or a milder augmentation (--methods.images).")


def main() -> None:
    from shared.experiment.scale import parse

    scale, config = parse(PRESETS, __doc__, check=check)

    from papers.roclip.cells import cells, gate_cells
    from papers.roclip.measure import Measurer
    from papers.roclip.models import Bench
    from shared.experiment.evaluation import Evaluation
    from shared.experiment.share import opened

    accelerator, bench = opened(Bench, config, scale)
    measurer = Measurer(bench)
    evaluation = Evaluation("roclip", scale, measurer, accelerator, cells(config),
                            lambda group: f"{group[0].kind} {group[0].regime} {group[0].method}")
    evaluation.measure(groups(gate_cells(config)))
    evaluation.pass_gates(*FAILED)
    evaluation.measure(groups([c for c in evaluation.left() if c.kind != "cost"]))
    evaluation.measure(groups([c for c in evaluation.left() if c.kind == "cost"]))  # alone on its process, and the others idle: a time
    evaluation.end()


def groups(cells: list) -> list[list]:
    """Cells of one trained CLIP are measured together, one epoch's weights after the other; of a kind that reads more than weights, alone."""
    out: dict = {}
    for cell in sorted(cells, key=lambda c: (c.run.slug, c.scored, c.data)):
        kind = cell.kind if cell.kind in ("epoch", "returned", "cost") else ""
        name = kind if kind == "cost" else (cell.run, kind or cell.scored)
        out.setdefault(name, []).append(cell)
    return list(out.values())


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
