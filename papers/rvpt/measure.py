"""The store side of a measurement: what identifies a cell, how long it takes, the gates; how each kind is measured stands in `kinds.py`."""

import time
from dataclasses import replace

import torch

from papers.rvpt import pictures, runs
from papers.rvpt.cells import Cell, Poison, gate_cells
from papers.rvpt.downstream import SHOWN
from papers.rvpt.kinds import KINDS, predict
from papers.rvpt.models import Bench
from shared.attacks.triggers import at_test
from shared.experiment.evaluation import Values, save
from shared.experiment.scale import plain
from shared.experiment.store import Store, gate
from shared.files import digest
from shared.metrics import backdoor

CODE = "rvpt-measure-1"  # raise it when the meaning of a measurement changes: everything is then measured again
# what of the sweeps a kind reads
READS = {**pictures.READS, "caption": ("captions_n",), "retrieval": ("candidates", "retrieval_poisoned"), "cost": ("cost_repeats",)}
WORK = {"resistivity": 6.0, "adaptive": 60.0, "adversarial": 15.0, "caption": 12.0, "retrieval": 4.0, "cost": 40.0, "embedding": 8.0}


class Measurer:
    """Measures cells and keeps them in the store, under a key of all that they depend on."""

    def __init__(self, bench: Bench):
        self.bench, self.config = bench, bench.config
        self.store = Store(self.config.results / bench.scale / "rvpt")
        self.held: dict = {}  # what several cells are made of, e.g. predictions that are counted in three ways

    def key(self, cell: Cell) -> str:
        """Identity of everything a cell depends on: the model, the trigger, the pictures, and this code's version."""
        config, bench = self.config, self.bench
        parts = [CODE, cell.kind, cell.measure, cell.at, cell.tuned, [list(p) for p in (*cell.changes, *cell.point)], config.data.n, config.data.seed,
                 bench.labelled(config.spec(cell.at)).version, *config.template(cell.at), config.place(cell.place).target,
                 [plain(getattr(config.sweeps, name)) for name in READS.get(cell.kind, ())]]
        if cell.method == "supervised":
            run = runs.Supervised(0)
            parts.append(bench.key(run) if config.models.supervised == "train" else config.models.supervised)
        else:
            parts.append(bench.identity(cell.poison, cell.defence))
        parts.append(bench.trigger_key(cell.attack, cell.backbone))
        if cell.kind == "score" and cell.measure != "ca":  # its sanity checks look at the clean CLIP too
            parts.append(bench.origin(cell.backbone))
        if cell.kind in ("adversarial", "adaptive"):
            parts.append(plain(config.adversary))
        if cell.kind in SHOWN:
            parts.append(SHOWN[cell.kind](self))
        if cell.kind == "triggers":
            parts += [bench.trigger_key(a, "first") for a in config.attacked]
        return digest(parts)

    # -- measuring ------------------------------------------------------------------------------------------------------------------------

    def measure(self, group: list[Cell]) -> None:
        """Measure and save some cells."""
        for cell in group:
            began = time.monotonic()
            measured: Values = KINDS[cell.kind](self, cell)
            skipped = self.bench.world(self.config.spec(cell.at)).skipped
            save(self.store, cell, self.key(cell), self.config, measured, time.monotonic() - began, (cell.seed,), skipped)

    def sanity(self, cell: Cell) -> dict:
        """Checks of a backdoor, on the first pictures of the cell's set; made once per poisoned CLIP and process.

        The trigger alone must not do it: the clean CLIP answers it less often than the poisoned one does. The backdoor must not be a bias: without
        the trigger the poisoned CLIP names the target no more often than a tenth of the pictures of other classes. Draws are by index: a picture's
        trigger is the same in any batch.
        """
        poison = Poison(cell.backbone, cell.attack, cell.place, cell.seed)
        name = ("sanity", poison, cell.at)
        if name not in self.held:
            self.held[name] = self._sanity(replace(cell, method="none", changes=(), point=(), kind="score"))
        return self.held[name]

    @torch.no_grad()
    def _sanity(self, cell: Cell) -> dict:
        bench, world = self.bench, self.bench.world(self.config.spec(cell.at)).part(128)
        trigger, label = bench.trigger(cell.attack, cell.backbone), bench.label(cell.place, cell.at)
        truth, batch = world.y.cpu().numpy(), self.config.batch
        x = at_test(trigger, world.x, world.indices)
        poisoned = backdoor.asr(predict(bench.classifier(cell, trigger), x, batch), truth, label).mean()
        untriggered = backdoor.asr(predict(bench.classifier(cell), world.x, batch), truth, label).mean()
        clean = backdoor.asr(predict(bench.classifier(replace(cell, method="clean"), trigger), x, batch), truth, label).mean()
        alone = at_test(trigger, world.x[3:4], world.indices[3:4])
        return {"the trigger alone does not do it": {"passed": bool(clean < poisoned), "detail": f"clean CLIP {clean:.3f}, poisoned {poisoned:.3f}"},
                "nothing happens without the trigger": {"passed": bool(untriggered <= 0.1), "detail": f"target named {untriggered:.3f}"},
                "independent of the batch": {"passed": bool(torch.equal(alone, x[3:4])), "detail": ""}}

    def cost(self, group: list[Cell]) -> float:
        """How long a group takes, roughly: pictures that pass through a tower, in sets."""
        per = self.config.data.n or 10_000
        opened = 2.0 if any(c.defence is not None for c in group) else 1.0
        return sum(WORK.get(c.kind, 1.0) for c in group) * per / 512 + opened

    # -- gates ----------------------------------------------------------------------------------------------------------------------------

    def gates(self, write: bool) -> list[dict]:
        """What must hold of every attack (config.Gates), read off measured cells, mean over seeds; the main process records it."""
        g, found, clean = self.config.gates, {}, {}
        for cell in gate_cells(self.config):
            values = clean if cell.method == "clean" and cell.measure == "ca" else found if cell.method == "none" else None
            if values is not None:
                name = (cell.backbone, cell.place) if values is clean else (cell.backbone, cell.place, cell.attack, cell.measure)
                values.setdefault(name, []).append(self.store.read(cell.slug()).value)
        clean = {k: sum(v) / len(v) for k, v in clean.items()}
        out = [gate(f"clean accuracy of the clean model, backbone {backbone}", value, g.clean, ">=", self.config.backbone(backbone).weights)
               for (backbone, place), value in clean.items() if place == "main"]
        for (backbone, place, attack, measure), values in found.items():
            value, name = sum(values) / len(values), f"{attack}, backbone {backbone}, {self.config.spec(place)}"
            if measure == "asr":
                out.append(gate(f"{name}: attack success rate", value, g.asr, ">=", f"target {self.config.place(place).target}"))
            else:
                out.append(gate(f"{name}: clean accuracy lost to the poison", clean[backbone, place] - value, g.allowed(place), "<=",
                                f"clean model {clean[backbone, place]:.3f}"))
        if write:
            self.store.write_gates(out)
        return out
