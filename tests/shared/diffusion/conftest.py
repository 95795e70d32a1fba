import pytest
import torch


@pytest.fixture
def quiet_generator():
    """Fails the test if it moves torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator was used"
