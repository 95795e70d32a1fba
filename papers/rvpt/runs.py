"""What has to be trained before anything is measured, as data: optimised patches, poisoned CLIPs, defences, a supervised tower.

The weights behind a cell are a chain: patch -> poisoned CLIP -> defence. Each link is a file that carries the key of all it depends on.
"""

from dataclasses import dataclass
from pathlib import Path

from papers.rvpt.cells import TUNED, Cell, Defence, Poison
from papers.rvpt.config import Config
from shared.experiment.store import slug

OPTIMISED = ("trojvqa", "badclip")  # attacks whose patch is optimised on the clean CLIP
WHOLE = ("cleanclip", "infonce", "infonce_fr", "full", "full_fr")  # defences that change the CLIP itself
CLIP_PAIRS = ("cleanclip", "infonce", "infonce_fr")  # defences that need pairs


@dataclass(frozen=True)
class Patch:
    """An optimised patch: attack and backbone; the target is that of the main set."""

    attack: str
    backbone: str

    @property
    def slug(self) -> str:
        return slug("patch", self.attack, self.backbone)


@dataclass(frozen=True)
class Defended:
    """A defence of one CLIP."""

    poison: Poison
    defence: Defence

    @property
    def slug(self) -> str:
        return f"{self.poison.slug}__{self.defence.slug}"


@dataclass(frozen=True)
class Supervised:
    """The first backbone's tower, trained from nothing on labelled pictures of the main set."""

    seed: int

    @property
    def slug(self) -> str:
        return slug("supervised", f"seed{self.seed}")


Run = Patch | Poison | Defended | Supervised


def checkpoint(config: Config, scale: str, run: Run) -> Path:
    """Where the weights of a run are kept."""
    return config.results / scale / "rvpt" / "checkpoints" / f"{run.slug}.safetensors"


def poisons(config: Config, cells: list[Cell]) -> list[Poison]:
    """The poisoned CLIPs that some cells read, each once."""
    return list(dict.fromkeys(c.poison for c in cells if not c.poison.clean))


def patches(config: Config, cells: list[Cell]) -> list[Patch]:
    """The optimised patches behind the triggers of some cells, each once. A set of triggers has those of both attacks."""
    found = [Patch(c.attack, c.backbone) for c in cells if c.attack in OPTIMISED]
    if any(c.kind == "triggers" for c in cells):
        found += [Patch(attack, "first") for attack in OPTIMISED]
    return list(dict.fromkeys(found))


def defences(config: Config, cells: list[Cell]) -> list[Defended]:
    """The defences that some cells read, each once."""
    return list(dict.fromkeys(Defended(c.poison, c.defence) for c in cells if c.defence is not None and c.method != "supervised"))


def supervised(config: Config, cells: list[Cell]) -> list[Supervised]:
    """The supervised tower, if cells read one that is trained here."""
    return list(dict.fromkeys(Supervised(0) for c in cells if c.method == "supervised" and config.models.supervised == "train"))


def cost(config: Config, run: Run) -> float:
    """How long a run takes, relative to others: pictures that pass through it, weighted by what one took at the cpu scale."""
    b, m = config.baselines, config.method
    if isinstance(run, Patch):
        patch = config.attacks.trojvqa_patch if run.attack == "trojvqa" else config.attacks.badclip_patch
        return 3.5 * patch.steps * patch.batch
    if isinstance(run, Poison):
        recipe = config.attacks.recipe(run.attack)
        return (9.0 if run.attack == "issba" else 6.5) * recipe.steps * recipe.batch * len(recipe.lrs)  # its encoder is a network too
    if isinstance(run, Supervised):
        return 5.5 * config.sweeps.supervised.epochs * config.sweeps.supervised_n
    if run.defence.method in CLIP_PAIRS:
        return (12.0 if run.defence.method == "cleanclip" else 6.0) * b.cleanclip.steps * b.cleanclip.batch
    changes = dict(run.defence.changes)
    shots = 64 * changes.get("shots", m.shots)
    tuning = {"linear_probe": b.linear, "full": b.full, "full_fr": b.full, "words": b.words_tuning,
              "adversarial_prompts": b.visual_tuning}.get(run.defence.method, m.tuning)
    weight = {"linear_probe": 0.03, "words": 0.25, "full": 1.3, "full_fr": 1.3,
              "adversarial_prompts": 0.6 * (1 + config.adversary.train_steps)}.get(run.defence.method, 0.4)
    return weight * tuning.epochs * shots if run.defence.method in TUNED else 0.0
