"""Train the small CLIP of the scenes world and put it into the zoo.

    accelerate launch -m shared.training.pretrain --out shared/models/zoo/scenes-vit-s8.safetensors

About half an hour on 2 cores. Interrupted, it continues from its checkpoint (in `--work`). Beside the weights it writes a card: the command,
commit, configuration, data version, sha256, and accuracies measured on validation pictures. `--card-only` measures again and writes the card of
weights that are there, keeping what it says about their training.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.attacks import Threat, pgd
from shared.data.scene_sets import FINE_TUNING, SETS, ScenePairs, SceneSet
from shared.errors import UserError, run_main
from shared.files import digest, sha256_file
from shared.lifeline import tie_to_launcher
from shared.models.clip import create_clip, save_clip
from shared.models.victim import ZeroShot, text_matrix
from shared.models.zoo import write_card
from shared.options import Seed, from_command_line
from shared.processes import accelerator as open_accelerator
from shared.rng import SampleRng
from shared.training.contrastive import ContrastiveConfig, pretrain

VALIDATION = 256  # pictures per set behind the accuracies on a card
TRAINING_FACTS = ("model", "config", "seed", "data", "command", "commit", "loss", "seconds")


@dataclass(frozen=True)
class Args:
    """Pre-train a small CLIP on scenes captions."""

    out: Path = Path("shared/models/zoo/scenes-vit-s8.safetensors")
    """Where the weights go; the card goes beside them."""
    model: str = "scenes-vit-s8"
    """A configuration of shared/models/configs."""
    seed: Seed = 0
    """Of the initial weights and of the pictures."""
    train: ContrastiveConfig = field(default_factory=lambda: ContrastiveConfig(steps=3600, every=200))
    work: Path = Path("results/zoo")
    """Folder of the checkpoint of an unfinished run."""
    card_only: bool = False
    """Train nothing: measure the weights at `--out` again and write their card."""


def main() -> None:
    args = from_command_line(Args)
    accelerator = open_accelerator()
    facts = training_facts(args.out) if args.card_only else train(args, accelerator)
    if accelerator.is_main_process:
        write_card(args.out, **facts, **accuracies(args.out, facts["model"], accelerator.device))
        print(f"wrote the card of {args.out}" if args.card_only else f"wrote {args.out} and its card", flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def train(args: Args, accelerator) -> dict:
    """Train, write the weights, and return what the card says about it. seconds: None if the run was interrupted in between."""
    import torch

    commit, began = _commit(), time.monotonic()
    pairs = ScenePairs(args.train.steps * args.train.batch, seed=args.seed)
    # named by all that the weights depend on, so that a run with other options does not continue from it
    identity = digest(
        [
            args.model,
            args.seed,
            pairs.version,
            {k: v for k, v in asdict(args.train).items() if k not in ("every", "workers")},
        ]
    )
    checkpoint = args.work / f"{args.out.stem}-{identity[:12]}.ckpt"
    interrupted = checkpoint.is_file()
    torch.manual_seed(args.seed)  # open_clip draws the initial weights from the global generator
    clip = create_clip(args.model).to(accelerator.device)
    loss = pretrain(clip, pairs, args.train, accelerator, checkpoint)
    if accelerator.is_main_process:
        save_clip(clip, args.out)
        checkpoint.unlink(missing_ok=True)
    return {
        "model": args.model,
        "config": asdict(args.train),
        "seed": args.seed,
        "data": pairs.version,
        "loss": loss,
        "commit": commit,
        "command": shlex.join(["python", "-m", "shared.training.pretrain", *sys.argv[1:]]),
        "seconds": None if interrupted else time.monotonic() - began,
    }


def training_facts(path: Path) -> dict:
    """What the card beside the weights at `path` says about their training. Raises UserError if it is missing or is about other weights."""
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        facts, described = {k: card.get(k) for k in TRAINING_FACTS}, card["sha256"] == sha256_file(path)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"there are no weights with a readable card at {path}: train them first (leave out --card-only)."
        ) from error
    if not described:
        raise UserError(
            f"the card beside {path} is about other weights (wrong sha256): restore both with git, or train again."
        )
    return facts


def _commit() -> str:
    """The commit that trains, with `-dirty` where files differ from it. (`shared.experiment.provenance` is out of bounds here.)"""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            text=True,
            capture_output=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def accuracies(path: Path, model: str, device="cpu") -> dict:
    """The measured part of a card: zero-shot accuracy on every scenes set, and under PGD-10 at 8/255 on the set to fine-tune on."""
    clip, threat = create_clip(model, path).to(device).requires_grad_(False), Threat("linf", 8 / 255)
    return {
        "n": VALIDATION,
        "accuracy": {name: accuracy(clip, name, VALIDATION) for name in SETS},
        "attacked": {
            "set": FINE_TUNING,
            "attack": "pgd10",
            "norm": threat.norm,
            "eps": threat.eps,
            "accuracy": accuracy(clip, FINE_TUNING, VALIDATION, threat),
        },
    }


def accuracy(clip, name: str, n: int, threat=None) -> float:
    """Zero-shot accuracy on the first n validation pictures of a scenes set; with a threat, under PGD of 10 steps of ε/4 from a random start."""
    import torch

    data = SceneSet(name, "validation", n)
    victim = (
        ZeroShot(clip.visual, text_matrix(clip, data.prompts), clip.logit_scale.exp().item())
        .to(clip.logit_scale.device)
        .eval()
    )
    x, y = (t.to(clip.logit_scale.device) for t in data.__getitems__(range(n)))
    if threat is not None:
        x = pgd(victim, x, y, threat, steps=10, step_size=threat.eps / 4, rng=SampleRng(0, range(n), "card"))
    with torch.no_grad():
        return (victim(x).argmax(1) == y).double().mean().item()


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
