"""What is computed for distshift: the classifiers that are protected, pictures under attack, and the numbers that are
measured on them.

`number` says what the tags of a number mean. Pictures are attacked first (`Attacked`): the bare victim (gray box) for
everything that stands in front of it, the adversarially trained victim for itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.distshift import adaptive
from papers.distshift.baselines import GDMP, Pull
from papers.distshift.config import Config, Protected
from papers.distshift.method import Distshift, Guidance
from papers.distshift.tables import BASELINE, GUIDED, HEADLINE_ADAPTIVE, NORMS, VARIANTS, YOURS, radius, sets
from shared.attacks import Threat, cascade, check_attack, pgd, square
from shared.attacks.adaptive import Defended
from shared.attacks.gradient import input_gradient
from shared.data.imagenet30 import LOGITS
from shared.errors import UserError
from shared.experiment.leaves import Pictures, Weights
from shared.experiment.step import Lab, Measured, Tensors, Trained, Values, free, once
from shared.experiment.store import slug
from shared.metrics.costs import phase_seconds
from shared.metrics.two_sample import median_distance, mmd2, permutation_test
from shared.models.classifier import Classifier, open_classifier, random_classifier
from shared.models.victim import labels_of
from shared.options import Worded
from shared.repeat import joined
from shared.rng import SampleRng
from shared.steps.choice import CandidateScore, Choice, settled
from shared.steps.purification import (
    STREAM,
    Attacked,
    Behind,
    Checked,
    Defence,
    Denoising,
    Diffusion,
    Known,
    KnownAccuracy,
    NoiseAlone,
    Purification,
    Quality,
    SameNoise,
    Seen,
    Transform,
    as_bytes,
)
from shared.steps.yours import DefenceSeconds, Yours
from shared.training.classify import ClassifierTraining, train_classifier

# ---- victims and defences ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network(Trained):
    """A classifier that is trained here, adversarially where its training has an ε."""

    what: Literal["base", "at"]
    arch: str
    data: Pictures
    training: ClassifierTraining
    seed: int

    @property
    def name(self) -> str:
        return slug(self.what, self.arch, self.data.spec, f"seed{self.seed}")

    @property
    def weight(self) -> float:
        """Passes per picture, relative to others."""
        return 1.0 + (self.training.attack_steps if self.training.eps else 0)

    def make(self, lab: Lab) -> Tensors:
        data = self.data.open(lab)
        classifier = random_classifier(self.arch, data.num_classes, self.seed).to(lab.device)
        train_classifier(classifier, data, self.training, self.seed, lab.device, lab.partial(self), self.name)
        return classifier.weights()


@dataclass(frozen=True)
class Victim:
    """A classifier of the classes of a set. restrict: its weights are of ImageNet's 1,000, of which only the set's
    logits are kept."""

    spec: str
    arch: str
    weights: Weights | Network
    restrict: bool = False

    @once
    def open(self, lab: Lab) -> Classifier:
        """The classifier, opened once."""
        if isinstance(self.weights, Network):
            source = str(lab.file(self.weights))
        else:
            source = self.weights.spec
        keep = list(LOGITS) if self.restrict and isinstance(self.weights, Weights) and source != "random" else None
        return open_classifier(self.arch, source, lab.data(self.spec).num_classes, keep, lab.device)

    def says(self, lab: Lab, x: Tensor, batch: int) -> Tensor:
        """(N,) its labels for pictures, `batch` at a time."""
        return labels_of(self.open(lab), x, batch)


@dataclass(frozen=True)
class Shift:
    """Purification that the victim guides, in rounds; guidance None: DiffPure as one DDPM with fixed times.

    times: of the guidance's scale."""

    purification: Purification
    victim: Victim
    guidance: Guidance | Choice | None
    rounds: int
    times: float = 1.0

    def open(self, lab: Lab) -> Distshift:
        """The defence."""
        guidance = settled(lab, self.guidance)
        if guidance is not None:
            guidance = replace(guidance, scale=self.times * guidance.scale)
        return Distshift(self.purification.open(lab), self.victim.open(lab), guidance, self.rounds)


