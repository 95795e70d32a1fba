"""Attacks on victims behind a defence that may be random: f(g(x, ω)), g the defence (see shared.models.preprocess), ω
its noise.

    exact   ∇_x of E_ω ℓ(f(g(x, ω)), y), through g
    BPDA    the same forwards; backwards ∂g/∂x = I (Athalye et al. 2018). Weak against diffusion purifiers: a lower bar, not the test
    EOT     E_ω by a mean over fresh draws (Athalye et al. 2018): of the loss ("loss"), or of the logits under the loss ("logits"), not the same
    none    the bare f is attacked, and the result is shown to the defended victim (transfer; the gray-box protocol of many papers)

Randomness: the defence has a `SampleRng` of its own, the attack another. Draw number d of sample i belongs to (seed,
stream, i + d·2⁴⁰), so one pass over D draws sees what D passes over one draw see, and the draws do not depend on what
the attack draws. Attacks use the child stream "attack", `resubmit` the child "resubmit": what is scored was never seen
by the attack, even where both are given the same rng.

One lucky draw is not success, so nothing here goes by it: no sample leaves early (drop=False), and what comes back is
the last iterate (pgd) or the one of highest loss (apgd). pgd's keep="best" puts a success of one draw before a higher
loss: do not use it on random victims.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shared.attacks.apgd import apgd
from shared.attacks.goal import Goal, LossName
from shared.attacks.pgd import pgd
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.models.preprocess import straight_through
from shared.models.victim import predicted
from shared.options import Bounded, Count, Positive, bounded
from shared.repeat import batches, joined
from shared.rng import SampleRng

Defence = Callable[[Tensor, SampleRng], Tensor]
Extra = Callable[[Tensor, SampleRng], Tensor]  # (x, rng) -> (N,), a term of the attacker's, raised beside the loss
FAR = 40  # draws are 2^FAR sample indices apart


def draws_of(rng: SampleRng, first: int, count: int) -> SampleRng:
    """Streams for x.repeat_interleave(count): row i·count + d has draw number `first` + d of sample i."""
    return SampleRng(
        rng.seed, [index + ((first + d) << FAR) for index in rng.indices for d in range(count)], rng.stream
    )


class _Front(nn.Module):
    """A defence before something: fresh draws at every call, `draws` of them in one pass."""

    @bounded
    def __init__(self, defence: Defence, rng: SampleRng, gradient: Literal["exact", "bpda"], draws: Count):
        super().__init__()
        self.defence, self.rng, self.gradient = defence, rng, gradient
        self.draws = draws if getattr(defence, "random", True) else 1  # all draws of a deterministic defence are one
        self.calls = 0

    def subset(self, keep: Tensor):
        """The same for some samples (mask or positions): for attacks whose samples leave. It goes on counting from this
        one's number of calls."""
        part = copy.copy(self)
        part.rng = self.rng.subset(keep)
        return part

    def purified(self, x: Tensor) -> tuple[Tensor, Tensor, SampleRng]:
        """Images repeated `draws` times, what the defence makes of them, and the streams used: N·draws rows in the
        order of repeat_interleave."""
        if len(x) != len(self.rng):
            sizes = f"the defence's rng is for {len(self.rng)} samples, the batch has {len(x)}"
            raise UserError(f"{sizes}: attack with drop=False, or use .subset(rows).")
        rng = draws_of(self.rng, self.calls * self.draws, self.draws)
        self.calls += 1
        x = x.repeat_interleave(self.draws, dim=0) if self.draws > 1 else x
        if self.gradient == "exact":
            return x, self.defence(x, rng), rng
        with torch.no_grad():
            value = self.defence(x, rng)
        return x, straight_through(value, x), rng

    def mean(self, values: Tensor) -> Tensor:
        """(N·draws, …) -> (N, …)."""
        return values if self.draws == 1 else values.unflatten(0, (-1, self.draws)).mean(dim=1)


