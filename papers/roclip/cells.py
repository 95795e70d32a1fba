"""Every measurement of the reproduction, as data: which CLIP, trained how on poisoned pairs, at which epoch, asked what.

A CLIP is trained (`Run`); measurements (`Cell`) read its weights after its last RoCLIP epoch, its last plain epoch, or its last epoch, or what was
measured while it was trained.
"""

from dataclasses import dataclass, replace

from papers.roclip.config import SWEEPS, Config
from papers.roclip.method import Matching
from shared.experiment.store import slug

PLAIN = ("clip", "clip_aug")  # what gates read
MATCHED = ("roclip", "released")
PRETRAINED = ("clip", "clip_aug", "roclip", "released", "safeclip")
FINETUNED = ("clip", "clip_aug", "roclip", "cleanclip")
HEADLINE = ("clip", "clip_aug", "roclip")
REGIMES = ("pretrain", "finetune")
STRONG = ("clip_aug", *MATCHED)
COSTED = ("clip_aug", "roclip", "released")  # of a step at equal augmentation
MEASURES = ("psr", "bsr", "accuracy", "similarity")
RETURNED = ("same_class", "cosine")


@dataclass(frozen=True)
class Run:
    """A training. m: captions per target image (0: those of the regime); changes: of the method, as (sweep, value) pairs."""

    regime: str
    method: str
    seed: int
    m: int = 0
    changes: tuple[tuple[str, float | str], ...] = ()

    @property
    def slug(self) -> str:
        more = [f"m{self.m}"] if self.m else []
        return slug(self.regime, self.method, f"seed{self.seed}", *more, *(f"{k}-{_written(v)}" for k, v in self.changes))

    def matching(self, config: Config) -> Matching | None:
        """RoCLIP's fields; None where nothing is matched."""
        if self.method not in MATCHED:
            return None
        fields = {k: v for k, v in self.changes if k != "augment"}
        if "pool" in fields:
            fields |= {"share": fields.pop("pool"), "size": None}
        return replace(getattr(config.methods, self.method), **fields)

    def epochs(self, config: Config) -> dict[str, int]:
        """Which epochs' weights are kept, by their name in `scored`."""
        last, matching = config.training(self.regime).epochs, self.matching(config)
        if matching is None:
            return {"last": last}
        found = {}
        for epoch in range(1, last + 1):
            found["roclip_epoch" if matching.active(epoch) else "plain_epoch"] = epoch
        return found


@dataclass(frozen=True)
class Cell:
    """One measurement. attack: a backdoor, "targets" or "none"; scored: last, roclip_epoch or plain_epoch; epoch: of kind epoch; point: what a sweep
    varies, and to what."""

    kind: str
    regime: str
    method: str
    measure: str
    attack: str = "none"
    scored: str = "last"
    data: str = ""
    seed: int = 0
    epoch: int = 0
    m: int = 0
    changes: tuple[tuple[str, float | str], ...] = ()
    point: tuple[tuple[str, float | str], ...] = ()

    @property
    def run(self) -> Run:
        return Run(self.regime, self.method, self.seed, self.m, self.changes)

    def slug(self) -> str:
        more = [f"epoch{self.epoch}"] if self.epoch else []
        more += [f"m{self.m}"] if self.kind == "strong" and self.m else []
        more += [f"{k}-{_written(v)}" for k, v in dict([*self.changes, *self.point]).items()]
        return slug(self.kind, self.regime, self.method, self.measure, self.attack, self.scored, *([self.data] if self.data else []),
                    f"seed{self.seed}", *more)

    def tags(self, config: Config) -> dict:
        """What a table selects by. `set` is unique to what is shown, and the same for every kind of epoch
        and point of a sweep, so that these are compared example by example; `data` is the data set; `every` is K where the kind is strong."""
        out = {"kind": self.kind, "regime": self.regime, "method": self.method, "measure": self.measure, "attack": self.attack,
               "scored": self.scored, "data": self.data or config.data.main, "seed": self.seed}
        if self.kind == "epoch":
            out["epoch"] = self.epoch
        if self.kind == "strong":
            matching = self.run.matching(config)
            out |= {"rate": round(config.rate(self.regime, self.m), 5), "m": self.m or config.captions_each(self.regime),
                    "every": matching.every if matching else 0}
        out |= dict(self.point)
        spanned = ("epoch", "rate", *(("value",) if out.get("sweep") == "pool" else ()))  # a claim takes the mean over the sizes of a pool
        varied = (str(out[k]) for k in spanned if k in out)
        shown = [out["data"], self.attack, self.measure, self.regime, *varied]
        return {**out, "set": " ".join(shown)}


def _written(value: float | str) -> str:
    return f"{value:g}".replace("-", "m") if isinstance(value, float) else str(value)


def methods(config: Config, regime: str) -> tuple[str, ...]:
    """The rows of a regime's tables."""
    return HEADLINE if config.headline else PRETRAINED if regime == "pretrain" else FINETUNED


def seeds(config: Config, method: str) -> tuple[int, ...]:
    """SafeCLIP takes twice as long as the others, and has fewer."""
    return config.further if method == "safeclip" else config.seeds


