"""The contribution of RoCLIP: in some epochs an image is not matched with its own caption, but with a neighbour of it
from a pool.

    z^I, z^T unit embeddings of the B pairs of a batch, s = exp(logit scale); P^T, P^I pools of text and image
    embeddings, without gradient n(q, P) = argmax_{p ∈ P} cos(q, p) L_CLIP(A, B) = ½·(CE(s·A Bᵀ, diagonal) + CE(s·B Aᵀ,
    diagonal))

    plain epochs       L = L_CLIP(z^I, z^T)
    RoCLIP epochs      L = mean of the terms of the matched sides
        image side     L_CLIP(z^I, n(q, P^T))     q = z^T (own modality: the pool text most similar to the caption) or z^I (cross-modal)
        text side      L_CLIP(z^T, n(q, P^I))     q = z^I (own modality: the pool image most similar to the image) or z^T (cross-modal)
    directions "one"   CE(s·N Zᵀ, diagonal) in place of L_CLIP(Z, N): rows are neighbours, columns the true side

TWO_SIDED is the first version (arXiv v1, abstract): both sides, own modality; pre-training and fine-tuning. AS_RELEASED
is the second (NeurIPS, its released code): the image side alone, queried by the image. Both directions of its
cross-entropy have the neighbours, so in a RoCLIP epoch the text tower has gradients of exactly 0 (not None: weight
decay and momentum still move it). The pool is asked before the batch enters it.

BEFORE_V1 and CROSS_MODAL are what the authors' repository had three months before arXiv v1 (HangerYang/deadclip,
states 7fef8d6 of December 2022, and 57f99c1); whether v1 printed either is not known. B: one bank for both kinds, asked
with the images, which then enter it, and after that with the captions:

    before v1          L = ½·(CE(s·n(z^I, B) (z^T)ᵀ) + CE(s·n(z^T, B) (z^I)ᵀ))        every epoch
    cross-modal        L = ½·(CE(s·n(z^T, P^I) (z^T)ᵀ) + CE(s·n(z^I, P^T) (z^I)ᵀ))    after five plain epochs,
                                                                                      in which the banks fill

The text of neither version could be read beyond its first page: the equations of the second are those of its released
code, those of the first are our reading of its abstract, which gives neither loss nor pool. Augmentation belongs to the
second version, is the same for the plain CLIP it is compared with, and is therefore no part of `Matching` (see
`papers.roclip.training.Method`).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.roclip.pool import NOISE, Found, Pool
from shared.errors import UserError
from shared.options import Bounded, Count, Pairs, Part, Seed, Whole


@dataclass(frozen=True)
class Matching(Bounded):
    """Who is matched with whose neighbour, and when. Raises UserError for values that no epoch or pool could have."""

    sides: Literal["both", "image", "text"] = "both"
    """Which of the two terms there are."""
    query: Literal["own", "cross"] = "own"
    """Which similarity a pool is asked with: within its own modality, or across (a text pool by an image)."""
    directions: Literal["both", "one"] = "both"
    """Of a side's cross-entropy: neighbours against the true other side and back, or that alone."""
    bank: Literal["apart", "joint"] = "apart"
    """A pool for each kind, or one that both enter."""
    share: Part | None = 0.02
    """Entries of a pool as a share of the pairs (None: `size`)."""
    size: Pairs | None = None
    """Entries of a pool, if not `share`."""
    every: Count = 2
    """K: each K-th epoch is a RoCLIP epoch."""
    offset: Whole = 0
    """Epochs e = 1, 2, … with (e − offset) mod K = 0 and e > offset are RoCLIP epochs."""
    refresh: Literal["matched", "always"] = "matched"
    """Whether the pools take in batches in RoCLIP epochs only, as released, or in all."""
    start: Literal["gaussian", "unit", "pairs"] = "pairs"
    """First content of a pool: Gaussian vectors of norm about √D (released, by a slip of the library it uses), the same
    of norm 1, or embeddings of random pairs as the model sees them at the first step that uses or refreshes it."""
    wrap: Literal["drop", "ring"] = "ring"
    """At the end of a pool the rest of the batch is dropped (released), or continues at its beginning."""
    own: Literal["allowed", "excluded"] = "allowed"
    """Whether a pair may be given its own entry, where the pool still has one from an earlier epoch. Not in either
    version: for ablation."""
    seed: Seed = 0
    """Of the first content."""

    def __post_init__(self):
        super().__post_init__()
        if (self.share is None) == (self.size is None):
            raise UserError("say how large a pool is either by a share of the pairs or by a number of entries.")
        if self.bank == "joint" and (self.query == "cross" or self.start == "pairs"):
            raise UserError(
                "a joint bank is asked with the own modality and begins with noise: use query own, and start gaussian."
            )

    def entries(self, pairs: int) -> int:
        """How many entries a pool has for so many pairs, at least 1."""
        return self.size if self.size is not None else max(1, round(self.share * pairs))

    def active(self, epoch: int) -> bool:
        """Whether epoch e = 1, 2, … is a RoCLIP epoch."""
        return epoch > self.offset and (epoch - self.offset) % self.every == 0

    @property
    def trains(self) -> tuple[bool, bool]:
        """Whether (the image tower, the text tower) has a gradient in RoCLIP epochs."""
        return self.sides != "text", self.sides != "image"


