"""Train the encoder and decoder of ISSBA (`shared.attacks.triggers.steganography`): those of the scenes world for the
zoo, or on photographs.

    accelerate launch -m shared.training.steganography --out shared/models/zoo/scenes-stega.safetensors

    L = E BCE(D(T(clip(x + ρ_k·r/rms(r)))), b) + β·E max(0, cos(r, E(x̃, b)) − ½),   r = E(x, b),   x̃ another picture

b: uniform on {0, 1}^bits. T: the picture as it will be read, rounded to bytes (by noise of that size) or, for a share
of the pictures, written as JPEG, through which gradients pass straight. ρ_k falls geometrically from `start` to the
encoder's own ρ over the first `ramp` of the updates; no term is for the picture, ρ is its bound. The second term makes
the trigger specific to the sample: without it the encoder learns one pattern per message (measured: cosine 0.98). b and
the noise of a picture are functions of (seed, its index, the epoch). About 10 minutes on one core. Interrupted, it
continues from its checkpoint (`--work`). `--card-only` measures again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attacks.triggers.steganography import Steganographer, bits_of, read_steganographer, save_steganographer
from shared.errors import UserError, run_main
from shared.lifeline import tie_to_launcher
from shared.models.preprocess import JPEG
from shared.options import (
    Batch,
    Bounded,
    Count,
    Part,
    Positive,
    Range,
    Share,
    Weight,
    Whole,
    free,
    from_command_line,
)
from shared.processes import accelerator as open_accelerator
from shared.rng import SampleRng
from shared.training.contrastive import batch_indices, fit_adamw
from shared.training.denoising import SCENES, _pictures, unseen
from shared.training.loop import OneProcess, check_batch
from shared.training.zoo import VALIDATION, Making, Training, make

QUALITY = 75


@dataclass(frozen=True)
class StegaConfig(Bounded):
    """How long and how fast to train."""

    steps: Count = 2000
    """Updates."""
    batch: Batch = 64
    """Pictures per update, over all processes together."""
    lr: Positive = 2e-3
    """Peak learning rate of AdamW."""
    warmup: Whole = 50
    """Updates of linear warm-up; a cosine to 0 follows."""
    weight_decay: Weight = 0.01
    """Of matrices and kernels."""
    clip_norm: Positive = 1.0
    """Bound of the gradient norm."""
    start: Part = 0.2
    """ρ of the first update."""
    ramp: Share = 0.5
    """Share of the updates over which ρ falls to its last value."""
    jpeg: Share = 0.5
    """Share of the pictures that pass a JPEG codec."""
    apart: Weight = 0.2
    """β."""
    every: Whole = free(100)
    """Updates between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Args(Making):
    """Train a steganographic encoder and its decoder."""

    out: Path = Path("shared/models/zoo/scenes-stega.safetensors")
    """Where the weights go; the card goes beside them."""
    data: str = SCENES
    """scenes: those the small CLIPs are trained on, no picture twice; else a data set of shared/data/catalogue.py, e.g.
    folder:all."""
    data_root: str | None = None
    """DATA_ROOT, for sets that are read from files."""
    size: Annotated[int, Range(8, 4096)] = 32
    """Pixels a side that the networks work at; a multiple of 4."""
    train: StegaConfig = StegaConfig()


def strength_at(step: int, config: StegaConfig, last: float) -> float:
    """ρ of update `step` (from 0): start^{1 − q}·last^q, q = min(1, step/(ramp·steps))."""
    progress = min(1.0, step / max(1.0, config.ramp * config.steps))
    return config.start ** (1 - progress) * last**progress


