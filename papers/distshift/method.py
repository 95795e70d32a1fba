"""The contribution of distshift: noise an image to t*, sample back, and let the protected classifier steer every
reverse step.

    x_{t*} = α(t*) x_adv + σ(t*) ε,     x_0 = reverse(x_{t*}),  with  ε̂ + δ  in place of ε̂ at each step,  δ from  g = ∇_{x_t} L

The paper says "guided by the output of the victim" and no more is known to us, so each candidate for L is here (p: the
victim's softmax, in: below):

    G1  log p(ŷ | in)                      classifier guidance, Dhariwal & Nichol 2021; openai/guided-diffusion `condition_mean`, `condition_score`
    G2  log max_y p(y | in)                confidence, without a label; COUP (ZhangMingKun1/COUP, runners/diffpure_sde.py), λ = 1 on the score.
                                           Its gradient is that of G1 whose label is that of `in` itself ("moving")
    G3  G1 with in = x̂₀(x_t)               the common variant; the gradient passes through the denoiser
    G4  −‖f(in) − f(in_ref)‖²              outputs stay near those of the diffused input; JinyiW/GuidedDiffusionPur has the version in pixels.
                                           ref = α(t) x_adv + σ(t) ε, with the ε of the forward process, treated like
                                           x_t: so g = 0 in the first step (of the first round; also wherever the two
                                           outputs agree to SAME)
    G5  −[ a ‖f(x_t) − f(x_adv)‖²/K        the first author's own code eight months before the paper (`RELEASED`): the
         + b ‖f(x_t) − f(x_t⁺)‖²/K         logits at x_t stay near those of the incoming picture (a = 1/100), near those
         + c ‖x_t − x_{t*}‖²/D ]           after more noise (b = 1), and the pixels near the noised start (c = 0)

G5: xaddwell/adversarial_robustness@8be7d72, diffusion_defense/cifar10/DRM.py (`cond_fn`) and
improved_diffusion/gaussian_diffusion.py (`p_sample`). f: logits, K of them; D pixels; x_t⁺ = α(2) x_t + σ(2) ε with
the ε of the forward process (the release diffuses x_t "to index 1", which is two noising steps). The victim is shown
x_t and x_adv in [−1, 1] as they are (rescale "native"), although it was trained on [0, 1]; −∇ of the sum is added to
the sample of the reverse step (unit "sample"), with no variance and no other scale. Its mean squared errors run over
the batch too, so that the pull on a picture fell with the size of the batch: w = 1/128 (`RELEASED`) is its pull in
the batches of 128 of its configuration; here errors are per picture, whatever the batch. That the paper used just
this is inferred. In one-step mode (the sampler one_step, its default) no guide has any effect.

`in` is x_t, x_t/α(t) or x̂₀ = (x_t − σ ε̂)/α, as a picture ((· + 1)/2 at the image's size). The victim never saw noise
in training (openai's guide did). With s the next time, β = 1 − ᾱ_t/ᾱ_s and V = β̃ = β σ_s²/σ_t² ("small") or β
("large"), the scale w means

    ratio  δ = −w ‖ε̂‖ g/‖g‖              guidance norm over score norm is w, in every sample and step; 0 where g = 0
    score  δ = −w σ_t g                   score + w g, since score = −ε̂/σ_t (`condition_score`; COUP's λ)
    sample x_s + w g in place of δ        the sample that a step comes to is moved, after noise and clipping (G5)
    mean   δ = −w V (α_t σ_t)/(α_s β) g   the mean of a ddpm step moves by w V g (`condition_mean`): that mean is (α_s β/σ_t²) x̂₀ + … with
                                          x̂₀ = (x_t − σ_t ε̂)/α_t, so its derivative by ε̂ is −α_s β/(α_t σ_t). V = β:
                                          "score" times α_t/α_s

The sampler clips x̂₀ after δ is added (guided-diffusion clips before it moves the mean). For ddim and dpm++ "mean" is
the δ of a ddpm step.

Gradient (for attacks): δ depends on the image and is a gradient itself, so the exact derivative has a second-order term
through the victim. `second_order=False` makes δ a constant of the backward pass, as COUP's released code does. Labels
are constants.
"""

