"""A denoiser by its name."""

from shared.diffusion.denoiser import Denoiser
from shared.diffusion.guided import CIFAR10, read_guided
from shared.diffusion.weights import from_diffusers, random_denoiser, read_denoiser
from shared.errors import UserError
from shared.models import zoo


def open_denoiser(source: str) -> Denoiser:
    """A denoiser by name, frozen, on the CPU.

        zoo:scenes-ddpm         one of shared/models/zoo
        diffusers:PATH_OR_NAME  the U-Net of a diffusers pipeline, with the β of its scheduler; google/ddpm-cifar10-32 is the CIFAR-10 DDPM
        guided:PATH             guided-diffusion's 256x256_diffusion_uncond.pt (ImageNet), see `shared.diffusion.guided`
        improved:PATH           improved-diffusion's cifar10_uncond_50M_500K.pt (CIFAR-10), there too
        random:NAME             random weights, to rehearse with: a name of `shared.diffusion.weights.CONFIGS`

    Raises UserError for anything else, and for files that are missing, damaged or do not fit.
    """
    kinds = {
        "zoo": lambda name: read_denoiser(zoo.weights(name)),
        "diffusers": from_diffusers,
        "guided": read_guided,
        "improved": lambda path: read_guided(path, CIFAR10),
        "random": random_denoiser,
    }
    kind, _, rest = source.partition(":")
    if kind not in kinds or not rest:
        raise UserError(
            f"there is no denoiser {source!r}: write zoo:NAME, diffusers:PATH_OR_NAME, guided:PATH, "
            "improved:PATH or random:NAME."
        )
    return kinds[kind](rest)
