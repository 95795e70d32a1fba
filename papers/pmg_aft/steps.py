"""What is computed for PMG-AFT: fine-tuned vision towers, and the numbers that are measured on them.

`methods` says what each row of a table is; `number` says what the tags of a number mean.
"""

import copy
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.pmg_aft.baselines import Contrastive
from papers.pmg_aft.config import Config
from papers.pmg_aft.method import PMGAFT, PMGLoss
from papers.pmg_aft.tables import CLIP, READ, SWEPT, chosen, name_of, set_names
from shared.attacks import Threat, cascade, check_attack, pgd
from shared.errors import UserError
from shared.experiment.leaves import Backbone, Pictures
from shared.experiment.step import Lab, Measured, Tensors, Trained, Values, free, once
from shared.metrics.costs import activation_megabytes, step_seconds
from shared.models.victim import ZeroShot, class_matrix, labels_of
from shared.options import Worded
from shared.repeat import joined, parts_of
from shared.report.shown import YOURS, yours
from shared.rng import SampleRng
from shared.steps.choice import CandidateScore, Choice, Settings
from shared.steps.pretrained import Pretrained, given_clip, untrained
from shared.steps.yours import FAILS, Code, what
from shared.training.adversarial import FARE, Objective, TeCoA, TrainAttack, finetune, frozen
from shared.training.loop import Diverged

HEADLINE = ("tecoa", "pmg_aft")  # what a curve is taken of


# ---- the models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Face(Worded):
    """Text and released code differ; each is a configuration with a name (README, "Differences")."""

    temperature: Literal["model", "one"] = "model"
    """s in the logits s·cos: that of the model, or 1, as where the released code normalises twice."""
    norm: Literal["clip", "imagenet"] = "clip"
    """Mean/std of the pixels; the released code feeds CLIP ImageNet's."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the attack's loss in training, and whether it runs in half precision; see `TrainAttack`."""
    autocast: Literal["none", "fp16"] = "none"


RELEASED = Face("one", "imagenet", "mean", "fp16")
ONE = Face("one")
"""The released temperature with a sound attack in training: a third reading, between the two."""


@dataclass(frozen=True)
class Tuned(Trained):
    """A vision tower, fine-tuned with one of the objectives."""

    clip: Backbone | Pretrained
    objective: Literal["ft_clean", "ft_adv", "tecoa", "fare", "pmg_aft", "yours"]
    loss: PMGLoss | None
    face: Face
    data: Pictures
    tuning: Settings
    attack: TrainAttack
    eps: float
    seed: int
    row: str = free("")
    curve: tuple[int, ...] = free(())
    candidate: bool = free(False)
    """One of several that are tried: a training that diverges then leaves the pre-trained tower, and says so."""

    @property
    def name(self) -> str:
        return f"{self.row}__seed{self.seed}"

    @property
    def parts(self) -> tuple[str, ...]:
        return ("", *(f"step{s}" for s in self.curve if 0 < s < self.tuning.given.steps))

    def make(self, lab: Lab) -> Tensors | tuple[Tensors, dict[str, str]]:
        def snapshot(step: int, visual: nn.Module) -> None:
            if f"step{step}" in self.parts:
                lab.keep(self, visual.state_dict(), f"step{step}")

        try:
            return self.run(lab, snapshot, lab.partial(self)).state_dict()
        except Diverged:
            if not self.candidate:
                raise
            untouched = self.clip.open(lab).visual.state_dict()
            for part in self.parts[1:]:
                lab.keep(self, untouched, part)
            return untouched, {"diverged": "yes"}

    def run(self, lab: Lab, after_step: Callable[[int, nn.Module], None], partial: Path | None = None) -> nn.Module:
        """Fine-tune a copy of the tower; returns it."""
        data, visual = lab.data(self.data.spec, self.data.split), copy.deepcopy(self.clip.open(lab).visual)
        victim = classifier(lab, self.clip, visual, self.data.spec, self.face.norm, self.face.temperature, "train")
        finetune(
            victim,
            self.objective_of(victim),
            data,
            self.tuning.open(lab),
            Threat("linf", self.eps),
            self.attack,
            self.seed,
            lab.device,
            partial,
            lambda step: after_step(step, visual),
            self.name,
        )
        return visual

    def objective_of(self, victim: ZeroShot):
        """The objective; the frozen copy that FARE and PMG-AFT need is taken from `victim` as it is now."""
        return {
            "ft_clean": lambda: Contrastive(False),
            "ft_adv": lambda: Contrastive(True),
            "tecoa": TeCoA,
            "fare": lambda: FARE(frozen(victim)),
            "pmg_aft": lambda: PMGAFT(frozen(victim), self.loss),
        }[self.objective]()


