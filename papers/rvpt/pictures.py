"""What the paper shows and does not tabulate: resistivity, attention, features, perturbed and triggered pictures.

Each class is a kind of number, one value per picture, with the arrays that a figure draws in `extra`. Pictures are kept
as bytes. A number stands behind every picture, because pictures can be chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.rvpt.defences import model_of
from papers.rvpt.resistivity import Features, Perturbations, attention_map, features
from papers.rvpt.scores import Clip, Said
from papers.rvpt.supervised import Supervised, Torchvision
from papers.rvpt.tuning import few_shot
from shared.attacks.triggers import at_test, sheet
from shared.data.base import ClassSubset
from shared.experiment.leaves import Pictures
from shared.experiment.step import Lab, Measured, Values, free
from shared.metrics.perceptual import psnr
from shared.models.victim import Pixels, predicted
from shared.repeat import joined_all, parts_of
from shared.rng import SampleRng
from shared.steps.backdoor import Aim, Seen, Stamp

CLASSES = 8  # of figure 5, the target's among them: more colours cannot be told apart
STREAM = "perturbed"  # of the perturbations' draws, by seed and picture
GAIN = 4.0  # how many times as large changes are drawn
GAP = 2  # white pixels between the cells of a sheet


class Eye(NamedTuple):
    """A tower and the pixels it takes: all that `features` and `attention_map` ask of a victim."""

    visual: torch.nn.Module
    pixels: torch.nn.Module


def eye(lab: Lab, clip: Clip) -> Eye:
    """That of a CLIP, with its prompts."""
    visual = model_of(lab, clip).visual
    return Eye(visual, Pixels.of(visual).to(lab.device))


class Chosen(NamedTuple):
    """Some pictures (N, 3, H, W), their labels and their numbers in the set."""

    x: Tensor
    y: Tensor
    indices: list[int]

    @classmethod
    def first(cls, lab: Lab, data: Pictures, n: int, without: int | None = None) -> "Chosen":
        """The first n of a choice that do not have the label `without`; all, where there are fewer."""
        (x, y), rows = Seen(data).clean(lab), data.rows(lab)
        at = torch.arange(len(y)) if without is None else (y.cpu() != without).nonzero().flatten()
        at = at[:n]
        return cls(x[at], y[at], [rows[i] for i in at.tolist()])

    def part(self, n: int) -> "Chosen":
        """The first n."""
        return Chosen(self.x[:n], self.y[:n], self.indices[:n])


def by_batch(batch: int, function: Callable, *arrays: Tensor | Sequence) -> Tensor | tuple:
    """function(rows of the arrays) over batches; its results, tensors or named tuples of them, joined on the CPU."""
    kinds: list[type] = []

    def made(part: range) -> tuple[Tensor, ...]:
        found = function(*(a[part.start : part.stop] for a in arrays))
        kinds.append(type(found))
        return tuple(t.cpu() for t in found) if isinstance(found, tuple) else (found.cpu(),)

    columns = joined_all(made, parts_of(range(len(arrays[0])), batch))
    return kinds[0](*columns) if issubclass(kinds[0], tuple) else columns[0]


def as_bytes(x: Tensor) -> np.ndarray:
    """Pictures (N, 3, H, W) in [0, 1] as they are kept."""
    return x.clamp(0, 1).mul(255).round().byte().cpu().numpy()


# ---- figures 1, 7, 8 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A perturbation of appendix B by its name, or a trigger; draws by (seed, picture)."""

    name: str
    perturbations: Perturbations
    seed: int
    stamp: Stamp | None = None

    def of(self, lab: Lab, chosen: Chosen, batch: int) -> Tensor:
        """The pictures under it."""
        if self.stamp is not None:
            return at_test(self.stamp.open(lab), chosen.x, chosen.indices)
        change = self.perturbations.all()[self.name]

        def made(x: Tensor, indices: Sequence[int]) -> Tensor:
            return change(x, SampleRng(self.seed, indices, STREAM))

        return by_batch(batch, made, chosen.x, chosen.indices).to(chosen.x.device)


