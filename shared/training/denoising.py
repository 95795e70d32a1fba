"""Train a denoiser: that of the scenes world for the zoo, or one on photographs.

    accelerate launch -m shared.training.denoising --out shared/models/zoo/scenes-ddpm.safetensors accelerate launch -m
    shared.training.denoising --data folder:all --data-root DATA_ROOT --model photos --out photos-ddpm.safetensors

    L = E ‖ε̂(α(t) x + σ(t) ε, t) − ε‖²     Ho et al. 2020, L_simple; the average is over pixels, pictures, t and ε ~ N(0, I)

About 20 minutes on 2 cores for the scenes. What is shipped is the running average of the weights. Purification stays at
t ≤ 500, so most times are drawn there (`early`); the rest keeps the network sane where noise is added until pictures
cannot be told apart. t and ε of a picture are functions of (seed, its index, the epoch); photographs are mirrored half
of the time, by the same rule. Interrupted, it continues from its checkpoint (`--work`). The card beside the weights
says how they were made and how well they denoise; `--card-only` measures again.
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.attacks import Threat, pgd
from shared.data.base import LabelledImages, subset
from shared.data.catalogue import Source, open_set
from shared.data.scene_sets import FINE_TUNING, ScenePairs, SceneSet
from shared.diffusion import Purifier, Sampler, Schedule, UNetDenoiser
from shared.diffusion.weights import CONFIGS, random_denoiser, read_denoiser, save_denoiser
from shared.errors import UserError, run_main
from shared.lifeline import tie_to_launcher
from shared.models.clip import create_clip
from shared.models.victim import ZeroShot, text_matrix
from shared.models.zoo import weights
from shared.options import Batch, Bounded, Count, Decay, Positive, Share, Weight, Whole, free, from_command_line
from shared.processes import accelerator as open_accelerator
from shared.rng import Device, SampleRng
from shared.training.contrastive import batch_indices, fit_adamw
from shared.training.loop import OneProcess, check_batch
from shared.training.zoo import VALIDATION, Making, Training, make

SCENES = "scenes"
EARLY = 500
PURIFIED_AT, SAMPLER = 100, Sampler("ddim", 5)  # of the card


@dataclass(frozen=True)
class DenoisingConfig(Bounded):
    """How long and how fast to train."""

    steps: Count = 2000
    """Updates."""
    batch: Batch = 64
    """Pictures per update, over all processes together."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW."""
    warmup: Whole = 150
    """Updates of linear warm-up; a cosine to 0 follows."""
    weight_decay: Weight = 0.01
    """Of matrices and kernels."""
    clip_norm: Positive = 1.0
    """Bound of the gradient norm."""
    average: Decay = 0.998
    """Decay of the running average of the weights, reached after a warm-up of its own."""
    early: Share = 0.8
    """Share of the times that lie in 1 … 500; the others lie in 501 … T. Uniform in either."""
    every: Whole = free(100)
    """Updates between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Args(Making):
    """Train a denoiser."""

    out: Path = Path("shared/models/zoo/scenes-ddpm.safetensors")
    """Where the weights go; the card goes beside them."""
    data: str = SCENES
    """scenes: those the small CLIPs are trained on, no picture twice; else a data set of shared/data/catalogue.py, e.g.
    folder:all."""
    data_root: str | None = None
    """DATA_ROOT, for sets that are read from files."""
    model: str = "scenes"
    """A configuration of shared/diffusion/weights.py (photos for photographs of 32×32 pixels)."""
    train: DenoisingConfig = DenoisingConfig()


class Averaged(nn.Module):
    """A network and the running average of its weights, w̄ ← d w̄ + (1 − d) w, as one module: both are in a
    checkpoint."""

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.network, self.average, self.decay = network, copy.deepcopy(network).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update `step` (from 1). d = min(decay, (1 + step)/(10 + step)), so that the first weights are soon
        forgotten."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), weight)


def _stream(seed: int, indices, epoch: int) -> SampleRng:
    """What is drawn for pictures when they are seen for the `epoch`-th time, from 0."""
    rng = SampleRng(seed, indices, "denoising")
    return rng.child(f"epoch{epoch}") if epoch else rng


def times_and_noise(
    seed: int, indices, shape, schedule: Schedule, early: float, epoch: int = 0, device: Device = None
) -> tuple[Tensor, Tensor]:
    """t (N,) in 1 … T, and ε (N, *shape) on the device, of the pictures `indices`."""
    rng = _stream(seed, indices, epoch)
    split = min(EARLY, schedule.steps // 2)
    is_early, u = rng.child("early").uniform(()) < early, rng.child("t").uniform(()).double()
    t = torch.where(is_early, (u * split).long() + 1, split + 1 + (u * (schedule.steps - split)).long())
    return t, rng.child("noise").normal(shape, device)


def mirrored(x: Tensor, seed: int, indices, epoch: int) -> Tensor:
    """Pictures x (N, 3, H, W), each mirrored (left to right) with probability 1/2."""
    flip = _stream(seed, indices, epoch).child("flip").integers(2).bool().to(x.device)
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def fit_denoiser(
    denoiser: UNetDenoiser,
    pictures,
    config: DenoisingConfig,
    seed: int,
    accelerator=None,
    checkpoint: Path | None = None,
    flip: bool = False,
    name: str = "denoising",
) -> tuple[UNetDenoiser, float]:
    """Train `denoiser` in place; returns it with averaged weights, frozen, and the last loss.

    pictures: a data set whose `__getitems__(indices)` gives pictures (N, 3, H, W) in [0, 1] and something else.
    accelerator: every process takes its share of each batch; None: this process alone, where the denoiser is. flip:
    mirror half of the pictures. Raises UserError if the batch is no multiple of the number of processes or larger than
    the set, or the pictures are not of the denoiser's size.
    """
    accelerator = accelerator or OneProcess(next(denoiser.parameters()).device)
    rank, world = accelerator.process_index, accelerator.num_processes
    check_batch(name, config.batch, len(pictures), world, "pictures")
    both = Averaged(denoiser.requires_grad_(True).train(), config.average)
    model = accelerator.prepare(denoiser)

    def step_fn(step: int) -> Tensor:
        indices = batch_indices(len(pictures), config.batch, step, seed)[rank::world]
        epoch = step // (len(pictures) // config.batch)
        x = pictures.__getitems__(indices)[0].to(accelerator.device)
        if x.shape[2:] != (denoiser.size, denoiser.size):
            raise UserError(
                f"{name}: the pictures are {x.shape[2]}×{x.shape[3]} pixels and the denoiser is for "
                f"{denoiser.size}×{denoiser.size}: give an image size, or choose another configuration."
            )
        x = 2 * (mirrored(x, seed, indices, epoch) if flip else x) - 1
        t, noise = times_and_noise(seed, indices, x.shape[1:], denoiser.schedule, config.early, epoch, x.device)
        noise = noise.to(x)
        return (model(denoiser.schedule.diffuse(x, t, noise), t).eps - noise).square().mean()

    loss = fit_adamw(denoiser, step_fn, config, checkpoint, accelerator, name, both.update, both)
    return both.average.eval(), loss


def train_denoiser(
    config: DenoisingConfig,
    data,
    model: str = "photos",
    seed: int = 0,
    device="cpu",
    checkpoint: Path | None = None,
    flip: bool = True,
    accelerator=None,
    name: str = "denoising",
) -> tuple[UNetDenoiser, float]:
    """A denoiser of the configuration `model` (of shared/diffusion/weights.py), trained from random weights: (it,
    frozen; the last loss).

    data: labelled images with batched access, of the configuration's size; the rest, and the errors, as in
    `fit_denoiser`.
    """
    denoiser = random_denoiser(model, seed).to(device if accelerator is None else accelerator.device)
    return fit_denoiser(denoiser, data, config, seed, accelerator, checkpoint, flip, name)


def main() -> None:
    args, accelerator = from_command_line(Args), open_accelerator()

    def begin() -> Training:
        if args.model not in CONFIGS:
            raise UserError(f"there is no denoiser configuration {args.model!r}: choose one of {', '.join(CONFIGS)}.")
        config = CONFIGS[args.model]
        data = _pictures(args, config["size"])

        def fit(checkpoint: Path) -> tuple[float, nn.Module]:
            how = {"checkpoint": checkpoint, "flip": _photographs(args.data), "accelerator": accelerator}
            average, loss = train_denoiser(args.train, data, args.model, args.seed, **how)
            return loss, average

        def save(average: nn.Module, out: Path) -> None:
            save_denoiser(average.unet, out, config, average.schedule)

        return Training(args.model, data.version, [config], fit, save)

    def card(model: str, device: torch.device) -> dict:
        return measured(args.out, device, args.data, args.data_root)

    make(args, "denoising", begin, card, accelerator, kind="denoiser")


def _photographs(spec: str) -> bool:
    """Whether pictures of the set may be mirrored: drawn ones have attributes (left, right) and digits a meaning that a
    mirror changes."""
    return spec.partition(":")[0] in ("folder", "named")


def _pictures(args: Args, size: int):
    n = args.train.steps * args.train.batch
    if args.data == SCENES:
        return ScenePairs(n, size, args.seed)
    return open_set(args.data, "train", Source(root=args.data_root, size=str(size)), n)


def unseen(spec: str, root: str | None, size: int, n: int) -> tuple[str, LabelledImages, Tensor]:
    """The pictures a card is measured on: a set's name, the set, and n of its pictures (n, 3, size, size)."""
    if spec == SCENES:
        data = SceneSet(FINE_TUNING, "validation", n, size)
        return FINE_TUNING, data, data.__getitems__(range(n))[0]
    data = open_set(spec, "test", Source(root=root, size=str(size)))
    return spec, data, data.__getitems__(subset(data, n, 0))[0]


