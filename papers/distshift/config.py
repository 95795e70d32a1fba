"""Everything that can be set for distshift: one dataclass, a preset per scale.
`python -m papers.distshift.evaluate --scale cpu --help` lists it."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from papers.distshift.baselines import Pull
from papers.distshift.method import Guidance
from papers.distshift.tables import VARIANTS
from shared.attacks.autoattack import STANDARD, WITHOUT_FAB, Stage
from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.scale import Options, check_seeds
from shared.options import (
    Batch,
    Bits,
    ChainSteps,
    Count,
    Draws,
    Eps,
    Pixels,
    Positive,
    Quality,
    Range,
    Seed,
    Share,
    Time,
    Weight,
    Whole,
)
from shared.training.classify import ClassifierTraining
from shared.training.denoising import DenoisingConfig


@dataclass(frozen=True)
class Protected:
    """One data set, the classifier that is protected on it (the victim, which also guides), and the diffusion model."""

    data: str = ""
    """Set as in shared.data.catalogue; empty: there is no such set."""
    arch: str = "resnet8"
    """Architecture of both victims: resnet8, resnet20, wrn-28-10, torchvision:<name>."""
    weights: str = "random"
    """Victim: zoo:<name>, a local checkpoint, torchvision:<tag>, `train` (train.py makes it), or `random`."""
    at_weights: str = "random"
    """The adversarially trained victim, written the same way."""
    denoiser: str = "zoo:scenes-ddpm"
    """zoo:<name>, diffusers:<folder or name>, guided:<path>, improved:<path>, random:<configuration>, or `train`."""
    t: Annotated[int, Range(0, 4000)] = 0
    """t* of this set, in steps of its schedule (0: chosen, see --choosing)."""
    restrict: bool = False
    """The weights are of 1,000-way ImageNet classifiers: only the logits of the set's classes are kept (ImageNet30).
    Not for what is trained here."""


@dataclass(frozen=True)
class Models:
    """The two sets of the paper's tables, in its order."""

    first: Protected = Protected("scenes:ten", "resnet8", "zoo:scenes-ten-resnet8", "zoo:scenes-ten-resnet8-at")
    """In the place of CIFAR10."""
    second: Protected = Protected(
        "scenes:thirty", "resnet8", "zoo:scenes-thirty-resnet8", "zoo:scenes-thirty-resnet8-at"
    )
    """In the place of ImageNet30."""
    denoiser_config: str = "photos"
    """Configuration (shared/diffusion/weights.py) of a denoiser that is trained here."""


@dataclass(frozen=True)
class Data:
    """The pictures."""

    source: Source = Source()
    n: Whole = 96
    """Test pictures per set (0: all)."""
    seed: Seed = 42
    """Of the choice of pictures from sets that are read from files."""
    label: str = ""
    """What to call a folder of pictures on the page, e.g. "CIFAR-10 (JPEG copy)" (empty: the name of the folder)."""


@dataclass(frozen=True)
class Attack:
    """The attacks of the main tables, on the bare victim (gray box); radii in pixels of [0, 1]."""

    linf: Eps = 8 / 255
    """ε of the ℓ∞ ball."""
    l2: Annotated[Pixels, Range(0, 16, above=True, example="128/255")] = 128 / 255
    """ε of the ℓ2 ball."""
    steps: Count = 20
    """PGD steps of 2.5·ε/steps; along the sign of the gradient (ℓ∞) or the normalised gradient (ℓ2). No picture leaves
    at its first success."""
    stages: tuple[Stage, ...] = WITHOUT_FAB
    """Stages of the cascade that stands for AutoAttack, whose `standard` has FAB-T, too."""
    auto_steps: Count = 20
    """Iterations of each APGD run of the cascade."""
    targets: Count = 3
    """Target classes of APGD-T."""
    queries: Count = 100
    """Queries of Square."""
    sanity_n: Count = 8
    """Pictures of the sanity checks."""
    batch: Batch = 64
    """Pictures at a time."""
    seed: Seed = 0
    """Of the attacks' random starts."""


@dataclass(frozen=True)
class Method:
    """What all diffusion defences share."""

    rounds: Draws = 1
    """Purifications one after the other, of distshift."""
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """The reverse process of distshift, DiffPure and GDMP."""
    sampler_steps: ChainSteps = 5
    """Denoiser calls of one reverse pass (0: one for every step of the schedule)."""
    eta: Share = 0.0
    """η of ddim: 0 is deterministic, 1 is ancestral."""
    recompute: bool = False
    """Compute each reverse step again in the backward pass of an attack: more time, less memory."""
    batch: Batch = 64
    """Pictures at a time."""


