"""How each kind of measurement is made: one function per kind, (measurer, cell) -> Values. Attacks that know the defence stand in `knowing.py`."""

import time

import numpy as np
import torch
from torch import Tensor

from papers.diffcap import knowing, theory
from papers.diffcap.baselines import CLIPure, blank_direction
from papers.diffcap.cells import CLASSIFIER, Cell
from papers.diffcap.method import Calibration, DiffCAP, calibrate_tau
from papers.diffcap.models import World
from papers.diffcap.runs import bases
from papers.diffcap.shift import digits, digits_pairs, digits_stop
from shared.attacks import Threat
from shared.attacks.language import says, targeted_string
from shared.attacks.pgd import ascend
from shared.experiment.evaluation import Values
from shared.metrics.perceptual import embedding_similarity, psnr, ssim
from shared.rng import SampleRng

STREAM = "purify"  # of the defences' own noise, by seed and picture
TEMPLATES = ("a photo of a {}.", "a picture of a {}.")


# -- answers ------------------------------------------------------------------------------------------------------------------------------


def purified(m, cell: Cell, x: Tensor, indices: list[int], defence=None) -> Tensor:
    """x behind the cell's defence, without gradient; noise by (seed, picture)."""
    defence = m.bench.defence(cell.method, m.tau if cell.method == "diffcap" else 0.0, cell.model) if defence is None else defence
    rng = SampleRng(cell.seed, indices, STREAM)
    with torch.no_grad():
        return torch.cat([defence(x[rows.to(x.device)], rng.subset(rows)) for rows in torch.arange(len(x)).split(m.config.method.batch)])


def respond(m, cell: Cell, x: Tensor, world: World) -> Values:
    """What the victim makes of pictures: correct or not, or the score of its answers, which are kept."""
    victim = m.bench.victim(cell.model, world.spec, cell.tower)
    batch = m.config.attack.batch
    if cell.model == CLASSIFIER:
        if cell.method == "clipure":
            clip = m.bench.open_clip(bases(m.config)[CLASSIFIER])
            victim = CLIPure(victim, blank_direction(clip, TEMPLATES), step_size=m.config.baselines.clipure)
        with torch.no_grad():
            labels = torch.cat([victim(part).argmax(1) for part in x.split(batch)])
        return Values((labels == world.y).double().cpu().numpy(), "share", {"labels": labels.cpu().numpy()})
    answers = victim.answer(x, world.prompts, max_tokens=world.max_tokens, batch=batch)
    extra = {"answers": np.array(answers)}
    if world.task == "captions" and world.spec.startswith("scenes-"):
        extra["named"] = named(m, world, answers)
    return Values(world.scores(answers), world.unit, extra)


def named(m, world: World, answers: list[str]) -> np.ndarray:
    """(N,) 1 where an answer names the colour and the shape of every object and of no other, by any of their names."""
    from shared.data.language import named_objects, objects

    scenes = m.bench.text_set(world.spec, "test").scenes(world.indices)
    return np.array([named_objects(answer) == objects(scenes, i) for i, answer in enumerate(answers)], np.float64)


def score(m, cell: Cell) -> Values:
    """A cell of the main tables."""
    world = m.attacked.world(cell.source)
    return respond(m, cell, purified(m, cell, m.attacked.pictures(cell.source), world.indices), world)


def stopped(m, cell: Cell, x: Tensor, world: World, defence: DiffCAP | None = None):
    """Where the loop of DiffCAP ends for pictures."""
    defence = m.bench.diffcap(m.tau, cell.model) if defence is None else defence
    rng = SampleRng(cell.seed, world.indices, STREAM)
    return [defence.stop_times(x[rows.to(x.device)], rng.subset(rows)) for rows in torch.arange(len(x)).split(m.config.method.batch)]


def stop(m, cell: Cell) -> Values:
    """t* in the main tables, in steps of the schedule: each picture's own with DiffCAP, one for all with DiffPure."""
    if cell.method == "diffpure":
        return Values(np.full(len(m.attacked.world(cell.source).x), m.config.method.diffpure), "steps", {})
    parts = stopped(m, cell, m.attacked.pictures(cell.source), m.attacked.world(cell.source))
    reached = torch.cat([p.reached for p in parts]).cpu().numpy()
    return Values(torch.cat([p.t for p in parts]).cpu().numpy(), "steps", {"reached": reached})


# -- τ ------------------------------------------------------------------------------------------------------------------------------------


