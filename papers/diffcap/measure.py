"""The store side of a measurement: what identifies a cell, how long it takes, the gates; how each kind is measured stands in `kinds.py`."""

import time
from dataclasses import replace
from functools import cached_property

import torch

from papers.diffcap.attacked import Attacked
from papers.diffcap.cells import CLASSIFIER, Cell, cells, gate_cells
from papers.diffcap.kinds import KINDS
from papers.diffcap.method import Calibration
from papers.diffcap.models import Bench
from shared.errors import UserError
from shared.experiment.evaluation import Values, save
from shared.experiment.scale import plain, show_eps
from shared.experiment.store import Measurement, Store, gate
from shared.files import digest

CALIBRATED = ("diffcap", "redraw", "x_t/alpha", "max_similarity")  # methods that stop by τ
CODE = "diffcap-measure-1"  # raise it when the meaning of a measurement changes: everything is then measured again
# what of the sweeps and the adaptive attackers a kind reads, besides the method itself
READS = {"similarity": ("n",), "fading": ("n",), "recovery": ("n", "times"), "ablation": ("n",), "fixed": ("n",), "variant": ("n",),
         "quality": ("quality_n",), "digits": ("digits_n",), "digits_stop": ("digits_n",), "cost": ("cost_n", "cost_repeats"), "strip": ("strip",)}


