"""Contrastive pre-training against a plain loop over open_clip's model and loss."""

import copy
import math

import torch

from shared.bench.harness import Cases
from shared.bench.plain import plain_clip, random_clip
from shared.bench.timing import Case
from shared.data.scene_sets import ScenePairs
from shared.models.clip import MEAN_STD
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
    import open_clip
    from accelerate import Accelerator

    config = ContrastiveConfig(steps=steps, batch=batch, warmup=1, every=0)
    pairs, accelerator = _Rendered(4 * batch), Accelerator(cpu=True)
    begin = random_clip(NAME)
    plain_begin = plain_clip(NAME, begin)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD["clip"])

    def ours() -> float:
        return pretrain(copy.deepcopy(begin), pairs, config, accelerator)

    def reference() -> float:
        clip = copy.deepcopy(plain_begin).train()
        optimizer, loss_fn = adamw(clip, config.lr, config.weight_decay), open_clip.ClipLoss()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * cosine_schedule(step, steps, config.warmup)
            x, texts = pairs.__getitems__(batch_indices(len(pairs), batch, step))
            image, text, scale = clip((x - mean) / std, begin.tokenizer(texts))
            loss = loss_fn(image, text, scale)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(clip.parameters(), config.clip_norm)
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(0, math.log(100))
        return loss.item()

    def agree(a: dict, b: dict) -> str | None:
        a, b = a["loss reached"], b["loss reached"]
        return None if abs(a - b) < 1e-3 * abs(b) else f"the losses reached differ: {a:.5f} and {b:.5f}"

    return Case("a plain loop over open_clip's model and loss, same data and optimiser",
                ours, reference, lambda loss: {"loss reached": loss}, 1.0, agree=agree, repetitions=repetitions)
