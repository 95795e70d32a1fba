"""ISSBA (Li et al. 2021): a trigger of another shape in every picture, a message hidden by an encoder that a decoder
was trained with.

    x' = clip(x + ρ·r/rms(r)),   r = E(x, b),   b̂ = D(x')

E and D are small networks of our own, re-trained (`shared.training.steganography`); the originals are StegaStamp's
(Tancik et al. 2020). The energy of the residual is fixed instead of punished: whatever E says, PSNR ≥ −20 log₁₀ ρ, 30.5
dB at ρ = 0.03. Networks see pictures of one size; others are resized on the way in, and the residual on the way out.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attacks.triggers.base import Trigger, byte_cast
from shared.errors import UserError
from shared.files import sha256_file
from shared.models import zoo
from shared.models.clip import read_metadata, read_weights, save_tensors
from shared.options import Part
from shared.repeat import joined
from shared.rng import SampleRng


def bits_of(secret: str, count: int) -> Tensor:
    """The first `count` bits of a text in UTF-8, most significant first, zeros behind: (count,) float 0 or 1. UserError
    if the text is longer."""
    data = secret.encode()
    if 8 * len(data) > count:
        raise UserError(
            f"the secret {secret!r} has {8 * len(data)} bits and the encoder hides {count}: use a shorter one."
        )
    bits = [byte >> (7 - k) & 1 for byte in data for k in range(8)]
    return torch.tensor(bits + [0] * (count - len(bits)), dtype=torch.float32)


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, padding=1), nn.ReLU())


class Steganographer(nn.Module):
    """An encoder and its decoder. size: pixels a side they work at, a multiple of 4; bits: of a message; width:
    channels; strength: ρ."""

    def __init__(self, size: int = 32, bits: int = 56, width: int = 48, strength: float = 0.03):
        super().__init__()
        self.size, self.bits, self.width, self.strength = size, bits, width, strength
        self.message = nn.Linear(bits, 12 * (size // 2) ** 2)
        self.encoder = nn.Sequential(
            _conv(24, width), _conv(width, width), _conv(width, width), nn.Conv2d(width, 12, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            _conv(12, width),
            _conv(width, width),
            _conv(width, width, 2),
            nn.Flatten(),
            nn.Linear(width * (size // 4) ** 2, bits),
        )
        self.to(memory_format=torch.channels_last)  # a fifth faster on a CPU

    @property
    def config(self) -> dict:
        return {"size": self.size, "bits": self.bits, "width": self.width, "strength": self.strength}

    def residual(self, x: Tensor, bits: Tensor) -> Tensor:
        """r/rms(r) (N, 3, H, W) for pictures x in [0, 1] and messages (N, bits) of 0 and 1."""
        message = self.message(2 * bits - 1).view(len(x), 12, self.size // 2, self.size // 2)
        blocks = F.pixel_unshuffle(2 * _resized(x, self.size, self.size) - 1, 2)
        r = _resized(F.pixel_shuffle(self.encoder(torch.cat((blocks, message), 1)) + message, 2), *x.shape[2:])
        return r / r.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-8)

    def encode(self, x: Tensor, bits: Tensor, strength: float | None = None) -> Tensor:
        """x' (N, 3, H, W) in [0, 1]; strength: ρ, None for its own."""
        return (x + (self.strength if strength is None else strength) * self.residual(x, bits)).clamp(0, 1)

    def decode(self, x: Tensor) -> Tensor:
        """Logits (N, bits): positive where a 1 is read."""
        return self.decoder(F.pixel_unshuffle(2 * _resized(x, self.size, self.size) - 1, 2))

    def forward(
        self, x: Tensor, bits: Tensor, strength: float, through: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What is read of messages in pictures that passed `through` (x' -> x''), as logits (N, bits); and for the
        first ⌈N/4⌉ messages (for all it would double the time) the cosine of their residuals in their own picture and
        in the one before it in the batch."""
        few = -(-len(x) // 4)
        r = self.residual(torch.cat((x, x.roll(1, 0)[:few])), torch.cat((bits, bits[:few])))
        alike = F.cosine_similarity(r[:few].flatten(1), r[len(x) :].flatten(1))
        return self.decode(through((x + strength * r[: len(x)]).clamp(0, 1))), alike


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    same = tuple(x.shape[2:]) == (height, width)
    return x if same else F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def save_steganographer(network: Steganographer, path: str | Path) -> None:
    """Write the weights as .safetensors, atomically, with the configuration."""
    save_tensors(network.state_dict(), path, {"steganography": json.dumps(network.config, sort_keys=True)})


def read_steganographer(path: str | Path) -> Steganographer:
    """What `save_steganographer` wrote, frozen. Raises UserError for another file."""
    tensors, metadata = read_weights(path), read_metadata(path)
    try:
        with torch.device("meta"):  # no time for random weights, no use of the global generator
            network = Steganographer(**json.loads(metadata["steganography"]))
        network.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the file {path} is not a steganographic encoder that this project wrote ({type(error).__name__}): get it "
            "again, or train it with `make zoo`."
        ) from error
    return network.requires_grad_(False).eval()


def _path(source: str) -> Path:
    kind, _, name = source.partition(":")
    path = zoo.weights(name) if kind == "zoo" else Path(source)
    if not path.is_file():
        raise UserError(
            f"issba: there is no encoder at {path}: give zoo:NAME, or the path of a file that "
            "shared.training.steganography wrote."
        )
    return path


@functools.lru_cache(maxsize=4)
def _open(source: str, sha256: str) -> Steganographer:
    # in double precision the sums of a batch come out the same, once they are single again, whatever else is in it
    return read_steganographer(_path(source)).double()


@dataclass(frozen=True)
class ISSBA(Trigger):
    """`secret` hidden in every picture; cleanclip: cast to bytes."""

    name: ClassVar[str] = "issba"
    secret: str = "Stega!!"
    source: str = "zoo:scenes-stega"
    """The encoder: zoo:NAME, or the path of a file that `shared.training.steganography` wrote."""
    sha256: str | None = None
    """Of that file; None: whatever it is. It is part of the trigger's description, so that a manifest is never read
    with another encoder."""
    strength: Part | None = None
    """ρ; None: what the encoder was trained with. PSNR ≥ −20 log₁₀ ρ: 0.03 gives 30.5 dB, 0.1 gives 20 dB, which can be
    seen."""

    def __post_init__(self):
        super().__post_init__()
        found = sha256_file(_path(self.source))
        self._refuse(
            self.sha256 not in (None, found),
            f"the encoder {self.source} is not the one that was described (wrong sha256): restore it.",
        )
        object.__setattr__(self, "sha256", found)

    def stamp(self, x: Tensor, rng: SampleRng) -> Tensor:
        network = _open(self.source, self.sha256).to(x.device)
        bits = bits_of(self.secret, network.bits).to(x.device).double()

        def encoded(part: Tensor) -> Tensor:
            return network.encode(part.double(), bits.expand(len(part), -1), self.strength)

        hidden = joined(encoded, x.split(64)).to(x.dtype)
        return byte_cast(hidden) if self.preset == "cleanclip" else hidden
