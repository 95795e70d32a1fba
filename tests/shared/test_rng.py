"""Numbers addressed by (seed, stream, sample index) and by nothing else."""

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.rng import SampleRng


def test_a_samples_numbers_do_not_depend_on_its_batch():
    whole = SampleRng(3, range(20))
    part = SampleRng(3, [4, 17, 4])
    for draw in (lambda r: r.uniform((2, 3)), lambda r: r.normal((5,)), lambda r: r.integers(100, (4,))):
        assert torch.equal(draw(part), draw(whole)[[4, 17, 4]])
        assert torch.equal(draw(whole), draw(whole))


def test_subset_takes_masks_and_positions_and_keeps_the_stream():
    child = SampleRng(0, range(10, 20)).child("a")
    mask = torch.zeros(10, dtype=torch.bool)
    mask[[2, 7]] = True
    assert child.subset(mask).indices == child.subset(torch.tensor([2, 7])).indices == (12, 17)
    assert torch.equal(child.subset(mask).uniform((3,)), child.uniform((3,))[mask])


def test_seeds_children_and_samples_differ():
    draws = [
        SampleRng(0, [0, 1]),
        SampleRng(1, [0, 1]),
        SampleRng(0, [0, 1]).child("a"),
        SampleRng(0, [0, 1]).child("b"),
    ]
    rows = torch.cat([rng.uniform((50,)) for rng in draws])
    assert len({tuple(row.tolist()) for row in rows}) == 8


def test_distributions():
    rng = SampleRng(7, range(400))
    u, z, k = rng.uniform((100,), -2, 3), rng.normal((100,)), rng.integers(5, (100,))
    assert u.min() >= -2 and u.max() < 3 and abs(u.mean() - 0.5) < 0.05
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    assert u.dtype == z.dtype == torch.float32 and k.dtype == torch.int64
    assert (k.flatten().bincount() / k.numel() - 0.2).abs().max() < 0.01  # of a sample
    # first numbers of neighbouring samples are independent, not steps along one stream
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.15


def test_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    SampleRng(0, range(5)).normal((3,))
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(("seed", "indices"), [("0", [0]), (0.5, [0]), (0, [0.5]), (0, torch.tensor([0.5]))])
def test_seeds_and_indices_are_whole_numbers(seed, indices):
    with pytest.raises(UserError, match="random streams are of a whole seed and whole indices, not"):
        SampleRng(seed, indices)
