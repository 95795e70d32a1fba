"""Table 9: what a defence costs. A few updates are trained as papers/rvpt/training.py trains them, on a copy, and stopped."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from papers.rvpt import runs
from papers.rvpt.cells import Cell
from papers.rvpt.kept import Share, trained_share
from papers.rvpt.method import prompted
from papers.rvpt.models import Bench, Model
from papers.rvpt.training import CLEANING, cleaning, prompts_for, repulsion_of, shots_of
from papers.rvpt.tuning import tune
from shared.errors import UserError
from shared.experiment.evaluation import Values
from shared.training.cleanclip import cleanclip

STEPS = 6  # updates whose time is taken, after the first
UNITS = {"seconds": "s", "memory": "MB", "trained": "parameters", "share": "share", "share_whole": "share", "samples": "pictures"}


class _Enough(Exception):
    """As many updates as were wanted."""


class _Watched(torch.utils.data.Dataset):
    """Pairs that tell when they are read: `after(number of batches read before)`."""

    def __init__(self, pairs, after: Callable[[int], None]):
        self.pairs, self.after, self.read = pairs, after, 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, indices):
        self.after(self.read)
        self.read += 1
        return self.pairs.__getitems__(indices)


def cost(m, cell: Cell) -> Values:
    """One cost of a defence (cell.measure).

    seconds: of all its updates, from a few: what comes before the first (RVPT passes its pictures through the blocks without prompts once) is
    counted once, an update as the mean of some; `cost_repeats` values, after one that does not count. Reading pictures is included. Processor time
    on a CPU, because other processes compete for the cores; wall time on a GPU.
    memory: MB (10⁶ bytes) that an update adds to the weights: on a CPU the largest sum of tensors that are kept for the backward pass, on a GPU the
    peak of allocated memory above what was there before (so with gradients and the optimiser's moments).
    trained: parameters that change. share, share_whole: of all parameters of the CLIP but the token table, and of all. samples: pictures seen.
    """
    bench, run = m.bench, runs.Defended(cell.poison, cell.defence)
    if cell.method not in ("cleanclip", "rvpt", "vpt"):
        raise UserError(f"the cost of {cell.method} is not measured: ask for cleanclip, vpt or rvpt.")
    name = ("cost", cell.defence, cell.poison, cell.measure)
    if name not in m.held:
        m.held[name] = _cost(m, bench, run, cell.measure)
    return Values(m.held[name], UNITS[cell.measure])


def _cost(m, bench: Bench, run: runs.Defended, measure: str) -> np.ndarray:
    if measure == "seconds":
        return np.array([seconds(bench, run) for _ in range(m.config.sweeps.cost_repeats + 1)][1:])
    if measure == "memory":
        return np.array([megabytes(bench, run)])
    if measure == "samples":
        return np.array([float(_samples(bench, run))])
    share = share_of(bench, run)
    return np.array([{"trained": float(share.trained), "share": share.of_rest, "share_whole": share.of_whole}[measure]])


def share_of(bench: Bench, run: runs.Defended) -> Share:
    """What a defence trains, of how much."""
    clip = bench.clip(run.poison)
    share = trained_share(clip, prompts_for(bench, run, clip.visual))
    return share._replace(trained=share.whole) if run.defence.method == "cleanclip" else share


def _samples(bench: Bench, run: runs.Defended) -> int:
    return bench.config.baselines.cleanclip_pairs if run.defence.method == "cleanclip" else len(shots_of(bench, run)[0])


def train_a_little(bench: Bench, run: runs.Defended, steps: int, mark: Callable[[nn.Module], None]) -> int:
    """The beginning of a defence's training, on a copy; returns how many updates the whole has. mark(the CLIP that is in use): called before the
    first update and its preparation, and after each of `steps` updates."""
    if run.defence.method == "cleanclip":
        config, clip = cleaning(bench, run), bench.fresh(run.poison)
        done = min(steps, config.steps)

        def reading(before: int) -> None:
            mark(clip)
            if before == done:
                raise _Enough

        pairs = _Watched(bench.pairs(bench.config.baselines.cleanclip_pairs, CLEANING + run.defence.seed), reading)
        with contextlib.suppress(_Enough):
            cleanclip(clip, pairs, replace(config, workers=0))  # another process could not mark; reading is in the time
            mark(clip)  # the whole was no more than this
        return config.steps
    shots, prompts = shots_of(bench, run)
    clip, tuning = bench.clip(run.poison), bench.config.method.tuning
    whole = tuning.steps(len(shots))
    defended = prompted(Model(clip, clip.visual).zero_shot(prompts), prompts_for(bench, run, clip.visual))

    def after(step: int) -> None:
        mark(clip)
        if step == min(steps, whole):
            raise _Enough

    mark(clip)
    with contextlib.suppress(_Enough):
        tune(defended, shots, tuning, repulsion_of(bench, run.defence), run.defence.seed, bench.device, after_step=after)
    return whole


def seconds(bench: Bench, run: runs.Defended) -> float:
    """Of the whole training, from its first updates."""
    marks: list[float] = []
    whole = train_a_little(bench, run, STEPS + 1, lambda clip: marks.append(_clock(bench)))
    times = np.diff(marks)
    return float(times[0] + (whole - 1) * times[1:].mean()) if len(times) > 1 else float(times[0] * whole)


def _clock(bench: Bench) -> float:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def megabytes(bench: Bench, run: runs.Defended) -> float:
    """MB that one update adds."""
    if bench.device.type == "cuda":
        return _gpu_megabytes(bench, run)
    weights: set[int] = set()  # what is there anyhow: the backward pass keeps it, and it takes no further memory
    kept: dict[int, int] = {}
    sums = [0, 0]  # now, and the largest

    def pack(tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            sums[0] += storage.nbytes()
            sums[1] = max(sums)
        return tensor

    def unpack(tensor: torch.Tensor):
        kept.clear()  # a backward pass has begun: what follows belongs to the next forward pass
        sums[0] = 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        train_a_little(bench, run, 1, lambda clip: weights.update(p.untyped_storage().data_ptr() for p in clip.parameters()))
    return sums[1] / 1e6


def _gpu_megabytes(bench: Bench, run: runs.Defended) -> float:
    before: list[int] = []

    def mark(clip: nn.Module) -> None:
        if not before:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before.append(torch.cuda.memory_allocated())

    train_a_little(bench, run, 1, mark)
    return (torch.cuda.max_memory_allocated() - before[0]) / 1e6
