"""A look at what the user brings, on a few pictures, before anything long runs: what cannot work is refused in a
sentence, what is odd is said."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.attacks import Threat
from shared.errors import UserError
from shared.experiment.step import Lab
from shared.judge.given import Model, Part
from shared.judge.steps import Against, System, by_own
from shared.models.clip import MEAN_STD
from shared.models.victim import predicted
from shared.rng import SampleRng
from shared.steps.purification import Defence, Transform
from shared.steps.yours import FAILS, Shield, has_gradient, look_through, what

FEW = 32  # pictures
SAME = 1e-3  # of the largest logit: what float rounding may change
GAIN = 0.2  # accuracy that normalised pictures may gain by chance
NORMS = {**{k: v for k, v in MEAN_STD.items() if k != "none"}, "0.5": ((0.5,) * 3, (0.5,) * 3)}


@dataclass(frozen=True)
class Facts:
    """bare: the model alone; system: with its defence; cautions: what is odd, in sentences."""

    bare: System
    system: System
    cautions: tuple[str, ...]


def see(lab: Lab, part: Part) -> None:
    """Read every picture once. Raises UserError, before anything long runs, for one that cannot be read, and for
    several sizes."""
    sizes = set()
    for rows in torch.tensor(part.rows(lab)).split(FEW):
        sizes.add(tuple(part.read(lab, rows.tolist())[0].shape[2:]))
    if len(sizes) > 1:
        (a, b), *_, (c, d) = sorted(sizes)
        raise UserError(f"{part.spec}: pictures of {a}×{b} and {c}×{d} pixels cannot be judged together: give --size.")


def look(lab: Lab, model: Model, defence: Defence, part: Part, own: tuple[Against, ...]) -> Facts:
    """Raises UserError for logits of the wrong shape or not finite, a model without a gradient, a defence that changes
    the size of pictures or leaves [0, 1], and an attack of the user's own that leaves the ball."""
    rows = part.rows(lab)[:FEW]
    x, y = part.read(lab, rows)
    rng, few = SampleRng(0, rows, "look"), SampleRng(0, rows[:2], "look")
    victim, cautions = model.open(lab), []

    def logits(pictures: Tensor, of: str = model.spec) -> Tensor:
        return _logits(victim, pictures, part.open(lab).num_classes, of)

    if getattr(victim, "came_training", False):
        cautions.append("The model came in train mode; it is judged in eval mode.")
    z = logits(x)
    model_random = not _same(z, logits(x))
    if model_random:
        cautions.append("Two looks of the model at one picture differ: it is judged as random.")
    elif not _same(z, torch.cat([logits(half) for half in x.chunk(2)])):
        cautions.append(
            "The model's answers depend on the other pictures of a batch, as with batch statistics in train mode."
        )
    cautions += _normalised(victim, x, y, z)
    if not has_gradient(victim, x[:2]):
        raise UserError(
            f"the logits of {model.spec} have no gradient with respect to the pictures, so all would seem robust: "
            "compute them by torch, without no_grad or detach."
        )
    opened = Shield(defence.open(lab), True, False)
    behind = look_through(opened, x, rng)
    logits(behind, "the model behind the defence")
    random = model_random or not _same(behind, look_through(opened, x, rng.child("other")))
    if not random:
        halves = torch.arange(len(x)).chunk(2)
        if not _same(behind, torch.cat([look_through(opened, x[half], rng.subset(half)) for half in halves])):
            cautions.append("What the defence makes of a picture depends on the other pictures of a batch.")
    straight = not has_gradient(lambda pictures: opened(pictures, few), x[:2])
    if straight:
        cautions.append("The defence has no gradient to follow: attacks take the identity's in its place (BPDA).")
    system = System(model, defence, random, straight)
    for against in own:
        by_own(against.own, system.open(lab), x[:2], y[:2], Threat(against.norm, against.eps), few)
    return Facts(System(model, Transform(), model_random, False), system, tuple(cautions))


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= SAME * a.abs().max().clamp_min(1e-6))


@torch.no_grad()
def _logits(victim: nn.Module, x: Tensor, classes: int, of: str) -> Tensor:
    """(N, K) logits. Raises UserError for anything else."""
    try:
        z = victim(x)
    except FAILS as error:
        raise UserError(
            f"{of} fails on pictures {tuple(x.shape)} ({what(error)}): it must map pictures in [0, 1] to logits."
        ) from error
    if not isinstance(z, Tensor) or z.shape != (len(x), classes):
        got = tuple(z.shape) if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise UserError(
            f"{of} returned {got} for {len(x)} pictures of {classes} classes: return logits ({len(x)}, {classes}), or "
            "name the model's classes with --classes."
        )
    predicted(z)
    return z.float()


@torch.no_grad()
def _normalised(victim: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> list[str]:
    """Whether the model is better at pictures that are normalised before it, as one that expects them so would be."""
    plain, found = logits.argmax(dim=1).eq(y).float().mean().item(), {}
    for name, (mean, std) in NORMS.items():
        shift, scale = (torch.tensor(v).view(1, 3, 1, 1).to(x) for v in (mean, std))
        found[name] = victim((x - shift) / scale).argmax(dim=1).eq(y).float().mean().item()
    name = max(found, key=found.get)
    if found[name] <= plain + max(GAIN, 2 * (0.5 / len(x)) ** 0.5):  # two standard errors, at most, of few pictures
        return []
    return [
        f"The model is right about {plain:.0%} of the pictures as they are and {found[name]:.0%} once they are "
        f"normalised ({name}): it seems to expect them so. Put mean and std inside it, so that ε is in pixels."
    ]
