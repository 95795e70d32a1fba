"""Every measurement of the reproduction, as data: which model, defended how, on which pictures, under which trigger.

A CLIP is poisoned (`Poison`), a defence is trained on it (`Defence`), and measurements (`Cell`) read the defended model.
"""

from dataclasses import dataclass, replace

from papers.rvpt.config import FURTHER, SIX, THREE, Config
from shared.experiment.store import slug

ROWS = ("clean", "none", "cleanclip", "linear_probe", "vpt", "rvpt")
SHORT = ("none", "cleanclip", "linear_probe", "vpt", "rvpt")
MEASURES = ("ca", "asr", "asr_all", "ta")
TUNED = ("vpt", "rvpt", "linear_probe", "full", "full_fr", "words", "adversarial_prompts")  # on a few labelled pictures
TUNINGS = ("full", "full_fr", "infonce", "infonce_fr")
SWEEPS = ("shots", "alpha", "length", "depth_output", "depth_input", "margin")
DOWNSTREAM = ("clean", "none", "cleanclip", "vpt", "rvpt")
ENCODERS = ("none", "vpt", "rvpt", "supervised")
ADVERSARIAL = ("none", "vpt", "rvpt", "words", "adversarial_prompts")
COSTED = (("cleanclip", "main"), ("rvpt", "main"), ("rvpt", "third"))
COSTS = ("seconds", "memory", "trained", "share", "share_whole", "samples")
PERTURBATIONS = ("noise", "blur", "colour", "flip", "trigger")


@dataclass(frozen=True)
class Poison:
    """A CLIP: backbone (first, second, third, own), attack (clean: as it came), the place whose target class is planted, seed."""

    backbone: str
    attack: str
    place: str
    seed: int

    @property
    def clean(self) -> bool:
        return self.attack == "clean"

    @property
    def slug(self) -> str:
        return slug("poison", self.backbone, self.attack, self.place, f"seed{self.seed}")


@dataclass(frozen=True)
class Defence:
    """What is done to a CLIP: method, the place of the few shots (empty: none), seed, and what is changed, as (name, value) pairs.

    Changes: the names of the sweeps, `without_target` (1: no shots of the target class), `prompt` (index into config.sweeps.prompts).
    """

    method: str
    tuned: str
    seed: int
    changes: tuple[tuple[str, float], ...] = ()

    @property
    def slug(self) -> str:
        return slug(self.method, self.tuned or "none", f"seed{self.seed}", *(f"{k}-{_written(v)}" for k, v in self.changes))


@dataclass(frozen=True)
class Cell:
    """One measurement. attack: whose trigger is on the pictures; at: place, or shift1 … shift4; point: what is varied beyond the defence."""

    kind: str
    method: str
    attack: str
    measure: str
    backbone: str = "first"
    place: str = "main"
    at: str = "main"
    tuned: str = "main"
    seed: int = 0
    changes: tuple[tuple[str, float], ...] = ()
    point: tuple[tuple[str, float | str], ...] = ()

    @property
    def poison(self) -> Poison:
        """The CLIP; those that nobody poisoned do not depend on a seed."""
        clean = self.method in ("clean", "supervised") or self.attack == "clean"
        return Poison(self.backbone, "clean", "main", 0) if clean else Poison(self.backbone, self.attack, self.place, self.seed)

    @property
    def defence(self) -> Defence | None:
        """None: the CLIP as it is."""
        if self.method in ("clean", "none"):
            return None
        if self.method == "rvpt" and self.changes in ((("alpha", 0.0),), (("margin", 1.0),)):  # nothing repels: one tuning serves both
            return Defence("vpt", self.tuned, self.seed)
        return Defence(self.method, self.tuned if self.method in TUNED else "", self.seed, self.changes)

    def slug(self) -> str:
        changes = [f"{k}-{_written(v)}" for k, v in (*self.changes, *self.point)]
        return slug(self.kind, self.method, self.attack, self.measure, self.backbone, self.place, self.at, f"on-{self.tuned}", f"seed{self.seed}",
                    *changes)

    def tags(self, config: Config) -> dict:
        """What a table selects by. `set` is unique to what is shown (set, trigger, backbone, measure), since means are taken over it; `data` is the
        data set. sweep, value: which setting is varied and to what; the point of the defaults is among them."""
        data = {"caption": config.data.captioned, "retrieval": config.data.retrieval}.get(self.kind) or config.spec(self.at)
        return {"kind": self.kind, "method": self.method, "attack": self.attack, "measure": self.measure, "backbone": self.backbone,
                "place": self.place, "at": self.at, "tuned": self.tuned, "data": data, "seed": self.seed,
                "set": " ".join([data, self.attack, self.backbone, self.measure, *(str(v) for k, v in self.point if k != "sweep")]),
                **({"captioner": config.models.captioner} if self.kind == "caption" else {}), **dict(self.point), **dict(self.changes)}


