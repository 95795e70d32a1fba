"""Pictures under attack, made once per source and kept: the gray box of the paper attacks the model without its purifier.

A file holds x_adv and, in its metadata, the key of what made it. The sanity checks of the attack are made once for each model and encoder, on its
first set at the largest ε, as a task of their own, and stand in a file beside it.
"""

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from papers.diffcap.cells import CLASSIFIER, Cell, Source
from papers.diffcap.models import Bench, World
from shared.attacks import Threat, cascade, check_attack
from shared.attacks.language import captioning_ensemble, vqa_ensemble
from shared.attacks.language_sanity import check_language_attack
from shared.experiment.scale import plain
from shared.files import digest, write_json
from shared.models.clip import read_weights, save_tensors
from shared.models.sources import is_fresh
from shared.rng import SampleRng

CODE = "diffcap-attack-1"  # raise it when the meaning of an attack changes: all pictures are then attacked again
STAGES = ("apgd-ce", "apgd-t")  # as in the evaluation base; FAB and Square are left out there too
OWN_ATTACK = ("adaptive", "adaptive_caption", "targeted")  # kinds that attack for themselves
SANITY = 4  # pictures of the checks on language models


class Attacked:
    """The attacked pictures of a run."""

    def __init__(self, bench: Bench):
        self.bench, self.config = bench, bench.config
        self._held: dict[Source, Tensor] = {}

    def world(self, source: Source) -> World:
        """The unchanged pictures of a source."""
        return self.bench.world(source.spec, task_of(source))

    def key(self, source: Source) -> str:
        """Identity of everything the pictures depend on."""
        a = {k: v for k, v in plain(self.config.attack).items() if k not in ("eps", "batch", "target_steps", "target_n", "strings")}
        data = [self.bench.version(source.spec, task_of(source)), self.config.data.n, self.config.data.seed]
        return digest([CODE, self.bench.identity(source.model, source.tower), data, source.eps, a])

    def path(self, source: Source) -> Path:
        return self.config.results / self.bench.scale / "diffcap" / "attacked" / f"{source.name}.safetensors"

    def missing(self, source: Source) -> bool:
        """Whether these pictures have to be made."""
        return source.eps > 0 and not is_fresh(self.path(source), self.key(source))

    def make(self, source: Source) -> None:
        """Attack the pictures of one source and save them."""
        save_tensors({"x_adv": self._attack(source, self.world(source)).cpu()}, self.path(source), {"key": self.key(source)})

    def unchecked(self, source: Source) -> bool:
        """Whether the attack on the model of this source still has to be checked."""
        try:
            return json.loads(self._record(source).read_text())["key"] != self._record_key(source)
        except (OSError, ValueError, KeyError, TypeError):  # missing, or spoilt like any other file: the checks are then made again
            return True

    def check(self, source: Source) -> None:
        """Make the sanity checks of the attack on the model of this source and save their record."""
        write_json(self._record(source), {"key": self._record_key(source), "sanity": self._check(self.checked(source))})

    def _record(self, source: Source) -> Path:
        return self.path(self.checked(source)).with_suffix(".sanity.json")

    def _record_key(self, source: Source) -> str:
        return digest([self.key(self.checked(source)), SANITY])

    def pictures(self, source: Source) -> Tensor:
        """(N, 3, H, W): the attacked pictures, or the unchanged ones for ε = 0."""
        if source.eps == 0:
            return self.world(source).x
        if source not in self._held:
            x_adv = read_weights(self.path(source))["x_adv"]
            if x_adv.numel() > 2**26:  # a large set is read again when it is wanted again
                return x_adv.to(self.bench.device)
            self._held[source] = x_adv.to(self.bench.device)
        return self._held[source]

    def sanity(self, source: Source) -> dict | None:
        """What `check` found out about the attack on this model; None for unchanged pictures."""
        return None if source.eps == 0 else json.loads(self._record(source).read_text())["sanity"]

    def checked(self, source: Source) -> Source:
        """Where the attack on a model with this encoder was checked: its first set, at the largest ε."""
        data = self.config.data
        return replace(source, spec=(data.classes if source.model == CLASSIFIER else data.captions)[0], eps=self.config.attack.eps[-1])

    def cost(self, source: Source) -> float:
        """How long a source takes, roughly: gradient steps."""
        a, n = self.config.attack, self.config.data.n or 1000
        undefended = source.tower == "base"
        stages = (1 + a.targets) if source.model == CLASSIFIER else a.references + 1
        return n * a.steps * stages * (0.5 if undefended else 1.0) * (1.0 if source.model == CLASSIFIER else 4.0)

    def check_cost(self, source: Source) -> float:
        """The same for its checks: eight attacks on few pictures, where a step costs what it costs for half of them all."""
        return 6 * self.cost(source) if source.model != CLASSIFIER else 4 * self.cost(source)

    # -- how ----------------------------------------------------------------------------------------------------------------------------

    def _attack(self, source: Source, world: World) -> Tensor:
        victim = self.bench.victim(source.model, source.spec, source.tower)
        rng = SampleRng(self.config.attack.seed, world.indices, "evaluation")
        return run_attack(self.bench, victim, world, Threat("linf", source.eps), rng, self.config.attack.steps)

    def _check(self, source: Source) -> dict:
        """The sanity checks of the attack on this victim, on a few pictures."""
        a, world = self.config.attack, self.world(source).part(SANITY if source.model != CLASSIFIER else 32)
        victim = self.bench.victim(source.model, source.spec, source.tower)
        rng, threat = SampleRng(a.seed, world.indices, "sanity"), Threat("linf", source.eps)
        if source.model == CLASSIFIER:
            def classify(model, x, y, inside, *, steps, rng):
                return cascade(model, x, y, inside, rng=rng, stages=STAGES, steps=steps, targets=a.targets).x_adv

            return check_attack(victim, world.x, world.y, threat, classify, rng=rng, steps=a.steps, images=len(world.x))

        def speak(rows, inside, *, steps, rng):
            part = World(world.spec, world.task, world.x[rows], [], "", None, [world.prompts[i] for i in rows.tolist()],
                         [world.truths[i] for i in rows.tolist()], world.cider)
            return run_attack(self.bench, victim, part, inside, rng, steps)

        return check_language_attack(victim, world.x, world.prompts, world.truths, world.score, threat, speak, rng=rng, steps=a.steps,
                                     images=len(world.x), max_tokens=world.max_tokens, batch_size=a.batch)


