"""Every measurement of the reproduction, as data: which model, which pictures, under which attack."""

from dataclasses import dataclass

from papers.pmg_aft.config import Config
from papers.pmg_aft.runs import MAIN, Run, runs
from shared.experiment.store import slug

CLIP = "clip"  # the row of the pre-trained model, which is not fine-tuned


@dataclass(frozen=True)
class Strength:
    """One attack of the evaluation. kind: clean, pgd, cw (PGD on the κ margin) or auto (the cascade); multiple: factor on the preset's ε."""

    name: str
    kind: str
    multiple: float = 1.0
    steps: int = 0  # of PGD, where it is not the preset's


@dataclass(frozen=True)
class Cell:
    """One measurement. run None: the pre-trained model. step: a snapshot of the training (None: its end). n: pictures (0: all)."""

    kind: str  # accuracy | curve | test_batch | cost
    method: str
    run: Run | None
    strength: Strength | None = None
    spec: str = ""
    role: str = ""
    n: int = 0
    step: int | None = None
    point: float | str | None = None  # test_batch: the batch size; cost: the quantity

    @property
    def model(self) -> tuple[str, int, int | None]:
        """Cells of one model are measured together."""
        return (self.method, -1 if self.run is None else self.run.seed, self.step)

    @property
    def set_name(self) -> str:
        """The set's own name, without its kind."""
        return self.spec.partition(":")[2].lower() or "none"

    @property
    def robust(self) -> bool:
        return self.strength is not None and self.strength.kind != "clean"

    def slug(self) -> str:
        seed = [] if self.run is None else [f"seed{self.run.seed}"]
        extra = [f"step{self.step}"] if self.kind == "curve" else [str(self.point)] if self.point is not None else []
        return slug(self.kind, self.method, *seed, *([self.strength.name] if self.strength else []), *([self.set_name] if self.spec else []), *extra)

    def tags(self, config: Config) -> dict:
        """What a table selects by."""
        tags = {"kind": self.kind, "method": self.method, "seed": config.seeds[0] if self.run is None else self.run.seed, "set": self.set_name}
        if self.strength is not None:
            eps = 0.0 if self.strength.kind == "clean" else self.strength.multiple * config.attack.eps
            tags |= {"attack": self.strength.name, "eps": eps, "multiple": self.strength.multiple}
        if self.role:
            tags["role"] = self.role
        if self.kind == "curve":
            tags["step"] = self.step
        if self.point is not None:
            tags["point"] = self.point
        if self.kind == "test_batch":  # the place of the batch size among those measured, so that claims can name it at every scale
            tags["order"] = config.sweeps.test_batches.index(self.point) if self.point else -1
        return tags


CLEAN, PGD, CW, AUTO = Strength("clean", "clean"), Strength("pgd", "pgd"), Strength("cw", "cw"), Strength("auto", "auto")
PAIRED = Strength("pgd_paired", "pgd")  # PGD on the cascade's pictures, so that the two can be compared picture by picture


def strengths(config: Config) -> list[Strength]:
    """PGD at the multiples of ε other than 1, weakest first, and the longer PGD if there is one."""
    longer = [Strength("pgd_long", "pgd", steps=config.attack.long_steps)] if config.attack.long_steps else []
    return [*(Strength(f"pgd_x{m:g}", "pgd", float(m)) for m in config.attack.multiples if m != 1), *longer]


def cells(config: Config) -> list[Cell]:
    """All measurements of this configuration. The first ones are those of the pre-trained model, which the gates need."""
    everything = runs(config)
    out = [c for strength in (CLEAN, PGD) for c in _row(config, CLIP, None, strength)]
    for run in everything:
        out += [c for strength in (CLEAN, PGD) for c in _row(config, run.name, run, strength)]
    if config.headline:
        return out
    first = [None, *(r for r in everything if r.seed == config.seeds[0] and r.name in (*MAIN, "pmg_released"))]
    for run in first:
        name = CLIP if run is None else run.name
        for strength in (CW, *strengths(config)):
            out += _row(config, name, run, strength)
        out += [c for strength in (AUTO, PAIRED) for c in _row(config, name, run, strength, n=config.attack.auto_n)]
    for run in (r for r in everything if r.curve):
        for step in [*(s for s in config.sweeps.curve if s < run.tuning.steps), run.tuning.steps]:
            out += [c for strength in (CLEAN, PGD) for c in _row(config, run.name, run, strength, "curve", config.sweeps.curve_n, step)]
    for run in (r for r in first if r is not None and r.name in ("pmg_aft", "pmg_released")):
        out += [Cell("test_batch", run.name, run, Strength("released", "released"), config.data.seen, "seen", config.sweeps.test_batch_n, point=b)
                for b in config.sweeps.test_batches]
        out.append(Cell("test_batch", run.name, run, Strength("correct", "correct"), config.data.seen, "seen", config.sweeps.test_batch_n, point=0))
    out += [Cell("cost", r.name, r, point=p) for r in first if r is not None and r.name in MAIN for p in ("seconds", "megabytes")]
    return out


def _row(config: Config, name: str, run: Run | None, strength: Strength, kind: str = "accuracy", n: int | None = None,
         step: int | None = None) -> list[Cell]:
    data = config.data
    n = data.n if n is None or n == 0 else min(n, data.n) if data.n else n
    roles = [(data.seen, "seen"), *((s, "zero_shot") for s in data.zero_shot), *((s, "holdout") for s in data.holdout)]
    return [Cell(kind, name, run, strength, spec, _role(run, spec, role), n, step) for spec, role in roles]


def _role(run: Run | None, spec: str, role: str) -> str:
    """A set is not zero-shot for a model that was trained on its classes."""
    return "seen" if run is not None and run.train == spec and role == "zero_shot" else role
