"""How each kind of measurement is made: one function per kind, (measurer, cell) -> Values."""

import time

import numpy as np
import torch
from torch import Tensor

from papers.distshift import distribution, knowing
from papers.distshift.cells import VARIANTS, Cell
from shared.attacks import Threat, square
from shared.attacks.adaptive import AdaptiveAttack, Defended, majority, predict, resubmit, summaries
from shared.attacks.gradient import input_gradient
from shared.attacks.sanity_random import check_adaptive
from shared.experiment.bench import World
from shared.experiment.evaluation import Values
from shared.metrics.perceptual import psnr, ssim
from shared.rng import SampleRng

STREAM = "purify"  # of the defences' own noise, by seed and picture


def purified(m, cell: Cell, x: Tensor, indices: list[int], defence=None) -> Tensor:
    """x behind the cell's defence, without gradient; noise by (seed, picture)."""
    defence = m.bench.defence(cell.method, cell.spec) if defence is None else defence
    rng = SampleRng(cell.seed, indices, STREAM)
    with torch.no_grad():
        return torch.cat([defence(x[rows.to(x.device)], rng.subset(rows)) for rows in torch.arange(len(x)).split(m.config.method.batch)])


def right(m, cell: Cell, x: Tensor, world: World) -> Values:
    """Whether the victim (for pgd_at: the adversarially trained one) is right, per picture."""
    victim = m.bench.victim(cell.spec, cell.victim)
    with torch.no_grad():
        labels = torch.cat([victim(part).argmax(1) for part in x.split(m.config.attack.batch)])
    return Values((labels == world.y).double().cpu().numpy(), "share", {"labels": labels.cpu().numpy()})


def first(m, cell: Cell, n: int) -> tuple[World, Tensor]:
    """The first n pictures of a cell's source, with what they look like there."""
    world = m.attacked.world(cell.source).part(n)
    return world, m.attacked.pictures(cell.source)[: len(world.x)]


# -- accuracies -----------------------------------------------------------------------------------------------------------------------------


def score(m, cell: Cell) -> Values:
    """A cell of the main tables."""
    world = m.attacked.world(cell.source)
    return right(m, cell, purified(m, cell, m.attacked.pictures(cell.source), world.indices), world)


def _with(m, cell: Cell, defence=None) -> Values:
    world, x = first(m, cell, m.config.sweeps.n)
    return right(m, cell, purified(m, cell, x, world.indices, defence), world)


def diffusion_time(m, cell: Cell) -> Values:
    """Accuracy with another t*."""
    return _with(m, cell, getattr(m.bench, cell.method)(cell.spec, t=dict(cell.point)["t"]))


def rounds(m, cell: Cell) -> Values:
    """Accuracy with another number of rounds."""
    return _with(m, cell, getattr(m.bench, cell.method)(cell.spec, rounds=dict(cell.point)["rounds"]))


def scale(m, cell: Cell) -> Values:
    """Accuracy with another scale of the guidance, in the unit of the configuration."""
    return _with(m, cell, m.bench.distshift(cell.spec, scale=dict(cell.point)["scale"]))


def changes(config, variant: str) -> dict:
    """The fields of Guidance that a variant changes; what does not fit the configured rest is set back to its default."""
    found = dict(VARIANTS[variant])
    if found.get("domain") == "x0_hat":
        found.setdefault("rescale", "none")  # x̂₀ has its contrast
    return found


def variant(m, cell: Cell) -> Values:
    """Accuracy with another kind of guidance."""
    return _with(m, cell, m.bench.distshift(cell.spec, **changes(m.config, dict(cell.point)["variant"])))


# -- attackers who know the defence -----------------------------------------------------------------------------------------------------------


def adaptive(m, cell: Cell) -> Values:
    """Whether the victim is right, per picture, under one attacker and one way of judging repeated purifications."""
    point = dict(cell.point)
    who = (cell.method, point["against"], cell.norm)
    world = m.bench.world(cell.spec).part(m.config.adaptive.square_n if point["against"] == "square" else m.config.adaptive.n)
    if who not in m.held:
        x_adv, sanity = _known(m, cell, point["against"], world)
        victim, defence = m.bench.victim(cell.spec, cell.victim), m.bench.defence(cell.method, cell.spec)
        rng = SampleRng(cell.seed, world.indices, "judging")
        m.held[who] = resubmit(predict(victim), defence, x_adv, rng, m.config.adaptive.draws, m.config.method.batch), sanity
    labels, sanity = m.held[who]
    how = point["judged"]
    values = majority(labels, world.y) if how == "majority" else summaries(labels == world.y[:, None])[how]
    return Values(values.double().cpu().numpy(), "share", sanity=sanity)


