"""Purification as steps: diffusion models, defences in front of a victim, pictures as they come in, attackers who know
the defence or do not.

A defence is a dataclass of settings with `open(lab)`, which returns what `shared.attacks.adaptive.Defence` describes:
(x, rng) -> x, pictures (N, 3, H, W) in [0, 1] before and after, with the noise of each picture from its own stream. Its
fields are its identity, so a defence of one's own is one more such class.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared.attacks import Threat
from shared.attacks.adaptive import AdaptiveAttack, Extra, majority, predict, resubmit, summaries
from shared.attacks.sanity_random import check_adaptive
from shared.diffusion import Denoiser, Purifier, Sampler, Schedule, open_denoiser
from shared.diffusion.weights import CONFIGS, denoiser_facts, random_denoiser, read_denoiser
from shared.errors import UserError
from shared.experiment.leaves import Pictures, Weights
from shared.experiment.step import Kept, Lab, Measured, Tensors, Trained, Values, free, once
from shared.experiment.store import slug
from shared.metrics.perceptual import psnr, ssim
from shared.models import preprocess
from shared.options import Worded
from shared.repeat import joined
from shared.rng import SampleRng
from shared.steps.choice import Choice, settled
from shared.training.denoising import DenoisingConfig, train_denoiser

STREAM = "purify"  # of the defences' own noise, by seed and picture
Opened = Callable[[Tensor, SampleRng], Tensor]


class Defence(Protocol):
    """See the module docstring."""

    def open(self, lab: Lab) -> Opened: ...


class Victim(Protocol):
    """What is attacked and asked."""

    def open(self, lab: Lab) -> nn.Module: ...


class Examples(Protocol):
    """A choice of pictures, a leaf; `shared.experiment.leaves.Pictures` is one. `read` gives the pictures (N, 3, H, W)
    in [0, 1] at some indices and what is known about them: labels (N,), or anything else that can be sliced."""

    spec: str

    def open(self, lab: Lab) -> object: ...

    def rows(self, lab: Lab) -> list[int]: ...

    def read(self, lab: Lab, rows: Sequence[int]) -> tuple[Tensor, object]: ...


# ---- diffusion models --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denoising(Trained):
    """A denoiser of a configuration of `shared.diffusion.weights.CONFIGS`, trained on the pictures of one set."""

    config: str
    data: Pictures
    training: DenoisingConfig
    seed: int
    weight = 2.0
    shared = True

    @property
    def name(self) -> str:
        return slug("denoiser", self.config, self.data.spec, f"seed{self.seed}")

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        photographs = self.data.spec.startswith(
            ("folder:", "named:")
        )  # drawn pictures and digits have a left and a right
        denoiser, _ = train_denoiser(
            self.training,
            self.data.open(lab),
            self.config,
            self.seed,
            lab.device,
            lab.partial(self),
            photographs,
            name=self.name,
        )
        return denoiser.unet.state_dict(), denoiser_facts(CONFIGS[self.config], denoiser.schedule)


@dataclass(frozen=True)
class Diffusion:
    """A diffusion model: one that is trained here, or by what its option says (`shared.diffusion.open_denoiser`)."""

    weights: Weights | Denoising

    @once
    def open(self, lab: Lab) -> Denoiser:
        """The denoiser, opened once."""
        if isinstance(self.weights, Weights):
            return open_denoiser(self.weights.spec).to(lab.device)
        return read_denoiser(lab.file(self.weights)).to(lab.device)

    def check_times(self, lab: Lab, times: Mapping[str, Sequence[int]]) -> None:
        """Raises UserError for a time beyond the model's schedule. times: by the option that gives them."""
        trained = isinstance(self.weights, Denoising)  # of which the schedule is known before
        steps = (random_denoiser(self.weights.config) if trained else self.open(lab)).schedule.steps
        for option, asked in times.items():
            if max(asked, default=0) > steps:
                raise UserError(
                    f"{option} is {max(asked)}, and the diffusion model has {steps} steps: use at most that."
                )


