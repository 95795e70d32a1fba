"""Contrastive pre-training against a plain loop over open_clip's model and loss."""

import copy

import torch

from shared.bench.harness import Cases
from shared.bench.plain import contrastive_loop, plain_clip, random_clip, same_loss
from shared.bench.timing import Case
from shared.data.scene_sets import ScenePairs
from shared.training.contrastive import ContrastiveConfig, adamw, batch_indices, pretrain
from shared.training.loop import cosine_schedule

NAME = "scenes-vit-s8"


def cases(quick: bool) -> Cases:
    """A few updates of the small model; pictures are rendered beforehand, texts are tokenised in the loop."""
    batch, steps, repetitions = (16, 1, 2) if quick else (128, 5, 5)
    title = f"contrastive, {steps} steps, {NAME}, batch {batch}"
    return {title: lambda: _case(batch, steps, repetitions)}


class _Rendered:
    """The first n pairs of the scenes world, in memory."""

    def __init__(self, n: int):
        self.pictures, self.texts = ScenePairs(n).__getitems__(range(n))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitems__(self, indices):
        return self.pictures[torch.as_tensor(indices)], [self.texts[i] for i in indices]


def _case(batch: int, steps: int, repetitions: int) -> Case:
    from accelerate import Accelerator

    config = ContrastiveConfig(steps=steps, batch=batch, warmup=1, every=0)
    pairs, accelerator = _Rendered(4 * batch), Accelerator(cpu=True)
    begin = random_clip(NAME)
    plain_begin = plain_clip(NAME, begin)

    def ours() -> float:
        return pretrain(copy.deepcopy(begin), pairs, config, accelerator)

    def reference() -> float:
        clip = copy.deepcopy(plain_begin).train()
        return contrastive_loop(
            clip,
            begin.tokenizer,
            pairs,
            [batch_indices(len(pairs), batch, step) for step in range(steps)],
            adamw(clip, config.lr, config.weight_decay),
            lambda step: config.lr * cosine_schedule(step, steps, config.warmup),
            config.clip_norm,
        )

    return Case(
        "a plain loop over open_clip's model and loss, same data and optimiser",
        ours,
        reference,
        lambda loss: {"loss reached": loss},
        1.0,
        agree=same_loss,
        repetitions=repetitions,
    )
