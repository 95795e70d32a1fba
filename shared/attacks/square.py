"""Square attack (Andriushchenko et al. 2020): random search with windows, no gradient. The cascade's check on masked
gradients.

Start: a pattern that fills the ball. Query i: change one square window of side s_i = √(p_i·H·W) at a random place; keep
the change if it lowers the margin z_y − max_{j≠y} z_j. p_i starts at `p_init` and halves after 10, 50, 200, 500, 1000,
2000, 4000, 6000 and 8000 queries.

linf: the pattern is x ± ε in vertical stripes, signs per column and channel; a window becomes x ± ε, one sign per
channel. l2: the perturbation is made of bumps η of unit norm (two halves of opposite sign, each falling off from its
centre like
    Σ_{k≥r} 1/(k+1)² at ring r); a window gains a bump and takes the norm of a second window, which is emptied.

Every sample has windows of its own, drawn by its index in blocks of queries ahead of time.
"""

import functools
import math

import torch
from torch import Tensor, nn

from shared.attacks.goal import Goal, check_batch, check_rng
from shared.attacks.gradient import eval_mode
from shared.attacks.threat import Threat, per_sample
from shared.errors import UserError
from shared.options import Count, Part, bounded
from shared.repeat import EARLY, joined, repeated
from shared.rng import SampleRng

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
BLOCK = 100  # queries whose random numbers are drawn together
TILES = 5  # bumps per side of the l2 start


@bounded
def square(
    victim: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    rng: SampleRng,
    queries: Count = 5000,
    p_init: Part = 0.8,
    batch_size: Count | None = None,
    drop: bool = True,
) -> Tensor:
    """Adversarial images (N, C, H, W), detached, in B(x). x in [0, 1], y (N,) labels; the victim is used in eval mode.

    queries: windows tried per sample, after the start. batch_size: images in the victim at a time (default N). drop:
    samples leave at their first success (those misclassified to begin with come back as they are), the others come back
    at their lowest margin. With drop=False all samples use all queries: for random victims. Raises UserError for images
    outside [0, 1] or not (N, C, H, W), a missing or ill-sized rng, labels that are no class, and settings out of
    bounds.
    """
    check_batch(x, y)
    check_rng(x, rng)
    if x.dim() != 4 or (threat.norm == "l2" and min(x.shape[2:]) < TILES):
        raise UserError(
            f"the Square attack needs images (N, C, H, W), of at least {TILES} pixels a side for l2, got "
            f"{tuple(x.shape)}."
        )
    chunks = torch.arange(len(x)).split(batch_size or max(len(x), 1))
    search = _Linf if threat.norm == "linf" else _L2
    with eval_mode(victim), torch.no_grad():
        goal = Goal(victim, "margin")

        def attacked(c: Tensor) -> Tensor:
            return search(goal, x[c], y[c], threat, rng.subset(c), p_init).run(queries, drop)

        return joined(attacked, [c for c in chunks if len(c)]) if len(x) else x.clone()


def window_side(query: int, p_init: float, height: int, width: int) -> int:
    """Side of the window of query 0, 1, …: √(p·H·W) rounded, between 1 and the shorter side."""
    p = p_init / 2 ** sum(query > at for at in HALVINGS)
    return min(max(round(math.sqrt(p * height * width)), 1), height, width)


