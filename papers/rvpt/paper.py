"""RVPT as the scripts, the page and the tests see it."""

from papers.rvpt import figures, tables
from papers.rvpt.config import PRESETS, Config, check
from papers.rvpt.steps import describe, number
from papers.rvpt.tables import (
    FURTHER,
    MAIN,
    MORE,
    PLACES,
    SIX,
    THREE,
    attacked,
    backbones,
    further,
    place,
    places,
    spec_of,
    there,
)
from shared.experiment.paper import Gate, Grid, Paper, Tags
from shared.experiment.store import slug

WHERE = ("kind", "method", "attack", "measure", "backbone", "place", "at")
VARIED = (
    "shots",
    "alpha",
    "length",
    "depth_output",
    "depth_input",
    "margin",
    "without_target",
    "prompt",
    "sweep",
    "value",
    "perturbation",
    "against",
)


def name(tags: Tags) -> str:
    """kind, method, …, the place of the shots, seed, and what is changed or varied."""

    def value(x: object) -> str:
        return f"{x:g}".replace("-", "m") if isinstance(x, float) else str(x)

    varied = (f"{tag}-{value(tags[tag])}" for tag in VARIED if tag in tags)
    return slug(*(tags[tag] for tag in WHERE), f"on-{tags['tuned']}", f"seed{tags['seed']}", *varied)


def gates(c: Config) -> list[Gate]:
    """What must hold of every attack: the clean model is good, the backdoor takes, and costs little clean accuracy."""
    main = [(attack, c.seeds) for attack in (THREE if c.headline else SIX)]
    shown = [("first", "main", attack, seeds) for attack, seeds in main]
    shown += [] if c.headline else [("first", "main", attack, further(c)) for attack in attacked(c) if attack in MORE]
    others = places(c, PLACES[1:])
    shown += [("first", p, attack, further(c)) for p in (others[:1] if c.headline else others) for attack in FURTHER]
    shown += [] if c.headline else [(b, "main", attack, further(c)) for b in backbones(c)[1:] for attack in THREE]

    def grid(method: str, measure: str, backbone: str, where: str, attack: str, seeds) -> Grid:
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
        )
        for b in dict.fromkeys(backbone for backbone, *_ in shown)
    ]
    for backbone, where, attack, seeds in shown:
        label = f"{attack}, backbone {backbone}, {spec_of(c, where)}"
        lost = grid("none", "ca", backbone, where, attack, seeds)
        took = grid("none", "asr", backbone, where, attack, seeds)
        found += [
            Gate(
                f"{label}: clean accuracy lost to the poison",
                clean(backbone, where),
                "<=",
                c.gates.allowed(where),
                "",
                lost,
            ),
            Gate(f"{label}: attack success rate", took, ">=", c.gates.asr, f"target {place(c, where).target}"),
        ]
    return found


EXAMPLES = ("data.n", "adversary.n", "sweeps.resistivity_n", "sweeps.captions_n", "sweeps.candidates")
PAPER = Paper("rvpt", PRESETS, check, [tables, figures], number, name, describe, gates, examples=EXAMPLES)
