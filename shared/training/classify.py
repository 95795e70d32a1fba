"""Train a classifier, as usual or adversarially, and put it into the zoo.

    python -m shared.training.classify --data scenes:ten --out shared/models/zoo/scenes-ten-resnet8.safetensors python
    -m shared.training.classify --data scenes:ten --train.eps 8/255 --out
    shared/models/zoo/scenes-ten-resnet8-at.safetensors

    min_θ E[ max_{x' ∈ B(x)} CE(f_θ(x'), y) ]     Madry et al. 2018, B the ℓ∞ ball of ε; ε = 0 is standard training

The maximum is sought by PGD from a random start. The attack sees the network in eval mode: with batch statistics one
picture's gradient would depend on the others, and the attacked network would not be the one that is used later. The
loss is taken in train mode, so that BatchNorm's running statistics are those of adversarial pictures. Which pictures,
shifts, flips and random starts an update has is a function of (seed, update, picture), so an interrupted training
continues exactly. `--card-only` measures again. Under a launcher the first process does it alone: the networks are
small, and BatchNorm would see other batches in each process.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attacks import cascade
from shared.attacks.gradient import eval_mode
from shared.attacks.pgd import ascend
from shared.attacks.threat import Threat
from shared.data.base import Subset, subset
from shared.data.catalogue import Source, open_set
from shared.errors import run_main
from shared.lifeline import tie_to_launcher
from shared.models.classifier import open_classifier, random_classifier, save_classifier
from shared.options import (
    Batch,
    Bounded,
    Count,
    Decay,
    Pixels,
    Positive,
    Range,
    Weight,
    Whole,
    Workers,
    free,
    from_command_line,
)
from shared.rng import SampleRng
from shared.training.contrastive import Batches
from shared.training.denoising import Averaged
from shared.training.loop import Fit, OneProcess, check_batch
from shared.training.zoo import VALIDATION, Making, Training, make

SHIFT = 4  # pixels
ATTACKED, ATTACK_STEPS = 8 / 255, 20  # of the card
STAGES = ("apgd-ce", "apgd-t")  # the cross-entropy alone is flat around pictures that a network is sure of


@dataclass(frozen=True)
class ClassifierTraining(Bounded):
    """How long, how fast and against what to train."""

    steps: Count = 2000
    """Updates."""
    batch: Batch = 64
    """Pictures per update."""
    lr: Positive = 0.1
    """Peak learning rate of SGD with Nesterov momentum 0.9."""
    warmup: Whole = 100
    """Updates of linear warm-up; a cosine to 0 follows."""
    weight_decay: Weight = 5e-4
    """Of all weights."""
    augment: Literal["none", "shift_flip"] = "none"
    """shift_flip: a shift of up to 4 pixels (black comes in) and a mirror image half of the time."""
    eps: Annotated[Pixels, Range(0, 1)] = 0.0
    """ℓ∞ ball of adversarial training, in pixels of [0, 1] (0: standard training)."""
    attack_steps: Count = 4
    """PGD iterations on each batch."""
    attack_ratio: Positive = 0.4
    """Their step size, in ε."""
    average: Decay = 0.0
    """Decay of the running average of the weights, which is what is kept (0: the last weights)."""
    every: Whole = free(100)
    """Updates between checkpoints (0: none)."""
    workers: Workers = free(0)
    """Processes that read pictures ahead of the training."""


@dataclass(frozen=True, kw_only=True)
class Args(Making):
    """Train a classifier."""

    out: Path
    """Where the weights go; the card goes beside them."""
    data: str = "scenes:ten"
    """Data set, see shared/data/catalogue.py. Of a drawn one no picture is seen twice."""
    data_root: str | None = None
    """DATA_ROOT, for sets that are read from files."""
    arch: str = "resnet8"
    """Architecture, see shared/models/classifier.py."""
    train: ClassifierTraining = ClassifierTraining()


class AveragedWithStatistics(Averaged):
    """A running average of the statistics of BatchNorm too: those of the last weights would not fit the averaged
    ones."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        super().update(step)
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mean.lerp_(value, weight) if mean.is_floating_point() else mean.copy_(value)


