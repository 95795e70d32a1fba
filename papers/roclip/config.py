"""Everything that can be set for RoCLIP: one dataclass, a preset per scale.
`python -m papers.roclip.evaluate --scale cpu --help` lists it."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from papers.roclip.augment import RELEASED as RELEASED_PICTURES
from papers.roclip.augment import ImageAugmentation
from papers.roclip.method import AS_RELEASED, BEFORE_V1, CROSS_MODAL, TWO_SIDED, Matching
from papers.roclip.probe import Probing
from papers.roclip.safeclip import SafeClip
from papers.roclip.training import RELEASED as RELEASED_TRAINING
from papers.roclip.training import EarlyStop, Training
from shared.attacks.triggers import check_fields
from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.scale import Options, check_batch, check_seeds
from shared.options import Count, Decay, Pairs, Part, Positive, Range, Seed, Share, Whole, shortened
from shared.steps.pretrained import FOLDER, PHOTOS
from shared.training.cleanclip import CleanClipConfig
from shared.training.contrastive import ContrastiveConfig


def _within(training: Training, pairs: int) -> Training:
    """No warm-up is longer than the training on these pairs."""
    updates = training.epochs * (pairs // max(1, training.batch))
    return replace(training, warmup=shortened(training.warmup, updates)) if updates else training


@dataclass(frozen=True)
class Models:
    """The CLIPs."""

    name: str = "scenes-vit-xs8"
    """open_clip's name, or one of shared/models/configs; pre-training begins with random weights of it."""
    tuned: str = "scenes-vit-xs8"
    """Name of the CLIP that is fine-tuned."""
    tuned_weights: str = "zoo:scenes-vit-xs8"
    """Its weights: zoo:<name>, `pretrain` (train it first on the pictures of the folder), a tag of open_clip, a local
    checkpoint, or `random`."""
    pretraining: ContrastiveConfig = PHOTOS
    """Only for `pretrain`."""


@dataclass(frozen=True)
class Data:
    """The pictures."""

    source: Source = Source()
    pairs: str = "scenes"
    """Where pairs of picture and caption come from: scenes, labelled:<set> (class names in templates), or below
    DATA_ROOT shards:<pattern> or csv:<file> (picture, caption)."""
    pretrain_n: Pairs = 8640
    """Clean pairs to pre-train on; backdoored pairs are among them, target images come on top."""
    finetune_n: Pairs = 4800
    """The same of fine-tuning."""
    main: str = "scenes:colour"
    """Set whose classes attackers name, and by which PSR, BSR and accuracy are measured (ImageNet)."""
    images: str = "validation"
    """Where target images come from: validation (of the main set), or pairs as above (those of CC's validation)."""
    images_n: Count = 512
    """How many they are chosen from."""
    n: Whole = 512
    """Test pictures per set (0: all)."""
    seed: Seed = 42
    """Of the choice of test pictures from a set."""
    downstream: tuple[str, ...] = (
        "scenes:colour",
        "scenes:shape",
        "scenes:surface",
        "scenes:background",
        "scenes:count",
        "scenes:colour_shape",
        "scenes:position",
        "scenes:low_contrast",
        "scenes:tiny",
        "scenes:textured",
    )
    """Sets of the zero-shot and linear-probe table."""
    probed: tuple[str, ...] = ("digits:all",)
    """Sets for a linear probe alone: their prompts have words that the small text tower does not know."""
    probe_n: Whole = 512
    """Training pictures of a linear probe (0: all)."""
    label: str = ""
    """What to call the pictures on the page, e.g. "CIFAR-10 (JPEG copy)"."""


@dataclass(frozen=True)
class Targets:
    """Targeted poisoning: target images, each with real captions of its adversarial class, come on top of the clean
    pairs."""

    n: Count = 64
    """Target images."""
    m: Count = 33
    """Captions of each."""
    finetune_m: Count = 20
    """The same of fine-tuning."""
    scan: Annotated[int, Range(0, 1_000_000_000)] = 0
    """Captions are searched in the first so many pairs (0: all)."""


