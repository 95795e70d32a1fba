"""How the settings that no source states were chosen: `python -m papers.diffcap.choose`. Validation pictures only, one
rule for all.

For each candidate the accuracy on 128 validation pictures of the first set to classify, clean and under the attack of
the main tables at the larger ε on the undefended model; the candidate with the highest mean of the two is the default
of `config.py`. Candidates:

    DiffCAP    Δt, with τ from Algorithm 2 on the six sets as in the evaluation; for one small CLIP as φ, and for the
               victim's own tower
    DiffPure   t*
    CLIPure    step size η, for 30 (the published one) turns every embedding back onto itself here
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from papers.diffcap.config import PRESETS, Config
from papers.diffcap.steps import Embedded, Victim, adversary_of, calibrated, diffcap_of, purification_of, victim_of
from papers.diffcap.tables import CLIP
from shared.errors import UserError, run_main
from shared.experiment.lab import Lab
from shared.experiment.leaves import Pictures
from shared.models.victim import predicted
from shared.processes import accelerator
from shared.rng import SampleRng
from shared.steps.purification import Defence, Seen, Transform

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

    args = tyro.cli(Args, description=__doc__)
    if args.scale not in PRESETS:
        raise UserError(f"there is no scale {args.scale!r}: choose one of {', '.join(PRESETS)}.")
    config = PRESETS[args.scale]
    with tempfile.TemporaryDirectory() as folder:  # nothing is kept
        for line in choose(Lab(Path(folder), config.source, accelerator()), config):
            print(line, flush=True)


def choose(lab: Lab, c: Config) -> Iterator[str]:
    """Yields one line per candidate. Raises UserError where the first set to classify has no validation pictures."""
    spec = c.data.classes[0]
    if not spec.startswith("scenes:"):
        raise UserError(
            "settings are chosen on validation pictures, which only the generated sets have: use --scale cpu."
        )
    victim, seen = victim_of(c, CLIP, spec), Seen(Pictures(spec, "validation", N, c.data.seed))
    (x, y), rng = seen.clean(lab), SampleRng(0, seen.rows(lab), "choose")
    attacked = adversary_of(c, "classes", c.attack.eps[-1])(victim.open(lab), x, y, rng)

    def line(name: str, asked: Victim = victim, defence: Defence | None = None, more: str = "") -> str:
        model, opened = asked.open(lab), (defence or Transform()).open(lab)
        with torch.no_grad():
            right = [predicted(model(opened(z, rng))).eq(y).double().mean().item() for z in (x, attacked)]
        clean, robust = (100 * share for share in right)
        return f"{name:34s} clean {clean:5.1f}  attacked {robust:5.1f}  mean {(clean + robust) / 2:5.1f}  {more}"

    yield line("no defence")
    for t in TIMES:
        yield line(f"DiffPure, t* = {t}", defence=purification_of(c, t))
    for name, own in (("small", False), ("tower", True)):
        other = replace(c, models=replace(c.models, own_tower=own))
        lab.make(calibrated(other).sets)
        for dt in DTS:
            defence = diffcap_of(other, dt=dt)
            opened = defence.open(lab)
            stops = [opened.stop_times(z, rng).t.double().mean().item() for z in (x, attacked)]
            more = f"τ {opened.rule.tau:.3f}, stops {stops[0]:.0f} clean, {stops[1]:.0f} attacked"
            yield line(f"DiffCAP, φ {name}, Δt = {dt}", defence=defence, more=more)
    for size in STEP_SIZES:
        yield line(f"CLIPure, η = {size:g}", Embedded(victim, size))


if __name__ == "__main__":
    run_main(main)
