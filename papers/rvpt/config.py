"""Everything that can be set for RVPT: one dataclass, a preset per scale. `python -m papers.rvpt.evaluate --scale cpu
--help` lists it.
"""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from papers.rvpt.baselines import LINEAR
from papers.rvpt.resistivity import Perturbations
from papers.rvpt.tables import MORE, OPTIMISED, PLACES, place, places
from papers.rvpt.tuning import Tuning
from shared.attacks.triggers import check_fields
from shared.attacks.triggers.optimised import PatchConfig
from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.scale import Options, check_batch, check_seeds
from shared.options import (
    Batch,
    Bounded,
    Cosine,
    Count,
    Decay,
    Draws,
    Eps,
    OpenShare,
    Pairs,
    Positive,
    Range,
    Seed,
    Share,
    Weight,
    Whole,
    Workers,
)
from shared.steps.pretrained import FOLDER, PHOTOS
from shared.training.cleanclip import CleanClipConfig
from shared.training.contrastive import ContrastiveConfig


@dataclass(frozen=True)
class Clip:
    """A CLIP."""

    name: str = ""
    """open_clip's name, or one of shared/models/configs; empty: there is no such backbone."""
    weights: str = ""
    """zoo:<name>, `pretrain` (train it first on the pictures of the folder), a tag of open_clip, a local checkpoint, or
    `random`."""


@dataclass(frozen=True)
class Models:
    """The victims before anyone poisons them."""

    first: Clip = Clip("scenes-vit-s8", "zoo:scenes-vit-s8")
    """Of all tables (ViT-B/32)."""
    second: Clip = Clip("scenes-vit-xs8", "zoo:scenes-vit-xs8")
    """Of table 11 (ViT-B/16)."""
    third: Clip = Clip("scenes-vit-d8", "zoo:scenes-vit-d8")
    """Of table 11 (ViT-L/14)."""
    captioner: str = "zoo:scenes-llava"
    """The vision-language model of table 7, whose tower is replaced; empty: there is none."""
    captioner_tower: Literal["first", "second", "third", "own"] = "first"
    """Which backbone's tower it has; own: `captioner_clip`."""
    captioner_clip: Clip = Clip()
    """A CLIP with the captioner's own tower, poisoned for table 7 alone (ViT-L/14 at 336 pixels)."""
    supervised: str = "train"
    """Panel (d) of figure 1: `train` (the first backbone's tower, trained here on labels), torchvision:<name>, or
    `none`.
    """
    pretraining: ContrastiveConfig = PHOTOS
    """Only for `pretrain`."""


@dataclass(frozen=True)
class Place:
    """A set to classify and the class that attackers want to be seen."""

    data: str = ""
    """Set as in shared.data.catalogue; empty: there is no such set."""
    target: str = ""
    """One of its classes, by its name, or #1, #2, … by its place among them."""
    template: str = ""
    """Prompt of a class, {} for its name; empty: the set's own prompts."""


@dataclass(frozen=True)
class Data:
    """The pictures."""

    source: Source = Source()
    main: Place = Place("scenes:colour", "blue")
    """In the place of ImageNet (banana)."""
    second: Place = Place("scenes:shape", "star")
    """In the place of Caltech101 (accordion)."""
    third: Place = Place("scenes:background", "navy")
    """In the place of OxfordPets (samoyed)."""
    shifted: tuple[str, ...] = (
        "scenes:low_contrast",
        "scenes:tiny",
        "scenes:colour_textured",
        "scenes:colour_cluttered",
    )
    """Sets with the classes of the main one (or some of them) from other domains: V2, A, R, Sketch."""
    n: Whole = 512
    """Test pictures per set (0: all)."""
    seed: Seed = 42
    """Of the choice of pictures from sets that are read from files."""
    pairs: str = "scenes"
    """Where pairs of picture and caption come from: scenes, labelled:<set> (class names in templates), or below
    DATA_ROOT shards:<pattern> or csv:<file> (picture, caption).
    """
    captioned: str = "scenes-captions"
    """Set behind the captions of table 7 (shared.data.vision_language)."""
    retrieval: str = "scenes"
    """Pairs to retrieve among (table 7): scenes, or csv:<file>; empty: there are none."""
    label: str = ""
    """What to call the pictures on the page, e.g. "CIFAR-10 (JPEG copy)"."""


