"""What one update costs: seconds, and the memory that its backward pass keeps."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn


def clock(device: torch.device) -> float:
    """Seconds on a clock: on a CPU processor time, because other processes of the same run compete for the cores."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def phase_seconds(run: Callable[[Callable[[], None]], None], repeats: int, device: torch.device) -> np.ndarray:
    """Seconds of each phase of each run, (repeats, phases), after one run that does not count.

    run(done): something to be timed, which calls done() at the end of each of its phases.
    """
    found: list[list[float]] = []
    for _ in range(repeats + 1):
        marks = [clock(device)]
        run(lambda marks=marks: marks.append(clock(device)))
        found.append(marks)
    return np.diff(found[1:], axis=1)


def step_seconds(train: Callable, steps: int, device: torch.device) -> np.ndarray:
    """Seconds of each of `steps` updates, after one that does not count; reading the pictures is included. train(steps,
    after_step): trains."""
    marks: list[float] = []
    train(steps + 1, lambda step: marks.append(clock(device)))
    return np.diff(marks)


def activation_megabytes(train: Callable, device: torch.device, without: nn.Module | None = None) -> np.ndarray:
    """MB (10⁶ bytes): the largest sum of tensors kept for one backward pass in an update; on a GPU the peak of
    allocated memory.

    without: a model whose parameters are there anyhow and do not count (on a GPU: nor does what is allocated before).
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = 0 if without is None else torch.cuda.memory_allocated()
        train(1, None)
        return np.array([(torch.cuda.max_memory_allocated() - before) / 1e6])
    own = set() if without is None else {p.untyped_storage().data_ptr() for p in without.parameters()}
    kept: dict[int, int] = {}
    peak = [0]

    def pack(tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in own:
            return tensor
        kept[storage.data_ptr()] = storage.nbytes()
        peak[0] = max(peak[0], sum(kept.values()))
        return tensor

    def unpack(tensor: torch.Tensor):
        kept.clear()  # a backward pass has begun: what follows belongs to the next forward pass
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        train(1, None)
    return np.array([peak[0] / 1e6])