@dataclass(frozen=True)
class TunedByYours(Tuned):
    """The same with an objective of the user's own, OBJECTIVE=module:name: a class as `Objective` describes it, made
    without arguments or with one, the frozen pre-trained victim. `attack_loss` gives (N,), `loss` a scalar."""

    _: KW_ONLY
    code: Code

    def objective_of(self, victim: ZeroShot) -> Objective:
        """It, made anew."""
        torch.manual_seed(self.seed)  # for code that draws from torch's own generator
        return self.code.having("attack_loss", "loss", offered=(frozen(victim),))

    def look(self, lab: Lab) -> None:
        """Raises UserError unless both losses of a CLIP with random weights are as they must be on two pictures."""
        at, data = f"{self.code.option} {self.code.spec}", self.data.open(lab)
        clip = untrained(lab, self.clip)
        scale = clip.logit_scale.exp().item()
        victim = ZeroShot(clip.visual, class_matrix(clip, data), scale, self.face.norm).to(lab.device)
        x, y = self.data.read(lab, [0, 1])
        objective = self.objective_of(victim)
        try:
            raised = objective.attack_loss(victim, x, y)
            each = y.float() if raised is None else raised(x)
            loss = objective.loss(victim, x, x, y)
        except FAILS as error:
            raise UserError(
                f"{at} fails on two pictures ({what(error)}): its arguments are in docs/yours.md."
            ) from error
        for name, value, shape in (("attack_loss", each, (2,)), ("loss", loss, ())):
            got = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            if got != shape:
                raise UserError(f"{at}: its {name} of two pictures is {got}, and must be of shape {shape}.")
            if not value.isfinite().all():
                raise UserError(f"{at}: its {name} is not finite.")
        if not loss.requires_grad:
            raise UserError(f"{at}: its loss has no gradient, so nothing would be trained: take victim(x_adv).")


@cache
def methods(c: Config, seed: int = 0) -> dict[str, Tuned]:
    """What is trained for each row, by its name. Rows of `CHOSEN` have a learning rate chosen for themselves, those
    that vary one thing of such a row have its."""
    rows = _rows(c, seed)
    return {
        name: replace(step, tuning=replace(step.tuning, choice=choice(c, chosen_for(c, name))))
        for name, step in rows.items()
    }


@cache
def choice(c: Config, name: str) -> Choice:
    """The choice of a row's learning rate among the multiples of its preset."""
    step = _rows(c, c.seeds[0])[name]
    validation = Pictures(c.data.train, "validation", c.choosing.n)
    kind = "clean" if name == "ft_clean" else "pgd"
    # with one candidate nothing is chosen
    fitted = step.data if len(c.choosing.multiples) == 1 else replace(step.data, split="fit")
    tried = tuple(
        replace(
            step,
            data=fitted,
            tuning=Settings(replace(step.tuning.given, lr=step.tuning.given.lr * m)),
            row=f"{name}_lr_x{m:g}",
            candidate=True,
        )
        for m in c.choosing.multiples
    )
    return Choice(tried, SeenAccuracy(validation, adversary(c, kind)), name)


def chosen_for(c: Config, name: str) -> str:
    """The row whose learning rate a row has."""
    if name == "pmg_released_april":
        return "pmg_released"
    row = name.partition("_on_")[0]
    return row if row in chosen(c) else "pmg_aft"


