"""What is computed for DiffCAP: robust encoders, pictures under attack, the threshold τ, and the numbers that are
measured on them.

`number` says what the tags of a number mean. Pictures are attacked first (`Attacked`): for a purifier the undefended
model (the paper's gray box), for TeCoA and FARE the model with that encoder.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from papers.diffcap import theory
from papers.diffcap.baselines import CLIPure, blank_direction
from papers.diffcap.config import Config
from papers.diffcap.method import Calibration, DiffCAP, StopRule, calibrate_tau
from papers.diffcap.tables import CLIP, DIGITS, GRIDS, TOWERS, VARIANTS, YOURS, sets, strengths, task_of
from papers.diffcap.texts import Answers, Later, Texts
from shared.attacks import Threat, cascade, check_attack, pgd
from shared.attacks.adaptive import DefendedVLM, resubmit, summaries
from shared.attacks.language import captioning_ensemble, nll_attack, says, targeted_string, vqa_ensemble
from shared.attacks.language_sanity import check_language_attack
from shared.attacks.pgd import ascend
from shared.data.language import named_objects, objects
from shared.diffusion import Purifier, Sampler
from shared.experiment.leaves import Backbone, Pictures, Weights
from shared.experiment.step import Kept, Lab, Measured, Tensors, Trained, Values, free, once
from shared.experiment.store import slug
from shared.metrics.costs import phase_seconds
from shared.metrics.perceptual import embedding_similarity
from shared.models.preprocess import ResizeOnly
from shared.models.victim import ZeroShot, class_matrix, labels_of, predicted
from shared.models.vlm import open_vlm
from shared.options import Worded
from shared.repeat import batches, joined, joined_all
from shared.rng import SampleRng
from shared.steps.choice import CandidateScore, Choice, settled
from shared.steps.pretrained import FOLDER, Pretrained, choosing_split, fitting_split, given_clip
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
    Seen,
    Transform,
    as_bytes,
    through,
    usual,
)
from shared.steps.yours import DefenceSeconds, Yours
from shared.training.adversarial import FARE, TeCoA, TrainAttack, Tuning, finetune, frozen

TEMPLATES = ("a photo of a {}.", "a picture of a {}.")
STAGES = ("apgd-ce", "apgd-t")  # as in the evaluation base; FAB and Square are left out there too
LANGUAGE_CHECKS = 4  # pictures of the sanity checks on language models, and of those of the exact attack
CLASSIFIER_CHECKS = 32
LEAD_DRAWS = 16
Embed = Callable[[Tensor], Tensor]


# ---- victims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Robust(Trained):
    """The vision tower of a CLIP, fine-tuned by TeCoA or FARE."""

    method: Literal["tecoa", "fare"]
    clip: Backbone | Pretrained
    data: Pictures
    tuning: Tuning
    attack: TrainAttack
    eps: float
    seed: int

    @property
    def name(self) -> str:
        weights = self.clip.weights.rpartition("/")[2] if isinstance(self.clip, Backbone) else ""
        return slug(self.method, *filter(None, (self.clip.name, weights)), f"lr{self.tuning.lr:g}", f"seed{self.seed}")

    def make(self, lab: Lab) -> Tensors:
        data, clip = self.data.open(lab), self.clip.open(lab)
        visual = copy.deepcopy(clip.visual)  # the tower that the next one starts from stays as it is
        victim = ZeroShot(visual, class_matrix(clip, data), clip.logit_scale.exp().item()).to(lab.device)
        objective = FARE(frozen(victim)) if self.method == "fare" else TeCoA()
        how = (Threat("linf", self.eps), self.attack, self.seed, lab.device, lab.partial(self))
        finetune(victim, objective, data, self.tuning, *how, name=self.name)
        return victim.visual.state_dict()


@dataclass(frozen=True)
class Classifier:
    """CLIP on the classes of a set, with its own or a robust encoder."""

    clip: Backbone | Pretrained
    spec: str
    tower: Robust | Choice | None = None

    @once
    def open(self, lab: Lab) -> ZeroShot:
        """The classifier, opened once."""
        clip, data = self.clip.open(lab), lab.data(self.spec)
        text = lab.once(("text", self.clip, self.spec), lambda: class_matrix(clip, data))
        visual = clip.visual
        if self.tower is not None:
            visual = copy.deepcopy(visual)
            visual.load_state_dict(lab.weights(settled(lab, self.tower)))
        return ZeroShot(visual, text, clip.logit_scale.exp().item()).to(lab.device).requires_grad_(False).eval()

    def embed(self, lab: Lab) -> Embed:
        """x (N, 3, H, W) in [0, 1] -> embeddings (N, D)."""
        return self.open(lab).embed


@dataclass(frozen=True)
class Embedded:
    """That classifier behind CLIPure-Cos, which purifies embeddings."""

    victim: Classifier
    step_size: float

    def open(self, lab: Lab) -> CLIPure:
        """The classifier."""
        blank = blank_direction(self.victim.clip.open(lab), TEMPLATES)
        return CLIPure(self.victim.open(lab), blank, step_size=self.step_size)


@dataclass(frozen=True)
class Speaker:
    """LLaVA or the Flamingo-type model, with its own or a robust encoder."""

    weights: Weights
    tower: Robust | Choice | None = None

    @once
    def open(self, lab: Lab) -> nn.Module:
        """The model, opened once."""
        vlm = open_vlm(self.weights.spec, device=lab.device)
        if self.tower is not None:
            vlm.set_vision(lab.weights(settled(lab, self.tower)))
        return vlm

    def embed(self, lab: Lab) -> Embed:
        """As of `Classifier`."""
        return self.open(lab).embed

    def says(self, lab: Lab, x: Tensor, y: Answers, batch: int) -> list[str]:
        """Its answers about pictures, `batch` at a time."""
        return self.open(lab).answer(x, y.prompts, max_tokens=y.max_tokens, batch=batch)


@dataclass(frozen=True)
class Encoder:
    """The vision tower of a CLIP that protects others: φ."""

    clip: Backbone | Pretrained

    @once
    def embed(self, lab: Lab) -> Embed:
        """As of `Classifier`."""
        nothing = torch.zeros(1, 1, device=lab.device)  # no classes
        return ZeroShot(self.clip.open(lab).visual, nothing, 1.0).to(lab.device).requires_grad_(False).eval().embed


@dataclass(frozen=True)
class Probe:
    """Multinomial logistic regression on the embeddings of a tower, fitted on standardised embeddings of a training
    split."""

    tower: Classifier
    data: Pictures

    @once
    def open(self, lab: Lab) -> nn.Module:
        """x (N, 3, H, W) in [0, 1] -> logits (N, K); fitted once."""
        embed = self.tower.embed(lab)
        x, y = self.data.read(lab, self.data.rows(lab))
        with torch.no_grad():
            features = joined(embed, x.split(256)).cpu()
        mean, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
        fitted = LogisticRegression(max_iter=1000).fit(((features - mean) / scale).numpy(), y.cpu().numpy())
        weight = torch.tensor(fitted.coef_, dtype=torch.float32) / scale
        bias = torch.tensor(fitted.intercept_, dtype=torch.float32) - weight @ mean
        return Probed(embed, weight, bias).to(lab.device).eval()


class Probed(nn.Module):
    """A linear layer on embeddings."""

    def __init__(self, embed: Embed, weight: Tensor, bias: Tensor):
        super().__init__()
        self.embed = embed
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x) @ self.weight.T + self.bias


Victim = Classifier | Speaker | Probe


# ---- pictures under attack ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adversary(Worded):
    """The attack of the main tables in an ℓ∞ ball: APGD-CE and APGD-T on a classifier, the staged ensembles on language
    models; PGD on the probe."""

    kind: Literal["classes", "captions", "questions", "pgd"]
    eps: float
    steps: int
    targets: int = 0
    references: int = 0
    threshold: float = 0.0
    half: bool = False
    seed: int = 0
    batch: int = free(64)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.eps * 255:g}"

    @property
    def weight(self) -> float:
        """Gradient steps per picture; those of a language model are longer."""
        spoken = self.kind in ("captions", "questions")
        return self.steps * (4.0 * (self.references + 1) if spoken else 1.0 + self.targets)

    def __call__(
        self,
        victim: nn.Module,
        x: Tensor,
        y: Tensor | Answers,
        rng: SampleRng,
        threat: Threat | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """x_adv (N, 3, H, W). threat, steps: in place of its own, which sanity checks vary."""
        threat, steps = threat or Threat("linf", self.eps), steps or self.steps
        if self.kind == "pgd":
            return pgd(victim, x, y, threat, steps=steps, step_size=2.5 * threat.eps / steps, rng=rng)
        if self.kind == "classes":
            how = {"stages": STAGES, "targets": self.targets, "batch_size": self.batch}
            return cascade(victim, x, y, threat, rng=rng, steps=steps, **how).x_adv
        how = {"steps": steps, "rng": rng, "half": self.half, "max_tokens": y.max_tokens, "batch_size": self.batch}
        if self.kind == "captions":
            # the attacker aims at, and judges by, the first references only; the tables use all of them
            few = [texts[: self.references] for texts in y.truths]
            how["threshold"] = self.threshold
            return captioning_ensemble(victim, x, y.prompts[0], few, y.score, threat, **how).x_adv
        return vqa_ensemble(victim, x, y.prompts, y.truths, threat, score=y.score, **how).x_adv

    def check(self, victim: nn.Module, x: Tensor, y: Tensor | Answers, rng: SampleRng) -> dict:
        """The record of the sanity checks of this attack on a victim."""
        threat, images = Threat("linf", self.eps), len(x)
        if self.kind == "classes":

            def again(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int, rng: SampleRng) -> Tensor:
                return self(model, x, y, rng, threat, steps)

            return check_attack(victim, x, y, threat, again, rng=rng, steps=self.steps, images=images)

        def spoken(rows: Tensor, threat: Threat, *, steps: int, rng: SampleRng) -> Tensor:
            return self(victim, x[rows], y.of(rows.tolist()), rng, threat, steps)

        how = {"steps": self.steps, "images": images, "max_tokens": y.max_tokens, "batch_size": self.batch}
        return check_language_attack(victim, x, y.prompts, y.truths, y.score, threat, spoken, rng=rng, **how)


@dataclass(frozen=True)
class Targeted(Kept):
    """Pictures that make a captioner say a string."""

    victim: Speaker
    seen: Seen
    string: str
    eps: float
    steps: int
    seed: int
    batch: int = free(64)
    row: str = free("")

    @property
    def name(self) -> str:
        return slug("targeted", self.row, self.string[:40])

    @property
    def weight(self) -> float:
        """Gradient steps of a language model."""
        return 4.0 * self.steps

    def make(self, lab: Lab) -> Tensors:
        x, y = self.seen.clean(lab)
        rng, threat = SampleRng(self.seed, self.seen.rows(lab), "targeted"), Threat("linf", self.eps)
        how = {"steps": self.steps, "rng": rng, "batch_size": self.batch}
        return {"x_adv": targeted_string(self.victim.open(lab), x, y.prompts[0], self.string, threat, **how).x_adv}


# ---- τ -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Away(Kept):
    """Calibration pairs of a set: pictures attacked without a task, so that their embeddings point away from the clean
    ones.

    PGD on −cos(F(x), F(x_adv)), random start, step 2.5·ε/steps. It leaves x_adv (M, 3, H, W).
    """

    victim: Classifier
    data: Pictures | Later | Texts
    eps: float
    steps: int
    seed: int
    batch: int = free(64)

    @property
    def name(self) -> str:
        return slug("away", self.data.spec)

    def make(self, lab: Lab) -> Tensors:
        x, rng = Seen(self.data).clean(lab)[0], SampleRng(self.seed, self.data.rows(lab), "calibration")
        return {"x_adv": away(self.victim.embed(lab), x, Threat("linf", self.eps), self.steps, rng, self.batch)}


def away(embed: Embed, x: Tensor, threat: Threat, steps: int, rng: SampleRng, batch: int) -> Tensor:
    """Pictures (N, 3, H, W) in the ball around x whose embeddings point away from those of x."""
    out = x.clone()
    for rows in batches(torch.arange(len(x)).split(batch)):
        at = rows.to(x.device)
        with torch.no_grad():
            target = embed(x[at])

        def loss(z: Tensor, target: Tensor = target) -> Tensor:
            return -torch.cosine_similarity(embed(z), target)

        out[at] = ascend(loss, x[at], threat, steps=steps, step_size=2.5 * threat.eps / steps, rng=rng.subset(rows))
    return out


Phi = Encoder | Classifier | Speaker


@dataclass(frozen=True)
class Similarities(Kept):
    """cos(φ(clean), φ(adversarial)) of the calibration pairs of a set, (M,)."""

    pairs: Away
    diffusion: Diffusion
    phi: Phi
    encode: Literal["x_t", "x_t/alpha"]
    batch: int = free(64)
    row: str = free("")

    @property
    def name(self) -> str:
        return slug("similarities", self.pairs.data.spec, *filter(None, [self.row]))

    def make(self, lab: Lab) -> Tensors:
        clean = Seen(self.pairs.data).clean(lab)[0]
        purifier = Purifier(self.diffusion.open(lab), 0, Sampler())
        rule = DiffCAP(purifier, self.phi.embed(lab), StopRule(encode=self.encode))
        pairs = {self.pairs.data.spec: (clean, lab.weights(self.pairs)["x_adv"].to(lab.device))}
        return {"cosines": calibrate_tau(pairs, rule, batch=self.batch).pairs[self.pairs.data.spec]}


@dataclass(frozen=True)
class Calibrated:
    """τ by Algorithm 2: the mean similarity of the pairs of some sets, each set counting the same."""

    sets: tuple[Similarities, ...]

    def calibration(self, lab: Lab) -> Calibration:
        """The similarities behind it."""
        return Calibration({s.pairs.data.spec: lab.weights(s)["cosines"] for s in self.sets})


@dataclass(frozen=True)
class Stopping(Worded):
    """DiffCAP. tau: calibrated, or given; raised: by so much as a candidate; offset: moves it beyond that, to at most
    1; factor: of Δt."""

    purification: Purification
    phi: Phi
    tau: Calibrated | float
    dt: int
    t_max: int
    coupling: Literal["cumulative", "redraw"]
    encode: Literal["x_t", "x_t/alpha"]
    fallback: Literal["t_max", "max_similarity"]
    raised: float = 0.0
    offset: float = 0.0
    factor: float = 1.0

    def open(self, lab: Lab) -> DiffCAP:
        """The defence."""
        tau = self.tau.calibration(lab).tau if isinstance(self.tau, Calibrated) else self.tau
        tau = min(tau + self.raised + self.offset, 1.0)
        dt = round(self.dt * self.factor)
        rule = StopRule(tau, dt, self.t_max, self.coupling, self.encode, fallback=self.fallback)
        return DiffCAP(self.purification.open(lab), self.phi.embed(lab), rule)


@dataclass(frozen=True)
class Resized:
    """Pictures made as small as the diffusion model's and no more; where they have that size, three quarters of it, or
    nothing would happen."""

    diffusion: Diffusion
    data: Pictures

    def open(self, lab: Lab) -> ResizeOnly:
        """The defence."""
        size = self.diffusion.open(lab).size
        same = Seen(self.data).clean(lab)[0].shape[-1] == size
        return ResizeOnly(size * 3 // 4 if same else size)


@dataclass(frozen=True)
class Similarity(Measured):
    """Similarities of one set's calibration pairs."""

    pairs: Similarities

    def make(self, lab: Lab) -> Values:
        return Values(lab.weights(self.pairs)["cosines"].numpy(), "cosine")