# ---- defences ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transform(Worded):
    """A transformation without a network (`shared.models.preprocess`) by its kind; value: its one setting, where it has
    one."""

    kind: Literal["identity", "jpeg", "bits", "tv", "resize_pad", "blur", "resize"] = "identity"
    value: float = 0.0

    def open(self, lab: Lab) -> Opened:
        """The transformation."""
        makers: dict[str, Callable[[], Opened]] = {
            "identity": preprocess.Identity,
            "jpeg": lambda: preprocess.JPEG(self._whole),
            "bits": lambda: preprocess.BitDepth(self._whole),
            "tv": lambda: preprocess.TotalVariation(self.value),
            "resize_pad": lambda: preprocess.ResizePad(1 + self.value),
            "blur": lambda: preprocess.GaussianBlur(self.value),
            "resize": lambda: preprocess.ResizeOnly(self._whole),
        }
        return makers[self.kind]()

    @property
    def _whole(self) -> int:
        if not float(self.value).is_integer():
            raise UserError(f"{self.kind} takes a whole number, not {self.value:g}.")
        return int(self.value)


@dataclass(frozen=True)
class NoiseAlone:
    """The noise of the forward process up to time t (or what a choice says), and no denoising."""

    diffusion: Diffusion
    t: int | Choice

    def open(self, lab: Lab) -> Opened:
        """The defence."""
        return preprocess.NoiseOnly(self.diffusion.open(lab).schedule, settled(lab, self.t))


@dataclass(frozen=True)
class SameNoise:
    """The time of a diffusion model at which ᾱ is nearest to that of improved-diffusion's CIFAR-10 model at time t of
    its 4,000 (cosine)."""

    diffusion: Diffusion
    t: int

    def settle(self, lab: Lab) -> int:
        """That time; t itself for a model with that schedule."""
        schedule = self.diffusion.open(lab).schedule
        wanted = Schedule(steps=4000, cosine=True).alpha_bar(self.t)
        return int((schedule.alpha_bar(torch.arange(schedule.steps + 1)) - wanted).abs().argmin())


@dataclass(frozen=True)
class Purification(Worded):
    """Noising to time t and the reverse process of a sampler; `Purifier` in shared/diffusion/purifier.py."""

    diffusion: Diffusion
    t: int | Choice | SameNoise
    sampler: Literal["ddim", "ddpm", "dpm++", "one_step"]
    sampler_steps: int
    eta: float
    recompute: bool = free(False)

    def open(self, lab: Lab) -> Purifier:
        """The purifier."""
        sampler = Sampler(self.sampler, self.sampler_steps, self.eta)
        return Purifier(self.diffusion.open(lab), settled(lab, self.t), sampler, self.recompute)


def through(defence: Opened, x: Tensor, rows: list[int], seed: int, batch: int) -> Tensor:
    """x (N, 3, H, W) behind a defence, without gradient. rows: the pictures' indices, whose noise is a function of
    (seed, index)."""
    rng = SampleRng(seed, rows, STREAM)
    with torch.no_grad():
        return joined(lambda at: defence(x[at.to(x.device)], rng.subset(at)), torch.arange(len(x)).split(batch))


