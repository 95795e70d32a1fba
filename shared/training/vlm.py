"""Train the small vision-language models of the scenes world on top of the zoo's CLIP, and put them into the zoo.

    accelerate launch -m shared.training.vlm --model scenes-llava --out shared/models/zoo/scenes-llava.safetensors

    L = mean over pictures of nll(x, prompt, target)       half of the prompts ask for a description, half are questions

About ten minutes on 2 cores. The vision tower stays as it is, so that a robust one can take its place. Interrupted, it
continues from its checkpoint (in `--work`). The card says how good the model is on validation pictures, and how far an
attack brings it down; `--card-only` measures again.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shared.attacks import Threat
from shared.attacks.pgd import ascend
from shared.data.language import descriptions, named_objects, objects, questions
from shared.data.scenes import VERSION, VL_DOMAINS, render, sample, uniforms
from shared.data.vision_language import INSTRUCTION, SceneCaptions, SceneQuestions
from shared.errors import run_main
from shared.files import digest, sha256_file
from shared.lifeline import tie_to_launcher
from shared.models import zoo
from shared.models.vlm.base import VLM
from shared.models.vlm.open import load_small, save_small, small_config, small_vlm
from shared.models.zoo import FOLDER
from shared.options import Batch, Bounded, Count, Finite, Positive, Weight, Whole, free, from_command_line
from shared.processes import accelerator as open_accelerator
from shared.rng import SampleRng
from shared.training.contrastive import batch_indices, fit_adamw
from shared.training.loop import check_batch
from shared.training.zoo import Making, Training, make

VALIDATION = 256  # pictures per measurement on a card
ATTACKED = 128  # … and of those under attack
_LESSONS = 5  # a stream of pictures that is no set's


@dataclass(frozen=True)
class VLMConfig(Bounded):
    """How long and how fast to train."""

    steps: Count = 800
    """Updates."""
    batch: Batch = 256
    """Pictures per update, over all processes together."""
    lr: Positive = 2e-3
    """Peak learning rate of AdamW."""
    warmup: Whole = 200
    """Updates of linear warm-up; a cosine to 0 follows."""
    weight_decay: Weight = 0.05
    """Of matrices."""
    clip_norm: Positive = 1.0
    """Bound of the gradient norm."""
    gates: Finite = 1.0
    """Idefics: what the gates α of the cross-attention begin with. 0 protects a language model that can already write;
    this one cannot yet."""
    every: Whole = free(200)
    """Updates between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Args(Making):
    """Train a small vision-language model on scenes."""

    model: str = "scenes-llava"
    """A configuration of shared/models/configs/vlm."""
    out: Path | None = None
    """Where the weights go, by default into the zoo; the card goes beside them."""
    train: VLMConfig = VLMConfig()


class Lessons:
    """Pictures, prompts and what is to be said: item i is a function of (seed, i). Half are descriptions, half
    questions, as a die falls."""

    def __init__(self, n: int, seed: int = 0):
        self.n, self._seed, self.domain = n, _LESSONS + 1000 * seed, VL_DOMAINS["plain"]
        self.version = digest([VERSION, "lessons", self._seed, repr(self.domain)])[:16]

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices) -> tuple[Tensor, list[str], list[str]]:
        """Pictures (N, 3, 32, 32), N prompts, N targets."""
        indices = np.asarray(indices, np.int64)
        scenes, asks = sample(self._seed, indices, self.domain), uniforms(self._seed, indices, 40, 1)[:, 0] < 0.5
        told, asked = descriptions(scenes, self._seed, indices, 1), questions(scenes, self._seed, indices)
        both = [pair if ask else (INSTRUCTION, text[0]) for ask, pair, text in zip(asks, asked, told, strict=True)]
        return (
            torch.from_numpy(render(scenes, self.domain)),
            [prompt for prompt, _ in both],
            [target for _, target in both],
        )


