"""What is computed for newpaper: pictures under attack, and what the model says of them behind a defence.

`number` says what the tags of a number mean.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from papers.newpaper.config import Config
from shared.attacks import Threat, check_attack, pgd
from shared.experiment.leaves import Backbone, Pictures
from shared.experiment.step import Lab, Measured, Values
from shared.models.victim import ZeroShot, class_matrix, labels_of
from shared.rng import SampleRng
from shared.steps.purification import Attacked, Behind, Checked, Defence, Seen, Transform

CHECKED = 32  # pictures of the attack's sanity checks


@dataclass(frozen=True)
class Classifier:
    """CLIP on the classes of a set."""

    clip: Backbone
    spec: str

    def open(self, lab: Lab) -> ZeroShot:
        """The classifier, opened once."""

        def make() -> ZeroShot:
            clip = self.clip.open(lab)
            text = class_matrix(clip, lab.data(self.spec))
            return ZeroShot(clip.visual, text, clip.logit_scale.exp().item()).to(lab.device).eval()

        return lab.once(self, make)


@dataclass(frozen=True)
class PGD:
    """PGD in an ℓ∞ ball, steps of 2.5·ε/steps, as `shared.steps.purification.Attack` describes attacks."""

    eps: float
    steps: int
    seed: int
    name = "pgd"

    @property
    def weight(self) -> float:
        """Gradient steps per picture."""
        return float(self.steps)

    def __call__(self, victim: nn.Module, x: Tensor, y: Tensor, rng: SampleRng) -> Tensor:
        """x_adv (N, 3, H, W)."""
        return self._attack(victim, x, y, Threat("linf", self.eps), steps=self.steps, rng=rng)

    @staticmethod
    def _attack(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int, rng: SampleRng) -> Tensor:
        return pgd(victim, x, y, threat, steps=steps, step_size=2.5 * threat.eps / steps, rng=rng)

    def check(self, victim: nn.Module, x: Tensor, y: Tensor, rng: SampleRng) -> dict:
        """The record of the sanity checks of this attack on a victim."""
        how = {"rng": rng, "steps": self.steps, "images": len(x)}
        return check_attack(victim, x, y, Threat("linf", self.eps), self._attack, **how)


@dataclass(frozen=True)
class Accuracy(Behind):
    """Whether the classifier is right about a picture behind a defence."""

    def make(self, lab: Lab) -> Values:
        said = labels_of(self.victim.open(lab), self.pictures(lab), self.answers)
        right = said.eq(self.seen.clean(lab)[1]).double().cpu().numpy()
        return Values(right, "share", **self.beside(lab))


def defence_of(c: Config, method: str) -> Defence:
    """What stands in front of the model in a row."""
    return {"none": Transform(), "blur": Transform("blur", 0.8), "newpaper": c.method}[method]


def number(c: Config, kind: str, method: str, attack: str, seed: int) -> Measured | None:
    """The step behind a number, from its tags."""
    victim = Classifier(Backbone(c.model, c.weights, "--weights"), c.data.spec)
    data, pgd_ = Pictures(c.data.spec, "test", c.data.n), PGD(c.attack.eps, c.attack.steps, c.attack.seed)
    attacked = Attacked(victim, data, pgd_) if attack == "pgd" else None
    checks = Checked(victim, Seen(data, n=CHECKED), pgd_) if attack == "pgd" else None
    return Accuracy(victim, Seen(data, attacked), defence_of(c, method), seed, checks)
