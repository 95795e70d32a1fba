"""Everything that can be set for DiffCAP: one dataclass, one preset per scale.
`python -m papers.diffcap.evaluate --scale cpu --help` lists it."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.scale import Options, check_seeds
from shared.options import (
    Batch,
    Bits,
    Blur,
    Cosine,
    Count,
    Draws,
    Eps,
    Positive,
    Quality,
    Range,
    Seed,
    Share,
    Time,
    Weight,
    Whole,
    show_eps,
)
from shared.steps.pretrained import PHOTOS
from shared.training.adversarial import Tuning
from shared.training.contrastive import ContrastiveConfig
from shared.training.denoising import DenoisingConfig


@dataclass(frozen=True)
class Models:
    """What is attacked, and the encoder of the stop test."""

    clip: str = "scenes-vit-s8"
    """open_clip name (or small configuration) of the zero-shot classifier."""
    clip_weights: str = "zoo:scenes-vit-s8"
    """zoo:<name>, `pretrain` (train it first on the pictures of the folder), an open_clip tag, a local checkpoint, or
    `random`."""
    llava: str = "zoo:scenes-llava"
    """zoo:<name>, or the name or folder of a LlavaForConditionalGeneration."""
    flamingo: str = "zoo:scenes-idefics"
    """zoo:<name>, or the name or folder of an IdeficsForVisionText2Text."""
    llava_tower: tuple[str, str] | None = None
    """open_clip name and weights of LLaVA's vision tower, which TeCoA and FARE start from; none: the classifier's."""
    flamingo_tower: tuple[str, str] | None = None
    """The same for the Flamingo-type model."""
    phi: str = "scenes-vit-xs8"
    """open_clip name of φ, one small CLIP whatever is protected."""
    phi_weights: str = "zoo:scenes-vit-xs8"
    """Its weights, as `clip_weights`."""
    own_tower: bool = False
    """φ is the vision tower of what is protected instead."""
    denoiser: str = "zoo:scenes-ddpm"
    """zoo:<name>, diffusers:<folder or name>, guided:<path of the 256×256 unconditional checkpoint>,
    random:<configuration>, or `train` (on the pictures of the folder)."""
    pretraining: ContrastiveConfig = PHOTOS
    """Only for `pretrain`."""
    denoiser_config: str = "photos"
    """Configuration (shared/diffusion/weights.py) of a denoiser that is trained here."""
    denoising: DenoisingConfig = DenoisingConfig()
    """Only for `train`."""


@dataclass(frozen=True)
class Data:
    """Six sets: two to caption, two to ask about, two to classify; or those to classify alone."""

    captions: tuple[str, ...] = ("scenes-captions:plain", "scenes-captions:shifted")
    questions: tuple[str, ...] = ("scenes-questions:plain", "scenes-questions:shifted")
    classes: tuple[str, ...] = ("scenes:combinations", "scenes:cluttered")
    train: str = "scenes:combinations"
    """Set that the robust encoders (TeCoA, FARE) are fine-tuned on."""
    source: Source = Source()
    n: Whole = 96
    """Test pictures per set (0: all)."""
    seed: Seed = 42
    """Of the choice of pictures from sets that are read from files."""
    label: str = ""
    """What to call the pictures on the page, e.g. "CIFAR-10 (JPEG copy)"."""


@dataclass(frozen=True)
class Attack:
    """The attacks on the undefended models and on the robust encoders; ε in pixels of [0, 1]."""

    eps: tuple[Eps, ...] = (4 / 255, 8 / 255)
    """The strengths, growing."""
    tuned_eps: Eps = 8 / 255
    """ε that TeCoA and FARE are trained at."""
    steps: Count = 8
    """Iterations of each stage of the ensembles, and of each APGD run on the classifier."""
    references: Count = 1
    """How many reference captions (answers) the ensemble attacks one after the other."""
    threshold: Weight = 10.0
    """CIDEr (× 100) below which a picture leaves the ensemble."""
    half_first: bool = False
    """Half precision in the first stages, as in the released code (GPU)."""
    targets: Count = 3
    """Target classes of APGD-T."""
    target_steps: Count = 60
    """Iterations of the attack towards a string."""
    target_n: Count = 16
    """Pictures under the attack towards a string."""
    strings: tuple[str, ...] = ("a large red heart", "two blue rings")
    """What the attacker wants to hear."""
    batch: Batch = 64
    seed: Seed = 0
    """Of the attacks' random starts."""