@dataclass(frozen=True)
class Resistivity(Measured):
    """PR at the encoder's output, a cosine per picture.

    extra: layers (N, L), PR of the class token after each block; of a supervised encoder also accuracy (N,), which says
    what its features are worth (not where its classes are others than those of the set). All encoders see the same
    perturbed pictures. Pictures of the target class are among them: nothing here depends on labels.
    """

    weight: ClassVar[float] = 6.0
    encoder: Clip | Supervised | Torchvision
    data: Pictures
    change: Change
    batch: int = free(256)

    def make(self, lab: Lab) -> Values:
        chosen, extra = Chosen.first(lab, self.data, self.data.n), {}
        if isinstance(self.encoder, Supervised | Torchvision):
            classify, encode = lab.once(("encoder", self.encoder), lambda: self.encoder.open(lab))
            extra = lab.once(("right", self.encoder, self.data), lambda: self._right(lab, classify, chosen))
        else:
            seen = eye(lab, self.encoder)

            def encode(x: Tensor) -> Features:
                return features(seen, x)

        changed = self.change.of(lab, chosen, self.batch)
        a, b = by_batch(self.batch, encode, chosen.x), by_batch(self.batch, encode, changed)
        pairs = zip(a, b, strict=True)
        layers, output = (F.cosine_similarity(u.float(), v.float(), dim=-1).clamp(-1, 1).numpy() for u, v in pairs)
        return Values(output.astype(np.float64), "cosine", {"layers": layers.astype(np.float32), **extra})

    @torch.no_grad()
    def _right(self, lab: Lab, classify: torch.nn.Module, chosen: Chosen) -> dict[str, np.ndarray]:
        logits = by_batch(self.batch, classify, chosen.x)
        if logits.shape[1] != self.data.open(lab).num_classes:
            return {}
        return {"accuracy": (predicted(logits) == chosen.y.cpu()).double().numpy()}


# ---- figure 4 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention(Measured):
    """How much of what the last class token looks at in a triggered picture lies under the trigger.

    value: Σ attention over the tokens that the trigger touches / Σ over all tokens of the picture, of the first n
    pictures of other classes than the target. What goes to prompts is left out of both sums, or any prompt would seem
    to look away; with it: extra `of_all`. extra also: `clean`, the same share in the picture without the trigger;
    `area`, the share of tokens that are touched (an even look has that much); and of the first `maps` pictures the maps
    (k, h, w) and the pictures (k, 3, H, W), clean and triggered, what the model says to each, and what they show.
    """

    said: Said
    aim: Aim
    n: int
    maps: int

    def make(self, lab: Lab) -> Values:
        said, batch, k = self.said, self.said.batch, self.maps
        chosen = Chosen.first(lab, said.seen.data, self.n, self.aim.label(lab))
        seen, names = eye(lab, said.clip), lab.data(said.seen.data.spec).classes
        few = chosen.part(k)
        x = at_test(said.seen.stamp.open(lab), chosen.x, chosen.indices)
        states = {"clean": chosen.x, "triggered": x}
        maps = {s: by_batch(batch, lambda part: attention_map(seen, part), pictures) for s, pictures in states.items()}
        touched = touched_tokens(chosen.x, x, tuple(maps["clean"].shape[1:])).cpu()
        under = {state: (a * touched).sum((1, 2)) for state, a in maps.items()}
        whole = {state: a.sum((1, 2)).clamp(min=1e-12) for state, a in maps.items()}
        share = {state: (under[state] / whole[state]).double().numpy() for state in states}
        extra = {
            "clean": share["clean"],
            "of_all": under["triggered"].double().numpy(),
            "area": touched.double().mean((1, 2)).numpy(),
            "truth": np.array([names[i] for i in few.y.tolist()]),
        }
        for state, pictures in states.items():
            bare = said if state == "triggered" else replace(said, seen=replace(said.seen, stamp=None))
            answers = bare.of(bare.classifier(lab), pictures[:k])
            extra |= {
                f"{state}_maps": maps[state][:k].float().numpy(),
                f"{state}_pictures": as_bytes(pictures[:k]),
                f"{state}_said": np.array([names[i] for i in answers.tolist()]),
            }
        return Values(share["triggered"], "share", extra)


