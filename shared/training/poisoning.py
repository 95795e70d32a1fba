"""Fine-tuning a whole CLIP on pairs of picture and caption, poisoned or clean: what an attacker does, and what several defences begin with.

The loss is that of pre-training (`shared.training.contrastive`). A run is named by all that its weights depend on (`identity`), so that a checkpoint
is continued by the same run only:

    pairs = PoisonedPairs(ScenePairs(6400), make_trigger("badnet", size=32), scene_target("colour", "blue"), rate=0.05)
    finetune_clip(clip, pairs, FineTuning(), work / f"{identity(clip, pairs, FineTuning())[:12]}.ckpt")
"""

from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from torch import nn

from shared.files import digest
from shared.options import Batch, Count, Positive, Whole, free
from shared.training.contrastive import ContrastiveConfig, pretrain
from shared.training.loop import check_batch


@dataclass(frozen=True)
class FineTuning(ContrastiveConfig):
    """How long and how fast to fine-tune; the defaults are for the small CLIPs of the zoo.

    Measured on scenes-vit-s8 with a checker patch on 5 % of 6,400 pairs, 100 updates: accuracy on "colour" stays at 1.00, and the attack success rate
    is 0.00 with a learning rate of 1e-4, 0.02 with 3e-4, 0.30 with 5e-4 and 0.85 with 1e-3, that of pre-training.
    """

    steps: Count = 150
    """Updates."""
    batch: Batch = 128
    """Pairs per update, over all processes together."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW."""
    warmup: Whole = 15
    """Updates of linear warm-up."""
    every: Whole = free(0)
    """Updates between checkpoints (0: none)."""


PAPER = FineTuning(steps=5 * (500_000 // 128), batch=128, lr=1e-6, warmup=50, every=1000, workers=8)
"""RVPT §4.1: 5 epochs of 500,000 pairs. Warm-up: CleanCLIP's 50 updates (BadCLIP's commands: 10,000). 1e-6 does not always plant the backdoor."""


def identity(clip: nn.Module, pairs, config: ContrastiveConfig, *more) -> str:
    """A digest of the weights that a run starts from, its pairs and its settings (but not of how often it is saved, or how many processes read);
    `more`: anything in JSON."""
    content = sha256()
    for name, value in sorted(clip.state_dict().items()):
        content.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest(
        [
            content.hexdigest(),
            pairs.version,
            {k: v for k, v in asdict(config).items() if k not in ("every", "workers")},
            *more,
        ]
    )


def finetune_clip(
    clip: nn.Module,
    pairs,
    config: FineTuning = FineTuning(),
    checkpoint: Path | None = None,
    accelerator=None,
    augment=None,
    name: str = "fine-tuning",
) -> float:
    """Train all of `clip` on `pairs`, in place; returns the last loss. It is left frozen and in eval mode.

    pairs: as in `shared.training.contrastive.pretrain`, e.g. PoisonedPairs. checkpoint: file to continue from and to write every `config.every`
    updates, removed by nobody. accelerator: None for this process alone. augment(x, step, indices): optional, on pictures.
    Raises UserError where a batch is larger than the set, has no equal shares for all processes, or the loss is no number at the end.
    """
    check_batch(name, config.batch, len(pairs))
    return pretrain(clip, pairs, config, accelerator, checkpoint, augment, name)


def epochs(n: int, batch: int, times: int) -> int:
    """Updates in `times` passes over n pairs; the last short batch of a pass is dropped."""
    return times * max(1, n // batch)