@cache
def _rows(c: Config, seed: int) -> dict[str, Tuned]:
    """What is trained for each row, with the preset's learning rate."""

    def tuned(objective: str, loss: PMGLoss | None = None, face: Face = Face()) -> Tuned:
        tuning, data = Settings(c.fare if objective == "fare" else c.tuning), Pictures(c.data.train, "train")
        attack = TrainAttack(c.attack.train_steps, 1.0, face.reduction, face.autocast)
        return Tuned(base(c), objective, loss, face, data, tuning, attack, c.attack.eps, seed)

    def by_yours() -> Tuned:
        usual = tuned(YOURS)
        return TunedByYours(**{f.name: getattr(usual, f.name) for f in fields(usual)}, code=Code(c.yours, "OBJECTIVE"))

    def pmg(face: Face = Face(), **changes) -> Tuned:
        return tuned("pmg_aft", PMGLoss(**changes), face)

    out = {name: tuned(name) for name in ("ft_clean", "ft_adv", "tecoa", "fare")}
    out |= {"tecoa_one": tuned("tecoa", face=ONE), "tecoa_released": tuned("tecoa", face=RELEASED)}
    out |= {
        "pmg_aft": pmg(),
        "pmg_general": pmg(beta=0.0),
        "pmg_clean": pmg(alpha=0.0),
        "pmg_detached": pmg(detach_clean=True),
        "pmg_adversarial_first": pmg(direction="adversarial_first"),
        "pmg_one": pmg(ONE, reduction="sum"),
        "pmg_released": pmg(RELEASED, reduction="sum"),
        "pmg_released_april": pmg(RELEASED, direction="adversarial_first", reduction="sum"),
    }
    headline = (*HEADLINE, *yours(c))
    out |= {name: by_yours() for name in yours(c)}
    out |= {
        SWEPT(a, b): pmg(alpha=a, beta=b) for a in c.sweeps.alphas for b in c.sweeps.betas if SWEPT(a, b) not in out
    }
    out |= {
        f"{m}_on_{name_of(train)}": replace(out[m], data=Pictures(train, "train"))
        for train in c.data.other_train
        for m in headline
    }
    out |= {
        f"pmg_last{k}": replace(out["pmg_aft"], tuning=Settings(c.tuning, changes=(("last", k),)))
        for k in c.sweeps.last
    }
    curve = c.sweeps.curve if seed == c.seeds[0] else ()
    return {name: replace(step, row=name, curve=curve if name in headline else ()) for name, step in out.items()}


def base(c: Config) -> Backbone | Pretrained:
    """The CLIP before any fine-tuning."""
    return given_clip(c.model.name, c.model.pretrained, c.model.pretraining, "--model.pretrained")


def classifier(
    lab: Lab,
    clip: Backbone | Pretrained,
    visual: nn.Module,
    spec: str,
    norm: str,
    temperature: str = "model",
    split: str = "test",
) -> ZeroShot:
    """The zero-shot classifier of a set with some vision tower of a CLIP."""
    whole, data = clip.open(lab), lab.data(spec, split)
    text = lab.once(("text", clip, data.version), lambda: class_matrix(whole, data))
    scale = 1.0 if temperature == "one" else whole.logit_scale.exp().item()
    return ZeroShot(visual, text, scale, norm).to(lab.device).eval()


# ---- the numbers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tower:
    """A vision tower as it is judged: with the mean/std that it was trained with, and the temperature of the
    pre-trained model."""

    clip: Backbone | Pretrained
    tuned: Tuned | None = None
    part: str = ""

    @property
    def norm(self) -> str:
        return "clip" if self.tuned is None else self.tuned.face.norm

    @once
    def visual(self, lab: Lab) -> nn.Module:
        visual = self.clip.open(lab).visual
        if self.tuned is not None:
            visual = copy.deepcopy(visual)
            visual.load_state_dict(lab.weights(self.tuned, self.part))
        return visual.requires_grad_(False).eval()

    def on(self, lab: Lab, spec: str) -> ZeroShot:
        return classifier(lab, self.clip, self.visual(lab), spec, self.norm)


@dataclass(frozen=True)
class Adversary(Worded):
    """An attack of the evaluation. kind: clean, pgd, cw (PGD on the κ margin), auto (the cascade), released, correct
    (see `TestBatch`)."""

    kind: Literal["clean", "pgd", "cw", "auto", "released", "correct"]
    eps: float = 0.0
    steps: int = 0
    step_size: float = 0.0
    kappa: float = 0.0
    stages: tuple[str, ...] = ()
    targets: int = 0
    queries: int = 0
    seed: int = 0
    batch: int = free(128)

    def __call__(
        self, victim: ZeroShot, x: Tensor, y: Tensor, indices: list[int], stream: str = "evaluation"
    ) -> Tensor:
        rng, threat = SampleRng(self.seed, indices, stream), Threat("linf", self.eps)
        if self.kind == "clean":
            return x
        if self.kind == "auto":
            return cascade(
                victim,
                x,
                y,
                threat,
                rng=rng,
                stages=self.stages,
                steps=self.steps,
                targets=self.targets,
                queries=self.queries,
                batch_size=self.batch,
            ).x_adv
        loss = "cw" if self.kind == "cw" else "ce"
        return pgd(
            victim, x, y, threat, steps=self.steps, step_size=self.step_size, rng=rng, loss=loss, kappa=self.kappa
        )