# ---- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """The pictures that a measurement looks at: the first n of a choice (0: all), as they are or attacked.

    attacked: a step that leaves `x_adv`, attacked pictures of the whole choice in its order.
    """

    data: Examples
    attacked: Kept | None = None
    n: int = 0

    def rows(self, lab: Lab) -> list[int]:
        """Their indices."""
        return self.data.rows(lab)[: self.n or None]

    def clean(self, lab: Lab) -> tuple[Tensor, object]:
        """x (N, 3, H, W) in [0, 1] as it is, and what is known about it, labels (N,) for instance."""
        x, y = lab.once(("clean", self.data), lambda: self.data.read(lab, self.data.rows(lab)))
        return x[: self.n or None], y[: self.n or None]

    def pictures(self, lab: Lab) -> Tensor:
        """x (N, 3, H, W) as it comes in."""
        if self.attacked is None:
            return self.clean(lab)[0]
        x_adv = lab.once(("attacked", self.attacked), lambda: lab.weights(self.attacked)["x_adv"].to(lab.device))
        return x_adv[: self.n or None]

    def behind(self, lab: Lab, defence: Defence, seed: int, batch: int) -> Tensor:
        """The same behind a defence; see `through`."""
        return through(defence.open(lab), self.pictures(lab), self.rows(lab), seed, batch)

    def skipped(self, lab: Lab) -> tuple[str, ...]:
        """Files of the set that could not be read."""
        return tuple(self.data.open(lab).skipped)


@dataclass(frozen=True)
class Quality(Measured):
    """PSNR (dB) or SSIM between the picture behind the defence and the clean one."""

    seen: Seen
    defence: Defence
    seed: int
    measure: Literal["psnr", "ssim"]
    batch: int = free(64)

    @property
    def group(self) -> tuple:
        """Both measures look at one purification."""
        return self.seen, self.defence, self.seed

    def make(self, lab: Lab) -> Values:
        x = lab.once(("behind", self.group), lambda: self.seen.behind(lab, self.defence, self.seed, self.batch))
        clean, skipped = self.seen.clean(lab)[0], self.seen.skipped(lab)
        if self.measure == "psnr":
            return Values(psnr(x, clean), "dB", skipped=skipped)
        return Values(ssim(x, clean), "index", skipped=skipped)


def as_bytes(x: Tensor) -> np.ndarray:
    """Pictures in [0, 1] as uint8, for figures."""
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()


# ---- attackers who do not know the defence -----------------------------------------------------------------------------


class Attack(Protocol):
    """A frozen dataclass of settings that attacks a victim, and checks itself on it. name, weight: as of a step."""

    seed: int
    name: str
    weight: float

    def __call__(self, victim: nn.Module, x: Tensor, y: object, rng: SampleRng) -> Tensor: ...

    def check(self, victim: nn.Module, x: Tensor, y: object, rng: SampleRng) -> dict: ...


@dataclass(frozen=True)
class Attacked(Kept):
    """The pictures of a choice after an attack on a victim, x_adv (N, 3, H, W). stream: of the attack's randomness."""

    victim: Victim
    data: Examples
    attack: Attack
    stream: str = "evaluation"
    row: str = free("")

    @property
    def name(self) -> str:
        return slug("attacked", self.row, self.data.spec, self.attack.name)

    @property
    def weight(self) -> float:
        """Of the attack."""
        return self.attack.weight

    def make(self, lab: Lab) -> Tensors:
        x, y = Seen(self.data).clean(lab)
        return {
            "x_adv": self.attack(
                self.victim.open(lab), x, y, SampleRng(self.attack.seed, self.data.rows(lab), self.stream)
            )
        }


@dataclass(frozen=True)
class Checked(Kept):
    """The sanity checks of an attack on a victim, on a few pictures; it leaves their record, and no tensor."""

    victim: Victim
    seen: Seen
    attack: Attack
    row: str = free("")

    @property
    def name(self) -> str:
        return slug("checked", self.row, self.seen.data.spec, self.attack.name)

    @property
    def weight(self) -> float:
        """Ten attacks on fewer pictures."""
        return self.attack.weight

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        rng = SampleRng(self.attack.seed, self.seen.rows(lab), "sanity")
        return {}, {"sanity": json.dumps(self.attack.check(self.victim.open(lab), *self.seen.clean(lab), rng))}


@dataclass(frozen=True)
class Behind(Measured):
    """What a victim makes of pictures behind a defence; a paper says what that is.

    checks: of the attack on the pictures. batch: pictures at a time through the defence; answers: through the victim.
    """

    victim: Victim
    seen: Seen
    defence: Defence
    seed: int
    checks: Checked | None = None
    batch: int = free(64)
    answers: int = free(64)

    @property
    def group(self) -> "Behind":
        """Nothing but models is shared with others."""
        return self

    def pictures(self, lab: Lab) -> Tensor:
        """What comes out of the defence."""
        return self.seen.behind(lab, self.defence, self.seed, self.batch)

    def beside(self, lab: Lab) -> dict[str, object]:
        """What stands beside the values: the attack's sanity checks, and files that could not be read."""
        sanity = None if self.checks is None else json.loads(lab.facts(self.checks)["sanity"])
        return {"sanity": sanity, "skipped": self.seen.skipped(lab)}


# ---- attackers who know the defence ------------------------------------------------------------------------------------


