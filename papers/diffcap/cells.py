"""Every measurement of the reproduction, as data: which model, which pictures, under which attack, behind which defence.

Pictures are attacked first (`Source`): for a purifier the undefended model (the paper's gray box), for TeCoA and FARE the model with that encoder.
Measurements (`Cell`) then read the attacked pictures of their source.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from papers.diffcap.config import Config
from shared.experiment.store import slug

TOWERS = ("tecoa", "fare")  # robust encoders: defences that change the model
PURIFIERS = ("jpeg", "bits", "resize_pad", "blur", "resize", "noise", "diffpure", "diffcap")  # defences in front of it
RANDOM = ("resize_pad", "noise", "diffpure", "diffcap")
ROWS = ("none", *TOWERS, *PURIFIERS)  # and `clipure`, which exists for classification only
HEADLINE_ROWS = ("none", *TOWERS, "jpeg", "diffpure", "diffcap")
CLASSIFIER = "clip"


@dataclass(frozen=True)
class Source:
    """Pictures under one attack: model (clip, llava, flamingo), its encoder (base, tecoa, fare), set, and ε (0: unchanged pictures)."""

    model: str
    tower: str
    spec: str
    eps: float

    @property
    def name(self) -> str:
        return slug(self.model, self.tower, self.spec, f"{self.eps * 255:g}")


@dataclass(frozen=True)
class Cell:
    """One measurement. point: what is varied, as (name, value) pairs; they become tags."""

    kind: str
    method: str
    model: str
    spec: str
    eps: float = 0.0
    seed: int = 0
    point: tuple[tuple[str, float | str], ...] = ()

    @property
    def tower(self) -> str:
        return self.method if self.method in TOWERS else "base"

    @property
    def source(self) -> Source:
        """The pictures that the measurement reads."""
        return Source(self.model, self.tower, self.spec, self.eps)

    @property
    def task(self) -> str:
        return "captions" if "captions" in self.spec or self.spec in ("coco", "flickr30k") else "classes" if self.model == CLASSIFIER else "questions"

    def slug(self) -> str:
        point = [f"{k}-{_written(v)}" for k, v in self.point]
        return slug(self.kind, self.method, self.model, self.spec, f"{self.eps * 255:g}", f"seed{self.seed}", *point)

    def tags(self, config: Config) -> dict:
        """What a table selects by. `set` is unique to (model, set, ε), since means are taken over it; `data` is the set alone. `strength`
        is the place of ε among the preset's, 0 for clean pictures, and `factor` Δt over its default, so that claims can name them at every scale."""
        strength = 0 if self.eps == 0 else 1 + config.attack.eps.index(self.eps) if self.eps in config.attack.eps else -1
        places = {"captions": config.data.captions, "questions": config.data.questions, "classes": config.data.classes}[self.task]
        place = 1 + places.index(self.spec) if self.spec in places else 0
        factor = {"factor": dict(self.point)["dt"] / config.method.dt} if "dt" in dict(self.point) else {}
        return {"kind": self.kind, "method": self.method, "model": self.model, "data": self.spec, "task": self.task, "place": place,
                "set": f"{self.model} {self.spec} {self.eps * 255:g}", "eps": self.eps, "strength": strength,
                "attack": "clean" if self.eps == 0 else "adversarial", "seed": self.seed, **dict(self.point), **factor}


def _written(value: float | str) -> str:
    return f"{value:g}".replace("-", "m") if isinstance(value, float) else str(value)


def worlds(config: Config) -> Iterator[tuple[str, str]]:
    """(model, set) of the main tables: two language models on four sets, CLIP on two."""
    for model in ("llava", "flamingo"):
        for spec in (*config.data.captions, *config.data.questions):
            yield model, spec
    for spec in config.data.classes:
        yield CLASSIFIER, spec


def rows(config: Config, model: str) -> tuple[str, ...]:
    """The defences of the main tables."""
    base = HEADLINE_ROWS if config.headline else ROWS
    return (*base, "clipure") if model == CLASSIFIER else base


def scores(config: Config) -> list[Cell]:
    """The main tables: every model, set, strength and defence; random defences once per seed."""
    out = []
    for model, spec in worlds(config):
        for eps in (0.0, *config.attack.eps):
            for method in rows(config, model):
                out += [Cell("score", method, model, spec, eps, seed) for seed in (config.seeds if method in RANDOM else config.seeds[:1])]
    return out


def stops(config: Config) -> list[Cell]:
    """Diffusion times of both purifiers in the main tables."""
    return [Cell("stop", c.method, c.model, c.spec, c.eps, c.seed) for c in scores(config)
            if c.method in ("diffcap", "diffpure") and c.seed == config.seeds[0]]