@dataclass(frozen=True)
class Pulled:
    """GDMP: guided towards the diffused input, in pixels."""

    purification: Purification
    pull: Pull | Choice
    rounds: int

    def open(self, lab: Lab) -> GDMP:
        """The defence."""
        purifier = self.purification.open(lab)
        purifier.sampler = replace(purifier.sampler, variance="large")  # V = β, as published
        return GDMP(purifier, settled(lab, self.pull), self.rounds)


# ---- how settings are chosen -----------------------------------------------------------------------------------------


def placed(defence: Shift | Pulled, candidate: int | Guidance | Pull) -> Shift | Pulled:
    """A defence with a candidate in its place: a time, a guidance, or what GDMP pulls with."""
    if isinstance(candidate, Guidance):
        return replace(defence, guidance=candidate)
    if isinstance(candidate, Pull):
        return replace(defence, pull=candidate)
    return replace(defence, purification=replace(defence.purification, t=candidate))


@dataclass(frozen=True)
class Judged:
    """Accuracy on validation pictures of every set, clean and attacked alike: of each picture, with 1 where the bare
    victim is right about what the candidate makes of it,

        1/2 [ clean + 1/2 (PGD in the ℓ∞ ball + PGD in the ℓ2 ball) ]

    This was written down before any score was looked at. A defence in front of a classifier may see the classifier, and
    pictures that it is right or wrong about; the attack is on the bare victim, as in the main tables, and knows no
    candidate. No test picture is read. defences, seen: one for each set; of the latter the pictures clean and under
    both attacks.
    """

    defences: tuple[Shift | Pulled, ...]
    victims: tuple[Victim, ...]
    seen: tuple[tuple[Seen, Seen, Seen], ...]
    seed: int
    batch: int = free(64)
    answers: int = free(64)

    def score(self, lab: Lab, candidate: object) -> Tensor:
        """(Σ n,), the pictures of one set after another."""
        parts = []
        for defence, victim, pictures in zip(self.defences, self.victims, self.seen, strict=True):
            clean, linf, l2 = (self._right(lab, placed(defence, candidate), victim, seen) for seen in pictures)
            parts.append((clean + (linf + l2) / 2) / 2)
        return torch.cat(parts)

    def _right(self, lab: Lab, defence: Shift | Pulled, victim: Victim, seen: Seen) -> Tensor:
        said = victim.says(lab, seen.behind(lab, defence, self.seed, self.batch), self.answers)
        return said.eq(seen.clean(lab)[1]).double()