def usual(steps: int, eot: int) -> dict[str, AdaptiveAttack]:
    """Attacks through a defence by PGD with step 2.5·ε/steps, `eot` draws behind each gradient.

    transfer          the undefended victim is attacked
    bpda, bpda_eot    identity for the defence's derivative, one draw, or the mean of the logits over some
    exact             through the defence, loss averaged over draws of its noise
    """
    pgd = {"optimiser": "pgd", "steps": steps}
    return {
        "transfer": AdaptiveAttack("none", **pgd),
        "bpda": AdaptiveAttack("bpda", **pgd),
        "bpda_eot": AdaptiveAttack("bpda", draws=eot, average="logits", **pgd),
        "exact": AdaptiveAttack("exact", draws=eot, **pgd),
    }


@dataclass(frozen=True)
class Known(Kept):
    """Pictures attacked by someone who knows the defence, and what the victim says of them behind it, again and again.

    It leaves x_adv (N, 3, H, W) and labels (N, draws), and the sanity checks of the exact attack on `checked` pictures.
    against: of `usual`, "control" (nobody attacks: what repeated purification costs by itself), or of a subclass.
    """

    victim: Victim
    seen: Seen
    defence: Defence
    against: str
    norm: Literal["linf", "l2"]
    eps: float
    steps: int
    eot: int
    draws: int
    checked: int
    attack_seed: int
    seed: int
    batch: int = free(64)
    row: str = free("")

    @property
    def name(self) -> str:
        return slug("known", self.row, self.against, self.norm, f"seed{self.seed}")

    @property
    def weight(self) -> float:
        """Passes through the diffusion model: of the attack, and of judging."""
        return self.draws + (5.0 if self.against == "exact" else 1.0) * self.steps * self.eot

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        x, y = self.seen.clean(lab)
        x_adv, sanity = (x, None) if self.against == "control" else self.attacked(lab, x, y)
        rng = SampleRng(self.seed, self.seen.rows(lab), "judging")
        labels = resubmit(predict(self.victim.open(lab)), self.defence.open(lab), x_adv, rng, self.draws, self.batch)
        return {"x_adv": x_adv, "labels": labels}, {"sanity": json.dumps(sanity)}

    def attacked(self, lab: Lab, x: Tensor, y: Tensor) -> tuple[Tensor, dict | None]:
        """The pictures, and the record of the checks of the exact attack."""
        return self.by_gradient(lab, x, y, usual(self.steps, self.eot)[self.against])

    def streams(self, lab: Lab) -> tuple[SampleRng, SampleRng]:
        """Of the attack, and of the defence's noise behind the attack's gradients."""
        rows = self.seen.rows(lab)
        return SampleRng(self.attack_seed, rows, "adaptive"), SampleRng(self.seed, rows, "known")

    def by_gradient(
        self, lab: Lab, x: Tensor, y: Tensor, attack: AdaptiveAttack, extra: Extra | None = None
    ) -> tuple[Tensor, dict | None]:
        """As `attacked`, by some attack through the defence. extra: see `Defended`."""
        victim, defence, threat = self.victim.open(lab), self.defence.open(lab), Threat(self.norm, self.eps)
        rng, noise = self.streams(lab)
        batch = max(1, self.batch // self.eot)
        x_adv = attack(victim, defence, x, y, threat, rng=rng, defence_rng=noise, batch=batch, extra=extra)
        if not self.checked:
            return x_adv, None
        options = {"rng": rng, "defence_rng": noise, "n": 4, "images": self.checked, "batch": batch}
        return x_adv, check_adaptive(victim, defence, x, y, threat, attack, **options)


@dataclass(frozen=True)
class KnownAccuracy(Measured):
    """Whether the victim is right under an attacker who knows the defence, by one way of judging repeated
    purifications."""

    known: Known
    judged: Literal["one", "mean", "worst", "majority"]

    def make(self, lab: Lab) -> Values:
        labels, y = lab.weights(self.known)["labels"], self.known.seen.clean(lab)[1].cpu()
        right = majority(labels, y) if self.judged == "majority" else summaries(labels == y[:, None])[self.judged]
        sanity, skipped = json.loads(lab.facts(self.known)["sanity"]), self.known.seen.skipped(lab)
        return Values(right.double().numpy(), "share", sanity=sanity, skipped=skipped)
