"""How the settings that no source states were chosen: `python -m papers.distshift.choose`. Validation pictures only, one rule for all.

For each candidate the accuracy on 96 validation pictures of every set, clean, and under PGD on the bare victim in the ℓ∞ and the ℓ2 ball. Its value
is the mean of the clean accuracy and of the mean of the two attacked ones, averaged over the sets. In this order, each choice with those before it:

    t*         by DiffPure, so that the guide has no part in it
    guidance   kind, label, domain and rescaling, each at two scales
    scale      of that guidance
    w          GDMP's scale

The best candidate of each step goes into the next; `config.py` has the outcome.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from papers.distshift.config import NORMS, PRESETS, Config
from shared.errors import UserError, run_main

N = 96
TIMES = (50, 75, 100, 150, 200, 250, 300)
GUIDES = (
    {"kind": "G1", "label": "running", "domain": "x_t", "rescale": "x_t/alpha"},
    {"kind": "G1", "label": "running", "domain": "x_t", "rescale": "none"},
    {"kind": "G1", "label": "moving", "domain": "x_t", "rescale": "x_t/alpha"},
    {"kind": "G1", "label": "x_adv", "domain": "x_t", "rescale": "x_t/alpha"},
    {"kind": "G3", "label": "running", "domain": "x0_hat", "rescale": "none"},
    {"kind": "G3", "label": "x_adv", "domain": "x0_hat", "rescale": "none"},
    {"kind": "G2", "domain": "x_t", "rescale": "none"},
    {"kind": "G2", "domain": "x0_hat", "rescale": "none"},
    {"kind": "G4", "domain": "x_t", "rescale": "x_t/alpha"},
    {"kind": "G4", "domain": "x0_hat", "rescale": "none"},
)
TRIED = (0.1, 0.3)  # for every guidance
SCALES = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0)  # for the best
GDMP_SCALES = (10.0, 30.0, 100.0, 300.0, 600.0)


@dataclass(frozen=True)
class Args:
    """Try candidates on validation pictures."""

    scale: str = "cpu"
    """A preset of papers.distshift.config whose sets have validation pictures."""


def main() -> None:
    import tyro

    from papers.distshift.models import Bench

    args = tyro.cli(Args, description=__doc__)
    if args.scale not in PRESETS:
        raise UserError(f"there is no scale {args.scale!r}: choose one of {', '.join(PRESETS)}.")
    for line in choose(Bench(PRESETS[args.scale], args.scale, torch.device("cuda" if torch.cuda.is_available() else "cpu"))):
        print(line, flush=True)


@dataclass(frozen=True)
class Accuracy:
    """Means over the sets, in [0, 1]."""

    clean: float
    linf: float
    l2: float

    @property
    def value(self) -> float:
        """What is maximised."""
        return (self.clean + (self.linf + self.l2) / 2) / 2

    def __str__(self) -> str:
        return f"clean {100 * self.clean:5.1f}  linf {100 * self.linf:5.1f}  l2 {100 * self.l2:5.1f}  value {100 * self.value:5.1f}"


def choose(bench) -> Iterator[str]:
    """Yields one line per candidate, and one per choice."""
    config: Config = bench.config
    if any(not p.data.startswith("scenes:") for p in config.protected):
        raise UserError("settings are chosen on validation pictures, which only the generated sets have: use --scale cpu.")
    worlds = _pictures(bench)
    yield f"{'no defence':58s} {_accuracy(worlds, bench, None)}"
    found = {}
    for t in TIMES:
        found[t] = _accuracy(worlds, bench, lambda spec, t=t: bench.diffpure(spec, t=t))
        yield f"{f'DiffPure, t* = {t}':58s} {found[t]}"
    best = max(found, key=lambda k: found[k].value)
    yield f"-> t* = {best}"
    bench = type(bench)(replace(config, method=replace(config.method, t=best)), bench.scale, bench.device)
    guided: dict = {}

    def tried(k: int, scale: float) -> str:
        changes = {**GUIDES[k], "scale": scale, "unit": "ratio"}
        guided[k, scale] = _accuracy(worlds, bench, lambda spec: bench.distshift(spec, **changes))
        return f"{', '.join([*GUIDES[k].values(), f'ratio {scale:g}']):58s} {guided[k, scale]}"

    for k in range(len(GUIDES)):
        for scale in TRIED:
            yield tried(k, scale)
    k, _ = max(guided, key=lambda key: guided[key].value)
    for scale in SCALES:
        if (k, scale) not in guided:
            yield tried(k, scale)
    k, scale = max(guided, key=lambda key: guided[key].value)
    yield f"-> {GUIDES[k]}, ratio {scale:g}"
    pulled = {}
    for w in GDMP_SCALES:
        base = bench.config.baselines
        other = type(bench)(replace(bench.config, baselines=replace(base, gdmp=replace(base.gdmp, scale=w))), bench.scale, bench.device)
        pulled[w] = _accuracy(worlds, bench, other.gdmp)
        yield f"{f'GDMP, w = {w:g}, {base.gdmp_rounds} rounds':58s} {pulled[w]}"
    yield f"-> w = {max(pulled, key=lambda key: pulled[key].value):g}"


def _pictures(bench) -> dict:
    """spec -> (world, {condition: pictures}), the attacked ones by PGD on the bare victim."""
    from papers.distshift.attacked import run_attack
    from papers.distshift.cells import Source

    out = {}
    for p in bench.config.protected:
        world = bench.world(p.data, "validation", N)
        attacks = {norm: Source("base", p.data, "pgd", norm, bench.config.attack.budget(norm)) for norm in NORMS}
        out[p.data] = world, {"clean": world.x, **{norm: run_attack(bench, source, world) for norm, source in attacks.items()}}
    return out


@torch.no_grad()
def _accuracy(worlds: dict, bench, defence_of) -> Accuracy:
    from shared.rng import SampleRng

    totals = dict.fromkeys(("clean", *NORMS), 0.0)
    for spec, (world, pictures) in worlds.items():
        rng, defence = SampleRng(0, world.indices, "choose"), None if defence_of is None else defence_of(spec)
        for name, x in pictures.items():
            said = bench.victim(spec)(x if defence is None else defence(x, rng)).argmax(1)
            totals[name] += said.eq(world.y).double().mean().item() / len(worlds)
    return Accuracy(**totals)


if __name__ == "__main__":
    run_main(main)
