"""PMG-AFT as the scripts, the page and the tests see it."""

from papers.pmg_aft import tables
from papers.pmg_aft.config import PRESETS, Config, check
from papers.pmg_aft.steps import describe, methods, number
from shared.experiment.paper import Gate, Grid, Paper, named
from shared.experiment.scale import check_batch, show_eps
from shared.experiment.step import Lab
from shared.report.shown import YOURS


def gates(c: Config) -> list[Gate]:
    """What must hold of the pre-trained model."""

    def of(attack: str, kind: str, spec: str) -> Grid:
        where = {"attack": attack, "set": tables.name_of(spec)}
        return Grid({"CLIP": {"method": tables.CLIP, "seed": None}}, {attack: where}, {"kind": kind})

    def chance(lab: Lab, spec: str) -> float:
        return 1 / lab.data(spec).num_classes

    def unseen(spec: str) -> Gate:
        return Gate(
            f"zero-shot accuracy on {tables.name_of(spec)}",
            of("clean", "accuracy", spec),
            ">=",
            lambda lab: chance(lab, spec) + g.zero_shot_margin,
            lambda lab: f"chance is {chance(lab, spec):.3f}",
        )

    g, seen = c.gates, c.data.seen
    return [
        Gate(
            "zero-shot accuracy on the seen classes",
            of("clean", "accuracy", seen),
            ">=",
            lambda lab: min(g.clean, g.times_chance * chance(lab, seen)),
            lambda lab: f"{lab.data(seen).num_classes} classes, {c.model.name}",
        ),
        Gate(
            f"seen classes under PGD-{c.attack.strong_steps} at {show_eps(c.attack.eps)}",
            of("pgd_strong", "gate", seen),
            "<=",
            g.robust,
        ),
        *map(unseen, c.data.zero_shot),
    ]


def look(lab: Lab, c: Config) -> None:
    """Raises UserError for a batch that is larger than what is trained on."""
    n = len(lab.data(c.data.train, "train"))
    check_batch("--tuning.batch", c.tuning.batch, n, "pictures")
    check_batch("--fare.batch", c.fare.batch, n, "pictures")
    if c.model.pretrained == "pretrain":
        check_batch("--model.pretraining.batch", c.model.pretraining.batch, n, "pictures")


def yours(lab: Lab, c: Config) -> None:
    """A look at the user's own objective."""
    methods(c, c.seeds[0])[YOURS].look(lab)


NAMES = named("kind", "method", "seed{}", "attack", "set", "step{}", "point")
EXAMPLES = ("data.n", "attack.auto_n", "sweeps.curve_n", "sweeps.test_batch_n")
PAPER = Paper(
    "pmg_aft", PRESETS, check, [tables], number, NAMES, describe, gates, examples=EXAMPLES, look=look, yours=yours
)