@torch.no_grad()
def measured(path: Path, device="cpu", spec: str = SCENES, root: str | None = None) -> dict:
    """The measured part of a card: on validation pictures of the set to fine-tune on, or on test pictures of another
    set (then without a victim)."""
    denoiser = read_denoiser(path).to(device)
    name, data, x = unseen(spec, root, denoiser.size, VALIDATION)
    x = x.to(device)
    facts = {"n": len(x), "set": name, "denoising": {str(t): error_ratio(denoiser, x, t) for t in (50, 100, 200)}}
    return (
        {**facts, "purification": purified_accuracy(denoiser, data, VALIDATION, PURIFIED_AT)}
        if spec == SCENES
        else facts
    )


def error_ratio(denoiser, x: Tensor, t: int) -> float:
    """How many times smaller the squared error of x̂₀ is than that of the noised picture, ‖x_t/α − x‖²/‖x̂₀ − x‖²; x
    (N, 3, H, W) in [0, 1]."""
    x = 2 * x - 1
    noise = SampleRng(0, range(len(x)), f"card/{t}").normal(x.shape[1:]).to(x)
    x_t, times = denoiser.schedule.diffuse(x, t, noise), torch.full((len(x),), t)
    with torch.no_grad():
        return (
            (x_t / denoiser.schedule.alpha(t).to(x) - x).square().sum()
            / (denoiser.posterior_mean(x_t, times) - x).square().sum()
        ).item()


