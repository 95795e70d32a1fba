"""The contribution of RVPT: deep visual prompts that are tuned to classify and to leave the features of the backdoored
tower.

    f^d = [c^d, e^d]                              class token and M patch tokens after block d of L, width d_v
    [c^{d+1}, ·, e^{d+1}] = block_{d+1}( [c^d, p^d, e^d] )      d = D … E−1, p^d ∈ R^{b×d_v}: prompts in, their outputs thrown away
    f^{d+1} = block_{d+1}( f^d )                  the other blocks; the paper has E = L

    L    = L_CE + α·L_FR
    L_CE = CE( s·cos(F_p(x), t_k), y )            mean over the batch; text embeddings t_k, projection and logit scale s are frozen
    L_FR = mean_i mean_{d=D+1…E} cos(c_i^d, σ_i^d)        σ: the class token of the same image in the frozen tower without prompts
    L_FRM = mean_i max( mean_d cos(c_i^d, σ_i^d), m )     its margin variant: m = 1 is no repulsion (VPT), m = −1 is L_FR

Zhang et al., NeurIPS 2025, §3.3 and §4.4; its displayed equations were lost in the copy that we read, so the forms are
from its prose and figure 2. Tokens are the outputs of the blocks as they are (the residual stream), which the figure
draws and the text does not say. A tower is any vision transformer of open_clip, or the quick ones of
`shared.models.blocks`; it is not edited: its blocks are called one after the other from here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from shared.errors import UserError
from shared.models.blocks import may_do_less
from shared.models.victim import ZeroShot


def depth_of(tower: nn.Module) -> int:
    """L, the number of blocks. Raises UserError for a tower that is no vision transformer of open_clip, which has a
    class token."""
    if not isinstance(tower, VisionTransformer):
        raise UserError(
            "prompts go between the class token and the patches of an open_clip vision transformer, and this tower is "
            f"a {type(tower).__name__}: use a ViT such as ViT-B-32."
        )
    return len(tower.transformer.resblocks)


def walk(
    tower: nn.Module, f: Tensor, start: int, stop: int, prompts: Mapping[int, Tensor] | None = None, alone: bool = False
) -> Iterator[Tensor]:
    """f^{start+1}, …, f^{stop}, each (N, 1 + M, d_v), from f = f^start.

    prompts: d -> p^d (b, d_v), put into block d + 1. alone: of the last state only the class token is wanted; it may
    come as (N, 1, d_v).
    """
    transformer = tower.transformer
    batch_first = getattr(transformer, "batch_first", True)  # older transformers want (L, N, D)
    for d in range(start, stop):
        block, p, wanted = (
            transformer.resblocks[d],
            (prompts or {}).get(d),
            1 if alone and d == stop - 1 else f.shape[1],
        )
        if batch_first and may_do_less(block):
            # a prompt is looked at and never looks: what a block would make of it is thrown away, and so is not
            # computed; then it may stand last
            f = block(f if p is None else torch.cat((f, _for_each(f, p)), dim=1), queries=wanted)
            yield f
            continue
        if p is not None:
            f = torch.cat((f[:, :1], _for_each(f, p), f[:, 1:]), dim=1)
        f = block(f) if batch_first else block(f.transpose(0, 1).contiguous()).transpose(0, 1)
        if p is not None:
            f = torch.cat((f[:, :1], f[:, 1 + len(p) :]), dim=1)
        yield f


def _for_each(f: Tensor, p: Tensor) -> Tensor:
    """p (b, d_v) once for each of f (N, ·, d_v): (N, b, d_v)."""
    return p.to(f.dtype).expand(len(f), -1, -1)


def class_alone(tower: nn.Module) -> bool:
    """Whether a tower's embedding depends on the class token of its last block only."""
    return tower.pool_type == "tok" and tower.attn_pool is None


def pooled(tower: nn.Module, f: Tensor) -> Tensor:
    """The embedding (N, D) of f^L: normalisation, pooling and projection of the tower."""
    x = tower._pool(f)[0]
    return x if tower.proj is None else x @ tower.proj


