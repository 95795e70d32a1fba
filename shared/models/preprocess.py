"""Input transformations used as defences: x -> x', both (N, 3, H, W) in [0, 1]; called as `defence(x, rng)` with one
stream of `rng` per image.

Identity                      what everything is compared with
JPEG, BitDepth, MedianBlur    compression and squeezing;   TotalVariation   denoising without a model
GaussianBlur, ResizeOnly      what a blur, or the way to a diffusion model's size and back, does alone
ResizePad                     random size and place (Xie et al. 2018)
NoiseOnly                     what the noise of a diffusion purifier does without the reverse process

None of them knows the victim or the attack. Those without a derivative (JPEG, BitDepth, TotalVariation) hand the
gradient straight through, as BPDA does (Athalye et al. 2018): an attack through them sees forward values that are exact
and the identity's gradient. The others have their own. `random` says whether two calls with different streams may
differ: repeated evaluations of the others are wasted.
"""

import io
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from shared.options import Bits, Blur, Bounded, Count, Positive, Quality, Range
from shared.rng import SampleRng


class NoiseSchedule(Protocol):
    """x_t = α(t) x + σ(t) ε (see shared.diffusion)."""

    def alpha(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `source` (same shape)."""
    return value.detach() + (source - source.detach())


def demand(holds: bool, sentence: str) -> None:
    """Raise UserError(sentence) unless `holds`."""
    if not holds:
        raise UserError(sentence)


@dataclass(frozen=True)
class Identity:
    """x' = x."""

    name: ClassVar[str] = "none"
    random: ClassVar[bool] = False

    def __call__(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        return x


@dataclass(frozen=True)
class JPEG(Bounded):
    """Through the real codec, 8 bits, chroma halved (4:2:0), and back; gradient straight through. Dziugaite et al.
    2016, Das et al. 2017.

    quality: 1 (coarse) … 95 (fine), libjpeg's scale.
    """

    quality: Quality = 75
    random: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"JPEG {self.quality}"

    def __call__(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        pictures = x.detach().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        coded = [self._through(picture) for picture in pictures]
        back = torch.stack(coded) if coded else x.new_zeros(x.shape)
        return straight_through(back.to(x).div(255), x)

    def _through(self, picture) -> Tensor:
        import numpy as np
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=self.quality, subsampling="4:2:0")
        return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


@dataclass(frozen=True)
class BitDepth(Bounded):
    """x' = round(x·(2^b − 1)) / (2^b − 1), gradient straight through. Xu et al. 2018 (feature squeezing)."""

    bits: Bits = 4
    random: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"{self.bits} bits"

    def __call__(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        levels = 2**self.bits - 1
        return straight_through((x.detach() * levels).round() / levels, x)


@dataclass(frozen=True)
class MedianBlur(Bounded):
    """The median of the size × size window around each value, edges mirrored, per channel; its own (sub)gradient. Xu et
    al. 2018."""

    size: Count = 3
    random: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        demand(self.size % 2 == 1, f"the window of a median blur is {self.size}: use an odd number.")

    @property
    def name(self) -> str:
        return f"median {self.size}"

    def __call__(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        r = self.size // 2
        demand(
            min(x.shape[-2:]) > r,
            f"a median window of {self.size} needs pictures of more than {r} pixels a side: use a smaller one.",
        )
        windows = F.pad(x, (r, r, r, r), mode="reflect").unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(4).median(dim=4).values


@dataclass(frozen=True)
class GaussianBlur(Bounded):
    """Convolution with a Gaussian of standard deviation `sigma` pixels, cut at 3σ, edges mirrored."""

    sigma: Blur = 1.0
    random: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"blur {self.sigma:g}"

    def __call__(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        r = math.ceil(3 * self.sigma)
        demand(
            min(x.shape[-2:]) > r,
            f"a blur of {self.sigma:g} needs pictures of more than {r} pixels a side: use a smaller one.",
        )
        kernel = torch.exp(-torch.arange(-r, r + 1, dtype=torch.float64).square() / (2 * self.sigma**2))
        kernel = (kernel / kernel.sum()).to(x)
        channels = x.shape[1]
        x = F.pad(x, (r, r, r, r), mode="reflect")
        x = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels).clamp(0, 1)


@dataclass(frozen=True)
class ResizeOnly(Bounded):
    """To `size` × `size` and back to the picture's own size: what the bridge to a diffusion model of that size does
    alone.

    mode, antialias: of the interpolation; the defaults are those of `shared.diffusion.Purifier`. Pictures of that size
    come back as they are.
    """

    size: Count
    mode: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    random: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"resize {self.size}"

    def __call__(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        size = tuple(x.shape[-2:])
        if size == (self.size, self.size):
            return x
        small = F.interpolate(x, (self.size, self.size), mode=self.mode, align_corners=False, antialias=self.antialias)
        return F.interpolate(small, size, mode=self.mode, align_corners=False, antialias=self.antialias).clamp(0, 1)


@dataclass(frozen=True)
class ResizePad(Bounded):
    """Random resize, then zero padding at a random place (Xie et al. 2018: side 299 -> 299 … 330, in a canvas of 331).

    For pictures of side S the canvas is L = max(round(ratio·S), S + 1); the picture is scaled to a side r drawn from
    {S, …, L − 1}, its corner from {0, …, L − r}² (height and width separately where they differ), and the canvas is
    brought back to S, since defences here keep the size. Both scalings are one bilinear sampling (the paper: nearest
    neighbour, and a victim fed with the canvas). Draws per sample.
    """

    ratio: Annotated[float, Range(1, 10)] = 331 / 299
    random: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "resize and pad"

    def __call__(self, x: Tensor, rng: SampleRng) -> Tensor:
        demand(len(rng) == len(x), f"rng is for {len(rng)} samples, the batch has {len(x)}: use rng.subset.")
        if not len(x):
            return x
        u = rng.uniform((3,)).double()  # exact products: u < 1 never rounds up to the next side or corner
        scale, shift = zip(
            *(self._axis(size, u[:, 0], u[:, 1 + axis]) for axis, size in enumerate(x.shape[-2:])), strict=True
        )
        theta = u.new_zeros(len(x), 2, 3)  # rows: x (width), y (height)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, 0, 2], theta[:, 1, 2] = scale[1], scale[0], shift[1], shift[0]
        grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _axis(self, size: int, of_side: Tensor, of_corner: Tensor) -> tuple[Tensor, Tensor]:
        """Where the points c ∈ [−1, 1] of the canvas lie in the picture, as scale·c + shift."""
        canvas = max(round(self.ratio * size), size + 1)
        side = size + (of_side * (canvas - size)).floor()
        corner = (of_corner * (canvas - side + 1)).floor()
        return canvas / side, (canvas - 2 * corner) / side - 1


@dataclass(frozen=True)
class NoiseOnly:
    """x_t/α(t) = x + (σ(t)/α(t)) ε on the scale [−1, 1], cut to the pixel range: a diffusion purifier without its
    reverse process.

    schedule: of `shared.diffusion`; t: steps of it.
    """

    schedule: NoiseSchedule
    t: int
    random: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"noise {self.t}"

    def __call__(self, x: Tensor, rng: SampleRng) -> Tensor:
        demand(len(rng) == len(x), f"rng is for {len(rng)} samples, the batch has {len(x)}: use rng.subset.")
        t = torch.full((1,), self.t, dtype=torch.int64, device=x.device)
        ratio = (self.schedule.sigma(t) / self.schedule.alpha(t)).to(x)
        return (x + ratio / 2 * rng.normal(x.shape[1:], device=x.device).to(x)).clamp(
            0, 1
        )  # ½: [−1, 1] is twice as wide as [0, 1]


@dataclass(frozen=True)
class TotalVariation(Bounded):
    """argmin_z ‖z − x‖²/2 + weight·TV(z), channel by channel, by `iterations` steps of Chambolle 2004 (scikit-image,
    without its early stop, which leaves the objective 1 to 2 % above the minimum); gradient straight through. The
    larger the weight, the more steps are needed.

    Guo et al. 2018 minimise the same on a random half of the pixels; here all pixels count, so nothing is random.
    """

    weight: Positive = 0.05
    iterations: Count = 100
    random: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"TV {self.weight:g}"

    def __call__(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        from skimage.restoration import denoise_tv_chambolle

        pictures = x.detach().cpu().numpy()
        how = {"weight": self.weight, "eps": 0.0, "max_num_iter": self.iterations, "channel_axis": 0}
        smooth = [denoise_tv_chambolle(p, **how) for p in pictures]
        back = torch.stack([torch.from_numpy(s) for s in smooth]) if smooth else x.new_zeros(x.shape)
        return straight_through(back.to(x).clamp(0, 1), x)
