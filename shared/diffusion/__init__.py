"""Diffusion: the schedule of the noise, what predicts it, how one steps back, and the purifier made of them."""

from shared.diffusion.denoiser import Denoiser, GaussianDenoiser, Prediction, UNetDenoiser
from shared.diffusion.open import open_denoiser
from shared.diffusion.purifier import Purifier, resize
from shared.diffusion.sampler import Sampler
from shared.diffusion.schedule import Schedule

__all__ = [
    "Denoiser",
    "GaussianDenoiser",
    "Prediction",
    "Purifier",
    "Sampler",
    "Schedule",
    "UNetDenoiser",
    "open_denoiser",
    "resize",
]