class Defended(_Front):
    """A classifier behind a defence, to be attacked: forward(x) (N, K) is the mean of victim(defence(x)) over fresh
    draws.

    rng: one stream per sample of the batches to come, in their order; every call takes the next draws. gradient:
    "exact" or "bpda". draws: draws in one pass, averaged as logits; for the mean of losses pass
    `loss=defended.loss("ce")` to `pgd` with keep="last" or `apgd`
        with drop=False.
    extra: (x, rng) -> (N·draws,), called with the repeated images and the streams of the same pass; `loss` adds its
    mean. Raises UserError for a batch that does not match rng, an unknown gradient, and draws below 1.
    """

    def __init__(
        self,
        victim: nn.Module,
        defence: Defence,
        rng: SampleRng,
        *,
        gradient: Literal["exact", "bpda"] = "exact",
        draws: int = 1,
        extra: Extra | None = None,
    ):
        super().__init__(defence, rng, gradient, draws)
        self.victim, self.extra = victim, extra
        self._last: tuple[Tensor, Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        repeated, images, rng = self.purified(x)
        logits = self.victim(images)
        mean = self.mean(logits)
        self._last = mean, logits, None if self.extra is None else self.mean(self.extra(repeated, rng))
        return mean

    @bounded
    def loss(
        self, loss: LossName | Callable[..., Tensor], average: Literal["loss", "logits"] = "loss"
    ) -> Callable[..., Tensor]:
        """A loss for an attack on this victim: (logits of the last call, labels, …) -> (N,), the mean over draws of
        `loss`, plus the extra term."""
        of_one = Goal(self, loss).loss

        def averaged(logits: Tensor, *labels: Tensor) -> Tensor:
            if self._last is None or self._last[0] is not logits:
                raise UserError(
                    "the loss of a defended victim is for the logits of its last call: take each victim's own .loss."
                )
            (_, each, extra), self._last = self._last, None
            if average == "logits" or self.draws == 1:
                values = of_one(logits, *labels)
            else:
                values = self.mean(of_one(each, *(part.repeat_interleave(self.draws, dim=0) for part in labels)))
            return values if extra is None else values + extra

        return averaged


class DefendedVLM(_Front):
    """A vision-language model behind a defence: the interface of `shared.models.vlm`, the images purified first.

    nll and embed are means over `draws` fresh draws per call, with gradients "exact" or "bpda"; they count their calls
    as `Defended` does. answer takes one purification per image from the stream it is given (default: the child "answer"
    of rng), whatever was called before.
    """

    def __init__(
        self,
        vlm: nn.Module,
        defence: Defence,
        rng: SampleRng,
        *,
        gradient: Literal["exact", "bpda"] = "exact",
        draws: int = 1,
    ):
        super().__init__(defence, rng, gradient, draws)
        self.vlm = vlm

    @property
    def size(self) -> int:
        return self.vlm.size

    @torch.no_grad()
    def answer(
        self, x: Tensor, prompts: Sequence[str], max_tokens: int = 20, batch: int = 64, *, rng: SampleRng | None = None
    ) -> list[str]:
        """Answers for images (N, 3, H, W) and N prompts. rng: the evaluation's streams, one per image."""
        rng = self.rng.child("answer") if rng is None else rng
        if len(rng) != len(x):
            raise UserError(f"rng is for {len(rng)} samples, the batch has {len(x)}: use rng.subset.")
        parts = torch.arange(len(x)).split(batch)
        images = joined(lambda rows: self.defence(x[rows.to(x.device)], rng.subset(rows)), parts) if len(x) else x
        return self.vlm.answer(images, prompts, max_tokens=max_tokens, batch=batch)

    def nll(self, x: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> Tensor:
        """(N,), the mean over draws of the negative log-likelihood of the targets."""
        _, images, _ = self.purified(x)
        prompts, targets = ([text for text in texts for _ in range(self.draws)] for texts in (prompts, targets))
        return self.mean(self.vlm.nll(images, prompts, targets))

    def embed(self, x: Tensor) -> Tensor:
        """(N, D), the mean over draws of the embeddings."""
        return self.mean(self.vlm.embed(self.purified(x)[1]))


@dataclass(frozen=True)
class AdaptiveAttack(Bounded):
    """An attack on a defended victim; `ATTACKS` holds the usual ones at their published budgets. Call it."""

    gradient: Literal["exact", "bpda", "none"] = "exact"
    """As in the module docstring."""
    draws: Count = 1
    """EOT: draws per gradient, in one pass."""
    average: Literal["loss", "logits"] = "loss"
    """What is averaged over the draws."""
    optimiser: Literal["pgd", "apgd"] = "apgd"
    """pgd: fixed steps, the last iterate, one restart; apgd: steps of its own choice, the iterate of highest loss."""
    steps: Count = 100
    step_size: Positive | None = None
    """Of pgd, in units of ε; None: 2.5/steps. (apgd chooses its own, from 2.)"""
    restarts: Count = 1
    loss: LossName | Callable[..., Tensor] = "ce"

    def __call__(
        self,
        victim: nn.Module,
        defence: Defence,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        rng: SampleRng,
        defence_rng: SampleRng,
        batch: int | None = None,
        extra: Extra | None = None,
    ) -> Tensor:
        """Adversarial images (N, C, H, W), detached, in B(x).

        rng, defence_rng: of the N samples; the attack's and the defence's. batch: images at a time (default N);
        batch·draws go through the victim. extra: see `Defended`; not for gradient "none". Raises UserError for unknown
        settings and what `pgd` and `apgd` refuse.
        """
        if len(defence_rng) != len(x) or len(rng) != len(x):
            raise UserError(
                f"the rngs are for {len(rng)} and {len(defence_rng)} samples, the batch has {len(x)}: use rng.subset."
            )
        if self.gradient == "none" and extra is not None:
            raise UserError("an extra loss term needs the defence in the attack: use gradient 'exact' or 'bpda'.")
        out = x.detach().clone()
        for rows in batches(torch.arange(len(x)).split(batch or max(len(x), 1))) if len(x) else ():
            at = rows.to(x.device)
            if self.gradient == "none":
                target, loss = victim, self.loss
            else:
                stream = defence_rng.subset(rows).child("attack")
                target = Defended(victim, defence, stream, gradient=self.gradient, draws=self.draws, extra=extra)
                loss = target.loss(self.loss, self.average)
            out[at] = self._ascend(target, x[at], y[at], threat, rng.subset(rows), loss)
        return out

    def _ascend(self, target: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: SampleRng, loss) -> Tensor:
        if self.optimiser == "apgd":
            return apgd(target, x, y, threat, steps=self.steps, rng=rng, restarts=self.restarts, loss=loss, drop=False)
        if self.restarts != 1:
            raise UserError(f"optimiser 'pgd' with {self.restarts} restarts: use 'apgd', or 'pgd' with one.")
        share = 2.5 / self.steps if self.step_size is None else self.step_size
        return pgd(
            target, x, y, threat, steps=self.steps, step_size=share * threat.eps, rng=rng, loss=loss, keep="last"
        )


ATTACKS = {
    "transfer": AdaptiveAttack("none"),
    "BPDA": AdaptiveAttack("bpda", optimiser="pgd", steps=50, step_size=0.25),
    # 50 steps of 2/255 at 8/255, 15 repetitions, logits averaged: Hill et al. 2021, as used by DiffPure (Nie et al.
    # 2022)
    "BPDA+EOT": AdaptiveAttack("bpda", draws=15, average="logits", optimiser="pgd", steps=50, step_size=0.25),
    # 200 steps of 0.007 at 8/255, 20 repetitions: Lee & Kim 2023
    "PGD+EOT": AdaptiveAttack("exact", draws=20, optimiser="pgd", steps=200, step_size=0.007 * 255 / 8),
    "APGD+EOT": AdaptiveAttack("exact", draws=20, steps=100),  # as in AutoAttack's version for random defences
}


@torch.no_grad()
def resubmit(
    score: Callable[[Tensor, Tensor], Tensor], defence: Defence, x: Tensor, rng: SampleRng, n: int, batch: int = 256
) -> Tensor:
    """What comes out of n independent passes of each image through the defence, (N, n), of whatever type `score` gives.

    score: (purified images (M, 3, H, W), positions (M,) of their samples in x) -> (M,), e.g. predicted labels, or the
    CIDEr of the answers. Passes of all samples are mixed into batches of `batch`; a result does not depend on that.
    Images that nobody attacked, with the same rng and n, are the control: the worst of n falls with n even for them. A
    deterministic defence is passed once and the result repeated.
    """
    if n < 1 or len(rng) != len(x):
        raise UserError(
            f"n is {n} and rng is for {len(rng)} samples, the batch has {len(x)}: use n ≥ 1 and one stream per sample."
        )
    if len(x) == 0:
        raise UserError("there are no images to resubmit.")
    passes = n if getattr(defence, "random", True) else 1
    streams = draws_of(rng.child("resubmit"), 0, passes)

    def scored(rows: Tensor) -> Tensor:
        where = (rows // passes).to(x.device)
        return score(defence(x[where], streams.subset(rows)), where)

    return joined(scored, torch.arange(len(x) * passes).split(batch)).view(len(x), passes).expand(len(x), n)


def predict(victim: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A score for `resubmit`: predicted labels."""
    return lambda images, _: predicted(victim(images))


def summaries(values: Tensor) -> dict[str, Tensor]:
    """Per sample, (N,) each, from per-draw scores (N, n) of which more is better (for labels: labels == y[:, None]).

    "one": the first pass. "mean": over all n. "worst": the lowest of n, i.e. an attacker may submit n times (for
    accuracy: correct in all of them).
    """
    values = values.float()
    return {"one": values[:, 0], "mean": values.mean(dim=1), "worst": values.amin(dim=1)}


def majority(labels: Tensor, y: Tensor) -> Tensor:
    """Whether the true label has more of the n votes (N, n) than any other label, (N,) bool. A tie for the first place
    counts as wrong."""
    votes = (labels[:, :, None] == labels[:, None, :]).sum(dim=2)  # of each pass's own label
    right = labels == y[:, None]
    return right.sum(dim=1) > votes.masked_fill(right, 0).amax(dim=1)