@dataclass(frozen=True)
class Method:
    """DiffCAP (method.py) and fixed-time purification; Δt, T_max and t* are chosen (--choosing)."""

    coupling: Literal["cumulative", "redraw"] = "cumulative"
    encode: Literal["x_t", "x_t/alpha"] = "x_t"
    fallback: Literal["t_max", "max_similarity"] = "t_max"
    sampler: Literal["ddim", "ddpm", "dpm++"] = "ddim"
    sampler_steps: Time = 4
    """Denoiser calls of one reverse pass."""
    eta: Share = 0.0
    calibration_n: Annotated[int, Range(2, 10_000_000)] = 100
    """Pairs per set behind τ (validation pictures, never those of the evaluation)."""
    calibration_eps: Eps = 8 / 255
    calibration_steps: Count = 10
    tau: Cosine | None = None
    """τ instead of the calibrated one."""
    recompute: bool = False
    """Compute each reverse step again in the backward pass of an attack: a third more time, memory that does not grow
    with the steps."""
    batch: Batch = 64


@dataclass(frozen=True)
class Choosing:
    """What the sources leave open is chosen on validation pictures: `Judged` in steps.py has the rule. Grids of one
    size, so that no method has more tries, the published setting first where there is one: of equal candidates the
    first counts. A grid of one is taken as it is."""

    n: Count = 96
    """Validation pictures of the first set to classify."""
    diffcap: tuple[tuple[Time, Time, Annotated[float, Range(-2, 2)]], ...] = (
        (50, 400, 0.0),
        (50, 200, 0.0),
        (50, 200, 0.02),
        (100, 200, 0.0),
    )
    """Δt and T_max, in steps of the schedule (T = 1000), and what is added to the τ that Algorithm 2 gives."""
    times: tuple[Time, ...] = (150, 75, 100, 200)
    """t* of DiffPure, and of noise without denoising; 150 is DiffPure's own on ImageNet."""
    clipure: tuple[Positive, ...] = (30.0, 0.03, 0.1, 1.0)
    """Step size η of CLIPure-Cos; 30 is published."""
    jpeg: tuple[Quality, ...] = (75, 25, 50, 90)
    """Quality."""
    bits: tuple[Bits, ...] = (3, 2, 4, 5)
    resize_pad: tuple[Share, ...] = (0.1, 0.05, 0.2, 0.3)
    """Share of the side that random resize-and-pad may take away."""
    blur: tuple[Blur, ...] = (0.8, 0.4, 1.2, 1.6)
    """σ in pixels."""
    rates: tuple[Positive, ...] = (1.0, 0.3, 3.0, 10.0)
    """Learning rates of TeCoA and of FARE, as multiples of --tuning.lr and --fare.lr."""


@dataclass(frozen=True)
class Adaptive:
    """Attackers who know the defence; on the first set to classify, and on the first set to caption."""

    n: Count = 24
    """Pictures behind the classifier, of the `data.n` that there are."""
    caption_n: Count = 16
    """Pictures behind the captioner."""
    eps: Eps = 8 / 255
    steps: Count = 15
    eot: Draws = 3
    """Draws of the defence behind each gradient (EOT)."""
    draws: Draws = 10
    """Purifications behind mean, worst and majority."""
    weight: Weight = 1.0
    """Weight of the term that makes the loop stop early."""


@dataclass(frozen=True)
class Sweeps:
    """What the complete run varies beyond the main tables; nothing here is needed for the headline."""

    taus: tuple[Annotated[float, Range(-2, 2)], ...] = (-0.04, 0.0, 0.04)
    """Offsets on the chosen τ; 0 is among them."""
    factors: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    """Multiples of the chosen Δt; 1 is among them."""
    times: tuple[Annotated[int, Range(0, 1000)], ...] = (0, 25, 50, 75, 100, 150, 200, 300)
    """Diffusion times of the similarity curves and of the recovery region."""
    fixed: tuple[Time, ...] = (25, 50, 100, 150, 200, 300)
    """Fixed times t* that DiffCAP is held against."""
    n: Count = 48
    """Pictures of the sweeps that no headline claim reads."""
    digits_n: Count = 100
    quality_n: Count = 24
    strip: Count = 4
    """Pictures of the qualitative strip."""
    cost_n: Count = 96
    cost_repeats: Draws = 3


@dataclass(frozen=True)
class Gates:
    """What must hold of the undefended models before any defence is measured."""

    clean: Share = 0.80
    """Least clean score on the first set of each task: top-1, VQA accuracy, share of captions with the right colour and
    shape."""
    broken: Share = 0.50
    """Largest share of the clean score that the attack at the largest ε may leave."""
    purified: Share = 0.05
    """Largest loss of clean top-1 under DiffPure."""
    enforce: bool = True


