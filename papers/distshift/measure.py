"""The store side of a measurement: what identifies a cell, how long it takes, the gates; how each kind is measured stands in `kinds.py`."""

import time
from dataclasses import replace

from papers.distshift.attacked import Attacked
from papers.distshift.cells import DIFFUSION, Cell, gate_cells
from papers.distshift.kinds import KINDS
from papers.distshift.models import Bench
from shared.experiment.evaluation import Values, save
from shared.experiment.scale import plain, show_eps
from shared.experiment.store import Store, gate
from shared.files import digest

CODE = "distshift-measure-1"  # raise it when the meaning of a measurement changes: everything is then measured again
# what of the sweeps a kind reads
READS = {"eps": ("n",), "time": ("n",), "rounds": ("n",), "scale": ("n",), "variant": ("n",), "quality": ("quality_n",), "strip": ("strip",),
         "distribution": ("features_n", "block", "permutations"), "cost": ("cost_n", "cost_repeats")}
# the defences behind what is not the row of one defence
BEHIND = {"strip": ("diffpure", "distshift"), "clean": (), "adversarial": (), "diffused": ("diffpure",), "diffpure": ("diffpure",),
          "purified": ("distshift",), "purified_clean": ("distshift",)}


class Measurer:
    """Measures cells and keeps them in the store, under a key of all that they depend on."""

    def __init__(self, bench: Bench):
        self.bench, self.config, self.attacked = bench, bench.config, Attacked(bench)
        self.store = Store(self.config.results / bench.scale / "distshift")
        self.held: dict = {}  # what several cells are made of, e.g. one attack judged in four ways

    def key(self, cell: Cell) -> str:
        """Identity of everything a cell depends on: victim, pictures, attack, defence, and this code's version."""
        config, bench = self.config, self.bench
        parts = [CODE, cell.kind, cell.method, cell.seed, list(cell.point), bench.identity(cell.spec, cell.victim), self.attacked.key(cell.source),
                 [plain(getattr(config.sweeps, name)) for name in READS.get(cell.kind, ())]]
        if cell.kind == "adaptive":
            settings = {k: v for k, v in plain(config.adaptive).items() if k not in ("norms", "apgd", "square_n", "square_queries")}
            square = [config.adaptive.square_n, config.adaptive.square_queries] if dict(cell.point)["against"] == "square" else []
            parts += [settings, square, config.attack.seed]
        if cell.kind != "norm":
            name = cell.method if cell.kind == "distribution" else cell.kind
            parts += [bench.defence_key(cell, method) for method in BEHIND.get(name, (cell.method,))]
        return digest(parts)

    # -- measuring ------------------------------------------------------------------------------------------------------------------------

    def measure(self, group: list[Cell]) -> None:
        """Measure and save some cells."""
        for cell in group:
            began = time.monotonic()
            measured: Values = KINDS[cell.kind](self, cell)
            if measured.sanity is None and cell.kind == "score":
                measured = replace(measured, sanity=self.attacked.sanity(cell.source))
            skipped = self.attacked.world(cell.source).skipped
            save(self.store, cell, self.key(cell), self.config, measured, time.monotonic() - began, (cell.seed,), skipped)

    def cost(self, group: list[Cell]) -> float:
        """How long a group takes, roughly: passes through the diffusion model."""
        m, a, s = self.config.method, self.config.adaptive, self.config.sweeps
        total = 0.0
        for cell in group:
            point = dict(cell.point)
            weight = {"distshift": 3.0 * m.rounds, "gdmp": float(self.config.baselines.gdmp_rounds), "diffpure": 1.0}.get(cell.method, 0.05)
            if cell.kind == "adaptive":
                each = {"exact": 3, "apgd": 3, "exact_first_order": 3, "guide": 1, "bpda": 1 / a.eot, "bpda_eot": 1}
                passes = each.get(point["against"], 0) * a.steps * a.eot
                checks = 8 * a.sanity_n * a.steps * a.eot if point["against"] == "exact" and cell.method in DIFFUSION else 0
                searched = a.square_n * a.square_queries if point["against"] == "square" else 0
                total += weight * m.sampler_steps * (a.n * (a.draws + passes) + checks + searched) / 4  # four cells share one attack
            else:
                n = {"score": self.config.data.n or 10_000, "quality": s.quality_n / 2, "distribution": s.features_n / 2, "cost": 4 * s.cost_n * 2,
                     "strip": s.strip, "norm": 1}.get(cell.kind, s.n)
                if cell.kind == "distribution":
                    weight = {"purified": 3.0, "purified_clean": 3.0, "diffpure": 1.0}.get(cell.method, 0.05)
                total += weight * m.sampler_steps * n * float(point.get("rounds", 1)) / (4 if cell.kind == "cost" else 1)
        return total

    # -- gates ----------------------------------------------------------------------------------------------------------------------------

    def gates(self, write: bool) -> list[dict]:
        """What must hold of the undefended victims (config.Gates), read off measured cells; the main process records it."""
        g, config = self.config.gates, self.config
        found = {(c.method, c.spec, c.attack, c.norm): self.store.read(c.slug()).value for c in gate_cells(config)}
        out = []
        for p in config.protected:
            clean = found["none", p.data, "clean", ""]
            out.append(gate(f"{p.data}: clean accuracy", clean, g.clean, ">=", p.weights))
            for norm, bar in (("linf", g.linf), ("l2", g.l2)):
                out.append(gate(f"{p.data}: accuracy under the cascade, {norm} {show_eps(config.attack.budget(norm))}",
                                found["none", p.data, "autoattack", norm], bar, "<=", p.weights))
            out.append(gate(f"{p.data}: clean accuracy lost to DiffPure", clean - found["diffpure", p.data, "clean", ""], g.purified, "<=",
                            f"t* = {self.bench.time(p.data)}"))
        if write:
            self.store.write_gates(out)
        return out
