"""The training loop all methods share: a step function, a schedule, progress, and checkpoints from which a run
continues exactly.

Everything a step uses is a function of the step number (which samples, which noise), so a run that was killed and
continued gives the same weights as one that was not. A checkpoint is one file, written to a temporary name and moved
into place.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.files import atomic_path
from shared.repeat import repeated


class Diverged(UserError):
    """A training whose loss is no number any more."""


def cosine_schedule(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate at `step` (0-based): linear warm-up over `warmup` steps, then ½(1 + cos
    π·progress) down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class OneProcess:
    """What training loops ask of an `accelerate.Accelerator`, in this process alone, where the model is. It keeps no
    global state."""

    process_index, num_processes, is_main_process = 0, 1, True

    def __init__(self, device: torch.device | str):
        self.device = device

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def wait_for_everyone(self) -> None: ...

    def end_training(self) -> None: ...

    def free_memory(self) -> None: ...


def check_batch(name: str, batch: int, n: int, world: int = 1, what: str = "pairs") -> None:
    """Raises UserError where a batch is larger than a set of n, or has no equal shares for all processes."""
    if batch > n:
        raise UserError(f"{name}: a batch of {batch} {what} is larger than the set, which has {n}: make it smaller.")
    if batch % world:
        raise UserError(
            f"{name}: a batch of {batch} {what} has no equal shares for {world} processes: change the batch size or "
            "the number of processes."
        )


@dataclass
class Fit:
    """One training run.

    model: the module whose state is saved. optimizer: over its trained parameters. steps, lr, warmup: the schedule.
    step_fn(step) -> scalar loss (and is free to log); it begins where the checkpoint left off. checkpoint: file to
    continue from and to write every `every` steps (None: never). accelerator: an `accelerate.Accelerator`; None: this
    process alone. after_step(step): called after each update, e.g. for a curve along training. clip_norm: gradient-norm
    bound (None: none). alike(step): steps with the same value cost the same, for plans.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    lr: float
    step_fn: Callable[[int], Tensor]
    warmup: int = 0
    checkpoint: Path | None = None
    every: int = 0
    accelerator: Any = None
    after_step: Callable[[int], None] | None = None
    clip_norm: float | None = None
    name: str = "training"
    alike: Callable[[int], object] = lambda step: None

    def run(self) -> float:
        """Train (or continue) to the last step; returns the last loss (0 if nothing was left to do)."""
        from tqdm import tqdm

        accelerator = self.accelerator or OneProcess("cpu")
        start, main = self._restore(), accelerator.is_main_process
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        bar = tqdm(
            repeated(range(start, self.steps), alike=self.alike),
            initial=start,
            total=self.steps,
            desc=self.name,
            disable=not (main and sys.stderr.isatty()),
            leave=False,
        )
        loss, began = torch.zeros(()), time.monotonic()
        for step in bar:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * cosine_schedule(step, self.steps, self.warmup)
            loss = self.step_fn(step)
            self.optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            self.optimizer.step()
            if self.after_step is not None:
                self.after_step(step + 1)
            if main and self.every and (step + 1) % self.every == 0 and step + 1 < self.steps:
                self._save(step + 1)
                if not sys.stderr.isatty():
                    print(
                        f"{self.name}: step {step + 1}/{self.steps}, loss {float(loss.detach()):.3f}, "
                        f"{time.monotonic() - began:.0f} s",
                        flush=True,
                    )
        # nothing is left behind for whoever uses the model next: no gradients, and not accelerate's half precision
        self.optimizer.zero_grad(set_to_none=True)
        for module in self.model.modules():
            if vars(module).pop("_original_forward", None):
                del module.forward
        value = float(loss.detach()) if self.steps > start else 0.0
        if not math.isfinite(value):
            raise Diverged(f"{self.name}: the loss became {value} after {self.steps} steps: lower the learning rate.")
        return value

    def _save(self, step: int) -> None:
        if self.checkpoint is None:
            return
        state = {"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _restore(self) -> int:
        """The step to begin with: 0, or where the checkpoint left off."""
        if self.checkpoint is None or not Path(self.checkpoint).is_file():
            return 0
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            return int(state["step"])
        except Exception as error:
            raise UserError(
                f"the checkpoint {self.checkpoint} cannot be continued from ({type(error).__name__}): delete it to "
                "train again from the start."
            ) from error
