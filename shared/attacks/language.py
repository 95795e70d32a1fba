"""Attacks on vision-language models: images that make a model say something else. ε in pixels of [0, 1], before the
model's resize and mean/std.

A victim here is VLM-like: `nll(x, prompts, targets)` -> (N,) summed −log p(target tokens | image, prompt),
differentiable in x, and `answer(x, prompts, max_tokens)` -> N strings; for `embedding_attack` a function x -> (N, D). A
defence may stand in front of it. If that draws random numbers by sample (`shared.attacks.adaptive.DefendedVLM`), the
victim has `subset(rows)` -> itself for those rows, `rng`, and takes rng= in `answer`; every batch is shown to the
subset of its rows, so that nothing depends on the batch. Nothing here takes one answer of a random victim for the
truth: see `recheck` and `eot_iter`.

    nll_attack           APGD that raises (or lowers) the NLL of a given text per image
    captioning_ensemble  RobustVLM's staged untargeted attack on captioners …
    vqa_ensemble         … and on question answering (Schlarmann et al. 2024, FARE; attacks in code: chs20/RobustVLM)
    targeted_string      makes the model say a given string (same source)
    embedding_attack     moves the image embedding towards another image's (MF-ii of Zhao et al. 2023, AttackVLM, in pixel space)

APGD's variant is RobustVLM's: first step 1·ε, from x itself, summed loss, best point by loss. Differences from their
code: the half-precision stage computes only the gradients in fp16 (they run the whole model so, answers included), and
a batch of any size gives what batches of one give.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from shared.attacks.apgd_engine import Runs
from shared.attacks.goal import check_rng
from shared.attacks.gradient import eval_mode, input_gradient
from shared.attacks.pgd import ascend
from shared.attacks.threat import Threat
from shared.errors import UserError
from shared.metrics.vqa import vqa_accuracy
from shared.options import Count, Positive, Weight, bounded
from shared.repeat import batches, joined, listed, repeated
from shared.rng import SampleRng

Score = Callable[
    [Sequence[str], Sequence[Sequence[str]]], np.ndarray
]  # (answers, truths of each) -> (N,), higher is better for the model
TRUTHS = 5  # references, or most frequent answers, that are attacked one after the other
DECOYS = ("maybe", "word")  # what the last stages against question answering ask for


@dataclass(frozen=True)
class Ensemble:
    """Result of a staged attack on N images.

    x_adv (N, 3, H, W): the image with the lowest score over the stages. answers: what the model said to it when it was
    judged. stage: which gave it. scores: the lowest score of each sample so far, after each stage in order, "clean"
    first. With a random victim a lowest of several draws is biased low: judge x_adv anew (`judge`) for a number to
    report.
    """

    x_adv: Tensor
    answers: list[str]
    stage: list[str]
    scores: dict[str, np.ndarray] = field(repr=False)

    @property
    def score(self) -> np.ndarray:
        """(N,) after the last stage."""
        return list(self.scores.values())[-1]


@bounded
def nll_attack(
    vlm,
    x: Tensor,
    prompts: Sequence[str],
    targets: Sequence[str],
    threat: Threat,
    *,
    rng: SampleRng,
    steps: Count = 100,
    lower: bool = False,
    start: Tensor | None = None,
    first_step: Positive = 1.0,
    half: str | None = None,
    eot_iter: Count = 1,
    batch_size: Count | None = None,
) -> Tensor:
    """Images (N, 3, H, W) in B(x) with the highest NLL of `targets` (one per image) that APGD finds; with `lower` the
    lowest.

    x (N, 3, H, W) in [0, 1]. start: where to begin, in B(x) (default: x). half: "fp16" for gradients in half precision
    (rounded on a CPU). eot_iter: evaluations that a gradient is the mean of, for random victims. batch_size: images in
    the model at a time (default N). Raises UserError as `apgd` does, and if the numbers of images, prompts and targets
    differ.
    """
    if not len(x) == len(prompts) == len(targets):
        raise UserError(
            f"{len(x)} images, {len(prompts)} prompts and {len(targets)} targets: give one of each per image."
        )
    check_rng(x, rng)
    start, out = x if start is None else start, x.detach().clone()
    with _eval_mode(vlm):
        for rows in batches(_batches(x, batch_size)):
            chosen = rows.tolist()
            loss = _nll_of(
                _subset(vlm, rows),
                [prompts[i] for i in chosen],
                [targets[i] for i in chosen],
                x.shape[1:],
                -1.0 if lower else 1.0,
            )
            # The engine of APGD wants a victim with logits and labels: the pixels pass for the former, the place in the
            # batch for the latter.
            runs = Runs(
                nn.Flatten(),
                x[rows],
                torch.arange(len(rows), device=x.device),
                threat,
                rng=rng.subset(rows),
                steps=steps,
                eot_iter=eot_iter,
                first_step=first_step,
                drop=False,
                start=start[rows],
                autocast=half,
            )
            out[rows] = runs.ascend(loss, 1)
    return out


def _nll_of(victim, prompts: list[str], targets: list[str], shape, sign: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(pixels: Tensor, at: Tensor) -> Tensor:
        return sign * victim.nll(
            pixels.view(-1, *shape), [prompts[i] for i in at.tolist()], [targets[i] for i in at.tolist()]
        )

    return loss


@bounded
def nll_gradient(
    vlm,
    x: Tensor,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    half: str | None = None,
    batch_size: Count | None = None,
) -> Tensor:
    """∇_x nll(x, prompts, targets), shaped as x, in fp32 or with "fp16" products."""

    def gradient(rows: Tensor) -> Tensor:
        chosen = rows.tolist()
        loss = partial(
            _subset(vlm, rows).nll, prompts=[prompts[i] for i in chosen], targets=[targets[i] for i in chosen]
        )
        return input_gradient(loss, x[rows], autocast=half)[1]

    with _eval_mode(vlm):
        return joined(gradient, _batches(x, batch_size)) if len(x) else torch.zeros_like(x)


@bounded
def judge(
    vlm,
    x: Tensor,
    prompts: Sequence[str],
    truths: Sequence[Sequence[str]],
    score: Score,
    *,
    max_tokens: Count = 20,
    recheck: Count = 1,
    batch_size: Count | None = None,
    draw: str = "judge",
) -> tuple[list[str], np.ndarray]:
    """(N answers, their scores (N,)). With `recheck` > 1 each image is asked about so many times, with the streams
    `draw`0, `draw`1, … of a random victim: the scores are means over them, the answers are the last ones."""
    values = []
    for k in repeated(range(recheck)):

        def said(rows: Tensor, draw: str = f"{draw}{k}") -> list[str]:
            victim = _subset(vlm, rows)
            stream = {"rng": victim.rng.child(draw)} if _is_random(vlm) else {}
            return victim.answer(x[rows], [prompts[i] for i in rows.tolist()], max_tokens=max_tokens, **stream)

        with torch.no_grad(), _eval_mode(vlm):
            answers = listed(said, _batches(x, batch_size))
        values.append(np.asarray(score(answers, truths), np.float64))
    return answers, np.mean(values, axis=0)


@bounded
def captioning_ensemble(
    vlm,
    x: Tensor,
    prompt: str,
    references: Sequence[Sequence[str]],
    score: Score,
    threat: Threat,
    *,
    steps: Count = 100,
    threshold: float,
    rng: SampleRng,
    half: bool = False,
    max_tokens: Count = 20,
    recheck: Count = 1,
    eot_iter: Count = 1,
    batch_size: Count | None = None,
) -> Ensemble:
    """The staged attack on a captioner (RobustVLM `ensemble`).

    Stages: clean; APGD against each of the first five references, one after the other, each from x; APGD in full
    precision from the best image so far against the reference that gave it. After each stage the images whose score is
    below `threshold` leave (10 on COCO and 2 on Flickr30k, with `Cider.points` as score), and the lowest score of each
    is kept with its image. half: the stages against single references compute gradients in fp16, as released; otherwise
    all are in fp32. recheck, max_tokens: see `judge`.
    """
    settings = {"steps": steps, "eot_iter": eot_iter, "batch_size": batch_size}
    stages = _Stages(
        vlm,
        x,
        [prompt] * len(x),
        references,
        [list(r[:TRUTHS]) for r in references],
        score,
        threat,
        rng,
        threshold,
        settings,
        {"max_tokens": max_tokens, "recheck": recheck, "batch_size": batch_size},
    )
    stages.against_truths(half)
    return stages.result()


@bounded
def vqa_ensemble(
    vlm,
    x: Tensor,
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    threat: Threat,
    *,
    score: Score = vqa_accuracy,
    steps: Count = 100,
    rng: SampleRng,
    half: bool = False,
    max_tokens: Count = 5,
    recheck: Count = 1,
    eot_iter: Count = 1,
    batch_size: Count | None = None,
) -> Ensemble:
    """The staged attack on question answering: as `captioning_ensemble`, against the five most frequent answers of
    people (fewer where they gave fewer), then two targeted stages, each from x in full precision, towards "maybe" and
    "word". Images leave at score 0.

    max_tokens: 5 in RobustVLM, 10 for TextVQA.
    """
    settings = {"steps": steps, "eot_iter": eot_iter, "batch_size": batch_size}
    common = [[word for word, _ in Counter(given).most_common(TRUTHS)] for given in answers]
    stages = _Stages(
        vlm,
        x,
        list(questions),
        answers,
        common,
        score,
        threat,
        rng,
        1e-9,
        settings,  # accuracies are 0 or at least 0.3
        {"max_tokens": max_tokens, "recheck": recheck, "batch_size": batch_size},
    )
    stages.against_truths(half)
    for decoy in DECOYS:
        stages.attempt(f"towards {decoy}", stages.alive(), [decoy] * len(x), lower=True)
    return stages.result()


class _Stages:
    """Who is still in, and the lowest score of each image so far with its image, its stage and the truth that was
    attacked."""

    def __init__(self, vlm, x, prompts, truths, attacked, score, threat, rng, threshold, settings, judging):
        if not len(x) == len(prompts) == len(truths) or not all(attacked):
            raise UserError(
                f"{len(x)} images, {len(prompts)} prompts, {len(truths)} lists of texts: give one of each per image, "
                "and no empty list."
            )
        self.vlm, self.x, self.prompts, self.truths, self.attacked = vlm, x.detach(), prompts, truths, attacked
        self.score, self.threat, self.rng, self.threshold, self.settings, self.judging = (
            score,
            threat,
            rng,
            threshold,
            settings,
            judging,
        )
        self.x_adv, self.stage, self.truth = self.x.clone(), ["clean"] * len(x), [0] * len(x)
        self.answers, self.best = judge(vlm, self.x, prompts, truths, score, **judging) if len(x) else ([], np.zeros(0))
        self.scores = {"clean": self.best.copy()}

    def alive(self) -> list[int]:
        return [i for i, value in enumerate(self.best) if not value < self.threshold]

    def against_truths(self, half: bool) -> None:
        for k in range(max(map(len, self.attacked), default=0)):
            rows = [i for i in self.alive() if k < len(self.attacked[i])]
            targets = [texts[min(k, len(texts) - 1)] for texts in self.attacked]
            self.attempt(f"against {k + 1}", rows, targets, number=k, half="fp16" if half else None)
        self.attempt(
            "full precision",
            self.alive(),
            [texts[k] for texts, k in zip(self.attacked, self.truth, strict=True)],
            start=self.x_adv,
        )

    def attempt(
        self,
        name: str,
        rows: list[int],
        targets: list[str],
        number: int | None = None,
        start: Tensor | None = None,
        **how,
    ) -> None:
        """One stage on the images `rows`. number: of the truth that is attacked."""
        if rows:
            where = torch.tensor(rows, device=self.x.device)
            prompts, victim = [self.prompts[i] for i in rows], _subset(self.vlm, where)
            images = nll_attack(
                victim,
                self.x[where],
                prompts,
                [targets[i] for i in rows],
                self.threat,
                rng=self.rng.subset(where).child(name),
                start=None if start is None else start[where],
                **self.settings,
                **how,
            )
            answers, values = judge(
                victim,
                images,
                prompts,
                [self.truths[i] for i in rows],
                self.score,
                draw=f"judge {name} ",
                **self.judging,
            )
            for k, i in enumerate(rows):
                if values[k] < self.best[i]:
                    self.best[i], self.answers[i], self.stage[i], self.x_adv[i] = values[k], answers[k], name, images[k]
                    self.truth[i] = self.truth[i] if number is None else number
        self.scores[name] = self.best.copy()

    def result(self) -> Ensemble:
        return Ensemble(self.x_adv, list(self.answers), self.stage, self.scores)


@dataclass(frozen=True)
class Targeted:
    """x_adv (N, 3, H, W); answers: the last ones given to it; success (N,): the share of `recheck` answers that hold
    the target."""

    x_adv: Tensor
    answers: list[str]
    success: np.ndarray


@bounded
def targeted_string(
    vlm,
    x: Tensor,
    prompt: str | Sequence[str],
    target: str | Sequence[str],
    threat: Threat,
    *,
    steps: Count = 10_000,
    rng: SampleRng,
    max_tokens: Count = 20,
    recheck: Count = 1,
    eot_iter: Count = 1,
    batch_size: Count | None = None,
) -> Targeted:
    """Lower the NLL of `target` (one string, or one per image); success: the answer holds it, whatever the case. 10,000
    steps in RobustVLM."""
    prompts, targets = ([text] * len(x) if isinstance(text, str) else list(text) for text in (prompt, target))
    x_adv = nll_attack(
        vlm, x, prompts, targets, threat, rng=rng, steps=steps, lower=True, eot_iter=eot_iter, batch_size=batch_size
    )
    answers, success = judge(
        vlm, x_adv, prompts, [[t] for t in targets], says, max_tokens=max_tokens, recheck=recheck, batch_size=batch_size
    )
    return Targeted(x_adv, answers, success)


def says(answers: Sequence[str], wanted: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) 1 where an answer holds one of the strings wanted of it, in any case; else 0."""
    return np.array(
        [any(w.lower() in a.lower() for w in ws) for a, ws in zip(answers, wanted, strict=True)], np.float64
    )


