"""What a computation costs, counted operation by operation while it runs on fake tensors: no numbers, no GPU, no weights.

    floating-point operations   torch's `FlopCounterMode` formulas, and those that it lacks (below)
    bytes                       of all inputs and outputs of an operation that is no view
    peak memory                 of all storages of the device that are alive at once, activations of a backward pass among them
    pictures, disk              as the planning laboratory reads and keeps them

Tensors without numbers cannot answer a question. Those that steps ask are answered so that work goes on: `any` is no and other
tests are yes (nothing has broken, nobody has succeeded), masks and `nonzero` keep everything, the largest token of a text is
at `TOKENS`. So early stops never happen here; loops that have one say which share of their passes to expect (`shared.repeat`).
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
TOKENS = 20  # an assumption: so many tokens has the longest text of a batch


def attention_flops(n: int, heads: int, queries: int, keys: int, each: int) -> int:
    """Of q kᵀ and of the product with v: 4·N·H·L_q·L_k·e."""
    return 4 * n * heads * queries * keys * each


def _fused(q: tuple[int, ...], k: tuple[int, ...], *_: object, out_shape: object = None, **__: object) -> int:
    return attention_flops(*q[:3], k[2], q[3])


def _fused_backward(grad: object, q: tuple[int, ...], k: tuple[int, ...], *_: object, **__: object) -> int:
    return 5 * attention_flops(*q[:3], k[2], q[3]) // 2  # five products where the forward pass has two


def _native(q: tuple[int, ...], k: tuple[int, ...], v: object, width: int, heads: int, *_: object, **__: object) -> int:
    """Of the attention module that evaluation without gradients uses: four projections and the attention."""
    n, queries, keys = q[0], q[1], k[1]
    projections = 2 * n * (2 * queries + 2 * keys) * width * width
    return projections + attention_flops(n, heads, queries, keys, width // heads)


MISSING = {  # of torch 2.14's counter
    aten._native_multi_head_attention: _native,
    aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}


@dataclass(frozen=True)
class Operation:
    """One operation at one shape. call: (operation, arguments with shapes in place of tensors)."""

    name: str
    dtype: torch.dtype
    flops: float
    bytes: float
    call: tuple = field(compare=False, repr=False, hash=False)


@dataclass(frozen=True)
class Shape:
    """A tensor without its numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Cost:
    """What something takes. operations: how often each runs; pictures: read, by set; disk: bytes kept; peak: bytes of the device."""

    operations: Counter = field(default_factory=Counter)
    pictures: Counter = field(default_factory=Counter)
    disk: float = 0.0
    peak: float = 0.0

    def add(self, other: "Cost") -> None:
        """Both, one after another."""
        self.operations.update(other.operations)
        self.pictures.update(other.pictures)
        self.disk += other.disk
        self.peak = max(self.peak, other.peak)

    @property
    def flops(self) -> float:
        return sum(count * operation.flops for operation, count in self.operations.items())