def encode(tower: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding (N, D) and the class tokens c^1 … c^L (N, L, d_v) of a tower without prompts. x: what the tower
    expects (after `Pixels`)."""
    states = list(walk(tower, tower._embeds(x), 0, depth_of(tower), alone=class_alone(tower)))
    return pooled(tower, states[-1]), torch.stack([f[:, 0] for f in states], dim=1)


class DeepPrompts(nn.Module):
    """A frozen tower with prompts p^D … p^{E−1}; takes the place of the tower, e.g. as `visual` of a ZeroShot.

    tower: it is borrowed, not owned: this module's parameters and state are the prompts alone, and train() leaves the
    tower in eval mode; its parameters are set to need no gradient. first, last: D and E (default L). length: b. std: of
    the Gaussian that prompts are drawn from, a function of seed (the paper gives no number; MaPLe's code has 0.02).
    Raises UserError for no such layers, b < 1, and a tower that is no ViT.
    """

    def __init__(
        self,
        tower: nn.Module,
        first: int = 3,
        length: int = 50,
        last: int | None = None,
        std: float = 0.02,
        seed: int = 0,
    ):
        super().__init__()
        depth = depth_of(tower)
        self.first, self.last, self.length = int(first), depth if last is None else int(last), int(length)
        if not 0 <= self.first < self.last <= depth:
            raise UserError(
                f"prompts from D = {self.first} to {self.last} do not fit a tower of {depth} blocks: use 0 ≤ D < E ≤ "
                f"{depth}."
            )
        if self.length < 1 or not (math.isfinite(std) and std >= 0):
            raise UserError(
                f"{self.length} prompts per layer of standard deviation {std}: use at least 1 and a finite number of 0 "
                "or more."
            )
        self._borrowed = (
            tower.requires_grad_(False).eval(),
        )  # in a tuple, where torch does not take it for a part of this module
        like = tower.class_embedding
        draw = (
            torch.randn(self.last - self.first, self.length, len(like), generator=torch.Generator().manual_seed(seed))
            * std
        )
        self.prompts = nn.Parameter(draw.to(like.device))

    @property
    def tower(self) -> nn.Module:
        return self._borrowed[0]

    @property
    def image_size(self):
        return self.tower.image_size

    @property
    def preprocess_cfg(self) -> dict:
        """Of the tower, where open_clip gave it one."""
        return getattr(self.tower, "preprocess_cfg", {})

    def _apply(self, fn, recurse=True):  # to(device) moves the tower too
        self.tower._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def by_layer(self) -> dict[int, Tensor]:
        """d -> p^d."""
        return dict(enumerate(self.prompts, self.first))

    def begin(self, x: Tensor) -> Tensor:
        """f^D (N, 1 + M, d_v), which no prompt has touched. x: what the tower expects."""
        f = self.tower._embeds(x)
        return [f, *walk(self.tower, f, 0, self.first)][-1]

    def finish(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """From f^D: the embedding F_p (N, D) and the class tokens c^{D+1} … c^E (N, E − D, d_v)."""
        states = list(walk(self.tower, f, self.first, depth_of(self.tower), self.by_layer, class_alone(self.tower)))
        return pooled(self.tower, states[-1]), torch.stack([s[:, 0] for s in states[: self.last - self.first]], dim=1)

    @torch.no_grad()
    def reference(self, f: Tensor) -> Tensor:
        """From the same f^D without prompts: σ^{D+1} … σ^E (N, E − D, d_v), constants."""
        return torch.stack([s[:, 0] for s in walk(self.tower, f, self.first, self.last, alone=True)], dim=1)

    def states(self, x: Tensor) -> list[Tensor]:
        """f^0 … f^L with prompts at work, each (N, 1 + M, d_v): class token and patches, as a language model's
        projector wants them."""
        f = self.tower._embeds(x)
        return [f, *walk(self.tower, f, 0, depth_of(self.tower), self.by_layer)]

    def forward(self, x: Tensor) -> Tensor:
        """F_p(x) (N, D), of the size and meaning of the tower's embedding."""
        return self.finish(self.begin(x))[0]


def prompted(victim: ZeroShot, prompts: DeepPrompts) -> ZeroShot:
    """The same zero-shot classifier with F_p instead of F; pixels, text embeddings and scale are the victim's own. The
    victim is not changed."""
    other = ZeroShot(prompts, victim.text, victim.scale)
    other.pixels = victim.pixels
    return other


# ---- loss ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repulsion:
    """α and m of the loss; see the module docstring."""

    alpha: float = 2.0
    """α, weight of L_FR (0: visual prompt tuning alone)."""
    margin: float | None = None
    """m of L_FRM, −1 to 1 (None: L_FR)."""

    def __post_init__(self):
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise UserError(f"α is {self.alpha}: use a finite weight of 0 or more.")
        if self.margin is not None and not -1 <= self.margin <= 1:
            raise UserError(f"the margin of the repulsion is {self.margin}: a cosine lies between −1 and 1.")

    @property
    def active(self) -> bool:
        """Whether L_FR has any gradient."""
        return self.alpha > 0 and self.margin != 1


def similarity(tokens: Tensor, reference: Tensor) -> Tensor:
    """mean_d cos(c_i^d, σ_i^d), (N,), of two (N, l, d_v); at most 1, which rounding may exceed."""
    return F.cosine_similarity(tokens.float(), reference.float(), dim=-1).clamp(max=1).mean(dim=1)


def repulsion_loss(tokens: Tensor, reference: Tensor, margin: float | None = None) -> Tensor:
    """L_FR, or L_FRM, from tokens c and σ (N, l, d_v)."""
    each = similarity(tokens, reference)
    return (
        each.mean() if margin is None else torch.where(each > margin, each, margin).mean()
    )  # at a tie max() would pass on half of the gradient


def rvpt_loss(
    logits: Tensor, y: Tensor, tokens: Tensor, reference: Tensor, config: Repulsion
) -> tuple[Tensor, dict[str, Tensor]]:
    """(L, its terms) from logits (N, K), labels (N,), and class tokens (N, l, d_v) with and without prompts."""
    terms = {"ce": F.cross_entropy(logits, y), "fr": repulsion_loss(tokens, reference, config.margin)}
    return terms["ce"] + config.alpha * terms["fr"], terms