@dataclass(frozen=True)
class Baselines:
    """Settings of what distshift is compared with."""

    jpeg: Quality = 75
    """Quality."""
    bits: Bits = 3
    """Bits per channel."""
    tv: Positive = 0.05
    """Weight of total variation."""
    pad: Share = 0.15
    """Share of the side that random resize-and-pad may add."""
    gdmp: Pull = Pull()
    """What GDMP's guidance pulls towards; how strongly is chosen, see --choosing."""
    gdmp_rounds: Draws = 2
    """Rounds of GDMP (published: 4 on CIFAR-10)."""


@dataclass(frozen=True)
class Choosing:
    """What nobody states is chosen on validation pictures: `Judged` in steps.py has the rule. Grids of one size, so
    that no method has more tries; equal candidates: the first, which is the published one."""

    n: Count = 24
    """Pictures of every set."""
    split: Literal["validation", "train"] = "validation"
    """Where from; only the generated sets have pictures for validation."""
    times: tuple[Time, ...] = (58, 40, 75, 100, 150, 200)
    """t*, by DiffPure. Of 1,000 linear steps 58 has the noise of the first author's 470 of 4,000; DiffPure's is 100."""
    guidances: tuple[str, ...] = ("g5-released", "g5-picture", "g5-ratio", "g1-running", "g1-strong", "coup")
    """The guidance of distshift at that t*, by the names of tables.py (what they leave open: --guidance)."""
    pulls: tuple[Positive, ...] = (600.0, 1000.0, 300.0, 100.0, 30.0, 10.0)
    """The scale of GDMP at that t*."""


@dataclass(frozen=True)
class Released:
    """Rows "as released": the state of the first author's code before the paper; see method.py. On the first set."""

    n: Count = 48
    """Pictures (of the full chain: --sweeps.n)."""
    t: Time = 470
    """t* of 4,000 cosine steps; a diffusion model with another schedule takes its time of the same noise."""
    times: tuple[Time, ...] = (300, 350, 400, 450, 470, 500, 550, 600)
    """t* of the sweep, likewise."""
    second_times: tuple[Time, ...] = ()
    """The sweep on the second set, in its own steps."""
    eps: tuple[Annotated[float, Range(0, 255)], ...] = (0, 5, 10, 15, 20, 25, 30, 40, 50, 75)
    """ε of the other sweep, in 1/255."""
    steps: Count = 5
    """Steps of PGD, from a random start, along the sign; the last iterate counts."""
    step_size: Eps = 3 / 255
    """Each so long."""
    bpda_steps: Count = 20
    """Steps of BPDA+EOT, a quarter of ε each (released: 50 of 2/255)."""
    bpda_draws: Draws = 5
    """Draws behind each of its gradients (released: 15)."""


@dataclass(frozen=True)
class Adaptive:
    """Attackers who know the defence; on the first set."""

    n: Count = 16
    """Pictures."""
    headline_n: Count = 96
    """Pictures of what a claim of the abstract reads, with all seeds."""
    norms: tuple[Literal["linf", "l2"], ...] = ("linf",)
    """Balls, with the radii of the main tables."""
    steps: Count = 10
    """PGD steps of 2.5·ε/steps."""
    eot: Draws = 2
    """Draws of the defence behind each gradient (EOT)."""
    draws: Draws = 10
    """Purifications behind mean, worst and majority."""
    apgd: bool = False
    """The exact gradient with APGD as well: AutoAttack's version for random defences."""
    square_n: Count = 6
    """Pictures under Square through the whole pipeline (no gradient)."""
    square_queries: Count = 60
    """Its queries per picture."""
    sanity_n: Count = 2
    """Pictures of the checks of the exact attack."""


@dataclass(frozen=True)
class Sweeps:
    """What is varied beyond the main tables, on the first set, one seed."""

    n: Count = 24
    """Pictures per point."""
    times: tuple[Positive, ...] = (0.5, 1.0, 2.0, 4.0)
    """Multiples of the two ε; 2 is among them, since a claim of the abstract needs it."""
    t: tuple[Time, ...] = (25, 50, 75, 100, 150, 200, 300)
    """Diffusion times t*."""
    rounds: tuple[Draws, ...] = (1, 2, 4)
    """Numbers of rounds."""
    scales: tuple[Weight, ...] = (0.0, 0.3, 1.0, 3.0, 10.0)
    """Scales of the guidance, as multiples of the chosen one; 0 and 1 are among them, which are rows elsewhere."""
    features_n: Count = 96
    """Pictures on either side of the two-sample tests."""
    block: Annotated[int, Range(2, 65_536)] = 8
    """Pictures of one block: MMD² is the mean over blocks, so that it has an interval."""
    permutations: Count = 500
    """Of the permutation test."""
    quality_n: Count = 96
    """Pictures behind PSNR and SSIM."""
    strip: Count = 4
    """Pictures of the qualitative strip."""
    cost_n: Count = 16
    """Pictures behind the costs."""
    cost_repeats: Draws = 2
    """Repetitions of each timing."""