class Tally(TorchDispatchMode):
    """Counts into `cost` what runs on fake tensors; to be entered inside a FakeTensorMode."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.cost, self.factor = device, Cost(), 1.0
        self.bytes = 0  # that are alive
        self._operations: dict[tuple, Operation] = {}
        self._views: dict[object, bool] = {}
        self._alive: dict[int, int] = {}

    @contextlib.contextmanager
    def times(self, count: float) -> Iterator[None]:
        """What runs inside counts so often."""
        before, self.factor = self.factor, self.factor * count
        try:
            yield
        finally:
            self.factor = before

    @contextlib.contextmanager
    def apart(self) -> Iterator[Cost]:
        """What runs inside is counted by itself, once."""
        before = self.cost, self.factor
        self.cost, self.factor = Cost(), 1.0
        try:
            yield self.cost
        finally:
            (self.cost, self.factor), inner = before, self.cost
            self.cost.peak = max(self.cost.peak, inner.peak)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = answer(func, args, kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        self._count(func, args, kwargs, out)
        return out

    def _count(self, func: object, args: tuple, kwargs: dict, out: object) -> None:
        if func not in self._views:
            written = [r.alias_info is None or r.alias_info.is_write for r in func._schema.returns]
            self._views[func] = not any(written)
        outputs = [out] if isinstance(out, Tensor) else _tensors(out)
        if self._views[func] or not outputs:
            return  # a view, or a question
        for tensor in outputs:
            self._hold(tensor)
        key: list = [func]
        _note(args, key)
        _note(tuple(kwargs.values()), key)
        key = tuple(key)
        if key not in self._operations:
            self._operations[key] = Operation(
                f"{func} {len(self._operations)}",
                outputs[0].dtype,
                flops(func, args, kwargs, out),
                sum(map(_size, (*_tensors((args, kwargs)), *outputs))),
                (func, tree_map(_shape, (args, kwargs))),
            )
        self.cost.operations[self._operations[key]] += self.factor

    def _hold(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number in self._alive:
            return
        self._alive[number] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.cost.peak = max(self.cost.peak, self.bytes)
        weakref.finalize(storage, self._free, number)

    def _free(self, number: int) -> None:
        self.bytes -= self._alive.pop(number, 0)


def flops(func: object, args: tuple, kwargs: dict, out: object) -> float:
    """Floating-point operations of one call, a multiplication and an addition being two; 0 for all but products and convolutions."""
    packet = func._overloadpacket
    if packet in MISSING:
        shapes = tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x, (args, kwargs))
        return MISSING[packet](*shapes[0], **shapes[1])
    plain = packet.__name__.rstrip("_")  # addmm_ is addmm in place
    counted = flop_registry.get(packet) or flop_registry.get(getattr(aten, plain, None))
    return 0 if counted is None else counted(*args, **kwargs, out_val=out)


def answer(func: object, args: tuple, kwargs: dict) -> object:
    """What an operation that depends on numbers gives without them; NotImplemented for all others."""
    name = func._overloadpacket.__name__
    if name == "_local_scalar_dense":
        (x,) = args
        if x.dtype == torch.bool:
            return not getattr(x, "_some", False)
        return min(getattr(x, "_below", 1) - 1, TOKENS) if not x.is_floating_point() else 1.0
    if name in ("full", "full_like"):
        out = func(*args, **kwargs)
        out._value = args[1]
        return out
    if name == "equal":
        return True
    if name == "nonzero":
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if name == "masked_select":
        return args[0].new_empty(args[0].numel())
    if name in ("_unique2", "unique_dim", "unique_consecutive"):
        x = args[0]
        whole = x.new_empty(x.numel(), dtype=torch.int64)
        return (x.new_empty(x.shape if name == "unique_dim" else x.numel()), whole, whole)
    if name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        return func(args[0], _kept(args[1]))
    if name in ("index_put_", "_index_put_impl_") and any(i is not None and i.dtype == torch.bool for i in args[1]):
        return args[0]
    if name == "any":
        out = func(*args, **kwargs)
        out._some = True
        return out
    if name in ("argmax", "argmin") and len(args) > 1 and args[1] is not None:
        out = func(*args, **kwargs)
        out._below = args[0].shape[args[1]]
        return out
    if name == "max" and hasattr(args[0], "_below") and len(args) == 1:
        out = func(*args, **kwargs)
        out._below = args[0]._below
        return out
    return NotImplemented


def _kept(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with all that a mask could keep in its place."""
    out: list[Tensor | None] = []
    for i in indices:
        mask = i is not None and i.dtype in (torch.bool, torch.uint8)
        out += [i.new_empty(i.numel(), dtype=torch.int64) for _ in i.shape] if mask else [i]
    return out


class Numbers(TorchFunctionMode):
    """Zeros (or what it was filled with), of the right shape, where a fake tensor is asked for all of its numbers at once."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.numpy, Tensor.__array__, Tensor.tolist) and isinstance(args[0], FakeTensor):
            x = args[0]
            same = np.full(tuple(x.shape), getattr(x, "_value", 0), str(x.dtype).removeprefix("torch."))
            return same.tolist() if func is Tensor.tolist else same
        return func(*args, **(kwargs or {}))


def _tensors(x: object) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, x)
    return found


def _note(x: tuple | list, key: list) -> None:
    """Append what of arguments changes the cost: shapes, and whole numbers, which may be sizes."""
    for part in x:
        if isinstance(part, Tensor):
            key += (part.shape, part.stride(), part.dtype, part.device.type)
        elif isinstance(part, tuple | list):
            _note(part, key)
        elif isinstance(part, int | torch.dtype):
            key.append(part)


def _size(tensor: Tensor) -> int:
    """Bytes that are read or written: an expanded tensor has fewer than elements."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def _shape(x: object) -> object:
    if isinstance(x, Tensor):
        return Shape(tuple(x.shape), tuple(x.stride()), x.dtype)
    if isinstance(x, torch.Generator):
        return None
    return 0.5 if isinstance(x, float) else x
