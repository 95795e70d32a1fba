"""What a step of RoCLIP costs: `python -m papers.roclip.bench` (`make bench-roclip`), part of `make bench`. Random weights; nothing is kept.

Side by side in one run, on the same data: a step of a RoCLIP epoch, of both versions, against one of plain CLIP at equal augmentation; and our plain
step against a straightforward loop over open_clip's model and loss.
"""

import copy
import math
from dataclasses import replace

import torch

from papers.roclip.config import PRESETS
from papers.roclip.training import Method, Training, adamw, train
from shared.bench.harness import Cases, Options, run
from shared.bench.plain import plain_clip, random_clip
from shared.bench.timing import Case
from shared.data.poison import Held
from shared.data.scene_sets import ScenePairs
from shared.errors import run_main
from shared.models.clip import MEAN_STD
from shared.training.contrastive import batch_indices

NAME = PRESETS["cpu"].models.name
EPOCH = 9600  # pairs of an epoch of the cpu scale, which set the size of a pool


def cases(quick: bool) -> Cases:
    """A few updates each."""
    batch, steps, repetitions = (16, 1, 2) if quick else (PRESETS["cpu"].pretraining.batch, 8, 7)
    methods = PRESETS["cpu"].methods
    out = {f"RoCLIP, {name}, {steps} steps, {NAME}, batch {batch}": lambda m=m: _step(m, batch, steps, repetitions)
           for name, m in (("two-sided", methods.roclip), ("as released", methods.released))}
    return out | {f"plain contrastive training, {steps} steps, {NAME}, batch {batch}": lambda: _plain(batch, steps, repetitions)}


def _step(matching, batch: int, steps: int, repetitions: int) -> Case:
    """Every epoch a RoCLIP epoch; the pools begin with noise, which is searched like any other content, so that filling them is not in the time."""
    pairs, begin, training = Held(ScenePairs(steps * batch)), random_clip(NAME), Training(epochs=1, batch=batch, warmup=1)
    images = PRESETS["cpu"].methods.images
    on = replace(matching, every=1, offset=0, start="unit", share=None, size=matching.entries(EPOCH))

    def step(matching) -> float:
        return train(copy.deepcopy(begin), pairs, Method(matching, images), training).loss

    return Case("plain CLIP with the same augmentation", lambda: step(on), lambda: step(None), lambda loss: {"loss reached": loss}, 1.05, "time",
                repetitions=repetitions)


def _plain(batch: int, steps: int, repetitions: int) -> Case:
    import open_clip

    training = Training(epochs=1, batch=batch, warmup=1)
    pairs, begin = Held(ScenePairs(steps * batch)), random_clip(NAME)
    plain_begin = plain_clip(NAME, begin)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD["clip"])

    def reference() -> float:
        clip = copy.deepcopy(plain_begin).train()
        optimizer, loss_fn = adamw(clip, training), open_clip.ClipLoss()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step, len(pairs))
            x, texts = pairs.__getitems__(batch_indices(len(pairs), batch, step, training.seed))
            image, text, scale = clip((x - mean) / std, begin.tokenizer(texts))
            loss = loss_fn(image, text, scale)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(clip.parameters(), training.clip_norm)
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(0, math.log(100))
        return loss.item()

    def agree(a: dict, b: dict) -> str | None:
        a, b = a["loss reached"], b["loss reached"]
        return None if abs(a - b) < 1e-3 * abs(b) else f"the losses reached differ: {a:.5f} and {b:.5f}"

    return Case("a plain loop over open_clip's model and loss, same data and optimiser", lambda: train(copy.deepcopy(begin), pairs, Method(),
                                                                                                       training).loss,
                reference, lambda loss: {"loss reached": loss}, 1.0, agree=agree, repetitions=repetitions)


def main() -> None:
    import tyro

    run([cases], tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    run_main(main)
