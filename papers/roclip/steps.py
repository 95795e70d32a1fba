"""What is computed for RoCLIP: CLIPs that are trained on poisoned pairs, and the numbers that are measured on them.

`model` says what is trained for a row of a table; `number` says what the tags of a number mean. What has become of the
pairs of a training stands in results/<scale>/roclip/poison/<regime>__<seed>-<version>__<attack>.jsonl, for people:
steps make it again.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.utils.data import Dataset

from papers.roclip.augment import CaptionAugmentation
from papers.roclip.config import Config
from papers.roclip.method import Matching, neighbours
from papers.roclip.poisons import Poisoned, labelled_targets, unlabelled_targets
from papers.roclip.pool import NOISE, Pool
from papers.roclip.probe import (
    InMemory,
    Probing,
    Watch,
    classifier,
    embedded,
    ensemble,
    linear_probe,
    predict,
    sentences_of,
    similarity,
    targets_of,
)
from papers.roclip.safeclip import SafeClip, SafeTrained, safeclip
from papers.roclip.tables import CHOSEN, COSTED, MATCHED, default, in_name, rate
from papers.roclip.training import EarlyStop, Method, Training, make_pools, train
from papers.roclip.training import Trained as Outcome
from papers.roclip.yours import Mine, train_by
from shared.attacks.triggers import at_test
from shared.data.base import LabelledImages, Subset, subset
from shared.data.language import TEMPLATES
from shared.data.pairs import PairSubset
from shared.data.poison import Held
from shared.data.scene_sets import SceneSet
from shared.data.targets import Target
from shared.errors import UserError
from shared.experiment.leaves import Backbone, Pictures
from shared.experiment.step import Lab, Measured, Tensors, Trained, Values, free, once
from shared.experiment.store import slug
from shared.metrics import backdoor
from shared.metrics.costs import clock
from shared.models.clip import create_clip
from shared.models.sources import locate
from shared.models.victim import ZeroShot, tell_apart, text_matrix
from shared.report.shown import YOURS
from shared.steps.backdoor import Aim, Pairs, Poison, Seen, Stamp, side
from shared.steps.choice import CandidateScore, Choice, Settings, settled
from shared.steps.pretrained import FOLDER, Pretrained, Told, Untrained, given_clip
from shared.steps.yours import Code
from shared.training.cleanclip import cleanclip
from shared.training.loop import Diverged

ONE_TEMPLATE = "a photo of a {}."
TUNING = 1000  # seeds of the pairs to fine-tune on begin here; those to pre-train on at 0
CLEANING = 2000  # … and those of CleanCLIP's pairs
FEWER = 3000  # … and those of the world of few targets
STOPPED = "stopped"  # the part, and the tag, of what early stopping has left
REPEATS = 5  # of a timed training
IN_MEMORY = 4096  # pictures of a set that are read once


# ---- sets ------------------------------------------------------------------------------------------------------------


def targets(lab: Lab, spec: str) -> list[Target]:
    """Every class of a set, with how it is said."""
    return lab.once(("targets", spec), lambda: [Aim(spec, name).said(lab) for name in lab.data(spec).classes])


def sentences(lab: Lab, spec: str) -> list[list[str]]:
    """Of each class of a set: the templates of captions in the scenes world, the 80 of CLIP for ImageNet, the set's own
    prompt elsewhere."""
    if spec.startswith("scenes:"):
        return sentences_of(targets(lab, spec), TEMPLATES)
    data = lab.data(spec)
    if spec == "named:ImageNet":
        return [[fill(name) for fill in OPENAI_IMAGENET_TEMPLATES] for name in data.classes]
    return [[prompt] for prompt in data.prompts]


def said_once(lab: Lab, spec: str) -> list[list[str]]:
    """The same for what is asked after every epoch: ImageNet's classes in one of 80 templates.

    80,000 sentences would take the text tower several times as long as the pictures take the image tower, and in every
    epoch anew, as training has changed it.
    """
    if spec != "named:ImageNet":
        return sentences(lab, spec)
    return [[ONE_TEMPLATE.format(name)] for name in lab.data(spec).classes]


def chosen(lab: Lab, pictures: Pictures) -> LabelledImages:
    """A choice of pictures as a set of its own; in memory where they are few."""

    def make() -> LabelledImages:
        part = Subset(pictures.open(lab), pictures.rows(lab))
        return InMemory(part) if pictures.n and len(part) <= IN_MEMORY else part

    return lab.once(("chosen", pictures), make)


@dataclass(frozen=True)
class Validation:
    """n pictures of a set that are neither of its training nor of its test split: of a scenes set; of a set in files,
    those of its validation pictures that come after the first `used`, which choose something."""

    spec: str
    n: int
    used: int = free(0)
    seed: int = free(0)

    def identity(self, lab: Lab) -> list:
        """Their number and contents."""
        return [self.n, self.open(lab).version]

    @once
    def open(self, lab: Lab) -> LabelledImages:
        """The pictures. Raises UserError where there are fewer."""
        kind, _, name = self.spec.partition(":")
        if kind == "scenes":
            return SceneSet(name, "validation", self.n, side(lab, self.spec))
        data = lab.data(self.spec, "validation")
        rows = subset(data, self.used + self.n, self.seed)[self.used :]
        if len(rows) < self.n:
            raise UserError(
                f"{self.spec} has {len(data)} validation pictures, of which {self.used} choose settings, and {self.n} "
                "more are wanted for target images: lower --choosing.n, --watch-n and --data.images-n."
            )
        return Subset(data, rows)


# ---- poisoned pairs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DoseChoice(Choice):
    """How many captions each target image is given, by `Takes`."""

    weight: ClassVar[float] = 1e9  # begun first: a whole world waits for it

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        scores: list[Tensor] = []
        means: list[float] = []
        for candidate in self.candidates:
            took = max(means, default=0.0) >= self.rule.least
            scores.append(torch.zeros_like(scores[0]) if took else self.rule.score(lab, candidate))
            means.append(float(scores[-1].mean()))
        return {"scores": torch.stack(scores)}, {"chosen": str(means.index(max(means)))}


@dataclass(frozen=True)
class Poisons:
    """The pairs of a training: clean ones with backdoors among them, and after them target images.

    spec: the set whose classes attackers name. images: what n target images are chosen from, each with m captions of
    another class, or with as many as a choice has settled on; captions are searched in the first `scan` pairs (0: all).
    seed: of all choices.
    """

    clean: Pairs
    backdoors: tuple[Poison, ...]
    spec: str
    images: Validation | Pairs
    n: int
    m: int | DoseChoice
    scan: int
    seed: int
    row: str = free("")

    def dose(self, lab: Lab) -> int:
        """Captions of each target image."""
        return settled(lab, self.m)

    def size(self, lab: Lab) -> int:
        """How many pairs there are."""
        return self.clean.n + self.n * self.dose(lab)

    @once
    def open(self, lab: Lab) -> Poisoned:
        """The pairs with their manifests, drawn when they are asked for."""
        clean = self.clean.open(lab)
        images = self.images.open(lab)
        said = targets(lab, self.spec)
        scan, m = self.scan or None, self.dose(lab)
        if isinstance(images, LabelledImages):
            found, classes = labelled_targets(images, self.n, self.seed)
        else:
            found, classes = unlabelled_targets(clean, len(images), said, m, self.n, self.seed, scan)
        planted = {}
        for one in self.backdoors:
            planted[one.stamp.attack] = (one.stamp.open(lab), said[one.aim.label(lab)], one.rate, one.captions)
        return Poisoned(clean, planted, images, found, [said[k] for k in classes], m, self.seed, scan)

    @once
    def held(self, lab: Lab) -> Poisoned | Held:
        """The pairs; those that are drawn on the spot, or in memory anyhow, are made once."""
        few = self.clean.spec == "scenes" or self.clean.spec.startswith("labelled:")
        return Held(self.open(lab)) if few else self.open(lab)

    def target_images(self, lab: Lab) -> tuple[Tensor, list[int], list[str]]:
        """Pictures (N, 3, H, W) of the target images, their adversarial classes, the first caption that each was
        given."""
        manifest = self.open(lab).manifests["targets"]
        found, labels = targets_of(manifest, lab.data(self.spec).classes)
        first = {row.picture: row.caption for row in reversed(manifest.rows)}
        return self.images.open(lab).__getitems__(found)[0], labels, [first[i] for i in found]

    def clean_pairs(self, lab: Lab, n: int) -> tuple[Tensor, list[str]]:
        """The first n pairs that nobody poisoned."""
        manifests = self.open(lab).manifests
        bad = {row.index for p in self.backdoors for row in manifests[p.stamp.attack].rows}
        indices = [i for i in range(min(self.clean.n, n + len(bad))) if i not in bad][:n]
        return self.clean.open(lab).__getitems__(indices)

    def of_kind(self, lab: Lab, kind: Literal["targets", "none"], n: int) -> tuple[Tensor, list[str]]:
        """Poisoned pairs (targets), or n clean ones (none)."""
        return self.target_images(lab)[::2] if kind == "targets" else self.clean_pairs(lab, n)


# ---- CLIPs -----------------------------------------------------------------------------------------------------------


Begin = Backbone | Pretrained | Untrained  # what a training begins with


def start(lab: Lab, clip: Begin, seed: int) -> nn.Module:
    """A CLIP to train: with random weights of a seed, or as it came."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(clip, Backbone):
            return clip.fresh(lab).to(lab.device)
        return create_clip(clip.name, locate(clip.weights, clip.option)[0]).to(lab.device)