def gate_cells(config: Config) -> list[Cell]:
    """What the gates read: the undefended models on the first set of each task, clean and at the largest ε, and DiffPure on clean pictures."""
    firsts = (config.data.captions[0], config.data.questions[0], config.data.classes[0])
    out = [c for c in scores(config) if c.spec in firsts and c.method == "none" and c.eps in (0.0, config.attack.eps[-1])]
    return [*out, *(c for c in scores(config) if c.method == "diffpure" and c.spec == firsts[2] and c.eps == 0 and c.seed == config.seeds[0])]


def cells(config: Config) -> list[Cell]:
    """All measurements of this configuration."""
    out = [*scores(config), *stops(config)]
    first, zsc, caption, worst = config.seeds[0], config.data.classes[0], config.data.captions[0], config.attack.eps[-1]
    for spec in (*config.data.captions, *config.data.questions, *config.data.classes):
        out.append(Cell("tau", "diffcap", "phi", spec, config.method.calibration_eps, first))
    for t in config.sweeps.times:  # the abstract speaks of a monotone fading and of less diffusion time
        out += [Cell("fading", "none", CLASSIFIER, zsc, worst, first, (("t", t),))]
    out += [Cell("cost", m, CLASSIFIER, zsc, worst, first, (("quantity", q),)) for m in ("diffpure", "diffcap") for q in COSTS]
    out += [Cell("recovery", m, CLASSIFIER, zsc, eps, first) for m in ("noised", "purified") for eps in config.attack.eps]
    grid = [(("offset", o), ("dt", dt)) for o in config.sweeps.taus for dt in config.sweeps.dts]
    out += [Cell("ablation", "diffcap", CLASSIFIER, zsc, worst, first, point) for point in grid]
    if config.headline:
        return out
    out += [Cell("ablation", "diffcap", CLASSIFIER, zsc, 0.0, first, point) for point in grid]
    out += [Cell("fixed", "diffpure", CLASSIFIER, zsc, eps, first, (("t", t),)) for t in config.sweeps.fixed for eps in (0.0, *config.attack.eps)]
    out += [Cell("variant", v, CLASSIFIER, zsc, eps, first) for v in VARIANTS for eps in (0.0, *config.attack.eps)]
    for t in range(config.method.dt, config.method.t_max + 1, max(1, config.method.t_max // 20 // config.method.dt) * config.method.dt):
        out += [Cell("similarity", who, CLASSIFIER, zsc, worst, first, (("t", t),)) for who in ("clean", "adversarial", "noise")]
    out += [Cell("calibration", "diffcap", "phi", zsc, config.method.calibration_eps, first, (("pairs", n),)) for n in subset_sizes(config)]
    for method in ("diffpure", "diffcap"):
        for attack in ADAPTIVE[method]:
            out += [Cell("adaptive", method, CLASSIFIER, zsc, config.adaptive.eps, first, (("against", attack), ("judged", how))) for how in JUDGED]
        out += [Cell("adaptive_caption", method, "llava", caption, config.adaptive.eps, first, (("against", attack), ("judged", how)))
                for attack in ("control", "transfer", "bpda_eot", "exact") for how in ("mean", "worst")]
    out += [Cell("quality", m, CLASSIFIER, zsc, eps, first, (("measure", q),)) for m in ("none", *PURIFIERS) for eps in (0.0, worst)
            for q in ("psnr", "ssim", "clip")]
    out += [Cell("targeted", m, "llava", caption, worst, first, (("string", s),))
            for m in ("none", *TOWERS, "jpeg", "diffpure", "diffcap") for s in config.attack.strings]
    out += [Cell("digits", m, "probe", "digits:all", eps, first) for m in DIGITS for eps in (0.0, worst)]
    out += [Cell("digits_stop", m, "probe", "digits:all", eps, first) for m in ("diffcap", "diffcap_own") for eps in (0.0, worst)]
    out.append(Cell("tau", "diffcap", "phi", "digits:all", config.method.calibration_eps, first))
    out.append(Cell("strip", "diffcap", "llava", caption, worst, first))
    return out


COSTS = ("denoiser_calls", "encoder_calls", "encoder_seconds", "reverse_seconds", "seconds")
VARIANTS = ("redraw", "x_t/alpha", "other_phi", "max_similarity")  # one field of DiffCAP changed, τ calibrated as always
DIGITS = ("none", "diffpure", "diffcap", "diffcap_own")  # the last with τ calibrated on digits
JUDGED = ("one", "mean", "worst", "majority")
ADAPTIVE = {"diffpure": ("control", "transfer", "bpda", "bpda_eot", "exact"),
            "diffcap": ("control", "transfer", "bpda", "bpda_eot", "exact", "early_stop", "from_diffpure")}


def subset_sizes(config: Config) -> list[int]:
    """Sizes of the calibration sets whose spread is shown."""
    n = config.method.calibration_n
    return sorted({min(n, max(2, n // share)) for share in (10, 4, 2, 1)})
