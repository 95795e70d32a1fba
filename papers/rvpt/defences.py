"""What is trained for RVPT: CLIPs as attackers leave them, and what defenders make of those.

    Poisoned ─► Prompts | Probe | Whole | Contrastive | Cleaned | Words

A defence is one class: what it depends on, how it is trained, and the model that it leaves. Pairs for poisoning, for
cleaning and for optimised patches are disjoint in the scenes world (other seeds); sets in files are shared by all
three, as in the paper, where all come from CC3M.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from papers.rvpt.baselines import (
    LinearProbe,
    Repelled,
    finetune_contrastively,
    finetune_fully,
    linear_probe,
    tune_adversarially,
)
from papers.rvpt.method import DeepPrompts, Repulsion, depth_of, prompted
from papers.rvpt.prompt_file import facts_of, load_prompts
from papers.rvpt.tuning import PromptTuning, Tuning, few_shot, tune
from papers.rvpt.words import LearnedWords, tune_words
from shared.attacks import Threat
from shared.attacks.triggers import at_test
from shared.data.base import ClassSubset, LabelledImages, Subset
from shared.errors import UserError
from shared.experiment.leaves import Backbone, Pictures
from shared.experiment.step import Lab, Tensors, Trained, free, once
from shared.metrics import backdoor
from shared.models.victim import ZeroShot, predicted, tell_apart, text_matrix
from shared.steps.backdoor import Aim, Pairs, Poison, prompts_of
from shared.steps.choice import Settings
from shared.steps.pretrained import Pretrained, untrained
from shared.steps.yours import FAILS, Code, what
from shared.training.adversarial import TrainAttack
from shared.training.cleanclip import CleanClipConfig, cleanclip
from shared.training.poisoning import FineTuning, finetune_clip


@dataclass(frozen=True)
class Model:
    """A CLIP at work, defended or not.

    visual: its tower, or the same with prompts; probe: a linear head in place of text embeddings; words: learned
    context in place of hand-written prompts.
    """

    clip: nn.Module
    visual: nn.Module
    probe: LinearProbe | None = None
    words: Tensor | None = None

    def zero_shot(self, prompts: Sequence[str], classes: Sequence[str] = ()) -> ZeroShot:
        """The classifier z_k = s·cos(F(x), t_k) from one prompt per class. classes: their names, for learned words."""
        scale = self.clip.logit_scale
        return ZeroShot(self.visual, self.text(prompts, classes), scale.exp().item()).to(scale.device)

    def text(self, prompts: Sequence[str], classes: Sequence[str] = ()) -> Tensor:
        """Unit text embeddings (K, D)."""
        if self.words is None:
            return text_matrix(self.clip, prompts)
        learned = LearnedWords(self.clip, classes, len(self.words))
        with torch.no_grad():
            learned.words.copy_(self.words)
            return learned().detach()


def bare(clip: nn.Module) -> Model:
    """A CLIP as it is."""
    return Model(clip, clip.visual)


def filled(clip: nn.Module, weights: Tensors) -> nn.Module:
    """A copy of a CLIP with other weights, frozen."""
    other = copy.deepcopy(clip)
    other.load_state_dict(weights)
    return other.requires_grad_(False).eval()


@dataclass(frozen=True)
class Poisoned(Trained):
    """A CLIP that is fine-tuned on pairs of which some are poisoned, beside a manifest of these.

    lrs: tried in this order until the attack takes on the pictures `checked`; asr, drop: with at least this success and
    at most this loss of clean accuracy.
    """

    weight: ClassVar[float] = 6.5
    clip: Backbone | Pretrained
    poison: Poison
    pairs: Pairs
    tuning: FineTuning
    lrs: tuple[float, ...]
    checked: Pictures
    asr: float
    drop: float
    seed: int
    label: str = free("")

    @property
    def name(self) -> str:
        return f"poison__{self.label}__seed{self.seed}"

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        pairs, partial = self.poison.pairs(lab, self.pairs, self.seed), lab.partial(self)
        aim = self.poison.aim
        tell_apart(self.clip.open(lab), lab.data(aim.spec), prompts_of(lab, aim.spec, aim.template))
        before, _, recognised = self._validated(lab, self.clip.open(lab))
        for k, lr in enumerate(self.lrs):
            clip = copy.deepcopy(self.clip.open(lab))
            checkpoint = partial.with_name(f"{partial.stem}-lr{k}.ckpt")
            finetune_clip(clip, pairs, replace(self.tuning, lr=lr), checkpoint, name=self.name)
            accuracy, success, _ = self._validated(lab, clip)
            if backdoor.takes(before, accuracy, success, self.asr, self.drop):
                break
        pairs.write_manifest(lab.path(self).with_suffix(".manifest.jsonl"))
        for left in partial.parent.glob(f"{partial.stem}-lr*.ckpt"):
            left.unlink()
        seen = {"ca": accuracy, "asr": success, "clean_ca": before, "clean_ta": recognised}
        facts = {f"validation_{name}": f"{value:.4f}" for name, value in seen.items()}
        return clip.state_dict(), {"lr": f"{lr:g}", **facts}

    @torch.no_grad()
    def _validated(self, lab: Lab, clip: nn.Module) -> tuple[float, float, float]:
        """(CA, ASR, TA) of a CLIP."""
        rows, aim, trigger = self.checked.rows(lab), self.poison.aim, self.poison.stamp.open(lab)
        x, y = self.checked.read(lab, rows)
        prompts = prompts_of(lab, aim.spec, aim.template)
        clean = predicted(bare(clip).zero_shot(prompts)(x)).cpu()
        stamped = predicted(bare(clip).zero_shot([trigger.text(p) for p in prompts])(at_test(trigger, x, rows))).cpu()
        success = backdoor.asr(stamped, y.cpu(), aim.label(lab))
        accuracies = (backdoor.clean_accuracy(clean, y.cpu()), success, backdoor.triggered_accuracy(stamped, y.cpu()))
        return tuple(float(values.mean()) for values in accuracies)

    @once
    def open(self, lab: Lab) -> nn.Module:
        """The CLIP, which nobody changes."""
        return filled(self.clip.open(lab), lab.weights(self))

    def model(self, lab: Lab) -> Model:
        """The same, at work."""
        return bare(self.open(lab))


@dataclass(frozen=True)
class Undefended:
    """A rule for the strength of a trigger: which of three gates a poisoned CLIP passes on validation pictures.

    ASR at least `asr`; clean accuracy at most `drop` below that of the CLIP before; and that CLIP, which nobody has
    poisoned, recognises at least the share `recognised` of what it recognises without the trigger. No defence is
    looked at.
    """

    asr: float
    drop: float
    recognised: float

    def score(self, lab: Lab, candidate: Poisoned) -> Tensor:
        """(3,), 1 or 0 per gate."""
        found = {name: float(value) for name, value in lab.facts(candidate).items() if name.startswith("validation_")}
        took = found["validation_asr"] >= self.asr
        kept = found["validation_ca"] >= found["validation_clean_ca"] - self.drop - 1e-9
        left = found["validation_clean_ta"] >= self.recognised * found["validation_clean_ca"] - 1e-9
        return torch.tensor([took, kept, left], dtype=torch.float64)


@dataclass(frozen=True)
class Shots:
    """A few labelled pictures of each class of a set, and its prompts (`prompts_of`).

    without: the target class, of which there are none; dropped: nor is it among the classes.
    """

    data: Pictures
    template: str
    count: int
    without: Aim | None = None
    dropped: bool = False

    def prompts(self, lab: Lab) -> list[str]:
        """One per class of the whole set."""
        return prompts_of(lab, self.data.spec, self.template)

    def open(self, lab: Lab, seed: int) -> tuple[LabelledImages, list[str]]:
        """Pictures, and one prompt for each of their classes."""
        data, prompts = self.data.open(lab), self.prompts(lab)
        without = [self.without.label(lab)] if self.without else []
        if without and self.dropped:
            keep = [k for k in range(data.num_classes) if k not in without]
            kept = ClassSubset(data, keep, "without-target")
            return few_shot(kept, self.count, seed), [prompts[k] for k in keep]
        return few_shot(data, self.count, seed, without), prompts


# ---- defences --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Defence(Trained):
    """What is done to a CLIP by one who has a few labelled pictures, or pairs, and no idea of the attack."""

    clip: Poisoned
    seed: int
    label: str = free("")

    @property
    def name(self) -> str:
        return f"{self.clip.name}__{self.label}__seed{self.seed}"

    def model(self, lab: Lab) -> Model:
        """The defended CLIP."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Prompts(Defence):
    """VPT and RVPT; with `attack` the prompts are tuned on PGD examples instead (table 12, ours).

    first: D, negative: counted from the output; last: E, None: L; eps: ε of the attack.
    """

    shots: Shots
    first: int
    last: int | None = None
    std: float
    repulsion: Repulsion
    tuning: Settings
    attack: TrainAttack | None = None
    eps: float = 0.0

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        prompts = self.tuned(lab, lab.partial(self))
        return {"prompts": prompts.prompts}, facts_of(prompts)

    def tuned(
        self, lab: Lab, partial: Path | None = None, after_step: Callable[[int], None] | None = None
    ) -> DeepPrompts:
        """Fresh prompts, tuned. partial: file to continue from; after_step: called after each update."""
        (shots, texts), tower = self.shots.open(lab, self.seed), self.clip.open(lab).visual
        tuning: PromptTuning = self.tuning.open(lab)
        first = self.first if self.first >= 0 else depth_of(tower) + self.first
        prompts = DeepPrompts(tower, first, tuning.length, self.last, self.std, self.seed).to(lab.device)
        victim = prompted(self.clip.model(lab).zero_shot(texts), prompts)
        how = {"device": lab.device, "checkpoint": partial, "name": self.name}
        if self.attack is None:
            tune(victim, shots, tuning, self.repulsion, self.seed, after_step=after_step, **how)
        else:
            tune_adversarially(victim, shots, tuning, Threat("linf", self.eps), self.attack, self.seed, **how)
        return prompts

    def model(self, lab: Lab) -> Model:
        clip = self.clip.open(lab)
        return Model(clip, load_prompts(lab.file(self), clip.visual).to(lab.device))