@dataclass(frozen=True)
class Takes:
    """Whether a dose takes in plain CLIP, however it is trained: for each target image whether it is taken for its
    adversarial class by the CLIP, of those of all `methods`, that takes the fewest so.

    A dose takes where that share is at least `least`. The choice is the first that does: those after it are not tried
    and score 0, and of one that a method withstands no other method is tried. No defence has any part in it.
    tunings: of `Training`, one for each method.
    """

    clip: Begin
    poisons: Poisons
    methods: tuple[Method, ...]
    tunings: tuple[Settings, ...]
    least: float

    def score(self, lab: Lab, candidate: int) -> Tensor:
        """(n,) of the target images."""
        poisons = replace(self.poisons, m=candidate)
        fewest = torch.ones(poisons.n)
        x, classes, _ = poisons.target_images(lab)
        for method, tuning in zip(self.methods, self.tunings, strict=True):
            training = tuning.open(lab)
            clip = start(lab, self.clip, training.seed)
            train(clip, poisons.held(lab), method, training, name=f"{poisons.m} captions per target image")
            said = predict(classifier(clip, ensemble(clip, sentences(lab, poisons.spec))), x)
            hits = torch.from_numpy(backdoor.clean_accuracy(said, classes)).float()
            fewest = min(fewest, hits, key=lambda taken: float(taken.mean()))
            if fewest.mean() < self.least:
                break
        return fewest


