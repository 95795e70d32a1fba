"""How far a picture is from its original: PSNR, SSIM, and similarity in the eyes of an image encoder. One value per
picture.

PSNR = −10·log10( mean (x − y)² )  dB, for pixels in [0, 1]
SSIM   Wang et al. 2004, by scikit-image with the settings of that paper (Gaussian window of σ = 1.5, population covariance); the mean over
       pixels and channels
CLIP   cos( F(x), F(y) ) for an encoder F
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from shared.errors import UserError

PSNR_CAP = 100.0  # dB of two equal pictures: infinite values could be neither averaged nor stored


def _both(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if x.shape != y.shape or x.dim() != 4:
        raise UserError(
            f"pictures of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared: both must be (N, 3, H, W)."
        )
    return x.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()


def psnr(x: Tensor, y: Tensor) -> np.ndarray:
    """(N,) float64 in dB, at most PSNR_CAP. x, y (N, C, H, W) in [0, 1]."""
    a, b = _both(x, y)
    error = ((a - b) ** 2).mean(axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(error, 10 ** (-PSNR_CAP / 10)))


def ssim(x: Tensor, y: Tensor) -> np.ndarray:
    """(N,) float64, at most 1. x, y (N, C, H, W) in [0, 1], sides of 11 pixels (the window) or more; raises UserError
    for smaller ones."""
    from skimage.metrics import structural_similarity

    a, b = _both(x, y)
    if min(a.shape[2:]) < 11:
        raise UserError(
            f"SSIM looks through a window of 11 pixels and the pictures are {a.shape[2]}×{a.shape[3]}: use larger ones."
        )
    how = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array([structural_similarity(p, q, **how) for p, q in zip(a, b, strict=True)], np.float64)


def embedding_similarity(embed: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch: int = 64) -> np.ndarray:
    """(N,) float64, cos(F(x), F(y)) with F = `embed`: (n, 3, H, W) in [0, 1] -> (n, D), e.g. that of a CLIP."""
    import torch

    with torch.no_grad():
        parts = [
            torch.cosine_similarity(embed(a).double(), embed(b).double())
            for a, b in zip(x.split(batch), y.split(batch), strict=True)
        ]
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)
