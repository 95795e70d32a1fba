"""Table 9: what a defence costs. A few updates are trained as the defence is trained, on a copy, and stopped."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from papers.rvpt.defences import ByYours, Cleaned, Prompts, model_of
from papers.rvpt.method import DeepPrompts
from shared.experiment.step import Lab, Measured, Values
from shared.metrics.costs import activation_megabytes, clock
from shared.repeat import repeated
from shared.training.cleanclip import cleanclip

STEPS = 6  # updates whose time is taken, after the first
UNITS = {"trained": "parameters", "share": "fraction", "share_whole": "fraction", "samples": "pictures"}


class Share(NamedTuple):
    """How many parameters are trained, of how many."""

    trained: int
    whole: int
    """Of the CLIP, both towers."""
    without_table: int
    """The same without the token embedding table, the denominator behind the paper's 0.27 %."""

    @property
    def of_whole(self) -> float:
        return self.trained / self.whole

    @property
    def of_rest(self) -> float:
        return self.trained / self.without_table


def trained_share(clip: nn.Module, prompts: DeepPrompts | None) -> Share:
    """The share of prompts (None: of the whole CLIP). clip: an open_clip CLIP, which may be on the meta device."""
    whole = sum(p.numel() for p in clip.parameters())
    table = sum(m.weight.numel() for m in clip.modules() if isinstance(m, nn.Embedding))
    return Share(whole if prompts is None else prompts.prompts.numel(), whole, whole - table)


class _Enough(Exception):
    """As many updates as were wanted."""


class _Watched(torch.utils.data.Dataset):
    """Pairs that tell when they are read: `after(number of batches read before)`."""

    def __init__(self, pairs: torch.utils.data.Dataset, after: Callable[[int], None]):
        self.pairs, self.after, self.read = pairs, after, 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, indices: Sequence[int]) -> tuple:
        self.after(self.read)
        self.read += 1
        return self.pairs.__getitems__(indices)


@dataclass(frozen=True)
class Cost(Measured):
    """One cost of a defence.

    seconds: of all its updates, from a few: what comes before the first (RVPT passes its pictures through the blocks
    without prompts once) is counted once, an update as the mean of some; `repeats` values, after one that does not
    count. Reading pictures is included. Processor time on a CPU, because other processes compete for the cores; wall
    time on a GPU. memory: MB (10⁶ bytes) that an update adds to the weights, see `activation_megabytes`. trained:
    parameters that change. share, share_whole: of all parameters of the CLIP but the token table, and of all. samples:
    pictures seen.
    """

    weight: ClassVar[float] = 40.0
    defence: Prompts | Cleaned
    measure: Literal["seconds", "memory", "trained", "share", "share_whole", "samples"]
    repeats: int

    def make(self, lab: Lab) -> Values:
        if self.measure == "seconds":
            return Values(np.array([self._seconds(lab) for _ in repeated(range(self.repeats + 1))][1:]), "s")
        if self.measure == "memory":
            return Values(self._megabytes(lab), "MB")
        prompts = model_of(lab, self.defence).visual if isinstance(self.defence, Prompts) else None
        share = trained_share(self.defence.clip.open(lab), prompts)
        value = {
            "trained": lambda: share.trained,
            "share": lambda: share.of_rest,
            "share_whole": lambda: share.of_whole,
            "samples": lambda: self._samples(lab),
        }[self.measure]()
        return Values(np.array([float(value)]), UNITS[self.measure])

    def _samples(self, lab: Lab) -> int:
        defence = self.defence
        return defence.pairs.n if isinstance(defence, Cleaned) else len(defence.shots.open(lab, defence.seed)[0])

    def _seconds(self, lab: Lab) -> float:
        """Of the whole training, from its first updates."""
        marks: list[float] = []
        whole = self._begin(lab, STEPS + 1, self._copy(lab), lambda: marks.append(clock(lab.device)))
        times = np.diff(marks)
        return float(times[0] + (whole - 1) * times[1:].mean()) if len(times) > 1 else float(times[0] * whole)

    def _megabytes(self, lab: Lab) -> np.ndarray:
        clip = self._copy(lab)
        return activation_megabytes(lambda steps, _: self._begin(lab, steps, clip, lambda: None), lab.device, clip)

    def _copy(self, lab: Lab) -> nn.Module:
        """The CLIP that is trained, or that prompts are tuned on."""
        clip = self.defence.clip.open(lab)
        return copy.deepcopy(clip) if isinstance(self.defence, Cleaned) else clip

    def _begin(self, lab: Lab, steps: int, clip: nn.Module, mark: Callable[[], None]) -> int:
        """The beginning of the training; returns how many updates the whole has.

        mark: called before the first update and its preparation, and after each of `steps` updates.
        """
        defence = self.defence
        if isinstance(defence, Cleaned):
            options = defence.options(lab)
            done = min(steps, options.steps)

            def reading(before: int) -> None:
                mark()
                if before == done:
                    raise _Enough

            pairs = _Watched(defence.pairs.open(lab), reading)
            with contextlib.suppress(_Enough):
                cleanclip(clip, pairs, replace(options, workers=0))  # another process could not mark
                mark()  # the whole was no more than this
            return options.steps
        whole = defence.tuning.open(lab).steps(self._samples(lab))

        def after(step: int) -> None:
            mark()
            if step == min(steps, whole):
                raise _Enough

        mark()
        with contextlib.suppress(_Enough):
            defence.tuned(lab, after_step=after)
        return whole


@dataclass(frozen=True)
class CostOfYours(Measured):
    """The same of a defence of the user's own, whose updates nobody can count: seconds of its whole tuning, `repeats`
    times, and the parameters that it has changed."""

    weight: ClassVar[float] = 40.0
    defence: ByYours
    measure: Literal["seconds", "trained", "share", "share_whole", "samples"]
    repeats: int

    def make(self, lab: Lab) -> Values:
        defence = self.defence
        before = defence.clip.open(lab)
        if self.measure == "seconds":
            marks = []
            for _ in range(self.repeats):
                clip = copy.deepcopy(before)
                marks.append(clock(lab.device))
                defence.train(lab, clip)
                marks.append(clock(lab.device))
            return Values(np.diff(marks)[::2], "s")
        if self.measure == "samples":
            return Values(np.array([float(len(defence.shots.open(lab, defence.seed)[0]))]), UNITS[self.measure])
        after = model_of(lab, defence).clip
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        changed = sum(int((a != b).sum()) for a, b in pairs)
        share = trained_share(before, None)._replace(trained=changed)
        value = {"trained": share.trained, "share": share.of_rest, "share_whole": share.of_whole}[self.measure]
        return Values(np.array([float(value)]), UNITS[self.measure])