TWO_SIDED = Matching()
"""First version. Its pool size, K and first content are unknown: the release's size and K, and no noise."""
AS_RELEASED = Matching(sides="image", query="cross", share=None, size=21_845, start="gaussian", wrap="drop")
"""Second version, defaults of the released code: K = 2, 21,845 entries for about 1,000,000 pairs (use `share` for other
sets)."""

BEFORE_V1 = Matching(directions="one", bank="joint", share=None, size=256, every=1, start="gaussian", wrap="drop")
"""The authors' repository before the first version: 256 entries at a batch of 128, in every epoch."""
CROSS_MODAL = replace(BEFORE_V1, bank="apart", query="cross", size=128, offset=5, refresh="always")
"""Its other variant: two banks of half the size."""


def clip_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """L_CLIP of (N, D) and (N, D), row i of one belonging to row i of the other."""
    logits, diagonal = scale * a @ b.T, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def neighbours(
    image: Tensor, text: Tensor, pools: Mapping[str, Pool], matching: Matching, ids: Sequence[int] | None = None
) -> dict[str, Found]:
    """What the pools return for N pairs, by matched side: "image" -> from the text pool, "text" -> from the image pool.
    No gradient.

    image, text: unit embeddings (N, D). pools: those that `pools_of` names, which are not changed; captions ask a joint
    bank as it will be when the images are in. ids: of the pairs, wanted where their own entries are excluded.
    """
    embedded, found = {"image": image.detach(), "text": text.detach()}, {}
    if matching.bank == "joint":
        filled = copy.deepcopy(pools["joint"])
        filled.add(embedded["image"], ids or [NOISE] * len(image))
        pools = {"image": pools["joint"], "text": filled}
    for side, other in (("image", "text"), ("text", "image")):
        if matching.sides in (side, "both"):
            found[side] = pools[other].nearest(
                embedded[asked_with(side, matching.query)], ids if matching.own == "excluded" else None
            )
    return found


def matched_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    pools: Mapping[str, Pool],
    matching: Matching,
    ids: Sequence[int] | None = None,
) -> Tensor:
    """L of a RoCLIP epoch, from unit embeddings (N, D) of a whole batch. Arguments as in `neighbours`."""
    embedded = {"image": image, "text": text}
    found = neighbours(image, text, pools, matching, ids)
    loss = clip_loss if matching.directions == "both" else neighbour_loss
    return torch.stack([loss(embedded[side], one.vectors, scale) for side, one in found.items()]).mean()


def neighbour_loss(true: Tensor, near: Tensor, scale: Tensor) -> Tensor:
    """CE(s·near trueᵀ, diagonal) of (N, D) and (N, D)."""
    return F.cross_entropy(scale * near @ true.T, torch.arange(len(true), device=true.device))


def asked_with(side: str, query: str) -> str:
    """The modality of the vector that is looked up for a side: the image side has a text pool, whose own modality is
    text."""
    return side if query == "cross" else ("text" if side == "image" else "image")


def pools_of(matching: Matching) -> tuple[str, ...]:
    """The pools that a matching needs: by their modality, or "joint"."""
    if matching.bank == "joint":
        return ("joint",)
    return {"both": ("text", "image"), "image": ("text",), "text": ("image",)}[matching.sides]
