"""The contribution of DiffCAP: noise an image step by step until its embedding settles, then denoise it from there.

    x_0 = x (the image that came in),   x_{t+Δt} = (α(t+Δt)/α(t)) x_t + √(1 − (α(t+Δt)/α(t))²) ε          "cumulative": one chain
                                        x_{t+Δt} = α(t+Δt) x_0 + σ(t+Δt) ε                              "redraw": fresh noise around x_0 every time
    s_k = cos( φ(x_{(k−1)Δt}), φ(x_{kΔt}) ),   t* = Δt·min{ k : s_k ≥ τ },   x' = reverse(x_{t*}, t*)

Known from the authors' method figure (github yhangchen/yhangchen.github.io @5715a80, images/25_preprint_diffcap.png):
the chain is cumulative (the noisy picture goes in again where the attacked one came in), the first pair is the picture
as it came in and its first noisy state, the loop goes on while s < τ, the later state of the last pair is denoised, and
φ is one frozen encoder apart from the model, fed with the noisy picture. "redraw", which a formula that reviews quote
would fit as well, is a control. Not drawn, so ours: T_max and, where s_k stays below τ up to it, `fallback`.

τ has a meaning only together with Δt, the coupling, φ and what φ sees, so all are fields. Noise of step k is the child
stream "step{k}" of each image: its chain is the same in any batch.

Gradient (for attacks): t* is found without one. Given t* and the noise, x_{t*} = α(t*) x_0 + noise for either coupling,
so the path through noising and reverse process is differentiated exactly, the stop index straight through. What is
unknown: papers/diffcap/README.md, "Differences".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.diffusion import Purifier
from shared.diffusion.schedule import per_sample
from shared.errors import UserError
from shared.options import Bounded, Count, Finite
from shared.repeat import EARLY, joined, repeated
from shared.rng import SampleRng

Encoder = Callable[[Tensor], Tensor]  # φ: images (N, 3, H, W) in [0, 1] -> embeddings (N, D)


@dataclass(frozen=True)
class StopRule(Bounded):
    """When the noising stops, in the paper's symbols."""

    tau: Finite = 0.96
    """τ, the similarity to reach (the paper's value, for its own φ, Δt and noise)."""
    dt: Count = 10
    """Δt in steps of the schedule. Unknown; the paper calls its choice a practical trade-off."""
    t_max: Count = 400
    """T_max in steps, a multiple of Δt: the last time that is tried."""
    coupling: Literal["cumulative", "redraw"] = "cumulative"
    """How x_{t+Δt} comes from what is there: as in the authors' figure, or the control; see the module docstring."""
    encode: Literal["x_t", "x_t/alpha"] = "x_t"
    """What φ sees: x_t as it is (its mean is α(t) x, so contrast fades), or rescaled to the mean x."""
    clamp: bool = True
    """Whether what φ sees is cut to the pixel range first."""
    fallback: Literal["t_max", "max_similarity", "none"] = "t_max"
    """Where τ is never reached: denoise from T_max, from the time of the highest s_k, or return the image as it
    came."""

    def __post_init__(self):
        super().__post_init__()
        if self.t_max % self.dt:
            raise UserError(f"dt is {self.dt} and t_max {self.t_max}: t_max is a multiple of dt.")

    @property
    def times(self) -> range:
        """Δt, 2Δt, …, T_max."""
        return range(self.dt, self.t_max + 1, self.dt)


@dataclass(frozen=True)
class Stopped:
    """Where the loop ended for each of N images."""

    t: Tensor
    """t* in steps, (N,) int64; 0 for an image that the fallback "none" leaves alone."""
    reached: Tensor
    """Whether τ was reached, (N,) bool."""
    similarity: Tensor
    """s_1 … s_K, (N, K), K = T_max/Δt; nan after the stop."""
    state: Tensor
    """x_{t*}, (N, 3, S, S) in the denoiser's domain."""

    @property
    def encoded(self) -> Tensor:
        """How many images φ had to look at, (N,)."""
        return 1 + (~self.similarity.isnan()).sum(dim=1)