@dataclass(frozen=True)
class Recipe(Bounded):
    """How one attack poisons a CLIP."""

    strengths: tuple[str, ...] = ()
    """What is tried of the trigger, weakest first, as name=number (the side of an optimised patch is patch=5): the
    weakest whose poisoned CLIP passes the gates is taken. None: it is as `fields` say.
    """
    preset: Literal["cleanclip", "textbook"] = "textbook"
    """The trigger's reading, see shared/attacks/triggers."""
    fields: tuple[str, ...] = ()
    """Fields of the trigger that differ from the preset, as name=number."""
    pairs: Pairs = 10_240
    """Pairs that are fine-tuned on."""
    rate: OpenShare = 0.2
    """Share of them that is poisoned."""
    steps: Count = 80
    """Updates."""
    batch: Batch = 128
    """Pairs per update."""
    lrs: tuple[Positive, ...] = (1e-3,)
    """Peak learning rates, tried in this order until the attack passes its gates; the last is kept in any case."""
    warmup: Whole = 15
    """Updates of linear warm-up."""
    captions: Literal["usual", "templates", "real"] = "usual"
    """Of poisoned pairs; usual: what is usual for the trigger (shared/data/poison.py)."""
    every: Whole = 0
    """Updates between checkpoints of an unfinished run (0: none)."""
    workers: Workers = 0
    """Processes that read pairs ahead; for pictures in files."""


@dataclass(frozen=True)
class Attacks:
    """The attacks: table 1's six, then ours. Settings of the small scales: see README for how they were found."""

    badnet: Recipe = Recipe(("patch=4", "patch=5"))
    blended: Recipe = Recipe(("ratio=0.2", "ratio=0.4"))
    issba: Recipe = Recipe(("strength=0.1",), steps=160)
    wanet: Recipe = Recipe(("s=5.0", "s=8.0"), fields=("k=16",), steps=200)
    trojvqa: Recipe = Recipe(("patch=4", "patch=5"))
    badclip: Recipe = Recipe(("patch=4", "patch=5"), captions="templates")
    sig: Recipe = Recipe(("amplitude=0.16", "amplitude=0.24"))
    badclip_published: Recipe = Recipe(captions="templates")
    badnet_textbook: Recipe = Recipe()
    blended_textbook: Recipe = Recipe()
    more: tuple[Literal["sig", "badnet_textbook", "blended_textbook"], ...] = ("sig",)
    """Which of ours are measured."""
    trojvqa_patch: PatchConfig = PatchConfig(steps=200, lr=0.02, cosine=1.0)
    """How TrojVQA's patch is optimised."""
    badclip_patch: PatchConfig = PatchConfig(steps=200, lr=0.02, contrastive=1.0, triplet=500.0)
    """How BadCLIP's patch is optimised."""
    published_patch: str = ""
    """A picture of the patch that BadCLIP's authors published, which is then measured beside ours; empty: it is not."""
    further_rate: Decay = 0.1
    """Share of poisoned pairs against the further sets (0: that of the recipe)."""
    further_lrs: tuple[Positive, ...] = (2e-4, 4e-4, 8e-4)
    """Learning rates against the further sets, of which the first that passes is kept (none: those of the recipe)."""
    further_steps: Whole = 200
    """Updates against the further sets (0: those of the recipe)."""
    patch_pairs: Pairs = 2048
    """Pairs behind an optimised patch."""
    downstream: Literal["badnet", "blended", "badclip"] = "badnet"
    """Attack of table 7 (the paper does not say which)."""

    def recipe(self, attack: str, place: str = "main") -> Recipe:
        """The recipe of an attack by name, on the main set or a further one."""
        recipe = getattr(self, attack)
        if place == "main":
            return recipe
        changes = {"rate": self.further_rate, "lrs": self.further_lrs, "steps": self.further_steps}
        return replace(recipe, **{name: value for name, value in changes.items() if value})


