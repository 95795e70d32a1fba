import pytest
import torch

from papers.roclip.pool import Pool
from shared.errors import UserError
from tests.accuracy import assert_within_rounding


def filled(size, wrap):
    pool = Pool(size, 4, start="pairs", wrap=wrap)
    pool.put(torch.zeros(size, 4), [-1] * size)
    return pool


def feed(units, pool, *sizes):
    begin = 0
    for n in sizes:
        pool.add(units(n, 4, seed=begin + 1), range(begin, begin + n))
        begin += n
    return pool.ids.tolist(), int(pool.next)


def test_ring(units):
    assert feed(units, filled(5, "ring"), 3) == ([0, 1, 2, -1, -1], 3)
    assert feed(units, filled(5, "ring"), 3, 3) == ([5, 1, 2, 3, 4], 1)
    assert feed(units, filled(5, "ring"), 3, 2) == ([0, 1, 2, 3, 4], 0)
    assert feed(units, filled(5, "ring"), 12) == ([10, 11, 7, 8, 9], 2)


def test_what_overflows_is_dropped_as_released(units):
    """21,845 entries and batches of 512 lose 171 of the 43rd batch."""
    assert feed(units, filled(5, "drop"), 3) == ([0, 1, 2, -1, -1], 3)
    assert feed(units, filled(5, "drop"), 3, 3) == ([0, 1, 2, 3, 4], 0)
    assert feed(units, filled(5, "drop"), 3, 2) == ([0, 1, 2, 3, 4], 0)
    assert feed(units, filled(5, "drop"), 12) == ([0, 1, 2, 3, 4], 0)
    assert feed(units, filled(5, "drop"), 3, 3, 2) == ([6, 7, 2, 3, 4], 2)


def test_entries_and_pairs_stay_together(units):
    pool, vectors = filled(6, "ring"), units(9, 4)
    pool.add(vectors, range(9))
    found = pool.nearest(vectors[3:])
    assert found.ids.tolist() == list(range(3, 9)) and torch.equal(found.vectors, vectors[3:])
    assert_within_rounding(found.cosine, torch.ones(6), terms=vectors.shape[1])


def test_noise_that_was_not_normalised_is_found_by_its_direction_and_comes_back_as_it_is(units):
    """Norm about √D; the first real entry of the same direction as the query outranks it."""
    pool, unit = Pool(50, 400), Pool(50, 400, "unit")
    query = units(8, 400)
    literal = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    at = (query @ torch.nn.functional.normalize(literal, dim=1).T).argmax(1)
    assert_within_rounding(pool.nearest(query).vectors, literal[at], terms=400)
    assert 18 < pool.nearest(query).vectors.norm(dim=1).mean() < 22
    assert torch.equal(pool.nearest(query).at, unit.nearest(query).at)
    assert_within_rounding(unit.nearest(query).vectors.norm(dim=1), torch.ones(8), terms=400)
    pool.add(query, range(8))
    assert torch.equal(pool.nearest(query).vectors, query)


def test_a_pool_comes_back_from_its_state(units):
    pool, other = Pool(5, 4, seed=1), Pool(5, 4, seed=2)
    pool.add(units(3, 4), [7, 8, 9])
    other.load_state_dict(pool.state_dict())
    pool.add(units(4, 4, seed=2), range(4))
    other.add(units(4, 4, seed=2), range(4))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in pool.state_dict().items())


def test_what_is_refused(units):
    with pytest.raises(UserError, match="at least 1 of each"):
        Pool(0, 4)
    with pytest.raises(UserError, match="the pool is empty"):
        Pool(3, 4, "pairs").nearest(units(1, 4))
    with pytest.raises(UserError, match="give as many"):
        Pool(3, 4, "pairs").put(units(2, 4), [1, 2])
