"""Every measurement of the reproduction, as data: which set, which pictures, under which attack, behind which defence.

Pictures are attacked first (`Source`): the bare victim (gray box) for everything that stands in front of it, the adversarially trained victim for
itself. Measurements (`Cell`) then read the attacked pictures of their source.
"""

from dataclasses import dataclass

from papers.distshift.config import NORMS, Config
from shared.experiment.store import slug

DIFFUSION = ("diffpure", "gdmp", "distshift")
RANDOM = ("resize_pad", "noise", *DIFFUSION)
ROWS = ("none", "pgd_at", "jpeg", "bits", "tv", "resize_pad", "noise", *DIFFUSION)
HEADLINE_ROWS = ("none", "pgd_at", "jpeg", "bits", "tv", "resize_pad", "diffpure", "distshift")
ATTACKS = ("pgd", "autoattack")
EPS_ROWS = ("none", "pgd_at", "jpeg", "diffpure", "gdmp", "distshift")
EPS_HEADLINE = ("pgd_at", "distshift")
CLEAN = ("clean", "", 0.0)  # attack, norm, ε


@dataclass(frozen=True)
class Source:
    """Pictures under one attack: victim (base, at), set, attack (clean: unchanged pictures), norm, ε."""

    victim: str
    spec: str
    attack: str
    norm: str
    eps: float

    @property
    def name(self) -> str:
        return slug(self.victim, self.spec, self.attack, self.norm, f"{self.eps * 255:g}")


@dataclass(frozen=True)
class Cell:
    """One measurement. point: what is varied, as (name, value) pairs; they become tags."""

    kind: str
    method: str
    spec: str
    attack: str = "clean"
    norm: str = ""
    eps: float = 0.0
    seed: int = 0
    point: tuple[tuple[str, float | str], ...] = ()

    @property
    def victim(self) -> str:
        return "at" if self.method == "pgd_at" else "base"

    @property
    def source(self) -> Source:
        """The pictures that the measurement reads."""
        return Source(self.victim, self.spec, self.attack, self.norm, self.eps)

    def slug(self) -> str:
        point = [f"{k}-{_written(v)}" for k, v in self.point]
        return slug(self.kind, self.method, self.spec, self.attack, self.norm or "none", f"{self.eps * 255:g}", f"seed{self.seed}", *point)

    def tags(self, config: Config) -> dict:
        """What a table selects by. `set` is unique to (set, attack, norm, ε), since means are taken over it; `data` is the set alone, `place` its
        place in the paper's order. `times` is ε over that of the main tables, so that claims can name it at every scale."""
        place = [p.data for p in config.protected].index(self.spec) + 1
        times = {"times": self.eps / config.attack.budget(self.norm)} if self.norm else {}
        return {"kind": self.kind, "method": self.method, "data": self.spec, "place": place, "attack": self.attack, "norm": self.norm or "none",
                "set": f"{self.spec} {self.attack} {self.norm} {self.eps * 255:g}", "eps": self.eps, "seed": self.seed, **times, **dict(self.point)}


def _written(value: float | str) -> str:
    return f"{value:g}".replace("-", "m") if isinstance(value, float) else str(value)


def conditions(config: Config, attacks: tuple[str, ...] = ATTACKS) -> list[tuple[str, str, float]]:
    """(attack, norm, ε) of the main tables: clean pictures, then every attack in either ball."""
    return [CLEAN, *((attack, norm, config.attack.budget(norm)) for norm in NORMS for attack in attacks)]


def scores(config: Config) -> list[Cell]:
    """The main tables: every set, condition and defence; random defences once per seed."""
    rows = HEADLINE_ROWS if config.headline else ROWS
    return [Cell("score", method, p.data, *condition, seed) for p in config.protected for condition in conditions(config) for method in rows
            for seed in (config.seeds if method in RANDOM else config.seeds[:1])]


def gate_cells(config: Config) -> list[Cell]:
    """What the gates read: the bare victims clean and under the cascade, and DiffPure on clean pictures."""
    return [c for c in scores(config) if c.seed == config.seeds[0] and (
        (c.method == "none" and c.attack in ("clean", "autoattack")) or (c.method == "diffpure" and c.attack == "clean"))]