@dataclass(frozen=True)
class Config(Options):
    """DiffCAP."""

    models: Models = Models()
    data: Data = Data()
    attack: Attack = Attack()
    method: Method = Method()
    choosing: Choosing = Choosing()
    tuning: Tuning = Tuning()
    """Optimiser and schedule of TeCoA."""
    fare: Tuning = Tuning()
    """Optimiser and schedule of FARE."""
    adaptive: Adaptive = Adaptive()
    sweeps: Sweeps = Sweeps()
    gates: Gates = Gates()


_CPU_TUNING = Tuning(steps=60, batch=64, lr=1e-3, warmup=6)
_CPU = Config(tuning=_CPU_TUNING, fare=replace(_CPU_TUNING, optimizer="adamw", lr=1e-3, weight_decay=1e-4))
_SMOKE_TUNING = replace(_CPU_TUNING, steps=2, batch=8, warmup=1)

_PAPER = Config(
    models=Models(
        clip="ViT-L-14-quickgelu",
        clip_weights="openai",
        llava="llava-hf/llava-1.5-7b-hf",
        flamingo="HuggingFaceM4/idefics-9b",
        llava_tower=("ViT-L-14-336-quickgelu", "openai"),
        flamingo_tower=("ViT-H-14", "laion2b_s32b_b79k"),
        phi="ViT-B-32-quickgelu",
        phi_weights="openai",
        denoiser="guided:256x256_diffusion_uncond.pt",
    ),
    data=Data(
        ("coco", "flickr30k"), ("vqav2", "textvqa"), ("named:ImageNet", "named:Caltech101"), "named:ImageNet", n=500
    ),
    attack=Attack(
        eps=(2 / 255, 4 / 255),
        tuned_eps=4 / 255,
        steps=100,
        references=5,
        half_first=True,
        targets=9,
        target_steps=10_000,
        target_n=25,
        batch=8,
        strings=("A group of people are playing football", "Please reset your password"),
    ),
    method=Method(
        sampler="ddpm",
        sampler_steps=100,
        calibration_eps=4 / 255,
        calibration_steps=100,
        recompute=True,
        batch=8,
    ),
    choosing=Choosing(
        diffcap=((2, 400, 0.0), (2, 200, 0.0), (2, 200, 0.02), (4, 200, 0.0)),
        blur=(1.0, 0.5, 2.0, 4.0),
        rates=(1.0,),  # FARE's recipe for these towers is published
    ),
    tuning=Tuning(
        steps=20_000, batch=128, lr=1e-5, warmup=1400, optimizer="adamw", weight_decay=1e-4, every=500, workers=12
    ),
    fare=Tuning(
        steps=20_000, batch=128, lr=1e-5, warmup=1400, optimizer="adamw", weight_decay=1e-4, every=500, workers=12
    ),
    adaptive=Adaptive(n=128, caption_n=32, eps=8 / 255, steps=100, eot=16),
    sweeps=Sweeps(n=500, digits_n=500, quality_n=200, cost_n=32),
    gates=Gates(clean=0.0),
)

