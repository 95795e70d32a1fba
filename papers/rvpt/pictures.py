"""What the paper shows and does not tabulate: perturbation resistivity, attention, features, perturbed and triggered pictures.

Each function is a kind of measurement, (m, cell) -> Values: numbers per picture, and in `extra` the arrays that a figure draws. Pictures are kept as
bytes. A number stands behind every picture, because pictures can be chosen.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.rvpt.cells import Cell
from papers.rvpt.resistivity import Features, attention_map, features
from papers.rvpt.supervised import supervised_model
from papers.rvpt.tuning import few_shot
from shared.attacks.triggers import at_test, sheet
from shared.data.base import ClassSubset
from shared.experiment.bench import World
from shared.experiment.evaluation import Values
from shared.metrics.perceptual import psnr
from shared.models.victim import Pixels
from shared.rng import SampleRng

CLASSES = 8  # of figure 5, the target's among them: more colours cannot be told apart
STREAM = "perturbed"  # of the perturbations' draws, by seed and picture


class Eye(NamedTuple):
    """A tower and the pixels it takes: all that `features` and `attention_map` ask of a victim."""

    visual: torch.nn.Module
    pixels: torch.nn.Module


def eye(m, cell: Cell) -> Eye:
    """That of the cell's model, with its prompts."""
    visual = m.bench.of(cell).visual
    return Eye(visual, Pixels.of(visual).to(m.bench.device))


def shown(m, cell: Cell, n: int, without_target: bool = False) -> World:
    """The first n pictures of the cell's set (all, where there are fewer); without_target: that do not show what attackers plant."""
    config = m.config
    spec = config.spec(cell.at)
    if not without_target:
        return m.bench.world(spec, n=min(n, config.data.n or n))
    world = m.bench.world(spec, n=min(2 * n, config.data.n or 2 * n))
    rows = (world.y != m.bench.label(cell.place, cell.at)).nonzero().flatten()[:n]
    return World(spec, world.x[rows], world.y[rows], [world.indices[i] for i in rows.tolist()], world.skipped)


def by_batch(m, function: Callable, *arrays):
    """function(rows of the arrays) over batches; its results (tensors, or named tuples of tensors) one behind the other, on the CPU."""
    parts = [function(*(a[i:i + m.config.batch] for a in arrays)) for i in range(0, len(arrays[0]), m.config.batch)]
    if isinstance(parts[0], tuple):
        return type(parts[0])(*(torch.cat([t.cpu() for t in column]) for column in zip(*parts, strict=True)))
    return torch.cat([p.cpu() for p in parts])


def triggered(m, cell: Cell, world: World) -> Tensor:
    """The pictures with the trigger of the cell's attack, on the bench's device."""
    return at_test(m.bench.trigger(cell.attack, cell.backbone), world.x, world.indices)


def perturbed_by(m, cell: Cell, world: World, name: str) -> Tensor:
    """The pictures under one perturbation of appendix B, or (name `trigger`) under the attack's trigger; draws by (cell's seed, picture)."""
    if name == "trigger":
        return triggered(m, cell, world)
    change = m.config.sweeps.perturbations.all()[name]
    return by_batch(m, lambda x, indices: change(x, SampleRng(cell.seed, indices, STREAM)), world.x, world.indices).to(world.x.device)


def as_bytes(x: Tensor) -> np.ndarray:
    """Pictures (N, 3, H, W) in [0, 1] as they are kept."""
    return x.clamp(0, 1).mul(255).round().byte().cpu().numpy()


# ---- figures 1, 7, 8 ----------------------------------------------------------------------------------------------------------


def resistivity(m, cell: Cell) -> Values:
    """PR at the encoder's output, a cosine per picture, of the first `resistivity_n` test pictures, under the perturbation of the cell's point.

    extra: layers (N, L), PR of the class token after each block; for `supervised` also accuracy (N,), which says what its features are worth (not
    where its classes are others than those of the set). All encoders see the same perturbed pictures. Pictures of the target class are among them:
    nothing here depends on labels.
    """
    world, extra = shown(m, cell, m.config.sweeps.resistivity_n), {}
    if cell.method == "supervised":
        classify, encode = _supervised(m)
        if ("supervised right", world.spec) not in m.held:
            with torch.no_grad():
                m.held["supervised right", world.spec] = _right(by_batch(m, classify, world.x), world, m.bench.labelled(world.spec).num_classes)
        extra = m.held["supervised right", world.spec]
    else:
        seen = eye(m, cell)

        def encode(x: Tensor) -> Features:
            return features(seen, x)

    a, b = by_batch(m, encode, world.x), by_batch(m, encode, perturbed_by(m, cell, world, dict(cell.point)["perturbation"]))
    layers, output = (F.cosine_similarity(u.float(), v.float(), dim=-1).clamp(-1, 1).numpy() for u, v in zip(a, b, strict=True))
    return Values(output.astype(np.float64), "cosine", {"layers": layers.astype(np.float32), **extra})


