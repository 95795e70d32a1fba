import copy
import random

import numpy as np
import pytest
import torch

from shared.models.clip import create_clip


@pytest.fixture(scope="session")
def _clip():
    state = torch.get_rng_state()
    torch.manual_seed(5)
    clip = create_clip("scenes-vit-s8")
    torch.set_rng_state(state)
    return clip


@pytest.fixture
def clip(_clip):
    """A small CLIP with the same random weights for every test, free to be trained."""
    return copy.deepcopy(_clip)


@pytest.fixture
def quiet_generators():
    """Fails the test if it moves one of the global generators."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0]), "torch's global generator was used"
    assert np.array_equal(np.random.get_state()[1], before[1]), "numpy's global generator was used"
    assert random.getstate() == before[2], "Python's global generator was used"