@dataclass(frozen=True)
class Gates:
    """What must hold of the undefended victims before any defence is measured."""

    clean: Share = 0.90
    """Least clean accuracy on each set."""
    linf: Share = 0.30
    """Largest accuracy that the cascade in the ℓ∞ ball may leave. (The cross-entropy is flat where a victim is sure, so
    PGD leaves more.)"""
    l2: Share = 0.50
    """Largest accuracy that the cascade in the ℓ2 ball may leave."""
    purified: Share = 0.05
    """Largest loss of clean accuracy under DiffPure."""
    enforce: bool = True
    """Stop where a gate fails."""


@dataclass(frozen=True)
class Config(Options):
    """distshift."""

    models: Models = Models()
    data: Data = Data()
    attack: Attack = Attack()
    guidance: Guidance = Guidance(rescale="x_t/alpha")
    """What the candidates for the guide of the reverse process leave open; which the paper has is unknown."""
    choosing: Choosing = Choosing()
    released: Released = Released()
    method: Method = Method()
    baselines: Baselines = Baselines()
    training: ClassifierTraining = ClassifierTraining()
    """Of victims with weights `train`."""
    at_training: ClassifierTraining = ClassifierTraining()
    """Of adversarially trained victims with weights `train`."""
    denoising: DenoisingConfig = DenoisingConfig()
    """Of denoisers `train`."""
    adaptive: Adaptive = Adaptive()
    sweeps: Sweeps = Sweeps()
    gates: Gates = Gates()


_CPU = Config()
_NONE = Protected(weights="random")
_PHOTO = ClassifierTraining(
    steps=4000, batch=128, lr=0.1, warmup=250, weight_decay=5e-4, augment="shift_flip", every=200
)

_PAPER = replace(
    _CPU,
    models=Models(
        Protected(
            "named:cifar10",
            "wrn-28-10",
            "models/cifar10/Standard.pt",
            "train",
            "improved:cifar10_uncond_50M_500K.pt",
        ),
        Protected(
            "named:ImageNet30",
            "torchvision:resnet50",
            "train",
            "train",
            "guided:256x256_diffusion_uncond.pt",
            t=150,
        ),
    ),
    data=Data(n=512),
    attack=Attack(steps=20, stages=STANDARD, auto_steps=100, targets=9, queries=5000, sanity_n=64, batch=64),
    # t* as the first author's code has it, and its guidance: nothing is left to choose
    choosing=Choosing(split="train", times=(470,), guidances=("g5-released",), pulls=(600.0,)),
    released=Released(
        n=512,
        times=tuple(range(300, 601, 10)),
        second_times=tuple(range(50, 491, 10)),
        eps=tuple(range(0, 80, 5)),
        bpda_steps=50,
        bpda_draws=15,
    ),
    method=Method(sampler="ddpm", sampler_steps=100, recompute=True, batch=16),
    training=replace(_PHOTO, steps=20_000, batch=256, every=500, workers=12),
    at_training=replace(
        _PHOTO, steps=40_000, batch=256, eps=8 / 255, attack_steps=10, attack_ratio=0.25, every=500, workers=12
    ),
    adaptive=Adaptive(
        n=128,
        norms=("linf", "l2"),
        steps=100,
        eot=20,
        draws=10,
        apgd=True,
        square_n=64,
        square_queries=2000,
        sanity_n=8,
    ),
    sweeps=Sweeps(n=256, t=tuple(range(300, 601, 50)), features_n=512, block=32, quality_n=256, cost_n=16),
    gates=Gates(purified=0.10),
)

