"""RVPT as the scripts, the page and the tests see it."""

from collections.abc import Sequence

from papers.rvpt import figures, tables
from papers.rvpt.config import PRESETS, Config, check
from papers.rvpt.steps import clip_of, describe, number
from papers.rvpt.tables import FURTHER, MAIN, THREE, YOURS, place, spec_of, there, under_attack
from shared.experiment.paper import Gate, Grid, Paper, Tags
from shared.experiment.step import Lab
from shared.experiment.store import slug
from shared.options import check_warmup

WHERE = ("kind", "method", "attack", "measure", "backbone", "place", "at")
VARIED = (
    "shots",
    "alpha",
    "length",
    "lr",
    "depth_output",
    "depth_input",
    "margin",
    "without_target",
    "prompt",
    "sweep",
    "value",
    "perturbation",
    "against",
    "candidate",
)


def name(tags: Tags) -> str:
    """kind, method, …, the place of the shots, seed, and what is changed or varied."""

    def value(x: object) -> str:
        return f"{x:g}".replace("-", "m") if isinstance(x, float) else str(x)

    varied = (f"{tag}-{value(tags[tag])}" for tag in VARIED if tag in tags)
    return slug(*(tags[tag] for tag in WHERE), f"on-{tags['tuned']}", f"seed{tags['seed']}", *varied)


def gates(c: Config) -> list[Gate]:
    """What must hold of every attack: it takes, costs little clean accuracy, and leaves pictures to be recognised.

    An attack that fails is set apart. A clean first backbone that is no good stops everything.
    """
    shown = under_attack(c)

    def grid(method: str, measure: str, backbone: str, where: str, attack: str, seeds: Sequence[int]) -> Grid:
        tags = {**MAIN, **there(where), "backbone": backbone, "attack": attack, "measure": measure}
        return Grid({method: {"method": method}}, {"": {}}, tags, seeds)

    def clean(backbone: str, where: str) -> Grid:
        return grid("clean", "ca", backbone, where, "badnet" if where == "main" else FURTHER[-1], c.seeds[:1])

    found = [
        Gate(
            f"clean accuracy of the clean model, backbone {b}",
            clean(b, "main"),
            ">=",
            c.gates.clean,
            getattr(c.models, b).weights,
            of={} if b == "first" else {"backbone": b},
        )
        for b in dict.fromkeys(backbone for backbone, *_ in shown)
    ]
    for backbone, where, attack, seeds in shown:
        label = f"{attack}, backbone {backbone}, {spec_of(c, where)}"
        own = {"of": {"kind": {"not": "choice"}, "attack": attack, "backbone": backbone, "place": where}}
        lost = grid("none", "ca", backbone, where, attack, seeds)
        took = grid("none", "asr", backbone, where, attack, seeds)
        left = grid("clean", "ta", backbone, where, attack, c.seeds[:1])
        before, most = clean(backbone, where), c.gates.allowed(where)
        aim = f"target {place(c, where).target}"
        found += [
            Gate(f"{label}: clean accuracy lost to the poison", before, "<=", most, minus=lost, **own),
            Gate(f"{label}: attack success rate", took, ">=", c.gates.asr, aim, **own),
            Gate(
                f"{label}: triggered pictures recognised by the clean model",
                left,
                ">=",
                c.gates.recognised,
                "as a share of what it recognises without the trigger",
                share_of=before,
                **own,
            ),
        ]
    return found


def look(lab: Lab, c: Config) -> None:
    """Raises UserError for a warm-up that is longer than its training, of which only the set tells the length."""
    shots = c.method.shots * lab.data(c.data.main.data, "train").num_classes
    b = c.baselines
    few = {"linear": b.linear, "full": b.full, "words-tuning": b.words_tuning, "visual-tuning": b.visual_tuning}
    trained = {"--method.tuning": c.method.tuning, **{f"--baselines.{name}": tuning for name, tuning in few.items()}}
    for option, tuning in trained.items():
        check_warmup(f"{option}.warmup", tuning.warmup, tuning.steps(shots))
    supervised = c.sweeps.supervised
    check_warmup("--sweeps.supervised.warmup", supervised.warmup, supervised.steps(c.sweeps.supervised_n))


def yours(lab: Lab, c: Config) -> None:
    """A look at the user's own defence."""
    clip_of(c, YOURS, THREE[0], "first", "main", "main", c.seeds[0]).look(lab)


EXAMPLES = ("data.n", "adversary.n", "sweeps.resistivity_n", "sweeps.captions_n", "sweeps.candidates")
SHOWN = [tables, figures]
PAPER = Paper("rvpt", PRESETS, check, SHOWN, number, name, describe, gates, examples=EXAMPLES, look=look, yours=yours)
