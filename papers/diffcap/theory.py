"""What can be computed about the fading of a perturbation d in x_t = α(t) x + σ(t) ε. Analogues of the paper's
theorems, which we could not read.

    KL( x_t + α d ‖ x_t ) = ᾱ ‖d‖² / (2 (1 − ᾱ))          TV = 2 Φ( (‖d‖/2) √(ᾱ/(1 − ᾱ)) ) − 1          (two Gaussians of one variance)

Both fall strictly with t. ‖d‖₂ is in the units of the diffusion model, [−1, 1]: twice that in pixels. Any function of
x_t, a VLM's answer included, gives each answer a probability that differs by at most TV between the clean and the
adversarial image; if the clean image's likeliest answer leads by more than 2·TV, it is the adversarial image's
likeliest answer too. That is the bound of `bound_time`; embeddings with a margin recover far earlier.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.diffusion import Schedule


def _snr(schedule: Schedule, t: Tensor) -> Tensor:
    bar = schedule.alpha_bar(t)
    return bar / (1 - bar)


def kl(norm: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """KL divergence in nats of the two laws at times t; norm: ‖d‖₂ in [−1, 1] units, broadcast against t. Infinite at t
    = 0."""
    return torch.as_tensor(norm).double().square() * _snr(schedule, t) / 2


def total_variation(norm: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """TV distance, in [0, 1], of the same two laws."""
    return torch.special.erf(
        torch.as_tensor(norm).double() * _snr(schedule, t).sqrt() / 8**0.5
    )  # 2Φ(a) − 1 = erf(a/√2)


def pixel_correlation(schedule: Schedule, t: Tensor, dt: int, coupling: str = "cumulative") -> Tensor:
    """E⟨x_t, x_{t+dt}⟩/√(E‖x_t‖² E‖x_{t+dt}‖²) for x of unit variance: what cos(φ(x_t), φ(x_{t+dt})) would be for φ the
    identity.

    cumulative: √(ᾱ_{t+dt}/ᾱ_t). redraw: √(ᾱ_t ᾱ_{t+dt}), where only x itself is shared.
    """
    now, later = schedule.alpha_bar(t), schedule.alpha_bar(t + dt)
    return (later / now).sqrt() if coupling == "cumulative" else (now * later).sqrt()


def recovery_time(same: Tensor, times: Sequence[int]) -> Tensor:
    """The smallest of `times` from which on the answer equals the clean one, (N,) int64; −1 where even the last one
    differs.

    same: (N, len(times)) bool, whether the answer at that time is the clean answer; times rise.
    """
    lasting = same.flip(1).long().cumprod(dim=1).flip(1).bool()
    grid = torch.as_tensor(times, dtype=torch.int64)
    return torch.where(lasting.any(dim=1), grid[lasting.long().argmax(dim=1)], -1)


def bound_time(norm: Tensor, lead: Tensor, schedule: Schedule, times: Sequence[int]) -> Tensor:
    """The smallest of `times` from which on lead > 2·TV, (N,) int64, −1 if none: there the theory promises the clean
    image's likeliest answer.

    norm: (N,) ‖d‖₂ in [−1, 1] units. lead: (N, len(times)) probability of the clean image's likeliest answer at that
    time, over the noise, minus that of the next one.
    """
    tv = total_variation(torch.as_tensor(norm)[:, None], schedule, torch.as_tensor(times, dtype=torch.int64)[None])
    return recovery_time(lead > 2 * tv, times)