def _supervised(m):
    if "supervised" not in m.held:
        m.held["supervised"] = supervised_model(m.bench)
    return m.held["supervised"]


def _right(logits: Tensor, world: World, classes: int) -> dict[str, np.ndarray]:
    return {"accuracy": (logits.argmax(1) == world.y.cpu()).double().numpy()} if logits.shape[1] == classes else {}


# ---- figure 4 -----------------------------------------------------------------------------------------------------------------


def attention(m, cell: Cell) -> Values:
    """How much of what the last class token looks at in a triggered picture lies under the trigger, per picture of another class than the target.

    value: Σ attention over the tokens that the trigger touches / Σ over all tokens of the picture, of `resistivity_n` pictures. What goes to prompts
    is left out of both sums, or any prompt would seem to look away; with it: extra `of_all`. extra also: `clean`, the same share in the picture
    without the trigger; `area`, the share of tokens that are touched (an even look has that much); and of the first `maps` pictures the maps
    (k, h, w) and the pictures (k, 3, H, W), clean and triggered, what the model says to each, and what they show.
    """
    world, seen, k = shown(m, cell, m.config.sweeps.resistivity_n, without_target=True), eye(m, cell), m.config.sweeps.maps
    x = triggered(m, cell, world)
    maps = {name: by_batch(m, lambda part: attention_map(seen, part), pictures) for name, pictures in (("clean", world.x), ("triggered", x))}
    touched = touched_tokens(world.x, x, tuple(maps["clean"].shape[1:])).cpu()
    under = {name: (a * touched).sum((1, 2)) for name, a in maps.items()}
    share = {name: (under[name] / a.sum((1, 2)).clamp(min=1e-12)).double().numpy() for name, a in maps.items()}
    names, few = m.bench.labelled(world.spec).classes, world.part(k)
    extra = {"clean": share["clean"], "of_all": under["triggered"].double().numpy(), "area": touched.double().mean((1, 2)).numpy(),
             "truth": np.array([names[i] for i in few.y.tolist()])}
    for name, pictures in (("clean", few.x), ("triggered", x[:k])):
        trigger = m.bench.trigger(cell.attack, cell.backbone) if name == "triggered" else None
        with torch.no_grad():
            said = m.bench.classifier(cell, trigger)(pictures).argmax(1)
        extra |= {f"{name}_maps": maps[name][:k].float().numpy(), f"{name}_pictures": as_bytes(pictures),
                  f"{name}_said": np.array([names[i] for i in said.tolist()])}
    return Values(share["triggered"], "share", extra)