@dataclass(frozen=True)
class Spread(Measured):
    """τ from random subsets of so many pairs per set: one value per draw of the subset."""

    tau: Calibrated
    pairs: int
    seed: int

    def make(self, lab: Lab) -> Values:
        return Values(self.tau.calibration(lab).spread([self.pairs], seed=self.seed)[self.pairs].numpy(), "cosine")


# ---- how settings are chosen ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The candidate that a choice has settled on, a defence or CLIPure-Cos, with some of its fields changed."""

    choice: Choice | Stopping | Embedded
    changes: tuple[tuple[str, object], ...] = ()

    def open(self, lab: Lab) -> nn.Module:
        """As of the candidate."""
        return replace(settled(lab, self.choice), **dict(self.changes)).open(lab)


@dataclass(frozen=True)
class Judged:
    """Top-1 on validation pictures of the first set to classify, clean and attacked alike: of each picture, with 1
    where the answer is right,

        1/2 [ clean + attacked at the largest ε of the main tables ]

    The same for every purifier and every robust encoder, written down before any score was looked at. Purifiers face
    the attack on the undefended model, which knows no candidate, and robust encoders the one on themselves, as in the
    tables; a defence may see the model and such pictures, as the τ of Algorithm 2 does. What is best for CLIP is taken
    for the language models too: one setting for all models and data is what the abstract promises. No test picture is
    read.
    """

    attacked: Attacked
    seed: int
    batch: int = free(64)
    answers: int = free(64)

    def score(self, lab: Lab, candidate: object) -> Tensor:
        """(n,) in {0, 1/2, 1}."""
        seen, victim, defence = Seen(self.attacked.data, self.attacked), self.attacked.victim, Transform()
        x_adv = seen.pictures(lab)
        if isinstance(candidate, Robust):
            victim = replace(victim, clip=candidate.clip, tower=candidate)
            x_adv = replace(self.attacked, victim=victim).make(lab)["x_adv"]
        elif isinstance(candidate, Embedded):
            victim = candidate
        else:
            defence = candidate
        clean, y = seen.clean(lab)

        def right(x: Tensor) -> Tensor:
            out = through(defence.open(lab), x, seen.rows(lab), self.seed, self.batch)
            return labels_of(victim.open(lab), out, self.answers).eq(y).double()

        return (right(clean) + right(x_adv)) / 2