def scored(config: Config, run: Run) -> tuple[str, ...]:
    """Both kinds of epochs of a RoCLIP run, as far as there are any; the last epoch of another."""
    return tuple(run.epochs(config))


def asked(config: Config, kind: str, run: Run, backdoors: tuple[str, ...], measures: tuple[str, ...] = MEASURES, **fields) -> list[Cell]:
    """All measures of one run."""
    attacks = {"psr": ("targets",), "bsr": backdoors, "accuracy": ("none",), "similarity": ("targets", "none")}
    return [Cell(kind, run.regime, run.method, measure, attack, at, seed=run.seed, m=run.m, changes=run.changes, **fields)
            for at in scored(config, run) for measure in measures for attack in attacks[measure]]


def score(config: Config) -> list[Cell]:
    """Main tables: targeted poisoning and every backdoor, in both regimes."""
    return [cell for regime in REGIMES for method in methods(config, regime) for seed in seeds(config, method)
            for cell in asked(config, "score", Run(regime, method, seed), config.attacks.planted)]


def epochs(config: Config) -> list[Cell]:
    """By epoch, as measured in training."""
    out = []
    for regime in REGIMES:
        for method in (m for m in methods(config, regime) if m != "cleanclip"):
            for seed in seeds(config, method):
                run = Run(regime, method, seed)
                matching, backdoors = run.matching(config), config.attacks.planted[:1]
                for epoch in range(1, config.training(regime).epochs + 1):
                    at = "roclip_epoch" if matching and matching.active(epoch) else "plain_epoch"
                    out += [replace(cell, scored=at, epoch=epoch) for cell in dict.fromkeys(
                        replace(c, scored="") for c in asked(config, "epoch", run, backdoors))]
    return out


def downstream(config: Config) -> list[Cell]:
    """Zero-shot and linear probe on ten sets; the fine-tuned ones with fewer seeds."""
    out = []
    for regime in REGIMES[:1] if config.headline else REGIMES:
        for method in methods(config, regime):
            for seed in config.further if regime == "finetune" else seeds(config, method):
                run = Run(regime, method, seed)
                out += [Cell("downstream", regime, method, measure, scored=at, data=data, seed=seed) for at in scored(config, run)
                        for data in (*config.data.downstream, *config.data.probed)
                        for measure in (("accuracy",) if data in config.data.downstream else ()) + ("linear_probe",)]
    return out


def strong(config: Config) -> list[Cell]:
    """More captions per target image, and RoCLIP in more epochs."""
    out, seed = [], config.seeds[0]
    for m in config.sweeps.strong:
        for method in STRONG:
            for every in config.sweeps.strong_every if method in MATCHED else (0,):
                changes = (("every", every),) if every and every != getattr(config.methods, method).every else ()
                run = Run("pretrain", method, seed, 0 if m == config.attacks.targets.m else m, changes)
                out += asked(config, "strong", run, (), ("psr", "accuracy"))
    return out


def ablation(config: Config) -> list[Cell]:
    """One setting of the first version at a time; what equals the default is not trained again."""
    return [cell for name in SWEEPS for value in getattr(config.sweeps, name)
            for cell in asked(config, "ablation", Run("pretrain", "roclip", config.seeds[0], 0, changes_of(config, name, value)),
                              config.attacks.planted[:1], ("psr", "bsr", "accuracy"), point=(("sweep", name), ("value", value)))]


def changes_of(config: Config, name: str, value: float | str) -> tuple[tuple[str, float | str], ...]:
    """The change of one sweep's point: nothing where it is the default."""
    matching = config.methods.roclip
    default = {"pool": matching.share if matching.share is not None else matching.size / config.data.pretrain_n,
               "augment": "both" if config.methods.alpha else "images"}.get(name)
    return () if value == (default if default is not None else getattr(matching, name)) else ((name, value),)


def returned(config: Config) -> list[Cell]:
    """What the pools hold for poisoned and for clean pairs, at the end of a run."""
    return [Cell("returned", regime, method, measure, attack, "last", seed=config.seeds[0]) for regime, method in
            (("pretrain", "roclip"), ("pretrain", "released"), ("finetune", "roclip")) for attack in ("targets", "none") for measure in RETURNED]


def cost(config: Config) -> list[Cell]:
    """Seconds of an update, at equal augmentation."""
    return [Cell("cost", "pretrain", method, "seconds", seed=config.seeds[0]) for method in COSTED]


def gate_cells(config: Config) -> list[Cell]:
    """What the gates read: plain CLIP without and with augmentation."""
    return [c for c in score(config) if c.method in PLAIN and c.measure != "similarity"]


def cells(config: Config) -> list[Cell]:
    """All measurements of this configuration, each once."""
    out = [*score(config), *downstream(config)]
    if not config.headline:
        out += [*epochs(config), *strong(config), *ablation(config), *returned(config), *cost(config)]
    return list(dict.fromkeys(out))


def runs(planned: list[Cell]) -> list[Run]:
    """The trainings behind some cells, each once; CleanCLIP begins with the CLIP that fine-tuning has poisoned."""
    found = dict.fromkeys(c.run for c in planned if c.kind != "cost")
    behind = [Run("finetune", "clip", r.seed) for r in found if r.method == "cleanclip"]
    return list(dict.fromkeys([*behind, *found]))
