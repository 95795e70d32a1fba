"""Measure cells and keep them: keys, gates, and what several cells are made of."""

import time

from papers.roclip.cells import Cell, gate_cells
from papers.roclip.kinds import KINDS
from papers.roclip.models import Bench
from shared.attacks.triggers import at_test
from shared.experiment.evaluation import Values, save
from shared.experiment.scale import plain
from shared.experiment.store import Store, gate
from shared.files import digest

CODE = "roclip-measure-1"  # raise it when the meaning of a measurement changes: everything is then measured again
WORK = {"score": 0.2, "epoch": 0.02, "downstream": 0.5, "returned": 4.0, "cost": 40.0}  # seconds, roughly


class Measurer:
    """Measures cells and keeps them in the store, under a key of all that they depend on."""

    def __init__(self, bench: Bench):
        self.bench, self.config = bench, bench.config
        self.store = Store(self.config.results / bench.scale / "roclip")
        self.held: dict = {}  # what several cells are made of, for the latest CLIP

    def key(self, cell: Cell) -> str:
        """Identity of everything a cell depends on: weights, pictures, triggers, and this code's version."""
        config, bench = self.config, self.bench
        spec = cell.data or config.data.main
        parts = [CODE, cell.kind, cell.measure, cell.attack]
        if cell.kind == "cost":
            return digest([*parts, cell.method, bench.origin(cell.regime), config.pretraining.batch, config.sweeps.cost_steps,
                           plain(config.methods.images), plain(cell.run.matching(config))])
        if cell.kind == "epoch":
            return digest([*parts, cell.epoch, bench.identity(cell.run, "history")])
        if cell.kind == "returned":
            made = [bench.identity(cell.run, what) for what in ("pools", self.last_of(cell))]
            return digest([*parts, *made, config.sweeps.strip, config.watch_n])
        parts += [bench.identity(cell.run, cell.scored), config.data.n, config.data.seed, bench.labelled(spec).version]
        if cell.attack in config.attacks.planted:
            parts.append(plain(bench.trigger(cell.attack).spec))
        if cell.measure == "linear_probe":
            parts += [config.data.probe_n, plain(config.probing), bench.labelled(spec, "train").version]
        return digest(parts)

    def last_of(self, cell: Cell) -> str:
        """The name of the last epoch's weights."""
        epochs = cell.run.epochs(self.config)
        return max(epochs, key=epochs.get)

    # -- measuring ------------------------------------------------------------------------------------------------------------------------

    def measure(self, group: list[Cell]) -> None:
        """Measure and save some cells."""
        for cell in group:
            began = time.monotonic()
            name = (cell.run, cell.scored)
            if self.held.get("of") != name:  # those of another CLIP are not asked for again
                self.held = {"of": name}
            measured: Values = KINDS[cell.kind](self, cell)
            skipped = () if cell.kind in ("epoch", "cost") else self.bench.world(cell.data or self.config.data.main).skipped
            save(self.store, cell, self.key(cell), self.config, measured, time.monotonic() - began, (cell.seed,), skipped)

    def once(self, name: object, make):
        """What `make` returned for the latest CLIP under this name."""
        if name not in self.held:
            self.held[name] = make()
        return self.held[name]

    def triggered(self, attack: str):
        """The test pictures of the main set with a trigger; of few pictures those of all backdoors are kept."""
        bench, keep = self.bench, len(self.config.attacks.planted) if 0 < self.config.data.n <= 1024 else 1
        world = bench.world(bench.main)
        return bench.lately(("triggered", attack), lambda: at_test(bench.trigger(attack), world.x, world.indices), keep)

    def cost(self, group: list[Cell]) -> float:
        """How long a group takes, roughly, in seconds of one core."""
        per = (self.config.data.n or 10_000) / 512
        return sum(WORK.get(c.kind, WORK["score"]) * (1.0 if c.kind == "epoch" else per) for c in group) + 0.5

    # -- gates ----------------------------------------------------------------------------------------------------------------------------

    def gates(self, write: bool) -> list[dict]:
        """What must hold of plain CLIP (config.Gates), read off measured cells, mean over seeds; the main process records it.

        Backdoors that need not take are recorded too, with a threshold of 0.
        """
        g, found = self.config.gates, {}
        for cell in gate_cells(self.config):
            found.setdefault((cell.regime, cell.method, cell.measure, cell.attack), []).append(self.store.read(cell.slug()).value)
        out = []
        for (regime, method, measure, attack), values in found.items():
            of = {"psr": "poison success (targets)", "bsr": f"success of the backdoor {attack}", "accuracy": "zero-shot accuracy"}[measure]
            threshold = getattr(g, measure) if measure != "bsr" or attack in g.attacks else 0.0
            training = "pre-training" if regime == "pretrain" else "fine-tuning"
            name = f"{training}, CLIP {'with' if method == 'clip_aug' else 'without'} augmentation: {of}"
            out.append(gate(name, sum(values) / len(values), threshold, ">=", "" if threshold else "not asked of this backdoor"))
        if write:
            self.store.write_gates(out)
        return out
