"""What DiffCAP costs: `python -m papers.diffcap.bench` (`make bench-diffcap`), part of `make bench`. From the zoo; no
training.

Side by side in one run: DiffCAP against purification at the fixed time that keeps as much accuracy under attack; draws
of an EOT gradient in one batch against one after the other; and the memory of an exact gradient through ever more
reverse steps, recomputed or kept.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from papers.diffcap.config import PRESETS
from papers.diffcap.method import DiffCAP
from papers.diffcap.steps import adversary_of, diffcap_of, diffusion_of, purification_of, victim_of
from papers.diffcap.tables import CLIP
from shared.attacks.adaptive import Defended
from shared.attacks.gradient import input_gradient
from shared.bench.harness import Cases, Options, run
from shared.bench.timing import Case
from shared.diffusion import Purifier, Sampler
from shared.errors import run_main
from shared.experiment.lab import Lab
from shared.experiment.leaves import Pictures
from shared.experiment.step import needs
from shared.models.victim import predicted
from shared.processes import accelerator
from shared.rng import SampleRng
from shared.steps.purification import Seen

PICTURES = 64
TIMES = (50, 100, 150, 200, 300, 400)  # fixed times that DiffCAP's accuracy is looked for among


class _Stage:
    """Attacked pictures, the victim and both purifiers, made once for all cases."""

    def __init__(self, n: int):
        c = PRESETS["cpu"]
        if n < PICTURES:
            c = replace(c, method=replace(c.method, calibration_n=n), choosing=PRESETS["smoke"].choosing)
        self.config = c
        self.folder = tempfile.TemporaryDirectory()
        self.lab = Lab(Path(self.folder.name), c.source, accelerator())
        seen = Seen(Pictures(c.data.classes[0], "test", n, c.data.seed))
        x, self.y = seen.clean(self.lab)
        self.victim = victim_of(c, CLIP, c.data.classes[0]).open(self.lab)
        self.rng = SampleRng(0, seen.rows(self.lab), "bench")
        self.x = adversary_of(c, "classes", c.attack.eps[-1])(self.victim, x, self.y, self.rng)
        defence = diffcap_of(c)
        self.lab.make(needs(defence))
        self.diffcap: DiffCAP = defence.open(self.lab)  # as chosen for the evaluation

    @torch.no_grad()
    def accuracy(self, pictures: Tensor) -> float:
        return predicted(self.victim(pictures)).eq(self.y).double().mean().item()

    def diffpure(self, t: int) -> Purifier:
        return purification_of(self.config, t).open(self.lab)

    @torch.no_grad()
    def equal(self) -> Purifier:
        """DiffPure at the smallest time that is at least as accurate as DiffCAP; else at the most accurate one."""
        wanted = self.accuracy(self.diffcap(self.x, self.rng))
        found = {t: self.accuracy(self.diffpure(t)(self.x, self.rng)) for t in TIMES}
        good = [t for t, accuracy in found.items() if accuracy >= wanted]
        return self.diffpure(good[0] if good else max(found, key=found.get))


@cache
def _stage(n: int) -> _Stage:
    return _Stage(n)


def cases(quick: bool) -> Cases:
    """The three comparisons."""
    n, draws, repetitions = (4, 2, 1) if quick else (PICTURES, 8, 3)
    steps = (1, 2) if quick else (2, 5, 10, 20)
    out: Cases = {
        f"DiffCAP, {n} pictures": lambda: _against_fixed(n, repetitions),
        f"EOT, {draws} draws in one batch": lambda: _eot(n // 4, draws, repetitions),
    }
    return out | {f"exact gradient, {k} reverse steps": lambda k=k: _memory(min(n, 16), k, repetitions) for k in steps}


def _against_fixed(n: int, repetitions: int) -> Case:
    stage = _stage(n)
    fixed = stage.equal()

    def purify(defence: Callable) -> Tensor:
        with torch.no_grad():
            return defence(stage.x, stage.rng)

    def facts(pictures: Tensor) -> dict[str, float]:
        return {"accuracy, %": 100 * stage.accuracy(pictures)}

    return Case(
        f"DiffPure at t = {fixed.t}, as accurate under attack",
        lambda: purify(stage.diffcap),
        lambda: purify(fixed),
        facts,
        None,
        "time",
        repetitions=repetitions,
    )


def _eot(n: int, draws: int, repetitions: int) -> Case:
    """The gradient of the loss averaged over draws: ours in one pass, the reference one draw at a time."""
    stage = _stage(4 * n)
    x, y, rng = stage.x[:n], stage.y[:n], stage.rng.subset(torch.arange(n))

    def gradient(at_once: int) -> Tensor:
        victim = Defended(stage.victim, stage.diffcap, rng, draws=at_once)
        loss = victim.loss("ce")
        return (
            sum(input_gradient(lambda z: loss(victim(z), y), x)[1] for _ in range(draws // at_once)) * at_once / draws
        )

    def agree(a: dict, b: dict) -> str | None:
        return (
            None
            if abs(a["mean |gradient|"] - b["mean |gradient|"]) <= 1e-3 * b["mean |gradient|"]
            else "the gradients differ"
        )

    return Case(
        "one draw after the other, same draws",
        lambda: gradient(draws),
        lambda: gradient(1),
        lambda g: {"mean |gradient|": g.abs().mean().item()},
        None,
        agree=agree,
        repetitions=repetitions,
    )


def _memory(n: int, steps: int, repetitions: int) -> Case:
    """MB kept for the backward pass through noising and `steps` reverse steps: recomputed (ours) or all kept."""
    stage = _stage(n)

    def gradient(recompute: bool) -> float:
        purifier = Purifier(diffusion_of(stage.config).open(stage.lab), 150, Sampler("ddim", steps), recompute)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = stage.x[:n].clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = stage.victim(purifier(x, stage.rng.subset(torch.arange(n)))).logsumexp(1).sum()
        total = sum(kept.values())
        torch.autograd.grad(loss, x)
        return total / 1e6

    return Case(
        "the same with every activation kept",
        lambda: gradient(True),
        lambda: gradient(False),
        lambda mb: {"MB kept": mb},
        None,
        "time",
        repetitions=repetitions,
    )


def main() -> None:
    import tyro

    run([cases], tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    run_main(main)
