"""Fine-tuning a whole CLIP on pairs of picture and caption, poisoned or clean: what an attacker does, and what several defences begin with.

The loss is that of pre-training (`shared.training.contrastive`). A run is named by all that its weights depend on (`identity`), so that a checkpoint
is continued by the same run only:

    pairs = PoisonedPairs(ScenePairs(6400), make_trigger("badnet", size=32), scene_target("colour", "blue"), rate=0.05)
    finetune_clip(clip, pairs, FineTuning(), work / f"{identity(clip, pairs, FineTuning())[:12]}.ckpt")
"""

from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from torch import Tensor, nn

from shared.errors import UserError
from shared.files import digest
from shared.options import Batch, Count, Positive, Warmup, Whole, free
from shared.training.contrastive import ContrastiveConfig, pretrain


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
    warmup: Warmup = 15
    """Updates of linear warm-up."""
    every: Whole = free(0)
    """Updates between checkpoints (0: none)."""


PAPER = FineTuning(steps=5 * (500_000 // 128), batch=128, lr=1e-6, warmup=50, every=1000, workers=8)
"""RVPT §4.1: 5 epochs of 500,000 pairs. Warm-up: CleanCLIP's 50 updates (BadCLIP's commands: 10,000). 1e-6 does not always plant the backdoor."""


class OneProcess:
    """What the training loops ask of an `accelerate.Accelerator`, in this process alone, where the model is. It keeps no global state."""

    process_index, num_processes, is_main_process = 0, 1, True

    def __init__(self, device):
        self.device = device

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def backward(self, loss: Tensor) -> None:
        loss.backward()


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


def prepared(clip: nn.Module, pairs, config: ContrastiveConfig, name: str) -> nn.Module:
    """The CLIP with every weight free to be trained. Raises UserError where a batch is larger than the set."""
    if config.batch > len(pairs):
        raise UserError(
            f"{name}: a batch of {config.batch} pairs is larger than the set, which has {len(pairs)}: make it smaller."
        )
    return clip.requires_grad_(True)


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
    accelerator = accelerator or OneProcess(clip.logit_scale.device)
    loss = pretrain(prepared(clip, pairs, config, name), pairs, config, accelerator, checkpoint, augment, name)
    clip.requires_grad_(False)
    return loss


def epochs(n: int, batch: int, times: int) -> int:
    """Updates in `times` passes over n pairs; the last short batch of a pass is dropped."""
    return times * max(1, n // batch)