PRESETS = {
    "smoke": replace(
        _CPU,
        seeds=(0, 1),
        data=Data(n=8),
        attack=Attack(steps=2, auto_steps=2, targets=1, queries=3, sanity_n=4, batch=8),
        choosing=Choosing(n=2, times=(58, 100), guidances=("g5-released", "g1-running"), pulls=(600.0, 100.0)),
        released=Released(n=4, times=(400, 470), eps=(0, 8), bpda_steps=1, bpda_draws=1),
        method=Method(sampler_steps=2, batch=16),
        adaptive=Adaptive(n=2, headline_n=4, steps=1, eot=1, draws=2, square_n=2, square_queries=2, sanity_n=2),
        sweeps=Sweeps(
            n=4,
            times=(1.0, 2.0),
            t=(50, 100),
            rounds=(1, 2),
            scales=(0.0, 1.0),
            features_n=8,
            block=4,
            permutations=20,
            quality_n=4,
            strip=2,
            cost_n=2,
            cost_repeats=1,
        ),
        gates=Gates(enforce=False),
    ),
    "cpu": _CPU,
    "photos": replace(
        _CPU,
        models=Models(Protected("folder:all", "resnet8", "train", "train", "train"), _NONE),
        data=Data(Source(size="32"), n=256),
        attack=Attack(steps=20, auto_steps=50, targets=9, queries=1000, batch=256),
        choosing=Choosing(n=64, split="train"),
        released=Released(n=256),
        method=Method(recompute=True, batch=128),
        training=_PHOTO,
        at_training=replace(_PHOTO, steps=2000, eps=8 / 255, attack_steps=4, attack_ratio=0.4),
        denoising=DenoisingConfig(steps=3000, batch=64, lr=1e-3, warmup=300, average=0.999),
        adaptive=Adaptive(n=32, square_n=8, square_queries=100),
        sweeps=Sweeps(n=64, features_n=128, block=16, quality_n=64, cost_n=32),
        gates=Gates(clean=0.75, purified=0.15),
    ),
    # CIFAR-10 alone: RobustBench's Standard, and the DDPM of 35.7 million weights with 20 of its 1,000 steps. Its
    # schedule is linear, so t* is that of the first author's noise (58), and nothing is chosen, as at the paper's
    # scale. 36 GFLOP for a pass there and back of a picture through either network and 15 TFLOP/s of an RTX 3090: the
    # second victim, 2,000 updates of 128 with 4 steps of PGD, takes 25 minutes, everything about two hours.
    "evening": replace(
        _PAPER,
        models=Models(replace(_PAPER.models.first, denoiser="diffusers:google/ddpm-cifar10-32"), _NONE),
        data=Data(n=256),
        attack=replace(_PAPER.attack, stages=WITHOUT_FAB, auto_steps=50, queries=1000, sanity_n=32, batch=128),
        choosing=replace(_PAPER.choosing, times=(58,)),
        released=replace(_CPU.released, n=128, eps=(0, 5, 10, 20, 30, 50)),
        method=replace(_PAPER.method, sampler_steps=20, batch=128),
        at_training=replace(_PAPER.at_training, steps=2000, batch=128, attack_steps=4, attack_ratio=0.4),
        adaptive=replace(_CPU.adaptive, n=64, steps=20, eot=4, square_n=16, square_queries=200),
        sweeps=replace(_CPU.sweeps, n=96, features_n=128, block=16, quality_n=128, cost_n=16),
    ),
    "paper": _PAPER,
}


def check(config: Config) -> None:
    """Refuse combinations that cannot work, in one sentence each."""
    check_seeds(config.seeds)
    if not config.models.first.data:
        raise UserError("--models.first.data names the first set, e.g. scenes:ten.")
    protected = [p for p in (config.models.first, config.models.second) if p.data]
    names = [p.data for p in protected]
    if len(set(names)) < len(names):
        raise UserError(f"both sets are {names[0]}: give --models.second.data another one, or an empty name.")
    for p in protected:
        if p.restrict and p.data != "named:ImageNet30":
            raise UserError(
                f"only ImageNet30 is a part of ImageNet's 1,000 classes, so `restrict` cannot hold for {p.data}."
            )
        if p.restrict and config.data.source.wnids:
            raise UserError("`restrict` knows the logits of Hendrycks's classes only: leave out --data.source.wnids.")
    times = config.sweeps.times
    if list(times) != sorted(set(times)) or not times or 2.0 not in times or times[-1] * config.attack.linf > 1:
        raise UserError(
            "--sweeps.times takes growing multiples of ε, 2 among them, none beyond the pixel range; got "
            f"{' '.join(map(str, times)) or 'nothing'}."
        )
    lengths = {len(getattr(config.choosing, grid)) for grid in ("times", "guidances", "pulls")}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(
            "--choosing.times, --choosing.guidances and --choosing.pulls are grids of one size, so that no method has "
            "more tries than another."
        )
    unknown = [name for name in config.choosing.guidances if name not in VARIANTS]
    if unknown:
        raise UserError(f"there is no guidance {unknown[0]!r}: choose from {', '.join(VARIANTS)}.")
    if not {0.0, 1.0} <= set(config.sweeps.scales):
        raise UserError("--sweeps.scales has 0 (no guidance) and 1 (the chosen scale) among its multiples.")
    if config.sweeps.features_n % config.sweeps.block:
        got = f"{config.sweeps.features_n} and {config.sweeps.block}"
        raise UserError(f"--sweeps.features-n is a multiple of --sweeps.block; got {got}.")
