"""The reverse process: from x_t back to x_0, each sample from its own time.

Sample n, which starts at t_n, visits the times round(t_n·(K − k)/K), k = 0 … K; where two are equal nothing happens. A
step from t to s < t, with ε̂ and x̂₀ the denoiser's and β = 1 − ᾱ_t/ᾱ_s the noise between the two:

    ddim   x_s = α_s x̂₀ + √(σ_s² − τ²) ε̂ + τ z,    τ² = η² (σ_s²/σ_t²) β                            Song et al. 2021, eq. 12 and 16
    ddpm   x_s = (α_s β/σ_t²) x̂₀ + (α_t/α_s)(σ_s²/σ_t²) x_t + √V z                                  Ho et al. 2020, eq. 7
           V = β̃ = (σ_s²/σ_t²) β ("small"), β ("large"), or exp(v log β + (1 − v) log β̃) ("learned")  Nichol & Dhariwal 2021, eq. 15
    dpm++  DPM-Solver++(2M), diffusers' DPMSolverMultistepScheduler                                   Lu et al. 2022
    one_step   x̂₀ at the start itself, after one call of the denoiser; no guide is asked          Carlini et al. 2023

z ~ N(0, I) comes from the stream `step{k}` of the sample, and there is none in the step to s = 0. ddpm with "small" is
ddim with η = 1. Where x̂₀ is clipped to [−1, 1], ε̂ is made consistent with it again, as guided-diffusion does.
(diffusers' DDIM: use_clipped_model_output.)

With K = 0 every time between the start and 0 is visited (the full chain, no respacing).

A guide adds to ε̂ before x̂₀ is taken from it: classifier guidance is ε̂ − w σ_t ∇_{x_t} log p(y | x_t), Dhariwal &
Nichol 2021, algorithm 2. One whose attribute `on_sample` is true adds to x_s instead, after the step; not with dpm++.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from shared.diffusion.denoiser import Denoiser
from shared.diffusion.schedule import per_sample
from shared.errors import UserError
from shared.options import Bounded, ChainSteps, Share
from shared.repeat import repeated
from shared.rng import SampleRng

Guide = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""guide(x_t, t, x0_hat, eps) -> what to add to ε̂ (or to x_s, see above), (N, 3, H, W). Gradients are on, x0_hat
and eps are functions of x_t (not for one on_sample); use `torch.autograd.grad(..., x_t, create_graph=True)` for a
guide that is itself to be differentiated. A guide whose attribute `at_x_t` is true differentiates nothing through
x0_hat and eps; where nobody else wants gradients, the denoiser then runs without them."""