def _written(value: float | str) -> str:
    return f"{value:g}".replace("-", "m") if isinstance(value, float) else str(value)


def possible(method: str, attack: str) -> bool:
    """A linear probe has no text tower, which TrojVQA's prefix would reach."""
    return not (method == "linear_probe" and attack == "trojvqa")


def seeds_of(config: Config, method: str, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Models that nobody poisoned are measured once."""
    return seeds[:1] if method == "clean" else seeds


def table1(config: Config) -> list[Cell]:
    """Tables 1 and 3, and ours: six attacks on the main set, every defence, every seed; more attacks with fewer seeds."""
    attacks = dict.fromkeys(THREE if config.headline else SIX, config.seeds) | dict.fromkeys(() if config.headline else config.attacks.more,
                                                                                             config.further)
    rows = [m for m in ROWS if m != "vpt"] if config.headline else ROWS
    return [Cell("score", method, attack, measure, seed=seed) for attack, seeds in attacks.items() for method in rows if possible(method, attack)
            for seed in seeds_of(config, method, seeds) for measure in MEASURES]


def table2(config: Config) -> list[Cell]:
    """Two further sets with their own targets, and table 5: prompts tuned on the main set there."""
    out = []
    for place in config.places[1:2] if config.headline else config.places[1:]:
        for attack in FURTHER:
            for seed in config.further:
                rows = ("none", "cleanclip", "rvpt") if config.headline else ROWS
                out += [Cell("score", m, attack, q, "first", place, place, place, seed) for m in rows if seed in seeds_of(config, m, config.further)
                        for q in MEASURES]
                out += [Cell("cross", m, attack, q, "first", place, place, "main", seed) for m in (("rvpt",) if config.headline else ("vpt", "rvpt"))
                        for q in ("ca", "asr")]
    return out


def table4(config: Config) -> list[Cell]:
    """An emerging target class: no shots of it."""
    without = (("without_target", 1),)
    return [Cell("emerging", "rvpt", attack, q, "first", place, place, place, seed, without) for place in config.places
            for attack in ((*FURTHER, "badclip") if place == "main" else FURTHER) for seed in config.further for q in ("ca", "asr")]


def table6(config: Config) -> list[Cell]:
    """Shifted sets; prompts tuned on the main set."""
    return [Cell("shifted", m, attack, q, at=f"shift{k}", seed=seed) for k in range(1, len(config.data.shifted) + 1) for attack in THREE
            for m in ("none", "cleanclip", "vpt", "rvpt") for seed in config.seeds for q in ("ca", "asr")]


def table7(config: Config) -> list[Cell]:
    """Captioning and retrieval."""
    attack, seed = config.attacks.downstream, config.seeds[0]
    tower = config.models.captioner_tower
    out = [Cell("caption", m, attack, q, backbone=tower, seed=seed) for m in DOWNSTREAM for q in ("asr", "cider", "bleu")]
    return out + [Cell("retrieval", m, attack, q, seed=seed) for m in DOWNSTREAM for q in ("asr", "rank_ratio", "ca")]


def table8(config: Config) -> list[Cell]:
    """Which fine-tuning the repulsion helps; VPT and RVPT are those of table 1."""
    return [Cell("tuning", m, "badclip", q, seed=config.seeds[0]) for m in TUNINGS for q in ("ca", "asr")]


def table9(config: Config) -> list[Cell]:
    """What the defences cost."""
    costed = COSTED if not config.headline else (("rvpt", "main"),)
    return [Cell("cost", m, "badnet", q, place=place, at=place, tuned=place, seed=config.seeds[0]) for m, place in costed
            if place in config.places for q in (COSTS if not config.headline else ("share", "share_whole"))
            if not (m == "cleanclip" and "share" in q)]


def table10(config: Config) -> list[Cell]:
    """Hand-written prompts besides that of the set."""
    return [Cell("hand", "rvpt", attack, q, seed=config.seeds[0], changes=(("prompt", k),)) for k in range(len(config.sweeps.prompts))
            for attack in THREE for q in ("ca", "asr")]


def table11(config: Config) -> list[Cell]:
    """The other backbones; the first stands in table 1."""
    return [Cell("score", m, attack, q, backbone, seed=seed) for backbone in config.backbones[1:] for attack in THREE
            for m in ("clean", "none", "linear_probe", "vpt", "rvpt") for seed in seeds_of(config, m, config.further) for q in MEASURES]


def table12(config: Config) -> list[Cell]:
    """PGD on the model that BadNet poisoned, and on the clean one."""
    cells = [Cell("adversarial", m, "badnet", q, seed=config.seeds[0]) for m in ADVERSARIAL for q in ("clean", "robust")]
    return cells + [Cell("adversarial", "clean", "badnet", q, seed=config.seeds[0]) for q in ("clean", "robust")]


def figure3(config: Config) -> list[Cell]:
    """Six ablations; what equals the defaults is not tuned again."""
    s, seed = config.sweeps, config.seeds[0]
    return [Cell("sweep", "rvpt", attack, q, seed=seed, changes=changes_of(config, name, value), point=(("sweep", name), ("value", float(value))))
            for name in SWEEPS for value in getattr(s, name) for attack in THREE for q in ("ca", "asr")]


def changes_of(config: Config, name: str, value: float) -> tuple[tuple[str, float], ...]:
    """The change of one sweep's point: nothing where it is the default."""
    m, blocks = config.method, config.sweeps.blocks
    default = {"shots": m.shots, "alpha": m.alpha, "length": m.length, "margin": -1.0, "depth_output": blocks - m.first}.get(name)
    if name == "depth_input" and value == blocks:  # all layers, counted from either end
        return (("depth_output", value),)
    return () if value == default else ((name, value),)


def figures(config: Config) -> list[Cell]:
    """Figures 1, 4 to 9, and the attacker who knows the defence."""
    seed = config.seeds[0]
    out = [Cell("resistivity", m, attack, "pr", seed=seed, point=(("perturbation", p),)) for attack in THREE
           for m in ENCODERS if m != "supervised" or config.models.supervised != "none" for p in PERTURBATIONS]
    out += [Cell("attention", m, "badclip", "map", seed=seed) for m in ("none", "rvpt")]
    out += [Cell("embedding", m, "badclip", "points", seed=seed) for m in ("none", "vpt", "rvpt")]
    out += [Cell("perturbed", "clean", "clean", "pictures"), Cell("triggers", "clean", "clean", "pictures")]
    return out


def adaptive(config: Config) -> list[Cell]:
    """BadCLIP's patch, and patches optimised against the model as the user has it: on the poisoned CLIP with and without the defence, and
    on the clean one (a patch is an adversarial example too)."""
    return [Cell("adaptive", m, "badclip", q, seed=config.seeds[0], point=(("against", who),)) for m in ("clean", "none", "vpt", "rvpt")
            for who in ("planted", "knowing") for q in ("asr", "ta")]


def gate_cells(config: Config) -> list[Cell]:
    """What the gates read: clean models, and poisoned ones without any defence."""
    return [c for c in cells(config) if c.kind == "score" and c.method in ("clean", "none") and c.measure in ("ca", "asr")]


def cells(config: Config) -> list[Cell]:
    """All measurements of this configuration, each once."""
    out = [*table1(config), *table2(config), *table9(config)]
    if not config.headline:
        out += [*adaptive(config), *table4(config), *table6(config), *table7(config), *table8(config), *table10(config), *table11(config),
                *table12(config), *figure3(config), *figures(config)]
    clean = {(c.backbone, c.place): c for c in out if c.kind == "score" and c.method == "none" and c.measure == "ca"}
    out += [replace(c, method="clean", seed=config.seeds[0]) for c in clean.values()]  # what gates compare with
    return list(dict.fromkeys(out))