def fit_vlm(vlm: VLM, lessons: Lessons, config: VLMConfig, accelerator, checkpoint: Path | None = None) -> float:
    """Train all of `vlm` but its vision tower, in place; returns the last loss, afterwards all is frozen.

    Every process takes its share of each batch. Raises UserError if the batch is no multiple of the number of
    processes.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    check_batch(f"training {vlm.name}", config.batch, len(lessons), world, "pictures")
    vlm.requires_grad_(True).train()
    vlm.tower.requires_grad_(False).eval()
    for name, p in vlm.named_parameters():
        if name.endswith(("alpha_cross_attn", "alpha_dense")):
            torch.nn.init.constant_(p, config.gates)
    model = accelerator.prepare(vlm)

    def step_fn(step: int) -> Tensor:
        x, prompts, targets = lessons.__getitems__(batch_indices(len(lessons), config.batch, step)[rank::world])
        return model(x.to(accelerator.device), prompts, targets).mean()

    return fit_adamw(vlm, step_fn, config, checkpoint, accelerator, f"training {vlm.name}")


def main() -> None:
    args, accelerator = from_command_line(Args), open_accelerator()
    out = args.out or FOLDER / f"{args.model}.safetensors"

    def begin() -> Training:
        torch.manual_seed(args.seed)  # the initial weights are drawn from the global generator
        vlm = small_vlm(args.model).to(accelerator.device)
        lessons = Lessons(args.train.steps * args.train.batch, args.seed)

        def fit(checkpoint: Path) -> tuple[float, nn.Module]:
            return fit_vlm(vlm, lessons, args.train, accelerator, checkpoint), vlm

        about = [small_config(args.model), vlm.text.vocabulary, zoo.card(vlm.clip)["sha256"]]
        return Training(args.model, lessons.version, about, fit, save_small)

    make(args, "vlm", begin, lambda model, device: measured(out, device), accelerator, out, kind="vlm")


def measured(path: Path, device="cpu") -> dict:
    """The measured part of a card."""
    vlm = load_small(path).to(device).requires_grad_(False)
    values = {
        f"{kind}:{domain}": float(correct(vlm, kind, domain, VALIDATION).mean())
        for kind in ("captions", "questions")
        for domain in VL_DOMAINS
    }
    attacked = {
        kind: float(correct(vlm, kind, "plain", ATTACKED, eps=8 / 255).mean()) for kind in ("captions", "questions")
    }
    return {
        "clip": {"name": vlm.clip, "sha256": sha256_file(zoo.weights(vlm.clip))},
        "n": VALIDATION,
        "accuracy": values,
        "attacked": {"attack": "pgd20", "norm": "linf", "eps": 8 / 255, "n": ATTACKED, "accuracy": attacked},
    }


def correct(vlm: VLM, kind: str, domain: str, n: int, eps: float = 0.0, steps: int = 20) -> np.ndarray:
    """(n,) whether the model is right about the first n validation pictures of scenes-`kind`:`domain`.

    A caption is right if it names exactly the colours and shapes that are there; an answer if it is the word. eps: of
    an attack that raises the nll of the reference (or answer) by `steps` steps of ε/4 from a random start; 0: none.
    """
    rows, device = range(n), next(vlm.parameters()).device
    data = SceneCaptions(domain, "validation") if kind == "captions" else SceneQuestions(domain, "validation")
    if kind == "captions":
        prompts, targets = [data.prompt] * n, [r[0] for r in data.references(rows)]
    else:
        prompts, targets = data.questions(rows), [a[0] for a in data.answers(rows)]
    x = data.pictures(rows).to(device)
    if eps:
        x = torch.cat(
            [
                ascend(
                    lambda v, s=slice(i, i + 64): vlm.nll(v, prompts[s], targets[s]),
                    x[i : i + 64],
                    Threat("linf", eps),
                    steps=steps,
                    step_size=eps / 4,
                    rng=SampleRng(0, rows[i : i + 64], "card"),
                )
                for i in range(0, n, 64)
            ]
        )
    said = vlm.answer(x, prompts)
    if kind == "captions":
        scenes = data.scenes(rows)
        return np.array([named_objects(text) == objects(scenes, i) for i, text in enumerate(said)])
    return np.array([a == t for a, t in zip(said, targets, strict=True)])


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