# ---- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score(Behind):
    """What a victim makes of pictures behind a defence: correct or not, or the score of its answers, which are kept."""

    @property
    def weight(self) -> float:
        """Passes through the diffusion model, roughly."""
        return passes(self.defence) + (1.0 if isinstance(self.victim, Speaker) else 0.05)

    def make(self, lab: Lab) -> Values:
        x, y = self.pictures(lab), self.seen.clean(lab)[1]
        if isinstance(y, Answers):
            said = self.victim.says(lab, x, y, self.answers)
            return Values(y.scores(said), y.unit, {"answers": np.array(said)}, **self.beside(lab))
        said = labels_of(self.victim.open(lab), x, self.answers)
        return Values((said == y).double().cpu().numpy(), "share", {"labels": said.cpu().numpy()}, **self.beside(lab))


def passes(defence: Defence) -> float:
    """How long a defence takes, roughly, in reverse processes."""
    while isinstance(defence, Chosen | Choice):
        defence = defence.choice if isinstance(defence, Chosen) else defence.candidates[0]
    return 1.0 if isinstance(defence, Purification | Stopping) else 0.05


@dataclass(frozen=True)
class Named(Measured):
    """Whether a captioner names the colour and the shape of every object of a drawn picture and of no other, by any of
    their names."""

    victim: Speaker
    seen: Seen
    answers: int = free(64)

    def make(self, lab: Lab) -> Values:
        x, y = self.seen.pictures(lab), self.seen.clean(lab)[1]
        said = self.victim.says(lab, x, y, self.answers)
        scenes = self.seen.data.open(lab).scenes(self.seen.rows(lab))
        right = [named_objects(answer) == objects(scenes, i) for i, answer in enumerate(said)]
        return Values(np.array(right, np.float64), "share", skipped=self.seen.skipped(lab))