@dataclass(frozen=True)
class Method:
    """RVPT, and what its relatives share with it."""

    first: Annotated[int, Range(0, 1000)] = 1
    """D, the number of blocks without prompts (3 of 12 in the paper)."""
    length: Annotated[int, Range(1, 10_000)] = 8
    """b, prompts per layer."""
    std: Weight = 0.02
    """Of the Gaussian that prompts are drawn from (unknown in the paper)."""
    alpha: Weight = 2.0
    """α, weight of the repulsion."""
    shots: Count = 16
    """Pictures per class."""
    drop_target: bool = False
    """Table 4: take the missing class out of the softmax too (unknown in the paper)."""
    tuning: Tuning = Tuning(epochs=40, lr=0.02)
    """Optimiser and schedule."""


@dataclass(frozen=True)
class Baselines:
    """What RVPT is compared with."""

    cleanclip: CleanClipConfig = CleanClipConfig(steps=60, batch=64, lr=1e-3, warmup=5)
    cleanclip_pairs: Pairs = 6400
    """Clean pairs for CleanCLIP and for the contrastive fine-tuning of table 8."""
    gentle: tuple[str, ...] = ("wanet", "issba")
    """Attacks against which CleanCLIP takes `gentle_lr`."""
    gentle_lr: Weight = 0.0
    """0: that of all."""
    linear: Tuning = LINEAR
    """The linear probe, on the same shots."""
    full: Tuning = Tuning(epochs=30, lr=0.01)
    """Full fine-tuning of the vision tower (table 8)."""
    words: Annotated[int, Range(1, 1000)] = 8
    """Learned context words of adversarial prompt tuning (table 12)."""
    words_tuning: Tuning = Tuning(epochs=20, lr=0.02)
    visual_tuning: Tuning = Tuning(epochs=10, lr=0.02)
    """Adversarial tuning of visual prompts (table 12, ours)."""


