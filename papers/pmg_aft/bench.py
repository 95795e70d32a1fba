"""One PMG-AFT step against the structure of the released code: `python -m papers.pmg_aft.bench`, part of `make bench`.

Released structure (facts §3, §5.1; written anew from that description): every forward pass encodes the prompts again,
with gradient, and attack steps call `backward` on everything. A step then has five forward passes of both towers: two
for PGD-2, then the target on adversarial images, the frozen copy on them, and the target on clean images. Here: fp32 on
both sides, the model's temperature, the same loss.
"""

import copy

import torch
from torch import Tensor, nn

from papers.pmg_aft.method import PMGAFT, PMGLoss, pmg_aft_loss
from shared.attacks import Threat
from shared.bench.harness import Cases, Options, run
from shared.bench.plain import classify, pgd_loop, plain_clip, random_clip
from shared.bench.timing import Case
from shared.data.arrays import ArrayImages
from shared.data.scene_sets import SETS, SceneSet
from shared.errors import run_main
from shared.models.victim import ZeroShot, image_size, text_matrix
from shared.rng import SampleRng
from shared.training.adversarial import TrainAttack, Tuning, finetune, frozen
from shared.training.contrastive import batch_indices
from shared.training.loop import cosine_schedule

EPS = 4 / 255


def cases(quick: bool) -> Cases:
    """The small model with 200 prompts as in the released code, and ViT-B/32 with ten: 200 do not fit into 16 GB with
    their gradients."""
    prompts = [p for name in SETS for p in SceneSet(name).prompts][:200]
    ten = [
        f"This is a photo of a {colour} {thing}"
        for colour in ("red", "blue")
        for thing in ("car", "dog", "tree", "house", "shoe")
    ]
    sizes = [("scenes-vit-s8", prompts[:20], 4, 1, 1), ("ViT-B-32-quickgelu", ten[:2], 1, 1, 1)] if quick else [
        ("scenes-vit-s8", prompts, 64, 3, 3), ("ViT-B-32-quickgelu", ten, 8, 1, 3)]  # fmt: skip
    named = {f"PMG-AFT, {steps} step{'s' * (steps > 1)}, {name}, batch {batch}, {len(texts)} prompts": (name, texts, batch, steps, repetitions)
             for name, texts, batch, steps, repetitions in sizes}  # fmt: skip
    return {title: lambda size=size: _case(*size) for title, size in named.items()}


def _case(name: str, prompts: list[str], batch: int, steps: int, repetitions: int) -> Case:
    clip = random_clip(name).requires_grad_(False)
    plain = plain_clip(name, clip)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(len(prompts), (batch,), generator=generator).tolist()
    pixels = torch.randint(256, (batch, 3, *image_size(clip.visual)), dtype=torch.uint8, generator=generator)
    data = ArrayImages("random", pixels, labels, prompts, prompts)
    tokens, text, scale = clip.tokenizer(prompts), text_matrix(clip, prompts), clip.logit_scale.exp().item()
    tuning = Tuning(steps=steps, batch=batch, lr=1e-4, warmup=1)

    victim, guide = ZeroShot(clip.visual, text, scale), copy.deepcopy(plain)
    objective = PMGAFT(frozen(victim), PMGLoss())

    def ours() -> float:
        return finetune(victim, objective, data, tuning, Threat("linf", EPS), TrainAttack(), seed=0)

    def reference() -> float:
        return released(plain, guide, data, tokens, tuning)

    def agree(a: dict, b: dict) -> str | None:
        a, b = a["loss reached"], b["loss reached"]
        return None if abs(a - b) < 0.02 * abs(b) else f"the losses reached differ: {a:.4f} and {b:.4f}"

    return Case(
        "the structure of the released code",
        ours,
        reference,
        lambda loss: {"loss reached": loss},
        0.5,
        "time",
        agree=agree,
        repetitions=repetitions,
    )


def released(clip: nn.Module, guide: nn.Module, data: ArrayImages, tokens: Tensor, tuning: Tuning) -> float:
    """Train `clip.visual` for `tuning.steps` as described in the module docstring; returns the last loss. guide: the
    frozen copy."""
    optimizer = torch.optim.SGD(clip.visual.parameters(), lr=tuning.lr, momentum=tuning.momentum)
    threat, loss = Threat("linf", EPS), torch.zeros(())
    for step in range(tuning.steps):
        for group in optimizer.param_groups:
            group["lr"] = tuning.lr * cosine_schedule(step, tuning.steps, tuning.warmup)
        indices = batch_indices(len(data), tuning.batch, step)
        x, y = data.__getitems__(indices)
        start = threat.random_start(x, SampleRng(0, indices).child(f"train{step}"))
        x_adv = pgd_loop(clip, x, y, start, tokens, EPS, EPS, 2)
        loss = pmg_aft_loss(
            *(classify(model, images, tokens) for model, images in ((clip, x_adv), (guide, x_adv), (clip, x))),
            y,
            PMGLoss(),
        )[0]
        optimizer.zero_grad()
        loss.backward()
        guide.zero_grad()
        optimizer.step()
    return loss.item()


def main() -> None:
    import tyro

    run([cases], tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    run_main(main)