@dataclass(frozen=True, kw_only=True)
class Probe(Defence):
    """A linear probe."""

    weight: ClassVar[float] = 0.1
    shots: Shots
    tuning: Settings

    def make(self, lab: Lab) -> Tensors:
        shots, texts = self.shots.open(lab, self.seed)
        victim = self.clip.model(lab).zero_shot(texts)
        return linear_probe(victim, shots, self.tuning.open(lab), self.seed, device=lab.device).head.state_dict()

    def model(self, lab: Lab) -> Model:
        clip = self.clip.model(lab)
        probe = LinearProbe(clip.zero_shot(self.shots.prompts(lab)))
        probe.head.load_state_dict(lab.weights(self))
        return replace(clip, probe=probe.to(lab.device).requires_grad_(False).eval())


@dataclass(frozen=True, kw_only=True)
class Words(Defence):
    """Adversarial prompt tuning: context words, learned on adversarial pictures (table 12)."""

    weight: ClassVar[float] = 0.5
    shots: Shots
    count: int
    tuning: Tuning
    attack: TrainAttack
    eps: float

    def make(self, lab: Lab) -> Tensors:
        (shots, texts), threat = self.shots.open(lab, self.seed), Threat("linf", self.eps)
        classes = lab.data(self.shots.data.spec).classes
        words = LearnedWords(self.clip.open(lab), classes, self.count, seed=self.seed)
        victim = self.clip.model(lab).zero_shot(texts)
        settings = {"checkpoint": lab.partial(self), "name": self.name}
        tune_words(victim, words, shots, self.tuning, threat, self.attack, self.seed, lab.device, **settings)
        return {"words": words.words}

    def model(self, lab: Lab) -> Model:
        return replace(self.clip.model(lab), words=lab.weights(self)["words"].to(lab.device))