import contextlib
import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.diffusion import Purifier, Schedule, resize
from shared.diffusion.sampler import Guide
from shared.diffusion.schedule import per_sample
from shared.errors import UserError
from shared.options import Bounded, Weight
from shared.repeat import repeated
from shared.rng import SampleRng

FLOOR = 1e-30  # largest entry of a gradient that counts as zero: its inverse, which "ratio" needs, is not a float32 far below
MORE = 2  # noising steps between x_t and x_t⁺
SAME = 1e-4  # outputs of the victim that differ by less, relative to their size, are the same: float32 networks are exact to about 1e-6


@dataclass(frozen=True)
class Guidance(Bounded):
    """Which L, where, and how strongly; see the module docstring."""

    kind: Literal["G1", "G2", "G3", "G4", "G5"] = "G1"
    label: Literal["x_adv", "running", "moving"] = "running"
    """ŷ of G1 and G3: argmax of the victim on the image that came in (once), on x̂₀ at each step, or on `in` at each
    step."""
    domain: Literal["x_t", "x0_hat"] = "x_t"
    """`in`. G3 is G1 with x0_hat, and is refused with x_t. x̂₀ is the unguided estimate, not clipped."""
    rescale: Literal["none", "x_t/alpha", "native"] = "none"
    """Whether x_t is divided by α(t) first, so that the picture keeps its contrast (x̂₀ has none to regain), or shown
    in [−1, 1] as it is (native)."""
    clamp: bool = False
    """Cut the victim's picture to [0, 1]. By the clamp's own derivative, g is zero where it cuts."""
    scale: Weight = 0.1
    """w ≥ 0."""
    unit: Literal["ratio", "score", "mean", "sample"] = "ratio"
    weights: tuple[Weight, Weight, Weight] = (0.01, 1.0, 0.0)
    """a, b and c of G5."""
    output: Literal["logits", "features"] = "logits"
    """f of G4."""

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "G3" and self.domain != "x0_hat":
            raise UserError("G3 is G1 at the predicted clean image: use it with domain 'x0_hat', or G1 with 'x_t'.")
        if self.rescale != "none" and self.domain != "x_t":
            raise UserError(
                f"rescale {self.rescale!r} is for domain 'x_t': the predicted clean image has its contrast and range."
            )
        if self.domain != "x_t" and (self.kind == "G5" or self.unit == "sample"):
            raise UserError("G5 and the unit 'sample' are about x_t: use them with domain 'x_t'.")

    @property
    def labelled(self) -> bool:
        """Whether there is a ŷ."""
        return self.kind in ("G1", "G3")

    @property
    def looks(self) -> int:
        """Pictures that the victim sees in each reverse step, one of them with a gradient."""
        return 1 + (self.kind in ("G4", "G5") or (self.labelled and self.label == "running" and self.domain == "x_t"))


RELEASED = Guidance("G5", rescale="native", scale=1 / 128, unit="sample")
"""The guidance of the first author's code in its batches of 128; see the module docstring."""


class Calls(NamedTuple):
    """Passes through networks per image and purification, without an attack's."""

    denoiser: int
    victim: int
    gradients: int
    """Of the victim's passes, those that a backward pass follows (through the denoiser as well, for domain x0_hat)."""


def log_prob(logits: Tensor, y: Tensor) -> Tensor:
    """log softmax(logits)_y, (N,), for logits (N, K), K ≥ 2, as log sigmoid( z_y − log Σ_{j≠y} exp z_j ).

    This has an exact gradient where p(y) is 1 up to rounding, and log_softmax has 1 − 1.
    """
    at = y[:, None]
    return F.logsigmoid(logits.gather(1, at)[:, 0] - logits.scatter(1, at, -torch.inf).logsumexp(dim=1))


def distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² per sample, (N,); 0, with gradient 0, where ‖a − b‖ ≤ SAME·‖b‖, since "ratio" would make a full step of
    rounding errors."""
    square, size = (a - b).flatten(1).square().sum(dim=1), b.detach().flatten(1).square().sum(dim=1)
    return torch.where(square.detach() > SAME**2 * size, square, 0)


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² over the numbers of a sample, (N,)."""
    return (a - b).square().flatten(1).mean(dim=1)