@dataclass(frozen=True)
class Tried:
    """The settings that defences are given to choose from, as many for each (none: they are as they are set).

    A defender has no triggered picture, so the rule is the likelihood of clean held-out ones (`scores.HeldOut`).
    """

    lengths: tuple[Annotated[int, Range(1, 10_000)], ...] = (8, 64)
    """Prompts per layer, of VPT and RVPT, at each of `lrs`."""
    lrs: tuple[Positive, ...] = (0.02, 0.3)
    probe_lrs: tuple[Positive, ...] = (0.001, 0.01, 0.1, 1.0)
    cleanclip_lrs: tuple[Positive, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    attack: Literal["badnet", "blended", "badclip"] = "badnet"
    """Whose poisoned CLIP they are chosen on; all attacks then have them."""


@dataclass(frozen=True)
class Adversary:
    """Attackers of another kind: PGD (table 12), and one who knows the defence (ours)."""

    eps: Eps = 8 / 255
    """ε of the ℓ∞ ball."""
    steps: Count = 10
    """PGD steps of 2.5·ε/steps."""
    n: Whole = 128
    """Pictures of table 12."""
    sanity_n: Count = 8
    """Pictures of the checks of PGD."""
    train_steps: Count = 3
    """PGD steps inside adversarial tuning."""
    patch: PatchConfig = PatchConfig(steps=150, lr=0.02, contrastive=1.0, triplet=500.0)
    """How the patch against the prompted model is optimised."""
    seed: Seed = 0


@dataclass(frozen=True)
class Sweeps:
    """Figure 3 and the others beyond the tables; one seed."""

    shots: tuple[Count, ...] = (1, 8, 16)
    alpha: tuple[Weight, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    length: tuple[Annotated[int, Range(1, 10_000)], ...] = (1, 8, 16, 64)
    depth_output: tuple[Annotated[int, Range(1, 1000)], ...] = (1, 2, 3)
    """Numbers of prompted layers, counted from the output."""
    depth_input: tuple[Annotated[int, Range(1, 1000)], ...] = (1, 3)
    """Numbers of prompted layers, counted from the input."""
    margin: tuple[Cosine, ...] = (-1.0, 1.0)
    blocks: Annotated[int, Range(1, 1000)] = 4
    """L of the first backbone: which of the depths is the default's."""
    prompts: tuple[str, ...] = ("{}",)
    """Table 10's prompts besides that of the set."""
    perturbations: Perturbations = Perturbations()
    resistivity_n: Count = 256
    """Pictures behind figures 1, 7 and 8."""
    maps: Count = 3
    """Pictures of figure 4."""
    points: Count = 200
    """Pictures of figure 5."""
    captions_n: Count = 64
    """Pictures of table 7, captioning."""
    candidates: Count = 256
    """Pictures of table 7, retrieval."""
    retrieval_poisoned: Count = 32
    """Poisoned candidates of table 7, one at a time."""
    cost_repeats: Draws = 2
    supervised: Tuning = Tuning(epochs=8, batch=64, lr=0.02)
    """Training of panel (d)'s vision transformer, on `supervised_n` labelled pictures."""
    supervised_n: Count = 4096


@dataclass(frozen=True)
class Gates:
    """What must hold of every attack before any defence is measured."""

    clean: Share = 0.80
    """Least clean accuracy of the clean models on the main set."""
    asr: Share = 0.80
    """Least attack success rate."""
    recognised: Share = 0.90
    """Of the pictures that a CLIP which nobody has poisoned recognises, the least share that it recognises with the
    trigger, too: one that covers what should be recognised leaves nothing to save.
    """
    drop: Share = 0.02
    """Largest loss of clean accuracy against the clean model, on the main set."""
    further_drop: Share = 0.06
    """The same on the further sets, where the small models are at their limits: on "shape", fine-tuning on clean pairs
    alone costs 1.6 points.
    """
    enforce: bool = True
    """Stop where the clean model fails, and keep what else fails out of the claims."""

    def allowed(self, place: str) -> float:
        """The largest loss of clean accuracy on a place's set."""
        return self.drop if place == "main" else self.further_drop


@dataclass(frozen=True)
class Config(Options):
    """RVPT."""

    models: Models = Models()
    data: Data = Data()
    attacks: Attacks = Attacks()
    method: Method = Method()
    baselines: Baselines = Baselines()
    tried: Tried = Tried()
    adversary: Adversary = Adversary()
    sweeps: Sweeps = Sweeps()
    gates: Gates = Gates()
    more_seeds: Whole = 1
    """How many of the seeds the tables beyond the first have (0: all)."""
    batch: Batch = 256
    """Pictures at a time, where nothing is trained."""


def _every(attacks: Attacks, **changes) -> Attacks:
    """All recipes changed."""
    recipes = {
        f.name: replace(getattr(attacks, f.name), **changes)
        for f in fields(attacks)
        if isinstance(getattr(attacks, f.name), Recipe)
    }
    return replace(attacks, **recipes)


def _smoke_strengths(attacks: Attacks) -> Attacks:
    """One attack has two strengths, so that a choice is made."""
    single = _every(attacks, strengths=())
    return replace(single, badnet=replace(single.badnet, strengths=attacks.badnet.strengths[:2]))


def _textbook(attacks: Attacks) -> Attacks:
    """The attacks that are named so have their own papers' triggers."""
    names = ("badnet_textbook", "blended_textbook")
    return replace(attacks, **{name: replace(getattr(attacks, name), preset="textbook") for name in names})


def _stronger(attacks: Attacks) -> Attacks:
    """The last strength of every grid, and one beyond it."""
    more = {
        "badnet": "patch=7",
        "blended": "ratio=0.6",
        "issba": "strength=0.2",
        "wanet": "s=12.0",
        "trojvqa": "patch=7",
        "badclip": "patch=7",
        "sig": "amplitude=0.32",
    }
    recipes = {name: getattr(attacks, name) for name in more}
    changed = {name: replace(one, strengths=(*one.strengths[-1:], more[name])) for name, one in recipes.items()}
    return replace(attacks, **changed)


_CPU = Config()
_PHOTO = "a photo of a {}."  # with and without the article and the full stop, the paper is not of one mind
_PAPER_RECIPE = {
    "preset": "cleanclip",
    "captions": "usual",
    "strengths": (),
    "pairs": 500_000,
    "rate": 0.003,
    "steps": 5 * (500_000 // 128),
    "batch": 128,
    "lrs": (1e-6, 1e-5),
    "warmup": 50,
    "every": 1000,
    "fields": (),
    "workers": 8,
}
_CLEANING = CleanClipConfig(steps=10 * (250_000 // 64), batch=64, lr=5e-6, warmup=50, every=1000, workers=8)
_TUNING = Tuning(epochs=50, batch=32, lr=0.002, every=500, workers=8)

_FEWER = replace(_TUNING, epochs=20)
_PAPER = replace(
    _CPU,
    models=Models(
        Clip("ViT-B-32-quickgelu", "openai"),
        Clip("ViT-B-16-quickgelu", "openai"),
        Clip("ViT-L-14-quickgelu", "openai"),
        "llava-hf/llava-1.5-13b-hf",
        "own",
        Clip("ViT-L-14-336-quickgelu", "openai"),
        "torchvision:vit_b_32",
    ),
    data=Data(
        main=Place("named:ImageNet", "banana", _PHOTO),
        second=Place("named:Caltech101CoOp", "accordion", _PHOTO),
        third=Place("named:OxfordPets", "samoyed", "a photo of a {}, a type of pet."),
        shifted=("named:ImageNetV2", "named:ImageNetA", "named:ImageNetR", "named:ImageNetSketch"),
        n=10_000,
        pairs="shards:cc3m/*.tar",
        captioned="coco",
        retrieval="csv:imagenet_captions.csv",
    ),
    attacks=replace(
        _textbook(_every(_CPU.attacks, **_PAPER_RECIPE)),
        more=MORE,
        further_rate=0.0,
        further_lrs=(),
        further_steps=0,
        patch_pairs=10_000,
        trojvqa_patch=PatchConfig(patch=16, cosine=1.0),
        badclip_patch=PatchConfig(patch=16, contrastive=1.0, triplet=500.0),
    ),
    method=Method(first=3, length=50, tuning=_TUNING),
    baselines=Baselines(
        _CLEANING,
        250_000,
        gentle_lr=3e-6,
        full=_TUNING,
        words=32,
        words_tuning=replace(_TUNING, epochs=100),
        visual_tuning=_TUNING,
    ),
    tried=Tried((), (), (), ()),
    adversary=replace(_CPU.adversary, n=0, patch=PatchConfig(patch=16, contrastive=1.0, triplet=500.0)),
    sweeps=replace(
        _CPU.sweeps,
        blocks=12,
        shots=(1, 2, 4, 8, 16, 32),
        alpha=(0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
        length=(5, 10, 25, 50, 100),
        depth_output=(1, 3, 6, 9, 12),
        depth_input=(1, 3, 6, 9, 12),
        margin=(-1.0, -0.5, 0.0, 0.5, 1.0),
        prompts=("{}", "###### {}"),
        resistivity_n=5000,
        captions_n=5000,
        candidates=512,
        retrieval_poisoned=150,
        points=1000,
    ),
    gates=Gates(clean=0.55, recognised=0.85, further_drop=0.02),
    batch=256,
)

PRESETS = {
    "smoke": replace(
        _CPU,
        seeds=(0, 1),
        data=replace(_CPU.data, n=16),
        attacks=replace(
            _smoke_strengths(_every(_CPU.attacks, pairs=64, steps=2, batch=32, warmup=1, rate=0.25)),
            further_lrs=(5e-4,),
            further_steps=0,
            patch_pairs=64,
            trojvqa_patch=PatchConfig(steps=2, batch=8, lr=0.02, cosine=1.0),
            badclip_patch=PatchConfig(steps=2, batch=8, lr=0.02, contrastive=1.0, triplet=500.0),
        ),
        method=replace(_CPU.method, shots=1, length=2, tuning=Tuning(epochs=1, lr=0.02)),
        baselines=replace(
            _CPU.baselines,
            cleanclip=CleanClipConfig(steps=2, batch=16, lr=1e-3, warmup=1),
            cleanclip_pairs=32,
            linear=replace(LINEAR, epochs=1),
            full=Tuning(epochs=1, lr=0.01),
            words_tuning=Tuning(epochs=1, lr=0.02),
            visual_tuning=Tuning(epochs=1, lr=0.02),
        ),
        tried=Tried((2,), (0.02, 0.3), (0.01, 0.1), (3e-4, 1e-3)),
        adversary=replace(
            _CPU.adversary,
            steps=1,
            n=4,
            sanity_n=2,
            train_steps=1,
            patch=PatchConfig(steps=2, batch=8, lr=0.02, contrastive=1.0, triplet=500.0),
        ),
        sweeps=replace(
            _CPU.sweeps,
            shots=(1, 2),
            alpha=(0.0, 2.0),
            length=(1, 2),
            depth_output=(1, 3),
            depth_input=(1,),
            margin=(-1.0, 1.0),
            resistivity_n=8,
            maps=1,
            points=12,
            captions_n=4,
            candidates=24,
            retrieval_poisoned=2,
            cost_repeats=1,
            supervised=Tuning(epochs=1, batch=16, lr=0.02),
            supervised_n=64,
        ),
        gates=Gates(enforce=False),
    ),
    "cpu": _CPU,
    # Two small CLIPs that other papers have as well; no photographs of other domains, no captions and no captioner. The
    # recipes are those of the cpu scale but for what nobody could know of photographs: each poisoning has the first of
    # two learning rates that passes, and grids of triggers begin where those of the cpu scale end. Photographs are
    # recognised less often than drawn scenes, and of 512 pictures at 70 % a loss of 2 points is within one standard
    # error of a proportion: the gate asks for 4.
    "photos": replace(
        _CPU,
        models=Models(Clip("photos-vit-s8", "pretrain"), Clip("photos-vit-xs8", "pretrain"), Clip(), captioner=""),
        data=Data(
            Source(size="32"),
            Place(FOLDER, "#1"),
            Place("folder:seen", "#2"),
            Place("folder:unseen", "#1"),
            (),
            pairs=f"labelled:{FOLDER}",
            retrieval="",
        ),
        attacks=_stronger(_every(_CPU.attacks, lrs=(3e-4, 1e-3))),
        gates=Gates(clean=0.50, drop=0.04),
    ),
    # ViT-B/32, the paper's two further sets, 10,000 pairs of CC3M; at ten times the rate 300 of them are poisoned.
    # One training of prompts on 16 shots of 100 classes, 20 epochs, takes about 100 s at 15 TFLOP/s of an RTX 3090,
    # and there are 60; a poisoning takes 150 s at each learning rate: three hours.
    "evening": replace(
        _PAPER,
        seeds=(0,),
        models=Models(_PAPER.models.first, Clip(), Clip(), captioner="", supervised=_PAPER.models.supervised),
        data=Data(
            main=_PAPER.data.second,
            second=_PAPER.data.third,
            third=Place(),
            shifted=(),
            n=1000,
            pairs=_PAPER.data.pairs,
            retrieval="",
        ),
        attacks=replace(
            _every(_PAPER.attacks, pairs=10_000, rate=0.03, steps=5 * (10_000 // 128), lrs=(1e-5, 5e-5)),
            more=("sig",),
            patch_pairs=2000,
        ),
        method=replace(_PAPER.method, tuning=_FEWER),
        baselines=replace(
            _PAPER.baselines,
            cleanclip=replace(_CLEANING, steps=5 * (10_000 // 64)),
            cleanclip_pairs=10_000,
            full=_FEWER,
            words_tuning=_FEWER,
            visual_tuning=_FEWER,
        ),
        adversary=replace(_PAPER.adversary, n=500),
        sweeps=replace(
            _PAPER.sweeps,
            shots=(1, 8, 16),
            alpha=(0.0, 0.5, 1.0, 2.0, 4.0),
            length=(5, 50),
            depth_output=(6, 9),
            depth_input=(3, 9),
            margin=(-1.0, 1.0),
            prompts=("{}",),
            resistivity_n=500,
        ),
        gates=replace(_PAPER.gates, clean=0.80),
    ),
    "paper": _PAPER,
}


def check(config: Config) -> None:
    """Refuse combinations that cannot work, in one sentence each."""
    check_seeds(config.seeds)
    if not config.data.main.data or not config.models.first.name:
        raise UserError(
            "--data.main.data and --models.first.name name the main set and the main backbone, e.g. scenes:colour, "
            "scenes-vit-s8."
        )
    for name in places(config):
        if not place(config, name).target:
            raise UserError(
                f"--data.{name}.target names the class of {place(config, name).data} that attackers want to be seen."
            )
    supervised = config.models.supervised
    if supervised not in ("train", "none") and not supervised.startswith("torchvision:"):
        raise UserError(
            f"--models.supervised {supervised!r} is not understood: use train, torchvision:<name>, or none."
        )
    m, s = config.method, config.sweeps
    if m.alpha not in s.alpha or m.shots not in s.shots or m.length not in s.length:
        raise UserError(
            "the sweeps go through the defaults: --sweeps.alpha, --sweeps.shots and --sweeps.length must contain "
            "those of --method."
        )
    if not m.first < s.blocks >= max(s.depth_output + s.depth_input, default=1):
        raise UserError(
            f"--method.first is below the number of blocks, --sweeps.blocks {s.blocks}, and --sweeps.depth-output and "
            "--sweeps.depth-input go up to it: make them smaller."
        )
    t = config.tried
    tried = (len(t.lengths) * len(t.lrs), len(t.probe_lrs), len(t.cleanclip_lrs))
    if len(set(tried)) > 1:
        raise UserError(
            f"--tried gives prompts, linear probe and CleanCLIP {tried} settings to choose from: give each as many."
        )
    b = config.baselines
    check_batch("--baselines.cleanclip.batch", b.cleanclip.batch, b.cleanclip_pairs)
    own = ((m.length, t.lengths), (m.tuning.lr, t.lrs), (b.linear.lr, t.probe_lrs), (b.cleanclip.lr, t.cleanclip_lrs))
    if any(grid and value not in grid for value, grid in own):
        raise UserError(
            "--tried must contain the settings of --method and --baselines: add them, or leave the grids empty."
        )
    for attack, recipe in vars(config.attacks).items():
        if not isinstance(recipe, Recipe):
            continue
        option = f"--attacks.{attack.replace('_', '-')}"
        check_batch(f"{option}.batch", recipe.batch, recipe.pairs)
        name = attack.partition("_")[0]
        check_fields(name, recipe.fields, f"{option}.fields ")
        if name not in OPTIMISED:
            for strength in recipe.strengths:
                check_fields(name, (*recipe.fields, strength), f"{option}.strengths ")
        if not recipe.lrs:
            raise UserError(f"{option}.lrs are empty: give at least one learning rate.")
    if any(
        p.count("{}") != 1 for p in (*s.prompts, *(t for t in (place(config, name).template for name in PLACES) if t))
    ):
        raise UserError(
            "prompts (--sweeps.prompts, --data.<place>.template) have one {} each, where the class name goes."
        )
