"""Bounds that follow from arithmetic, for values that differ from one kind of CPU to another.

Vector width, fused multiply-add, the number of threads and the batch size choose the order in which a sum of
floating-point numbers is taken. Each order rounds otherwise, and none is the right one. So nothing here is a number that
somebody found to pass: a bound is a small multiple of the error that the reference itself makes, or of what rounding does
to a sum of K terms, about ε·√K of its scale (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.8:
rounding errors are as good as independent).
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A bound above this part of the scale would let a value pass that went through half precision (unit roundoff 2⁻¹¹).
USELESS = 2.0**-12


def float64(thing: Any) -> Any:
    """A copy in double precision: of a tensor, a module, or those in lists, tuples and dicts; anything else as it is."""
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).double()
    if isinstance(thing, Tensor):
        return thing.detach().double().requires_grad_(thing.requires_grad) if thing.is_floating_point() else thing
    if isinstance(thing, Mapping):
        return {k: float64(v) for k, v in thing.items()}
    if type(thing) in (list, tuple):
        return type(thing)(float64(v) for v in thing)
    return thing


def in_both(reference: Callable[..., Any], *inputs: Any) -> tuple[Any, Any]:
    """reference(*inputs) as it stands, and the same in float64: what `assert_as_accurate` compares with."""
    return reference(*inputs), reference(*float64(inputs))


def assert_as_accurate(
    ours: Any, theirs: Any, exact: Any, *, terms: int, scale: float = 0.0, c: float = 4.0, what: str = ""
) -> None:
    """Ours is no further from float64 than the reference: max |ours − exact| ≤ c·max |theirs − exact| + ε·√terms·scale.

    ours, theirs: tensors (or numbers) of one shape and dtype, or lists, tuples and dicts of them, compared one by one;
    exact: the reference's values in float64. terms: K, the number of terms of the longest sum. scale: of what is summed,
    where cancellation leaves less; else the largest |exact|. c: at most 4. AssertionError: the bound is broken, or is so
    wide that half precision would pass."""
    assert 1 <= c <= 4, f"c is between 1 and 4, not {c}"
    for name, a, b, x in _leaves(what, ours, theirs, exact):
        assert x.dtype == torch.float64, f"{name} the exact values are to be float64, not {x.dtype}"
        assert a.dtype == b.dtype, f"{name} {a.dtype} instead of {b.dtype}"
        _check(name, a, x, c * _distance(b, x), _unit(a, terms), scale)


def assert_within_rounding(
    ours: Any, theirs: Any, *, terms: int, times: float = 4.0, scale: float = 0.0, what: str = ""
) -> None:
    """Where there is no float64 to compare with: max |ours − theirs| ≤ times·ε·√terms·scale.

    ε is that of the less precise of the two dtypes. As `assert_as_accurate`; the default of scale is the largest |theirs|."""
    for name, a, b in _leaves(what, ours, theirs):
        low = max((a, b), key=lambda v: torch.finfo(v.dtype).eps)
        _check(name, a, b.double(), 0.0, times * _unit(low, terms), scale)


def assert_same_loss(ours: float, theirs: float, exact: float, *, terms: int, scale: float = 0.0) -> None:
    """`assert_as_accurate` for the last loss of a training, which is a Python number made of a float32 one."""
    doubled = torch.tensor(exact, dtype=torch.float64)
    assert_as_accurate(torch.tensor(ours), torch.tensor(theirs), doubled, terms=terms, scale=scale, what="loss")


def assert_same_training(
    ours: Iterable[Tensor],
    theirs: Iterable[Tensor],
    exact: Iterable[Tensor],
    start: Iterable[Tensor],
    *,
    steps: int,
    c: float = 4.0,
) -> None:
    """Weights after some updates. For each tensor of n entries:
    ‖ours − exact‖ ≤ c·max(‖theirs − exact‖, √n·r) + ε·√steps·‖exact‖, r the root mean square of theirs − exact over all
    tensors: the reference's error in a bias of three entries is a matter of luck and says little of what to expect.

    The last term is for a weight that is rounded once an update. Norms, since an optimiser that divides by the size of a
    gradient makes an update of what is rounding alone. exact: of the reference run in float64. start: the weights before.
    AssertionError: the bound is broken, or allows more than 1 % of the way that was gone."""
    assert 1 <= c <= 4, f"c is between 1 and 4, not {c}"
    leaves = list(_leaves("weights", list(ours), list(theirs), list(exact), list(start)))
    entries = sum(x.numel() for *_, x, _ in leaves)
    typical = math.sqrt(sum((b - x).square().sum().item() for _, _, b, x, _ in leaves) / entries)
    allowed, gone = 0.0, 0.0
    for name, a, b, x, before in leaves:
        assert a.dtype == b.dtype and x.dtype == torch.float64, f"{name} {a.dtype}, {b.dtype} and {x.dtype}"
        own = max((b - x).norm().item(), typical * math.sqrt(x.numel()))
        bound = c * own + _unit(a, steps) * x.norm().item()
        error = (a - x).norm().item()
        assert error <= bound, f"{name} off by {error:.2e}, allowed {bound:.2e}"
        allowed += bound**2
        gone += (x - before).square().sum().item()
    assert allowed <= 1e-4 * gone, f"a bound of {allowed**0.5:.1e} says little of a way of {gone**0.5:.1e}"


def assert_same_way(one: Mapping[str, Tensor], two: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """Two trainings from one start that differ in the order of sums: ‖one − two‖ ≤ 1 % of ‖one − start‖, all weights together.

    There is no float64 run to compare with, and no bound of ε·√K would do: an optimiser that divides by the size of a
    gradient can send what is rounding alone a whole step to either side. Whoever saw other examples or other negatives goes
    another way altogether: two random ways are √2 times as far apart as each is long."""
    ways = [(one[k].double() - two[k].double(), one[k].double() - start[k].double()) for k in start]
    apart, gone = (sum(way.square().sum().item() for way in every) ** 0.5 for every in zip(*ways, strict=True))
    assert apart <= 0.01 * gone, f"{apart:.2e} apart after a way of {gone:.2e}"


def _leaves(name: str, *things: Any) -> Iterator[tuple]:
    """Tuples (name, tensor, tensor, …) of trees of one structure."""
    first = things[0]
    if isinstance(first, Tensor | float | int):
        tensors = [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in things]
        assert len({t.shape for t in tensors}) == 1, f"{name} shapes differ: {[tuple(t.shape) for t in tensors]}"
        yield name, *(t.detach() if t.is_floating_point() else t.double() for t in tensors)
    elif isinstance(first, Mapping):
        assert all(v.keys() == first.keys() for v in things), f"{name} names differ"
        for key in first:
            yield from _leaves(f"{name} {key}", *(v[key] for v in things))
    else:
        assert isinstance(first, Sequence), f"{name} {type(first).__name__} is not a tensor nor a sequence of them"
        assert len({len(v) for v in things}) == 1, f"{name} lengths differ"
        for k, parts in enumerate(zip(*things, strict=True)):
            yield from _leaves(f"{name} [{k}]", *parts)


def _unit(a: Tensor, terms: int) -> float:
    return torch.finfo(a.dtype).eps * math.sqrt(terms)


def _distance(a: Tensor, exact: Tensor) -> float:
    return (a.double() - exact).abs().max().item() if a.numel() else 0.0


def _check(name: str, ours: Tensor, exact: Tensor, allowed: float, floor: float, scale: float) -> None:
    """|ours − exact| ≤ allowed + floor·scale, where this bound is tight enough to mean anything."""
    scale = max(scale, exact.abs().max().item() if exact.numel() else 0.0)
    bound = allowed + floor * scale
    useful = bound <= USELESS * scale
    assert useful, f"{name} a bound of {bound:.1e} on a scale of {scale:.1e} would let half precision pass"
    error = _distance(ours, exact)
    assert error <= bound, f"{name} off by {error:.2e}, allowed {bound:.2e} on a scale of {scale:.1e}"
