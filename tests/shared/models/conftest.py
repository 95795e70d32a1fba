import pytest
import torch

from shared.models.clip import create_clip


@pytest.fixture(scope="session")
def small_clip():
    """A small CLIP with random weights. Read only."""
    state = torch.get_rng_state()
    torch.manual_seed(3)
    clip = create_clip("scenes-vit-s8").requires_grad_(False)
    torch.set_rng_state(state)
    return clip