class DiffCAP(nn.Module):
    """A defence: diffcap(x, rng) -> x', both (N, 3, H, W) in [0, 1].

    purifier: its bridge to the denoiser's domain and its reverse process are used, its fixed time is not. phi: φ, fed
    with pictures of the denoiser's size. Raises UserError for a t_max beyond the denoiser's schedule, and in use for an
    rng that does not match the batch.
    """

    random = True

    def __init__(self, purifier: Purifier, phi: Encoder, rule: StopRule):
        super().__init__()
        if rule.t_max > purifier.denoiser.schedule.steps:
            raise UserError(
                f"t_max is {rule.t_max}, but the diffusion model has {purifier.denoiser.schedule.steps} steps: use at "
                "most that."
            )
        self.purifier, self.phi, self.rule = purifier, phi, rule

    def forward(self, x: Tensor, rng: SampleRng) -> Tensor:
        stop = self.stop_times(x, rng)
        x_t = stop.state
        if torch.is_grad_enabled() and x.requires_grad:
            x_0 = self.purifier.to_native(x)
            alpha = self.purifier.denoiser.schedule.alpha_bar(stop.t).sqrt()
            x_t = x_t + per_sample(alpha, x_t) * (x_0 - x_0.detach())  # adds zero, and the derivative α(t*)
        size = (int(x.shape[-2]), int(x.shape[-1]))
        return self.purifier.from_native(self.purifier.reverse(x_t, stop.t, rng), size)

    @torch.no_grad()
    def stop_times(self, x: Tensor, rng: SampleRng) -> Stopped:
        """The loop alone, for images (N, 3, H, W) in [0, 1]; images that have stopped leave the batch. One look of φ
        per image and step."""
        if len(rng) != len(x):
            raise UserError(f"rng is for {len(rng)} samples, the batch has {len(x)}: use rng.subset.")
        rule, x_0 = self.rule, self.purifier.to_native(x)
        n, steps = len(x), len(rule.times)
        similarity = torch.full((n, steps), torch.nan, device=x.device)
        t = torch.full((n,), rule.t_max, device=x.device)
        highest, reached, state = (
            torch.full((n,), -torch.inf, device=x.device),
            torch.zeros(n, dtype=torch.bool, device=x.device),
            x_0.clone(),
        )
        rows = torch.arange(n, device=x.device)
        x_t, before = x_0, self.look(x_0, 0) if n else None
        for k, time in repeated(list(enumerate(rule.times, start=1)), EARLY):
            if not len(rows):
                break
            x_t = self._advance(x_0[rows], x_t, time - rule.dt, time, rng.subset(rows), k)
            now = self.look(x_t, time)
            s = F.cosine_similarity(before.float(), now.float(), dim=1)
            similarity[rows, k - 1] = s
            done = s >= rule.tau
            keep = done | (s > highest[rows]) if rule.fallback == "max_similarity" else done | (time == rule.t_max)
            state[rows[keep]], t[rows[keep]], highest[rows] = x_t[keep], time, torch.maximum(highest[rows], s)
            reached[rows[done]] = True
            rows, x_t, before = rows[~done], x_t[~done], now[~done]
        if rule.fallback == "none":
            state[rows], t[rows] = x_0[rows], 0
        return Stopped(t, reached, similarity, state)

    def look(self, x_t: Tensor, t: int) -> Tensor:
        """φ of a native state at time t, (N, D), after `encode` and `clamp`."""
        if self.rule.encode == "x_t/alpha":
            x_t = x_t / self.purifier.denoiser.schedule.alpha_bar(t).sqrt().item()
        picture = (x_t + 1) / 2
        return self.phi(picture.clamp(0, 1) if self.rule.clamp else picture)

    def chain(self, x: Tensor, times: Sequence[int], rng: SampleRng) -> Iterator[tuple[int, Tensor]]:
        """(t, x_t) for t = 0 and the times given (rising), native, never stopped. With `rule.times` it is the chain of
        the loop."""
        x_0 = x_t = self.purifier.to_native(x)
        before = 0
        yield before, x_t
        for k, time in repeated(list(enumerate(times, start=1))):
            x_t = self._advance(x_0, x_t, before, time, rng, k)
            before = time
            yield time, x_t

    def embeddings(self, x: Tensor, times: Sequence[int], rng: SampleRng) -> Tensor:
        """φ along the chain, (N, 1 + len(times), D); the first is at t = 0. Differentiable in x."""
        return torch.stack([self.look(x_t, t) for t, x_t in self.chain(x, times, rng)], dim=1)

    def similarities(self, x: Tensor, times: Sequence[int], rng: SampleRng) -> Tensor:
        """cos of the embeddings of consecutive states, (N, len(times)): s_k for every k. Differentiable in x."""
        seen = self.embeddings(x, times, rng)
        return F.cosine_similarity(seen[:, :-1], seen[:, 1:], dim=2)

    def embed_at(self, x: Tensor, rng: SampleRng, level: int = 0) -> Tensor:
        """φ of x noised to one time at once, (N, D); level 0: of x itself. Both images of a pair get the same noise
        from the same rng."""
        x_0 = self.purifier.to_native(x)
        if level == 0:
            return self.look(x_0, 0)
        noise = rng.child("level").normal(x_0.shape[1:], device=x.device).to(x_0)
        return self.look(self.purifier.denoiser.schedule.diffuse(x_0, level, noise), level)

    def early_stop_loss(self, x: Tensor, rng: SampleRng, steps: int | None = None, temperature: float = 0.05) -> Tensor:
        """What an attacker raises to be let through with little noise, (N,): minus a smooth stop time, as a share of
        the steps looked at.

            −(1/K) Σ_{k=1..K} Π_{j≤k} sigmoid((τ − s_j)/temperature)

        The product is the soft probability that the loop still runs after step k; at temperature 0 the sum counts the
        steps before the stop. K = steps (default: all to T_max; the first few are cheaper, and an early stop needs no
        more). Same noise as forward(x, rng).
        """
        times = self.rule.times[:steps]
        s = self.similarities(x, times, rng)
        return -F.logsigmoid((self.rule.tau - s) / temperature).cumsum(dim=1).exp().mean(dim=1)

    def _advance(self, x_0: Tensor, x_s: Tensor, s: int, t: int, rng: SampleRng, k: int) -> Tensor:
        noise = rng.child(f"step{k}").normal(x_0.shape[1:], device=x_0.device).to(x_0)
        schedule = self.purifier.denoiser.schedule
        return schedule.diffuse(x_0, t, noise) if self.rule.coupling == "redraw" else schedule.advance(x_s, s, t, noise)


