"""Everything that can be set for PMG-AFT: one dataclass, one preset per scale.
`python -m papers.pmg_aft.train --scale cpu --help` lists it."""

from dataclasses import dataclass, replace

from shared.attacks.autoattack import STANDARD, WITHOUT_FAB, Stage
from shared.data.catalogue import Source
from shared.data.named import SIXTEEN
from shared.data.scene_sets import FINE_TUNING, HOLD_OUT, ZERO_SHOT
from shared.errors import UserError
from shared.experiment.scale import Options, check_seeds
from shared.options import Batch, Count, Eps, Positive, Seed, Share, Weight, Whole, show_eps
from shared.steps.pretrained import PHOTOS
from shared.training.adversarial import Tuning
from shared.training.contrastive import ContrastiveConfig


@dataclass(frozen=True)
class Model:
    """The CLIP that is fine-tuned."""

    name: str = "scenes-vit-s8"
    """open_clip name, or a small configuration of shared/models/configs."""
    pretrained: str = "zoo:scenes-vit-s8"
    """zoo:<name>, `pretrain` (train it first on the captions of the training pictures), an open_clip tag, a local
    checkpoint, or `random`."""
    pretraining: ContrastiveConfig = ContrastiveConfig()
    """Only for `pretrain`."""


@dataclass(frozen=True)
class Data:
    """What is trained and tested on; names as in shared.data.catalogue."""

    train: str = f"scenes:{FINE_TUNING}"
    """The set that is fine-tuned on."""
    seen: str = f"scenes:{FINE_TUNING}"
    """Test pictures of its classes."""
    zero_shot: tuple[str, ...] = tuple(f"scenes:{name}" for name in ZERO_SHOT)
    """Sets whose classes are not trained on; averages are over these."""
    holdout: tuple[str, ...] = (f"scenes:{HOLD_OUT}",)
    """Further sets that are reported, but not averaged."""
    other_train: tuple[str, ...] = ("scenes:colour_shape", "scenes:surface_shape")
    """Training sets of the table on training data."""
    source: Source = Source()
    n: Whole = 128
    """Test pictures per set (0: all)."""
    label: str = ""
    """What to call the pictures on the page, e.g. "CIFAR-10 (JPEG copy)"."""


@dataclass(frozen=True)
class Attack:
    """The threat model and the attacks of the evaluation; ε is in pixels of [0, 1] and is also that of training."""

    eps: Eps = 8 / 255
    """ε of the ℓ∞ ball."""
    train_steps: Count = 2
    """PGD steps in training, each of size ε."""
    steps: Count = 10
    """PGD steps in evaluation."""
    ratio: Positive = 1.0
    """Step size in evaluation as a multiple of ε (the released code: 1)."""
    kappa: Weight = 50.0
    """κ of the margin attack that this line of work calls CW."""
    long_steps: Whole = 0
    """Steps of a longer PGD for the main table's models (0: none; the literature's PGD-100)."""
    multiples: tuple[Positive, ...] = (1, 2, 4)
    """Factors on ε of the table over strengths."""
    auto_n: Whole = 24
    """Pictures per set under the AutoAttack-style cascade (0: all of n)."""
    auto_stages: tuple[Stage, ...] = WITHOUT_FAB
    """Stages of the cascade; AutoAttack's `standard`, as in the paper, has FAB-T, too."""
    auto_steps: Count = 20
    """Iterations of each APGD run in the cascade."""
    auto_targets: Count = 3
    """Target classes of APGD-T."""
    auto_queries: Count = 100
    """Queries of Square."""
    sanity_n: Count = 32
    """Pictures of the seen set on which the sanity checks of the attack run, for every model."""
    strong_steps: Count = 20
    """Steps of the gate's PGD."""
    batch: Batch = 128
    """Pictures per evaluation batch."""
    seed: Seed = 0
    """Of the attacks' random starts."""


