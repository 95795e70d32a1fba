"""What one update costs: seconds, and the memory that its backward pass keeps."""

import time
from collections.abc import Callable

import numpy as np
import torch


def clock(device: torch.device) -> float:
    """Seconds on a clock: on a CPU processor time, because other processes of the same run compete for the cores."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def step_seconds(train: Callable, steps: int, device: torch.device) -> np.ndarray:
    """Seconds of each of `steps` updates, after one that does not count; reading the pictures is included. train(steps, after_step): trains."""
    marks: list[float] = []
    train(steps + 1, lambda step: marks.append(clock(device)))
    return np.diff(marks)


def activation_megabytes(train: Callable, device: torch.device) -> np.ndarray:
    """MB (10⁶ bytes): the largest sum of tensors kept for one backward pass in an update; on a GPU the peak of allocated memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        train(1, None)
        return np.array([torch.cuda.max_memory_allocated() / 1e6])
    kept: dict[int, int] = {}
    peak = [0]

    def pack(tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        peak[0] = max(peak[0], sum(kept.values()))
        return tensor

    def unpack(tensor: torch.Tensor):
        kept.clear()  # a backward pass has begun: what follows belongs to the next forward pass
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        train(1, None)
    return np.array([peak[0] / 1e6])
