"""The paper's view of the defence: clean, adversarial, diffused and purified pictures as samples of distributions, in the victim's features.

Each state of the first pictures is held against other clean pictures of the set, so that the two samples are independent:

    mmd2   the mean over blocks of `block` pictures of the unbiased MMD² (Gretton et al. 2012, eq. 3), which is unbiased too; blocks are independent,
           so that it has an interval (Zaremba et al. 2013)
    p      of the permutation test on all pictures at once, with the median distance in the pooled sample as width

The kernel's width of MMD² is the median distance among the other clean pictures, one for all states. The picture shows two principal axes of clean
and adversarial features together.
"""

import numpy as np
import torch
from torch import Tensor

from papers.distshift.cells import Cell
from shared.errors import UserError
from shared.experiment.evaluation import Values
from shared.metrics.two_sample import median_distance, mmd2, permutation_test
from shared.rng import SampleRng


def diffused(purifier, x: Tensor, rng: SampleRng) -> Tensor:
    """x_{t*}/α(t*) as pictures: what the forward process makes of x, with the noise that purification has."""
    t = torch.full((len(x),), purifier.t)
    x_t = purifier.noise(purifier.to_native(x), t, rng)
    return purifier.from_native(x_t / purifier.denoiser.schedule.alpha_bar(purifier.t).sqrt().item(), tuple(x.shape[-2:]))


def distribution(m, cell: Cell) -> Values:
    """MMD² (values: its blocks) or the p-value of one state, whose name is the cell's method; beside it where its pictures lie in the plane."""
    if ("distribution", cell.method) not in m.held:
        m.held["distribution", cell.method] = _measured(m, cell)
    found = m.held["distribution", cell.method]
    return found[dict(cell.point)["quantity"]]


def _measured(m, cell: Cell) -> dict[str, Values]:
    s = m.config.sweeps
    world, x_adv, reference = _samples(m, cell)
    victim = m.bench.victim(cell.spec)

    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([victim.features(part) for part in x.split(m.config.attack.batch)]).double().cpu()

    other, adversarial = features(reference), features(x_adv)
    z = features(_state(m, cell, world, x_adv))
    width = median_distance(other)
    blocks = [mmd2(a, b, width) for a, b in zip(z.split(s.block), other.split(s.block), strict=True)]
    p = permutation_test(z, other, n=s.permutations, seed=cell.seed)[1]
    axes, middle = _plane(torch.cat([other, adversarial]))
    extra = {"xy": ((z - middle) @ axes).numpy(), "reference": ((other - middle) @ axes).numpy(), "labels": world.y.cpu().numpy()}
    return {"mmd2": Values(np.array(blocks, np.float64), "MMD²", extra), "p": Values(np.array([p], np.float64), "p")}


def _samples(m, cell: Cell):
    """(the first pictures, the same attacked, as many other clean pictures)."""
    s = m.config.sweeps
    whole, x_adv = m.attacked.world(cell.source), m.attacked.pictures(cell.source)
    n = min(s.features_n, len(whole.x)) // s.block * s.block
    world = whole.part(n)
    wide, taken = m.bench.world(cell.spec, n=3 * s.features_n), set(world.indices)
    rest = [k for k, index in enumerate(wide.indices) if index not in taken][:n]
    if len(rest) < n or n < s.block:
        raise UserError(f"{cell.spec}: two samples of {max(n, s.block)} different pictures are needed for the distribution view: lower "
                        "--sweeps.features-n.")
    return world, x_adv[:n], wide.x[rest]


def _state(m, cell: Cell, world, x_adv: Tensor) -> Tensor:
    from papers.distshift.kinds import STREAM, purified

    state = cell.method
    if state in ("clean", "adversarial"):
        return world.x if state == "clean" else x_adv
    if state == "diffused":
        return diffused(m.bench.purifier(cell.spec), x_adv, SampleRng(cell.seed, world.indices, STREAM))
    defence = m.bench.diffpure(cell.spec) if state == "diffpure" else m.bench.distshift(cell.spec)
    return purified(m, cell, world.x if state == "purified_clean" else x_adv, world.indices, defence)


def _plane(z: Tensor) -> tuple[Tensor, Tensor]:
    """(two principal axes (D, 2), mean (D,)); the largest entry of an axis is positive, so that a picture is not mirrored by chance."""
    middle = z.mean(dim=0)
    axes = torch.linalg.svd(z - middle, full_matrices=False).Vh[:2].T
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return axes * signs, middle
