"""What a computation costs, counted operation by operation while it runs on fake tensors: no numbers, no GPU, no
weights.

    floating-point operations   torch's `FlopCounterMode` formulas, and those that it lacks (below)
    bytes                       of all inputs and outputs of an operation that is no view
    peak memory                 of all storages of the device that are alive at once, activations of a backward pass
    among them pictures, disk              as the planning laboratory reads and keeps them

Small tensors that follow from constants alone, such as the times of a sampler, keep their numbers. Others cannot
answer a question. Those that steps ask are answered so that work goes on: `any` is no and other tests are yes (nothing
has broken, nobody has succeeded), masks and `nonzero` keep everything, what is written where nobody knows changes
nothing that is known, the largest token of a text is at `TOKENS`. So early stops never happen here; loops that have
one say which share of their passes to expect (`shared.repeat`).

A backward pass runs when the loop whose pass it goes back through has ended, so operations of a node of the graph
count as often as those of the forward pass that made it: nodes are numbered in the order in which they are made.
"""

import bisect
import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
TOKENS = 20  # an assumption: so many tokens has the longest text of a batch
KNOWN = 100_000  # elements of a tensor that may keep its numbers
FILLED = {"full": None, "full_like": None, "zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1}
UNKNOWN = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
UNKNOWN |= {"index", "index_put_", "_index_put_impl_", "any"}
IN_PLACE, VIEW = "in place", "view"


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


@dataclass(frozen=True)
class Result:
    """A new tensor that an operation gives."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass
class Call:
    """An operation at one shape. operation: None where it costs nothing; results: None where they have to be found
    anew."""

    operation: Operation | None
    results: "tuple[Result | None, ...] | str | None" = None


@dataclass
class Cost:
    """What something takes. operations: how often each runs; pictures: read, by set; disk: bytes kept; peak: bytes of
    the device."""

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

    def __init__(self, device: torch.device, fake: FakeTensorMode):
        super().__init__()
        self.device, self.fake, self.cost, self.factor = device, fake, Cost(), 1.0
        self.bytes = 0  # that are alive
        self._marks: list[tuple[int, float]] = [(0, 1.0)]  # from which node of the graph on which factor holds
        self._calls: dict[tuple, Call] = {}
        self._attributes: dict[torch.device, dict[str, object]] = {}
        self._alive: dict[int, int] = {}

    @contextlib.contextmanager
    def times(self, count: float) -> Iterator[None]:
        """What runs inside counts so often."""
        before = self.factor
        self._set(self.factor * count)
        try:
            yield
        finally:
            self._set(before)

    @contextlib.contextmanager
    def apart(self) -> Iterator[Cost]:
        """What runs inside is counted by itself, once."""
        outer, before = self.cost, self.factor
        self.cost = inner = Cost()
        self._set(1.0)
        try:
            yield inner
        finally:
            self.cost = outer
            self._set(before)
            self.cost.peak = max(self.cost.peak, inner.peak)

    def _set(self, factor: float) -> None:
        self.factor = factor
        self._marks.append((torch._C._autograd._get_sequence_nr(), factor))

    def _often(self) -> float:
        """How often the operation under way counts."""
        node = torch._C._current_autograd_node()
        if node is None:
            return self.factor
        place = bisect.bisect_right(self._marks, node._sequence_nr(), key=lambda mark: mark[0])
        factor = self._marks[max(0, place - 1)][1]
        if self._marks[-1][1] != factor:  # of nodes that are made on the way back: passes that are computed again
            self._marks.append((torch._C._autograd._get_sequence_nr(), factor))
        return factor

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles here, and keeping the compiler away takes longer than an operation

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func is torch.ops.prim.device.default:
            return args[0].device
        kwargs = kwargs or {}
        noted: list = [func, *kwargs]
        plain = _note(args, noted) & _note(tuple(kwargs.values()), noted)
        call = self._calls.get(key := tuple(noted))
        if call is not None and call.results is not None and plain:
            out = self._again(func, args, kwargs, call.results)
        else:
            out = answer(func, args, kwargs)
            answered = out is not NotImplemented
            if not answered:
                out = func(*args, **kwargs)
                if any(known(x) is None for x in _tensors((args, kwargs))):
                    for tensor in _tensors(out):  # an operation in several parts has made some of what is known
                        tensor.constant = None
            if call is None:
                call = self._calls[key] = Call(self._operation(func, args, kwargs, out))
            if plain and not answered:
                call.results = _results(func, args, kwargs, out)
        if call.operation is not None:
            for tensor in [out] if isinstance(out, Tensor) else _tensors(out):
                self._hold(tensor)
            self.cost.operations[call.operation] += self._often()
        return out

    def _operation(self, func: object, args: tuple, kwargs: dict, out: object) -> Operation | None:
        """None for a view, or a question."""
        outputs = _tensors(out)
        if not outputs or not any(r.alias_info is None or r.alias_info.is_write for r in func._schema.returns):
            return None
        return Operation(
            f"{func} {len(self._calls)}",
            outputs[0].dtype,
            flops(func, args, kwargs, out),
            sum(map(_size, (*_tensors((args, kwargs)), *outputs))),
            (func, tree_map(_shape, (args, kwargs))),
        )

    def _again(self, func: object, args: tuple, kwargs: dict, results: "tuple[Result | None, ...] | str") -> object:
        """What an operation gave before for arguments of these shapes, faster than by FakeTensorMode."""
        if results == IN_PLACE:
            return args[0]
        mode = self.fake
        with torch._C._DisableTorchDispatch():
            if results == VIEW:
                mode.in_kernel_invocation = True
                try:
                    with torch._C._PreserveDispatchKeyGuard():
                        torch._C._set_meta_in_tls_dispatch_include(True)
                        made = func(*args, **kwargs)
                finally:
                    mode.in_kernel_invocation = False
                device = args[0].fake_device
                if isinstance(made, Tensor):
                    return self._faked(made, device)
                return type(made)(self._faked(one, device) for one in made)
            made = tuple(
                r and self._faked(torch.empty_strided(r.size, r.stride, dtype=r.dtype, device="meta"), r.device)
                for r in results
            )
        return made[0] if len(func._schema.returns) == 1 else made

    def _faked(self, meta: Tensor, device: torch.device) -> FakeTensor:
        """FakeTensor(self.fake, meta, device), which sets all attributes anew."""
        if device not in self._attributes:
            self._attributes[device] = dict(vars(FakeTensor(self.fake, meta, device)))
        how = {"dispatch_device": True, "device_for_backend_keys": device}
        faked = Tensor._make_subclass(FakeTensor, meta, False, **how)
        vars(faked).update(self._attributes[device])
        return faked

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
    """Floating-point operations of one call, a multiplication and an addition being two; 0 for all but products and
    convolutions."""
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
    if name in FILLED or name == "arange":
        return _constant(func, args, kwargs)
    if name in ("new_empty", "empty_like"):  # of a tensor whose numbers are known these are not
        out = func(*args, **kwargs)
        out.constant = None
        return out
    if name in UNKNOWN and all(known(x) is not None for x in _tensors((args, kwargs))):
        return NotImplemented
    if name == "_local_scalar_dense":
        (x,) = args
        if x.dtype == torch.bool:
            return not getattr(x, "_some", False)
        return min(getattr(x, "_below", 1) - 1, TOKENS) if not x.is_floating_point() else 1.0
    if name == "equal":
        return True
    if name == "nonzero":
        return _unknown(args[0], (args[0].numel(), args[0].dim()))
    if name == "masked_select":
        return _unknown(args[0], (args[0].numel(),), args[0].dtype)
    if name in ("_unique2", "unique_dim", "unique_consecutive"):
        x = args[0]
        whole = _unknown(x, (x.numel(),))
        return (_unknown(x, tuple(x.shape) if name == "unique_dim" else (x.numel(),), x.dtype), whole, whole)
    if name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        return func(args[0], _kept(args[1]))
    if name in ("index_put_", "_index_put_impl_") and _nowhere(*args[:2]):
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


def _results(func: object, args: tuple, kwargs: dict, out: object) -> "tuple[Result | None, ...] | str | None":
    """What the same operation on other tensors of these shapes gives."""
    outputs = (out,) if isinstance(out, Tensor) else out
    if not isinstance(outputs, tuple | list) or any(known(t) is not None for t in outputs if t is not None):
        return None
    if func._schema.is_mutable:
        return IN_PLACE if out is args[0] and torch.Tag.inplace_view not in func.tags else None
    given, made = _tensors((args, kwargs)), [t for t in outputs if t is not None]
    storages = {t.untyped_storage()._cdata for t in given}
    if any(t.untyped_storage()._cdata in storages for t in made):
        return VIEW if len(given) == 1 and given[0] is args[0] and len(made) == len(outputs) else None
    return tuple(t if t is None else Result(tuple(t.shape), t.stride(), t.dtype, t.device) for t in outputs)


def may_be_known(x: Tensor) -> bool:
    """Places and times, and whatever is a single number; parameters, which are in single precision, are not."""
    whole = x.dtype in (torch.bool, torch.int64, torch.float64) and x.numel() <= KNOWN
    return (whole or x.numel() == 1) and x.device.type == "cpu" and not x.is_sparse


def known(x: Tensor) -> Tensor | None:
    """The numbers of a tensor, on the CPU, or None."""
    return getattr(x, "constant", None) if isinstance(x, FakeTensor) else x


def with_numbers(mode: FakeTensorMode, numbers: Tensor) -> Tensor:
    """A tensor of the mode that keeps its numbers."""
    with _disable_current_modes():
        return mode.fake_tensor_converter.from_real_tensor(mode, numbers, make_constant=True)


def _constant(func: object, args: tuple, kwargs: dict) -> Tensor:
    """What a factory makes, with its numbers where they may be known."""
    out, name = func(*args, **kwargs), func._overloadpacket.__name__
    if not isinstance(out, FakeTensor) or not may_be_known(out):
        return out
    with _disable_current_modes():
        value = args[1] if FILLED.get(name, 0) is None else FILLED.get(name)
        out.constant = func(*args, **kwargs) if name == "arange" else torch.full(out.shape, value, dtype=out.dtype)
    out.fake_mode.fake_tensor_converter.add_constant_storage_mapping(out)
    return out


def _unknown(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor on the same device whose numbers nobody knows."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def _nowhere(x: Tensor, indices: list[Tensor | None]) -> bool:
    """Whether nobody knows where in x is written: by a mask, or in what is known."""
    unknown = [i for i in indices if i is not None and known(i) is None]
    return any(i.dtype == torch.bool for i in unknown) or (bool(unknown) and known(x) is not None)


def _kept(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with all that a mask could keep in its place, or with what it keeps where it is known."""
    out: list[Tensor | None] = []
    for i in indices:
        if i is None or i.dtype not in (torch.bool, torch.uint8):
            out.append(i)
        elif known(i) is None:
            out += [_unknown(i, (i.numel(),)) for _ in i.shape]
        else:
            with _disable_current_modes():
                out += known(i).nonzero(as_tuple=True)
    return out


def numbers(x: FakeTensor, *_: object, **__: object) -> np.ndarray:
    """`Tensor.numpy`: its numbers, or zeros where nobody knows them."""
    if x.device.type != "cpu":
        raise TypeError(f"a tensor on {x.device.type} has no NumPy array: it needs .cpu()")
    return _values(x)


def listed(x: FakeTensor) -> list:
    """`Tensor.tolist`, likewise."""
    return _values(x).tolist()


def _values(x: FakeTensor) -> np.ndarray:
    if known(x) is None:
        return np.zeros(tuple(x.shape), str(x.dtype).removeprefix("torch."))
    with _disable_current_modes():
        return known(x).detach().numpy().copy()


def _tensors(x: object) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, x)
    return found


def _note(x: tuple | list, key: list) -> bool:
    """Append what of arguments changes the cost: shapes, and whole numbers, which may be sizes. Whether nobody knows a
    number of theirs."""
    plain = True
    for part in x:
        if isinstance(part, FakeTensor):
            key += (part.shape, part.stride(), part.dtype, part._fake_device)
            plain = plain and part.constant is None and not hasattr(part, "_below")
        elif isinstance(part, tuple | list):
            key.append(len(part))
            plain = _note(part, key) and plain
        elif isinstance(part, Tensor):
            key += (part.shape, part.stride(), part.dtype, part.device)
            plain = False
        elif part is None or isinstance(part, int | torch.dtype | torch.device):
            key.append(part)
    return plain


def _size(tensor: Tensor) -> int:
    """Bytes that are read or written: an expanded tensor has fewer than elements."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def _shape(x: object) -> object:
    if isinstance(x, Tensor):
        return Shape(tuple(x.shape), tuple(x.stride()), x.dtype)
    if isinstance(x, torch.Generator):
        return None
    return 0.5 if isinstance(x, float) else x
