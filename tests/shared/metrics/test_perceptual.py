"""PSNR, SSIM and embedding similarity on pictures where the answer is known."""

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.metrics.perceptual import PSNR_CAP, embedding_similarity, psnr, ssim
from shared.rng import SampleRng

X = SampleRng(0, range(3)).uniform((3, 16, 16)) * 0.5


def test_psnr_of_a_constant_difference():
    y = X.clone()
    y[0] += 0.1
    y[1] += 8 / 255
    assert psnr(X, y) == pytest.approx([20.0, -20 * np.log10(8 / 255), PSNR_CAP], abs=1e-4)


def test_ssim_of_equal_and_of_constant_pictures():
    """Two constant pictures a, b: (2ab + C1)/(a² + b² + C1), C1 = 0.01²; the contrast and structure terms are 1."""
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(X, X) == pytest.approx([1.0] * 3)
    assert ssim(a, b) == pytest.approx([(2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)], abs=1e-6)


def test_ssim_falls_with_noise_and_is_per_picture():
    noise = 0.1 * SampleRng(1, range(3)).normal((3, 16, 16))
    little, much = ssim(X, X + 0.2 * noise), ssim(X, X + noise)
    assert (much < little).all() and (little < 1).all()
    assert ssim(X[1:2], X[1:2] + noise[1:2])[0] == much[1]


def test_embedding_similarity():
    def embed(x):
        return torch.stack([x.mean((1, 2, 3)), torch.ones(len(x))], 1)

    y = X.clone()
    y[2] = 0
    got = embedding_similarity(embed, X, y, batch=2)
    mean = X[2].mean().item()
    assert got == pytest.approx([1, 1, 1 / np.sqrt(1 + mean**2)], abs=1e-6)
    assert embedding_similarity(embed, X[:0], X[:0]).shape == (0,)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="cannot be compared"):
        psnr(X, X[:2])
    with pytest.raises(UserError, match="window of 11"):
        ssim(X[..., :8, :8], X[..., :8, :8])