# ---- pictures under attack ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adversary(Worded):
    """An attack on the bare victim: PGD with steps of 2.5·ε/steps, or the cascade that stands for AutoAttack.

    step: of PGD in place of that, in pixels, and then the last iterate counts: the first author's attack is 5 steps of
    3/255 in torchattacks (diffusion_defense/cifar10/attack.py)."""

    kind: Literal["pgd", "autoattack"]
    norm: Literal["linf", "l2"]
    eps: float
    steps: int
    stages: tuple[str, ...] = ()
    targets: int = 0
    queries: int = 0
    step: float = 0.0
    seed: int = 0
    batch: int = free(64)

    @property
    def name(self) -> str:
        """For people."""
        return slug(f"{self.kind}{self.steps if self.step else ''}", self.norm, f"{self.eps * 255:g}")

    @property
    def weight(self) -> float:
        """Gradient steps per picture."""
        return self.steps * (1.0 + self.targets) + self.queries / 3

    def __call__(
        self,
        victim: Classifier,
        x: Tensor,
        y: Tensor,
        rng: SampleRng,
        threat: Threat | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """x_adv (N, 3, H, W). threat, steps: in place of its own, which sanity checks vary."""
        threat, steps = threat or Threat(self.norm, self.eps), steps or self.steps
        if self.kind == "autoattack":
            settings = {
                "stages": self.stages,
                "targets": self.targets,
                "queries": self.queries,
                "batch_size": self.batch,
            }
            return cascade(victim, x, y, threat, rng=rng, steps=steps, **settings).x_adv
        # the iterate of highest loss among those that succeed; nothing leaves early, for a picture just over the
        # boundary says little behind a defence
        how = {"steps": steps, "step_size": 2.5 * threat.eps / steps, "drop": False}
        if self.step:
            how |= {"step_size": self.step, "keep": "last"}
        parts = torch.arange(len(x), device=x.device).split(self.batch)
        return joined(lambda at: pgd(victim, x[at], y[at], threat, rng=rng.subset(at.cpu()), **how), parts)

    def check(self, victim: Classifier, x: Tensor, y: Tensor, rng: SampleRng) -> dict:
        """The record of the sanity checks of this attack on a victim."""

        def again(model: Classifier, x: Tensor, y: Tensor, threat: Threat, *, steps: int, rng: SampleRng) -> Tensor:
            return self(model, x, y, rng, threat, steps)

        return check_attack(victim, x, y, Threat(self.norm, self.eps), again, rng=rng, steps=self.steps, images=len(x))


# ---- accuracies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy(Behind):
    """Whether a victim is right about a picture behind a defence."""

    @property
    def weight(self) -> float:
        """Passes through the diffusion model, roughly."""
        return passes(self.defence)

    def make(self, lab: Lab) -> Values:
        said = self.victim.says(lab, self.pictures(lab), self.answers)
        right = said.eq(self.seen.clean(lab)[1]).double().cpu().numpy()
        return Values(right, "share", {"labels": said.cpu().numpy()}, **self.beside(lab))


def passes(defence: Defence) -> float:
    """How long a defence takes, roughly, in reverse processes without a guide."""
    if isinstance(defence, Shift):
        return defence.rounds * (1.0 if defence.guidance is None else 3.0)
    return float(defence.rounds) if isinstance(defence, Pulled) else 0.05


# ---- attackers who know the defence ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptive(Known):
    """On the classifier; beside the attackers of `Known` those of `papers.distshift.adaptive`, and Square's search with
    `queries`."""

    queries: int = 0
    answers: int = free(64)

    @property
    def weight(self) -> float:
        """Passes through the diffusion model."""
        each = self.queries / 4 if self.against == "square" else super().weight - self.draws
        return passes(self.defence) * (self.draws + each)

    def attacked(self, lab: Lab, x: Tensor, y: Tensor) -> tuple[Tensor, dict | None]:
        victim, defence, threat = self.victim.open(lab), self.defence.open(lab), Threat(self.norm, self.eps)
        rng, noise = self.streams(lab)
        if self.against == "square":
            target = Defended(victim, defence, noise.child("attack"))
            return square(target, x, y, threat, rng=rng, queries=self.queries, drop=False), None
        if isinstance(self.defence, Transform):  # nothing random and nothing to differentiate but the victim
            bare = adaptive.attack_of(self, "transfer")
            return bare(victim, defence, x, y, threat, rng=rng, defence_rng=noise, batch=self.answers), None
        if self.against == "exact":
            return self.by_gradient(lab, x, y, adaptive.attack_of(self, "exact"))
        batch = max(1, self.batch // self.eot)
        return adaptive.attacked(self.against, defence, victim, x, y, threat, rng, noise, self, batch=batch), None


# ---- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size(Measured):
    """‖x_adv − x‖ of attacked pictures in either norm, as it came out."""

    seen: Seen
    measure: Literal["linf", "l2"]

    def make(self, lab: Lab) -> Values:
        found = Threat(self.measure, 1.0).distance(self.seen.pictures(lab), self.seen.clean(lab)[0])
        return Values(found.double().cpu().numpy(), "pixels", skipped=self.seen.skipped(lab))


@dataclass(frozen=True)
class Strip(Measured):
    """Some pictures on their way, with the victim's answers; the value is whether it is right after purification."""

    victim: Victim
    seen: Seen
    unguided: Shift
    defence: Shift
    seed: int
    batch: int = free(64)

    def make(self, lab: Lab) -> Values:
        x, (clean, y), rows = self.seen.pictures(lab), self.seen.clean(lab), self.seen.rows(lab)
        shown = {
            "clean": clean,
            "adversarial": x,
            "diffused": diffused(self.defence.purification.open(lab), x, rows, self.seed),
        }
        for name, defence in (("diffpure", self.unguided), ("purified", self.defence)):
            shown[name] = self.seen.behind(lab, defence, self.seed, self.batch)
        said = {name: self.victim.says(lab, pictures, self.batch) for name, pictures in shown.items()}
        names = lab.data(self.victim.spec).classes

        def named(labels: Tensor) -> np.ndarray:
            return np.array([names[i] for i in labels.tolist()])

        answers = {f"{name} answers": named(labels) for name, labels in said.items()}
        more = {"difference": (x - clean).cpu().numpy(), "truth": named(y)}
        pictures = {name: as_bytes(x) for name, x in shown.items()}
        return Values((said["purified"] == y).double().cpu().numpy(), "share", {**pictures, **answers, **more})


def diffused(purifier, x: Tensor, rows: list[int], seed: int) -> Tensor:
    """x_{t*}/α(t*) as pictures: what the forward process makes of x, with the noise that purification has."""
    t = torch.full((len(x),), purifier.t)
    x_t = purifier.noise(purifier.to_native(x), t, SampleRng(seed, rows, STREAM))
    alpha = purifier.denoiser.schedule.alpha_bar(purifier.t).sqrt().item()
    return purifier.from_native(x_t / alpha, tuple(x.shape[-2:]))


# ---- distributions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distribution(Measured):
    """The paper's view of the defence: pictures in one state as a sample of a distribution, in the victim's features.

    The first pictures in that state are held against other clean pictures of the set, so that the two samples are
    independent:

        mmd2   the mean over blocks of `block` pictures of the unbiased MMD² (Gretton et al. 2012, eq. 3), which is unbiased too; blocks are
               independent, so that it has an interval (Zaremba et al. 2013)
        p      of the permutation test on all pictures at once, with the median distance in the pooled sample as width

    Both samples have equally many pictures of every class, one class after the other. A block of pictures in that order
    would hold no two of a class, and MMD² be negative where nothing differs; so blocks are drawn from the samples at
    random, and divisions exchange pictures of a class only.

    The kernel's width of MMD² is the median distance among the other clean pictures, one for all states. Beside it
    stands where the pictures lie in the plane of two principal axes of clean and adversarial features together.
    """

    victim: Victim
    seen: Seen
    state: Literal["clean", "adversarial", "diffused", "purified"]
    defence: Shift | None
    n: int
    block: int
    permutations: int
    seed: int
    quantity: Literal["mmd2", "p"]
    batch: int = free(64)
    answers: int = free(64)

    @property
    def group(self) -> "Distribution":
        """Both quantities are of one sample."""
        return replace(self, quantity="mmd2")

    @property
    def weight(self) -> float:
        """Of the purification."""
        return 0.05 if self.defence is None else passes(self.defence)

    def make(self, lab: Lab) -> Values:
        return self.group._measured(lab)[self.quantity]

    @once
    def _measured(self, lab: Lab) -> dict[str, Values]:
        seen, other, classes = self._samples(lab)
        victim = self.victim.open(lab)

        def features(x: Tensor) -> Tensor:
            with torch.no_grad():
                return joined(victim.features, x.split(self.answers)).double().cpu()

        reference, adversarial, z = features(other), features(seen.pictures(lab)), features(self._state(lab, seen))
        width = median_distance(reference)
        rng = np.random.default_rng(self.seed)
        parts = [part[rng.permutation(len(part))].split(self.block) for part in (z, reference)]
        blocks = [mmd2(a, b, width) for a, b in zip(*parts, strict=True)]
        labels = seen.clean(lab)[1].cpu().numpy()
        strata = np.concatenate([labels, classes.cpu().numpy()])
        p = permutation_test(z, reference, n=self.permutations, seed=self.seed, strata=strata)[1]
        axes, middle = plane(torch.cat([reference, adversarial]))
        places = {"xy": ((z - middle) @ axes).numpy(), "reference": ((reference - middle) @ axes).numpy()}
        extra = {**places, "labels": labels}
        return {
            "mmd2": Values(np.array(blocks, np.float64), "MMD²", extra),
            "p": Values(np.array([p], np.float64), "p"),
        }

    def _samples(self, lab: Lab) -> tuple[Seen, Tensor, Tensor]:
        """(the first pictures, as many other clean pictures, the classes of these)."""
        n = min(self.n, len(self.seen.rows(lab))) // self.block * self.block
        seen = replace(self.seen, n=n)
        wide, taken = replace(self.seen.data, n=3 * self.n), set(seen.rows(lab)) if n else set()
        rest = [index for index in wide.rows(lab) if index not in taken][:n]
        if len(rest) < n or n < self.block:
            raise UserError(
                f"{self.seen.data.spec}: two samples of {max(n, self.block)} different pictures are needed for the "
                "distribution view: lower --sweeps.features-n."
            )
        return seen, *wide.read(lab, rest)

    def _state(self, lab: Lab, seen: Seen) -> Tensor:
        if self.state == "adversarial":
            return seen.pictures(lab)
        if self.state == "clean":
            bare = replace(seen, attacked=None)
            return seen.clean(lab)[0] if self.defence is None else bare.behind(lab, self.defence, self.seed, self.batch)
        if self.state == "diffused":
            return diffused(self.defence.purification.open(lab), seen.pictures(lab), seen.rows(lab), self.seed)
        return seen.behind(lab, self.defence, self.seed, self.batch)


def plane(z: Tensor) -> tuple[Tensor, Tensor]:
    """(two principal axes (D, 2), mean (D,)); the largest entry of an axis is positive, so that a picture is not
    mirrored by chance."""
    middle = z.mean(dim=0)
    axes = torch.linalg.svd(z - middle, full_matrices=False).Vh[:2].T
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return axes * signs, middle


# ---- cost --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost(Measured):
    """Passes through the networks per picture; seconds per picture of a purification, and of the exact gradient of the
    loss through it."""

    victim: Victim
    seen: Seen
    defence: Shift | Pulled
    repeats: int
    seed: int
    quantity: Literal["denoiser_calls", "victim_calls", "seconds", "gradient_seconds"]

    @property
    def group(self) -> "Cost":
        """All quantities are of the same runs."""
        return replace(self, quantity="seconds")

    def make(self, lab: Lab) -> Values:
        values = self.group._measured(lab)[self.quantity]
        return Values(values, "s" if "seconds" in self.quantity else "passes")

    @once
    def _measured(self, lab: Lab) -> dict[str, np.ndarray]:
        x, y = self.seen.pictures(lab), self.seen.clean(lab)[1]
        victim, defence = self.victim.open(lab), self.defence.open(lab)
        rng = SampleRng(self.seed, self.seen.rows(lab), STREAM)

        def run(done: Callable[[], None]) -> None:
            with torch.no_grad():
                victim(defence(x, rng))
            done()
            input_gradient(lambda z: F.cross_entropy(victim(defence(z, rng)), y, reduction="none"), x)
            done()

        seconds, gradient = phase_seconds(run, self.repeats, x.device).T / len(x)
        calls = {"denoiser_calls": defence.calls.denoiser, "victim_calls": defence.calls.victim}
        counted = {name: np.full(len(x), float(count)) for name, count in calls.items()}
        return counted | {"seconds": seconds, "gradient_seconds": gradient}


# ---- what the tags of a number mean ------------------------------------------------------------------------------------


def protected(c: Config, spec: str) -> Protected:
    """The victims of a set."""
    return next(p for p in (c.models.first, c.models.second) if p.data == spec)


def victim_of(c: Config, spec: str, which: Literal["base", "at"]) -> Victim:
    """The classifier that is protected, or the adversarially trained one."""
    p = protected(c, spec)
    weights, training = (p.weights, c.training) if which == "base" else (p.at_weights, c.at_training)
    if weights == "train":
        return Victim(spec, p.arch, Network(which, p.arch, Pictures(spec, "train"), training, c.seeds[0]))
    return Victim(spec, p.arch, Weights(weights), p.restrict)


def diffusion_of(c: Config, spec: str) -> Diffusion:
    """The diffusion model of a set."""
    p = protected(c, spec)
    if p.denoiser == "train":
        return Diffusion(Denoising(c.models.denoiser_config, Pictures(spec, "train"), c.denoising, c.seeds[0]))
    return Diffusion(Weights(p.denoiser))


def chosen(c: Config, title: str, candidates: tuple, defences: dict[str, Shift | Pulled]) -> Choice:
    """The choice among candidates by `Judged`, for these defences by set."""
    seen = []
    for spec in defences:
        data = Pictures(spec, c.choosing.split, c.choosing.n, c.data.seed)
        attacks = [adversary_of(c, "pgd", norm, radius(c, norm)) for norm in NORMS]
        attacked = [Attacked(victim_of(c, spec, "base"), data, attack, row="validation") for attack in attacks]
        seen.append((Seen(data), *(Seen(data, step) for step in attacked)))
    victims = tuple(victim_of(c, spec, "base") for spec in defences)
    rule = Judged(tuple(defences.values()), victims, tuple(seen), c.seeds[0], c.method.batch, c.attack.batch)
    return Choice(candidates, rule, title)


@cache
def time_of(c: Config, spec: str) -> int | Choice:
    """t* of a set: its own, or one that is chosen for all sets that have none."""
    if protected(c, spec).t:
        return protected(c, spec).t
    mine = [s for s in sets(c) if not protected(c, s).t]
    return chosen(c, "time", c.choosing.times, {s: diffpure_of(c, s, c.choosing.times[0]) for s in mine})


def guidance_named(c: Config, name: str) -> Guidance:
    """A guidance of `VARIANTS`."""
    return replace(c.guidance, **changed(name))


@cache
def guidance_of(c: Config) -> Choice:
    """The guidance of distshift, one for all sets."""
    candidates = tuple(guidance_named(c, name) for name in c.choosing.guidances)
    defences = {s: Shift(purification_of(c, s), victim_of(c, s, "base"), None, c.method.rounds) for s in sets(c)}
    return chosen(c, "guidance", candidates, defences)


@cache
def pull_of(c: Config) -> Choice:
    """What GDMP pulls with, one for all sets."""
    candidates = tuple(replace(c.baselines.gdmp, scale=w) for w in c.choosing.pulls)
    defences = {s: Pulled(purification_of(c, s), candidates[0], c.baselines.gdmp_rounds) for s in sets(c)}
    return chosen(c, "pull", candidates, defences)


def choice_of(c: Config, title: str) -> int | Choice:
    """A choice by its title; t* of a configuration that gives it for every set."""
    if title == "time":
        return time_of(c, next((s for s in sets(c) if not protected(c, s).t), sets(c)[0]))
    return guidance_of(c) if title == "guidance" else pull_of(c)


def purification_of(c: Config, spec: str, t: int | None = None) -> Purification:
    """Noising to t* (that of the set) and the reverse process."""
    m, at = c.method, t or time_of(c, spec)
    return Purification(diffusion_of(c, spec), at, m.sampler, m.sampler_steps, m.eta, m.recompute)


def released_of(c: Config, spec: str, sampler: str, t: int | SameNoise | None = None, guided: bool = False) -> Shift:
    """The first author's purifier: "one_step", or "ddpm" through every step; t: by default his own t*."""
    diffusion = diffusion_of(c, spec)
    at = SameNoise(diffusion, c.released.t) if t is None else t
    purification = Purification(diffusion, at, sampler, 0, 0.0, c.method.recompute)
    return Shift(purification, victim_of(c, spec, "base"), guidance_named(c, "g5-released") if guided else None, 1)


def shift_of(
    c: Config,
    spec: str,
    t: int | None = None,
    rounds: int | None = None,
    scale: float = 1.0,
    guidance: Guidance | None = None,
) -> Shift:
    """distshift as configured, or with another guidance; scale: times its own."""
    guide = guidance or guidance_of(c)
    return Shift(purification_of(c, spec, t), victim_of(c, spec, "base"), guide, rounds or c.method.rounds, scale)


def diffpure_of(c: Config, spec: str, t: int | None = None, rounds: int | None = None) -> Shift:
    """The same without a guide."""
    return Shift(purification_of(c, spec, t), victim_of(c, spec, "base"), None, rounds or 1)


def defence_of(c: Config, method: str, spec: str) -> Defence:
    """What stands in front of the victim in a row; identity for the undefended and the adversarially trained one."""
    b = c.baselines
    return {
        YOURS: lambda: Yours.of(c),
        "none": lambda: Transform(),
        "pgd_at": lambda: Transform(),
        "jpeg": lambda: Transform("jpeg", b.jpeg),
        "bits": lambda: Transform("bits", b.bits),
        "tv": lambda: Transform("tv", b.tv),
        "resize_pad": lambda: Transform("resize_pad", b.pad),
        "noise": lambda: NoiseAlone(diffusion_of(c, spec), time_of(c, spec)),
        "one_step": lambda: released_of(c, spec, "one_step"),
        "one_step_guided": lambda: released_of(c, spec, "one_step", guided=True),
        "chain": lambda: released_of(c, spec, "ddpm"),
        "chain_guided": lambda: released_of(c, spec, "ddpm", guided=True),
        "diffpure": lambda: diffpure_of(c, spec),
        "gdmp": lambda: Pulled(purification_of(c, spec), pull_of(c), b.gdmp_rounds),
        "distshift": lambda: shift_of(c, spec),
    }[method]()


def adversary_of(c: Config, attack: str, norm: str, eps: float) -> Adversary:
    """An attack of the main tables by its name."""
    a = c.attack
    if attack == "pgd":
        return Adversary("pgd", norm, eps, a.steps, seed=a.seed, batch=a.batch)
    if attack == "pgd_released":
        return Adversary("pgd", norm, eps, c.released.steps, step=c.released.step_size, seed=a.seed, batch=a.batch)
    return Adversary("autoattack", norm, eps, a.auto_steps, a.stages, a.targets, a.queries, seed=a.seed, batch=a.batch)


@cache
def pictures_of(c: Config, method: str, spec: str, attack: str, norm: str, eps: float) -> tuple[Seen, Checked | None]:
    """What a row sees under an attack, and where that attack was checked: at the ε of the main tables; the cascade,
    which costs more, on the first set. Sanity checks look at the first pictures."""
    which = "at" if method == "pgd_at" else "base"

    def data(s: str) -> Pictures:
        return Pictures(s, "test", c.data.n, c.data.seed)

    if attack == "clean":
        return Seen(data(spec)), None
    at = sets(c)[0] if attack == "autoattack" else spec
    usual = adversary_of(c, attack, norm, radius(c, norm))
    checks = Checked(victim_of(c, at, which), Seen(data(at), n=c.attack.sanity_n), usual, which)
    return Seen(data(spec), Attacked(victim_of(c, spec, which), data(spec), replace(usual, eps=eps), row=which)), checks


def number(
    c: Config, kind: str, method: str, data: str, attack: str, norm: str, eps: float, seed: int, **point
) -> Measured | None:
    """The step behind a number, from its tags."""
    s, batches = c.sweeps, {"batch": c.method.batch, "answers": c.attack.batch}
    if kind == "choice":
        choice = choice_of(c, method)
        if not isinstance(choice, Choice):
            return None
        return CandidateScore(choice, point["candidate"], "share", point["quantity"] == "chosen")
    victim = victim_of(c, data, "at" if method == "pgd_at" else "base")
    if kind == "adaptive":
        return KnownAccuracy(known_of(c, method, data, norm, eps, seed, point["against"]), point["judged"])
    seen, checks = pictures_of(c, method, data, attack, norm, eps)
    if kind == "norm":
        return Size(seen, point["measure"])
    if kind == "quality":
        return Quality(
            replace(seen, n=s.quality_n), defence_of(c, method, data), seed, point["measure"], c.method.batch
        )
    if kind == "distribution":
        state = {"diffpure": "purified", "purified_clean": "clean", YOURS: "purified"}.get(method, method)
        behind = {"diffused": BASELINE, "purified": "distshift", "purified_clean": "distshift"}.get(method, method)
        defence = defence_of(c, behind, data) if behind in (BASELINE, "distshift", YOURS) else None
        settings = (s.features_n, s.block, s.permutations, seed, point["quantity"])
        return Distribution(victim, seen, state, defence, *settings, **batches)
    if kind == "strip":
        return Strip(victim, replace(seen, n=s.strip), diffpure_of(c, data), shift_of(c, data), seed, c.method.batch)
    if kind == "cost" and method == YOURS:
        few, gradient = replace(seen, n=s.cost_n), point["quantity"] == "gradient_seconds"
        timed = point["quantity"].endswith("seconds")
        return DefenceSeconds(victim, few, Yours.of(c), s.cost_repeats, seed, gradient) if timed else None
    if kind == "cost":
        return Cost(
            victim, replace(seen, n=s.cost_n), defence_of(c, method, data), s.cost_repeats, seed, point["quantity"]
        )
    if kind == "score":
        return Accuracy(victim, seen, defence_of(c, method, data), seed, checks, **batches)
    if kind.startswith("released"):
        defence = released_defence(c, method, data, point.get("t"))
        n = s.n if method.startswith("chain") else c.released.n
        return Accuracy(victim, replace(seen, n=n), defence, seed, **batches)
    changes = {k: point[k] for k in ("t", "rounds", "scale") if k in point}
    if kind == "variant":
        changes = {"guidance": guidance_named(c, point["variant"])}
    if kind == "eps":
        claimed = eps == 2 * radius(c, norm)  # by the abstract, so that it has the evidence of the main tables
        return Accuracy(victim, seen if claimed else replace(seen, n=s.n), defence_of(c, method, data), seed, **batches)
    defence = diffpure_of(c, data, **changes) if method == BASELINE else shift_of(c, data, **changes)
    return Accuracy(victim, replace(seen, n=s.n), defence, seed, **batches)


def released_defence(c: Config, method: str, spec: str, t: int | None) -> Defence:
    """What stands in front of the victim in a row "as released"; t: of `Released.times` or `second_times`."""
    if t is None:
        return defence_of(c, method, spec)
    own = spec != sets(c)[0]
    return released_of(c, spec, method, t if own else SameNoise(diffusion_of(c, spec), t))


def changed(variant: str) -> dict:
    """The fields of Guidance that a variant changes; what does not fit the configured rest is set back to its
    default."""
    found = dict(VARIANTS[variant])
    if found.get("domain") == "x0_hat":
        found.setdefault("rescale", "none")  # x̂₀ has its contrast
    return found


def known_of(c: Config, method: str, spec: str, norm: str, eps: float, seed: int, against: str) -> Adaptive:
    """Someone who knows the defence of a row."""
    a = c.adaptive
    which, search = "at" if method == "pgd_at" else "base", against == "square"
    released = against == "bpda_released"
    steps = c.released.bpda_steps if released else a.steps
    eot = c.released.bpda_draws if released else a.eot
    n = a.headline_n if against in HEADLINE_ADAPTIVE.get(method, ()) else a.n
    seen = Seen(Pictures(spec, "test", c.data.n, c.data.seed), n=a.square_n if search else n)
    checked = a.sanity_n if against == "exact" and method in (BASELINE, *GUIDED, YOURS) else 0
    budget = (steps, eot, a.draws, checked, c.attack.seed, seed)
    options = {
        "batch": c.method.batch,
        "row": method,
        "queries": a.square_queries if search else 0,
        "answers": c.attack.batch,
    }
    return Adaptive(
        victim_of(c, spec, which), seen, defence_of(c, method, spec), against, norm, eps, *budget, **options
    )


def describe(c: Config, data: str, attack: str, norm: str, eps: float, **_: object) -> dict:
    """Tags beside those of the name: `set` is unique to (set, attack, norm, ε), since means are taken over it; `place`
    is the set's place in the paper's order; `times` is ε over that of the main tables, so that claims can name it at
    every scale."""
    times = {} if norm == "none" else {"times": eps / radius(c, norm)}
    where = f"{data} {attack} {'' if norm == 'none' else norm} {eps * 255:g}"
    return {"place": sets(c).index(data) + 1, "set": where, **times}
