"""Contrastive training in epochs: plain CLIP, CLIP with augmentation, and RoCLIP, from random weights or from a given
CLIP.

One epoch is one permutation of the pairs in batches over all processes together; a last short batch is dropped. A run
that was killed and continued from its checkpoint has the same weights, the same pools and the same measurements of the
epochs that were over. Nothing is encoded twice: a RoCLIP step is a plain step with one matrix product per pool, and a
tower that has no gradient in it is only run forward.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.roclip.augment import CaptionAugmentation, ImageAugmentation
from papers.roclip.method import Matching, clip_loss, matched_loss, pools_of
from papers.roclip.pool import Pool
from shared.models.victim import Pixels
from shared.options import Bounded, Count, Decay, Positive, Range, Seed, Share, Weight, Whole, Workers, free
from shared.repeat import joined_all
from shared.training.contrastive import Batches, adamw, batch_indices, clamp_scale
from shared.training.loop import Fit, OneProcess, check_batch, cosine_schedule


@dataclass(frozen=True)
class Method:
    """What is done with pairs. Method() is plain CLIP; Method(None, images, captions) is CLIP with augmentation, in
    every epoch."""

    matching: Matching | None = None
    images: ImageAugmentation | None = None
    captions: CaptionAugmentation | None = None


@dataclass(frozen=True)
class Training(Bounded):
    """How long and how fast. Raises UserError for numbers below their least."""

    epochs: Count = 10
    batch: Annotated[int, Range(2, 65_536)] = 128
    """Pairs per update, over all processes together."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW."""
    warmup: Whole = 50
    """Updates of linear warm-up, then a cosine to 0."""
    ahead: bool = False
    """The schedule is one epoch ahead, as released: the warm-up begins an epoch in, and in the last epoch the rate
    rises again from 0."""
    weight_decay: Weight = 0.1
    decayed: Literal["matrices", "names"] = "matrices"
    """What is decayed: parameters of two dimensions or more, or (as released) those without bn, ln, bias or logit_scale
    in their name."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    epsilon: Positive = 1e-6
    clip_norm: Positive | None = 1.0
    """Bound of the gradient norm (None: none, as released)."""
    every: Whole = free(0)
    """Updates between checkpoints (0: none)."""
    workers: Workers = free(0)
    """Processes that read and augment pairs ahead, for each process that trains; for pictures in files."""
    seed: Seed = 0
    """Of the order of the pairs."""

    def per_epoch(self, pairs: int) -> int:
        """Updates of an epoch."""
        return pairs // self.batch

    def rate(self, step: int, pairs: int) -> float:
        """The learning rate at update `step` = 0, 1, … of a training on so many pairs."""
        per_epoch = self.per_epoch(pairs)
        return self.lr * cosine_schedule(step + (per_epoch if self.ahead else 0), self.epochs * per_epoch, self.warmup)


@dataclass(frozen=True)
class EarlyStop(Bounded):
    """Early stopping by clean accuracy on validation pictures alone: the weights of the last epoch that was better, by
    more than `least` and at most `patience` epochs later, than the last such epoch before it."""

    least: Share = 0.01
    patience: Count = 2

    def better(self, epoch: int, accuracy: float, best: int, highest: float) -> bool:
        """Whether an epoch takes the place of the best so far, which had the highest accuracy."""
        return epoch - best <= self.patience and accuracy > highest + self.least


RELEASED = Training(
    epochs=24,
    batch=512,
    lr=5e-5,
    warmup=10_000,
    ahead=True,
    decayed="names",
    betas=(0.9, 0.999),
    epsilon=1e-8,
    clip_norm=None,
    every=1000,
    workers=12,
)
"""Defaults of the released code. At fewer pairs than a million the warm-up has to shrink with them: 10,000 updates are
5.1 of its epochs."""

REMEMBERED = 100_000  # captions of so many pairs are tokenised once, not once per epoch

AfterEpoch = Callable[[int, nn.Module, dict[str, Pool]], dict]


class Trained(NamedTuple):
    """What a training leaves besides the weights."""

    loss: float
    history: list[dict]
    """One dictionary per epoch: epoch, matched (a RoCLIP epoch?), loss (of its last update), and what `after_epoch`
    gave."""
    pools: dict[str, Pool]


class _Towers(nn.Module):
    """forward(x, tokens, trains) -> unit embeddings (N, D) of both and the scale. A tower that is not trained is run
    without a graph, and its parameters get gradients of exactly 0, which an optimiser does not skip and several
    processes can average."""

    def __init__(self, clip: nn.Module, norm: str):
        super().__init__()
        self.clip, self.pixels = clip, Pixels.of(clip.visual, norm)

    def forward(self, x: Tensor, tokens: Tensor, trains: tuple[bool, bool]):
        with torch.set_grad_enabled(trains[0] and torch.is_grad_enabled()):
            image = self.clip.encode_image(self.pixels(x), normalize=True)
        with torch.set_grad_enabled(trains[1] and torch.is_grad_enabled()):
            text = self.clip.encode_text(tokens, normalize=True)
        scale = self.clip.logit_scale.exp()
        if not all(trains):
            for trained, parameters in zip(trains, tower_parameters(self.clip), strict=True):
                if not trained:
                    scale = scale + 0.0 * torch.stack([p.sum() for p in parameters]).sum()
        return image, text, scale


class _State(nn.Module):
    """All that a checkpoint holds."""

    def __init__(self, clip: nn.Module, pools: dict[str, Pool]):
        super().__init__()
        self.clip, self.pools, self.history = clip, nn.ModuleDict(pools), []

    def get_extra_state(self) -> str:
        return json.dumps(self.history)

    def set_extra_state(self, state: str) -> None:
        self.history = json.loads(state)


def train(
    clip: nn.Module,
    pairs,
    method: Method = Method(),
    training: Training = Training(),
    accelerator=None,
    checkpoint: Path | None = None,
    after_epoch: AfterEpoch | None = None,
    norm: str = "clip",
    name: str = "training",
) -> Trained:
    """Train all of `clip` in place. It is left frozen and in eval mode.

    pairs: a data set with a length whose `__getitems__(indices)` gives pictures (N, 3, H, W) in [0, 1] and N captions,
    e.g. TargetedPairs. accelerator: None for this process alone; otherwise every process takes its share of each batch.
    checkpoint: file to continue from and to write every `training.every` updates, removed by nobody. after_epoch(epoch,
    clip, pools): measurements in JSON, taken in eval mode at the end of each epoch by every process. norm: key of
    MEAN_STD. Raises UserError where a batch is larger than the set or has no equal shares for all processes, or the
    loss is no number at the end.
    """
    accelerator = accelerator or OneProcess(clip.logit_scale.device)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    check_batch(name, training.batch, len(pairs), world)
    matching, per_epoch = method.matching, training.per_epoch(len(pairs))
    updates = training.epochs * per_epoch
    reader, pools = _Reader(pairs, method, clip.tokenizer), make_pools(clip, matching, len(pairs), device)
    state = _State(clip.requires_grad_(True).train(), pools)
    towers = accelerator.prepare(_Towers(clip, norm).to(device))
    optimizer, last = optimizer_of(clip, training), {}

    def indices(step: int) -> list[int]:
        return batch_indices(len(pairs), training.batch, step, training.seed)

    batches = Batches(reader, lambda step: [(indices(step)[rank::world], step)], updates, training.workers)

    def step_fn(step: int) -> Tensor:
        epoch = step // per_epoch + 1
        on = matching is not None and matching.active(epoch)
        taken_in = on or (matching is not None and matching.refresh == "always")
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, len(pairs))
        everyone = indices(step)
        if taken_in and not all(pool.ready for pool in pools.values()):
            _fill(pools, reader, clip, towers, matching.seed, training.batch, device)
        x, tokens = batches(step)
        image, text, scale = towers(x.to(device), tokens.to(device), matching.trains if on else (True, True))
        image, text = _gathered(image, world), _gathered(text, world)
        loss = matched_loss(image, text, scale, pools, matching, everyone) if on else clip_loss(image, text, scale)
        if taken_in:
            for modality, pool in pools.items():
                for embeddings in {"image": (image,), "text": (text,), "joint": (image, text)}[modality]:
                    pool.add(embeddings, everyone)
        last["loss"] = loss.detach()
        return loss

    def after_step(done: int) -> None:
        clamp_scale(clip)
        if done % per_epoch:
            return
        epoch = done // per_epoch
        row = {"epoch": epoch, "matched": matching is not None and matching.active(epoch), "loss": float(last["loss"])}
        if after_epoch is not None:
            clip.eval()
            with torch.no_grad():
                row |= after_epoch(epoch, clip, pools)
            clip.train()
        state.history.append(row)

    fit = Fit(
        state,
        optimizer,
        updates,
        training.lr,
        step_fn,
        training.warmup,
        checkpoint,
        training.every,
        accelerator,
        after_step,
        training.clip_norm,
        name,
        alike=lambda step: (
            matching is not None and matching.active(step // per_epoch + 1),
            (step + 1) % per_epoch == 0,
        ),
    )
    loss = fit.run()
    clip.requires_grad_(False).eval()
    return Trained(loss, state.history, pools)


class _Reader:
    """Batches of augmented pictures and tokens, functions of (step, indices)."""

    def __init__(self, pairs, method: Method, tokenizer):
        self.pairs, self.images, self.tokenizer = pairs, method.images, tokenizer
        self.captions = None if method.captions is None else method.captions.bind(tokenizer)
        self._known: dict[int, Tensor] | None = {} if len(pairs) <= REMEMBERED else None

    def __call__(self, indices: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        x, texts = self.pairs.__getitems__(indices)
        if self.images is not None:
            x = self.images(x, step, indices)
        if self._known is None:
            return x, self._tokens(texts, indices)
        new = [k for k, i in enumerate(indices) if i not in self._known]
        if new:
            made = self._tokens([texts[k] for k in new], [indices[k] for k in new])
            self._known.update(zip((indices[k] for k in new), made, strict=True))
        return x, torch.stack([self._known[i] for i in indices])

    def __getitems__(self, batch: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
        return self(*batch[0])

    def _tokens(self, texts: list[str], indices: Sequence[int]) -> Tensor:
        return self.tokenizer(texts if self.captions is None else self.captions(texts, indices))


def make_pools(clip: nn.Module, matching: Matching | None, pairs: int, device="cpu") -> dict[str, Pool]:
    """The pools of a matching at their start, as `pools_of` names them ({} for none)."""
    if matching is None:
        return {}
    dim, size = embedding_width(clip), matching.entries(pairs)
    return {
        modality: Pool(size, dim, matching.start, matching.wrap, 2 * matching.seed + k).to(device)
        for k, modality in enumerate(pools_of(matching))
    }


@torch.no_grad()
def _fill(
    pools: dict[str, Pool], reader: _Reader, clip: nn.Module, towers: nn.Module, seed: int, batch: int, device
) -> None:
    """Put embeddings of random pairs, as the model sees them now, into pools that have none."""
    plain = getattr(towers, "module", towers)  # every process does the same: there is nothing to synchronise
    size = len(next(iter(pools.values())))
    chosen = torch.randperm(len(reader.pairs), generator=torch.Generator().manual_seed(seed))
    chosen = chosen.repeat(-(-size // len(chosen)))[:size]
    clip.eval()

    def embedded(part: Tensor) -> tuple[Tensor, Tensor]:
        return plain(*(t.to(device) for t in reader(part.tolist(), -1)), (True, True))[:2]

    rows = joined_all(embedded, list(chosen.split(batch)))
    clip.train()
    for modality, embeddings in zip(("image", "text"), rows, strict=True):
        if modality in pools:
            pools[modality].put(embeddings, chosen)


def _gathered(mine: Tensor, world: int) -> Tensor:
    """The embeddings of all processes in the order of the whole batch, of which process r has rows r, r + world, …"""
    if world == 1:
        return mine
    if mine.requires_grad:
        from torch.distributed.nn import all_gather  # hands gradients back, unlike the plain one

        parts = all_gather(mine)
    else:
        parts = [torch.empty_like(mine) for _ in range(world)]
        torch.distributed.all_gather(parts, mine.contiguous())
    return torch.stack(tuple(parts), dim=1).flatten(0, 1)


def optimizer_of(clip: nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW with decay on what `training.decayed` says."""

    def named(name: str, p: nn.Parameter) -> bool:
        return not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    decays = {"decays": named} if training.decayed == "names" else {}
    return adamw(clip, training.lr, training.weight_decay, training.betas, training.epsilon, **decays)


def tower_parameters(clip: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the image tower and of the text tower; the logit scale belongs to neither."""
    of_image = list(clip.visual.parameters())
    known = {id(p) for p in of_image}
    return of_image, [p for name, p in clip.named_parameters() if id(p) not in known and not name.startswith("logit_")]


@torch.no_grad()
def embedding_width(clip: nn.Module) -> int:
    """D."""
    device = clip.logit_scale.device
    return F.normalize(clip.encode_text(clip.tokenizer(["a photo"]).to(device))).shape[1]