@dataclass(frozen=True)
class Heard(Measured):
    """Whether the answer holds the attacker's string, with a defence in front of (or inside) the model that was
    attacked without it."""

    victim: Speaker
    seen: Seen
    defence: Defence
    string: str
    seed: int
    batch: int = free(64)
    answers: int = free(64)

    def make(self, lab: Lab) -> Values:
        x, y = self.seen.behind(lab, self.defence, self.seed, self.batch), self.seen.clean(lab)[1]
        said = self.victim.says(lab, x, y, self.answers)
        heard = says(said, [[self.string]] * len(said))
        return Values(heard, "share", {"answers": np.array(said)}, None, self.seen.skipped(lab))


@dataclass(frozen=True)
class Stop(Measured):
    """t*, in steps of the schedule: each picture's own with DiffCAP, one for all with DiffPure."""

    seen: Seen
    defence: Defence
    seed: int
    batch: int = free(64)

    def make(self, lab: Lab) -> Values:
        skipped, defence, rows = self.seen.skipped(lab), self.defence.open(lab), self.seen.rows(lab)
        if not isinstance(defence, DiffCAP):
            return Values(np.full(len(rows), defence.t), "steps", skipped=skipped)
        x, rng = self.seen.pictures(lab), SampleRng(self.seed, rows, STREAM)  # of the chains that `behind` denoises

        def ended(at: Tensor) -> tuple[Tensor, Tensor]:
            stop = defence.stop_times(x[at.to(x.device)], rng.subset(at))
            return stop.t.cpu(), stop.reached.cpu()

        t, reached = joined_all(ended, torch.arange(len(x)).split(self.batch))
        return Values(t.numpy(), "steps", {"reached": reached.numpy()}, skipped=skipped)


