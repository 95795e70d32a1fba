"""Train the small CLIP of the scenes world and put it into the zoo.

    accelerate launch -m shared.training.pretrain --out shared/models/zoo/scenes-vit-s8.safetensors

About half an hour on 2 cores. Interrupted, it continues from its checkpoint (in `--work`). Beside the weights it writes
a card: the command, commit, configuration, data version, sha256, and accuracies measured on validation pictures.
`--card-only` measures again and writes the card of weights that are there, keeping what it says about their training.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from shared.attacks import Threat, pgd
from shared.data.scene_sets import FINE_TUNING, SETS, ScenePairs, SceneSet
from shared.errors import run_main
from shared.lifeline import tie_to_launcher
from shared.models.clip import create_clip, save_clip
from shared.models.victim import ZeroShot, text_matrix
from shared.options import from_command_line
from shared.processes import accelerator as open_accelerator
from shared.rng import SampleRng
from shared.training.contrastive import ContrastiveConfig, pretrain
from shared.training.zoo import VALIDATION, Making, Training, make


@dataclass(frozen=True, kw_only=True)
class Args(Making):
    """Pre-train a small CLIP on scenes captions."""

    out: Path = Path("shared/models/zoo/scenes-vit-s8.safetensors")
    """Where the weights go; the card goes beside them."""
    model: str = "scenes-vit-s8"
    """A configuration of shared/models/configs."""
    train: ContrastiveConfig = ContrastiveConfig(steps=3600, every=200)


def main() -> None:
    args, accelerator = from_command_line(Args), open_accelerator()

    def begin() -> Training:
        pairs = ScenePairs(args.train.steps * args.train.batch, seed=args.seed)
        torch.manual_seed(args.seed)  # open_clip draws the initial weights from the global generator
        clip = create_clip(args.model).to(accelerator.device)

        def fit(checkpoint: Path) -> tuple[float, nn.Module]:
            return pretrain(clip, pairs, args.train, accelerator, checkpoint), clip

        return Training(args.model, pairs.version, [], fit, save_clip)

    make(args, "pretrain", begin, lambda model, device: accuracies(args.out, model, device), accelerator)


def accuracies(path: Path, model: str, device="cpu") -> dict:
    """The measured part of a card: zero-shot accuracy on every scenes set, and under PGD-10 at 8/255 on the set to
    fine-tune on."""
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
    """Zero-shot accuracy on the first n validation pictures of a scenes set; with a threat, under PGD of 10 steps of
    ε/4 from a random start."""
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
