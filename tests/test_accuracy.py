"""The bounds of tests/accuracy.py: another order of summation passes, every real fault does not."""

import pytest
import torch
import torch.nn.functional as F

from tests.accuracy import assert_as_accurate, assert_same_way, assert_within_rounding, float64, in_both

WIDE = 768


def layer(x, weight, bias):
    return F.linear(x, weight, bias)


def blocked(x, weight, bias):
    """The same sums in another order."""
    parts = [F.linear(a, b) for a, b in zip(x.flip(1).split(48, dim=1), weight.flip(1).split(48, dim=1), strict=True)]
    return torch.stack(parts).cumsum(0)[-1] + bias


def wrong_sign(x, weight, bias):
    return -layer(x, weight, bias)


def one_wrong_sign(x, weight, bias):
    weight = weight.clone()
    weight[3, 5] *= -1
    return layer(x, weight, bias)


def no_bias(x, weight, bias):
    return layer(x, weight, torch.zeros_like(bias))


def a_term_less(x, weight, bias):
    """One term of the sum is 1 % of its result."""
    out = layer(x, weight, bias)
    out[7, 2] *= 0.99
    return out


def half(x, weight, bias):
    return layer(x.half().float(), weight.half().float(), bias)


def half_result(x, weight, bias):
    return layer(x, weight, bias).half().float()


def nothing(x, weight, bias):
    return torch.full((len(x), len(weight)), torch.nan)


FAULTS = [wrong_sign, one_wrong_sign, no_bias, half, half_result, nothing]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(4)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((64, WIDE), (32, WIDE), (32,)))
    return x, weight / WIDE**0.5, 0.1 * bias


def test_another_order_of_summation_passes(inputs):
    ours, theirs = blocked(*inputs), layer(*inputs)
    assert not torch.equal(ours, theirs)
    assert_as_accurate(ours, *in_both(layer, *inputs), terms=WIDE)
    assert_within_rounding(ours, theirs, terms=WIDE)
    assert_within_rounding(float64(ours), float64(ours) * (1 + 1e-15), terms=4)


@pytest.mark.parametrize("fault", [*FAULTS, a_term_less], ids=lambda f: f.__name__)
def test_faults_are_caught(inputs, fault):
    with pytest.raises(AssertionError, match="off by"):
        assert_as_accurate(fault(*inputs), *in_both(layer, *inputs), terms=WIDE)
    with pytest.raises(AssertionError, match="off by"):
        assert_within_rounding(fault(*inputs), layer(*inputs), terms=WIDE)


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f is not wrong_sign], ids=lambda f: f.__name__
)  # the square does not see that one
def test_faults_are_caught_in_gradients(inputs, fault):
    def gradient(x, weight, bias, of=layer):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(of(x, weight, bias).square().sum(), x)[0]

    theirs = in_both(gradient, *inputs)
    assert_as_accurate(gradient(*inputs, of=blocked), *theirs, terms=WIDE)
    with pytest.raises((AssertionError, RuntimeError), match=r"off by|does not require grad"):
        assert_as_accurate(gradient(*inputs, of=fault), *theirs, terms=WIDE)


def test_double_precision_is_held_to_double_precision():
    x = torch.linspace(1, 2, 50, dtype=torch.float64)
    with pytest.raises(AssertionError, match="off by"):
        assert_within_rounding(x.float().double(), x, terms=50)


def test_a_bound_that_would_let_half_precision_pass_is_refused():
    exact = torch.linspace(-1, 1, 11, dtype=torch.float64)
    with pytest.raises(AssertionError, match="half precision"):
        assert_as_accurate(exact.float(), exact.half().float(), exact, terms=11)
    with pytest.raises(AssertionError, match="half precision"):
        assert_within_rounding(exact.float(), exact.float(), terms=10**7)
    with pytest.raises(AssertionError, match="between 1 and 4"):
        assert_as_accurate(exact.float(), exact.float(), exact, terms=11, c=10)


def test_trees_are_compared_one_by_one():
    small, large = torch.tensor([1e-3]), torch.tensor([1e3])
    tree = {"a": [small, large], "b": (2.0, 3.0)}
    assert_as_accurate(tree, tree, float64(tree), terms=1)
    with pytest.raises(AssertionError, match=r"weights a \[0\] off by"):
        assert_as_accurate({**tree, "a": [1.01 * small, large]}, tree, float64(tree), terms=1, what="weights")
    for other in (
        {"a": [small, large]},
        {**tree, "a": [small]},
        {**tree, "a": [small[0], large]},
        {**tree, "a": [small.double(), large]},
    ):
        with pytest.raises(AssertionError, match=r"differ|lengths|instead of"):
            assert_as_accurate(other, tree, float64(tree), terms=1)
    with pytest.raises(AssertionError, match="to be float64"):
        assert_as_accurate(small, small, small, terms=1)


def test_a_training_goes_the_same_way_in_any_order_but_not_without_an_example():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 20, generator=generator), torch.randn(32, 10, generator=generator)
    start = {"weight": torch.randn(20, 10, generator=generator)}

    def trained(rows):
        weight = start["weight"].clone().requires_grad_()
        optimizer = torch.optim.Adam([weight], 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            (x[rows] @ weight - y[rows]).square().mean().backward()
            optimizer.step()
        return {"weight": weight.detach()}

    one = trained(torch.arange(32))
    assert_same_way(one, trained(torch.arange(31, -1, -1)), start)
    with pytest.raises(AssertionError, match="apart after a way of"):
        assert_same_way(one, trained(torch.arange(31)), start)