@dataclass(frozen=True)
class Recipe:
    """A backdoor: a share of the clean pairs gets its trigger and a caption of its target class. No pair has two."""

    target: str
    """Class of the main set, by its name, or #1, #2, … by its place among them."""
    rate: Decay = 0.04
    """Share of the clean pairs (0: this backdoor is not planted)."""
    preset: Literal["cleanclip", "textbook"] = "textbook"
    """The trigger's reading, see shared/attacks/triggers."""
    fields: tuple[str, ...] = ()
    """Fields of the trigger that differ from the preset, as name=number."""
    captions: Literal["usual", "templates", "real"] = "real"
    """Of poisoned pairs; usual: what is usual for the trigger (shared/data/poison.py)."""


@dataclass(frozen=True)
class Attacks:
    """One poisoned set has all of them, each backdoor with a target class of its own."""

    targets: Targets = Targets()
    badnet: Recipe = Recipe("blue", fields=("patch=8",))
    blended: Recipe = Recipe("red", fields=("ratio=0.5",))
    wanet: Recipe = Recipe("green", 0.08, "cleanclip", ("s=20.0",))
    sig: Recipe = Recipe("yellow", 0.05, "cleanclip", ("ratio=0.5",))
    label_consistent: Recipe = Recipe("purple", captions="usual")

    @property
    def planted(self) -> tuple[str, ...]:
        """The backdoors that there are."""
        return tuple(name for name in BACKDOORS if getattr(self, name).rate)


BACKDOORS = tuple(field.name for field in fields(Attacks) if field.name != "targets")


@dataclass(frozen=True)
class Methods:
    """RoCLIP's two versions, the augmentation that it and `clip_aug` have, and the other defences."""

    images: ImageAugmentation = ImageAugmentation(shift=1, brightness=0.2)
    """Of pictures, in every epoch."""
    alpha: Decay = 0.0
    """α of the captions' static augmentation (0: none)."""
    roclip: Matching = TWO_SIDED
    """First version, of the abstract."""
    released: Matching = replace(AS_RELEASED, share=0.02, size=None)
    """Second version, of the released code."""
    before_v1: Matching = BEFORE_V1
    """The authors' repository before the first version; in the world of few targets, as the next."""
    cross_modal: Matching = CROSS_MODAL
    """Its cross-modal variant."""
    safeclip: SafeClip = SafeClip(images=ImageAugmentation(shift=1, brightness=0.2))
    """Later work."""
    cleanclip: CleanClipConfig = CleanClipConfig(steps=80, batch=128, lr=1e-3, warmup=10)
    """Of the CLIP that fine-tuning has poisoned."""
    cleanclip_n: Pairs = 4800
    """Clean pairs that it is given."""


@dataclass(frozen=True)
class Choosing:
    """How every method's peak learning rate is chosen in every regime: by `steps.CleanAccuracy`, on the first seed."""

    multiples: tuple[Positive, ...] = (1.0, 2.0, 4.0)
    """The grid: multiples of the regime's own (of `methods.cleanclip.lr` for CleanCLIP), growing, that among them;
    empty: nothing is chosen. None is smaller: at 0.3 CLIP + augmentation learns too little of the poison for the
    gates, in fine-tuning, and what a defence would gain there is what learning less gains."""
    part: Annotated[int, Range(2, 1000)] = 3
    """The stopping rule of candidates: they are trained on every so many-th pair, with as many times fewer updates and
    warm-up, but through all epochs and phases of the method."""
    n: Whole = 512
    """Validation pictures of the main set (0: all)."""


@dataclass(frozen=True)
class Few:
    """A world with few target images and no backdoor, in which the readings of the first version stand side by side."""

    pairs: Pairs = 8640
    """Clean pairs."""
    targets: Count = 32
    """Target images."""
    doses: tuple[Count, ...] = (8, 16, 24, 32, 64)
    """Captions of each that are tried, fewest first. Taken is the first with which plain CLIP learns the poison on the
    first seed, with augmentation and without."""
    margin: Share = 0.05
    """How far above the gate's bar (--gates.psr) its success has to be then: the gate is a mean over all seeds."""
    large: Pairs = 2048
    """Entries of the larger bank of `before_v1`."""
    sets: tuple[str, ...] = ("scenes:surface", "scenes:shape")
    """Sets of which zero-shot accuracy stands beside that of the main set."""
    training: Training = Training(epochs=24, batch=128, lr=1e-3, warmup=50)
    stop: EarlyStop = EarlyStop()
    """Of plain CLIP stopped early, a control."""

    def __post_init__(self):
        object.__setattr__(self, "training", _within(self.training, self.pairs))


