"""What a model says and what is counted from it, adversarial pictures, and an attacker who knows the defence."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from papers.rvpt.defences import Defence, Poisoned, model_of
from shared.attacks import Threat, check_attack, pgd
from shared.attacks.triggers import at_test
from shared.attacks.triggers.optimised import PatchConfig
from shared.experiment.leaves import Backbone, Pictures
from shared.experiment.step import Kept, Lab, Measured, Tensors, Values, free, once
from shared.metrics import backdoor
from shared.models.victim import Pixels, labels_of, tell_apart
from shared.repeat import joined
from shared.rng import SampleRng
from shared.steps.backdoor import Aim, Pairs, Seen, Stamp, badclip, described, prompts_of
from shared.steps.pretrained import Pretrained

Clip = Backbone | Pretrained | Poisoned | Defence


@dataclass(frozen=True)
class Said:
    """The labels that a model gives to pictures: what several numbers are counted from, kept in memory.

    template: of the prompts (`prompts_of`), which have the text part of a trigger too.
    """

    clip: Clip
    seen: Seen
    template: str = ""
    batch: int = free(256)

    def classifier(self, lab: Lab) -> nn.Module:
        """Pixels -> logits over the classes of the set."""
        model, data = model_of(lab, self.clip), lab.data(self.seen.data.spec)
        if model.probe is not None:
            return model.probe
        prompts = prompts_of(lab, self.seen.data.spec, self.template)
        if model.words is None:
            tell_apart(model.clip, data, prompts)
        return model.zero_shot(self.seen.say(lab, prompts), data.classes)

    @once
    def labels(self, lab: Lab) -> np.ndarray:
        """(N,), one per picture."""
        return self.of(self.classifier(lab), self.seen.pictures(lab))

    def of(self, classifier: nn.Module, x: Tensor) -> np.ndarray:
        """The labels of other pictures."""
        return labels_of(classifier, x, self.batch).cpu().numpy()


@dataclass(frozen=True)
class HeldOut:
    """A rule for the settings of a defence: log p(y | x) on clean labelled validation pictures.

    That is all that a defender can see. No criterion of this kind that was tried finds the setting in which prompts
    remove a patch (see README), so what is chosen by it is shown beside the whole grid.
    """

    data: Pictures
    template: str = ""
    batch: int = free(256)

    def score(self, lab: Lab, candidate: Defence) -> Tensor:
        """(N,), one per picture."""
        seen = Seen(self.data)
        (x, y), classifier = seen.clean(lab), Said(candidate, seen, self.template).classifier(lab)
        with torch.no_grad():
            said = joined(lambda part: classifier(part).log_softmax(-1), x.split(self.batch))
        return said.gather(1, y[:, None].to(said.device))[:, 0]


@dataclass(frozen=True)
class Checks:
    """The checks of a backdoor, on a few pictures that a poisoned CLIP sees with its trigger.

    The trigger alone must not do it: the clean CLIP answers it less often than the poisoned one does. The backdoor must
    not be a bias: without the trigger the poisoned CLIP names the target for at most a tenth of the pictures of other
    classes. Draws are by index: a picture's trigger is the same in any batch.
    """

    said: Said
    clean: Backbone | Pretrained
    aim: Aim

    @once
    def record(self, lab: Lab) -> dict:
        """The outcome of each check, made once."""
        seen, label = self.said.seen, self.aim.label(lab)
        bare = replace(seen, stamp=None)

        def success(said: Said) -> float:
            return backdoor.asr(said.labels(lab), seen.truth(lab), label).mean()

        poisoned, clean = success(self.said), success(replace(self.said, clip=self.clean))
        untriggered = success(replace(self.said, seen=bare))
        alone = at_test(seen.stamp.open(lab), bare.pictures(lab)[3:4], seen.data.rows(lab)[3:4])
        return {
            "the trigger alone does not do it": {
                "passed": bool(clean < poisoned),
                "detail": f"clean CLIP {clean:.3f}, poisoned {poisoned:.3f}",
            },
            "nothing happens without the trigger": {
                "passed": bool(untriggered <= 0.1),
                "detail": f"target named {untriggered:.3f}",
            },
            "independent of the batch": {"passed": torch.equal(alone, seen.pictures(lab)[3:4]), "detail": ""},
        }


@dataclass(frozen=True)
class Score(Measured):
    """Accuracy on clean pictures (ca) and triggered ones (ta); success over those of other classes (asr) or all."""

    said: Said
    aim: Aim
    measure: Literal["ca", "asr", "asr_all", "ta"]
    checks: Checks | None = None

    def make(self, lab: Lab) -> Values:
        labels, truth = self.said.labels(lab), self.said.seen.truth(lab)
        values = {
            "ca": lambda: backdoor.clean_accuracy(labels, truth),
            "asr": lambda: backdoor.asr(labels, truth, self.aim.label(lab)),
            "asr_all": lambda: backdoor.asr_all(labels, self.aim.label(lab)),
            "ta": lambda: backdoor.triggered_accuracy(labels, truth),
        }[self.measure]()
        sanity = None if self.checks is None else self.checks.record(lab)
        return Values(values, "share", sanity=sanity, skipped=self.said.seen.skipped(lab))


# ---- attackers of another kind ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adversarial(Measured):
    """Whether the classifier is right about a picture under PGD on the cross-entropy (table 12).

    ε in ℓ∞, a random start, steps of 2.5·ε/steps; a picture is lost where any iterate is taken for another class.
    checked: pictures of the attack's own checks.
    """

    weight: ClassVar[float] = 15.0
    said: Said
    eps: float
    steps: int
    seed: int
    checked: int

    def make(self, lab: Lab) -> Values:
        seen, classifier, threat = self.said.seen, self.said.classifier(lab), Threat("linf", self.eps)
        (x, y), rows, few = seen.clean(lab), seen.data.rows(lab), self.checked
        x_adv = self._attack(classifier, x, y, threat, steps=self.steps, rng=SampleRng(self.seed, rows, "adversarial"))
        values = backdoor.clean_accuracy(self.said.of(classifier, x_adv), seen.truth(lab))
        rng = SampleRng(self.seed, rows[:few], "sanity")
        options = {"rng": rng, "steps": self.steps, "images": len(x[:few])}
        sanity = check_attack(classifier, x[:few], y[:few], threat, self._attack, **options)
        return Values(values, "share", sanity=sanity, skipped=seen.skipped(lab))

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int, rng: SampleRng) -> Tensor:
        size = 2.5 * threat.eps / steps

        def attacked(at: Tensor) -> Tensor:
            return pgd(model, x[at], y[at], threat, steps=steps, step_size=size, rng=rng.subset(at))

        return joined(attacked, torch.arange(len(x)).split(self.said.batch))


@dataclass(frozen=True)
class KnownPatch(Kept):
    """BadCLIP's patch, optimised through the very model that the user has, defence included, with the CLIP's own text.

    The attacker knows everything and can no longer change the weights. On a CLIP that nobody poisoned such a patch is
    an adversarial example and nothing else: the control. It is as large as the planted one where no side is given.
    """

    weight: ClassVar[float] = 60.0
    clip: Clip
    planted: Stamp
    aim: Aim
    pairs: Pairs
    options: PatchConfig
    seed: int
    label: str = free("")

    @property
    def name(self) -> str:
        return f"known_patch__{self.label}"

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        model, planted = model_of(lab, self.clip), self.planted.open(lab)
        options = self.options
        if options.patch is None:
            options = replace(options, patch=planted.pixels.shape[-1])
        settings = {"through": embedder(model.visual, lab.device), "seed": self.seed, "preset": planted.preset}
        return described(badclip(lab, model.clip, self.aim, self.pairs, options, **settings))


def embedder(visual: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pixels -> embeddings of a tower, prompted or not."""
    pixels = Pixels.of(visual).to(device)
    return lambda x: visual(pixels(x))


@dataclass(frozen=True)
class KnownScore(Score):
    """A score under a patch that was optimised by one who knows the defence; extra: the patch."""

    def make(self, lab: Lab) -> Values:
        return replace(super().make(lab), extra={"patch": self.said.seen.stamp.open(lab).pixels.numpy()})
