"""RoCLIP as the scripts, the page and the tests see it."""

from papers.roclip import figures, tables
from papers.roclip.config import PRESETS, Config, check
from papers.roclip.steps import describe, number, yours_of
from papers.roclip.yours import Mine
from shared.experiment.paper import Gate, Grid, Paper, Tags
from shared.experiment.step import Lab
from shared.experiment.store import slug


def name(tags: Tags) -> str:
    """kind, regime, method, measure, attack, epoch, set, seed, and what is varied."""
    more = [f"{tag}{tags[tag]}" for tag in ("epoch", "m") if tag in tags]
    more += [f"{tag}-{tables.in_name(tags[tag])}" for tag in ("every", "sweep", "value") if tag in tags]
    first = (tags[tag] for tag in ("kind", "regime", "method", "measure", "attack", "scored", "data") if tag in tags)
    return slug(*first, f"seed{tags['seed']}", *more)


def gates(c: Config) -> list[Gate]:
    """What must hold of plain CLIP, in both regimes and in the world of few targets (which the headline does not read);
    backdoors that need not take are recorded too, with a threshold of 0."""
    g = c.gates
    asked = [("poison success (targets)", tables.PSR, g.psr)]
    for attack in c.attacks.planted:
        tags = {"measure": "bsr", "attack": attack}
        asked.append((f"success of the backdoor {attack}", tags, g.bsr if attack in g.attacks else 0.0))
    asked.append(("zero-shot accuracy", tables.ACCURACY, g.accuracy))
    found = []
    for regime, training in tables.REGIMES.items():
        for row, tags in tables.runs(c, tables.PLAIN).items():
            augmented = "with" if tags["method"] == "clip_aug" else "without"
            for what, column, threshold in asked:
                grid = Grid({row: tags}, {what: column}, {"kind": "score", "regime": regime}, c.seeds)
                title = f"{training}, CLIP {augmented} augmentation: {what}"
                found.append(Gate(title, grid, ">=", threshold, "" if threshold else "not asked of this backdoor"))
    for method in () if c.headline else tables.PLAIN:
        row = tables.FEW[method]
        for what, column, threshold in (asked[0], asked[-1]):
            grid = Grid({row: tables.few_runs(c)[row]}, {what: column}, tables.FEWER, c.seeds)
            found.append(Gate(f"few targets, {row}: {what}", grid, ">=", threshold))
    return found


def yours(lab: Lab, c: Config) -> None:
    """A look at the user's own loss."""
    Mine(code=yours_of(c)).look()


PAPER = Paper("roclip", PRESETS, check, [tables, figures], number, name, describe, gates, yours=yours)
