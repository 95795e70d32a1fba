"""Fine-tuning a whole CLIP on pairs of picture and caption, poisoned or clean: what an attacker does, and what several
defences begin with.

The loss is that of pre-training (`shared.training.contrastive`):

    pairs = PoisonedPairs(ScenePairs(6400), make_trigger("badnet", size=32), scene_target("colour", "blue"), rate=0.05)
    finetune_clip(clip, pairs, FineTuning())
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from shared.options import Batch, Count, Positive, Whole, free
from shared.training.contrastive import ContrastiveConfig, pretrain
from shared.training.loop import check_batch


@dataclass(frozen=True)
class FineTuning(ContrastiveConfig):
    """How long and how fast to fine-tune; the defaults are for the small CLIPs of the zoo.

    Measured on scenes-vit-s8 with a checker patch on 5 % of 6,400 pairs, 100 updates: accuracy on "colour" stays at
    1.00, and the attack success rate is 0.00 with a learning rate of 1e-4, 0.02 with 3e-4, 0.30 with 5e-4 and 0.85 with
    1e-3, that of pre-training.
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

    pairs: as in `shared.training.contrastive.pretrain`, e.g. PoisonedPairs. checkpoint: file to continue from and to
    write every `config.every` updates, removed by nobody. accelerator: None for this process alone. augment(x, step,
    indices): optional, on pictures. Raises UserError where a batch is larger than the set, has no equal shares for all
    processes, or the loss is no number at the end.
    """
    check_batch(name, config.batch, len(pairs))
    return pretrain(clip, pairs, config, accelerator, checkpoint, augment, name)
