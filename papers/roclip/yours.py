"""A loss of the user's own in place of CLIP's: METHOD=module:name.

    class Mine:                                                        # made without arguments
        def loss(self, image: Tensor, text: Tensor, scale: Tensor, epoch: int) -> Tensor: ...

image, text (N, D): unit embeddings of the N pairs of a batch, with their gradients; scale: s = exp(logit scale), a
scalar; epoch = 1, 2, … A finite scalar comes back. All else is as for plain CLIP with augmentation: order, optimiser,
schedule, augmentation (none in the world of few targets). A class that is an nn.Module has its buffers (a pool, say) in
the checkpoints of a training, and its parameters are trained with the towers.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.roclip.training import AfterEpoch, Method, Trained, Training, train
from shared.errors import UserError
from shared.steps.yours import FAILS, Code, what
from shared.training.loop import OneProcess


@dataclass(frozen=True)
class Mine(Method):
    """What is done with pairs: the augmentation of a `Method`, and the user's loss."""

    _: KW_ONLY
    code: Code

    def loss(self) -> Callable[..., Tensor]:
        """An object of the user's class, made anew. Raises UserError where it has no loss."""
        return self.code.having("loss")

    def look(self) -> None:
        """Raises UserError unless the loss of a few random embeddings is a finite scalar with a gradient."""
        at, rng = f"{self.code.option} {self.code.spec}", torch.Generator().manual_seed(0)
        image, text = (F.normalize(torch.randn(4, 8, generator=rng), dim=1).requires_grad_() for _ in range(2))
        try:
            loss = self.loss().loss(image, text, torch.tensor(10.0), 1)
        except FAILS as error:
            raise UserError(
                f"{at} fails on four pairs ({what(error)}): it is called as loss(image, text, scale, epoch)."
            ) from error
        if not isinstance(loss, Tensor) or loss.shape != ():
            got = tuple(loss.shape) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"{at}: its loss of four pairs is {got}, and must be a scalar.")
        if not loss.isfinite() or not loss.requires_grad:
            raise UserError(f"{at}: its loss is not finite, or has no gradient with respect to the embeddings.")


class _Attached(nn.Module):
    """What a checkpoint keeps beside CLIP: the updates that are done, and the user's object where it is a module."""

    def __init__(self, made: object):
        super().__init__()
        self.made = made
        self.register_buffer("done", torch.zeros((), dtype=torch.long))


class _Lowering(OneProcess):
    """In place of the loss that it is handed, the user's own is differentiated."""

    def __init__(self, device: torch.device, attached: _Attached, per_epoch: int):
        super().__init__(device)
        self.attached, self.per_epoch = attached, per_epoch

    def prepare(self, model: nn.Module) -> nn.Module:
        model.register_forward_hook(self._note)
        return model

    def _note(self, towers: nn.Module, given: tuple, embedded: tuple[Tensor, Tensor, Tensor]) -> None:
        self.embedded = embedded

    def backward(self, loss: Tensor) -> None:
        epoch = int(self.attached.done) // self.per_epoch + 1
        self.attached.made.loss(*self.embedded, epoch).backward()
        self.attached.done += 1


def train_by(
    method: Mine,
    clip: nn.Module,
    pairs: object,
    training: Training,
    checkpoint: Path | None = None,
    after_epoch: AfterEpoch | None = None,
    name: str = "training",
) -> Trained:
    """`papers.roclip.training.train` with the user's loss, in one process; losses of its history are CLIP's own."""
    device = clip.logit_scale.device
    torch.manual_seed(training.seed)  # for code that draws from torch's own generator
    clip.yours = _Attached(method.loss()).to(device)
    lowering = _Lowering(device, clip.yours, training.per_epoch(len(pairs)))
    found = train(clip, pairs, method, training, lowering, checkpoint, after_epoch, name=name)
    del clip.yours
    return found