def unit_vectors(g: Tensor) -> Tensor:
    """g/‖g‖ per sample, 0 where no entry exceeds FLOOR in size. Differentiable."""
    rows = g.flatten(1)
    largest = rows.detach().abs().amax(dim=1, keepdim=True)
    some = largest > FLOOR
    rows = torch.where(
        some, rows / torch.where(some, largest, 1), 0
    )  # entries of at most 1: no square of theirs underflows
    norm = torch.where(some, rows.square().sum(dim=1, keepdim=True), 1).sqrt()
    return (rows / norm).view_as(g)


def mean_factor(schedule: Schedule, t: int, s: int, large: bool) -> float:
    """V (α_t σ_t)/(α_s β): −δ/g for which the mean of the ddpm step from t to s moves by V g."""
    bar_t, bar_s = schedule.alpha_bar(t).item(), schedule.alpha_bar(s).item()
    variance_over_beta = 1.0 if large else (1 - bar_s) / (1 - bar_t)
    return variance_over_beta * math.sqrt(bar_t / bar_s * (1 - bar_t))


class Guided(nn.Module):
    """Rounds of noising and guided reverse process: defence(x, rng) -> x', both (N, 3, H, W) in [0, 1].

    Round 0 draws from rng what the purifier itself would, round r from its child `round{r}`; between rounds the image
    stays in the denoiser's domain, not clipped. Subclasses say how to guide. second_order: see the module docstring.
    Every image has the one time purifier.t.
    """

    random = True

    def __init__(self, purifier: Purifier, rounds: int = 1, second_order: bool = True):
        super().__init__()
        if rounds < 1:
            raise UserError(f"rounds of purification are 1 or more, not {rounds}.")
        self.purifier, self.rounds, self.second_order = purifier, int(rounds), bool(second_order)

    def guide(self, x: Tensor, x_0: Tensor, rng: SampleRng, exact: bool) -> Guide | None:
        """For one round: x (N, 3, H, W) as it came, x_0 the same in the denoiser's domain. exact: whether δ is to be
        differentiated."""
        raise NotImplementedError

    def with_(self, **changes):
        """The same models with other attributes, e.g. with_(second_order=False, rounds=2)."""
        other = copy.copy(self)
        for name, value in changes.items():
            if name not in self.__dict__:
                raise UserError(f"a {type(self).__name__} has no setting {name!r}.")
            setattr(other, name, value)
        return other

    def forward(self, x: Tensor, rng: SampleRng) -> Tensor:
        check_streams(x, rng)
        exact = self.second_order and torch.is_grad_enabled() and x.requires_grad
        state = x_0 = self.purifier.to_native(x)
        t = torch.full((len(x),), self.purifier.t)
        for r in repeated(range(self.rounds)):
            stream = self.stream(rng, r)
            x_t = self.purifier.noise(state, t, stream)
            state = self.purifier.reverse(
                x_t, t, stream, self.guide(x, x_0, stream, exact) if len(x) and self.purifier.t else None
            )
        return self.purifier.from_native(state, (int(x.shape[-2]), int(x.shape[-1])))

    @staticmethod
    def stream(rng: SampleRng, r: int) -> SampleRng:
        """The numbers of round r."""
        return rng if r == 0 else rng.child(f"round{r}")

    @property
    def next_time(self) -> dict[int, int]:
        """Where each reverse step goes: t -> s < t, falling from t* to 0; steps that go nowhere are left out."""
        times = self.purifier.sampler.times(torch.tensor([self.purifier.t]))[0].tolist()
        return {t: s for t, s in pairwise(times) if t > s}

    def together(self, t: Tensor, rows: int) -> int:
        """The time of a step of the whole batch: a guide holds one reference, label and noise per row, so rows must not
        leave."""
        if len(t) != rows or bool((t != t[0]).any()):
            raise UserError(
                "a guided purifier needs all images of a batch at one time: start all of them at the same t."
            )
        return int(t[0])