def purified_accuracy(
    denoiser, data, n: int, t: int, sampler: Sampler = SAMPLER, victim: str = "scenes-vit-s8"
) -> dict:
    """Accuracy of a zoo CLIP on the first n pictures of a set, and after purification from time t; clean, and on images
    attacked without it."""
    device = next(denoiser.parameters()).device
    clip = create_clip(victim, weights(victim)).to(device).requires_grad_(False)
    model = ZeroShot(clip.visual, text_matrix(clip, data.prompts), clip.logit_scale.exp().item()).to(device).eval()
    x, y = (v.to(device) for v in data.__getitems__(range(n)))
    threat, rng = Threat("linf", 4 / 255), SampleRng(0, range(n), "card")
    with torch.enable_grad():
        attacked = pgd(model, x, y, threat, steps=10, step_size=threat.eps / 4, rng=rng)

    def accuracy(images: Tensor) -> float:
        with torch.no_grad():
            return (model(images).argmax(1) == y).double().mean().item()

    purifier = Purifier(denoiser, t, sampler).to(device)
    with torch.no_grad():
        pair = {
            name: {"before": accuracy(images), "after": accuracy(purifier(images, rng.child("purify")))}
            for name, images in (("clean", x), ("pgd10", attacked))
        }
    return {"victim": victim, "t": t, "sampler": asdict(sampler), "eps": threat.eps, **pair}


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