@dataclass(frozen=True)
class Checks:
    """The sanity checks of PGD on a tower, on pictures of the seen set; made once per tower and process."""

    data: Pictures
    attack: Adversary

    def record(self, lab: Lab, tower: Tower) -> dict:
        return lab.once(("checks", tower, self), lambda: self._record(lab, tower))

    def _record(self, lab: Lab, tower: Tower) -> dict:
        rows, a = self.data.rows(lab), self.attack
        x, y = self.data.read(lab, rows)

        def attack(victim, x, y, threat, *, steps, rng):
            return pgd(victim, x, y, threat, steps=steps, step_size=a.step_size / a.eps * threat.eps, rng=rng)

        surrogate = None if tower.tuned is None else Tower(tower.clip).on(lab, self.data.spec)
        return check_attack(
            tower.on(lab, self.data.spec),
            x,
            y,
            Threat("linf", a.eps),
            attack,
            rng=SampleRng(a.seed, rows, "sanity"),
            steps=a.steps,
            surrogate=surrogate,
            images=len(x),
        )


@dataclass(frozen=True)
class Accuracy(Measured):
    """Whether the classifier is right about a picture, under an attack."""

    tower: Tower
    data: Pictures
    attack: Adversary
    checks: Checks | None = None
    stream: str = "evaluation"

    def make(self, lab: Lab) -> Values:
        victim, rows = self.tower.on(lab, self.data.spec), self.data.rows(lab)
        size = len(rows) if self.attack.kind == "auto" else max(1, self.attack.batch)

        def right(part: list[int]) -> Tensor:
            x, y = self.data.read(lab, part)
            x_adv = self.attacked(lab, victim, x, y, part)
            return labels_of(victim, x_adv, self.attack.batch).eq(y).float().cpu()

        sanity = None if self.checks is None else self.checks.record(lab, self.tower)
        return Values(
            joined(right, parts_of(rows, size)).numpy(), "share", sanity=sanity, skipped=self.data.open(lab).skipped
        )

    def attacked(self, lab: Lab, victim: ZeroShot, x: Tensor, y: Tensor, rows: list[int]) -> Tensor:
        return self.attack(victim, x, y, rows, self.stream)


@dataclass(frozen=True)
class SeenAccuracy:
    """The rule of every choice: accuracy on validation pictures of the training classes, under the attack of the
    evaluation (clean for FT-Clean, which knows no attack). Pictures of the test and classes of the zero-shot sets play
    no part. A training that diverged scores 0.

    The attack sees every model with the pre-trained temperature, as in the evaluation.
    """

    data: Pictures
    attack: Adversary

    def score(self, lab: Lab, candidate: Tuned) -> Tensor:
        right = Accuracy(Tower(candidate.clip, candidate), self.data, self.attack, stream="validation").make(lab).values
        return torch.from_numpy(right) * (0.0 if lab.facts(candidate).get("diverged") else 1.0)


@dataclass(frozen=True)
class TestBatch(Accuracy):
    """PGD as the released code runs it on a test batch of `size` pictures: half precision, loss averaged over the
    batch, last iterate.

    The mean over a batch of N is the per-picture loss divided by N, so that the size of the batch in memory does not
    matter; a test holds the two against each other. size 1: the same attack in single precision with a summed loss, at
    the model's own temperature.
    """

    size: int = 1

    def attacked(self, lab: Lab, victim: ZeroShot, x: Tensor, y: Tensor, rows: list[int]) -> Tensor:
        a, released = self.attack, self.attack.kind == "released"
        temperature = "one" if released else "model"
        seen = classifier(lab, self.tower.clip, victim.visual, self.data.spec, self.tower.norm, temperature)
        return pgd(
            seen,
            x,
            y,
            Threat("linf", a.eps),
            steps=a.steps,
            step_size=a.step_size,
            rng=SampleRng(a.seed, rows, self.stream),
            keep="last",
            loss=lambda z, labels: F.cross_entropy(z, labels, reduction="none") / self.size,
            autocast="fp16" if released else None,
        )


