"""Two ways of doing the same, timed in turns, and both against what the machine can multiply.

A shared machine changes its pace within seconds, so a repetition times A, B and a matrix product right after each other
(B, A in every second one) and ratios are taken within a repetition. Reported are the median over repetitions and the
range.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from shared.options import Worded

PRODUCT = 1536  # side of the square matrices that set the machine's rate


@dataclass(frozen=True)
class Case(Worded):
    """One comparison: `ours` and `reference` do all the work when called, `facts` says what their results are worth
    (not timed)."""

    against: str
    ours: Callable[[], Any]
    reference: Callable[[], Any]
    facts: Callable[[Any], dict[str, float]]
    """Of a result, e.g. the accuracy left; printed as means over calls."""
    aim: float | None = None
    """Least speed-up, or with kind="time" the largest share of the reference's time. None: for information."""
    kind: Literal["speed-up", "time"] = "speed-up"
    share_aim: float | None = None
    """Least share of the machine's rate that ours should reach."""
    less_memory: bool = False
    """Whether the peak of ours may not be above the reference's."""
    agree: Callable[[dict, dict], str | None] | None = None
    """Compares the facts of the two; returns what is wrong, or None."""
    repetitions: int = 5


@dataclass(frozen=True)
class Spread:
    """Median and range over repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Outcome:
    """What `measure` found. Seconds per call; rate in floating-point operations per second; shares of that rate; the
    most bytes that the tensors made by a call held at once; facts as means over calls."""

    case: Case
    ours: Spread
    reference: Spread
    ratio: Spread
    rate: Spread
    share_ours: Spread
    share_reference: Spread
    peak_ours: int
    peak_reference: int
    facts_ours: dict[str, float]
    facts_reference: dict[str, float]

    def missed(self) -> list[str]:
        """The aims that are not met, in words."""
        case, out = self.case, []
        if case.aim is not None and (
            self.ratio.median < case.aim if case.kind == "speed-up" else self.ratio.median > case.aim
        ):
            out.append(f"{case.kind} {self.ratio.median:.2f}, aim {'≥' if case.kind == 'speed-up' else '≤'} {case.aim}")
        if case.share_aim is not None and self.share_ours.median < case.share_aim:
            out.append(f"{self.share_ours.median:.0%} of the machine's rate, aim ≥ {case.share_aim:.0%}")
        if case.less_memory and self.peak_ours > self.peak_reference:
            out.append(f"{self.peak_ours / 1e6:.0f} MB at the peak, aim ≤ {self.peak_reference / 1e6:.0f}")
        wrong = case.agree(self.facts_ours, self.facts_reference) if case.agree else None
        return [*out, wrong] if wrong else out


def measure(case: Case) -> Outcome:
    """Call both once to warm up and count their operations, then time them `case.repetitions` times in turns."""
    sides = (case.ours, case.reference)
    results, work, peaks = zip(*(counted(side) for side in sides), strict=True)
    product = matrix_product()
    seconds: tuple[list[float], list[float]] = ([], [])
    facts = tuple([case.facts(result)] for result in results)
    rates = []
    for repetition in range(case.repetitions):
        for which in (0, 1) if repetition % 2 == 0 else (1, 0):
            taken, result = clock(sides[which])
            seconds[which].append(taken)
            facts[which].append(case.facts(result))
        rates.append(2 * PRODUCT**3 / min(clock(product)[0] for _ in range(3)))
    pairs = list(zip(*seconds, strict=True))
    ratio = [b / a if case.kind == "speed-up" else a / b for a, b in pairs]
    shares = [Spread.of([work[i] / t / rate for t, rate in zip(seconds[i], rates, strict=True)]) for i in (0, 1)]
    return Outcome(
        case,
        Spread.of(seconds[0]),
        Spread.of(seconds[1]),
        Spread.of(ratio),
        Spread.of(rates),
        *shares,
        *peaks,
        *({name: statistics.mean(found[name] for found in side) for name in side[0]} for side in facts),
    )


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds of one call, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def matrix_product() -> Callable[[], Tensor]:
    """A call of 2·PRODUCT³ operations in fp32, with as many threads as torch is set to."""
    a, b, out = (torch.ones(PRODUCT, PRODUCT) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def counted(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """The call's result, the floating-point operations of its matrix products, attention and convolutions (a
    multiply-add is two), and the most bytes that the tensors it made held at once.

    Operations that are carried out are counted, so doing less work is no larger a share of the machine's rate. What an
    operator needs inside itself is no tensor and not counted.
    """
    with _Counter() as counter:
        result = call()
    return result, counter.operations, counter.peak


class _Counter(TorchDispatchMode):
    """Counts with torch's formulas. Its own FlopCounterMode refuses `autograd.grad` on inputs and does not know three
    operators used here."""

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.peak = 0
        self.held: dict[StorageWeakRef, int] = {}
        aten = torch.ops.aten
        self.formulas = {k: lambda args, out, f=f: f(*args, out_val=out) for k, f in flop_counter.flop_registry.items()} | {
            aten.addmm_: lambda args, out: 2 * out.numel() * args[1].shape[1],
            aten._scaled_dot_product_flash_attention_for_cpu:
                lambda args, out: flop_counter.sdpa_flop_count(*(t.shape for t in args[:3])),
            aten._scaled_dot_product_flash_attention_for_cpu_backward:
                lambda args, out: flop_counter.sdpa_backward_flop_count(*(t.shape for t in args[:4])),
        }  # fmt: skip

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(args, out)
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.held[StorageWeakRef(storage)] = storage.nbytes()
        total = sum(self.held.values())
        if total > self.peak:  # some of it may be gone by now
            self.held = {storage: size for storage, size in self.held.items() if not storage.expired()}
            self.peak = max(self.peak, sum(self.held.values()))
        return out
