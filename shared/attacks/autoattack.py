"""The cascade: each attack is tried on what the ones before it left correct.

Default stages: APGD-CE -> APGD-T -> Square, for heads of any number of classes (see `apgd_t` for fewer than four). A
sample is robust only if none succeeds, so accuracy falls from stage to stage and the last is the reported one.

That is not AutoAttack `standard` (Croce & Hein 2020), which is `STANDARD`: with FAB-T between APGD-T and Square, a
different kind of search that can break samples which APGD leaves. Accuracy under the default stages is an upper bound
of that under `standard`: call its numbers "APGD-CE + APGD-T + Square", not AutoAttack. Square also differs in use: it
runs here with windows per sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shared.attacks.apgd import apgd_ce, apgd_dlr, apgd_t
from shared.attacks.fab import fab_t
from shared.attacks.goal import Goal, check_batch, check_rng
from shared.attacks.gradient import eval_mode
from shared.attacks.square import square
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.options import Count, Positive, bounded
from shared.repeat import joined
from shared.rng import SampleRng

Stage = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
STAGES: dict[str, Callable[..., Tensor]] = {
    "apgd-ce": apgd_ce,
    "apgd-dlr": apgd_dlr,
    "apgd-t": apgd_t,
    "fab-t": fab_t,
    "square": square,
}
WITHOUT_FAB: tuple[Stage, ...] = ("apgd-ce", "apgd-t", "square")
STANDARD: tuple[Stage, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class Cascade:
    """Result of `cascade`: images (N, C, H, W) and, after each stage ("clean" first), which samples are still correct,
    (N,) bool."""

    x_adv: Tensor
    correct: dict[str, Tensor]

    def accuracy(self) -> dict[str, float]:
        """Share of correct samples after each stage, in [0, 1]."""
        return {stage: correct.float().mean().item() for stage, correct in self.correct.items()}


@bounded
def cascade(
    victim: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    rng: SampleRng,
    stages: tuple[Stage, ...] = WITHOUT_FAB,
    steps: Count = 100,
    targets: Count = 9,
    queries: Count = 5000,
    eot_iter: Count = 1,
    first_step: Positive = 2.0,
    give_up: Positive | None = 7.0,
    batch_size: Count | None = None,
) -> Cascade:
    """Run the stages on the survivors. x in [0, 1], y (N,) labels; the victim is used in eval mode.

    stages: names out of `STAGES`, in order. steps, eot_iter, first_step, give_up: see `apgd`. targets: see `apgd_t` and
    `fab_t`. queries: see `square`. batch_size: images in the victim at a time (default N); hand over the whole set with
    a batch_size, rather than batch by batch, and the batches stay full as samples break. Samples that nothing broke
    come back at the last stage's strongest point. For deterministic victims: one success counts. Raises UserError for
    unknown stages, images outside [0, 1], a missing or ill-sized rng, labels that are no class, or settings out of
    bounds.
    """
    check_batch(x, y)
    check_rng(x, rng)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise UserError(f"unknown or no stages {', '.join(map(repr, unknown))}: choose from {', '.join(STAGES)}.")
    batch_size = batch_size or max(len(x), 1)
    of_apgd: dict[str, object] = {"steps": steps, "eot_iter": eot_iter, "first_step": first_step, "give_up": give_up}
    budgets: dict[str, dict[str, object]] = {
        "apgd-ce": of_apgd,
        "apgd-dlr": of_apgd,
        "apgd-t": of_apgd | {"targets": targets},
        "fab-t": {"steps": steps, "targets": targets},
        "square": {"queries": queries},
    }
    x_adv = x.detach().clone()
    with eval_mode(victim):
        correct = {"clean": _correct(victim, x, y, batch_size)}
        alive = correct["clean"]
        for stage in stages:
            rows = alive.nonzero().flatten()
            if len(rows):
                part = {**budgets[stage], "rng": rng.subset(rows).child(stage), "batch_size": batch_size}
                x_adv[rows] = STAGES[stage](victim, x[rows], y[rows], threat, **part)
                alive = alive.clone()
                alive[rows] = _correct(victim, x_adv[rows], y[rows], batch_size)
            correct[stage] = alive
    return Cascade(x_adv, correct)


def autoattack(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, rng: SampleRng, **settings) -> Tensor:
    """The images of `cascade`, (N, C, H, W), detached, in B(x). Settings and errors are those of `cascade`."""
    return cascade(victim, x, y, threat, rng=rng, **settings).x_adv


def _correct(victim: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    goal = Goal(victim, "margin")
    rows = torch.arange(len(x), device=x.device).split(batch_size)
    return joined(lambda at: ~goal.done(goal.logits(x[at]), y[at]), rows)