class _Search:
    """The random search. A norm adds `numbers` (uniform draws per query), `start` and `propose`."""

    numbers: int

    def __init__(self, goal: Goal, x: Tensor, y: Tensor, threat: Threat, rng: SampleRng, p_init: float):
        self.goal, self.x, self.y, self.threat, self.rng, self.p_init = goal, x, y, threat, rng, p_init
        self.out = x.clone()
        self.where = torch.arange(len(x), device=x.device)  # rows of `out` that are still searched

    def run(self, queries: int, drop: bool) -> Tensor:
        self.best = self.x
        if drop:
            self._drop(self.goal.judge(self.x, self.y)[1])
        if len(self.where):
            self.best = self.threat.project(self.start(), self.x)  # type: ignore[attr-defined]
            self.value, done = self.goal.judge(self.best, self.y)
        for query in repeated(range(queries), EARLY if drop else 1.0):
            if drop and len(self.where):
                self._drop(done)
            if len(self.where) == 0:
                return self.out
            if query % BLOCK == 0:
                self.block = self.rng.child(f"block{query // BLOCK}").uniform(
                    (BLOCK, self.numbers), device=self.x.device
                )
            side = window_side(query, self.p_init, *self.x.shape[2:])
            new = self.threat.project(
                self.propose(self.block[:, query % BLOCK], side),  # type: ignore[attr-defined]
                self.x,
            )
            value, done = self.goal.judge(new, self.y)
            better = value > self.value
            self.best = torch.where(per_sample(better, new), new, self.best)
            self.value = torch.where(better, value, self.value)
        self.out[self.where] = self.best
        return self.out

    def _drop(self, done: Tensor) -> None:
        """Write down the samples that are done and go on with the others."""
        if not done.any():
            return
        self.out[self.where[done]] = self.best[done]
        stay = (~done).nonzero().flatten()
        self.rng = self.rng.subset(stay)
        for name in ("x", "y", "where", "best", "value", "block"):
            if hasattr(self, name):
                setattr(self, name, getattr(self, name)[stay])

    def corner(self, u: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Top and left of each window, from two uniform numbers per sample, (N, 2)."""
        height, width = self.x.shape[2:]
        return (u[:, 0] * (height - side + 1)).long(), (u[:, 1] * (width - side + 1)).long()

    def window(self, u: Tensor, side: int) -> Tensor:
        """Mask of each sample's window, (N, 1, H, W) bool."""
        spans = []
        for first, size in zip(self.corner(u, side), self.x.shape[2:], strict=True):
            at = torch.arange(size, device=u.device)
            spans.append((at >= first[:, None]) & (at < first[:, None] + side))
        return (spans[0][:, :, None] & spans[1][:, None, :])[:, None]


class _Linf(_Search):
    @property
    def numbers(self) -> int:  # type: ignore[override]
        return 2 + self.x.shape[1]

    def start(self) -> Tensor:
        channels, _, width = self.x.shape[1:]
        stripes = sign(self.rng.child("stripes").uniform((channels, 1, width), device=self.x.device))
        return self.x + self.threat.eps * stripes

    def propose(self, u: Tensor, side: int) -> Tensor:
        colour = sign(u[:, 2:])[:, :, None, None]
        return torch.where(self.window(u[:, :2], side), self.x + self.threat.eps * colour, self.best)


class _L2(_Search):
    @property
    def numbers(self) -> int:  # type: ignore[override]
        return 5 + self.x.shape[1]

    def start(self) -> Tensor:
        channels, height, width = self.x.shape[1:]
        side = min(height, width) // TILES
        rows, columns = height // side, width // side
        rng = self.rng.child("tiles")
        colours = sign(rng.child("colours").uniform((channels, rows, columns), device=self.x.device))
        turned = rng.child("turned").uniform((rows, columns), device=self.x.device) > 0.5
        tiles = (
            torch.where(turned[:, None, :, :, None, None], bump(side, self.x).T, bump(side, self.x))
            * colours[..., None, None]
        )
        pattern = tiles.permute(0, 1, 2, 4, 3, 5).reshape(-1, channels, rows * side, columns * side)
        delta = torch.nn.functional.pad(pattern, (0, width - columns * side, 0, height - rows * side))
        return self.x + self.threat.eps * self.threat.direction(delta)

    def propose(self, u: Tensor, side: int) -> Tensor:
        channels, height, width = self.x.shape[1:]
        side = min(max(side, 3) | 1, (min(height, width) - 1) | 1)  # bumps need an odd side of at least 3
        delta = self.best - self.x
        gains, gives = self.window(u[:, :2], side), self.window(u[:, 2:4], side)
        spare = (self.threat.eps**2 - delta.flatten(1).square().sum(1)).clamp(min=0) / channels
        budget = (delta.square() * (gains | gives)).sum(dim=(2, 3)) + spare[:, None]
        top, left = self.corner(u[:, :2], side)
        span = torch.arange(side, device=u.device)
        at = (
            torch.arange(len(u), device=u.device)[:, None, None, None],
            torch.arange(channels, device=u.device)[None, :, None, None],
            (top[:, None] + span)[:, None, :, None],
            (left[:, None] + span)[:, None, None, :],
        )
        old = delta[at]
        shape = (
            torch.where(u[:, 4, None, None, None] > 0.5, bump(side, old).T, bump(side, old))
            * sign(u[:, 5:])[:, :, None, None]
        )
        new = shape + old / old.norm(dim=(2, 3), keepdim=True).clamp(min=1e-10)
        new = new / new.norm(dim=(2, 3), keepdim=True).clamp(min=1e-10) * budget.sqrt()[:, :, None, None]
        delta = delta.masked_fill(gives, 0)
        delta[at] = new
        return self.x + delta * per_sample(self.threat.eps / delta.flatten(1).norm(dim=1).clamp(min=1e-10), delta)


def sign(u: Tensor) -> Tensor:
    """±1 with equal chance from uniform numbers on [0, 1)."""
    return torch.where(u < 0.5, -1.0, 1.0)


@functools.lru_cache(maxsize=64)
def _bump(side: int) -> Tensor:
    def half(height: int, width: int) -> Tensor:
        middle_row, middle_column = height // 2, width // 2
        rings = torch.maximum(
            (torch.arange(height) - middle_row).abs()[:, None], (torch.arange(width) - middle_column).abs()[None, :]
        )
        weights = 1 / torch.arange(1.0, max(middle_row, middle_column) + 2).square()
        tail = weights.flip(0).cumsum(0).flip(0)[rings]
        return tail / tail.norm()

    top = side // 2
    eta = torch.cat([half(top, side), -half(side - top, side)]) if top else torch.ones(side, side)
    return eta / eta.norm()


def bump(side: int, like: Tensor) -> Tensor:
    """η of unit norm, (side, side): two halves of opposite sign, one above the other."""
    return _bump(side).to(like)
