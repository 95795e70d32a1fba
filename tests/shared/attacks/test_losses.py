"""Each loss against a literal transcription of its equation, sample by sample."""

import math

import pytest
import torch

from shared.attacks import losses as L
from shared.errors import UserError
from tests.accuracy import assert_within_rounding


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=generator) * 3, torch.randint(6, (40,), generator=generator)


def by_hand(z, y, formula):
    return torch.tensor([formula([float(v) for v in row], int(label)) for row, label in zip(z, y, strict=True)])


def best_other(z, y):
    return max(v for j, v in enumerate(z) if j != y)


def test_cross_entropy(batch):
    want = by_hand(*batch, lambda z, y: -math.log(math.exp(z[y]) / sum(math.exp(v) for v in z)))
    assert_within_rounding(L.cross_entropy(*batch), want, terms=6)


def test_margin_is_positive_where_misclassified(batch):
    z, y = batch
    assert_within_rounding(L.margin(z, y), by_hand(z, y, lambda z, y: best_other(z, y) - z[y]), terms=6)
    assert ((L.margin(z, y) > 0) == (z.argmax(dim=1) != y)).all()


@pytest.mark.parametrize("kappa", [0.0, 2.0, 50.0])
def test_margin_with_kappa_is_the_tecoa_line_of_cw(batch, kappa):
    want = by_hand(*batch, lambda z, y: -max(z[y] - best_other(z, y) + kappa, 0.0))
    assert_within_rounding(L.margin(*batch, kappa), want, terms=6)


def test_dlr(batch):
    def formula(z, y):
        s = sorted(z, reverse=True)
        return -(z[y] - best_other(z, y)) / (s[0] - s[2])

    assert_within_rounding(L.dlr(*batch), by_hand(*batch, formula), terms=6)


def test_targeted_dlr(batch):
    z, y = batch
    target = (y + 1) % 6

    def formula(z, y):
        s = sorted(z, reverse=True)
        return -(z[y] - z[(y + 1) % 6]) / (s[0] - (s[2] + s[3]) / 2)

    assert_within_rounding(L.dlr_targeted(z, y, target), by_hand(z, y, formula), terms=6)


@pytest.mark.parametrize("lead, vanished", [(10.0, False), (16.0, False), (17.0, True), (40.0, True), (90.0, True)])
def test_only_the_true_class_loses_its_gradient(lead, vanished):
    """p_y rounds to 1 in fp32 where the others' exp(−lead) is below half the spacing of numbers above 1, 2⁻²⁴."""
    z = torch.tensor([[lead, 0.0]], requires_grad=True)
    loss = L.cross_entropy(z, torch.tensor([0]))
    (grad,) = torch.autograd.grad(loss.sum(), z)
    assert (grad[0, 0] == 0).item() is (loss == 0).item() is vanished and grad[0, 1] > 0


def test_dlr_ignores_scale_and_shift_of_the_logits_and_cross_entropy_does_not(batch):
    z, y = batch
    moved = 100 * z + 7
    ordered = z.sort(dim=1, descending=True).values
    room = (
        z.abs().amax(1) / (ordered[:, 0] - ordered[:, 2])
    ).max().item() ** 2  # logits beside the differences that are divided
    assert_within_rounding(L.dlr(moved, y), L.dlr(z, y), terms=6, scale=room)
    assert_within_rounding(
        L.dlr_targeted(moved, y, (y + 1) % 6), L.dlr_targeted(z, y, (y + 1) % 6), terms=6, scale=room
    )
    assert_within_rounding(L.margin(moved, y), 100 * L.margin(z, y), terms=6, scale=moved.abs().max().item())
    assert not torch.allclose(L.cross_entropy(moved, y), L.cross_entropy(z, y), rtol=0.1)


def test_half_precision_logits_are_scored_in_fp32(batch):
    z, y = batch
    for loss in (L.cross_entropy, L.margin, L.dlr):
        assert loss(z.half(), y).dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_are_named(classes):
    z, y = torch.randn(4, classes), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match=f"has {classes}"):
        L.dlr_targeted(z, y, y + 1)
    if classes == 2:
        with pytest.raises(UserError, match="at least 3"):
            L.dlr(z, y)