@bounded
def embedding_attack(
    embed: Callable[[Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    threat: Threat,
    *,
    steps: Count = 300,
    step_size: Weight = 1 / 255,
    batch_size: Count | None = None,
) -> Tensor:
    """The last of `steps` steps of size `step_size` that raise cos(embed(x'), target), from x. target (N, D), e.g.
    embed(another image).

    MF-ii has ε = 8/255, steps of 1/255, 300 of them, but perturbs normalised pixels; ε is of pixels here. embed: e.g.
    `vlm.embed`, in eval mode.
    """
    if len(target) != len(x):
        raise UserError(f"{len(x)} images and {len(target)} target embeddings: give one per image.")

    def closer(part: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda images: torch.cosine_similarity(embed(images), part)

    out = x.detach().clone()
    for rows in batches(_batches(x, batch_size)):
        out[rows] = ascend(
            closer(target[rows].detach()), out[rows], threat, steps=steps, step_size=step_size, random_start=False
        )
    return out


@bounded
def _batches(x: Tensor, batch_size: Count | None) -> tuple[Tensor, ...]:
    """The positions of x in batches."""
    size = max(len(x), 1) if batch_size is None else batch_size
    return torch.arange(len(x), device=x.device).split(size) if len(x) else ()


def _is_random(vlm) -> bool:
    return hasattr(vlm, "subset")


def _subset(vlm, rows: Tensor):
    return vlm.subset(rows) if _is_random(vlm) else vlm


def _eval_mode(vlm):
    return eval_mode(vlm if isinstance(vlm, nn.Module) else nn.Identity())