@dataclass(frozen=True)
class Sweeps:
    """Ablations of the first version in pre-training, and strong poisoning of the second; first seed."""

    pool: tuple[Part, ...] = (0.005, 0.02, 0.1)
    """Pool sizes as shares of the pairs."""
    every: tuple[Count, ...] = (1, 2)
    """K."""
    sides: tuple[Literal["image", "text", "both"], ...] = ("image", "text", "both")
    augment: tuple[Literal["none", "images", "both"], ...] = ("none", "images")
    """What is augmented: nothing, pictures, or captions too (both)."""
    query: tuple[Literal["own", "cross"], ...] = ("own", "cross")
    start: tuple[Literal["pairs", "unit", "gaussian"], ...] = ()
    """First content of the pools (empty: not varied)."""
    refresh: tuple[Literal["matched", "always"], ...] = ()
    """When the pools take in batches (empty: not varied)."""
    alpha: Decay = 0.1
    """α of augmented captions, where `augment` is both."""
    strong: tuple[Count, ...] = (33, 66)
    """Captions per target image of strong poisoning."""
    strong_every: tuple[Count, ...] = (2, 1)
    """K under strong poisoning."""
    cost_steps: Count = 12
    """Updates timed for the cost of a step."""
    strip: Count = 6
    """Poisoned and clean pairs, each, in the picture of what a pool returns; numbers are over all of `watch_n`."""


@dataclass(frozen=True)
class Gates:
    """What must hold of plain CLIP without and with augmentation, in both regimes, before any defence is trained. Means
    over seeds."""

    psr: Share = 0.80
    """Least poison success."""
    bsr: Share = 0.80
    """Least backdoor success of each of `attacks`."""
    accuracy: Share = 0.80
    """Least zero-shot accuracy on the main set."""
    attacks: tuple[str, ...] = ("badnet", "blended", "wanet", "sig")
    """Backdoors that must take; a label-consistent patch without adversarial pictures does not, in fine-tuning at this
    scale."""
    enforce: bool = True
    """Stop where a gate fails."""


