"""Targeted FAB (Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack").

Other attacks raise a loss inside B(x); this one looks for the point of another class that is *nearest* to x. With
f = z_t − z_y, its linearisation's boundary where the search stands, { u ∈ [0, 1]^d : f(x_k) + ⟨∇f(x_k), u − x_k⟩ = 0 },
and d(v) the shortest way from v to that,

    x_{k+1} = (1 − a)·(x_k + η·d(x_k)) + a·(x + η·d(x)),   a = min( |d(x_k)| / (|d(x_k)| + |d(x)|), 0.1 ),   η = 1.05,

clamped to [0, 1]: beyond the boundary, and drawn back to x. From a point that is misclassified the search goes on at
x + 0.9·(x_{k+1} − x). Lengths are in the threat's norm.
"""

import torch
from torch import Tensor, nn

from shared.attacks.goal import Goal, check_batch
from shared.attacks.gradient import eval_mode
from shared.attacks.losses import likeliest_wrong
from shared.attacks.threat import Threat, per_sample
from shared.options import Count, bounded
from shared.repeat import EARLY, joined, repeated
from shared.rng import SampleRng

A_MAX = 0.1
OVERSHOOT = 1.05  # η
BACK = 0.9
SHORTEST = 1e-8  # a way is not taken to be shorter: where both are none, a is 1/2 before the bound


@bounded
def fab_t(
    victim: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    rng: SampleRng | None = None,
    steps: Count = 100,
    targets: Count = 9,
    batch_size: Count | None = None,
) -> Tensor:
    """Adversarial images (N, C, H, W), detached, in B(x). x in [0, 1], y (N,) labels; the victim is used in eval mode.

    One search of `steps` for each of the min(targets, K − 1) wrong classes that the clean image scores highest. A
    sample leaves at its first success within ε, and one that is misclassified to begin with comes back as it is; the
    others come back at the nearest point that was found, projected to B(x), where it may still be misclassified. rng:
    as other attacks have it; the first run, which is all that AutoAttack's `standard` makes, draws nothing. batch_size:
    images in the victim at a time (default N). Raises UserError for images outside [0, 1], labels that are no class,
    and settings out of bounds.
    """
    check_batch(x, y)
    parts = torch.arange(len(x), device=x.device).split(batch_size or max(len(x), 1))
    with eval_mode(victim):
        return joined(lambda at: _nearest(victim, x[at], y[at], threat, steps, targets), parts)


def _nearest(victim: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, targets: int) -> Tensor:
    x = x.detach()
    goal = Goal(victim, "margin")
    logits = goal.logits(x)
    nearest, least = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    least[goal.done(logits, y)] = 0
    for target in repeated(likeliest_wrong(logits, y, targets), EARLY):
        rows = (least > threat.eps).nonzero().flatten()
        if not len(rows):
            break
        found, distance = search(victim, x[rows], y[rows], target[rows], threat, steps)
        closer = distance < least[rows]
        nearest[rows[closer]], least[rows[closer]] = found[closer], distance[closer]
    return threat.project(nearest, x)


def search(
    victim: nn.Module, x: Tensor, y: Tensor, target: Tensor, threat: Threat, steps: int
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified point that was met, (N, C, H, W), and its distance from x, (N,); x itself and infinity
    where none was. A sample whose distance is ε or less is not followed further."""
    goal = Goal(victim, lambda z, labels, t: (z.gather(1, t[:, None]) - z.gather(1, labels[:, None])).squeeze(1))
    nearest, least, point = x.clone(), torch.full((len(x),), torch.inf, device=x.device), x.clone()
    rows = torch.arange(len(x), device=x.device)
    for _ in repeated(range(steps)):
        origin, here = x[rows], point[rows]
        value, _, gradient = goal.gradient(here, y[rows], target[rows])
        normal = gradient.nan_to_num(0, 0, 0).flatten(1)
        at_origin = value + (normal * (origin - here).flatten(1)).sum(dim=1)
        ways = [to_plane(v, normal, -f, threat.norm) for v, f in ((here, value), (origin, at_origin))]
        first, second = (threat.distance(way, torch.zeros_like(way)).clamp(min=SHORTEST) for way in ways)
        a = per_sample((first / (first + second)).clamp(max=A_MAX), here)
        here = ((1 - a) * (here + OVERSHOOT * ways[0]) + a * (origin + OVERSHOOT * ways[1])).clamp_(0, 1)
        done, distance = goal.done(goal.logits(here), y[rows]), threat.distance(here, origin)
        closer = done & (distance < least[rows])
        nearest[rows[closer]], least[rows[closer]] = here[closer], distance[closer]
        point[rows] = torch.where(per_sample(done, here), origin + BACK * (here - origin), here)
        rows = rows[least[rows] > threat.eps]
        if not len(rows):
            break
    return nearest, least


def to_plane(x: Tensor, normal: Tensor, rise: Tensor, norm: str) -> Tensor:
    """The shortest δ, shaped as x, with ⟨normal, δ⟩ = rise and 0 ≤ x + δ ≤ 1.

    Where no δ rises so far, the one that rises most. x (N, …) in [0, 1], normal (N, d), rise (N,). All of δ points up
    the slope, |δ_i| = min(s·u_i, room_i) with u = 1 (linf) or |normal| (l2), and s solves Σ |normal_i|·|δ_i| = |rise|,
    which grows in s by pieces that are linear: between two values of s at which another pixel has used up its room.
    """
    flat = x.flatten(1)
    toward = normal.sign() * rise.sign()[:, None]
    room = torch.where(toward > 0, 1 - flat, flat)
    weight = normal.abs()
    unit = torch.ones_like(weight) if norm == "linf" else weight
    full, order = (room / unit.clamp(min=torch.finfo(unit.dtype).tiny)).sort(dim=1)
    slope, used = ((weight * part).gather(1, order).double() for part in (unit, room))
    used = torch.nn.functional.pad(used.cumsum(dim=1), (1, 0))  # by the first k pixels
    slope = torch.nn.functional.pad(slope.flip(1).cumsum(dim=1).flip(1), (0, 1))  # of the others
    wanted = rise.abs().double()[:, None]
    k = (used[:, 1:] + full * slope[:, 1:] < wanted).sum(dim=1, keepdim=True)
    s = ((wanted - used.gather(1, k)) / slope.gather(1, k)).to(x.dtype)
    s = s.where(k < len(full[0]), torch.inf)
    return (toward * torch.minimum((s * unit).nan_to_num(0, torch.inf), room)).view_as(x)
