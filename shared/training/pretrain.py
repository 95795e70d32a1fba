"""Train the small CLIP of the scenes world and put it into the zoo.

    accelerate launch -m shared.training.pretrain --out shared/models/zoo/scenes-vit-s8.safetensors

About half an hour on 2 cores. Interrupted, it continues from its checkpoint (in `--work`). Beside the weights it writes a card: the command,
commit, configuration, data version, accuracies measured and sha256.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.errors import run_main
from shared.training.contrastive import ContrastiveConfig


@dataclass(frozen=True)
class Args:
    """Pre-train a small CLIP on scenes captions."""

    out: Path = Path("shared/models/zoo/scenes-vit-s8.safetensors")
    """Where the weights go; the card goes beside them."""
    model: str = "scenes-vit-s8"
    """A configuration of shared/models/configs."""
    seed: int = 0
    """Of the initial weights and of the pictures."""
    train: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    work: Path = Path("results/zoo")
    """Folder of the checkpoint of an unfinished run."""


def main() -> None:
    import torch
    import tyro
    from accelerate import Accelerator

    from shared.data.scene_sets import ScenePairs
    from shared.models.clip import create_clip, save_clip
    from shared.models.zoo import write_card
    from shared.training.contrastive import pretrain

    args = tyro.cli(Args)
    accelerator = Accelerator()
    began = time.monotonic()
    torch.manual_seed(args.seed)  # open_clip draws the initial weights from the global generator
    clip = create_clip(args.model).to(accelerator.device)
    pairs = ScenePairs(args.train.steps * args.train.batch, seed=args.seed)
    loss = pretrain(clip, pairs, args.train, accelerator, args.work / f"{args.out.stem}.ckpt")
    if accelerator.is_main_process:
        save_clip(clip, args.out)
        write_card(args.out, model=args.model, config=asdict(args.train), seed=args.seed, data=pairs.version, loss=loss,
                   seconds=time.monotonic() - began)
        (args.work / f"{args.out.stem}.ckpt").unlink(missing_ok=True)
        print(f"wrote {args.out} and its card")


if __name__ == "__main__":
    run_main(main)