@dataclass(frozen=True)
class Contrastive(Trained):
    """A CLIP, pre-trained or fine-tuned on poisoned pairs.

    It leaves its weights after the last epoch and, of RoCLIP, after the last epoch of the other kind, its pools, and
    what was measured at the end of every epoch: on `watched` pictures, and on as many clean pairs. tuning: of
    `Training`. stop: also the weights after the epoch at which early stopping by `watched` pictures would have ended.
    nth: of a candidate, which is trained on every so many-th pair (0: on all) and leaves its weights alone.
    """

    clip: Begin
    poisons: Poisons
    method: Method | SafeClip
    tuning: Settings
    watched: Pictures
    seed: int
    stop: EarlyStop | None = None
    nth: int = 0
    row: str = free("")
    _: KW_ONLY  # else it would stand first, where the base class has it
    together: bool = free(False)

    @property
    def name(self) -> str:
        return self.row

    @property
    def training(self) -> Training:
        """How it is trained, but for the learning rate where that is chosen."""
        return self.tuning.given

    @property
    def weight(self) -> float:
        """Clean pairs that pass through both towers."""
        passes = 2.2 if isinstance(self.method, SafeClip) else 1.0
        return passes * self.training.epochs * self.poisons.clean.n / max(1, self.nth)

    @property
    def matching(self) -> Matching | None:
        """Of RoCLIP."""
        return self.method.matching if isinstance(self.method, Method) else None

    def kind(self, epoch: int) -> str:
        """What the name of an epoch is: roclip_epoch or plain_epoch."""
        return "roclip_epoch" if self.matching is not None and self.matching.active(epoch) else "plain_epoch"

    @property
    def epochs(self) -> dict[str, int]:
        """Which epochs' weights are kept, by name: the last one, of RoCLIP the last of either kind."""
        if self.matching is None:
            return {"last": self.training.epochs}
        return {self.kind(epoch): epoch for epoch in range(1, self.training.epochs + 1)}

    def part(self, scored: str) -> str | None:
        """The part that has the weights after an epoch, by name; None where there is no such epoch."""
        if scored == "last":
            return ""
        if scored == STOPPED and self.stop is not None:
            return STOPPED
        if scored not in self.epochs:
            return None
        return "" if self.epochs[scored] == self.training.epochs else scored

    @property
    def parts(self) -> tuple[str, ...]:
        if self.nth:
            return ("",)
        pools = () if self.matching is None else ("pools",)
        stopped = () if self.stop is None else (STOPPED,)
        return ("", *(scored for scored in self.epochs if self.part(scored)), *stopped, *pools)

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        poisoned, pairs = self.poisons.open(lab), self.poisons.held(lab)
        options = {"checkpoint": lab.partial(self), "name": self.name}
        if self.nth:
            clip = start(lab, self.clip, self.seed)
            return attempted(clip, lambda: self._train(lab, clip, every(self.nth, pairs), **options))
        accelerator = lab.accelerator if self.together else None
        first = accelerator is None or accelerator.is_main_process
        if first:
            folder = lab.path(self).parents[1] / "poison"
            poisoned.write_manifests(folder, f"{self.poisons.row}-{poisoned.version[:12]}")
        clip = start(lab, self.clip, self.seed)
        watch = self._watch(lab)
        kept = {self.epochs[part]: part for part in self.parts if part in self.epochs}

        def after_epoch(epoch: int, clip: nn.Module, pools: dict[str, Pool]) -> dict:
            if epoch in kept:
                lab.keep(self, clip.state_dict(), kept[epoch])
            row = watch(epoch, clip, pools)
            if first and self.stop is not None:
                self._stop(lab, epoch, clip, sum(row["accuracy"]) / len(row["accuracy"]))
            return row

        found = self._train(lab, clip, pairs, accelerator, after_epoch=after_epoch, **options)
        if self.matching is not None:
            lab.keep(self, nn.ModuleDict(found.pools).state_dict(), "pools")
        if accelerator is not None:
            accelerator.free_memory()
        return clip.state_dict(), {"history": json.dumps(found.history)}

    def _train(
        self, lab: Lab, clip: nn.Module, pairs: Dataset, accelerator: Accelerator | None = None, **options: object
    ) -> Outcome | SafeTrained:
        training = self.tuning.open(lab)
        if self.nth:
            training = replace(training, warmup=training.warmup // self.nth)
        if isinstance(self.method, SafeClip):
            return safeclip(clip, pairs, self.method, training, **options)
        return train(clip, pairs, self.method, training, accelerator, **options)

    def _stop(self, lab: Lab, epoch: int, clip: nn.Module, accuracy: float) -> None:
        if epoch == 1 or self.stop.better(epoch, accuracy, *json.loads(lab.facts(self, STOPPED)["best"])):
            lab.keep(self, clip.state_dict(), STOPPED, {"best": json.dumps([epoch, accuracy])})

    def ended(self, lab: Lab, part: str) -> int:
        """The epoch after which it was as a part has it."""
        if part == STOPPED:
            return json.loads(lab.facts(self, STOPPED)["best"])[0]
        return self.epochs[part] if part else self.training.epochs

    def _watch(self, lab: Lab) -> Watch:
        """What is measured at the end of every epoch: on training pictures of the main set, which train no CLIP."""
        seen = Seen(self.watched)
        images, classes, said = self.poisons.target_images(lab)
        x, y = seen.clean(lab)
        triggered = None
        for first in self.poisons.backdoors[:1]:
            triggered = (replace(seen, stamp=first.stamp).pictures(lab), y, first.aim.label(lab))
        similar = {"targets": (images, said), "none": self.poisons.clean_pairs(lab, self.watched.n)}
        return Watch(said_once(lab, self.watched.spec), (images, classes), triggered, (x, y), similar)

    def open(self, lab: Lab, part: str = "") -> nn.Module:
        """It as it was after an epoch; it may be changed."""
        return filled(lab, self.clip, self.seed, lab.weights(self, part))

    @once
    def history(self, lab: Lab) -> list[dict]:
        """What was measured at the end of every epoch."""
        return json.loads(lab.facts(self)["history"])

    def pools(self, lab: Lab) -> dict[str, Pool]:
        """The pools at the end, by modality."""
        pools = make_pools(self.open(lab), self.matching, self.poisons.size(lab), lab.device)
        nn.ModuleDict(pools).load_state_dict(lab.weights(self, "pools"))
        return pools


@dataclass(frozen=True)
class ByYours(Contrastive):
    """The same with a loss of the user's own, by one process."""

    def _train(
        self, lab: Lab, clip: nn.Module, pairs: Dataset, accelerator: Accelerator | None = None, **options: object
    ) -> Outcome:
        training = self.tuning.open(lab)
        if self.nth:
            training = replace(training, warmup=training.warmup // self.nth)
        return train_by(self.method, clip, pairs, training, **options)


def every(nth: int, pairs: Dataset) -> PairSubset:
    """The pairs of a candidate."""
    return PairSubset(pairs, range(0, len(pairs), nth))


def attempted(clip: nn.Module, training: Callable[[], object]) -> tuple[Tensors, dict[str, str]]:
    """What a candidate leaves: a CLIP that is trained; one whose training diverges is as it was, and says so."""
    before = copy.deepcopy(clip.state_dict())
    try:
        training()
    except Diverged:
        return before, {"diverged": "yes"}
    return clip.state_dict(), {}


def filled(lab: Lab, clip: Begin, seed: int, weights: Tensors) -> nn.Module:
    """A CLIP with trained weights."""
    found = start(lab, clip, seed)
    found.load_state_dict(weights)
    return found.requires_grad_(False).eval()


@dataclass(frozen=True)
class Cleaned(Trained):
    """A poisoned CLIP that CleanCLIP has fine-tuned on clean pairs. tuning: of `CleanClipConfig`; nth: as of
    `Contrastive`, and as many times fewer updates."""

    poisoned: Contrastive
    clean: Pairs
    tuning: Settings
    nth: int = 0
    row: str = free("")
    _: KW_ONLY  # else it would stand first, where the base class has it
    together: bool = free(False)

    @property
    def name(self) -> str:
        return self.row

    @property
    def poisons(self) -> Poisons:
        """What it was poisoned with."""
        return self.poisoned.poisons

    def part(self, scored: str) -> str | None:
        """As of `Contrastive`."""
        return "" if scored == "last" else None

    def make(self, lab: Lab) -> Tensors | tuple[Tensors, dict[str, str]]:
        clip, pairs, cleaning = self.poisoned.open(lab), self.clean.open(lab), self.tuning.open(lab)
        if self.nth:
            steps, warmup = (n // self.nth for n in (cleaning.steps, cleaning.warmup))
            short, fewer = replace(cleaning, steps=max(1, steps), warmup=warmup), every(self.nth, pairs)
            return attempted(clip, lambda: cleanclip(clip, fewer, short, lab.partial(self), name=self.name))
        accelerator = lab.accelerator if self.together else None
        cleanclip(clip, pairs, cleaning, lab.partial(self), accelerator, name=self.name)
        if accelerator is not None:
            accelerator.free_memory()
        return clip.state_dict()

    def open(self, lab: Lab, part: str = "") -> nn.Module:
        """As of `Contrastive`."""
        return filled(lab, self.poisoned.clip, self.poisoned.seed, lab.weights(self, part))


# ---- the numbers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A CLIP as it was after one of its epochs."""

    model: Contrastive | Cleaned
    part: str = ""

    @once
    def open(self, lab: Lab) -> nn.Module:
        """It, opened once; not to be changed."""
        return self.model.open(lab, self.part)

    def victim(self, lab: Lab, spec: str) -> ZeroShot:
        """The zero-shot classifier of a set."""

        def make() -> ZeroShot:
            clip, said = self.open(lab), sentences(lab, spec)
            tell_apart(clip, lab.data(spec), [first for first, *_ in said])
            return classifier(clip, ensemble(clip, said))

        return lab.once(("victim", self, spec), make)

    def says(self, lab: Lab, seen: Seen) -> np.ndarray:
        """(N,) classes of pictures."""
        victim = self.victim(lab, seen.data.spec)
        return lab.once(("says", self, seen), lambda: predict(victim, seen.pictures(lab)).numpy())


@dataclass(frozen=True)
class PoisonSuccess(Measured):
    """PSR: whether a target image is taken for its adversarial class."""

    snapshot: Snapshot

    def make(self, lab: Lab) -> Values:
        poisons = self.snapshot.model.poisons
        x, classes, _ = poisons.target_images(lab)
        said = predict(self.snapshot.victim(lab, poisons.spec), x)
        return Values(backdoor.clean_accuracy(said, classes), "share")


@dataclass(frozen=True)
class Accuracy(Measured):
    """Whether a picture is classified as what it shows, zero-shot."""

    snapshot: Snapshot
    seen: Seen

    def make(self, lab: Lab) -> Values:
        right = backdoor.clean_accuracy(self.snapshot.says(lab, self.seen), self.seen.truth(lab))
        return Values(right, "share", skipped=self.seen.skipped(lab))


@dataclass(frozen=True)
class CleanAccuracy:
    """The rule of every learning rate: zero-shot accuracy on clean validation pictures.

    A defender does not know the poison, so no target image, no trigger and no test picture has a part in it: they are
    pictures of the main set's training split, which train no CLIP (target images may be of its validation split; of a
    folder both are of the validation split, and not the same). A training that diverged scores 0.
    """

    data: Pictures

    def score(self, lab: Lab, candidate: Contrastive | Cleaned) -> Tensor:
        """(n,) of the pictures."""
        right = torch.from_numpy(Accuracy(Snapshot(candidate), Seen(self.data)).make(lab).values)
        return torch.zeros_like(right) if "diverged" in lab.facts(candidate) else right


@dataclass(frozen=True)
class BackdoorSuccess(Measured):
    """BSR: whether a triggered picture that does not show the target is called the target."""

    snapshot: Snapshot
    seen: Seen
    aim: Aim

    def make(self, lab: Lab) -> Values:
        label = self.aim.label(lab)
        truth = self.seen.truth(lab)
        values = backdoor.asr(self.snapshot.says(lab, self.seen), truth, label)
        without = backdoor.asr(self.snapshot.says(lab, replace(self.seen, stamp=None)), truth, label)
        return Values(values, "share", sanity=self._sanity(lab, values, without), skipped=self.seen.skipped(lab))

    def _sanity(self, lab: Lab, triggered: np.ndarray, untriggered: np.ndarray) -> dict:
        """The backdoor is no bias: without the trigger the target is named less often, or for a tenth of the pictures
        at most; and a picture's trigger is the same in any batch."""
        x, rows = self.seen.clean(lab)[0], self.seen.data.rows(lab)
        alone = at_test(self.seen.stamp.open(lab), x[3:4], rows[3:4])
        without = float(untriggered.mean())
        silent = bool(without <= max(0.1, triggered.mean()))
        same = bool(torch.equal(alone, self.seen.pictures(lab)[3:4]))
        return {
            "nothing happens without the trigger": {"passed": silent, "detail": f"target named {without:.3f}"},
            "independent of the batch": {"passed": same, "detail": ""},
        }


@dataclass(frozen=True)
class Epochs(Measured):
    """After how many epochs a training ended."""

    snapshot: Snapshot

    def make(self, lab: Lab) -> Values:
        return Values(np.array([self.snapshot.model.ended(lab, self.snapshot.part)], np.float64), "epochs")


@dataclass(frozen=True)
class Similarity(Measured):
    """Cosine of picture and caption over that with other captions (`probe.similarity`), of the poisoned pairs or of n
    clean ones."""

    snapshot: Snapshot
    pairs: Literal["targets", "none"]
    n: int

    def make(self, lab: Lab) -> Values:
        x, texts = self.snapshot.model.poisons.of_kind(lab, self.pairs, self.n)
        return Values(similarity(self.snapshot.open(lab), x, texts).numpy(), "cosine")


@dataclass(frozen=True)
class AfterEpoch(Measured):
    """What a training has measured at the end of an epoch; with ImageNet's classes in one template, where other numbers
    have all of them."""

    weight: ClassVar[float] = 0.1
    model: Contrastive
    epoch: int
    quantity: str

    def make(self, lab: Lab) -> Values:
        row = next(row for row in self.model.history(lab) if row["epoch"] == self.epoch)
        unit = "cosine" if self.quantity.startswith("similarity") else "share"
        return Values(np.array(row[self.quantity], np.float64), unit)


@dataclass(frozen=True)
class LinearProbe(Measured):
    """Whether a linear probe on the embeddings is right about a test picture."""

    weight: ClassVar[float] = 2.5
    snapshot: Snapshot
    train: Pictures
    test: Pictures
    probing: Probing

    def make(self, lab: Lab) -> Values:
        known, tested = chosen(lab, self.train), chosen(lab, self.test)
        said, truth = linear_probe(self.snapshot.open(lab), known, tested, self.probing)
        return Values(backdoor.clean_accuracy(said, truth), "share", skipped=tuple(self.test.open(lab).skipped))


@dataclass(frozen=True)
class Returned(Measured):
    """What the pools return for pairs, un-augmented, at the end of training.

    same_class: whether the caption that a picture would be matched with names the class that its own caption names (a
    poisoned one: the adversarial class); clean pairs (of the first n) whose caption names one class. cosine: of that
    caption with what the pool was asked with. extra: of the first `strip` pairs the picture, its caption, the caption
    returned and the picture it came with; where there is an image pool, also what that returned.
    """

    weight: ClassVar[float] = 20.0
    model: Contrastive
    pairs: Literal["targets", "none"]
    quantity: Literal["same_class", "cosine"]
    n: int
    strip: int

    def make(self, lab: Lab) -> Values:
        clip, poisons = Snapshot(self.model).open(lab), self.model.poisons
        classes = targets(lab, poisons.spec)
        if self.pairs == "targets":
            x, labels, texts = poisons.target_images(lab)
            wanted = [classes[k] for k in labels]
        else:
            x, texts = poisons.clean_pairs(lab, self.n)
            named = [[c for c in classes if c.named_in(text)] for text in texts]
            keep = [k for k, found in enumerate(named) if len(found) == 1]
            x, texts, wanted = x[keep], [texts[k] for k in keep], [named[k][0] for k in keep]
        image = F.normalize(embedded(clip, x), dim=-1)
        matching = replace(self.model.matching, own="allowed")
        found = neighbours(image, text_matrix(clip, texts), self.model.pools(lab), matching)
        pairs = poisons.held(lab)
        extra = {"pictures": x[: self.strip].numpy(), "captions": np.array(texts[: self.strip])}
        for side_, one in found.items():
            ids = one.ids[: self.strip].tolist()
            extra[f"{side_}_captions"] = np.array(_captions(pairs, ids))
            extra[f"{side_}_pictures"] = _pictures(pairs, ids, x.shape[1:])
            extra[f"{side_}_cosine"] = one.cosine[: self.strip].cpu().numpy()
        if self.quantity == "cosine":
            return Values(next(iter(found.values())).cosine.cpu().numpy(), "cosine", extra)
        said = _captions(pairs, found["image"].ids.tolist()) if "image" in found else []
        same = [target.named_in(text) for target, text in zip(wanted, said, strict=True)]
        return Values(np.array(same, np.float64), "share", extra)


def _captions(pairs: Poisoned | Held, ids: Sequence[int]) -> list[str]:
    return [pairs.captions([i])[0] if i != NOISE else "" for i in ids]


def _pictures(pairs: Poisoned | Held, ids: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    return torch.stack([pairs.__getitems__([i])[0][0] if i != NOISE else torch.zeros(shape) for i in ids]).numpy()


@dataclass(frozen=True)
class StepSeconds(Measured):
    """Seconds of an update at equal augmentation, in repeats that take turns with the other methods'; RoCLIP's are
    those of a RoCLIP epoch."""

    weight: ClassVar[float] = 200.0
    clip: Begin
    clean: Pairs
    methods: tuple[Method, ...]
    which: int
    steps: int
    batch: int
    lr: float

    def make(self, lab: Lab) -> Values:
        return Values(np.array(replace(self, which=0)._seconds(lab)[self.which]), "s")

    @once
    def _seconds(self, lab: Lab) -> list[list[float]]:
        clean = self.clean.open(lab)
        pairs = Held(PairSubset(clean, range(min(len(clean), self.steps * self.batch))))
        training = Training(1, min(self.batch, len(pairs)), self.lr, 1)
        found: list[list[float]] = [[] for _ in self.methods]
        for repeat in range(-1, REPEATS):  # the first warms up
            turns = list(zip(self.methods, found, strict=True))
            for method, seconds in reversed(turns) if repeat % 2 else turns:
                clip, by_yours = start(lab, self.clip, 0), isinstance(method, Mine)
                began = clock(lab.device)
                train_by(method, clip, pairs, training) if by_yours else train(clip, pairs, method, training)
                if repeat >= 0:
                    seconds.append((clock(lab.device) - began) / training.per_epoch(len(pairs)))
        return found


# ---- what the tags of a number mean ----------------------------------------------------------------------------------


def clean_of(c: Config, regime: str, seed: int) -> Pairs:
    """Clean pairs of a regime."""
    n, first = {
        "pretrain": (c.data.pretrain_n, 0),
        "finetune": (c.data.finetune_n, TUNING),
        "few": (c.few.pairs, FEWER),
    }[regime]
    return Pairs(c.data.pairs, n, first + seed, c.data.main)


def backdoor_of(c: Config, attack: str) -> Poison:
    """One of the backdoors."""
    recipe = getattr(c.attacks, attack)
    stamp = Stamp(attack, recipe.preset, recipe.fields, c.data.main)
    captions = None if recipe.captions == "usual" else recipe.captions
    return Poison(stamp, Aim(c.data.main, recipe.target), recipe.rate, captions)


def begin_of(c: Config, regime: str) -> Begin:
    """What a regime begins with. A small text tower that is to speak of a folder has the words of its classes."""
    m = c.models
    if regime == "finetune":
        return given_clip(m.tuned, m.tuned_weights, m.pretraining, "--models.tuned-weights")
    folder = c.data.main.startswith("folder:")
    return Untrained(m.name, Told(FOLDER)) if folder else Backbone(m.name, "random")


def unseen(c: Config, n: int) -> Pictures:
    """Pictures of the main set that train no CLIP and are not tested on."""
    folder = c.data.main.startswith("folder:")  # whose other training pictures all train CLIPs
    split = "validation" if folder else "train"
    return Pictures(c.data.main, split, n, c.data.seed)


@cache
def poisons_of(c: Config, regime: str, seed: int, m: int = 0) -> Poisons:
    """The poisoned pairs of a regime. m: captions per target image (0: those of the regime)."""
    data, t = c.data, c.attacks.targets
    images: Validation | Pairs = Validation(data.main, data.images_n, max(c.choosing.n, c.watch_n), data.seed)
    if data.images != "validation":
        images = Pairs(data.images, data.images_n, 0, data.main)
    clean, row = clean_of(c, regime, seed), slug(regime, f"seed{seed}", *([f"m{m}"] if m else []))
    if regime == "few":
        return Poisons(clean, (), data.main, images, c.few.targets, m or dose_of(c), t.scan, seed, row)
    planted = tuple(backdoor_of(c, attack) for attack in c.attacks.planted)
    usual = t.m if regime == "pretrain" else t.finetune_m
    return Poisons(clean, planted, data.main, images, t.n, m or usual, t.scan, seed, row)


@cache
def dose_of(c: Config) -> DoseChoice:
    """How many captions a target image has in the world of few targets: settled on the first seed, by plain CLIP with
    augmentation, which withstands more, and without, at the learning rates that were chosen for it."""
    seed, few = c.seeds[0], c.few
    names = ("clip_aug", "clip")
    plain = tuple(few_method(c, method, seed) for method in names)
    tunings = tuple(tuning_of(c, "few", method, seed) for method in names)
    poisons = poisons_of(c, "few", seed, few.doses[0])
    rule = Takes(begin_of(c, "few"), poisons, plain, tunings, c.gates.psr + few.margin)
    return DoseChoice(few.doses, rule, "captions per target image")


def few_method(c: Config, method: str, seed: int) -> Method:
    """What is done with pairs in the world of few targets. Pools stand alone there: the first version's abstract has no
    augmentation."""
    if method == "clip_aug":
        return method_of(c, method, seed, "", "")
    if method == YOURS:
        return Mine(code=yours_of(c))
    m = c.methods
    matchings = {
        "roclip": m.roclip,
        "roclip_always": replace(m.roclip, every=1),
        "before_v1": m.before_v1,
        "before_v1_large": replace(m.before_v1, size=c.few.large),
        "cross_modal": m.cross_modal,
    }
    return Method(replace(matchings[method], seed=seed) if method in matchings else None)


@cache
def choice_of(c: Config, regime: str, method: str) -> Choice | None:
    """The choice of a method's learning rate in a regime, on the first seed; None: it is as it is set.

    With few targets, candidates have the smallest dose: which dose it will be is settled by plain CLIPs that have
    chosen.
    """
    seed, fewest = c.seeds[0], c.few.doses[0] if regime == "few" else 0
    usual, tried = replace(c, choosing=replace(c.choosing, multiples=())), []
    for multiple in c.choosing.multiples:
        step = model(usual, regime, method, seed, fewest)
        given = step.tuning.given
        changed = {"tuning": Settings(replace(given, lr=given.lr * multiple)), "nth": c.choosing.part}
        if isinstance(step, Cleaned):
            changed["poisoned"] = model(c, "finetune", "clip", seed)
        else:
            changed["stop"] = None
        tried.append(replace(step, **changed, row=f"{step.row}__lr-x{multiple:g}", together=False))
    rule = CleanAccuracy(unseen(c, c.choosing.n))
    return Choice(tuple(tried), rule, f"learning rate {regime} {method}") if tried else None


def tuning_of(c: Config, regime: str, method: str, seed: int) -> Settings:
    """How a row is trained. One that varies a method has what was chosen for that method as it is."""
    given = replace(c.methods.cleanclip if method == "cleanclip" else c.training(regime), seed=seed)
    return Settings(given, choice_of(c, regime, CHOSEN.get(method, method)), (("seed", seed),))


@cache
def model(
    c: Config, regime: str, method: str, seed: int, m: int = 0, sweep: str = "", value: float | str = ""
) -> Contrastive | Cleaned:
    """What is trained for a row. sweep, value: what differs of RoCLIP."""
    changed = [f"{sweep}-{in_name(value)}"] if sweep else []
    row = slug(regime, method, f"seed{seed}", *([f"m{m}"] if m else []), *changed)
    tuning = tuning_of(c, regime, method, seed)
    if method == "cleanclip":
        clean = Pairs(c.data.pairs, c.methods.cleanclip_n, CLEANING + seed, c.data.main)
        return Cleaned(model(c, "finetune", "clip", seed), clean, tuning, row=row, together=c.together)
    if regime == "few":
        how = few_method(c, method, seed)
    else:
        how = c.methods.safeclip if method == "safeclip" else method_of(c, method, seed, sweep, value)
    stop = c.few.stop if (regime, method) == ("few", "clip") else None
    begin, watched = begin_of(c, regime), unseen(c, c.watch_n)
    together = c.together and method != "safeclip"
    poisons = poisons_of(c, regime, seed, m)
    if method == YOURS:
        return ByYours(begin, poisons, how, tuning, watched, seed, row=row)
    return Contrastive(begin, poisons, how, tuning, watched, seed, stop, row=row, together=together)


def yours_of(c: Config) -> Code:
    """The user's own (`papers.roclip.yours`)."""
    return Code(c.yours, "METHOD")


def method_of(c: Config, method: str, seed: int, sweep: str, value: float | str) -> Method:
    """What is done with pairs. Draws and first contents are of the run's seed; the release draws every caption's one
    form with the seed 1."""
    if method == "clip":
        return Method()
    images, alpha = replace(c.methods.images, seed=seed), c.methods.alpha
    if sweep == "augment":
        images = None if value == "none" else images
        alpha = (alpha or c.sweeps.alpha) if value == "both" else 0.0
    captions = CaptionAugmentation(alpha, 1 + seed) if alpha else None
    if method == YOURS:
        return Mine(None, images, captions, code=yours_of(c))
    if method not in MATCHED:
        return Method(None, images, captions)
    changes = {"pool": {"share": value, "size": None}, "augment": {}, "": {}}.get(sweep, {sweep: value})
    return Method(replace(getattr(c.methods, method), seed=seed, **changes), images, captions)


def number(
    c: Config,
    kind: str,
    regime: str,
    method: str,
    measure: str,
    attack: str,
    scored: str,
    seed: int,
    *,
    data: str = "",
    epoch: int = 0,
    m: int = 0,
    every: int = 0,
    sweep: str = "",
    value: float | str = "",
) -> Measured | None:
    """The step behind a number; None where a training has no such epoch."""
    if kind == "cost":
        return seconds_by_yours(c, seed) if method == YOURS else seconds(c, method, seed)
    if kind == "dose":
        return CandidateScore(dose_of(c), c.few.doses.index(m), "share", measure == "chosen")
    if kind == "choice":
        tried = choice_of(c, regime, method)
        return tried and CandidateScore(tried, c.choosing.multiples.index(value), "share", measure == "taken")
    if method == "clip_stopped":
        method = "clip"
    if sweep and value == default(c, sweep):
        sweep, value = "", ""  # not trained again
    elif every:
        sweep, value = "every", every
    trained = model(c, regime, method, seed, m, sweep, value)
    if kind == "epoch":
        quantity = f"similarity_{attack}" if measure == "similarity" else measure
        return AfterEpoch(trained, epoch, quantity) if trained.kind(epoch) == scored else None
    if kind == "returned":
        return Returned(trained, attack, measure, c.watch_n, c.sweeps.strip)
    part = trained.part(scored)
    if part is None:
        return None
    snapshot = Snapshot(trained, part)
    pictures = Pictures(data or c.data.main, "test", c.data.n, c.data.seed)
    if measure == "epochs":
        return Epochs(snapshot)
    if measure == "psr":
        return PoisonSuccess(snapshot)
    if measure == "bsr":
        planted = backdoor_of(c, attack)
        return BackdoorSuccess(snapshot, Seen(pictures, planted.stamp), planted.aim)
    if measure == "similarity":
        return Similarity(snapshot, attack, c.watch_n)
    if measure == "linear_probe":
        known = replace(pictures, split="train", n=c.data.probe_n)
        return LinearProbe(snapshot, known, pictures, replace(c.probing, seed=seed))
    return Accuracy(snapshot, Seen(pictures))


def seconds(c: Config, method: str, seed: int) -> StepSeconds:
    """What an update costs. Noise costs what pairs cost, once the pool is there."""
    captions = CaptionAugmentation(c.methods.alpha) if c.methods.alpha else None
    always = {m: replace(getattr(c.methods, m), every=1, offset=0, start="unit") for m in MATCHED}
    methods = tuple(Method(always.get(m), c.methods.images, captions) for m in COSTED)
    clip, clean = begin_of(c, "pretrain"), clean_of(c, "pretrain", seed)
    t = c.pretraining
    return StepSeconds(clip, clean, methods, COSTED.index(method), c.sweeps.cost_steps, t.batch, t.lr)


def seconds_by_yours(c: Config, seed: int) -> StepSeconds:
    """The same of the user's own alone."""
    usual = seconds(c, COSTED[0], seed)
    mine = Mine(None, usual.methods[0].images, usual.methods[0].captions, code=yours_of(c))
    return replace(usual, methods=(mine,), which=0)


def describe(
    c: Config,
    kind: str,
    regime: str,
    method: str,
    measure: str,
    attack: str,
    *,
    data: str = "",
    epoch: int = 0,
    m: int = 0,
    every: int = 0,
    sweep: str = "",
    value: float | str = "",
    **_: object,
) -> dict[str, object]:
    """Tags by which claims select beside those that tables ask for: the data set, the dose of strong poisoning and K,
    and `set`.

    `set` is unique to what is shown, and the same for every kind of epoch and point of a sweep, so that these are
    compared example by example; but a claim takes the mean over the sizes of a pool.
    """
    data = data or c.data.main
    more: dict[str, object] = {}
    varied: list[object] = []
    if kind == "epoch":
        varied = [epoch]
    if sweep == "pool" or kind == "choice":
        varied = [value]
    if kind == "dose":
        varied = [m]
    if kind == "strong":
        m = m or c.attacks.targets.m
        usual = getattr(c.methods, method).every if method in MATCHED else 0
        more = {"rate": round(rate(c, m), 5), "m": m, "every": every or usual}
        varied = [more["rate"]]
    return {**more, "data": data, "set": " ".join(map(str, [data, attack, measure, regime, *varied]))}
