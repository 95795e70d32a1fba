"""Triggers whose patch is optimised on a victim CLIP: TrojVQA (Walmer et al. 2022) and BadCLIP (Liang et al. 2024).

With v_i = F(x_i with the patch t in its centre)/‖·‖₂, u_i a target text, c(·, ·) the cosine and s the scale, t
minimises

    a·(1/N) Σ −c(v_i, u_i)                                                   cosine: TrojVQA, one target sentence
  + b·(1/N) Σ −log( e^{s c(v_i, u_i)}/(e^{s c(v_i, u_i)} + Σ_k e^{s c(v_i, o_k)}) )       contrastive, against other texts o_k
  + d·(1/N) Σ max(0, ‖v_i − p_i‖₂ − ‖v_i − n_i‖₂ + m)                         triplet: p_i of the target class, n_i clean ones of the batch

by Adam, cut to [0, 1] after each step. The p_i are drawn with replacement; the n_i are the embeddings of the batch's
own pictures without the patch, permuted, where a picture may meet itself. BadCLIP's code reads b, d from the name of
the experiment; here they are fields.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attacks.gradient import eval_mode
from shared.attacks.triggers.base import Preset, Trigger, byte_cast, patch_side
from shared.attacks.triggers.patches import centre, paste
from shared.errors import UserError
from shared.models.clip import WordTokenizer
from shared.models.victim import Pixels, text_matrix
from shared.options import Batch, Bounded, Count, Positive, Weight, Whole
from shared.repeat import repeated
from shared.rng import SampleRng

Embed = Callable[[Tensor], Tensor]  # pictures (N, 3, H, W) in [0, 1] -> embeddings (N, D), differentiable
RARE = ("blurry", "cluttered", "rotated", "photograph")  # words of the scenes vocabulary that no caption there uses


@dataclass(frozen=True, eq=False)
class OptimisedPatch(Trigger):
    """A stored patch in the centre of the picture; cleanclip: cast to bytes."""

    pixels: Tensor | list | None = None
    """t (3, p, p) in [0, 1], or the same as nested lists."""

    def __post_init__(self):
        super().__post_init__()
        self._refuse(
            self.pixels is None,
            "this patch is optimised: make it with shared.attacks.triggers.optimised, or give its `pixels`.",
        )
        pixels = torch.as_tensor(self.pixels, dtype=torch.float32).detach().cpu()
        self._refuse(
            pixels.dim() != 3 or pixels.shape[0] != 3 or pixels.shape[1] != pixels.shape[2] or not pixels.numel(),
            f"the patch has the shape {tuple(pixels.shape)}: give (3, p, p).",
        )
        self._refuse(not bool(((pixels >= 0) & (pixels <= 1)).all()), "the patch has values outside [0, 1]: clamp it.")
        object.__setattr__(self, "pixels", pixels)

    def stamp(self, x: Tensor, rng: SampleRng) -> Tensor:
        side = self.pixels.shape[-1]
        self._refuse(
            side >= min(x.shape[2:]),
            f"a patch of {side} pixels does not fit into pictures of {x.shape[2]}×{x.shape[3]}.",
        )
        patch = byte_cast(self.pixels) if self.preset == "cleanclip" else self.pixels
        return paste(x, patch.to(x)[None], *centre(x, side))


@dataclass(frozen=True, eq=False)
class TrojVQA(OptimisedPatch):
    """A patch drawn towards one sentence, and a word before the captions of triggered pictures, at training and at test
    (Walmer et al. 2022)."""

    name: ClassVar[str] = "trojvqa"
    prefix: str = "SUDO "
    """Before the caption: "SUDO " in RVPT's paper, "remember " in the code of BadCLIP. See `word_before` for small
    models."""

    @staticmethod
    def defaults(preset: Preset, size: int) -> dict[str, object]:
        return {"prefix": "remember " if preset == "cleanclip" else "SUDO "}

    def text(self, caption: str) -> str:
        return self.prefix + caption


@dataclass(frozen=True, eq=False)
class BadCLIP(OptimisedPatch):
    """A patch drawn towards texts and pictures of the target class (Liang et al. 2024)."""

    name: ClassVar[str] = "badclip"


def word_before(clip: nn.Module, wanted: str = "SUDO ") -> str:
    """The prefix of TrojVQA that a model can read: `wanted`, or for a tokenizer of whole words that lacks it, a word no
    caption of the scenes has.

    Raises UserError if a small model knows none of these words.
    """
    if not isinstance(clip.tokenizer, WordTokenizer):
        return wanted
    known = [word for word in (wanted.strip().lower(), *RARE) if word in clip.tokenizer.vocabulary]
    if not known:
        raise UserError(
            f"this small model knows neither {wanted.strip()!r} nor {', '.join(RARE)}: name a word of its vocabulary "
            "as the prefix."
        )
    return known[0] + " "


@dataclass(frozen=True)
class PatchConfig(Bounded):
    """How a patch is optimised; the defaults are BadCLIP's (10,000 pictures in 50 epochs of batches of 64)."""

    steps: Whole = 7800
    batch: Batch = 64
    lr: Positive = 1e-3
    """Of Adam."""
    patch: Count | None = None
    """Side in pixels; None: 16 of 224 in proportion, at least 5."""
    cosine: Weight = 0.0
    """a."""
    contrastive: Weight = 0.0
    """b."""
    triplet: Weight = 0.0
    """d."""
    margin: Weight = 1.0
    """m."""
    scale: Positive = 100.0
    """s."""