def touched_tokens(x: Tensor, triggered_x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which of the grid's tokens hold a pixel that the trigger changed: (N, h, w), 0 or 1."""
    changed = (triggered_x != x).any(dim=1, keepdim=True).float()
    return F.adaptive_max_pool2d(changed, grid)[:, 0]


# ---- figure 5 -----------------------------------------------------------------------------------------------------------------


def embedding(m, cell: Cell) -> Values:
    """Whether a triggered picture's features are nearest to those of its own class: 1 or 0 per triggered picture of another class than the target.

    Test pictures of the target's class and CLASSES − 1 drawn ones, `points` in all. Neighbours are clean pictures by cosine, without the triggered
    picture's own original, which would be the nearest of most small changes. extra: to_target, whether the neighbour is of the target's class; clean,
    the same as the value for the clean pictures (all classes); xy and xy_triggered, one t-SNE of all clean and triggered features together (unit
    length; scikit-learn, fixed seed; a picture, no measurement); labels and triggered_labels, into `names`, of which the last is the target.
    """
    world, names = _of_few_classes(m, cell)
    last, seen = len(names) - 1, eye(m, cell)
    rows = (world.y != last).nonzero().flatten()
    others = World(world.spec, world.x[rows], world.y[rows], [world.indices[i] for i in rows.tolist()])
    clean, moved = (F.normalize(by_batch(m, lambda part: features(seen, part).output, x).float(), dim=1)
                    for x in (world.x, triggered(m, cell, others)))
    labels, own = world.y.cpu(), rows.cpu()
    near, near_clean = nearest(moved, clean, own), nearest(clean, clean, torch.arange(len(clean)))
    value = (labels[near] == labels[own]).double().numpy()
    xy = plane(torch.cat((clean, moved)).numpy(), m.config.data.seed)
    extra = {"to_target": (labels[near] == last).double().numpy(), "clean": (labels[near_clean] == labels).double().numpy(),
             "xy": xy[: len(clean)], "xy_triggered": xy[len(clean):], "labels": labels.numpy(), "triggered_labels": labels[own].numpy(),
             "names": np.array(names)}
    return Values(value, "share", extra)


def _of_few_classes(m, cell: Cell) -> tuple[World, list[str]]:
    """Test pictures of the classes of figure 5, relabelled, and the classes' names, the target's last."""
    bench, config, spec = m.bench, m.config, m.config.spec(cell.at)
    data, target = bench.labelled(spec), bench.label(cell.place, cell.at)
    rest = np.setdiff1d(np.arange(data.num_classes), [target])
    drawn = np.sort(np.random.default_rng([config.data.seed, 5]).permutation(rest)[: CLASSES - 1]).tolist()
    chosen = ClassSubset(data, [*drawn, target])
    few = few_shot(chosen, max(2, config.sweeps.points // len(chosen.classes)), config.data.seed)
    indices = chosen.indices[few.indices].tolist()  # in the set itself: triggers are drawn by them
    x, y = few.__getitems__(range(len(few)))
    return World(spec, x.to(bench.device), y.to(bench.device), indices, data.skipped), list(chosen.classes)


def nearest(queries: Tensor, among: Tensor, without: Tensor) -> Tensor:
    """(N,) which row of `among` (M, D) is nearest to each of `queries` (N, D), all of unit length; row without[i] is no neighbour of query i."""
    similarity = queries @ among.T
    similarity[torch.arange(len(queries)), without] = -2.0
    return similarity.argmax(1)


def plane(points: np.ndarray, seed: int) -> np.ndarray:
    """(N, 2) float32: t-SNE of points (N, D), started from their principal axes."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(points.astype(np.float64)).astype(np.float32)


# ---- figures 6 and 9 ----------------------------------------------------------------------------------------------------------


def perturbed(m, cell: Cell) -> Values:
    """The four perturbations drawn. values: PSNR (dB) against the original, one per perturbation, mean over `resistivity_n` pictures.

    extra: names (P,), pictures (k, 1 + P, 3, H, W) of `maps` pictures, the first of each row unchanged.
    """
    world, k = shown(m, cell, m.config.sweeps.resistivity_n), m.config.sweeps.maps
    names = tuple(m.config.sweeps.perturbations.all())
    columns = {name: perturbed_by(m, cell, world, name) for name in names}
    values = [psnr(x, world.x).mean() for x in columns.values()]
    pictures = torch.stack([world.x[:k], *(x[:k] for x in columns.values())], dim=1)
    return Values(np.array(values), "dB", {"names": np.array(names), "pictures": as_bytes(pictures)})


def triggers(m, cell: Cell) -> Values:
    """The triggers drawn. values: PSNR (dB) against the original, one per attack (config.attacked), mean over `resistivity_n` pictures.

    extra: names (A,); sheet, bytes (height, width, 3), of `maps` pictures: for each a row of it and its triggered forms, and below what they changed,
    `gain` times as large on grey; cells are `gap` white pixels apart; pictures that are not needed for the numbers are not kept.
    """
    world = shown(m, cell, m.config.sweeps.resistivity_n)
    few, gain, gap = world.part(m.config.sweeps.maps), 4.0, 2
    made = [m.bench.trigger(attack, cell.backbone) for attack in m.config.attacked]
    values = [psnr(by_batch(m, trigger, world.x, world.indices), world.x).mean() for trigger in made]
    return Values(np.array(values), "dB", {"names": np.array(m.config.attacked), "sheet": sheet(few.x, made, few.indices, gain, gap),
                                           "side": np.array(few.x.shape[2:]), "gap": np.array(gap), "gain": np.array(gain)})


READS: dict[str, Sequence[str]] = {"resistivity": ("resistivity_n", "perturbations"), "attention": ("maps", "resistivity_n"),
                                   "embedding": ("points",), "perturbed": ("perturbations", "maps", "resistivity_n"),
                                   "triggers": ("maps", "resistivity_n")}
"""What of config.sweeps each kind reads: part of a measurement's key."""
