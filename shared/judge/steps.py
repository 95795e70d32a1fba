"""What is computed: pictures under each attack, what the model says of them again and again, the numbers made of that.

A model and a defence are one system f(g(x, ω)), random or not. Where it is not, an attack may stop at its first
success, and one look at a picture is enough. Where it is, no attack stops early (one lucky draw is no success), every
gradient is a mean over draws (EOT, Athalye et al. 2018), and each picture is shown `repeats` times with noise that no
attack has seen.
"""

import json
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from shared.attacks import Threat, cascade, check_attack, pgd
from shared.attacks.adaptive import AdaptiveAttack, predict, resubmit
from shared.attacks.autoattack import STANDARD
from shared.attacks.sanity_balls import check_balls
from shared.attacks.sanity_random import check_adaptive
from shared.errors import UserError
from shared.experiment.step import Kept, Lab, Measured, Tensors, Values, free
from shared.experiment.store import slug
from shared.judge.given import Model
from shared.models.preprocess import Identity
from shared.options import Worded
from shared.rng import SampleRng
from shared.steps.purification import Checked, Defence, Seen
from shared.steps.yours import FAILS, Code, Shield, what

CHOICE = 8  # passes by which the stronger of two attacks on a random system is chosen, picture by picture
OTHER_BATCH = 7  # pictures at a time where the same answers are asked for in other batches


class Whole(nn.Module):
    """f(g(x, ω)): victim f, defence g. Of a random system every call of forward takes new noise."""

    def __init__(self, victim: nn.Module, defence: Shield):
        super().__init__()
        self.victim, self.defence, self.random, self.calls = victim, defence, defence.random, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.random
        return self.victim(self.defence(x, SampleRng(0, range(len(x)), f"call{self.calls}")))


@dataclass(frozen=True)
class System:
    """A model behind a defence. random: two looks at a picture may differ; straight: the defence has no gradient."""

    model: Model
    defence: Defence
    random: bool
    straight: bool

    def open(self, lab: Lab) -> Whole:
        """The two as one module, opened once."""
        return lab.once(self, lambda: self._open(lab))

    def _open(self, lab: Lab) -> Whole:
        return Whole(self.model.open(lab), Shield(self.defence.open(lab), self.random, self.straight))


