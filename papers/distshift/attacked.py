"""Pictures under attack, made once per source and kept: the gray box attacks the bare victim, without what stands in front of it.

A file holds x_adv and, in its metadata, the key of what made it and the sanity checks of the attack on that victim (at the ε of the main tables; the
cascade on the first set only).
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from papers.distshift.cells import Cell, Source
from papers.distshift.models import Bench
from shared.attacks import Threat, cascade, check_attack, pgd
from shared.experiment.bench import World
from shared.experiment.scale import plain
from shared.files import digest
from shared.models.clip import read_metadata, read_weights, save_tensors
from shared.models.sources import is_fresh
from shared.rng import SampleRng

CODE = "distshift-attack-1"  # raise it when the meaning of an attack changes: all pictures are then attacked again
# what each attack reads of the configuration
READS = {"pgd": ("steps", "sanity_n", "seed"), "autoattack": ("stages", "auto_steps", "targets", "queries", "sanity_n", "seed")}


class Attacked:
    """The attacked pictures of a run."""

    def __init__(self, bench: Bench):
        self.bench, self.config = bench, bench.config
        self._held: dict[Source, Tensor] = {}

    def world(self, source: Source) -> World:
        """The unchanged pictures of a source."""
        return self.bench.world(source.spec)

    def key(self, source: Source) -> str:
        """Identity of everything the pictures depend on."""
        settings = plain(self.config.attack)
        data = [self.bench.labelled(source.spec).version, self.config.data.n, self.config.data.seed]
        return digest([CODE, self.bench.identity(source.spec, source.victim), data, source.attack, source.norm, source.eps,
                       [settings[name] for name in READS.get(source.attack, ())]])

    def path(self, source: Source) -> Path:
        return self.config.results / self.bench.scale / "distshift" / "attacked" / f"{source.name}.safetensors"

    def missing(self, source: Source) -> bool:
        """Whether these pictures have to be made."""
        return source.attack != "clean" and not is_fresh(self.path(source), self.key(source))

    def make(self, source: Source) -> None:
        """Attack the pictures of one source and save them with the sanity checks of the attack."""
        x_adv = run_attack(self.bench, source, self.world(source))
        checks = {"sanity": json.dumps(self._check(source))} if source == self.checked(source) else {}
        save_tensors({"x_adv": x_adv.cpu()}, self.path(source), {"key": self.key(source), **checks})

    def pictures(self, source: Source) -> Tensor:
        """(N, 3, H, W): the attacked pictures, or the unchanged ones."""
        if source.attack == "clean":
            return self.world(source).x
        if source not in self._held:
            x_adv = read_weights(self.path(source))["x_adv"]
            if x_adv.numel() > 2**26:  # a large set is read again when it is wanted again
                return x_adv.to(self.bench.device)
            self._held[source] = x_adv.to(self.bench.device)
        return self._held[source]

    def sanity(self, source: Source) -> dict | None:
        """What `make` found out about this attack on this victim; None for unchanged pictures."""
        return None if source.attack == "clean" else json.loads(read_metadata(self.path(self.checked(source)))["sanity"])

    def checked(self, source: Source) -> Source:
        """Where the attack was checked: at the ε of the main tables; the cascade, which costs more, on the first set."""
        spec = self.config.protected[0].data if source.attack == "autoattack" else source.spec
        return replace(source, spec=spec, eps=self.config.attack.budget(source.norm))

    def cost(self, source: Source) -> float:
        """How long a source takes, roughly: gradient steps."""
        a, n = self.config.attack, self.config.data.n or 10_000
        steps = a.steps if source.attack == "pgd" else a.auto_steps * (1 + a.targets) + a.queries / 3
        return (n + (10 * a.sanity_n if source == self.checked(source) else 0)) * steps * (1.0 if source.victim == "at" else 0.3)

    def _check(self, source: Source) -> dict:
        """The sanity checks of this attack on a few pictures."""
        a, world = self.config.attack, self.world(source).part(self.config.attack.sanity_n)
        victim = self.bench.victim(source.spec, source.victim)
        rng, threat = SampleRng(a.seed, world.indices, "sanity"), Threat(source.norm, source.eps)

        def again(model, x, y, inside, *, steps, rng):
            return _attack(self.bench, source.attack, model, x, y, inside, rng, steps)

        return check_attack(victim, world.x, world.y, threat, again, rng=rng, steps=a.steps if source.attack == "pgd" else a.auto_steps,
                            images=len(world.x))


def run_attack(bench: Bench, source: Source, world: World) -> Tensor:
    """x_adv of a source's attack on any pictures of its set."""
    a = bench.config.attack
    rng = SampleRng(a.seed, world.indices, "evaluation")
    steps = a.steps if source.attack == "pgd" else a.auto_steps
    return _attack(bench, source.attack, bench.victim(source.spec, source.victim), world.x, world.y, Threat(source.norm, source.eps), rng, steps)


def _attack(bench: Bench, name: str, victim, x: Tensor, y: Tensor, threat: Threat, rng: SampleRng, steps: int) -> Tensor:
    a = bench.config.attack
    if name == "autoattack":
        return cascade(victim, x, y, threat, rng=rng, stages=a.stages, steps=steps, targets=a.targets, queries=a.queries, batch_size=a.batch).x_adv
    # the iterate of highest loss among those that succeed; nothing leaves early, for a picture just over the boundary says little behind a defence
    parts = [pgd(victim, x[rows], y[rows], threat, steps=steps, step_size=2.5 * threat.eps / steps, drop=False, rng=rng.subset(rows.cpu()))
             for rows in torch.arange(len(x), device=x.device).split(a.batch)]
    return torch.cat(parts)


def sources(cells: list[Cell]) -> list[Source]:
    """The attacked pictures that some cells read, each once."""
    found = dict.fromkeys(c.source for c in cells if c.kind != "adaptive")
    return [s for s in found if s.attack != "clean"]
