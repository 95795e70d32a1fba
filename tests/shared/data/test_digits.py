"""Handwritten digits: real, of ten classes, the same each time, and reachable by name."""

import numpy as np
import pytest
import torch

from shared.data.catalogue import Source, open_set
from shared.data.digits import digits
from shared.errors import UserError


def test_the_two_parts_are_the_whole():
    from sklearn.datasets import load_digits

    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360) and train.version != test.version
    assert np.concatenate([train.labels, test.labels]).tolist() == load_digits().target.tolist()
    assert np.bincount(test.labels).min() >= 30


def test_pictures():
    x, y = digits("test").__getitems__([0, 7])
    assert x.shape == (2, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and 0.8 < x.max() <= 1
    assert torch.equal(x[:, 0], x[:, 2])
    from sklearn.datasets import load_digits

    given = load_digits().images[1437] / 16
    small = x[0, 0].numpy().reshape(8, 4, 8, 4).mean((1, 3))
    assert np.corrcoef(small.ravel(), given.ravel())[0, 1] > 0.97  # upright, neither mirrored nor inverted
    assert y.tolist() == digits("test").labels[[0, 7]].tolist()


def test_reachable_by_name():
    data = open_set("digits:all", "test", Source())
    assert (
        data.name == "digits"
        and data.classes == tuple("0123456789")
        and data.prompts[3] == 'a photo of the number: "3".'
    )
    assert data.version == digits("test").version
    large = open_set("digits:all", "test", Source(size="64"))
    assert large[0][0].shape == (3, 64, 64) and large.version != data.version
    with pytest.raises(UserError, match="use train or test"):
        open_set("digits:all", "val", Source())
    with pytest.raises(UserError, match="is not understood"):
        open_set("digits:some", "test", Source())
