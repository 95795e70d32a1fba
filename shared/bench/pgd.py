"""PGD on a small CLIP and on ViT-B/32, against a plain loop."""

import functools

import torch
import torch.nn.functional as F

from shared.attacks import Threat, pgd
from shared.bench.harness import Cases
from shared.bench.plain import pgd_loop, plain_clip, random_clip
from shared.bench.timing import Case
from shared.data.scene_sets import FINE_TUNING, SceneSet
from shared.models.victim import ZeroShot, image_size, text_matrix
from shared.rng import SampleRng

EPS = 4 / 255
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cases(quick: bool) -> Cases:
    """The small model on the 64 prompts of its fine-tuning set; ViT-B/32 on ten, in fewer steps (the cost per step is
    the same)."""
    small = SceneSet(FINE_TUNING).prompts
    ten = [f"This is a photo of a {name}" for name in CIFAR10]
    sizes = [("scenes-vit-s8", small, 8, 2, 2, None), ("ViT-B-32-quickgelu", ten[:2], 2, 1, 1, None)] if quick else [
        ("scenes-vit-s8", small, 64, 10, 5, None), ("ViT-B-32-quickgelu", ten, 16, 2, 3, 0.6)]  # fmt: skip
    named = {
        f"PGD-{size[3]}, {size[0]}, batch {size[2]}{', text once' * once}": (*size, once)
        for size in sizes
        for once in (False, True)
    }
    return {name: lambda size=size: _case(*size) for name, size in named.items()}


@functools.lru_cache(maxsize=1)
def _pair(name: str):
    clip = random_clip(name).requires_grad_(False)
    return clip, plain_clip(name, clip)


def _case(
    name: str, prompts, batch: int, steps: int, repetitions: int, share_aim: float | None, text_once: bool
) -> Case:
    clip, reference = _pair(name)
    victim = ZeroShot(clip.visual, text_matrix(clip, prompts), clip.logit_scale.exp().item())
    tokens = clip.tokenizer(list(prompts))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, 3, *image_size(clip.visual)), generator=generator)
    y = torch.randint(len(prompts), (batch,), generator=generator)
    rng, threat, step_size = SampleRng(0, range(batch)), Threat("linf", EPS), EPS / 4
    start = threat.random_start(x, rng.child("restart0"))

    def facts(x_adv) -> dict[str, float]:
        with torch.no_grad():
            return {"loss reached": F.cross_entropy(victim(x_adv), y).item()}

    def agree(ours: dict, theirs: dict) -> str | None:
        a, b = ours["loss reached"], theirs["loss reached"]
        return None if abs(a - b) < 0.02 * abs(b) else f"the losses reached differ: {a:.3f} and {b:.3f}"

    return Case(
        "a loop with loss.backward() and "
        + ("the prompts encoded once" if text_once else f"{len(prompts)} prompts encoded in every step"),
        lambda: pgd(victim, x, y, threat, steps=steps, step_size=step_size, rng=rng, keep="last"),
        lambda: pgd_loop(reference, x, y, start, tokens, EPS, step_size, steps, text_once),
        facts,
        None if text_once else 1.4,
        share_aim=None if text_once else share_aim,
        agree=agree,
        repetitions=repetitions,
    )