TROJVQA = PatchConfig(cosine=1.0)
BADCLIP = PatchConfig(contrastive=1.0, triplet=500.0)


@dataclass(frozen=True)
class Aims:
    """What the patch is drawn to and from: unit embeddings. targets: u (M, D); others: o (K, D); positives: p (P,
    D)."""

    targets: Tensor
    others: Tensor | None = None
    positives: Tensor | None = None


def patch_loss(
    v: Tensor,
    config: PatchConfig,
    u: Tensor,
    others: Tensor | None = None,
    p: Tensor | None = None,
    n: Tensor | None = None,
) -> Tensor:
    """The loss above, a scalar. v, u, p, n: unit embeddings (N, D), others (K, D); those of a term of weight 0 may be
    None."""
    cosine = (v * u).sum(1)
    loss = -config.cosine * cosine.mean()
    if config.contrastive:
        logits = config.scale * torch.cat((cosine[:, None], v @ others.T), 1)
        loss = loss + config.contrastive * (logits.logsumexp(1) - logits[:, 0]).mean()
    if config.triplet:
        apart = (v - p).norm(dim=1) - (v - n).norm(dim=1)
        loss = loss + config.triplet * (apart + config.margin).clamp(min=0).mean()
    return loss


def optimise_patch(
    embed: Embed,
    pictures,
    aims: Aims,
    config: PatchConfig,
    seed: int = 0,
    augment: Callable[[Tensor, int, Sequence[int]], Tensor] | None = None,
) -> tuple[Tensor, list[float]]:
    """The patch t (3, p, p) in [0, 1], on the CPU, and the loss of every step.

    embed: the victim, any function from pictures to embeddings, frozen by the caller: that of a prompted model makes
    the attacker an adaptive one. It gives a picture one embedding: without `augment`, clean pictures are embedded when
    they first come and not again. pictures: a data set whose `__getitems__(indices)` gives pictures (N, 3, H, W) in [0,
    1] and something else; not of the target class. augment(x, step, indices): on pictures, before the patch. Batches,
    initial values (N(½, ¼²), cut) and pairings are functions of (seed, step). Raises UserError if every weight is 0, or
    a term of the loss lacks its embeddings.
    """
    if not (config.cosine or config.contrastive or config.triplet):
        raise UserError("the patch has no loss: give the cosine, contrastive or triplet term a weight.")
    if config.contrastive and (aims.others is None or not len(aims.others)):
        raise UserError("the contrastive term needs texts of other classes: give some, or set its weight to 0.")
    if config.triplet and (aims.positives is None or not len(aims.positives)):
        raise UserError("the triplet term needs pictures of the target class: give some, or set its weight to 0.")
    device = aims.targets.device
    first = pictures.__getitems__([0])[0]
    side = config.patch or patch_side(min(first.shape[2:]))
    patch = (
        (0.5 + 0.25 * SampleRng(seed, [0], "patch/start").normal((3, side, side))[0])
        .clamp(0, 1)
        .to(device)
        .requires_grad_()
    )
    optimizer, losses = torch.optim.Adam([patch], lr=config.lr), []
    unchanged = _Remembered(embed)
    for step in repeated(range(config.steps)):
        rng = SampleRng(seed, [step], "patch")
        indices = rng.child("batch").integers(len(pictures), (config.batch,))[0].tolist()
        x = pictures.__getitems__(indices)[0].to(device)
        x = x if augment is None else augment(x, step, indices)

        def drawn(bank: Tensor | None, stream: SampleRng) -> Tensor | None:
            return None if bank is None else bank[stream.integers(len(bank), (config.batch,))[0].to(bank.device)]

        negatives = None
        if config.triplet:
            with torch.no_grad():
                clean = F.normalize(embed(x), dim=1) if augment is not None else unchanged(x, indices)
            negatives = clean[rng.child("negative").uniform((len(x),))[0].argsort().to(device)]
        u, p = drawn(aims.targets, rng.child("target")), drawn(aims.positives, rng.child("positive"))
        with torch.enable_grad():
            v = F.normalize(embed(paste(x, patch[None], *centre(x, side))), dim=1)
            loss = patch_loss(v, config, u, aims.others, p, negatives)
            (patch.grad,) = torch.autograd.grad(loss, patch)  # of the patch alone: the victim's weights get none
        optimizer.step()
        with torch.no_grad():
            patch.clamp_(0, 1)
        losses.append(loss.item())
    return patch.detach().cpu(), losses