class Distshift(Guided):
    """Diffusion purification guided by the victim. guidance None, or of scale 0: the Purifier itself, bit for bit (in
    one round).

    victim: pictures (N, 3, H, W) at the images' size -> logits (N, K), in eval mode, twice differentiable; `features`
    for G4 on features. Its parameters get no gradient from here. Raises UserError for settings that do not fit, and in
    use for an rng that does not match the batch.
    """

    def __init__(
        self,
        purifier: Purifier,
        victim: nn.Module,
        guidance: Guidance | None,
        rounds: int = 1,
        second_order: bool = True,
    ):
        super().__init__(purifier, rounds, second_order)
        if (
            guidance is not None
            and guidance.kind == "G4"
            and guidance.output == "features"
            and not hasattr(victim, "features")
        ):
            raise UserError("guidance on features needs a victim with features: use output 'logits'.")
        self.victim, self.guidance = victim, guidance
        if self.guided and guidance.unit == "mean":
            large_variance(purifier)

    @property
    def guided(self) -> bool:
        return self.guidance is not None and self.guidance.scale > 0

    @property
    def calls(self) -> Calls:
        steps = self.rounds * len(self.next_time)
        if not self.guided or not steps or self.purifier.sampler.kind == "one_step":
            return Calls(steps, 0, 0)
        g = self.guidance
        twice = g.kind == "G4" and g.domain == "x0_hat"  # the reference is denoised as well
        before = self.rounds * (g.kind == "G5" or (g.labelled and g.label == "x_adv"))
        return Calls(steps * (1 + twice), steps * g.looks + before, steps)

    def picture(self, native: Tensor, size: tuple[int, int], t: int | None = None) -> Tensor:
        """What the victim is shown of a native image; t: the time of an x_t, None for an x̂₀."""
        if t is not None and self.guidance.rescale == "x_t/alpha":
            native = native / self.purifier.denoiser.schedule.alpha_bar(t).sqrt().item()
        picture = resize(native if self.guidance.rescale == "native" else (native + 1) / 2, size)
        return picture.clamp(0, 1) if self.guidance.clamp else picture

    def guide(self, x: Tensor, x_0: Tensor, rng: SampleRng, exact: bool) -> Guide | None:
        if not self.guided or self.purifier.sampler.kind == "one_step":
            return None
        g, size, rows, follows = self.guidance, (int(x.shape[-2]), int(x.shape[-1])), len(x), self.next_time
        given = self._argmax(x) if g.labelled and g.label == "x_adv" else None
        noise = rng.child("noise").normal(x_0.shape[1:], x_0.device).to(x_0) if g.kind in ("G4", "G5") else None
        wanted = self._output(self.picture(x_0, size)) if g.kind == "G5" else None

        def delta(x_t: Tensor, t: Tensor, x0_hat: Tensor, eps: Tensor) -> Tensor:
            time = self.together(t, rows)
            with _kept() if g.domain == "x_t" else contextlib.nullcontext():
                shown = self.picture(x0_hat, size) if g.domain == "x0_hat" else self.picture(x_t, size, time)
                if g.kind == "G5":
                    value = -self._errors(x_t, self._output(shown), wanted, x_0, noise, size)
                elif g.kind == "G4":
                    value = -distance(self._output(shown), self._output(self._reference(x_0, noise, t, time, size)))
                else:
                    logits = self.victim(shown)
                    y = given
                    if y is None and g.label == "running" and g.domain == "x_t" and g.labelled:
                        y = self._argmax(self.picture(x0_hat, size))
                    value = log_prob(logits, logits.detach().argmax(dim=1) if y is None else y)
            grad = torch.autograd.grad(value.sum(), x_t, create_graph=exact, retain_graph=True)[0]
            out = g.scale * grad if g.unit == "sample" else -g.scale * self._scaled(grad, eps, time, follows[time])
            return out if exact else out.detach()

        delta.at_x_t = g.domain == "x_t"
        delta.on_sample = g.unit == "sample"
        return delta

    def _errors(
        self, x_t: Tensor, logits: Tensor, wanted: Tensor, x_0: Tensor, noise: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """The sum in G5's brackets, (N,); wanted: the logits of the incoming picture."""
        schedule = self.purifier.denoiser.schedule
        noisier = self._output(self.picture(schedule.diffuse(x_t, MORE, noise), size))
        start = schedule.diffuse(x_0, self.purifier.t, noise)
        of_input, of_noise, of_pixels = self.guidance.weights
        return (
            of_input * mean_square(logits, wanted)
            + of_noise * mean_square(logits, noisier)
            + of_pixels * mean_square(x_t, start)
        )

    def _scaled(self, grad: Tensor, eps: Tensor, t: int, s: int) -> Tensor:
        """−δ/w."""
        if self.guidance.unit == "ratio":
            return per_sample(eps.flatten(1).norm(dim=1), eps) * unit_vectors(grad)
        schedule = self.purifier.denoiser.schedule
        if self.guidance.unit == "score":
            return math.sqrt(1 - schedule.alpha_bar(t).item()) * grad
        return mean_factor(schedule, t, s, large_variance(self.purifier)) * grad

    def _reference(self, x_0: Tensor, noise: Tensor, t: Tensor, time: int, size: tuple[int, int]) -> Tensor:
        """The victim's picture of the diffused input."""
        denoiser = self.purifier.denoiser
        reference = denoiser.schedule.diffuse(x_0, time, noise)
        if self.guidance.domain == "x0_hat":
            return self.picture(denoiser.posterior_mean(reference, t), size)
        return self.picture(reference, size, time)

    def _output(self, pictures: Tensor) -> Tensor:
        return self.victim.features(pictures) if self.guidance.output == "features" else self.victim(pictures)

    @torch.no_grad()
    def _argmax(self, pictures: Tensor) -> Tensor:
        return self.victim(pictures).argmax(dim=1)

    def guide_log_probs(self, x: Tensor, rng: SampleRng) -> Tensor:
        """Mean of log p over the pictures that the guide shows the victim in the first reverse step, (N, K): `in`, and
        where it takes ŷ from.

        Same noise as forward(x, rng). Differentiable in x; δ has no part in it. Raises UserError where there is no
        guide.
        """
        check_streams(x, rng)
        if not self.guided or not self.purifier.t:
            raise UserError("an attack on the guidance needs a guided purifier: a scale and a time above 0.")
        g, t, size = self.guidance, self.purifier.t, (int(x.shape[-2]), int(x.shape[-1]))
        times = torch.full((len(x),), t)
        x_t = self.purifier.noise(self.purifier.to_native(x), times, rng)
        shown = []
        if g.domain == "x_t":
            shown.append(self.picture(x_t, size, t))
        if g.domain == "x0_hat" or (g.labelled and g.label == "running"):
            shown.append(self.picture(self.purifier.denoiser.posterior_mean(x_t, times), size))
        if g.labelled and g.label == "x_adv":
            shown.append(x)
        return torch.stack([self.victim(pictures).log_softmax(dim=1) for pictures in shown]).mean(dim=0)

    def guide_loss(self, x: Tensor, y: Tensor, rng: SampleRng) -> Tensor:
        """(N,), what an attacker on the guidance alone raises: the mean cross-entropy of those pictures with the true
        labels y (N,)."""
        return nll(self.guide_log_probs(x, rng), y)


def _kept():
    """Keeps what a gradient taken inside a recomputed step needs. Else it recomputes the denoiser first, and torch
    keeps all of that.

    Detached, for an operation that saves its own output would otherwise hold itself alive; torch attaches what is
    unpacked to its history again.
    """
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda tensor: tensor)


def nll(log_probs: Tensor, y: Tensor) -> Tensor:
    """−log p(y), (N,)."""
    return -log_probs.gather(1, y[:, None])[:, 0]


def check_streams(x: Tensor, rng: SampleRng) -> None:
    """Refuse an rng of another batch."""
    if len(rng) != len(x):
        raise UserError(f"rng is for {len(rng)} samples, the batch has {len(x)}: use rng.subset.")


def large_variance(purifier: Purifier) -> bool:
    """Whether V of "mean" is β rather than β̃. Raises UserError for a learned one, which a guide is not told."""
    sampler, unet = purifier.sampler, getattr(purifier.denoiser, "unet", None)
    learned = unet is not None and unet.config.out_channels > unet.config.in_channels
    if sampler.variance == "learned" or (sampler.kind == "ddpm" and sampler.variance == "auto" and learned):
        raise UserError(
            "guidance in the unit 'mean' multiplies the sampler's variance, and this one is learned: use variance "
            "small or large."
        )
    return sampler.variance == "large"