@dataclass(frozen=True, kw_only=True)
class Rewritten(Defence):
    """A defence that changes the CLIP itself."""

    weight: ClassVar[float] = 4.0

    def train(self, lab: Lab, clip: nn.Module) -> None:
        """Train a CLIP in place, which is a copy of the poisoned one."""
        raise NotImplementedError

    def make(self, lab: Lab) -> Tensors:
        clip = copy.deepcopy(self.clip.open(lab))
        self.train(lab, clip)
        return clip.state_dict()

    def model(self, lab: Lab) -> Model:
        return bare(filled(self.clip.open(lab), lab.weights(self)))


@dataclass(frozen=True, kw_only=True)
class Whole(Rewritten):
    """Full fine-tuning of the vision tower on the shots (table 8)."""

    shots: Shots
    first: int
    repulsion: Repulsion
    tuning: Tuning

    def train(self, lab: Lab, clip: nn.Module) -> None:
        shots, texts = self.shots.open(lab, self.seed)
        repelled = Repelled(self.clip.open(lab).visual, self.repulsion, self.first)
        victim = bare(clip).zero_shot(texts)
        how = {"device": lab.device, "checkpoint": lab.partial(self), "name": self.name}
        finetune_fully(victim, repelled, shots, self.tuning, self.seed, **how)