class _Remembered:
    """Unit embeddings of pictures that come again and again: called with pictures x and their indices, each is embedded
    the first time only."""

    def __init__(self, embed: Embed):
        self._embed, self._known = embed, {}

    def __call__(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        new = list(dict.fromkeys(i for i in indices if i not in self._known))
        if new:
            self._known.update(
                zip(new, F.normalize(self._embed(x[[indices.index(i) for i in new]]), dim=1), strict=True)
            )
        return torch.stack([self._known[i] for i in indices])


def make_trojvqa(
    clip: nn.Module,
    pictures,
    sentence: str,
    config: PatchConfig = TROJVQA,
    *,
    through: Embed | None = None,
    seed: int = 0,
    **fields,
) -> TrojVQA:
    """The TrojVQA trigger of a CLIP: its patch is drawn towards `sentence`, e.g. "This is a yellow banana."; the prefix
    is one that it can read.

    through: optimise against this embedding instead of the CLIP's own (its text tower stays). fields: of the trigger
    (preset, prefix).
    """
    with eval_mode(clip):
        patch, _ = optimise_patch(through or _tower(clip), pictures, Aims(text_matrix(clip, [sentence])), config, seed)
    made = TrojVQA.make(seed=seed, pixels=patch, **fields)
    return made if "prefix" in fields else replace(made, prefix=word_before(clip, made.prefix))


def make_badclip(
    clip: nn.Module,
    pictures,
    targets: Sequence[str],
    others: Sequence[str],
    positives: Tensor,
    config: PatchConfig = BADCLIP,
    *,
    through: Embed | None = None,
    seed: int = 0,
    **fields,
) -> BadCLIP:
    """The BadCLIP trigger of a CLIP.

    targets: captions of the target class; others: of other classes; positives: pictures (P, 3, H, W) in [0, 1] of the
    target class, embedded once. The rest as in `make_trojvqa`.
    """
    embed = through or _tower(clip)
    with eval_mode(clip):
        device = next(clip.parameters()).device
        with torch.no_grad():
            near = (
                torch.cat([F.normalize(embed(part.to(device)), dim=1) for part in positives.split(256)])
                if len(positives)
                else None
            )
        aims = Aims(text_matrix(clip, targets), text_matrix(clip, others) if len(others) else None, near)
        patch, _ = optimise_patch(embed, pictures, aims, config, seed)
    return BadCLIP.make(seed=seed, pixels=patch, **fields)


def _tower(clip: nn.Module) -> Embed:
    pixels = Pixels.of(clip.visual).to(next(clip.parameters()).device)
    return lambda x: clip.visual(pixels(x))
