"""How the settings that no source states were chosen: `python -m papers.diffcap.choose`. Validation pictures only, one rule for all.

For each candidate the accuracy on 128 validation pictures of the first set to classify, clean and under the attack of the main tables at the larger ε
on the undefended model; the candidate with the highest mean of the two is the default of `config.py`. Candidates:

    DiffCAP    Δt, with τ from Algorithm 2 on the six sets as in the evaluation; for one small CLIP as φ, and for the victim's own tower
    DiffPure   t*
    CLIPure    step size η, for 30 (the published one) turns every embedding back onto itself here
"""

from dataclasses import dataclass, replace

import torch

from papers.diffcap.config import PRESETS, Config
from shared.errors import run_main

N = 128
DTS = (10, 20, 25, 40, 50, 80, 100)
TIMES = (25, 50, 75, 100, 125, 150, 200, 250, 300)
STEP_SIZES = (0.01, 0.03, 0.1, 0.3, 1.0, 30.0)


@dataclass(frozen=True)
class Args:
    """Try candidates on validation pictures."""

    scale: str = "cpu"
    """A preset of papers.diffcap.config."""


def main() -> None:
    import tyro

    from papers.diffcap.models import Bench

    args = tyro.cli(Args, description=__doc__)
    config = PRESETS[args.scale]
    for line in choose(Bench(config, args.scale, torch.device("cuda" if torch.cuda.is_available() else "cpu"))):
        print(line, flush=True)


def choose(bench):
    """Yields one line per candidate."""
    from papers.diffcap.attacked import run_attack
    from papers.diffcap.baselines import CLIPure, blank_direction
    from papers.diffcap.kinds import TEMPLATES, similarities
    from papers.diffcap.measure import Measurer
    from papers.diffcap.method import DiffCAP
    from papers.diffcap.runs import bases
    from shared.attacks import Threat
    from shared.rng import SampleRng

    config: Config = bench.config
    spec, eps = config.data.classes[0], config.attack.eps[-1]
    world, victim = bench.world(spec, "classes", "validation", N), bench.classifier(spec)
    rng = SampleRng(0, world.indices, "choose")
    attacked = run_attack(bench, victim, world, Threat("linf", eps), rng, config.attack.steps)

    def accuracy(model, defence=None) -> tuple[float, float]:
        with torch.no_grad():
            return tuple(model(x if defence is None else defence(x, rng)).argmax(1).eq(world.y).double().mean().item() for x in (world.x, attacked))

    def line(name: str, clean: float, robust: float, more: str = "") -> str:
        return f"{name:34s} clean {100 * clean:5.1f}  attacked {100 * robust:5.1f}  mean {50 * (clean + robust):5.1f}  {more}"

    yield line("no defence", *accuracy(victim))
    for t in TIMES:
        yield line(f"DiffPure, t* = {t}", *accuracy(victim, bench.diffpure(t)))
    for name, own in (("small", False), ("tower", True)):
        other = type(bench)(replace(config, models=replace(config.models, own_tower=own)), bench.scale, bench.device)
        tau = similarities(Measurer(other)).tau
        for dt in DTS:
            defence: DiffCAP = other.diffcap(tau, dt=dt)
            stop = defence.stop_times(world.x, rng).t.double().mean().item(), defence.stop_times(attacked, rng).t.double().mean().item()
            yield line(f"DiffCAP, φ {name}, Δt = {dt}", *accuracy(victim, defence), f"τ {tau:.3f}, stops {stop[0]:.0f} clean, {stop[1]:.0f} attacked")
    blank = blank_direction(bench.open_clip(bases(config)["clip"]), TEMPLATES)
    for size in STEP_SIZES:
        yield line(f"CLIPure, η = {size:g}", *accuracy(CLIPure(victim, blank, step_size=size)))


if __name__ == "__main__":
    run_main(main)