def calibration_pairs(m, spec: str, task: str) -> tuple[Tensor, Tensor]:
    """Validation pictures of a set, and the same attacked without a task: PGD lowers the cosine of the victim's embedding to the clean one."""
    c = m.config.method
    world = m.bench.world(spec, task, "validation", c.calibration_n)
    embed = m.bench.classifier(m.config.data.classes[0]).embed
    return world.x, away(embed, world.x, c.calibration_eps, c.calibration_steps, SampleRng(m.config.attack.seed, world.indices, "calibration"),
                         m.config.attack.batch)


def away(embed, x: Tensor, eps: float, steps: int, rng: SampleRng, batch: int) -> Tensor:
    """Pictures in the ball whose embeddings point away from the clean ones: PGD on −cos, random start, step 2.5·ε/steps."""
    out = x.clone()
    for rows in torch.arange(len(x)).split(batch):
        clean = x[rows.to(x.device)]
        with torch.no_grad():
            target = embed(clean)
        out[rows.to(x.device)] = ascend(lambda z, target=target: -torch.cosine_similarity(embed(z), target), clean, Threat("linf", eps), steps=steps,
                                        step_size=2.5 * eps / steps, rng=rng.subset(rows))
    return out


def similarities(m, other: bool = False) -> Calibration:
    """cos(φ(clean), φ(adversarial)) of the calibration pairs by set, for φ or for the other choice of it."""
    if ("pairs", other) not in m.held:
        rule = m.bench.diffcap(0.0)
        if other:
            rule = DiffCAP(rule.purifier, m.bench.phi(other=True), rule.rule)
        m.held["pairs", other] = calibrate_tau({spec: calibration_pairs(m, spec, task) for spec, task in m.sets}, rule, batch=m.config.method.batch)
    return m.held["pairs", other]


def tau(m, cell: Cell) -> Values:
    """The similarities of one set's pairs; τ is the mean over the sets."""
    pairs = digits_pairs(m) if cell.spec == "digits:all" else calibration_pairs(m, cell.spec, dict(m.sets)[cell.spec])
    found = calibrate_tau({cell.spec: pairs}, m.bench.diffcap(0.0), batch=m.config.method.batch)
    return Values(found.pairs[cell.spec].numpy(), "cosine")


def calibration(m, cell: Cell) -> Values:
    """τ from random subsets of so many pairs per set: one value per draw of the subset."""
    size = dict(cell.point)["pairs"]
    return Values(m.calibrated.spread([size], seed=cell.seed)[size].numpy(), "cosine")


# -- sweeps of the method -------------------------------------------------------------------------------------------------------------------


def _first(m, cell: Cell, n: int) -> tuple[World, Tensor]:
    world = m.attacked.world(cell.source).part(n)
    return world, m.attacked.pictures(cell.source)[: len(world.x)]


def _with(m, cell: Cell, defence) -> Values:
    world, x = _first(m, cell, m.config.sweeps.n)
    return respond(m, cell, purified(m, cell, x, world.indices, defence), world)


def ablation(m, cell: Cell) -> Values:
    """Accuracy with τ moved by an offset and with another Δt; nothing else is calibrated again."""
    point = dict(cell.point)
    return _with(m, cell, m.bench.diffcap(min(m.tau + point["offset"], 1.0), dt=point["dt"]))


def fixed(m, cell: Cell) -> Values:
    """Accuracy of purification at a fixed time."""
    return _with(m, cell, m.bench.diffpure(dict(cell.point)["t"]))


def variant(m, cell: Cell) -> Values:
    """Accuracy with one field of DiffCAP changed; τ calibrated as always."""
    other = m.bench.diffcap(m.tau)
    if cell.method == "other_phi":
        other = DiffCAP(other.purifier, m.bench.phi(other=True), other.rule).with_rule(tau=similarities(m, other=True).tau)
    else:
        name = {"redraw": "coupling", "x_t/alpha": "encode", "max_similarity": "fallback"}[cell.method]
        other = other.with_rule(**{name: cell.method})
    return _with(m, cell, other)


# -- what the noise does --------------------------------------------------------------------------------------------------------------------


def similarity(m, cell: Cell) -> Values:
    """s at time t: cos of φ at t − Δt and t along the chain, for clean, adversarial and pure-noise pictures, never stopped."""
    world, x = _first(m, cell, m.config.sweeps.n)
    if ("similarity", cell.method) not in m.held:
        rng = SampleRng(cell.seed, world.indices, STREAM)
        noise = rng.child("pure noise").uniform(x.shape[1:]).to(x)
        pictures = {"clean": world.x, "adversarial": x, "noise": noise}[cell.method]
        rule = m.bench.diffcap(m.tau)
        with torch.no_grad():
            m.held["similarity", cell.method] = rule.similarities(pictures, list(rule.rule.times), rng)
    at = list(m.bench.diffcap(m.tau).rule.times).index(dict(cell.point)["t"])
    return Values(m.held["similarity", cell.method][:, at].cpu().numpy(), "cosine")