@dataclass(frozen=True)
class UpdateCost(Measured):
    """What one update costs: processor seconds, or the megabytes that its backward pass keeps."""

    tuned: Tuned
    quantity: Literal["seconds", "megabytes"]
    steps: int

    def make(self, lab: Lab) -> Values:
        def train(steps: int, after: Callable[[int], None] | None) -> None:
            given = self.tuned.tuning.given  # at whichever rate
            few = {"steps": steps, "warmup": min(steps, given.warmup), "every": 0}
            short = replace(self.tuned, tuning=replace(self.tuned.tuning, given=replace(given, **few), choice=None))
            short.run(lab, lambda step, visual: after and after(step))

        if self.quantity == "seconds":
            return Values(step_seconds(train, self.steps, lab.device), "s")
        return Values(activation_megabytes(train, lab.device), "MB")


def number(
    c: Config,
    kind: str,
    method: str,
    seed: int | None = None,
    attack: str = "",
    set: str = "",
    step: int | None = None,
    point: float | str | None = None,
) -> Measured | None:
    """The step behind a number, from its tags; None: there is none."""
    if kind == "choice":
        return CandidateScore(choice(c, method), c.choosing.multiples.index(point), "share", chosen=attack == "taken")
    if attack in ("auto", "pgd_paired") and method not in (CLIP, *chosen(c)):
        return None
    tuned = None if method == CLIP else methods(c, seed)[method]
    if kind == "cost":
        return UpdateCost(tuned, point, c.sweeps.cost_steps)
    first = step is None or step == 0 or (tuned is not None and step == tuned.tuning.given.steps)
    tower = Tower(base(c), None if step == 0 else tuned, "" if first else f"step{step}")
    n = {"curve": c.sweeps.curve_n, "test_batch": c.sweeps.test_batch_n, "gate": 256}.get(kind, c.data.n)
    n = c.attack.auto_n if attack in ("auto", "pgd_paired") else n
    data = Pictures(set_names(c)[set], "test", min(n, c.data.n) if n and c.data.n else n or c.data.n)
    if kind == "test_batch":
        return TestBatch(tower, replace(data, n=n), adversary(c, attack), size=point or 1)
    checks = Checks(Pictures(c.data.seen, "test", c.attack.sanity_n), adversary(c, "pgd"))
    return Accuracy(
        tower,
        data,
        adversary(c, attack),
        checks if kind == "accuracy" and attack != "clean" else None,
        "gate" if kind == "gate" else "evaluation",
    )


def adversary(c: Config, name: str) -> Adversary:
    """An attack by the name that tables give it."""
    a, kind = c.attack, name.split("_")[0]
    if kind == "clean":
        return Adversary("clean", batch=a.batch)
    if kind == "auto":
        budget = {"stages": a.auto_stages, "targets": a.auto_targets, "queries": a.auto_queries}
        return Adversary("auto", a.eps, a.auto_steps, **budget, seed=a.seed, batch=a.batch)
    multiple = float(name[5:]) if name.startswith("pgd_x") else 1.0
    steps = {"pgd_long": a.long_steps, "pgd_strong": a.strong_steps}.get(name, a.steps)
    size = 2.5 / a.strong_steps if name == "pgd_strong" else a.ratio
    return Adversary(
        kind,
        a.eps * multiple,
        steps,
        size * a.eps * multiple,
        a.kappa if kind == "cw" else 0.0,
        seed=a.seed,
        batch=a.batch,
    )


def describe(
    c: Config, kind: str, method: str, attack: str = "", set: str = "", point: float | str | None = None, **_: object
) -> dict:
    """Tags by which claims and tables select beside the name: the role of a set, ε, the place of a batch size among
    those measured."""
    more: dict = {"seed": c.seeds[0]} if method == CLIP else {}
    if method in READ:
        more |= dict(zip(("objective", "reading"), READ[method], strict=True))
    if kind in ("cost", "choice"):
        more["set"] = "none"
    if set:
        spec = set_names(c)[set]
        role = "seen" if spec == c.data.seen else "zero_shot" if spec in c.data.zero_shot else "holdout"
        more["role"] = (
            "seen" if role == "zero_shot" and method != CLIP and methods(c)[method].data.spec == spec else role
        )
    if attack and kind != "choice":
        multiple = float(attack[5:]) if attack.startswith("pgd_x") else 1.0
        more |= {"eps": 0.0 if attack == "clean" else multiple * c.attack.eps, "multiple": multiple}
    if kind == "test_batch":
        more["order"] = c.sweeps.test_batches.index(point) if point else -1
    return more