@dataclass(frozen=True)
class Choosing:
    """How the peak learning rate of every method and reading is chosen: `steps.SeenAccuracy`, on the first seed."""

    multiples: tuple[Positive, ...] = (1.0, 3.0, 10.0, 30.0)
    """The grid: multiples of `tuning.lr` (of `fare.lr` for FARE), growing; with one there is no choice."""
    n: Whole = 128
    """Validation pictures of the seen classes (0: all)."""


@dataclass(frozen=True)
class Sweeps:
    """What `make reproduce-pmg_aft` varies beyond the main comparison; nothing here is needed for the headline."""

    alphas: tuple[Weight, ...] = (0.0, 1.0, 4.0)
    betas: tuple[Weight, ...] = (0.0, 1.0, 4.0)
    last: tuple[Count, ...] = (2, 14)
    """Numbers of trained parameter tensors in the table on partial fine-tuning."""
    curve: tuple[Whole, ...] = (0, 10, 40, 80)
    """Updates after which the curve along training is taken, besides the last."""
    curve_n: Count = 32
    """Pictures per set on the curve."""
    test_batches: tuple[Batch, ...] = (64, 1024, 4096, 16384)
    """Test batch sizes of the batch-size figure, growing. Small pictures have larger gradients per pixel, so it takes
    larger batches to lose them."""
    test_batch_n: Count = 128
    """Pictures of that figure."""
    cost_steps: Count = 5
    """Updates timed per method for the table of costs."""


@dataclass(frozen=True)
class Gates:
    """What must hold of the undefended model before any defence is measured."""

    clean: Share = 0.80
    """Least zero-shot accuracy on the seen classes …"""
    times_chance: Weight = 20.0
    """… or so many times chance, whichever is less."""
    zero_shot_margin: Share = 0.10
    """Least accuracy above chance on every zero-shot set."""
    robust: Share = 0.05
    """Largest accuracy on the seen classes under PGD with `attack.strong_steps`."""
    enforce: bool = True
    """Stop if a gate fails (off where the model is not meant to be any good)."""


@dataclass(frozen=True)
class Config(Options):
    """PMG-AFT."""

    model: Model = Model()
    data: Data = Data()
    attack: Attack = Attack()
    tuning: Tuning = Tuning()
    """Optimiser and schedule of all methods but FARE."""
    fare: Tuning = Tuning()
    """Optimiser and schedule of FARE, which has a recipe of its own."""
    choosing: Choosing = Choosing()
    sweeps: Sweeps = Sweeps()
    gates: Gates = Gates()


_SMALL = Tuning(steps=160, batch=64, lr=1e-3, warmup=5)
_CPU = Config(tuning=_SMALL, fare=replace(_SMALL, optimizer="adamw", lr=1e-3, weight_decay=1e-4))
_PHOTO_TUNING = Tuning(steps=100, batch=64, lr=1e-3, warmup=10)

_PAPER = Config(
    model=Model("ViT-B-32-quickgelu", "openai"),
    data=Data(
        "named:TinyImageNet",
        "named:TinyImageNet",
        tuple(f"named:{name}" for name in SIXTEEN if name != "TinyImageNet"),
        (),
        ("named:cifar100",),
        n=0,
    ),
    attack=Attack(
        eps=1 / 255,
        long_steps=100,
        auto_n=1000,
        auto_stages=STANDARD,
        auto_steps=100,
        auto_targets=9,
        auto_queries=5000,
        sanity_n=256,
        strong_steps=100,
        batch=256,
    ),
    tuning=Tuning(steps=3910, batch=256, lr=5e-5, warmup=1000, every=100, workers=12),
    fare=Tuning(
        steps=3910, batch=256, lr=1e-5, warmup=274, optimizer="adamw", weight_decay=1e-4, every=100, workers=12
    ),
    choosing=Choosing((1.0,)),
    sweeps=Sweeps(
        alphas=(0.0, 0.5, 1.0, 2.0, 4.0),
        betas=(0.0, 0.5, 1.0, 2.0, 4.0),
        last=(2, 14, 38),
        curve=(0, 391, 1173, 2346),
        curve_n=1000,
        test_batches=(64, 128, 256, 512),
        test_batch_n=1024,
        cost_steps=20,
    ),
    gates=Gates(clean=0.50, times_chance=20.0, zero_shot_margin=0.0, robust=0.05),
)
_SMALLEST = ("EuroSAT", "Caltech101", "cifar10", "cifar100", "Flowers102", "DTD", "OxfordPets", "Caltech256")