def cells(config: Config) -> list[Cell]:
    """All measurements of this configuration."""
    first, seed, whole = config.protected[0].data, config.seeds[0], not config.headline
    pgd = ("pgd", "linf", config.attack.linf)
    short = conditions(config, ("pgd",))
    out = scores(config)
    for times in config.sweeps.times:
        if whole or times == 2.0:
            out += [Cell("eps", m, first, "pgd", norm, times * config.attack.budget(norm), seed) for norm in NORMS
                    for m in (EPS_ROWS if whole else EPS_HEADLINE)]
    out += [Cell("adaptive", m, first, "adaptive", norm, config.attack.budget(norm), seed, (("against", against), ("judged", how)))
            for norm in config.adaptive.norms for m, against in adversaries(config) for how in JUDGED]
    out += [Cell("quality", m, first, *condition, seed, (("measure", q),)) for m in (QUALITY if whole else ("none", "distshift"))
            for condition in (short if whole else [pgd]) for q in ("psnr", "ssim")]
    out += [Cell("distribution", state, first, *pgd, seed, (("quantity", q),)) for state in STATES for q in ("mmd2", "p")]
    out += [Cell("norm", m, p.data, *condition, seed, (("measure", q),)) for p in config.protected for m in ("none", "pgd_at")
            for condition in conditions(config)[1:] for q in NORMS]
    if not whole:
        return out
    for condition in short:
        out += [Cell("time", m, first, *condition, seed, (("t", t),)) for m in ("diffpure", "distshift") for t in config.sweeps.t]
        out += [Cell("rounds", m, first, *condition, seed, (("rounds", r),)) for m in ("diffpure", "distshift") for r in config.sweeps.rounds]
        out += [Cell("scale", "distshift", first, *condition, seed, (("scale", s),)) for s in config.sweeps.scales]
        out += [Cell("variant", "distshift", first, *condition, seed, (("variant", v),)) for v in VARIANTS]
    out += [Cell("cost", m, first, *pgd, seed, (("quantity", q),)) for m in DIFFUSION for q in COSTS]
    out.append(Cell("strip", "distshift", first, *pgd, seed))
    return out


QUALITY = ("none", "jpeg", "tv", "noise", *DIFFUSION)
STATES = ("clean", "adversarial", "diffused", "diffpure", "purified", "purified_clean")  # against other clean pictures of the set
COSTS = ("denoiser_calls", "victim_calls", "seconds", "gradient_seconds")
JUDGED = ("one", "mean", "worst", "majority")
ADAPTIVE = {
    "pgd_at": ("exact",),
    "diffpure": ("control", "transfer", "bpda", "bpda_eot", "exact", "square"),
    "gdmp": ("control", "transfer", "bpda_eot", "exact"),
    "distshift": ("control", "transfer", "bpda", "bpda_eot", "exact", "exact_first_order", "guide", "square"),
}
ADAPTIVE_HEADLINE = {"pgd_at": ("exact",), "distshift": ("control", "exact")}


def adversaries(config: Config) -> list[tuple[str, str]]:
    """(defence, attacker)."""
    if config.headline:
        return [(method, against) for method, names in ADAPTIVE_HEADLINE.items() for against in names]
    apgd = [(method, "apgd") for method in ("diffpure", "distshift")] if config.adaptive.apgd else []
    return [(method, against) for method, names in ADAPTIVE.items() for against in names] + apgd


# Guidance with some fields changed; everything else as configured. "coup": as COUP released it (scale 1 on the score, x_t as it is).
VARIANTS: dict[str, dict] = {
    "g1-x_adv": {"kind": "G1", "label": "x_adv", "domain": "x_t"},
    "g1-running": {"kind": "G1", "label": "running", "domain": "x_t"},
    "g1-moving": {"kind": "G1", "label": "moving", "domain": "x_t"},
    "g3-x_adv": {"kind": "G3", "label": "x_adv", "domain": "x0_hat"},
    "g3-running": {"kind": "G3", "label": "running", "domain": "x0_hat"},
    "g2-x_t": {"kind": "G2", "domain": "x_t"},
    "g2-x0_hat": {"kind": "G2", "domain": "x0_hat"},
    "g4-x_t": {"kind": "G4", "domain": "x_t"},
    "g4-x0_hat": {"kind": "G4", "domain": "x0_hat"},
    "unscaled": {"rescale": "none"},
    "coup": {"kind": "G2", "domain": "x_t", "rescale": "none", "unit": "score", "scale": 1.0},
}
