"""How each kind of measurement is made: one function per kind, (measurer, cell) -> Values."""

import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from papers.roclip.augment import CaptionAugmentation
from papers.roclip.cells import Cell
from papers.roclip.method import neighbours
from papers.roclip.pool import NOISE
from papers.roclip.probe import embedded, linear_probe, predict, similarity
from papers.roclip.training import Method, Training, train
from shared.attacks.triggers import at_test
from shared.data.pairs import PairSubset
from shared.data.poison import Held
from shared.experiment.evaluation import Values
from shared.metrics import backdoor
from shared.models.victim import text_matrix

REPEATS = 5  # of a timed training


def score(m, cell: Cell) -> Values:
    """psr, bsr, accuracy on the main set, and the similarity of poisoned or clean pairs."""
    bench = m.bench
    if cell.measure == "similarity":
        x, texts = bench.target_images(cell.run)[::2] if cell.attack == "targets" else bench.clean_pairs(cell.run, m.config.watch_n)[:2]
        return Values(similarity(bench.clip(cell.run, cell.scored), x, texts).numpy(), "cosine")
    spec = cell.data or m.config.data.main
    victim = bench.victim(cell.run, cell.scored, spec)
    if cell.measure == "psr":
        x, classes, _ = bench.target_images(cell.run)
        return Values(backdoor.clean_accuracy(predict(victim, x), classes), "share")
    truth = bench.world(spec).y.cpu().numpy()
    said = m.once(("said", spec), lambda: predict(victim, bench.world(spec).x).numpy())
    if cell.measure == "accuracy":
        return Values(backdoor.clean_accuracy(said, truth), "share")
    label = bench.label(getattr(m.config.attacks, cell.attack).target)
    values = backdoor.asr(predict(victim, m.triggered(cell.attack)).numpy(), truth, label)
    return Values(values, "share", sanity=_sanity(m, cell, values, backdoor.asr(said, truth, label)))


def _sanity(m, cell: Cell, triggered: np.ndarray, untriggered: np.ndarray) -> dict:
    """The backdoor is no bias: without the trigger the target is named less often, or for a tenth of the pictures at most; and a picture's trigger is
    the same in any batch."""
    world = m.bench.world(m.config.data.main)
    alone = at_test(m.bench.trigger(cell.attack), world.x[3:4], world.indices[3:4])
    without = float(untriggered.mean())
    return {"nothing happens without the trigger": {"passed": bool(without <= max(0.1, triggered.mean())), "detail": f"target named {without:.3f}"},
            "independent of the batch": {"passed": bool(torch.equal(alone, m.triggered(cell.attack)[3:4])), "detail": ""}}


def epoch(m, cell: Cell) -> Values:
    """Read off what the training has measured; with ImageNet's classes in one template, where `score` has all of them."""
    row = next(r for r in m.bench.history(cell.run) if r["epoch"] == cell.epoch)
    name = f"similarity_{cell.attack}" if cell.measure == "similarity" else cell.measure
    return Values(np.array(row[name], np.float64), "cosine" if cell.measure == "similarity" else "share")


def downstream(m, cell: Cell) -> Values:
    """Zero-shot accuracy, or a linear probe, on a set."""
    if cell.measure == "accuracy":
        return score(m, cell)
    config = m.config
    sets = (m.bench.split(cell.data, "train", config.data.probe_n), m.bench.split(cell.data, "test", config.data.n))
    said, truth = linear_probe(m.bench.clip(cell.run, cell.scored), *sets, replace(config.probing, seed=cell.seed))
    return Values(backdoor.clean_accuracy(said, truth), "share")