class Measurer:
    """Measures cells and keeps them in the store, under a key of all that they depend on."""

    def __init__(self, bench: Bench):
        self.bench, self.config, self.attacked = bench, bench.config, Attacked(bench)
        self.store = Store(self.config.results / bench.scale / "diffcap")
        self.held: dict = {}  # what several cells are made of, e.g. one attack judged in four ways

    @cached_property
    def tau(self) -> float:
        """τ: as given, or the mean over the sets' calibration pairs (Algorithm 2), which must have been measured."""
        given = self.config.method.tau
        return self.calibrated.tau if given is None else given

    @property
    def calibrated(self) -> Calibration:
        """The similarities of the calibration pairs, as measured."""
        found = [self.store.load(cell.slug()) for cell in self.tau_cells]
        if any(m is None or m.key != self.key(c) for m, c in zip(found, self.tau_cells, strict=True)):
            raise UserError("τ has not been calibrated: run the evaluation with the same options, which does it first.")
        return Calibration({c.spec: torch.from_numpy(m.values) for c, m in zip(self.tau_cells, found, strict=True)})

    @property
    def tau_cells(self) -> list[Cell]:
        """The pairs behind τ: one set each."""
        return [c for c in cells(self.config) if c.kind == "tau" and c.spec != "digits:all"]

    def key(self, cell: Cell) -> str:
        """Identity of everything a cell depends on: victim, pictures, attack, defence, and this code's version."""
        config, parts = self.config, [CODE, cell.kind, cell.method, cell.seed, list(cell.point), cell.eps]
        if cell.model in (CLASSIFIER, "llava", "flamingo"):
            parts += [self.bench.identity(cell.model, cell.tower), self.attacked.key(cell.source)]
        parts += [{name: plain(getattr(config.sweeps, name)) for name in READS.get(cell.kind, ())}]
        if cell.kind in ("tau", "calibration", "digits", "digits_stop"):
            m = config.method
            parts += [self.bench.phi_identity, self.bench.identity(CLASSIFIER, "base"), m.calibration_n, m.calibration_eps, m.calibration_steps,
                      [self.bench.version(spec, task, "validation") for spec, task in self.sets] if cell.spec != "digits:all" else "digits"]
        if cell.kind.startswith("adaptive"):
            parts.append(plain(config.adaptive))
        if cell.kind == "targeted":
            parts.append([config.attack.target_steps, config.attack.target_n])
        if cell.kind not in ("tau", "calibration"):
            parts.append(self.bench.purifier_key(cell))
            if cell.kind not in ("score", "quality", "targeted"):
                parts.append(self.settings)
            if cell.method in CALIBRATED:
                parts.append(self.tau_key)
        return digest(parts)

    @cached_property
    def settings(self) -> list:
        """What all purification depends on but for τ."""
        m = {k: v for k, v in plain(self.config.method).items() if k not in ("batch", "recompute", "tau")}
        return [self.bench.phi_identity, self.bench.denoiser_identity, m]

    @cached_property
    def tau_key(self) -> object:
        """What τ is made of; known before it is measured."""
        given = self.config.method.tau
        return [given] if given is not None else [self.settings, [self.key(c) for c in self.tau_cells]]

    @property
    def sets(self) -> list[tuple[str, str]]:
        """(set, task) of the main tables."""
        d = self.config.data
        return [(s, task) for task, specs in (("captions", d.captions), ("questions", d.questions), ("classes", d.classes)) for s in specs]

    # -- measuring ------------------------------------------------------------------------------------------------------------------------

    def measure(self, group: list[Cell]) -> None:
        """Measure and save some cells."""
        for cell in group:
            began = time.monotonic()
            measured: Values = KINDS[cell.kind](self, cell)
            if measured.sanity is None and cell.kind == "score" and cell.eps:
                measured = replace(measured, sanity=self.attacked.sanity(cell.source))
            skipped = self.attacked.world(cell.source).skipped if cell.model in (CLASSIFIER, "llava", "flamingo") else ()
            save(self.store, cell, self.key(cell), self.config, measured, time.monotonic() - began, (cell.seed,), skipped)

    def cost(self, group: list[Cell]) -> float:
        """How long a group takes, roughly: passes through the diffusion model."""
        m, a = self.config.method, self.config.adaptive
        total = 0.0
        for cell in group:
            n = self.config.data.n or 1000
            one = n * (m.sampler_steps + 2)
            if cell.kind.startswith("adaptive"):
                heavy = dict(cell.point)["against"] in ("exact", "from_diffpure", "early_stop")
                total += a.n * m.sampler_steps * (a.draws + a.steps * a.eot * (4 if heavy else 1)) / 4  # four cells share one attack
            elif cell.kind == "recovery":
                total += one * len(self.config.sweeps.times)
            elif cell.kind in ("targeted",):
                total += 6 * self.config.attack.target_n * self.config.attack.target_steps / 10
            else:
                total += one if cell.method in ("diffpure", "diffcap", "diffcap_own") else n
        return total

    # -- gates ----------------------------------------------------------------------------------------------------------------------------

    def gates(self, write: bool) -> list[dict]:
        """What must hold of the undefended models (config.Gates), read off measured cells; the main process records it."""
        g, data = self.config.gates, self.config.data
        found = {c: self.store.read(c.slug()) for c in gate_cells(self.config)}

        def value(model: str, spec: str, eps: float, method: str = "none") -> Measurement:
            return next(m for c, m in found.items() if (c.model, c.spec, c.eps, c.method) == (model, spec, eps, method))

        out, worst = [], self.config.attack.eps[-1]
        for model, spec, what in (("llava", data.captions[0], "captions"), ("flamingo", data.captions[0], "captions"),
                                  ("llava", data.questions[0], "questions"), ("flamingo", data.questions[0], "questions"),
                                  (CLASSIFIER, data.classes[0], "classes")):
            clean, attacked = value(model, spec, 0.0), value(model, spec, worst)
            if what == "captions" and spec.startswith("scenes-"):
                out.append(gate(f"{model}: captions with the right colour and shape", float(clean.extra["named"].mean()), g.clean, ">=", spec))
            elif what != "captions":
                out.append(gate(f"{model}: clean score on {what}", clean.value, g.clean, ">=", spec))
            out.append(gate(f"{model}: share of the clean score on {what} under the attack at {show_eps(worst)}",
                            attacked.value / clean.value if clean.value else 1.0, g.broken, "<=", spec))
        clean, pure = value(CLASSIFIER, data.classes[0], 0.0), value(CLASSIFIER, data.classes[0], 0.0, "diffpure")
        out.append(gate("clean top-1 lost to DiffPure", clean.value - pure.value, g.purified, "<=", f"t* = {self.config.method.diffpure}"))
        if write:
            self.store.write_gates(out)
        return out
