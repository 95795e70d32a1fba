"""What a step of RoCLIP costs: `python -m papers.roclip.bench` (`make bench-roclip`), part of `make bench`. Random
weights; nothing is kept.

Side by side in one run, on the same data: a step of a RoCLIP epoch, of both versions, against one of plain CLIP at
equal augmentation; and our plain step against a straightforward loop over open_clip's model and loss.
"""

import copy
from dataclasses import replace

from papers.roclip.config import PRESETS
from papers.roclip.training import Method, Training, optimizer_of, train
from shared.bench.harness import Cases, Options, run
from shared.bench.plain import contrastive_loop, plain_clip, random_clip, same_loss
from shared.bench.timing import Case
from shared.data.poison import Held
from shared.data.scene_sets import ScenePairs
from shared.errors import run_main
from shared.training.contrastive import batch_indices

NAME = PRESETS["cpu"].models.name
EPOCH = 8640  # pairs of an epoch of the cpu scale, which set the size of a pool


def cases(quick: bool) -> Cases:
    """A few updates each."""
    batch, steps, repetitions = (16, 1, 2) if quick else (PRESETS["cpu"].pretraining.batch, 8, 7)
    methods = PRESETS["cpu"].methods
    out = {
        f"RoCLIP, {name}, {steps} steps, {NAME}, batch {batch}": lambda m=m: _step(m, batch, steps, repetitions)
        for name, m in (("two-sided", methods.roclip), ("as released", methods.released))
    }
    return out | {
        f"plain contrastive training, {steps} steps, {NAME}, batch {batch}": lambda: _plain(batch, steps, repetitions)
    }


def _step(matching, batch: int, steps: int, repetitions: int) -> Case:
    """Every epoch a RoCLIP epoch; the pools begin with noise, which is searched like any other content, so that filling
    them is not in the time."""
    pairs, begin, training = (
        Held(ScenePairs(steps * batch)),
        random_clip(NAME),
        Training(epochs=1, batch=batch, warmup=1),
    )
    images = PRESETS["cpu"].methods.images
    on = replace(matching, every=1, offset=0, start="unit", share=None, size=matching.entries(EPOCH))

    def step(matching) -> float:
        return train(copy.deepcopy(begin), pairs, Method(matching, images), training).loss

    return Case(
        "plain CLIP with the same augmentation",
        lambda: step(on),
        lambda: step(None),
        lambda loss: {"loss reached": loss},
        1.05,
        "time",
        repetitions=repetitions,
    )


def _plain(batch: int, steps: int, repetitions: int) -> Case:
    training = Training(epochs=1, batch=batch, warmup=1)
    pairs, begin = Held(ScenePairs(steps * batch)), random_clip(NAME)
    plain_begin = plain_clip(NAME, begin)

    def reference() -> float:
        clip = copy.deepcopy(plain_begin).train()
        return contrastive_loop(
            clip,
            begin.tokenizer,
            pairs,
            [batch_indices(len(pairs), batch, step, training.seed) for step in range(steps)],
            optimizer_of(clip, training),
            lambda step: training.rate(step, len(pairs)),
            training.clip_norm,
        )

    return Case(
        "a plain loop over open_clip's model and loss, same data and optimiser",
        lambda: train(copy.deepcopy(begin), pairs, Method(), training).loss,
        reference,
        lambda loss: {"loss reached": loss},
        1.0,
        agree=same_loss,
        repetitions=repetitions,
    )


def main() -> None:
    import tyro

    run([cases], tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    run_main(main)