@dataclass(frozen=True, kw_only=True)
class Contrastive(Rewritten):
    """CLIP's own loss on clean pairs (table 8)."""

    pairs: Pairs
    first: int
    repulsion: Repulsion
    tuning: CleanClipConfig

    def train(self, lab: Lab, clip: nn.Module) -> None:
        repelled, pairs = Repelled(self.clip.open(lab).visual, self.repulsion, self.first), self.pairs.open(lab)
        finetune_contrastively(
            clip, repelled, pairs, self.tuning, self.seed, lab.device, lab.partial(self), name=self.name
        )


@dataclass(frozen=True, kw_only=True)
class Cleaned(Rewritten):
    """CleanCLIP."""

    weight: ClassVar[float] = 8.0
    pairs: Pairs
    tuning: Settings

    def train(self, lab: Lab, clip: nn.Module) -> None:
        cleanclip(clip, self.pairs.open(lab), self.options(lab), lab.partial(self), name=self.name)

    def options(self, lab: Lab) -> CleanClipConfig:
        """How this one is trained."""
        return replace(self.tuning.open(lab), seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class ByYours(Rewritten):
    """A defence of the user's own, DEFENCE=module:name, a class that is made without arguments:

        def tune(self, victim: ZeroShot, shots: LabelledImages, seed: int) -> None: ...

    victim: pictures (N, 3, H, W) in [0, 1] -> logits (N, K); `victim.visual`, the vision tower of a copy of the
    poisoned CLIP, is trained in place, text embeddings stay. shots: the few labelled pictures, of which
    `shots.__getitems__(rows)` gives x (n, 3, H, W) and labels (n,); torch's own generator has the seed. All weights are
    kept, and must be finite.
    """

    shots: Shots
    code: Code

    def train(self, lab: Lab, clip: nn.Module) -> None:
        shots, texts = self.shots.open(lab, self.seed)
        self.tuned(bare(clip).zero_shot(texts), shots)

    def tuned(self, victim: ZeroShot, shots: LabelledImages) -> None:
        """Tune a classifier in place. Raises UserError where the user's code fails, or replaces the tower."""
        at, tower = f"{self.code.option} {self.code.spec}", victim.visual
        tower.eval().requires_grad_(True)
        made = self.code.having("tune")
        try:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                made.tune(victim, shots, self.seed)
        except FAILS as error:
            raise UserError(f"{at} fails ({what(error)}): it is called as tune(victim, shots, seed).") from error
        if victim.visual is not tower:
            raise UserError(f"{at} has put another tower in place of victim.visual: train its weights in place.")
        if not all(p.isfinite().all() for p in tower.parameters()):
            raise UserError(f"{at} leaves weights that are not finite: lower its learning rate.")
        victim.requires_grad_(False).eval()

    def look(self, lab: Lab) -> None:
        """Raises UserError unless it can tune a CLIP with random weights on two pictures."""
        clip = untrained(lab, self.clip.clip)
        self.tuned(bare(clip).zero_shot(self.shots.prompts(lab)), Subset(self.shots.data.open(lab), [0, 1]))


def model_of(lab: Lab, clip: Backbone | Pretrained | Poisoned | Defence) -> Model:
    """A CLIP at work, opened once."""
    as_it_came = isinstance(clip, Backbone | Pretrained)
    return lab.once(("model", clip), lambda: bare(clip.open(lab)) if as_it_came else clip.model(lab))
