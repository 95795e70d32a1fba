"""Purification as steps: diffusion models, defences in front of a victim, pictures as they come in, and what they look like behind a defence.

A defence is a dataclass of settings with `open(lab)`, which returns what `shared.attacks.adaptive.Defence` describes: (x, rng) -> x, pictures
(N, 3, H, W) in [0, 1] before and after, with the noise of each picture from its own stream. Its fields are its identity, so a defence of one's own is
one more such class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from shared.diffusion import Denoiser, Purifier, Sampler, open_denoiser
from shared.diffusion.weights import CONFIGS, denoiser_facts, read_denoiser
from shared.experiment.leaves import Pictures, Weights
from shared.experiment.step import Kept, Lab, Tensors, Trained, Values, free
from shared.experiment.store import slug
from shared.metrics.perceptual import psnr, ssim
from shared.models import preprocess
from shared.rng import SampleRng
from shared.training.denoising import DenoisingConfig, train_denoiser

STREAM = "purify"  # of the defences' own noise, by seed and picture
Opened = Callable[[Tensor, SampleRng], Tensor]


class Defence(Protocol):
    """See the module docstring."""

    def open(self, lab: Lab) -> Opened: ...


# ---- diffusion models --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Denoising(Trained):
    """A denoiser of a configuration of `shared.diffusion.weights.CONFIGS`, trained on the pictures of one set."""

    config: str
    data: Pictures
    training: DenoisingConfig
    seed: int
    weight = 2.0

    @property
    def name(self) -> str:
        return slug("denoiser", self.config, self.data.spec, f"seed{self.seed}")

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        photographs = self.data.spec.startswith(("folder:", "named:"))  # drawn pictures and digits have a left and a right
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

    def open(self, lab: Lab) -> Denoiser:
        """The denoiser, opened once."""

        def make() -> Denoiser:
            if isinstance(self.weights, Weights):
                return open_denoiser(self.weights.spec).to(lab.device)
            lab.weights(self.weights)  # refuses what is missing or damaged
            return read_denoiser(lab.path(self.weights)).to(lab.device)

        return lab.once(self, make)


# ---- defences ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transform:
    """A transformation without a network (`shared.models.preprocess`) by its kind; value: its one setting, where it has one."""

    kind: Literal["identity", "jpeg", "bits", "tv", "resize_pad", "blur", "resize"] = "identity"
    value: float = 0.0

    def open(self, lab: Lab) -> Opened:
        """The transformation."""
        makers: dict[str, Callable[[], Opened]] = {
            "identity": preprocess.Identity,
            "jpeg": lambda: preprocess.JPEG(int(self.value)),
            "bits": lambda: preprocess.BitDepth(int(self.value)),
            "tv": lambda: preprocess.TotalVariation(self.value),
            "resize_pad": lambda: preprocess.ResizePad(1 + self.value),
            "blur": lambda: preprocess.GaussianBlur(self.value),
            "resize": lambda: preprocess.ResizeOnly(int(self.value)),
        }
        return makers[self.kind]()


@dataclass(frozen=True)
class NoiseAlone:
    """The noise of the forward process up to time t, and no denoising."""

    diffusion: Diffusion
    t: int

    def open(self, lab: Lab) -> Opened:
        """The defence."""
        return preprocess.NoiseOnly(self.diffusion.open(lab).schedule, self.t)


@dataclass(frozen=True)
class Purification:
    """Noising to time t and the reverse process of a sampler; `Purifier` in shared/diffusion/purifier.py."""

    diffusion: Diffusion
    t: int
    sampler: Literal["ddim", "ddpm"]
    sampler_steps: int
    eta: float
    recompute: bool = free(False)

    def open(self, lab: Lab) -> Purifier:
        """The purifier."""
        sampler = Sampler(self.sampler, self.sampler_steps, self.eta)
        return Purifier(self.diffusion.open(lab), self.t, sampler, self.recompute)


def through(defence: Opened, x: Tensor, rows: list[int], seed: int, batch: int) -> Tensor:
    """x (N, 3, H, W) behind a defence, without gradient. rows: the pictures' indices, whose noise is a function of (seed, index)."""
    rng = SampleRng(seed, rows, STREAM)
    with torch.no_grad():
        return torch.cat([defence(x[at.to(x.device)], rng.subset(at)) for at in torch.arange(len(x)).split(batch)])


# ---- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """The pictures that a measurement looks at: the first n of a choice (0: all), as they are or attacked.

    attacked: a step that leaves `x_adv`, attacked pictures of the whole choice in its order.
    """

    data: Pictures
    attacked: Kept | None = None
    n: int = 0

    def rows(self, lab: Lab) -> list[int]:
        """Their indices."""
        return self.data.rows(lab)[: self.n or None]

    def clean(self, lab: Lab) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) in [0, 1] as it is, and y (N,)."""
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


def likeness(measure: str, x: Tensor, clean: Tensor) -> Values:
    """PSNR (dB) or SSIM of pictures against the clean ones, one value per picture. measure: "psnr" or "ssim"."""
    if measure == "psnr":
        return Values(psnr(x, clean), "dB")
    return Values(ssim(x, clean), "index")


def as_bytes(x: Tensor) -> np.ndarray:
    """Pictures in [0, 1] as uint8, for figures."""
    return (x.clamp(0, 1) * 255).round().byte().cpu().numpy()