def touched_tokens(x: Tensor, triggered: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which of the grid's tokens hold a pixel that the trigger changed: (N, h, w), 0 or 1."""
    changed = (triggered != x).any(dim=1, keepdim=True).float()
    return F.adaptive_max_pool2d(changed, grid)[:, 0]


# ---- figure 5 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedding(Measured):
    """Whether a triggered picture of another class than the target has its nearest neighbour in its own class: 1 or 0.

    Test pictures of the target's class and CLASSES − 1 drawn ones, n in all. Neighbours are clean pictures by cosine,
    without the triggered picture's own original, which would be the nearest of most small changes. extra: to_target,
    whether the neighbour is of the target's class; clean, the same as the value for the clean pictures (all classes);
    xy and xy_triggered, one t-SNE of all clean and triggered features together (unit length; scikit-learn, fixed seed;
    a picture, no measurement); labels and triggered_labels, into `names`, of which the last is the target.
    """

    weight: ClassVar[float] = 8.0
    clip: Clip
    data: Pictures
    stamp: Stamp
    aim: Aim
    n: int
    seed: int
    batch: int = free(256)

    def make(self, lab: Lab) -> Values:
        chosen, names = self.chosen(lab)
        last, seen = len(names) - 1, eye(lab, self.clip)
        rows = (chosen.y != last).nonzero().flatten()
        triggered = at_test(self.stamp.open(lab), chosen.x[rows], [chosen.indices[i] for i in rows.tolist()])

        def unit(x: Tensor) -> Tensor:
            return F.normalize(by_batch(self.batch, lambda part: features(seen, part).output, x).float(), dim=1)

        clean, moved = unit(chosen.x), unit(triggered)
        labels, own = chosen.y.cpu(), rows.cpu()
        near, near_clean = nearest(moved, clean, own), nearest(clean, clean, torch.arange(len(clean)))
        value = (labels[near] == labels[own]).double().numpy()
        xy = plane(torch.cat((clean, moved)).numpy(), self.seed)
        extra = {
            "to_target": (labels[near] == last).double().numpy(),
            "clean": (labels[near_clean] == labels).double().numpy(),
            "xy": xy[: len(clean)],
            "xy_triggered": xy[len(clean) :],
            "labels": labels.numpy(),
            "triggered_labels": labels[own].numpy(),
            "names": np.array(names),
        }
        return Values(value, "share", extra)

    def chosen(self, lab: Lab) -> tuple[Chosen, list[str]]:
        """Pictures of few classes, relabelled, and the classes' names, the target's last."""
        data, target = self.data.open(lab), self.aim.label(lab)
        rest = np.setdiff1d(np.arange(data.num_classes), [target])
        drawn = np.sort(np.random.default_rng([self.seed, 5]).permutation(rest)[: CLASSES - 1]).tolist()
        part = ClassSubset(data, [*drawn, target])
        few = few_shot(part, max(2, self.n // len(part.classes)), self.seed)
        x, y = few.__getitems__(range(len(few)))
        indices = part.indices[few.indices].tolist()  # in the set itself: triggers are drawn by them
        return Chosen(x.to(lab.device), y.to(lab.device), indices), list(part.classes)


def nearest(queries: Tensor, among: Tensor, without: Tensor) -> Tensor:
    """(N,): which row of `among` (M, D) is nearest to each of `queries` (N, D), all of unit length.

    Row without[i] is no neighbour of query i.
    """
    similarity = queries @ among.T
    similarity[torch.arange(len(queries)), without] = -2.0
    return similarity.argmax(1)


def plane(points: np.ndarray, seed: int) -> np.ndarray:
    """(N, 2) float32: t-SNE of points (N, D), started from their principal axes."""
    from sklearn.manifold import TSNE  # slow to import, and of one figure

    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
    return tsne.fit_transform(points.astype(np.float64)).astype(np.float32)


# ---- figures 6 and 9 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Perturbed(Measured):
    """The four perturbations drawn: PSNR (dB) against the original, one per perturbation, mean over the pictures.

    extra: names (P,), pictures (k, 1 + P, 3, H, W) of `maps` pictures, the first of each row unchanged.
    """

    data: Pictures
    perturbations: Perturbations
    maps: int
    seed: int
    batch: int = free(256)

    def make(self, lab: Lab) -> Values:
        chosen, k = Chosen.first(lab, self.data, self.data.n), self.maps
        names = tuple(self.perturbations.all())
        changed = [Change(name, self.perturbations, self.seed).of(lab, chosen, self.batch) for name in names]
        values = [psnr(x, chosen.x).mean() for x in changed]
        pictures = torch.stack([chosen.x[:k], *(x[:k] for x in changed)], dim=1)
        return Values(np.array(values), "dB", {"names": np.array(names), "pictures": as_bytes(pictures)})


@dataclass(frozen=True)
class Triggers(Measured):
    """The triggers drawn: PSNR (dB) against the original, one per attack, mean over the pictures.

    extra: names (A,); sheet, bytes (height, width, 3), of `maps` pictures: for each a row of it and its triggered
    forms, and below what they changed, GAIN times as large, on grey; cells are GAP white pixels apart.
    """

    data: Pictures
    attacks: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    maps: int
    batch: int = free(256)

    def make(self, lab: Lab) -> Values:
        chosen = Chosen.first(lab, self.data, self.data.n)
        few, made = chosen.part(self.maps), [stamp.open(lab) for stamp in self.stamps]
        x = chosen.x.cpu()
        values = [psnr(by_batch(self.batch, trigger, chosen.x, chosen.indices), x).mean() for trigger in made]
        extra = {
            "names": np.array(self.attacks),
            "sheet": sheet(few.x, made, few.indices, GAIN, GAP),
            "side": np.array(few.x.shape[2:]),
            "gap": np.array(GAP),
            "gain": np.array(GAIN),
        }
        return Values(np.array(values), "dB", extra)