def shift_flip(x: Tensor, rng: SampleRng) -> Tensor:
    """Pictures x (N, C, H, W), each moved by −4 … 4 pixels along both axes (zeros come in) and mirrored with
    probability 1/2."""
    height, width = x.shape[2:]
    dy, dx = rng.child("shift").integers(2 * SHIFT + 1, (2,)).to(x.device).T
    rows, columns = (torch.arange(n, device=x.device) + d[:, None] for n, d in ((height, dy), (width, dx)))
    mirrored = rng.child("flip").integers(2).bool().to(x.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    return F.pad(x, (SHIFT,) * 4)[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def train_classifier(
    model: nn.Module,
    data,
    training: ClassifierTraining,
    seed: int,
    device="cpu",
    checkpoint: Path | None = None,
    name: str = "classifier",
) -> float:
    """Train `model` (logits (N, K) of pictures in [0, 1]) in place; returns the last loss. It is left frozen and in
    eval mode.

    data: labelled images with batched access. checkpoint: file to continue from, removed by nobody. Raises UserError
    where a batch is larger than the set or the loss is no number at the end.
    """
    check_batch(name, training.batch, len(data), what="pictures")
    model.requires_grad_(True).train()
    both = AveragedWithStatistics(model, training.average) if training.average else None
    optimizer = torch.optim.SGD(
        model.parameters(), lr=training.lr, momentum=0.9, nesterov=True, weight_decay=training.weight_decay
    )
    batches = Batches.shuffled(data, training.batch, training.steps, seed, training.workers)

    def step_fn(step: int) -> Tensor:
        x, y = (t.to(device, non_blocking=True) for t in batches(step))
        rng = SampleRng(seed, batches.indices(step)).child(f"train{step}")
        if training.augment == "shift_flip":
            x = shift_flip(x, rng.child("augment"))
        if training.eps:
            x = hardest(model, x, y, training, rng.child("attack"))
        return F.cross_entropy(model(x), y)

    fit = Fit(
        both or model,
        optimizer,
        training.steps,
        training.lr,
        step_fn,
        training.warmup,
        checkpoint,
        training.every,
        after_step=both.update if both else None,
        name=name,
    )
    loss = fit.run()
    if both is not None:
        model.load_state_dict(both.average.state_dict())
    model.requires_grad_(False).eval()
    return loss


def hardest(model: nn.Module, x: Tensor, y: Tensor, training: ClassifierTraining, rng: SampleRng) -> Tensor:
    """The last iterate of PGD on the cross-entropy of the model in eval mode; the model is left in the mode it was
    in."""
    threat = Threat("linf", training.eps)
    with eval_mode(model):
        return ascend(
            lambda z: F.cross_entropy(model(z), y, reduction="none"),
            x,
            threat,
            steps=training.attack_steps,
            step_size=training.attack_ratio * training.eps,
            rng=rng,
        )


def main() -> None:
    args = from_command_line(Args)
    if int(os.environ.get("RANK", 0)):
        return
    alone = OneProcess("cuda" if torch.cuda.is_available() else "cpu")

    def begin() -> Training:
        data = open_set(args.data, "train", Source(root=args.data_root), n=args.train.steps * args.train.batch)
        classifier = random_classifier(args.arch, data.num_classes, args.seed).to(alone.device)

        def fit(checkpoint: Path) -> tuple[float, nn.Module]:
            how = (args.train, args.seed, alone.device, checkpoint, args.out.stem)
            return train_classifier(classifier, data, *how), classifier

        return Training(args.arch, data.version, [args.data], fit, save_classifier)

    def card(arch: str, device: str) -> dict:
        return measured(args.out, args.data, args.data_root, arch, device)

    make(args, "classify", begin, card, alone, kind="classifier")


def unseen(spec: str, root: str | None = None):
    """(the pictures a card is measured on, their split): validation pictures of a drawn set, else of the test split; so
    many of each class."""
    split = "validation" if spec.startswith("scenes:") else "test"
    data = open_set(spec, split, Source(root=root))
    return Subset(data, subset(data, VALIDATION, 0)), split


def measured(path: Path, spec: str, root: str | None, arch: str, device="cpu") -> dict:
    """The measured part of a card: accuracy on unseen pictures, clean and under 20 steps of APGD-CE and APGD-T at
    8/255."""
    data, split = unseen(spec, root)
    classifier = open_classifier(arch, str(path), data.num_classes, device=device)
    return {
        "set": spec,
        "split": split,
        "classes": list(data.classes),
        "n": len(data),
        "accuracy": accuracy(classifier, data),
        "attacked": {
            "attack": f"apgd{ATTACK_STEPS}",
            "norm": "linf",
            "eps": ATTACKED,
            "accuracy": accuracy(classifier, data, Threat("linf", ATTACKED)),
        },
    }


def accuracy(classifier: nn.Module, data, threat: Threat | None = None, batch: int = 128) -> float:
    """Accuracy on a set; with a threat, under APGD-CE and, where that fails, APGD towards three other classes, 20 steps
    each."""
    return sum(int(right.sum()) for right in _right(classifier, data, threat, batch)) / len(data)


def _right(classifier: nn.Module, data, threat: Threat | None, batch: int) -> Iterator[Tensor]:
    device = next(classifier.buffers()).device
    for indices in torch.arange(len(data)).split(batch):
        x, y = (t.to(device) for t in data.__getitems__(indices.tolist()))
        if threat is not None:
            x = cascade(
                classifier,
                x,
                y,
                threat,
                rng=SampleRng(0, indices, "card"),
                stages=STAGES,
                steps=ATTACK_STEPS,
                targets=3,
            ).x_adv
        with torch.no_grad():
            yield classifier(x).argmax(1) == y


if __name__ == "__main__":
    tie_to_launcher()
    run_main(main)
