"""How the settings that no source states were chosen: `python -m papers.distshift.choose`. Validation pictures only, one rule for all.

For each candidate the accuracy on 96 validation pictures of every set, clean, and under PGD on the bare victim in the ℓ∞ and the ℓ2 ball. Its value
is the mean of the clean accuracy and of the mean of the two attacked ones, averaged over the sets. In this order, each choice with those before it:

    t*         by DiffPure, so that the guide has no part in it
    guidance   kind, label, domain and rescaling, each at two scales
    scale      of that guidance
    w          GDMP's scale

The best candidate of each step goes into the next; `config.py` has the outcome.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from papers.distshift.config import PRESETS, Config
from papers.distshift.steps import Attacked, adversary_of, defence_of, diffpure_of, shift_of, victim_of
from papers.distshift.tables import NORMS, radius, sets
from shared.errors import UserError, run_main
from shared.experiment.lab import Lab
from shared.experiment.leaves import Pictures
from shared.processes import accelerator
from shared.rng import SampleRng
from shared.steps.purification import Defence, Seen

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

    args = tyro.cli(Args, description=__doc__)
    if args.scale not in PRESETS:
        raise UserError(f"there is no scale {args.scale!r}: choose one of {', '.join(PRESETS)}.")
    config = PRESETS[args.scale]
    with tempfile.TemporaryDirectory() as folder:  # nothing is kept
        for line in choose(Lab(Path(folder), config.source, accelerator()), config):
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


def choose(lab: Lab, c: Config) -> Iterator[str]:
    """Yields one line per candidate, and one per choice. Raises UserError where a set has no validation pictures."""
    if any(not spec.startswith("scenes:") for spec in sets(c)):
        raise UserError(
            "settings are chosen on validation pictures, which only the generated sets have: use --scale cpu."
        )
    seen = _pictures(lab, c)

    def tried(title: str, defence: Callable[[str], Defence] | None) -> tuple[str, Accuracy]:
        found = _accuracy(lab, c, seen, defence)
        return f"{title:58s} {found}", found

    yield tried("no defence", None)[0]
    found = {}
    for t in TIMES:
        line, found[t] = tried(f"DiffPure, t* = {t}", lambda spec, t=t: diffpure_of(c, spec, t))
        yield line
    best = max(found, key=lambda t: found[t].value)
    yield f"-> t* = {best}"
    c = replace(c, method=replace(c.method, t=best))
    guided: dict[tuple[int, float], Accuracy] = {}

    def guide(k: int, scale: float) -> str:
        changes = {**GUIDES[k], "scale": scale, "unit": "ratio"}
        title = ", ".join([*GUIDES[k].values(), f"ratio {scale:g}"])
        line, guided[k, scale] = tried(title, lambda spec: shift_of(c, spec, **changes))
        return line

    for k in range(len(GUIDES)):
        for scale in TRIED:
            yield guide(k, scale)
    k, _ = max(guided, key=lambda pair: guided[pair].value)
    for scale in SCALES:
        if (k, scale) not in guided:
            yield guide(k, scale)
    k, scale = max(guided, key=lambda pair: guided[pair].value)
    yield f"-> {GUIDES[k]}, ratio {scale:g}"
    pulled = {}
    for w in GDMP_SCALES:
        b = c.baselines
        other = replace(c, baselines=replace(b, gdmp=replace(b.gdmp, scale=w)))
        line, pulled[w] = tried(
            f"GDMP, w = {w:g}, {b.gdmp_rounds} rounds", lambda spec, other=other: defence_of(other, "gdmp", spec)
        )
        yield line
    yield f"-> w = {max(pulled, key=lambda w: pulled[w].value):g}"


def _pictures(lab: Lab, c: Config) -> dict[str, dict[str, Tensor]]:
    """spec -> {condition: pictures}, the attacked ones by PGD on the bare victim."""
    out = {}
    for spec in sets(c):
        data = Pictures(spec, "validation", N, c.data.seed)
        attacks = {norm: adversary_of(c, "pgd", norm, radius(c, norm)) for norm in NORMS}
        attacked = {
            norm: Attacked(victim_of(c, spec, "base"), data, attack).make(lab)["x_adv"]
            for norm, attack in attacks.items()
        }
        out[spec] = {"clean": Seen(data).clean(lab)[0], **attacked}
    return out


def _accuracy(
    lab: Lab, c: Config, seen: dict[str, dict[str, Tensor]], defence: Callable[[str], Defence] | None
) -> Accuracy:
    totals = dict.fromkeys(("clean", *NORMS), 0.0)
    for spec, pictures in seen.items():
        data = Seen(Pictures(spec, "validation", N, c.data.seed))
        rng, y = SampleRng(0, data.rows(lab), "choose"), data.clean(lab)[1]
        opened = None if defence is None else defence(spec).open(lab)
        for name, x in pictures.items():
            with torch.no_grad():
                shown = x if opened is None else opened(x, rng)
            right = victim_of(c, spec, "base").says(lab, shown, c.attack.batch).eq(y)
            totals[name] += right.double().mean().item() / len(seen)
    return Accuracy(**totals)


if __name__ == "__main__":
    run_main(main)
