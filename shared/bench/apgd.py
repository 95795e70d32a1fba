"""APGD-CE then APGD-T on the survivors, against pyautoattack at the same budget."""

import itertools
import logging

import torch

from shared.attacks import Threat, cascade
from shared.bench.harness import Cases
from shared.bench.plain import classify, plain_clip
from shared.bench.timing import Case
from shared.data.scene_sets import FINE_TUNING, SceneSet
from shared.errors import UserError
from shared.models import zoo
from shared.models.clip import create_clip
from shared.models.victim import ZeroShot, text_matrix
from shared.rng import SampleRng

EPS = 4 / 255
POINTS = 0.5


def cases(quick: bool) -> Cases:
    """The small CLIP of the zoo on its fine-tuning classes, at an ε that leaves some of them: both attack the same
    victim, or pyautoattack attacks open_clip's own model, as a user would set it up."""
    n, steps, targets, repetitions = (12, 3, 2, 2) if quick else (256, 20, 9, 3)
    title = f"APGD-CE + APGD-T, scenes-vit-s8, {n} images, {steps} steps, {targets} targets"
    return {
        title: lambda: _case(n, steps, targets, repetitions),
        f"{title}, open_clip's own model": lambda: _case(n, steps, targets, repetitions, own=True),
    }


def _case(n: int, steps: int, targets: int, repetitions: int, batch: int = 128, own: bool = False) -> Case:
    try:
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    except ImportError as error:
        raise UserError(
            "the package pyautoattack is missing: `make setup` installs it with the other packages of the tests."
        ) from error
    clip = create_clip("scenes-vit-s8", zoo.weights("scenes-vit-s8")).requires_grad_(False)
    data = SceneSet(FINE_TUNING, "test", n)
    x, y = data.__getitems__(range(n))
    text = text_matrix(clip, data.prompts)
    victim = ZeroShot(clip.visual, text, clip.logit_scale.exp().item()).eval()
    plain = plain_clip("scenes-vit-s8", clip)
    attacked = (lambda x: classify(plain, x, text, text)) if own else victim

    seeds, theirs = (
        itertools.count(),
        itertools.count(),
    )  # every call from other random starts: accuracies are means over calls

    def ours() -> float:
        settings = {"steps": steps, "targets": targets, "batch_size": batch, "rng": SampleRng(next(seeds), range(n))}
        return (
            100
            * cascade(victim, x, y, Threat("linf", EPS), stages=("apgd-ce", "apgd-t"), **settings).accuracy()["apgd-t"]
        )

    def reference() -> float:
        common = {
            "n_iter": steps,
            "norm": "Linf",
            "eps": EPS,
            "n_restarts": 1,
            "seed": next(theirs),
            "device": "cpu",
            "logger": logging.getLogger("pyautoattack"),
        }
        left = torch.arange(n)
        with torch.random.fork_rng():  # it seeds the global generator
            for attack in (
                APGDAttack(attacked, loss="ce", **common),
                APGDAttack_targeted(attacked, n_target_classes=targets, **common),
            ):
                kept = []
                for rows in left.split(batch):
                    x_adv = attack.perturb(x[rows], y[rows])
                    with torch.no_grad():
                        kept.append(rows[attacked(x_adv).argmax(dim=1) == y[rows]])
                left = torch.cat(kept) if kept else left
        return 100 * len(left) / n

    def agree(a: dict, b: dict) -> str | None:
        more = a["accuracy left, %"] - b["accuracy left, %"]
        return f"{more:.1f} points more accuracy left, aim ≤ {POINTS}" if more > POINTS else None

    return Case(
        f"pyautoattack 0.2.0, same budget, {'open_clip as it comes' if own else 'same victim'}",
        ours,
        reference,
        lambda left: {"accuracy left, %": left},
        4.0 if own else 2.5,
        less_memory=True,
        agree=agree,
        repetitions=repetitions,
    )
