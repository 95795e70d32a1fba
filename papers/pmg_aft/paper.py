"""PMG-AFT as the scripts, the page and the tests see it."""

from papers.pmg_aft import tables
from papers.pmg_aft.config import PRESETS, Config, check
from papers.pmg_aft.steps import describe, number
from shared.experiment.paper import Gate, Grid, Paper, named
from shared.experiment.scale import show_eps


def gates(c: Config) -> list[Gate]:
    """What must hold of the pre-trained model."""
    from shared.data.catalogue import open_set

    def of(attack: str, kind: str, name: str) -> Grid:
        return Grid({"CLIP": {"method": tables.CLIP, "seed": None}}, {attack: {"attack": attack, "set": name}}, {"kind": kind})

    def classes(spec: str) -> int:
        return open_set(spec, "test", c.source).num_classes

    g, seen, k = c.gates, tables.name_of(c.data.seen), classes(c.data.seen)
    return [Gate("zero-shot accuracy on the seen classes", of("clean", "accuracy", seen), ">=", min(g.clean, g.times_chance / k), f"{k} classes"),
            Gate(f"seen classes under PGD-{c.attack.strong_steps} at {show_eps(c.attack.eps)}", of("pgd_strong", "gate", seen), "<=", g.robust),
            *(Gate(f"zero-shot accuracy on {tables.name_of(s)}", of("clean", "accuracy", tables.name_of(s)), ">=",
                   1 / classes(s) + g.zero_shot_margin, f"chance is {1 / classes(s):.3f}") for s in c.data.zero_shot)]


PAPER = Paper("pmg_aft", PRESETS, check, [tables], number, named("kind", "method", "seed{}", "attack", "set", "step{}", "point"), describe, gates)