@dataclass(frozen=True)
class Sampler(Bounded):
    """How to go back."""

    kind: Literal["ddim", "ddpm", "dpm++", "one_step"] = "ddim"
    """See the module's docstring."""
    steps: ChainSteps = 5
    """K, steps from the start time to 0; one_step has none of it."""
    eta: Share = 0.0
    """η of ddim: 0 is deterministic, 1 is ancestral."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """V of ddpm; auto: learned where the denoiser has learned it, else small."""
    clip: bool = True
    """Clip x̂₀ to [−1, 1]."""

    def times(self, t: Tensor) -> Tensor:
        """The times visited from the start times t (N,), falling to 0: (N, K + 1)."""
        steps = 1 if self.kind == "one_step" else self.steps
        if not steps:
            return (t[:, None].cpu() - torch.arange(max(t.tolist(), default=0) + 1)).clamp_min(0)
        share = torch.arange(steps, -1, -1, dtype=torch.float64)
        return (t[:, None].cpu() * share / steps).round().long()

    def sample(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        t: Tensor,
        rng: SampleRng,
        checkpoint: bool = False,
        guide: Guide | None = None,
    ) -> Tensor:
        """x_t (N, 3, H, W) at times t (N,) -> x_0, not clipped. Rows with t = 0 come back unchanged.

        checkpoint: keep only x between the steps and compute each step again in the backward pass. Differentiable in
        x_t, more than once.
        """
        if t.shape != x_t.shape[:1] or len(rng) != len(x_t):
            raise UserError(
                f"{len(x_t)} images need as many start times and random streams, not {tuple(t.shape)} and {len(rng)}."
            )
        recomputed = checkpoint and torch.is_grad_enabled()
        if self.kind == "dpm++":
            return self._solve(denoiser, x_t, t, recomputed, guide)
        times = self.times(t)
        for k in repeated(range(times.shape[1] - 1)):
            moving = (times[:, k] > times[:, k + 1]).nonzero().flatten()
            if not len(moving):
                continue
            begin, end = times[moving, k], times[moving, k + 1]
            whole = len(moving) == len(x_t)
            x = x_t if whole else x_t[moving]
            noise = None
            if (self.kind == "ddpm" or self.eta) and bool((end > 0).any()):
                noise = rng.subset(moving).child(f"step{k}").normal(x.shape[1:], x.device).to(x)
            x = _call(recomputed, self._step, denoiser, x, begin, end, noise, guide)
            x_t = x if whole else x_t.index_copy(0, moving.to(x.device), x)
        return x_t

    def _predict(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, guide: Guide | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x̂₀, ε̂ and v at x (N, 3, H, W), t (N,)."""
        bar = denoiser.schedule.alpha_bar(t)
        alpha, sigma = per_sample(bar.sqrt(), x), per_sample((1 - bar).sqrt(), x)
        if guide is None:
            eps, v = denoiser(x, t)
        else:
            wanted = torch.is_grad_enabled() and x.requires_grad
            with torch.enable_grad():
                x = x if x.requires_grad else x.detach().requires_grad_()
                with torch.set_grad_enabled(wanted or not getattr(guide, "at_x_t", False)):
                    eps, v = denoiser(x, t)
                eps = eps + guide(x, t, (x - sigma * eps) / alpha, eps)
            if not wanted:
                x, eps, v = x.detach(), eps.detach(), None if v is None else v.detach()
        x0 = (x - sigma * eps) / alpha
        if self.clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - alpha * x0) / sigma
        return x0, eps, v

    def _step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor | None, guide: Guide | None
    ) -> Tensor:
        """One ddim or ddpm step of all samples, from t (N,) to s (N,), or the one of one_step."""
        on_sample = getattr(guide, "on_sample", False)
        x0, eps, v = self._predict(denoiser, x, t, None if on_sample or self.kind == "one_step" else guide)
        if self.kind == "one_step":
            return x0
        bar_t, bar_s = denoiser.schedule.alpha_bar(t), denoiser.schedule.alpha_bar(s)
        beta, shrink = 1 - bar_t / bar_s, (1 - bar_s) / (1 - bar_t)
        if self.kind == "ddim":
            variance = self.eta**2 * shrink * beta
            mean = per_sample(bar_s.sqrt(), x) * x0 + per_sample((1 - bar_s - variance).clamp_min(0).sqrt(), x) * eps
            deviation = per_sample(variance.sqrt(), x)
        else:
            mean = (
                per_sample(bar_s.sqrt() * beta / (1 - bar_t), x) * x0
                + per_sample((bar_t / bar_s).sqrt() * shrink, x) * x
            )
            deviation = self._deviation(beta, shrink, v, x)
        out = mean if noise is None else mean + per_sample((s > 0).double(), x) * deviation * noise
        if not on_sample:
            return out
        with torch.enable_grad():
            moved = guide(x if x.requires_grad else x.detach().requires_grad_(), t, x0, eps)  # type: ignore[misc]
        return out + moved

    def _deviation(self, beta: Tensor, shrink: Tensor, v: Tensor | None, x: Tensor) -> Tensor:
        """√V of ddpm, broadcast to x."""
        kind = ("small" if v is None else "learned") if self.variance == "auto" else self.variance
        if kind == "learned" and v is None:
            raise UserError("this denoiser has not learned a variance: use the sampler's variance small or large.")
        if kind == "learned":
            low = (shrink * beta).clamp_min(1e-20).log()  # −∞ in the last step, where no noise is added
            return torch.exp(
                (v * per_sample(beta.log(), x) + (1 - v) * per_sample(low, x)) / 2  # type: ignore[operator]
            )
        return per_sample((beta if kind == "large" else shrink * beta).sqrt(), x)

    def _solve(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, recomputed: bool, guide: Guide | None) -> Tensor:
        """dpm++: samples that start at the same time share a solver."""
        if getattr(guide, "on_sample", False):
            raise UserError(
                "dpm++ has no sample of a single step that a guide could move: use the sampler ddim or ddpm."
            )
        times = self.times(t)
        for start in times[:, 0].unique().tolist():
            rows = (times[:, 0] == start).nonzero().flatten()
            solver, visited = self._solver(denoiser, times[rows[0]])
            x = x_t[rows]
            for now in repeated(visited):
                x0 = _call(
                    recomputed,
                    lambda *given: self._predict(*given)[0],
                    denoiser,
                    x,
                    torch.full((len(rows),), now),
                    guide,
                )
                x = solver.step(x0, now - 1, x).prev_sample
            x_t = x if len(rows) == len(x_t) else x_t.index_copy(0, rows.to(x.device), x)
        return x_t

    def _solver(self, denoiser: Denoiser, times: Tensor):
        from diffusers import DPMSolverMultistepScheduler

        schedule, visited = denoiser.schedule, [i for i in times.unique().flip(0).tolist() if i > 0]
        solver = DPMSolverMultistepScheduler(
            num_train_timesteps=schedule.steps,
            trained_betas=schedule.betas.tolist(),
            prediction_type="sample",
            algorithm_type="dpmsolver++",
            solver_order=2,
        )
        if visited:
            solver.set_timesteps(timesteps=[i - 1 for i in visited])
        return solver, visited


def _call(recomputed: bool, function, *given):
    return (
        recompute(function, *given, use_reentrant=False, preserve_rng_state=False) if recomputed else function(*given)
    )