# ---- what the noise does -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consecutive(Measured):
    """s at time t: cos of φ at t − Δt and t along the chain, for clean, adversarial and pure-noise pictures, never
    stopped."""

    seen: Seen
    defence: Stopping
    who: Literal["clean", "adversarial", "noise"]
    t: int
    seed: int

    @property
    def group(self) -> "Consecutive":
        """One chain has all times."""
        return replace(self, t=self.defence.dt)

    def make(self, lab: Lab) -> Values:
        s = self.group._chain(lab)
        return Values(s[:, self.t // self.defence.dt - 1].cpu().numpy(), "cosine", skipped=self.seen.skipped(lab))

    @once
    def _chain(self, lab: Lab) -> Tensor:
        x, rng = self.seen.pictures(lab), SampleRng(self.seed, self.seen.rows(lab), STREAM)
        if self.who == "clean":
            x = self.seen.clean(lab)[0]
        elif self.who == "noise":
            x = rng.child("pure noise").uniform(x.shape[1:], device=x.device).to(x)
        defence = self.defence.open(lab)
        with torch.no_grad():
            return defence.similarities(x, list(defence.rule.times), rng)


@dataclass(frozen=True)
class Fading(Measured):
    """1 − cos between the victim's embeddings of the clean and of the adversarial picture, both noised to time t with
    the same noise."""

    victim: Classifier
    seen: Seen
    diffusion: Diffusion
    t: int
    seed: int

    def make(self, lab: Lab) -> Values:
        purifier, embed = Purifier(self.diffusion.open(lab), 0, Sampler()), self.victim.embed(lab)
        rng = SampleRng(self.seed, self.seen.rows(lab), STREAM)
        both = self.seen.clean(lab)[0], self.seen.pictures(lab)
        with torch.no_grad():
            t = torch.full((len(rng),), self.t)
            z = [embed(as_picture(purifier, purifier.noise(purifier.to_native(x), t, rng), t, x)) for x in both]
        return Values((1 - torch.cosine_similarity(*z)).cpu().numpy(), "distance", skipped=self.seen.skipped(lab))


def as_picture(purifier: Purifier, x_t: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """x_t/α(t) as a picture in [0, 1]: what a victim sees of a noised image."""
    alpha = purifier.denoiser.schedule.alpha(t).to(x_t).view(-1, 1, 1, 1)
    return purifier.from_native(x_t / alpha, tuple(like.shape[-2:]))


@dataclass(frozen=True)
class Recovery(Measured):
    """Whether there is a time of the grid from which on the victim's answer to the noised, or noised and denoised
    ("purified"), adversarial picture is its answer to the clean one; the times, and the times that theory promises, are
    kept beside it."""

    victim: Classifier
    seen: Seen
    purification: Purification
    state: Literal["noised", "purified"]
    times: tuple[int, ...]
    seed: int

    @property
    def weight(self) -> float:
        """One reverse process per time."""
        return float(len(self.times))

    def make(self, lab: Lab) -> Values:
        clean, x = self.seen.clean(lab)[0], self.seen.pictures(lab)
        rng = SampleRng(self.seed, self.seen.rows(lab), STREAM)
        victim, purifier = self.victim.open(lab), self.purification.open(lab)

        def answers(pictures: Tensor, time: int, stream: SampleRng) -> Tensor:
            t = torch.full((len(pictures),), time)
            x_t = purifier.noise(purifier.to_native(pictures), t, stream)
            if self.state == "purified":
                x_0 = purifier.reverse(x_t, t, stream)
                return predicted(victim(purifier.from_native(x_0, tuple(pictures.shape[-2:]))))
            return predicted(victim(as_picture(purifier, x_t, t, pictures)))

        with torch.no_grad():
            truth = predicted(victim(clean))
            same = torch.stack([answers(x, time, rng) == truth for time in self.times], 1).cpu()
            lead = torch.zeros(same.shape)
            if self.state == "noised":
                lead = torch.stack([_lead(answers, clean, time, rng) for time in self.times], 1)
        norm = 2 * (x - clean).flatten(1).norm(dim=1).cpu()
        found = theory.recovery_time(same, self.times)
        bound = theory.bound_time(norm, lead, purifier.denoiser.schedule, self.times)
        extra = {"time": found.numpy(), "bound": bound.numpy(), "same": same.numpy()}
        return Values((found >= 0).double().numpy(), "share", extra, skipped=self.seen.skipped(lab))


def _lead(answers: Callable[[Tensor, int, SampleRng], Tensor], pictures: Tensor, time: int, rng: SampleRng) -> Tensor:
    """Share of draws of the likeliest answer minus that of the next, (N,)."""
    votes = torch.stack([answers(pictures, time, rng.child(f"lead{k}")) for k in range(LEAD_DRAWS)], 1).cpu()
    counts = nn.functional.one_hot(votes).sum(1).sort(dim=1, descending=True).values
    return (counts[:, 0] - (counts[:, 1] if counts.shape[1] > 1 else 0)) / LEAD_DRAWS


# ---- pictures and costs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Closeness(Measured):
    """Cosine of φ between the picture behind a defence and the clean one."""

    seen: Seen
    defence: Defence
    seed: int
    phi: Phi
    batch: int = free(64)

    def make(self, lab: Lab) -> Values:
        x = self.seen.behind(lab, self.defence, self.seed, self.batch)
        values = embedding_similarity(self.phi.embed(lab), x, self.seen.clean(lab)[0], self.batch)
        return Values(values, "cosine", skipped=self.seen.skipped(lab))


@dataclass(frozen=True)
class Cost(Measured):
    """Passes through the networks per picture, and seconds per picture split into the loop and the reverse process, one
    batch on one process."""

    victim: Classifier
    seen: Seen
    defence: Defence
    repeats: int
    seed: int
    quantity: Literal["denoiser_calls", "encoder_calls", "encoder_seconds", "reverse_seconds", "seconds"]

    @property
    def group(self) -> "Cost":
        """All quantities are of the same runs."""
        return replace(self, quantity="seconds")

    def make(self, lab: Lab) -> Values:
        values = self.group._measured(lab)[self.quantity]
        return Values(values, "s" if "seconds" in self.quantity else "passes", skipped=self.seen.skipped(lab))

    @once
    def _measured(self, lab: Lab) -> dict[str, np.ndarray]:
        x, rng = self.seen.pictures(lab), SampleRng(self.seed, self.seen.rows(lab), STREAM)
        defence, victim = self.defence.open(lab), self.victim.open(lab)
        purifier = defence.purifier if isinstance(defence, DiffCAP) else defence

        def noised() -> tuple[Tensor, Tensor, np.ndarray]:
            """The state that is denoised, its time, and how often φ has looked at it."""
            if isinstance(defence, DiffCAP):
                stop = defence.stop_times(x, rng)
                return stop.state, stop.t, stop.encoded.cpu().numpy()
            t = torch.full((len(x),), defence.t)
            return purifier.noise(purifier.to_native(x), t, rng), t, np.zeros(len(x))

        @torch.no_grad()
        def run(done: Callable[[], None]) -> None:
            state, t, _ = noised()
            done()
            out = purifier.from_native(purifier.reverse(state, t, rng), tuple(x.shape[-2:]))
            done()
            victim(out)
            done()

        spent = phase_seconds(run, self.repeats, x.device) / len(x)
        with torch.no_grad():
            _, t, looks = noised()
        grid = purifier.sampler.times(t.cpu())
        calls = (grid[:, :-1] > grid[:, 1:]).sum(1).numpy()
        seconds = {"encoder_seconds": spent[:, 0], "reverse_seconds": spent[:, 1], "seconds": spent.sum(1)}
        return {"denoiser_calls": calls, "encoder_calls": looks, **seconds}


@dataclass(frozen=True)
class Strip(Measured):
    """Some pictures on their way: clean, adversarial, diffused, purified, with the model's answers; the value is the
    score after purification."""

    victim: Speaker
    seen: Seen
    defence: Defence
    seed: int

    def make(self, lab: Lab) -> Values:
        x, (clean, y) = self.seen.pictures(lab), self.seen.clean(lab)
        rng = SampleRng(self.seed, self.seen.rows(lab), STREAM)
        defence, vlm = self.defence.open(lab), self.victim.open(lab)
        with torch.no_grad():
            stop = defence.stop_times(x, rng)
            diffused = as_picture(defence.purifier, stop.state, stop.t, x)
            shown = {"clean": clean, "adversarial": x, "diffused": diffused, "purified": defence(x, rng)}
        said = {name: vlm.answer(pictures, y.prompts, max_tokens=y.max_tokens) for name, pictures in shown.items()}
        extra = {name: as_bytes(pictures) for name, pictures in shown.items()}
        extra |= {f"{name} answers": np.array(texts) for name, texts in said.items()}
        extra |= {"difference": (x - clean).cpu().numpy(), "t": stop.t.cpu().numpy()}
        return Values(y.scores(said["purified"]), y.unit, extra, None, self.seen.skipped(lab))


# ---- attackers who know the defence ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptive(Known):
    """On the classifier. Beside the attackers of `Known`: early_stop is the exact gradient plus a term, of some weight,
    that raises consecutive similarities, so that the loop ends early; found: pictures that an attack on another defence
    has found are shown to this one."""

    early: float = 0.0
    found: "Adaptive | None" = None

    def attacked(self, lab: Lab, x: Tensor, y: Tensor) -> tuple[Tensor, dict | None]:
        if self.found is not None:
            return lab.weights(self.found)["x_adv"].to(x), None
        if self.against != "early_stop":
            return super().attacked(lab, x, y)
        defence = self.defence.open(lab)

        def early(x: Tensor, streams: SampleRng) -> Tensor:
            return self.early * defence.early_stop_loss(x, streams)

        return self.by_gradient(lab, x, y, usual(self.steps, self.eot)["exact"], early)


@dataclass(frozen=True)
class AdaptiveCaptions(Known):
    """On a captioner: APGD raises the negative log-likelihood of the first reference. It leaves the scores (N, draws)
    of the answers behind repeated purifications."""

    def make(self, lab: Lab) -> Tensors:
        x_adv, y = self.seen.clean(lab)
        vlm, defence = self.victim.open(lab), self.defence.open(lab)

        def score(images: Tensor, where: Tensor) -> Tensor:
            asked = y.of(where.tolist())
            return torch.as_tensor(asked.scores(vlm.answer(images, asked.prompts, max_tokens=asked.max_tokens)))

        if self.against != "control":
            (rng, noise), victim = self.streams(lab), vlm
            if self.against != "transfer":
                gradient = "bpda" if self.against == "bpda_eot" else "exact"
                victim = DefendedVLM(vlm, defence, noise, gradient=gradient, draws=self.eot)
            first, threat = [texts[0] for texts in y.truths], Threat(self.norm, self.eps)
            x_adv = nll_attack(victim, x_adv, y.prompts, first, threat, rng=rng, steps=self.steps)
        rng = SampleRng(self.seed, self.seen.rows(lab), "judging")
        return {"scores": resubmit(score, defence, x_adv, rng, self.draws, self.batch).contiguous()}


@dataclass(frozen=True)
class AdaptiveScore(Measured):
    """Score per picture: the mean over repeated purifications, or the worst of them."""

    known: AdaptiveCaptions
    judged: Literal["mean", "worst"]

    def make(self, lab: Lab) -> Values:
        values, seen = summaries(lab.weights(self.known)["scores"])[self.judged], self.known.seen
        return Values(np.asarray(values, np.float64), seen.clean(lab)[1].unit, skipped=seen.skipped(lab))


# ---- what the tags of a number mean ------------------------------------------------------------------------------------


def backbone(c: Config, model: str) -> Backbone | Pretrained:
    """The tower that a model looks through."""
    m = c.models
    other = {"llava": m.llava_tower, "flamingo": m.flamingo_tower}.get(model)
    return Backbone(*other) if other else given_clip(m.clip, m.clip_weights, m.pretraining, "--models.clip-weights")


def victim_of(c: Config, model: str, spec: str, method: str = "none") -> Classifier | Speaker:
    """What is attacked and asked: with a robust encoder where that is the defence."""
    tower = choice_of(c, method, model) if method in TOWERS else None
    if model == CLIP:
        return Classifier(backbone(c, CLIP), spec, tower)
    return Speaker(Weights(getattr(c.models, model)), tower)


def phi_of(c: Config, model: str = CLIP, other: bool = False) -> Phi:
    """φ: one small CLIP, or the tower of what is protected. other: the choice that was not made."""
    m = c.models
    if m.own_tower == other:
        return Encoder(given_clip(m.phi, m.phi_weights, m.pretraining, "--models.phi-weights"))
    return victim_of(c, model, c.data.classes[0])


def data_of(c: Config, spec: str) -> Pictures | Texts:
    """The chosen test pictures of a set; the same for every model."""
    if spec in c.data.classes:
        return Pictures(spec, "test", c.data.n, c.data.seed)
    return texts_of(c, spec, "test", c.data.n)


def texts_of(c: Config, spec: str, split: str, n: int) -> Texts:
    """Pictures with text; those in files are read at LLaVA's size, whoever looks at them."""
    like = None if c.models.llava.startswith("zoo:") else Speaker(Weights(c.models.llava))
    return Texts(spec, split, n, c.data.seed, like)


def unseen(c: Config, spec: str, n: int) -> Pictures | Texts:
    """Pictures of a set that are not evaluated, to calibrate and to choose on. Published sets to classify have no
    validation split: theirs are test pictures that are not evaluated."""
    if spec == DIGITS:
        return Pictures(DIGITS, "train", n)
    if spec not in c.data.classes:
        return texts_of(c, spec, "validation", n)
    if choosing_split(spec) == "validation":
        return Pictures(spec, "validation", n, c.data.seed)
    return Later(spec, "test", n, c.data.seed, c.data.n)


@cache
def similarities_of(c: Config, spec: str, other: bool = False) -> Similarities:
    """The calibration pairs of a set."""
    m, data = c.method, unseen(c, spec, c.method.calibration_n)
    victim = victim_of(c, CLIP, c.data.classes[0])
    pairs = Away(victim, data, m.calibration_eps, m.calibration_steps, c.attack.seed, c.attack.batch)
    return Similarities(pairs, diffusion_of(c), phi_of(c, other=other), m.encode, m.batch, "other" if other else "")


@cache
def calibrated(c: Config, other: bool = False) -> Calibrated:
    """τ of all sets, of φ or of the other choice of it."""
    return Calibrated(tuple(similarities_of(c, spec, other) for spec in sets(c)))


def diffusion_of(c: Config) -> Diffusion:
    """The diffusion model."""
    m = c.models
    if m.denoiser == "train":
        return Diffusion(Denoising(m.denoiser_config, Pictures(FOLDER, "train"), m.denoising, c.seeds[0]))
    return Diffusion(Weights(m.denoiser))


def purification_of(c: Config, t: int = 0) -> Purification:
    """Purification at a fixed time."""
    m = c.method
    return Purification(diffusion_of(c), t, m.sampler, m.sampler_steps, m.eta, m.recompute)


def stopping_of(c: Config, dt: int, t_max: int, raised: float = 0.0) -> Stopping:
    """DiffCAP for classifiers, as configured, with what is chosen."""
    m = c.method
    tau = calibrated(c) if m.tau is None else m.tau
    return Stopping(purification_of(c), phi_of(c), tau, dt, t_max, m.coupling, m.encode, m.fallback, raised)


@cache
def choice_of(c: Config, method: str, model: str = CLIP) -> object:
    """The choice among the candidates of a row, or the only one. Robust encoders are chosen for each tower."""
    g, first = c.choosing, victim_of(c, CLIP, c.data.classes[0])

    def robust(rate: float) -> Robust:
        tuning = c.tuning if method == "tecoa" else c.fare
        settings = (replace(tuning, lr=rate * tuning.lr), TrainAttack(), c.attack.tuned_eps, c.seeds[0])
        return Robust(method, backbone(c, model), Pictures(c.data.train, fitting_split(c.data.train)), *settings)

    makers = {
        "tecoa": robust,
        "fare": robust,
        "clipure": lambda size: Embedded(first, size),
        "noise": lambda t: NoiseAlone(diffusion_of(c), t),
        "diffpure": lambda t: purification_of(c, t),
        "diffcap": lambda settings: stopping_of(c, *settings),
    }
    make = makers.get(method, lambda value: Transform(method, value))
    candidates = tuple(make(value) for value in getattr(g, GRIDS.get(method, method)))
    if len(candidates) == 1:
        return candidates[0]
    pictures = unseen(c, c.data.classes[0], g.n)
    attacked = Attacked(first, pictures, adversary_of(c, "classes", c.attack.eps[-1]), row="validation")
    return Choice(candidates, Judged(attacked, c.seeds[0], c.method.batch, c.attack.batch), method)


def diffcap_of(c: Config, model: str = CLIP, **changes: object) -> Chosen:
    """DiffCAP as chosen; changes: of its fields."""
    if c.models.own_tower and model != CLIP:
        changes = {"phi": phi_of(c, model), **changes}
    return Chosen(choice_of(c, "diffcap"), tuple(changes.items()))


def variant_of(c: Config, name: str) -> Chosen:
    """One field of DiffCAP changed; τ calibrated as always, of the other φ on that."""
    if name == "other_phi":
        return diffcap_of(c, phi=phi_of(c, other=True), tau=calibrated(c, other=True))
    return diffcap_of(c, **{{"redraw": "coupling", "x_t/alpha": "encode", "max_similarity": "fallback"}[name]: name})


def defence_of(c: Config, method: str, model: str = CLIP) -> Defence:
    """What stands in front of the victim in a row; identity for rows that change the model."""
    if method == YOURS:
        return Yours.of(c)
    if method in ("none", *TOWERS, "clipure"):
        return Transform()
    if method in VARIANTS:
        return variant_of(c, method)
    if method == "resize":
        return Resized(diffusion_of(c), data_of(c, c.data.classes[0]))
    if method == "diffcap_own":
        return diffcap_of(c, model, tau=Calibrated((similarities_of(c, DIGITS),)))
    return diffcap_of(c, model) if method == "diffcap" else Chosen(choice_of(c, method))


def adversary_of(c: Config, task: str, eps: float) -> Adversary:
    """The attack of the main tables for a task."""
    a = c.attack
    common = {"seed": a.seed, "batch": a.batch}
    return {
        "pgd": lambda: Adversary("pgd", eps, a.steps, **common),
        "classes": lambda: Adversary("classes", eps, a.steps, a.targets, **common),
        "captions": lambda: Adversary("captions", eps, a.steps, 0, a.references, a.threshold, a.half_first, **common),
        "questions": lambda: Adversary("questions", eps, a.steps, half=a.half_first, **common),
    }[task]()


@cache
def pictures_of(c: Config, method: str, model: str, spec: str, eps: float) -> tuple[Seen, Checked | None]:
    """What a row sees, and where its attack was checked: once for each model and encoder, on its first set at the
    largest ε."""
    if eps == 0:
        return Seen(data_of(c, spec)), None
    victim, row = victim_of(c, model, spec, method), f"{model}-{method if method in TOWERS else 'base'}"
    attacked = Attacked(victim, data_of(c, spec), adversary_of(c, task_of(spec, model), eps), row=row)
    first = (c.data.classes if model == CLIP else c.data.captions)[0]
    few = Seen(data_of(c, first), n=CLASSIFIER_CHECKS if model == CLIP else LANGUAGE_CHECKS)
    usual = adversary_of(c, task_of(first, model), c.attack.eps[-1])
    return Seen(data_of(c, spec), attacked), Checked(victim_of(c, model, first, method), few, usual, row)


def number(c: Config, kind: str, method: str, model: str, data: str, eps: float, seed: int, **point) -> Measured | None:
    """The step behind a number, from its tags."""
    s, m, batches = c.sweeps, c.method, {"batch": c.method.batch, "answers": c.attack.batch}
    if kind == "tau":
        return Similarity(similarities_of(c, data))
    if kind == "calibration":
        return Spread(calibrated(c), point["pairs"], seed)
    if kind in ("digits", "digits_stop"):
        return digits_of(c, kind, method, eps, seed)
    if kind == "adaptive":
        return KnownAccuracy(adaptive_of(c, method, eps, seed, point["against"]), point["judged"])
    if kind == "adaptive_caption":
        return AdaptiveScore(captions_of(c, method, eps, seed, point["against"]), point["judged"])
    if kind == "choice":
        choice = choice_of(c, method)
        if not isinstance(choice, Choice):
            return None
        return CandidateScore(choice, point["candidate"], "share", point["quantity"] == "chosen")
    if kind == "targeted":
        victim, seen = victim_of(c, model, data, method), Seen(data_of(c, data), n=c.attack.target_n)
        a, row, string = c.attack, method if method in TOWERS else "base", point["string"]
        attacked = Targeted(victim, seen, string, eps, a.target_steps, a.seed, a.batch, row)
        return Heard(victim, replace(seen, attacked=attacked), defence_of(c, method, model), string, seed, **batches)
    seen, checks = pictures_of(c, method, model, data, eps)
    if kind == "named":
        return Named(victim_of(c, model, data), seen, c.attack.batch)
    if kind == "stop":
        if method == YOURS:
            return None
        return Stop(seen, defence_of(c, method, model), seed, m.batch)
    victim = victim_of(c, model, data, method)
    if kind == "score":
        asked = Chosen(choice_of(c, "clipure"), (("victim", victim),)) if method == "clipure" else victim
        return Score(asked, seen, defence_of(c, method, model), seed, checks, **batches)
    few = replace(seen, n=s.n)
    if kind == "fading":
        return Fading(victim, seen, diffusion_of(c), point["t"], seed)
    if kind == "similarity":
        loop = replace(stopping_of(c, *c.choosing.diffcap[0]), tau=0.0)
        return Consecutive(few, loop, method, point["t"], seed)
    if kind == "recovery":
        return Recovery(victim, seen, purification_of(c), method, s.times, seed)
    if kind == "cost" and method == YOURS:
        few, timed = replace(seen, n=s.cost_n), point["quantity"] == "seconds"
        return DefenceSeconds(victim, few, Yours.of(c), s.cost_repeats, seed) if timed else None
    if kind == "cost":
        return Cost(victim, replace(seen, n=s.cost_n), defence_of(c, method), s.cost_repeats, seed, point["quantity"])
    if kind == "strip":
        return Strip(victim, replace(seen, n=s.strip), defence_of(c, method, model), seed)
    if kind == "quality":
        shown = replace(seen, n=s.quality_n)
        if point["measure"] == "clip":
            return Closeness(shown, defence_of(c, method), seed, phi_of(c), m.batch)
        return Quality(shown, defence_of(c, method), seed, point["measure"], m.batch)
    if kind == "ablation":
        return Score(victim, seen, diffcap_of(c, **point), seed, None, **batches)
    defence = variant_of(c, method) if kind == "variant" else purification_of(c, point["t"])
    return Score(victim, few, defence, seed, None, **batches)


def digits_of(c: Config, kind: str, method: str, eps: float, seed: int) -> Measured:
    """τ away from where it was calibrated: handwritten digits, classified by a linear probe on the victim's
    embeddings."""
    probe = Probe(victim_of(c, CLIP, c.data.classes[0]), Pictures(DIGITS, "train"))
    data = Pictures(DIGITS, "test", c.sweeps.digits_n)
    attacked = Attacked(probe, data, adversary_of(c, "pgd", eps), "digits", "probe") if eps else None
    seen, defence = Seen(data, attacked), defence_of(c, method)
    if kind == "digits_stop":
        return Stop(seen, defence, seed, c.method.batch)
    return Score(probe, seen, defence, seed, None, c.method.batch, c.attack.batch)


def adaptive_of(c: Config, method: str, eps: float, seed: int, against: str) -> Adaptive:
    """Someone who knows the defence of a row, on the classifier."""
    a, spec = c.adaptive, c.data.classes[0]
    checked = LANGUAGE_CHECKS if against == "exact" else 0
    settings = {"early": a.weight if against == "early_stop" else 0.0}
    if against == "from_diffpure":
        settings["found"] = adaptive_of(c, "diffpure", eps, seed, "exact")
    seen, budget = Seen(data_of(c, spec), n=a.n), (a.steps, a.eot, a.draws, checked, c.attack.seed, seed)
    victim, defence, batch = victim_of(c, CLIP, spec), defence_of(c, method), c.method.batch
    return Adaptive(victim, seen, defence, against, "linf", eps, *budget, batch, row=method, **settings)


def captions_of(c: Config, method: str, eps: float, seed: int, against: str) -> AdaptiveCaptions:
    """The same on LLaVA as a captioner."""
    a, spec = c.adaptive, c.data.captions[0]
    budget = (a.steps, a.eot, a.draws, 0, c.attack.seed, seed, c.method.batch, f"captions-{method}")
    victim, seen = victim_of(c, "llava", spec), Seen(data_of(c, spec), n=a.caption_n)
    return AdaptiveCaptions(victim, seen, defence_of(c, method), against, "linf", eps, *budget)


def describe(c: Config, model: str, data: str, eps: float, **point: object) -> dict:
    """Tags beside those of the name. `set` is unique to (model, set, ε), since means are taken over it. `place` is the
    set's place in its task, and `strength` that of ε among the preset's, 0 for clean pictures, so that claims can name
    them at every scale."""
    task, levels = task_of(data, model), strengths(c)
    places = getattr(c.data, task)
    return {
        "task": task,
        "place": 1 + places.index(data) if data in places else 0,
        "set": f"{model} {data} {eps * 255:g}",
        "strength": levels.index(eps) if eps in levels else -1,
        "attack": "adversarial" if eps else "clean",
    }
