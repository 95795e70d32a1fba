"""What a trained CLIP is asked: poison success, backdoor success, zero-shot accuracy, a linear probe, and how near the
poisoned pairs are.

    PSR    target images whose zero-shot class is their adversarial class, un-augmented
    BSR    triggered test images that do not show the target, classified as the target (ASR of `shared.metrics.backdoor`)
    T_k    = Σ_t text(template_t(k)) / ‖·‖, the mean of unit embeddings over templates, of norm 1
    probe  z = W·F(x) + b on the projected embedding F, not normalised; AdamW at 0.005 with a cosine and no warm-up, weight decay 0.01 (none on b),
           32 epochs, as in the released code

The released code trains the probe of Flowers-102 on its test split; here a probe whose two sets share their pictures is
refused.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.data.base import LabelledImages, loader
from shared.data.manifest import Manifest
from shared.data.targets import Target
from shared.errors import UserError
from shared.metrics.backdoor import asr, clean_accuracy
from shared.models.victim import Pixels, ZeroShot, predicted, text_matrix
from shared.options import Batch, Bounded, Count, Positive, Seed, Weight
from shared.repeat import joined, repeated
from shared.training.contrastive import batch_indices
from shared.training.loop import cosine_schedule

CHUNK = 256
FEW = 4096  # pictures that one process reads
LEAK = 0.1  # share of the test pictures that may also be training pictures: real sets have a few duplicates


@dataclass(frozen=True)
class Probing(Bounded):
    """How a linear probe is trained; defaults as released."""

    epochs: Count = 32
    batch: Batch = 512
    lr: Positive = 0.005
    weight_decay: Weight = 0.01
    seed: Seed = 0


@torch.no_grad()
def ensemble(clip: nn.Module, sentences: Sequence[Sequence[str]]) -> Tensor:
    """T (K, D) from the sentences of each of K classes, as many for each. Raises UserError where their numbers
    differ."""
    count = len(sentences[0]) if sentences else 0
    if not count or any(len(said) != count for said in sentences):
        raise UserError(
            "every class needs the same number of sentences, at least one: fill the same templates for all."
        )
    rows = text_matrix(clip, [text for said in sentences for text in said])
    return F.normalize(rows.unflatten(0, (len(sentences), count)).mean(1), dim=-1)


def classifier(clip: nn.Module, text: Tensor, norm: str = "clip") -> ZeroShot:
    """The zero-shot classifier of a CLIP as it is now, in eval mode only if the CLIP is."""
    return ZeroShot(clip.visual, text, 1.0, norm).to(text.device).train(clip.training)


@torch.no_grad()
def predict(victim: ZeroShot, x: Tensor) -> Tensor:
    """Classes (N,) of pictures (N, 3, H, W), on the CPU."""
    device = victim.text.device
    return joined(lambda part: predicted(victim(part.to(device))).cpu(), x.split(CHUNK))


def targets_of(manifest: Manifest, classes: Sequence[str]) -> tuple[list[int], list[int]]:
    """The target images of a targeted poisoning (their numbers among the images they were chosen from), and their
    adversarial classes.

    Raises UserError where the manifest is of another poisoning or names a class that is not there.
    """
    if manifest.about.get("kind") != "targets":
        raise UserError(
            f"the manifest is about {manifest.about.get('kind')!r}, not about target images: give that of "
            "TargetedPairs."
        )
    wanted = {row.picture: row.target for row in manifest.rows}
    unknown = sorted(set(wanted.values()) - set(classes))
    if unknown:
        raise UserError(
            f"the classes have no {unknown[0]!r}, which the manifest is about: give the classes that the targets were "
            "drawn from."
        )
    return list(wanted), [classes.index(name) for name in wanted.values()]


class Watch:
    """Measurements at the end of an epoch, for `papers.roclip.training.train`: an instance is its `after_epoch`.

    sentences: of each class, for the classifier. Each of the others may be left out: targets (x, classes) -> psr;
    triggered (x, labels, target class) -> bsr; clean (x, labels) -> accuracy; pairs, name -> (x, captions) ->
    similarity of picture and caption. Values are lists over examples.
    """

    def __init__(
        self,
        sentences: Sequence[Sequence[str]],
        targets: tuple[Tensor, Sequence[int]] | None = None,
        triggered: tuple[Tensor, Sequence[int], int] | None = None,
        clean: tuple[Tensor, Sequence[int]] | None = None,
        pairs: dict[str, tuple[Tensor, Sequence[str]]] | None = None,
        norm: str = "clip",
    ):
        self.sentences, self.targets, self.triggered, self.clean, self.pairs, self.norm = (
            sentences,
            targets,
            triggered,
            clean,
            pairs or {},
            norm,
        )

    def __call__(self, epoch: int, clip: nn.Module, pools: dict | None = None) -> dict[str, list]:
        victim, out = classifier(clip, ensemble(clip, self.sentences), self.norm), {}
        if self.targets is not None:
            out["psr"] = clean_accuracy(predict(victim, self.targets[0]), self.targets[1]).astype(int).tolist()
        if self.triggered is not None:
            x, labels, target = self.triggered
            out["bsr"] = asr(predict(victim, x), labels, target).astype(int).tolist()
        if self.clean is not None:
            out["accuracy"] = clean_accuracy(predict(victim, self.clean[0]), self.clean[1]).astype(int).tolist()
        for name, (x, texts) in self.pairs.items():
            out[f"similarity_{name}"] = [round(v, 4) for v in similarity(clip, x, texts, self.norm).tolist()]
        return out


@torch.no_grad()
def similarity(clip: nn.Module, x: Tensor, texts: Sequence[str], norm: str = "clip") -> Tensor:
    """cos(z_i^I, z_i^T) − mean_{j≠i} cos(z_i^I, z_j^T) (N,) of N pairs: how much nearer a picture is to its caption.

    The cosine alone says little: where everything is close, it is large for any caption. Of one pair it is the cosine.
    """
    image = F.normalize(embedded(clip, x, norm), dim=-1)
    cosine = image @ text_matrix(clip, texts).to(image).T
    own = cosine.diagonal()
    return (own - (cosine.sum(1) - own) / max(1, len(x) - 1)).cpu()


def sentences_of(targets: Sequence[Target], templates: Sequence[str]) -> list[list[str]]:
    """Every class in every template."""
    return [[target.say(template) for template in templates] for target in targets]


class InMemory(LabelledImages):
    """A labelled set of which all pictures were read once."""

    def __init__(self, data: LabelledImages):
        self.name, self.classes, self.prompts, self.version = data.name, data.classes, data.prompts, data.version
        self._x, self._y = data.__getitems__(list(range(len(data))))

    def __len__(self) -> int:
        return len(self._y)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._x[list(indices)], self._y[list(indices)]


def linear_probe(
    clip: nn.Module, train, test, probing: Probing = Probing(), norm: str = "clip"
) -> tuple[Tensor, Tensor]:
    """Predicted and true labels (N,) of the test pictures, from a linear probe on the training pictures.

    train, test: labelled sets with the same classes (`shared.data.base.LabelledImages`). Each picture is embedded once.
    Raises UserError where their classes differ, they are the same split, or they share more than a tenth of the test
    pictures.
    """
    if tuple(train.classes) != tuple(test.classes):
        raise UserError(
            f"the linear probe of {train.name} is trained and tested on different classes: give two splits of one set."
        )
    if train is test or train.version == test.version:
        raise UserError(
            f"the linear probe of {train.name} would be trained on the pictures it is tested on: give another split to "
            "train on."
        )
    x, y, seen = _read(clip, train, norm)
    x_test, y_test, tested = _read(clip, test, norm)
    known = set(seen)
    shared = sum(one in known for one in tested)
    if shared > LEAK * len(tested):
        raise UserError(
            f"{shared} of {len(tested)} test pictures of {train.name} are training pictures of the linear probe: give "
            "disjoint splits."
        )
    head = _fit(x, y, train.num_classes, probing, clip.logit_scale.device).cpu()
    return predicted(head(x_test)), y_test


def _read(clip: nn.Module, data, norm: str) -> tuple[Tensor, Tensor, list[bytes]]:
    """Embeddings (N, D), labels (N,) and digests of all pictures."""
    rows, labels, known = (
        [],
        [],
        getattr(data, "digests", None),
    )  # they are the same for every CLIP that is asked about a set
    digests = [] if known is None else known
    workers = (
        min(12, os.cpu_count() or 1) if len(data) > FEW else 0
    )  # decoding photographs takes longer than embedding them
    for x, y in loader(data, [part.tolist() for part in torch.arange(len(data)).split(CHUNK)], workers):
        rows.append(embedded(clip, x, norm).cpu())
        labels.append(y)
        if known is None:
            digests += digests_of(x)
    if known is None:
        data.digests = digests
    return torch.cat(rows), torch.cat(labels), digests


def digests_of(x: Tensor) -> list[bytes]:
    """What tells N pictures from others."""
    return [blake2b(picture.numpy().tobytes(), digest_size=16).digest() for picture in x.contiguous()]


@torch.no_grad()
def embedded(clip: nn.Module, x: Tensor, norm: str = "clip") -> Tensor:
    """F(x) (N, D), projected and not normalised."""
    device = clip.logit_scale.device
    pixels = Pixels.of(clip.visual, norm).to(device)
    return joined(lambda part: clip.visual(pixels(part.to(device))), x.split(CHUNK)).float()


def _fit(x: Tensor, y: Tensor, classes: int, probing: Probing, device: torch.device) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(probing.seed)
        head = nn.Linear(x.shape[1], classes).to(device)
    optimizer = torch.optim.AdamW(
        [{"params": [head.weight], "weight_decay": probing.weight_decay}, {"params": [head.bias], "weight_decay": 0.0}]
    )
    batch = min(probing.batch, len(x))
    steps = probing.epochs * (len(x) // batch)
    with torch.enable_grad():
        for step in repeated(range(steps)):
            for group in optimizer.param_groups:
                group["lr"] = probing.lr * cosine_schedule(step, steps, 0)
            rows = batch_indices(len(x), batch, step, probing.seed)
            loss = F.cross_entropy(head(x[rows].to(device)), y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.requires_grad_(False)