@torch.no_grad()
def returned(m, cell: Cell) -> Values:
    """What the pools return for pairs, un-augmented, at the end of training.

    same_class: whether the caption that a picture would be matched with names the class that its own caption names (a poisoned one: the adversarial
    class); clean pairs whose caption names one class. cosine: of that caption with what the pool was asked with. extra: of the first pairs the
    picture, its caption, the caption returned and the picture it came with; where there is an image pool, also what that returned.
    """
    bench, config, run = m.bench, m.config, cell.run
    clip, pools, matching = bench.clip(run, m.last_of(cell)), bench.pools(run), run.matching(config)
    classes = bench.targets_of(config.data.main)
    if cell.attack == "targets":
        x, labels, texts = bench.target_images(run)
        wanted = [classes[k] for k in labels]
    else:
        x, texts, _ = bench.clean_pairs(run, config.watch_n)
        named = [[c for c in classes if c.named_in(text)] for text in texts]
        keep = [k for k, found in enumerate(named) if len(found) == 1]
        x, texts, wanted = x[keep], [texts[k] for k in keep], [named[k][0] for k in keep]
    image = F.normalize(embedded(clip, x), dim=-1)
    found = neighbours(image, text_matrix(clip, texts), pools, replace(matching, own="allowed"))
    pairs = bench.poisoned(run)
    said = _captions(pairs, found["image"].ids.tolist()) if "image" in found else []
    extra = {"pictures": x[: config.sweeps.strip].numpy(), "captions": np.array(texts[: config.sweeps.strip])}
    for side, one in found.items():
        ids = one.ids[: config.sweeps.strip].tolist()
        extra |= {f"{side}_captions": np.array(_captions(pairs, ids)), f"{side}_pictures": _pictures(pairs, ids, x.shape[1:]),
                  f"{side}_cosine": one.cosine[: config.sweeps.strip].cpu().numpy()}
    if cell.measure == "cosine":
        return Values(next(iter(found.values())).cosine.cpu().numpy(), "cosine", extra)
    same = [target.named_in(text) for target, text in zip(wanted, said, strict=True)]
    return Values(np.array(same, np.float64), "share", extra)


def _captions(pairs, ids: list[int]) -> list[str]:
    return [pairs.captions([i])[0] if i != NOISE else "" for i in ids]


def _pictures(pairs, ids: list[int], shape) -> np.ndarray:
    return torch.stack([pairs.__getitems__([i])[0][0] if i != NOISE else torch.zeros(shape) for i in ids]).numpy()


def cost(m, cell: Cell) -> Values:
    """Seconds of an update at equal augmentation, in repeats that take turns with the other methods'; RoCLIP's are those of a RoCLIP epoch."""
    found = m.bench.once("cost", lambda: _costs(m))
    return Values(np.array(found[cell.method]), "s")


def _costs(m) -> dict[str, list[float]]:
    config, bench = m.config, m.bench
    steps, batch = config.sweeps.cost_steps, config.pretraining.batch
    clean = bench.clean("pretrain", config.seeds[0])
    pairs = Held(PairSubset(clean, range(min(len(clean), steps * batch))))
    training = Training(1, min(batch, len(pairs)), config.pretraining.lr, 1)
    captions = CaptionAugmentation(config.methods.alpha) if config.methods.alpha else None
    matchings = {"clip_aug": None, "roclip": config.methods.roclip, "released": config.methods.released}
    ready = {name: Method(None if matching is None else replace(matching, every=1, offset=0, start="unit"), config.methods.images, captions)
             for name, matching in matchings.items()}  # noise costs what pairs cost, once the pool is there
    out: dict[str, list[float]] = {name: [] for name in ready}
    for repeat in range(-1, REPEATS):  # the first warms up
        for name in sorted(ready, reverse=bool(repeat % 2)):
            clip = bench.start("pretrain", config.seeds[0])
            began = time.perf_counter()
            train(clip, pairs, ready[name], training, name=name)
            if repeat >= 0:
                out[name].append((time.perf_counter() - began) / training.per_epoch(len(pairs)))
    return out


KINDS = {"score": score, "strong": score, "ablation": score, "epoch": epoch, "downstream": downstream, "returned": returned, "cost": cost}
