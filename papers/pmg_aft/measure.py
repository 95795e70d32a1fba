"""How each cell is measured: the attacks of the evaluation, the gates, the test-batch defect, the costs."""

import time
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from papers.pmg_aft.cells import CLIP, Cell
from papers.pmg_aft.models import Bench
from papers.pmg_aft.runs import AS_RELEASED, AS_WRITTEN
from shared.attacks import Threat, cascade, check_attack, pgd
from shared.data.base import subset
from shared.errors import UserError
from shared.experiment.evaluation import Values, save
from shared.experiment.scale import plain, show_eps
from shared.experiment.store import Store, gate
from shared.files import digest, sha256_file
from shared.models.victim import ZeroShot
from shared.rng import SampleRng

CODE = "pmg_aft-measure-1"  # raise it when the meaning of a measurement changes: everything is then measured again


class Measurer:
    """Measures cells and keeps them in the store, under a key of all that they depend on."""

    def __init__(self, bench: Bench):
        self.bench, self.config = bench, bench.config
        self.store = Store(self.config.results / bench.scale / "pmg_aft")
        self._chosen: dict[tuple[str, int], list[int]] = {}
        self._pictures: dict[tuple[str, int], tuple] = {}
        self._sanity: dict[tuple, dict] = {}
        self._weights: dict[tuple, str] = {}

    # -- keys -------------------------------------------------------------------------------------------------------------------------

    def key(self, cell: Cell) -> str:
        """Identity of everything a cell depends on: weights, pictures, attack, and this code's version."""
        a, s = self.config.attack, cell.strength
        how = None
        if s is not None and s.kind != "clean":
            how = [s.kind, a.eps * s.multiple, s.steps or a.steps, a.ratio, a.seed]
            how += {"cw": [a.kappa], "auto": [a.auto_steps, a.auto_targets, a.auto_queries]}.get(s.kind, [])
            if cell.kind == "accuracy":  # the sanity checks stand beside it
                how += [a.sanity_n, a.eps, a.steps, self.bench.labelled(self.config.data.seen).version]
        data = [self.bench.labelled(cell.spec).version, cell.n] if cell.spec else [self.config.sweeps.cost_steps, "processor time"]
        face = None if cell.run is None else [cell.run.face.norm, cell.run.face.temperature]
        return digest([CODE, cell.kind, self._model(cell), data, how, face, cell.point, cell.step])

    def _model(self, cell: Cell) -> str:
        if cell.run is None or cell.step == 0:
            return self.bench.base
        final = cell.step is None or cell.step == cell.run.tuning.steps
        path = cell.run.checkpoint(self.config, self.bench.scale, None if final else cell.step)
        if path not in self._weights:
            if not path.is_file():
                raise UserError(f"the trained model {path} is missing: run the training with the same options first.")
            self._weights[path] = digest([self.bench.base, self.bench.run_key(cell.run), sha256_file(path)])
        return self._weights[path]

    # -- measuring --------------------------------------------------------------------------------------------------------------------

    def cost(self, cells: list[Cell]) -> float:
        """How long a group takes, roughly: pictures × passes."""
        a = self.config.attack
        passes = {"clean": 1, "pgd": a.steps, "cw": a.steps, "auto": a.auto_steps * (1 + a.auto_targets) + a.auto_queries, "released": 4 * a.steps,
                  "correct": a.steps}
        return float(sum((cell.n or 10_000) * passes[cell.strength.kind] if cell.strength else 2000 for cell in cells))

    def measure(self, cells: list[Cell]) -> None:
        """Measure and save cells of one model."""
        visual = self._visual(cells[0])
        for cell in cells:
            began = time.monotonic()
            if cell.kind == "cost":
                values, unit = self._cost(cell), {"seconds": "s", "megabytes": "MB"}[cell.point]
            else:
                values, unit = self._correct(cell, visual), "share"
            seconds = time.monotonic() - began
            skipped = getattr(self.bench.labelled(cell.spec), "skipped", ()) if cell.spec else ()
            sanity = self._checked(cell, visual) if cell.robust and cell.kind == "accuracy" else None
            seeds = () if cell.run is None else (cell.run.seed,)
            save(self.store, cell, self.key(cell), self.config, Values(values, unit, sanity=sanity), seconds, seeds, skipped)

    def _visual(self, cell: Cell):
        if cell.run is None or cell.step == 0:
            return self.bench.clip.visual
        return self.bench.trained(cell.run, None if cell.step in (None, cell.run.tuning.steps) else cell.step)

    def _victim(self, cell: Cell, visual) -> ZeroShot:
        """The model as it is judged: with the mean/std it was trained with, and the temperature of the pre-trained model."""
        return self.bench.victim(self.bench.labelled(cell.spec), visual, "clip" if cell.run is None else cell.run.face.norm)

    def chosen(self, spec: str, n: int) -> list[int]:
        """Indices of the test pictures of a set: a class-balanced choice that is the same for every model, made once."""
        if (spec, n) not in self._chosen:
            self._chosen[spec, n] = subset(self.bench.labelled(spec), n or None, 0)
        return self._chosen[spec, n]

    def pictures(self, spec: str, n: int):
        """(x, y, indices) of the chosen test pictures of a set."""
        if (spec, n) not in self._pictures:
            indices = self.chosen(spec, n)
            x, y = self.bench.labelled(spec).__getitems__(indices)
            if len(indices) * x[0].numel() > 2**28:  # a large set is read again when it is wanted again
                return x, y, indices
            self._pictures[spec, n] = (x, y, indices)
        return self._pictures[spec, n]

    def _correct(self, cell: Cell, visual) -> np.ndarray:
        victim, device = self._victim(cell, visual), self.bench.device
        data, indices = self.bench.labelled(cell.spec), self.chosen(cell.spec, cell.n)
        out = []
        step = max(self.config.attack.batch, 1) if cell.strength.kind != "auto" else len(indices)
        held = self.pictures(cell.spec, cell.n) if len(indices) <= 4096 else None
        for start in range(0, len(indices), step):
            part = slice(start, start + step)
            x, y = (held[0][part], held[1][part]) if held else data.__getitems__(indices[part])
            x, y = x.to(device), y.to(device)
            x_adv = self._attack(cell, victim, x, y, indices[part])
            with torch.no_grad():
                out.append(torch.cat([victim(b).argmax(1) for b in x_adv.split(self.config.attack.batch)]).eq(y).float().cpu())
        return torch.cat(out).numpy()

    def _attack(self, cell: Cell, victim: ZeroShot, x, y, indices):
        a, s = self.config.attack, cell.strength
        rng = SampleRng(a.seed, indices, "evaluation")
        threat = Threat("linf", a.eps * s.multiple)
        if s.kind == "clean":
            return x
        if s.kind == "auto":
            return cascade(victim, x, y, threat, rng=rng, steps=a.auto_steps, targets=a.auto_targets, queries=a.auto_queries,
                           batch_size=a.batch).x_adv
        if s.kind in ("released", "correct"):
            return self._test_batch_attack(cell, victim, x, y, threat, rng)
        return pgd(victim, x, y, threat, steps=s.steps or a.steps, step_size=a.ratio * threat.eps, rng=rng, loss="cw" if s.kind == "cw" else "ce",
                   kappa=a.kappa)

    def _test_batch_attack(self, cell: Cell, victim: ZeroShot, x, y, threat, rng):
        """PGD as the released code runs it on a test batch of `cell.point` pictures: half precision, loss averaged over the batch, last iterate.

        The mean over a batch of N is the per-picture loss divided by N, so that the size of the batch in memory does not matter; a test holds the
        two against each other. "correct" is the same attack in single precision with a summed loss.
        """
        a = self.config.attack
        face = AS_RELEASED if cell.strength.kind == "released" else AS_WRITTEN
        attacked = ZeroShot(victim.visual, victim.text, self.bench.scale_of(face), cell.run.face.norm).to(x.device).eval()
        size = cell.point if cell.strength.kind == "released" else 1
        return pgd(attacked, x, y, threat, steps=a.steps, step_size=a.ratio * threat.eps, rng=rng, keep="last",
                   loss=lambda z, labels: F.cross_entropy(z, labels, reduction="none") / size,
                   autocast="fp16" if cell.strength.kind == "released" else None)

    def _checked(self, cell: Cell, visual) -> dict:
        """The sanity checks of the attack on this model, made once per model on pictures of the seen set and kept with each robust cell."""
        if cell.model not in self._sanity:
            a, spec = self.config.attack, self.config.data.seen
            x, y, indices = self.pictures(spec, a.sanity_n)
            x, y = x.to(self.bench.device), y.to(self.bench.device)
            data = self.bench.labelled(spec)
            norm = "clip" if cell.run is None else cell.run.face.norm
            surrogate = None if cell.run is None else self.bench.victim(data)

            def attack(victim, x, y, threat, *, steps, rng):
                return pgd(victim, x, y, threat, steps=steps, step_size=a.ratio * threat.eps, rng=rng)

            self._sanity[cell.model] = check_attack(self.bench.victim(data, visual, norm), x, y, Threat("linf", a.eps), attack,
                                                    rng=SampleRng(a.seed, indices, "sanity"), steps=a.steps, surrogate=surrogate, images=len(x))
        return self._sanity[cell.model]

    # -- gates ------------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _strong(self) -> float:
        """Accuracy of the pre-trained model on the seen classes under PGD with `strong_steps`."""
        a, spec = self.config.attack, self.config.data.seen
        x, y, indices = self.pictures(spec, min(self.config.data.n, 256) or 256)
        victim = self.bench.victim(self.bench.labelled(spec))
        right = []
        for start in range(0, len(y), a.batch):
            part = slice(start, start + a.batch)
            xs, ys = x[part].to(self.bench.device), y[part].to(self.bench.device)
            x_adv = pgd(victim, xs, ys, Threat("linf", a.eps), steps=a.strong_steps, step_size=2.5 * a.eps / a.strong_steps,
                        rng=SampleRng(a.seed, indices[part], "gate"))
            with torch.no_grad():
                right.append(victim(x_adv).argmax(1).eq(ys).float().cpu())
        return torch.cat(right).mean().item()

    def gates(self, write: bool) -> list[dict]:
        """What must hold of the pre-trained model (config.Gates); the main process records it. Measured again only if it may have changed."""
        g, data = self.config.gates, self.config.data
        key = digest([CODE, plain(g), plain(self.config.attack), self.bench.base, data.n,
                      [self.bench.labelled(s).version for s in (data.seen, *data.zero_shot)]])
        known = self.store.gates()
        if known and known[0].get("key") == key:
            return known

        def accuracy(spec: str) -> float:
            cell = next(c for c in self._clip_cells if c.spec == spec and c.strength.name == "clean")
            return self.store.read(cell.slug()).value

        classes = self.bench.labelled(data.seen).num_classes
        out = [gate("zero-shot accuracy on the seen classes", accuracy(data.seen), min(g.clean, g.times_chance / classes), ">=",
                    f"{classes} classes, {self.config.model.name}"),
               gate(f"seen classes under PGD-{self.config.attack.strong_steps} at {show_eps(self.config.attack.eps)}", self._strong, g.robust, "<=")]
        for spec in data.zero_shot:
            chance = 1 / self.bench.labelled(spec).num_classes
            name, least = f"zero-shot accuracy on {spec.partition(':')[2]}", chance + g.zero_shot_margin
            out.append(gate(name, accuracy(spec), least, ">=", f"chance is {chance:.3f}"))
        out = [{**entry, "key": key} for entry in out]
        if write:
            self.store.write_gates(out)
        return out

    @cached_property
    def _clip_cells(self) -> list[Cell]:
        from papers.pmg_aft.cells import cells

        return [c for c in cells(self.config) if c.method == CLIP and c.kind == "accuracy"]

    # -- costs ------------------------------------------------------------------------------------------------------------------------

    def _cost(self, cell: Cell) -> np.ndarray:
        from papers.pmg_aft.costs import activation_megabytes, step_seconds

        return step_seconds(self.bench, cell.run) if cell.point == "seconds" else activation_megabytes(self.bench, cell.run)
