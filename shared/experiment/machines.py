"""What an operation takes on a machine.

    seconds = max( flops / rate(dtype), bytes / bandwidth ) + overhead            of a named machine
    seconds = as measured on this machine, at the very shapes of the plan         GPU=measure

Peak rates, bandwidth and memory are the makers' data sheets. What a program sustains of them is an assumption until
somebody measures it there: `SUSTAINED` of a GPU's peak rate and bandwidth, `LAUNCH` seconds for each operation that
Python starts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import torch
from torch.utils._pytree import tree_map_only

from shared.errors import UserError
from shared.experiment.tally import Operation, Shape

SUSTAINED = 0.7
LAUNCH = 1e-5
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Machine:
    """single, half: FLOP/s in fp32 and in fp16 or bf16; bandwidth: bytes/s; memory: bytes; overhead: seconds per
    operation; processes: that share the work; source: of the figures, with what is assumed."""

    name: str
    single: float
    half: float
    bandwidth: float
    memory: float
    source: str
    overhead: float = LAUNCH
    processes: int = 1
    device: str = "cuda"

    def seconds(self, operation: Operation) -> float:
        """Of one process that has its device for itself."""
        rate = self.half if operation.dtype in (torch.float16, torch.bfloat16) else self.single
        return max(operation.flops / rate, operation.bytes / self.bandwidth) + self.overhead


def _gpu(name: str, single: float, half: float, bandwidth: float, memory: int, sheet: str) -> Machine:
    rates = (SUSTAINED * single * TERA, SUSTAINED * half * TERA, SUSTAINED * bandwidth * GIGA)
    said = f"{sheet}: {single:g} TFLOP/s in fp32, {half:g} in half precision, {bandwidth:g} GB/s"
    return Machine(name, *rates, memory * GIGA, f"{said}; {SUSTAINED:.0%} sustained is an assumption")


CORE = Machine(
    "cpu",
    40 * GIGA,
    20 * GIGA,
    6 * GIGA,
    16 * GIGA,
    "one core of a server processor with AVX2: all rates are assumptions, GPU=measure has this machine's",
    device="cpu",
)
NAMED = {
    "a100-80": _gpu("a100-80", 19.5, 312, 2039, 80, "NVIDIA A100 80 GB SXM, data sheet"),
    "h200": _gpu("h200", 67, 989, 4800, 141, "NVIDIA H200 SXM, data sheet"),
    "rtx4090": _gpu("rtx4090", 82.6, 165, 1008, 24, "NVIDIA RTX 4090, Ada white paper"),
    "rtx3090": _gpu("rtx3090", 35.6, 71, 936, 24, "NVIDIA RTX 3090, Ampere white paper"),
    "cpu2": Machine(**{**vars(CORE), "name": "cpu2", "processes": 2, "source": f"two cores; {CORE.source}"}),
}


@dataclass
class Measured:
    """This machine: every operation of a plan is run a few times, on the GPU where there is one, else on one core."""

    name: str = "measure"
    _known: dict[Operation, float] = field(default_factory=dict)

    def __post_init__(self):
        gpu = torch.cuda.is_available()
        self.device, self.processes = ("cuda", torch.cuda.device_count()) if gpu else ("cpu", torch.get_num_threads())
        self.memory = (
            torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total / self.processes
        )
        torch.set_num_threads(1)
        self.overhead = self._python()
        self.source = f"measured here, on {self.device}; Python takes {self.overhead * 1e6:.0f} µs per operation"

    def seconds(self, operation: Operation) -> float:
        if operation not in self._known:
            self._known[operation] = self._time(operation)
        return self._known[operation] + self.overhead

    def _time(self, operation: Operation) -> float:
        func, form = operation.call
        try:
            args, kwargs = tree_map_only(Shape, self._filled, form)
            with torch.no_grad():
                return self._repeat(lambda: func(*args, **kwargs))
        except Exception:  # numbers that it cannot do with, or no memory
            return CORE.seconds(operation)

    def _repeat(self, call: Callable[[], object], least: int = 4) -> float:
        """The least of a few runs, of more where they are short: whatever else the machine does only adds to it."""
        took: list[float] = []
        while len(took) < least or (sum(took) < 4e-3 and len(took) < 40):
            began = self._now()
            call()
            took.append(self._now() - began)
        return min(took)

    def _now(self) -> float:
        """Processor time on a CPU: others may be at work there."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _filled(self, shape: Shape) -> torch.Tensor:
        tensor = torch.empty_strided(shape.size, shape.stride, dtype=shape.dtype, device=self.device)
        return tensor.normal_() if tensor.is_floating_point() else tensor.zero_()

    def _python(self) -> float:
        """What modules, autograd and Python take for each operation: a training step of a layer of 8 numbers has 20."""
        layer = torch.nn.Linear(8, 8, device=self.device)
        x = torch.zeros(2, 8, device=self.device)
        return self._repeat(lambda: layer(torch.nn.functional.gelu(layer(x))).sum().backward(), 50) / 20


def machine(name: str) -> Machine | Measured:
    """By its name. Raises UserError for one that is not known."""
    if name == "measure":
        return Measured()
    if name not in NAMED:
        raise UserError(f"there is no GPU={name}; choose one of: measure {' '.join(NAMED)}")
    return NAMED[name]