def fading(m, cell: Cell) -> Values:
    """1 − cos between the victim's embeddings of the clean and of the adversarial picture, both noised to time t with the same noise."""
    world, x = _first(m, cell, m.config.sweeps.n)
    t = torch.full((len(x),), dict(cell.point)["t"])
    purifier, embed = m.bench.diffpure(), m.bench.classifier(cell.spec).embed
    rng = SampleRng(cell.seed, world.indices, STREAM)
    with torch.no_grad():
        seen = [embed(as_picture(purifier, purifier.noise(purifier.to_native(p), t, rng), t, p)) for p in (world.x, x)]
    return Values((1 - torch.cosine_similarity(*seen)).cpu().numpy(), "distance")


def as_picture(purifier, x_t: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """x_t/α(t) as a picture in [0, 1]: what a victim sees of a noised image."""
    alpha = purifier.denoiser.schedule.alpha(t).to(x_t).view(-1, 1, 1, 1)
    return purifier.from_native(x_t / alpha, tuple(like.shape[-2:]))


def recovery(m, cell: Cell) -> Values:
    """Whether there is a time of the grid from which on the victim's answer to the noised ("noised") or noised and denoised ("purified") adversarial
    picture is its answer to the clean one; the times, and the times that theory promises, are kept beside it."""
    world, x = _first(m, cell, m.config.sweeps.n)
    victim, purifier, times = m.bench.classifier(cell.spec), m.bench.diffpure(), m.config.sweeps.times
    rng = SampleRng(cell.seed, world.indices, STREAM)

    def answers(pictures: Tensor, time: int, stream: SampleRng) -> Tensor:
        t = torch.full((len(pictures),), time)
        x_t = purifier.noise(purifier.to_native(pictures), t, stream)
        if cell.method == "purified":
            return victim(purifier.from_native(purifier.reverse(x_t, t, stream), tuple(pictures.shape[-2:]))).argmax(1)
        return victim(as_picture(purifier, x_t, t, pictures)).argmax(1)

    with torch.no_grad():
        clean = victim(world.x).argmax(1)
        same = torch.stack([answers(x, time, rng) == clean for time in times], 1).cpu()
        found = theory.recovery_time(same, times)
        norm = 2 * (x - world.x).flatten(1).norm(dim=1).cpu()
        lead = torch.stack([_lead(answers, world.x, time, rng) for time in times], 1) if cell.method == "noised" else torch.zeros(same.shape)
    bound = theory.bound_time(norm, lead, purifier.denoiser.schedule, times)
    return Values((found >= 0).double().numpy(), "share", {"time": found.numpy(), "bound": bound.numpy(), "same": same.numpy()})


def _lead(answers, pictures: Tensor, time: int, rng: SampleRng, draws: int = 16) -> Tensor:
    """Share of draws of the likeliest answer minus that of the next, (N,)."""
    votes = torch.stack([answers(pictures, time, rng.child(f"lead{k}")) for k in range(draws)], 1).cpu()
    counts = torch.nn.functional.one_hot(votes).sum(1).sort(dim=1, descending=True).values
    return (counts[:, 0] - (counts[:, 1] if counts.shape[1] > 1 else 0)) / draws


# -- quality, strings, costs, pictures --------------------------------------------------------------------------------------------------------


def quality(m, cell: Cell) -> Values:
    """PSNR (dB), SSIM, or cosine of φ between the purified and the clean picture."""
    world, x = _first(m, cell, m.config.sweeps.quality_n)
    out, how = purified(m, cell, x, world.indices), dict(cell.point)["measure"]
    if how == "clip":
        return Values(embedding_similarity(m.bench.phi(), out, world.x, m.config.method.batch), "cosine")
    return Values({"psnr": psnr, "ssim": ssim}[how](out, world.x), {"psnr": "dB", "ssim": "index"}[how])


def targeted(m, cell: Cell) -> Values:
    """Whether the answer holds the attacker's string, with the cell's defence in front of (or inside) the model that was attacked without it."""
    a, string = m.config.attack, dict(cell.point)["string"]
    world = m.bench.world(cell.spec, "captions").part(a.target_n)
    vlm = m.bench.vlm(cell.model, cell.tower)
    if ("targeted", cell.tower, string) not in m.held:
        m.held["targeted", cell.tower, string] = targeted_string(
            vlm, world.x, world.prompts[0], string, Threat("linf", cell.eps), steps=a.target_steps, rng=SampleRng(a.seed, world.indices, "targeted"),
            batch_size=a.batch).x_adv
    x = purified(m, cell, m.held["targeted", cell.tower, string], world.indices)
    answers = vlm.answer(x, world.prompts, max_tokens=world.max_tokens, batch=a.batch)
    return Values(says(answers, [[string]] * len(answers)), "share", {"answers": np.array(answers)})


def cost(m, cell: Cell) -> Values:
    """Passes through the networks per picture, and seconds per picture split into the loop and the reverse process, one batch on one process.

    Seconds are of processor time on a CPU, because other processes compete for the cores."""
    if ("cost", cell.method) not in m.held:
        m.held["cost", cell.method] = _costs(m, cell)
    values = m.held["cost", cell.method][dict(cell.point)["quantity"]]
    return Values(values, "s" if "seconds" in dict(cell.point)["quantity"] else "passes")


def _costs(m, cell: Cell) -> dict[str, np.ndarray]:
    world, x = _first(m, cell, m.config.sweeps.cost_n)
    defence = m.bench.diffcap(m.tau) if cell.method == "diffcap" else m.bench.diffpure()
    purifier = defence.purifier if cell.method == "diffcap" else defence
    rng, n = SampleRng(cell.seed, world.indices, STREAM), len(x)
    victim = m.bench.victim(cell.model, cell.spec)
    loops, reverses, totals = [], [], []
    with torch.no_grad():
        for _ in range(m.config.sweeps.cost_repeats + 1):  # the first does not count
            marks = [_clock(x)]
            if cell.method == "diffcap":
                stop = defence.stop_times(x, rng)
                state, t, looks = stop.state, stop.t, stop.encoded.cpu().numpy()
            else:
                t, looks = torch.full((n,), defence.t), np.zeros(n)
                state = purifier.noise(purifier.to_native(x), t, rng)
            marks.append(_clock(x))
            out = purifier.from_native(purifier.reverse(state, t, rng), tuple(x.shape[-2:]))
            marks.append(_clock(x))
            victim(out)
            marks.append(_clock(x))
            loops.append((marks[1] - marks[0]) / n)
            reverses.append((marks[2] - marks[1]) / n)
            totals.append((marks[3] - marks[0]) / n)
    grid = purifier.sampler.times(t.cpu())
    calls = (grid[:, :-1] > grid[:, 1:]).sum(1).numpy()
    return {"denoiser_calls": calls, "encoder_calls": looks, "encoder_seconds": np.array(loops[1:]), "reverse_seconds": np.array(reverses[1:]),
            "seconds": np.array(totals[1:])}


def _clock(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def strip(m, cell: Cell) -> Values:
    """Some pictures on their way: clean, adversarial, diffused, purified, with the model's answers; the value is the score after purification."""
    world, x = _first(m, cell, m.config.sweeps.strip)
    defence, vlm = m.bench.diffcap(m.tau, cell.model), m.bench.vlm(cell.model)
    rng = SampleRng(cell.seed, world.indices, STREAM)
    with torch.no_grad():
        stop = defence.stop_times(x, rng)
        diffused = as_picture(defence.purifier, stop.state, stop.t, x)
        out = defence(x, rng)
    rows = {"clean": world.x, "adversarial": x, "diffused": diffused, "purified": out}
    answers = {f"{k} answers": np.array(vlm.answer(v, world.prompts, max_tokens=world.max_tokens)) for k, v in rows.items()}
    pictures = {k: (v.clamp(0, 1) * 255).round().byte().cpu().numpy() for k, v in rows.items()}
    return Values(world.scores(list(answers["purified answers"])), world.unit,
                  {**pictures, **answers, "difference": (x - world.x).cpu().numpy(), "t": stop.t.cpu().numpy()})


KINDS = {"score": score, "stop": stop, "tau": tau, "calibration": calibration, "ablation": ablation, "fixed": fixed, "variant": variant,
         "similarity": similarity, "fading": fading, "recovery": recovery, "quality": quality, "targeted": targeted, "cost": cost, "strip": strip,
         "digits": digits, "digits_stop": digits_stop, "adaptive": knowing.adaptive, "adaptive_caption": knowing.adaptive_caption}
