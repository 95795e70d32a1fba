"""Numbers addressed by (seed, stream, sample index) and by nothing else."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from shared.errors import UserError
from shared.rng import SampleRng, generator, set_draws
from tests.accuracy import assert_within_rounding


@pytest.fixture
def on_device():
    """The device's generator, on this CPU."""
    set_draws("device")
    yield
    set_draws("auto")


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


@pytest.mark.parametrize("shape", [(), (1,), (15,), (16,), (17,), (3, 7, 5)])  # torch draws normals by pairs below 16
def test_the_numbers_of_a_record_stay_what_they_are(shape):
    """A generator of its own for each sample, seeded by a hash of what names it: as all records were made."""
    rng = SampleRng(7, [3, -2, 10**13, 3], "attack/run0")
    for draw, fill in (
        (rng.uniform(shape, -0.1, 0.3), lambda row, g: row.uniform_(-0.1, 0.3, generator=g)),
        (rng.normal(shape), lambda row, g: row.normal_(generator=g)),
        (rng.integers(2**62, shape), lambda row, g: row.random_(0, 2**62, generator=g)),
    ):
        for index, row in zip(rng.indices, draw, strict=True):
            digest = hashlib.blake2b(f"7:attack/run0:{index}".encode(), digest_size=8).digest()
            own = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            assert torch.equal(row, fill(torch.empty_like(row), own))


def test_nothing_is_drawn_for_no_sample(on_device):
    assert SampleRng(0, []).normal((3, 2)).shape == SampleRng(0, []).normal((3, 2), "cpu").shape == (0, 3, 2)


def philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox-4x32-10 as Salmon et al. 2011 write it down: counters (N, 4) and a key of 64 bits -> (N, 4), of 32 bits."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (right >> np.uint64(32)) ^ c1 ^ np.uint64(k0), right & low
        c2, c3 = (left >> np.uint64(32)) ^ c3 ^ np.uint64(k1), left & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack((c0, c1, c2, c3), axis=1)


@pytest.mark.parametrize(("counter", "key", "known"), [  # kat_vectors of Random123
    ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([2**32 - 1] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
])  # fmt: skip
def test_the_second_implementation_gives_the_published_vectors(counter, key, known):
    assert [f"{x:08x}" for x in philox(np.array([counter]), key)[0].tolist()] == known.split()


def test_the_device_draws_philox(on_device):
    rng = SampleRng(3, [5, 9], "noise")
    uniform, normal = rng.uniform((5, 7, 3), device="cpu").flatten(1), rng.normal((5, 7, 3), "cpu").flatten(1)
    for seed, u, z in zip(rng._seeds(), uniform, normal, strict=True):
        blocks = philox(np.arange(27)[:, None] * [1, 0, 0, 0], seed)
        assert u.tolist() == (blocks.flatten()[:105] % 2**24 / 2**24).tolist()
        share, angle = (blocks.reshape(-1, 2) + 0.5).T / 2**32  # Box and Muller
        pair = np.sqrt(-2 * np.log(share)) * [np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)]
        assert_within_rounding(z, torch.from_numpy(pair.T.flatten()[:105]), terms=16)


def test_the_devices_numbers_do_not_depend_on_the_batch_and_have_their_distributions(on_device):
    whole = SampleRng(7, range(400), "a")
    u, z = whole.uniform((100,), -2, 3, device="cpu"), whole.normal((100,), "cpu")
    part = torch.tensor([4, 399, 4])
    assert torch.equal(whole.subset(part).normal((100,), "cpu"), z[part])
    assert torch.equal(whole.subset(part).uniform((100,), -2, 3, "cpu"), u[part])
    assert not torch.equal(z, whole.child("b").normal((100,), "cpu"))
    assert u.min() >= -2 and u.max() < 3 and u.dtype == z.dtype == torch.float32
    for drawn, law in ((u, stats.uniform(-2, 5)), (z, stats.norm())):
        of_samples = stats.kstest(drawn[:, 0], law.cdf).pvalue  # one number of each stream
        assert min(stats.kstest(drawn.flatten(), law.cdf).pvalue, of_samples) > 1e-3
        assert abs(np.corrcoef(drawn[:-1].flatten(), drawn[1:].flatten())[0, 1]) < 4 / 200  # of neighbours, 4 sigma
        assert abs(np.corrcoef(drawn[:, :-1].flatten(), drawn[:, 1:].flatten())[0, 1]) < 4 / 199
    moments = [float(stats.moment(z.flatten(), order)) for order in (2, 3, 4)]
    assert np.allclose(moments, [1, 0, 3], atol=0.1)


def test_who_draws():
    assert [generator(device) for device in ("cpu", "cuda:1")] == ["mt19937", "philox4x32-10"]
    host = SampleRng(0, [1]).normal((9,))
    for draws, name in (("cpu", "mt19937"), ("device", "philox4x32-10")):
        try:
            set_draws(draws)
            assert generator("cpu") == generator("cuda") == name
            assert torch.equal(SampleRng(0, [1]).normal((9,)), host)  # for the host itself, always the CPU's
            assert torch.equal(SampleRng(0, [1]).normal((9,), "cpu"), host) == (draws == "cpu")
        finally:
            set_draws("auto")