def run_attack(bench: Bench, victim, world: World, threat: Threat, rng: SampleRng, steps: int) -> Tensor:
    """The attack of the main tables: APGD-CE and APGD-T on a classifier, the staged ensembles on language models."""
    a = bench.config.attack
    if world.task == "classes":
        return cascade(victim, world.x, world.y, threat, rng=rng, stages=STAGES, steps=steps, targets=a.targets, batch_size=a.batch).x_adv
    settings = {"steps": steps, "rng": rng, "half": a.half_first, "max_tokens": world.max_tokens, "batch_size": a.batch}
    if world.task == "captions":  # the attacker aims at, and judges by, the first references only; the tables use all of them
        few = [list(texts[: a.references]) for texts in world.truths]
        return captioning_ensemble(victim, world.x, world.prompts[0], few, world.score, threat, threshold=a.threshold, **settings).x_adv
    return vqa_ensemble(victim, world.x, world.prompts, world.truths, threat, score=world.score, **settings).x_adv


def task_of(source: Source) -> str:
    return Cell("", "none", source.model, source.spec).task


def sources(cells: list[Cell]) -> list[Source]:
    """The attacked pictures that some cells read, each once."""
    found = dict.fromkeys(c.source for c in cells if c.model in (CLASSIFIER, "llava", "flamingo") and c.kind not in OWN_ATTACK)
    return [s for s in found if s.eps > 0]