PRESETS = {
    "smoke": replace(
        _CPU,
        seeds=(0, 1),
        data=Data(zero_shot=("scenes:shape", "scenes:colour"), other_train=("scenes:colour_shape",), n=16),
        attack=Attack(
            steps=3, auto_n=4, auto_steps=3, auto_targets=2, auto_queries=3, sanity_n=4, strong_steps=4, batch=16
        ),
        tuning=replace(_SMALL, steps=3, batch=8, warmup=1),
        choosing=Choosing((1.0, 3.0), n=8),
        fare=replace(_SMALL, steps=3, batch=8, warmup=1, optimizer="adamw", lr=1e-4),
        sweeps=Sweeps(
            alphas=(0.0, 1.0),
            betas=(0.0, 1.0),
            last=(2,),
            curve=(0, 1),
            curve_n=4,
            test_batches=(4, 8),
            test_batch_n=8,
            cost_steps=1,
        ),
        gates=Gates(enforce=False),
    ),
    "cpu": _CPU,
    "photos": Config(
        model=Model("photos-vit-s8", "pretrain", PHOTOS),
        data=Data(
            "folder:seen", "folder:seen", ("folder:unseen",), ("folder:all",), ("folder:all",), Source(size="32"), n=300
        ),
        attack=Attack(eps=4 / 255, auto_n=60, sanity_n=48),
        tuning=_PHOTO_TUNING,
        fare=replace(_PHOTO_TUNING, optimizer="adamw", lr=1e-3, weight_decay=1e-4),
        sweeps=Sweeps(curve=(0, 10, 25, 50), curve_n=100, test_batch_n=256),
        gates=Gates(clean=0.70, times_chance=3.0, zero_shot_margin=0.30),
    ),
    # ViT-B/32 and TinyImageNet with the eight smallest of the sets (3.5 GB). An RTX 3090 needs 1.06 s for an update
    # of PMG-AFT at batch 128 and 0.65 s for TeCoA's (README): 300 updates of 18 trainings are an hour and a half.
    # Rates are the published ones, warm-ups their share of the updates; the evaluation has 200 pictures a set and no
    # sweep of long attacks: as long again.
    "evening": replace(
        _PAPER,
        seeds=(0,),
        data=replace(_PAPER.data, zero_shot=tuple(f"named:{name}" for name in _SMALLEST), n=200),
        attack=replace(
            _PAPER.attack,
            long_steps=0,
            auto_n=64,
            auto_stages=WITHOUT_FAB,
            auto_steps=20,
            auto_targets=3,
            auto_queries=200,
            sanity_n=64,
            strong_steps=20,
            batch=128,
        ),
        tuning=replace(_PAPER.tuning, steps=300, batch=128, warmup=77),
        fare=replace(_PAPER.fare, steps=300, batch=128, warmup=21),
        sweeps=replace(
            _PAPER.sweeps,
            alphas=(0.0, 1.0),
            betas=(0.0, 1.0),
            last=(2,),
            curve=(0, 30, 100, 200),
            curve_n=100,
            test_batch_n=512,
        ),
    ),
    "paper": _PAPER,
}


def check(config: Config) -> None:
    """Refuse combinations that cannot work, in one sentence each."""
    check_seeds(config.seeds)
    grid = config.choosing.multiples
    if list(grid) != sorted(set(grid)) or not grid:
        raise UserError("--choosing.multiples must be one or more different numbers in growing order.")
    if (largest := config.attack.eps * max(config.attack.multiples, default=1)) > 1:
        said = f"--attack.multiples of --attack.eps go up to {show_eps(largest)}"
        raise UserError(f"{said}, beyond the pixel range: make them smaller.")