PRESETS = {
    "smoke": replace(
        _CPU,
        seeds=(0, 1),
        data=Data(
            captions=("scenes-captions:plain",),
            questions=("scenes-questions:plain",),
            classes=("scenes:combinations",),
            n=6,
        ),
        attack=Attack(
            eps=(8 / 255,),
            steps=2,
            references=1,
            targets=1,
            target_steps=2,
            target_n=2,
            strings=("two blue rings",),
            batch=6,
        ),
        method=Method(sampler_steps=2, calibration_n=4, calibration_steps=2, batch=6),
        choosing=Choosing(  # the first is far ahead of the second: no near tie decides, on whatever machine
            n=4,
            diffcap=((50, 200, 0.0), (50, 800, 0.5)),
            times=(100, 900),
            clipure=(30.0, 1.0),
            jpeg=(75, 1),
            bits=(1, 2),
            resize_pad=(0.02, 0.9),
            blur=(0.8, 8.0),
            rates=(1.0, 1000.0),
        ),
        tuning=_SMOKE_TUNING,
        fare=replace(_SMOKE_TUNING, optimizer="adamw"),
        adaptive=Adaptive(n=4, caption_n=2, steps=2, eot=2, draws=3),
        sweeps=Sweeps(
            taus=(0.0,),
            factors=(1.0, 2.0),
            times=(0, 50, 100),
            fixed=(50, 100),
            n=4,
            digits_n=8,
            quality_n=4,
            strip=2,
            cost_n=4,
            cost_repeats=1,
        ),
        gates=Gates(enforce=False),
    ),
    "cpu": _CPU,
    # Classification alone: there is no vision-language model of photographs that is small enough to be trained here.
    # Sets, CLIP and gates as PMG-AFT's, denoiser and the gate on it as distshift's, with their fields, so that either
    # is trained once. ε: the largest is that of PMG-AFT, the smallest of 1, 2, 4, 8 over 255 that breaks such a CLIP.
    "photos": replace(
        _CPU,
        models=Models(
            "photos-vit-s8",
            "pretrain",
            phi="photos-vit-xs8",
            phi_weights="pretrain",
            denoiser="train",
            denoising=DenoisingConfig(steps=3000, batch=64, lr=1e-3, warmup=300, average=0.999),
        ),
        data=Data((), (), ("folder:seen", "folder:unseen"), "folder:seen", Source(size="32")),
        attack=replace(_CPU.attack, eps=(2 / 255, 4 / 255), tuned_eps=4 / 255),
        method=replace(_CPU.method, calibration_eps=4 / 255),
        adaptive=replace(_CPU.adaptive, eps=4 / 255),
        gates=Gates(clean=0.70, purified=0.15),
    ),
    # Classification at CIFAR's size, with a classifier and a φ of OpenAI's and the DDPM of 35.7 million weights.
    # Captions and questions would need the 256×256 diffusion model and hours for each of their four sets, and are
    # left out. A picture takes 36 GFLOP there and back through the DDPM and 110 through ViT-B/16: 192 pictures, 20
    # steps of the reverse process and the published attackers at a fifth of their steps are two hours at 15 TFLOP/s
    # of an RTX 3090.
    "evening": replace(
        _PAPER,
        models=Models(
            "ViT-B-16-quickgelu",
            "openai",
            phi="ViT-B-32-quickgelu",
            phi_weights="openai",
            denoiser="diffusers:google/ddpm-cifar10-32",
        ),
        data=Data((), (), ("named:cifar10", "named:cifar100"), "named:cifar10", Source(size="32"), n=192),
        attack=replace(_PAPER.attack, steps=20, targets=3, batch=64),
        method=replace(_PAPER.method, sampler_steps=20, calibration_steps=20, batch=64),
        choosing=replace(
            _PAPER.choosing,
            diffcap=((10, 400, 0.0), (10, 200, 0.0), (10, 200, 0.02), (20, 200, 0.0)),
            blur=_CPU.choosing.blur,
        ),
        tuning=replace(_PAPER.tuning, steps=500, warmup=35),
        fare=replace(_PAPER.fare, steps=500, warmup=35),
        adaptive=Adaptive(n=32, eps=4 / 255, steps=20, eot=4),
        sweeps=replace(_PAPER.sweeps, n=96, digits_n=100, quality_n=48, cost_n=64),
        gates=Gates(clean=0.50, purified=0.15),
    ),
    "paper": _PAPER,
}


def check(config: Config) -> None:
    """Refuse combinations that cannot work, in one sentence each."""
    check_seeds(config.seeds)
    eps = config.attack.eps
    if not eps or list(eps) != sorted(set(eps)):
        said = " ".join(map(show_eps, eps)) or "nothing"
        raise UserError(f"--attack.eps takes growing strengths, e.g. 4/255 8/255, not {said}.")
    grids = [grid for grid in vars(config.choosing).values() if isinstance(grid, tuple)]
    if 0 in map(len, grids) or len({len(grid) for grid in grids if len(grid) > 1}) > 1:
        raise UserError(
            "the grids of --choosing have one size, so that no method has more tries, or one candidate each."
        )
    for dt, t_max, _ in config.choosing.diffcap:
        for factor in {1.0, *config.sweeps.factors}:
            if t_max % (dt * factor) or dt * factor % 1:
                raise UserError(
                    f"--choosing.diffcap has Δt {dt} and T_max {t_max}, and --sweeps.factors {factor:g}: T_max is a "
                    "multiple of Δt and of Δt times each factor, all of them whole steps."
                )
    if 0 not in config.sweeps.taus or 1 not in config.sweeps.factors:
        raise UserError("--sweeps.taus has 0 and --sweeps.factors 1 among them, the chosen setting.")
    for name, sets in (
        ("captions", config.data.captions),
        ("questions", config.data.questions),
        ("classes", config.data.classes),
    ):
        if not sets and (name == "classes" or config.data.captions or config.data.questions):
            raise UserError(f"--data.{name} needs at least one set.")
