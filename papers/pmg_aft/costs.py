"""What one update costs: seconds, and the memory that its backward pass keeps."""

import time

import numpy as np
import torch

from papers.pmg_aft.models import Bench
from papers.pmg_aft.runs import Run
from shared.attacks import Threat
from shared.training.adversarial import finetune


def _steps(bench: Bench, run: Run, steps: int, after) -> None:
    """A few updates of a run, as train.py makes them, on a copy."""
    from dataclasses import replace

    from papers.pmg_aft.train import objective

    data = bench.labelled(run.train, "train")
    victim = bench.victim(data, bench.fresh_visual(), run.face.norm, bench.scale_of(run.face))
    finetune(victim, objective(bench, run, victim), data, replace(run.tuning, steps=steps, every=0), Threat("linf", bench.config.attack.eps),
             run.face.attack, run.seed, bench.device, snapshot=after, name="cost")


def step_seconds(bench: Bench, run: Run) -> np.ndarray:
    """Seconds of each of `sweeps.cost_steps` updates, after one that does not count; reading the pictures is included.

    On a CPU these are seconds of processor time, because other processes of the same run compete for the cores.
    """
    marks: list[float] = []
    clock = time.perf_counter if bench.device.type == "cuda" else time.process_time

    def mark(step: int) -> None:
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(clock())

    _steps(bench, run, bench.config.sweeps.cost_steps + 1, mark)
    return np.diff(marks)


def activation_megabytes(bench: Bench, run: Run) -> np.ndarray:
    """MB (10⁶ bytes): the largest sum of tensors kept for one backward pass in an update; on a GPU the peak of allocated memory."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        _steps(bench, run, 1, None)
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
        _steps(bench, run, 1, None)
    return np.array([peak[0] / 1e6])