@dataclass(frozen=True)
class Against(Worded):
    """An attack through a system, as `shared.steps.purification.Attack` describes attacks.

    pgd       steps of 2.5·ε/steps (Madry et al. 2018), the best iterate; with noise EOT and the last iterate
    cascade   APGD-CE, APGD-T, FAB-T and Square, each on what is left (AutoAttack's "standard"); with noise APGD with EOT
              on the cross-entropy and on the DLR loss, both on every picture, of which the stronger is kept
              (AutoAttack's "rand" has these two)
    bpda      APGD with the identity's gradient for the defence's (Athalye et al. 2018); with noise logits are averaged
    own       the user's
    """

    kind: Literal["pgd", "cascade", "bpda", "own"]
    norm: Literal["linf", "l2"]
    eps: float
    steps: int
    targets: int
    queries: int
    eot: int
    seed: int
    own: Code | None = None
    batch: int = free(64)

    @property
    def name(self) -> str:
        return self.own.spec if self.own else self.kind

    @property
    def weight(self) -> float:
        """Gradient steps per picture, roughly."""
        return (
            self.steps * (1.0 + 2.0 * self.targets) + self.queries / 3 if self.kind == "cascade" else float(self.steps)
        )

    def __call__(self, system: Whole, x: Tensor, y: Tensor, rng: SampleRng) -> Tensor:
        """x_adv (N, 3, H, W) in the ball around x. Raises UserError where an attack of the user's own leaves it."""
        threat = Threat(self.norm, self.eps)
        set_seed((self.seed + rng.indices[0]) % 2**32)  # for code that draws from generators of its own
        if self.own is not None:
            return by_own(self.own, system, x, y, threat, rng)
        if self.kind == "bpda" or system.random:
            return self._through(system, x, y, threat, rng)
        if self.kind == "pgd":
            parts = torch.arange(len(x)).split(self.batch)
            return torch.cat(
                [self._pgd(system, x[p], y[p], threat, steps=self.steps, rng=rng.subset(p)) for p in parts]
            )
        budget = {"steps": self.steps, "targets": self.targets, "queries": self.queries, "batch_size": self.batch}
        return cascade(system, x, y, threat, rng=rng, stages=STANDARD, **budget).x_adv

    @staticmethod
    def _pgd(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int, rng: SampleRng) -> Tensor:
        return pgd(victim, x, y, threat, steps=steps, step_size=2.5 * threat.eps / steps, rng=rng)

    def _through(self, system: Whole, x: Tensor, y: Tensor, threat: Threat, rng: SampleRng) -> Tensor:
        """Attacks that no picture leaves."""
        noise, batch, draws = rng.child("defence"), max(1, self.batch // self.eot), self.eot if system.random else 1

        def run(attack: AdaptiveAttack) -> Tensor:
            how = {"rng": rng, "defence_rng": noise, "batch": batch}
            return attack(system.victim, system.defence, x, y, threat, **how)

        if self.kind == "bpda":
            return run(AdaptiveAttack("bpda", draws, "logits", steps=self.steps))
        if self.kind == "pgd":
            return run(self.exact)
        with torch.no_grad():
            few = system(x[:1]).shape[1] < 3  # DLR needs three classes
        found = [
            run(AdaptiveAttack("exact", draws, steps=self.steps, loss=loss))
            for loss in ("ce", "margin" if few else "dlr")
        ]
        ask = predict(system.victim), system.defence
        right = [
            resubmit(*ask, x_adv, noise.child("choice"), CHOICE, self.batch).eq(y[:, None]).float() for x_adv in found
        ]
        best = torch.stack([r.mean(dim=1) for r in right]).argmin(dim=0)
        return torch.stack(found)[best, torch.arange(len(x), device=x.device)]

    @property
    def exact(self) -> AdaptiveAttack:
        """PGD with EOT, the gradient through the defence."""
        return AdaptiveAttack("exact", self.eot, optimiser="pgd", steps=self.steps)

    def check(self, system: Whole, x: Tensor, y: Tensor, rng: SampleRng) -> dict:
        """The record of the sanity checks on the system: all for PGD, of others, which cost more, `check_balls`."""
        threat = Threat(self.norm, self.eps)
        set_seed(self.seed)
        if self.kind != "pgd":
            score, stream, draws = predict(system.victim), rng.child("judging"), 4 if system.random else 1

            def right(pictures: Tensor) -> Tensor:
                return resubmit(score, system.defence, pictures, stream, draws, self.batch) == y[:, None]

            with torch.no_grad():
                classes = system(x[:1]).shape[1]
            return check_balls(lambda ball: replace(self, eps=ball.eps)(system, x, y, rng), right, x, threat, classes)
        if system.random:
            batch = max(1, self.batch // self.eot)
            how = {"rng": rng, "defence_rng": rng.child("defence"), "n": 4, "images": len(x), "batch": batch}
            return check_adaptive(system.victim, system.defence, x, y, threat, self.exact, **how)
        how = {"rng": rng, "steps": self.steps, "queries": self.queries, "images": len(x)}
        bare = None if isinstance(system.defence.opened, Identity) else system.victim
        return check_attack(system, x, y, threat, self._pgd, surrogate=bare, **how)


def by_own(own: Code, system: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: SampleRng) -> Tensor:
    """The pictures of an attack of the user's own. Raises UserError unless they are like x, in the ball, in [0, 1]."""
    try:
        x_adv = own.load()(system, x.clone(), y, threat, rng=rng)
    except FAILS as error:
        raise UserError(
            f"{own.option} {own.spec} fails ({what(error)}): it is called as attack(victim, x, y, threat, rng=rng)."
        ) from error
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else f"a {type(x_adv).__name__}"
        raise UserError(
            f"{own.option} {own.spec} returned {got} for pictures {tuple(x.shape)}: return pictures like x."
        )
    x_adv = x_adv.detach()
    far = threat.distance(x_adv, x).max().item()
    if not (far <= threat.eps + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1):
        raise UserError(
            f"{own.option} {own.spec} left the ball: it moved a picture by {far:.4g} where {threat.eps:.4g} is "
            "allowed, or left [0, 1]: end with threat.project(x_adv, x)."
        )
    return x_adv


@dataclass(frozen=True)
class Said(Kept):
    """What a system says of pictures: labels (N, repeats), and y (N,), what is right."""

    system: System
    seen: Seen
    repeats: int
    seed: int
    batch: int = free(64)
    row: str = free("")

    @property
    def name(self) -> str:
        return slug("said", self.row)

    def make(self, lab: Lab) -> Tensors:
        return {"labels": self.again(lab, self.seen.pictures(lab), self.batch), "y": self.seen.clean(lab)[1]}

    def again(self, lab: Lab, x: Tensor, batch: int) -> Tensor:
        """The labels of pictures, with the same noise whenever it is asked for."""
        whole, rng = self.system.open(lab), SampleRng(self.seed, self.seen.rows(lab), "judging")
        set_seed((self.seed + rng.indices[0]) % 2**32)
        return resubmit(predict(whole.victim), whole.defence, x, rng, self.repeats, batch)

    def share(self, lab: Lab, x: Tensor, batch: int) -> Tensor:
        """(N,), the share of these labels that are right, of the half that `Worst.chosen` does not look at."""
        return _half((self.again(lab, x, batch).cpu() == lab.weights(self)["y"][:, None]).double(), 1)


Parts = tuple[Said, ...]  # one after another


def _half(right: Tensor, k: int) -> Tensor:
    """(…, repeats) -> (…): the mean over one half of the repeats, or the only one."""
    return right[..., k::2].mean(dim=-1) if right.shape[-1] > 1 else right[..., 0]


def _right(lab: Lab, parts: Parts) -> Tensor:
    """(N, repeats), whether each answer is right."""
    kept = [lab.weights(part) for part in parts]
    return torch.cat([(k["labels"] == k["y"][:, None]).double() for k in kept])


@dataclass(frozen=True)
class Worst:
    """The attack of lowest accuracy for each picture, among several.

    The lowest of several noisy means is too low. So with noise the attack is chosen on one half of the repeats and the
    picture judged on the other, and the other way round; without, this is the plain minimum. Chosen on few repeats it
    may be the wrong one: where one attack leaves less of all pictures than these choices do, it is taken for all.
    """

    attacks: tuple[Parts, ...]

    def values(self, lab: Lab) -> Tensor:
        """(N,)"""
        return self._settle(lab)[0]

    def chosen(self, lab: Lab) -> Tensor:
        """(N,) places in `attacks`, by the first half of the repeats."""
        return self._settle(lab)[1]

    def half(self, lab: Lab, k: int) -> Tensor:
        """(attacks, N), the shares of right answers in one half of the repeats."""
        return torch.stack([_half(_right(lab, parts), k) for parts in self.attacks])

    def _settle(self, lab: Lab) -> tuple[Tensor, Tensor]:
        a, b = self.half(lab, 0), self.half(lab, 1)
        by_picture = (_at(b, a.argmin(dim=0)) + _at(a, b.argmin(dim=0))) / 2
        by_attack = ((a + b) / 2).mean(dim=1)
        if by_attack.min() < by_picture.mean():
            best = int(by_attack.argmin())
            return (a[best] + b[best]) / 2, torch.full_like(a[0], best, dtype=torch.int64)
        return by_picture, a.argmin(dim=0)

    def pictures(self, lab: Lab) -> list[Tensor]:
        """The strongest pictures, part by part."""
        chosen, out, first = self.chosen(lab), [], 0
        for parts in zip(*self.attacks, strict=True):
            x = torch.stack([part.seen.pictures(lab) for part in parts])
            best = chosen[first : first + x.shape[1]].to(x.device)
            out.append(x[best, torch.arange(x.shape[1], device=x.device)])
            first += x.shape[1]
        return out


def _at(values: Tensor, rows: Tensor) -> Tensor:
    return values.gather(0, rows[None])[0]


@dataclass(frozen=True)
class Score(Measured):
    """Per picture the share of right answers ("mean"), under the worst of several attacks where there are several; or
    whether all answers are right ("all")."""

    worst: Worst
    judged: Literal["mean", "all"] = "mean"
    checks: Checked | None = None

    def make(self, lab: Lab) -> Values:
        if self.judged == "all":
            values = _right(lab, self.worst.attacks[0]).amin(dim=1)
        else:
            values = self.worst.values(lab)
        sanity = None if self.checks is None else json.loads(lab.facts(self.checks)["sanity"])
        first = self.worst.attacks[0][0]
        return Values(values.numpy(), "share", sanity=sanity, skipped=first.seen.skipped(lab))


@dataclass(frozen=True)
class Again(Measured):
    """The strongest pictures, shown again as they are stored: in the same batches, in others, or rounded to 8 bits as
    in a PNG. values: as of `Score`; extra: `before`, (N,) what was measured the first time."""

    worst: Worst
    how: Literal["same", "batches", "rounded"]

    def make(self, lab: Lab) -> Values:
        attacks, chosen = self.worst.attacks, self.worst.chosen(lab)
        before = _at(self.worst.half(lab, 1), chosen)
        if self.how == "same":  # each attack's pictures, so that every batch is the one of the first time
            asked = ([said.share(lab, said.seen.pictures(lab), said.batch) for said in parts] for parts in attacks)
            after = _at(torch.stack([torch.cat(shares) for shares in asked]), chosen)
        else:
            change, size = (as_png, None) if self.how == "rounded" else (torch.clone, OTHER_BATCH)
            pictures = zip(attacks[0], self.worst.pictures(lab), strict=True)
            after = torch.cat([said.share(lab, change(x), size or said.batch) for said, x in pictures])
        return Values(after.numpy(), "share", extra={"before": before.numpy()})


def as_png(x: Tensor) -> Tensor:
    """x rounded to 8 bits per channel."""
    return (x * 255).round() / 255