@dataclass(frozen=True)
class Config(Options):
    """RoCLIP."""

    seeds: tuple[Seed, ...] = (0, 1, 2)
    models: Models = Models()
    data: Data = Data()
    attacks: Attacks = Attacks()
    few: Few = Few()
    methods: Methods = Methods()
    pretraining: Training = Training(epochs=6, batch=128, lr=2e-3, warmup=50)
    finetuning: Training = Training(epochs=6, batch=128, lr=1e-3, warmup=20)
    choosing: Choosing = Choosing()
    probing: Probing = Probing()
    sweeps: Sweeps = Sweeps()
    gates: Gates = Gates()
    watch_n: Count = 256
    """Test pictures of the measurements at the end of every epoch; other than those of the tables where a set has
    enough."""
    more_seeds: Whole = 1
    """How many of the seeds SafeCLIP, the fine-tuned CLIPs' downstream table and, with few targets, the cross-modal
    variant and the larger bank have (0: all)."""
    together: bool = False
    """All processes train one CLIP together; otherwise each takes whole trainings, and SafeCLIP is always trained by
    one."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "pretraining", _within(self.pretraining, self.data.pretrain_n))
        object.__setattr__(self, "finetuning", _within(self.finetuning, self.data.finetune_n))

    def training(self, regime: str) -> Training:
        """Of pretrain, finetune or few."""
        return {"pretrain": self.pretraining, "finetune": self.finetuning, "few": self.few.training}[regime]


_ALL = Sweeps(start=("pairs", "gaussian"), refresh=("matched", "always"))
_CPU = Config(sweeps=Sweeps((), (), (), (), (), strong=(66,)))  # the world of few targets shows what ablations would
_MUSHROOM = {"preset": "cleanclip", "fields": (), "rate": 0.0003}

PRESETS = {
    "smoke": replace(
        _CPU,
        data=replace(
            _CPU.data,
            pretrain_n=96,
            finetune_n=64,
            images_n=16,
            n=16,
            probe_n=16,
            downstream=("scenes:colour", "scenes:shape"),
        ),
        attacks=replace(
            _CPU.attacks,
            targets=Targets(n=4, m=2, finetune_m=2),
            **{name: replace(getattr(_CPU.attacks, name), rate=0.05) for name in BACKDOORS},
        ),
        methods=replace(
            _CPU.methods,
            safeclip=replace(_CPU.methods.safeclip, alone=1, slow=1, share=0.1),
            roclip=replace(TWO_SIDED, share=0.1),
            released=replace(_CPU.methods.released, share=0.1),
            before_v1=replace(BEFORE_V1, size=64),
            cross_modal=replace(CROSS_MODAL, size=32, offset=1),
            cleanclip=CleanClipConfig(steps=2, batch=16, lr=1e-3, warmup=1),
            cleanclip_n=32,
        ),
        pretraining=Training(epochs=4, batch=32, lr=1e-3, warmup=1),
        finetuning=Training(epochs=2, batch=32, lr=1e-3, warmup=1),
        choosing=Choosing((1.0, 3.0), 2, 16),
        probing=Probing(epochs=1),
        few=Few(64, 2, (2, 3), large=96, training=Training(epochs=2, batch=32, lr=1e-3, warmup=1)),
        sweeps=replace(
            _ALL,
            pool=(0.1, 0.2),
            augment=("none", "images", "both"),
            strong=(2, 3),
            cost_steps=1,
            strip=2,
        ),
        gates=Gates(enforce=False),
        watch_n=8,
    ),
    "cpu": _CPU,
    # Recipes are those of the cpu scale where nothing is said. The generated world is learned in six epochs of 8,640
    # pairs; ten classes of photographs are not: 15,000 pairs in 12 epochs. Strengths of the poison are those of the cpu
    # scale, times each target image is seen too (33 captions × 6 epochs): 17 × 12.
    "photos": replace(
        _CPU,
        models=Models("photos-vit-xs8", "photos-vit-xs8", "pretrain"),
        data=replace(
            _CPU.data,
            source=Source(size="32"),
            pairs=f"labelled:{FOLDER}",
            pretrain_n=15_000,
            finetune_n=6_000,
            main=FOLDER,
            downstream=(FOLDER, "folder:seen", "folder:unseen"),
        ),
        attacks=replace(
            _CPU.attacks,
            targets=Targets(n=64, m=17, finetune_m=20),
            **{name: replace(getattr(_CPU.attacks, name), target=f"#{k}") for k, name in enumerate(BACKDOORS, 1)},
        ),
        pretraining=Training(epochs=12, batch=128, lr=2e-3, warmup=100),
        sweeps=replace(_CPU.sweeps, strong=(34,)),
        few=replace(_CPU.few, pairs=6_000, sets=("folder:seen", "folder:unseen")),
        gates=replace(_CPU.gates, accuracy=0.35),
    ),
    "paper": replace(
        _CPU,
        seeds=(0,),
        models=Models("RN50", "RN50-quickgelu", "openai"),
        data=Data(
            pairs="shards:cc3m/*.tar",
            pretrain_n=1_000_000,
            finetune_n=100_000,
            main="named:ImageNet",
            images="csv:cc3m_validation.csv",
            images_n=10_000,
            n=5000,
            probe_n=0,
            probed=(),
            downstream=(
                "named:cifar10",
                "named:cifar100",
                "named:ImageNet",
                "named:DTD",
                "named:OxfordPets",
                "named:Caltech101Split",
                "named:StanfordCars",
                "named:Flowers102",
                "named:Food101",
                "named:FGVC-Aircraft",
            ),
        ),
        attacks=Attacks(
            Targets(n=16, m=35, finetune_m=35, scan=1_000_000),
            Recipe("mushroom", **_MUSHROOM),
            Recipe("umbrella", **_MUSHROOM),
            Recipe("candle", **_MUSHROOM),
            Recipe("tractor", **_MUSHROOM),
            Recipe("pizza", captions="usual", **_MUSHROOM),
        ),
        methods=Methods(
            RELEASED_PICTURES,
            0.1,
            replace(TWO_SIDED, share=None, size=21_845),
            AS_RELEASED,
            safeclip=SafeClip(images=RELEASED_PICTURES),
            cleanclip=CleanClipConfig(steps=10 * (100_000 // 64), batch=64, lr=5e-6, warmup=50, every=1000, workers=8),
            cleanclip_n=100_000,
        ),
        pretraining=RELEASED_TRAINING,
        finetuning=replace(RELEASED_TRAINING, epochs=10, lr=1e-5, warmup=50, ahead=False),
        choosing=Choosing(()),
        few=Few(
            1_000_000, 16, (35, 100, 625), sets=("named:cifar10", "named:Caltech101Split"), training=RELEASED_TRAINING
        ),
        sweeps=replace(
            _ALL,
            pool=(0.002, 21_845 / 1_000_000, 0.065),
            every=(1, 2, 3, 5),
            augment=("none", "images", "both"),
            strong=(35, 100, 625),
            cost_steps=50,
        ),
        gates=replace(_CPU.gates, accuracy=0.08),
        watch_n=2000,
        together=True,
    ),
}


def check(config: Config) -> None:
    """Refuse combinations that cannot work, in one sentence each."""
    check_seeds(config.seeds)
    a, few, every = config.attacks, config.few, config.sweeps.every
    if not config.data.main or not config.data.downstream:
        raise UserError(
            "--data.main names the set whose classes attackers use, and --data.downstream one set or more, e.g. "
            "scenes:colour."
        )
    targets = [getattr(a, name).target for name in a.planted]
    if len(set(targets)) < len(targets):
        raise UserError(
            f"backdoors of one poisoned set need target classes of their own, and these are {', '.join(targets)}: "
            "change one."
        )
    if sum(getattr(a, name).rate for name in BACKDOORS) >= 1:
        raise UserError("the rates of backdoors (--attacks.<name>.rate) are shares of the pairs, together less than 1.")
    for name in BACKDOORS:
        check_fields(name, getattr(a, name).fields, f"--attacks.{name.replace('_', '-')}.fields ")
    missing = [name for name in config.gates.attacks if name not in BACKDOORS]
    if missing:
        raise UserError(f"--gates.attacks has no attack {missing[0]!r}: choose of {', '.join(BACKDOORS)}.")
    if every and config.methods.roclip.every not in every:
        raise UserError("the sweeps go through the defaults: --sweeps.every contains K of --methods.roclip.")
    tried = config.choosing.multiples
    if tried and (1.0 not in tried or list(tried) != sorted(set(tried))):
        raise UserError(
            "--choosing.multiples are multiples of the learning rates that are set, each larger than the one before, 1 "
            "among them; without any nothing is chosen."
        )
    if max(a.targets.n, few.targets) > config.data.images_n:
        raise UserError(
            "--attacks.targets.n and --few.targets are chosen among --data.images-n pictures, "
            f"{config.data.images_n}: make them smaller."
        )
    if not few.doses or list(few.doses) != sorted(set(few.doses)):
        raise UserError("--few.doses are numbers of captions, one or more, each larger than the one before.")
    data, targets = config.data, a.targets
    for option, batch, pairs in (
        ("--pretraining.batch", config.pretraining.batch, data.pretrain_n + targets.n * targets.m),
        ("--finetuning.batch", config.finetuning.batch, data.finetune_n + targets.n * targets.finetune_m),
        ("--few.training.batch", few.training.batch, few.pairs + few.targets * few.doses[0]),
        ("--methods.cleanclip.batch", config.methods.cleanclip.batch, config.methods.cleanclip_n),
    ):
        check_batch(option, batch, pairs // (config.choosing.part if tried else 1))
    if config.methods.cross_modal.offset >= few.training.epochs or config.methods.roclip.every > few.training.epochs:
        raise UserError(
            f"of {few.training.epochs} epochs in the world of few targets none would be a RoCLIP epoch: raise "
            "--few.training.epochs."
        )
    for regime in ("pretrain", "finetune"):
        for name in ("roclip", "released"):
            matching: Matching = getattr(config.methods, name)
            if not any(map(matching.active, range(1, config.training(regime).epochs + 1))):
                raise UserError(
                    f"none of {config.training(regime).epochs} epochs is a RoCLIP epoch at K = {matching.every}: train "
                    "for longer."
                )
    if config.pretraining.epochs <= config.methods.safeclip.alone + config.methods.safeclip.slow:
        raise UserError("SafeCLIP needs more epochs than its first two phases have: raise --pretraining.epochs.")
