"""A tiny CLIP and poisoned pairs for it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from shared.data.language import VOCABULARY
from shared.data.poison import Held, TargetedPairs
from shared.data.scene_sets import ScenePairs, SceneSet
from shared.data.targets import scene_target
from shared.models.clip import _small

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def _tiny():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return _small(copy.deepcopy(CONFIG), None, VOCABULARY)


@pytest.fixture
def clip(_tiny):
    """The same random weights for every test, free to be trained."""
    return copy.deepcopy(_tiny)


@pytest.fixture(scope="session")
def pairs():
    """200 clean pairs, and two target images with three captions of another class each."""
    clean, images = Held(ScenePairs(200)), SceneSet("shape", "validation", 16)
    return Held(
        TargetedPairs(clean, images, [3, 4], [scene_target("shape", "star"), scene_target("shape", "square")], 3)
    )


@pytest.fixture(scope="session")
def units():
    """units(N, D, seed=0): unit vectors."""
    return lambda *shape, seed=0: F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1
    )