def _known(m, cell: Cell, against: str, world: World) -> tuple[Tensor, dict | None]:
    """(pictures attacked by someone who knows the defence, sanity record of the exact attack)."""
    a, defence, victim = m.config.adaptive, m.bench.defence(cell.method, cell.spec), m.bench.victim(cell.spec, cell.victim)
    if against == "control":
        return world.x, None
    rng, noise = SampleRng(m.config.attack.seed, world.indices, "adaptive"), SampleRng(cell.seed, world.indices, "known")
    threat = Threat(cell.norm, cell.eps)
    if against == "square":
        target = Defended(victim, defence, noise.child("attack"))
        return square(target, world.x, world.y, threat, rng=rng, queries=a.square_queries, drop=False), None
    batch = max(1, m.config.method.batch // a.eot)
    if cell.method == "pgd_at":  # nothing random and nothing to differentiate but the victim
        bare = AdaptiveAttack("none", optimiser="pgd", steps=a.steps)
        return bare(victim, defence, world.x, world.y, threat, rng=rng, defence_rng=noise, batch=m.config.attack.batch), None
    x_adv = knowing.attacked(against, defence, victim, world.x, world.y, threat, rng, noise, a, batch=batch)
    sanity = None
    if against == "exact":
        sanity = check_adaptive(victim, defence, world.x, world.y, threat, knowing.attack_of(a, "exact"), rng=rng, defence_rng=noise, n=4,
                                images=a.sanity_n, batch=batch)
    return x_adv, sanity


# -- pictures ---------------------------------------------------------------------------------------------------------------------------------


def quality(m, cell: Cell) -> Values:
    """PSNR (dB) or SSIM between the picture behind the defence and the clean one."""
    world, x = first(m, cell, m.config.sweeps.quality_n)
    who = ("quality", cell.method, cell.source)
    if who not in m.held:
        m.held[who] = purified(m, cell, x, world.indices)
    how = dict(cell.point)["measure"]
    return Values({"psnr": psnr, "ssim": ssim}[how](m.held[who], world.x), {"psnr": "dB", "ssim": "index"}[how])


def norm(m, cell: Cell) -> Values:
    """‖x_adv − x‖ of the main tables' pictures, in either norm, as it came out."""
    x, x_adv = m.attacked.world(cell.source).x, m.attacked.pictures(cell.source)
    return Values(Threat(dict(cell.point)["measure"], 1.0).distance(x_adv, x).double().cpu().numpy(), "pixels")


def strip(m, cell: Cell) -> Values:
    """Some pictures on their way, with the victim's answers; the value is whether it is right after purification."""
    world, x = first(m, cell, m.config.sweeps.strip)
    victim, defence = m.bench.victim(cell.spec), m.bench.distshift(cell.spec)
    unguided = purified(m, cell, x, world.indices, m.bench.diffpure(cell.spec))
    out = purified(m, cell, x, world.indices, defence)
    diffused = distribution.diffused(defence.purifier, x, SampleRng(cell.seed, world.indices, STREAM))
    rows = {"clean": world.x, "adversarial": x, "diffused": diffused, "diffpure": unguided, "purified": out}
    names = m.bench.labelled(cell.spec).classes
    with torch.no_grad():
        said = {k: victim(v).argmax(1) for k, v in rows.items()}
    pictures = {k: (v.clamp(0, 1) * 255).round().byte().cpu().numpy() for k, v in rows.items()}
    answers = {f"{k} answers": np.array([names[i] for i in v.tolist()]) for k, v in said.items()}
    return Values((said["purified"] == world.y).double().cpu().numpy(), "share",
                  {**pictures, **answers, "difference": (x - world.x).cpu().numpy(), "truth": np.array([names[i] for i in world.y.tolist()])})


# -- cost -------------------------------------------------------------------------------------------------------------------------------------


def cost(m, cell: Cell) -> Values:
    """Passes through the networks per picture; seconds per picture of a purification, and of the exact gradient of the loss through it.

    Seconds are of processor time on a CPU, because other processes compete for the cores."""
    if ("cost", cell.method) not in m.held:
        m.held["cost", cell.method] = _costs(m, cell)
    quantity = dict(cell.point)["quantity"]
    return Values(m.held["cost", cell.method][quantity], "s" if "seconds" in quantity else "passes")


def _costs(m, cell: Cell) -> dict[str, np.ndarray]:
    world, x = first(m, cell, m.config.sweeps.cost_n)
    victim, defence = m.bench.victim(cell.spec), m.bench.defence(cell.method, cell.spec)
    rng, n, times = SampleRng(cell.seed, world.indices, STREAM), len(x), {"seconds": [], "gradient_seconds": []}
    for _ in range(m.config.sweeps.cost_repeats + 1):  # the first does not count
        marks = [_clock(x)]
        with torch.no_grad():
            victim(defence(x, rng))
        marks.append(_clock(x))
        input_gradient(lambda z: torch.nn.functional.cross_entropy(victim(defence(z, rng)), world.y, reduction="none"), x)
        marks.append(_clock(x))
        times["seconds"].append((marks[1] - marks[0]) / n)
        times["gradient_seconds"].append((marks[2] - marks[1]) / n)
    calls = {"denoiser_calls": np.full(n, float(defence.calls.denoiser)), "victim_calls": np.full(n, float(defence.calls.victim))}
    return {**calls, **{k: np.array(v[1:]) for k, v in times.items()}}


def _clock(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


KINDS = {"score": score, "eps": _with, "time": diffusion_time, "rounds": rounds, "scale": scale, "variant": variant, "adaptive": adaptive,
         "quality": quality, "norm": norm, "distribution": distribution.distribution, "strip": strip, "cost": cost}