@dataclass(frozen=True)
class Calibration:
    """Similarities of clean/adversarial pairs, by the name of their set."""

    pairs: dict[str, Tensor]
    """cos(φ(clean_i), φ(adv_i)), (M,) for each set."""

    @property
    def tau(self) -> float:
        """Their mean, each set counting the same."""
        return torch.stack([values.double().mean() for values in self.pairs.values()]).mean().item()

    def spread(self, sizes: Sequence[int], repeats: int = 200, seed: int = 0) -> dict[int, Tensor]:
        """τ from random subsets of `size` pairs of each set (without replacement), (repeats,) for each size."""
        few = min(map(len, self.pairs.values()))
        if not sizes or max(sizes) > few or min(sizes) < 1:
            raise UserError(f"subset sizes {list(sizes)}: use some from 1 to {few}, the pairs of the smallest set.")
        out = {}
        for size in sizes:
            draws = [
                values.double()[
                    SampleRng(seed, range(repeats), f"{name}/{size}").uniform((len(values),)).argsort(dim=1)[:, :size]
                ].mean(dim=1)
                for name, values in self.pairs.items()
            ]
            out[size] = torch.stack(draws).mean(dim=0)
        return out


@torch.no_grad()
def calibrate_tau(
    pairs: Mapping[str, tuple[Tensor, Tensor]], diffcap: DiffCAP, *, level: int = 0, seed: int = 0, batch: int = 64
) -> Calibration:
    """Algorithm 2 as far as it is known: τ is the mean similarity of clean/adversarial pairs (the paper: 100 random
    images of each set).

    pairs: set -> (clean, adversarial), (M, 3, H, W) each, from images that are not evaluated. level: 0 compares the
    pictures themselves; t > 0 both noised to t with the same noise (whether the paper does is unknown). diffcap gives φ
    and what φ sees; its own τ is not used.
    """
    found = {}
    for name, (clean, adversarial) in pairs.items():
        if clean.shape != adversarial.shape or not len(clean):
            shapes = f"{tuple(clean.shape)} clean and {tuple(adversarial.shape)} adversarial"
            raise UserError(f"calibration pairs of {name}: {shapes}; give as many of both, at least one.")
        rng = SampleRng(seed, range(len(clean)), f"tau/{name}")

        def similarity(rows: Tensor, pair: tuple = (clean, adversarial), rng: SampleRng = rng) -> Tensor:
            seen = [diffcap.embed_at(images[rows.to(images.device)], rng.subset(rows), level) for images in pair]
            return F.cosine_similarity(*seen, dim=1).float().cpu()

        found[name] = joined(similarity, torch.arange(len(clean)).split(batch))
    if not found:
        raise UserError("τ needs at least one set of clean/adversarial pairs.")
    return Calibration(found)