def random_steganographer(size: int = 32, seed: int = 0, **config) -> Steganographer:
    """Random weights, a function of the arguments; torch's global generator is left as it was."""
    if size < 8 or size % 4:
        raise UserError(f"the size is {size}: use a multiple of 4 from 8 pixels on.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Steganographer(size, **config)


def as_read(x: Tensor, rng: SampleRng, share: float) -> Tensor:
    """T: pictures (N, 3, H, W), a `share` of them through JPEG, the others with noise uniform on ±1/510; drawn per
    sample."""
    noisy = x + rng.child("noise").uniform(x.shape[1:], -1 / 510, 1 / 510, device=x.device)
    coded = rng.child("jpeg").uniform((), device=x.device) < share
    rows = coded.nonzero().flatten()
    return noisy.index_copy(0, rows, JPEG(QUALITY)(x[rows])) if len(rows) else noisy


def fit_steganographer(
    network: Steganographer,
    pictures,
    config: StegaConfig,
    seed: int,
    accelerator=None,
    checkpoint: Path | None = None,
    name: str = "steganography",
) -> float:
    """Train `network` in place; returns the last loss and leaves it frozen.

    pictures: a data set whose `__getitems__(indices)` gives pictures (N, 3, H, W) in [0, 1] and something else.
    accelerator: every process takes its share of each batch; None: this process alone. Raises UserError if the batch is
    no multiple of the number of processes or larger than the set.
    """
    accelerator = accelerator or OneProcess(next(network.parameters()).device)
    rank, world = accelerator.process_index, accelerator.num_processes
    check_batch(name, config.batch, len(pictures), world, "pictures")
    network.requires_grad_(True).train()
    model = accelerator.prepare(network)

    def step_fn(step: int) -> Tensor:
        indices = batch_indices(len(pictures), config.batch, step, seed)[rank::world]
        x = pictures.__getitems__(indices)[0].to(accelerator.device)
        rng = SampleRng(seed, indices, f"steganography/epoch{step // (len(pictures) // config.batch)}")
        bits = rng.child("bits").integers(2, (network.bits,), device=accelerator.device).float()
        logits, alike = model(
            x, bits, strength_at(step, config, network.strength), lambda hidden: as_read(hidden, rng, config.jpeg)
        )
        return F.binary_cross_entropy_with_logits(logits, bits) + config.apart * (alike - 0.5).clamp(min=0).mean()

    return fit_adamw(network, step_fn, config, checkpoint, accelerator, name)


def main() -> None:
    args, accelerator = from_command_line(Args), open_accelerator()

    def begin() -> Training:
        network, data = random_steganographer(args.size, args.seed).to(accelerator.device), _pictures(args, args.size)

        def fit(checkpoint: Path) -> tuple[float, nn.Module]:
            return fit_steganographer(network, data, args.train, args.seed, accelerator, checkpoint), network

        return Training(f"steganographer {args.size}", data.version, [network.config], fit, save_steganographer)

    def card(model: str, device: torch.device) -> dict:
        return measured(args.out, device, args.data, args.data_root)

    facts = {"kind": "steganography", "origin": "re-trained, not StegaStamp"}
    make(args, "steganography", begin, card, accelerator, **facts)


def measured(path: Path, device="cpu", spec: str = SCENES, root: str | None = None) -> dict:
    """The measured part of a card, on validation pictures of the scenes or test pictures of another set."""
    network = read_steganographer(path).to(device)
    name, _, x = unseen(spec, root, network.size, VALIDATION)
    x = x.to(device)
    return {"n": len(x), "set": name, "network": network.config, **quality(network, x)}


@torch.no_grad()
def quality(network: Steganographer, x: Tensor) -> dict:
    """How well messages are read and hidden in pictures x (N, 3, H, W), N ≥ 2.

    bit_accuracy: share of the bits of random messages read rightly, from bytes and after JPEG; psnr: in dB, mean and
    least; alike: the mean cosine of the residuals of two pictures with one message, 1 if the trigger does not depend on
    the picture.
    """
    bits = SampleRng(0, range(len(x)), "card").integers(2, (network.bits,), device=x.device).float()
    hidden = network.encode(x, bits)
    seen = {"bytes": hidden.mul(255).round().div(255), f"jpeg{QUALITY}": JPEG(QUALITY)(hidden)}
    psnr = -10 * (hidden - x).square().mean((1, 2, 3)).log10()
    r = F.normalize(
        network.residual(x, bits_of("Stega!!"[: network.bits // 8], network.bits).to(x).expand(len(x), -1)).flatten(1),
        dim=1,
    )
    cosines = r @ r.T
    return {
        "bit_accuracy": {
            name: ((network.decode(z) > 0) == bits.bool()).double().mean().item() for name, z in seen.items()
        },
        "psnr": {"mean": psnr.mean().item(), "least": psnr.min().item()},
        "alike": ((cosines.sum() - cosines.diagonal().sum()) / (len(x) * (len(x) - 1))).item(),
    }


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
