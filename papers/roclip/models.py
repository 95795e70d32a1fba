"""What a process works with: trained CLIPs, their pools and histories, poisoned pairs, triggers, and the pictures of every set."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papers.roclip import runs
from papers.roclip.cells import Run
from papers.roclip.config import Config
from papers.roclip.poisons import Poisoned, Spoken, labelled_targets, unlabelled_targets
from papers.roclip.pool import Pool
from papers.roclip.probe import Watch, classifier, ensemble, sentences_of, targets_of
from papers.roclip.training import make_pools
from shared.attacks.triggers import Trigger, at_test, make_trigger, parse_fields
from shared.data.base import LabelledImages, Subset, subset
from shared.data.language import TEMPLATES
from shared.data.manifest import Manifest, read_manifest
from shared.data.poison import Held
from shared.data.targets import Target, scene_target, target
from shared.errors import UserError
from shared.experiment.bench import PairBench
from shared.files import digest, sha256_file
from shared.models.clip import create_clip, read_weights
from shared.models.sources import locate
from shared.models.victim import ZeroShot

ONE_TEMPLATE = "a photo of a {}."
TUNING, CLEANING = 1000, 2000  # seeds of the pairs to fine-tune on, and of CleanCLIP's, begin here; those to pre-train on at 0


class InMemory(LabelledImages):
    """A labelled set of which all pictures were read once."""

    def __init__(self, data: LabelledImages):
        self.name, self.classes, self.prompts, self.version = data.name, data.classes, data.prompts, data.version
        self._x, self._y = data.__getitems__(list(range(len(data))))

    def __len__(self) -> int:
        return len(self._y)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._x[list(indices)], self._y[list(indices)]


class Bench(PairBench):
    """Models and sets opened once, when first needed."""

    config: Config

    @property
    def main(self) -> str:
        return self.config.data.main

    # -- sets ---------------------------------------------------------------------------------------------------------------------------

    def downloads(self):
        data = self.config.data
        return [(spec, split) for spec in dict.fromkeys((data.main, *data.downstream, *data.probed)) for split in ("train", "test")]

    def split(self, spec: str, split: str, n: int) -> LabelledImages:
        """n pictures of a set (0: all); in memory where they are few."""
        def make() -> LabelledImages:
            data = self.labelled(spec, split)
            part = Subset(data, subset(data, n or None, self.config.data.seed))
            return InMemory(part) if n and len(part) <= 4096 else part

        return self.once(("split", spec, split, n), make)

    def targets_of(self, spec: str) -> list[Target]:
        """Every class of a set, with how it is said."""
        data = self.labelled(spec)
        kind, _, name = spec.partition(":")
        return [Spoken.of(scene_target(name, c) if kind == "scenes" else target(c)) for c in data.classes]

    def sentences(self, spec: str) -> list[list[str]]:
        """Of each class of a set: the templates of captions in the scenes world, the 80 of CLIP for ImageNet, the set's own prompt elsewhere."""
        if spec.startswith("scenes:"):
            return sentences_of(self.targets_of(spec), TEMPLATES)
        data = self.labelled(spec)
        if spec == "named:ImageNet":
            from open_clip import OPENAI_IMAGENET_TEMPLATES

            return [[fill(name) for fill in OPENAI_IMAGENET_TEMPLATES] for name in data.classes]
        return [[prompt] for prompt in data.prompts]

    def said_once(self, spec: str) -> list[list[str]]:
        """The same for what is asked after every epoch: ImageNet's classes in one of 80 templates. 80,000 sentences would take the text tower several
        times as long as the pictures take the image tower, and in every epoch anew, as training has changed it."""
        return [[ONE_TEMPLATE.format(name)] for name in self.labelled(spec).classes] if spec == "named:ImageNet" else self.sentences(spec)

    def label(self, name: str) -> int:
        """The label of a class of the main set. Raises UserError where there is none of that name."""
        return self.label_of(self.main, name)

    # -- pairs --------------------------------------------------------------------------------------------------------------------------

    def clean(self, regime: str, seed: int, cleaning: bool = False):
        """Clean pairs of a regime, or those that CleanCLIP is given: disjoint in the scenes world."""
        return self.pairs(*self._chosen(regime, seed, cleaning))

    def clean_version(self, regime: str, seed: int, cleaning: bool = False) -> str:
        """Identity of such pairs."""
        return self.pairs_version(*self._chosen(regime, seed, cleaning))

    def _chosen(self, regime: str, seed: int, cleaning: bool) -> tuple[int, int]:
        if cleaning:
            return self.config.methods.cleanclip_n, CLEANING + seed
        return self.config.pairs_n(regime), (TUNING if regime == "finetune" else 0) + seed

    @property
    def images(self):
        """What target images are chosen from: a labelled set, or pairs."""
        from shared.data.scene_sets import SceneSet

        data = self.config.data
        if data.images != "validation":
            return self.pairs(data.images_n, 0, data.images)
        if not data.main.startswith("scenes:"):
            raise UserError(f"the set {data.main} has no validation pictures here: give --data.images pairs to choose target images from.")
        return self.once("images", lambda: SceneSet(data.main.partition(":")[2], "validation", data.images_n, self.size))

    def poisoned(self, run: Run):
        """The poisoned pairs that a run is trained on."""
        name = ("poisoned", run.regime, run.seed, run.m)
        scenes = self.config.data.pairs == "scenes"
        return self.lately(name, lambda: Held(self.poisons(run)) if scenes else self.poisons(run), 2)

    def poisons(self, run: Run) -> Poisoned:
        """The same, with their manifests and drawn when they are asked for."""
        return self.lately(("poisons", run.regime, run.seed, run.m), lambda: self._poisons(run), 2)

    def _poisons(self, run: Run) -> Poisoned:
        config, clean, images = self.config, self.clean(run.regime, run.seed), self.images
        m, scan, n = run.m or config.captions_each(run.regime), config.attacks.targets.scan or None, config.attacks.targets.n
        said = self.targets_of(config.data.main)
        if isinstance(images, LabelledImages):
            chosen, classes = labelled_targets(images, n, run.seed)
        else:
            chosen, classes = unlabelled_targets(clean, len(images), said, m, n, run.seed, scan)
        backdoors = {}
        for name in config.attacks.planted:
            recipe = getattr(config.attacks, name)
            backdoors[name] = (self.trigger(name), said[self.label(recipe.target)], recipe.rate,
                               None if recipe.captions == "usual" else recipe.captions)
        return Poisoned(clean, backdoors, images, chosen, [said[k] for k in classes], m, run.seed, scan)

    def manifest(self, run: Run, attack: str) -> Manifest:
        """What a run's poisoned pairs are, as its training has written it."""
        return self.once(("manifest", run.regime, run.seed, run.m, attack), lambda: read_manifest(runs.manifest_path(self.config, self.scale, run,
                                                                                                                     attack)))

    def target_images(self, run: Run) -> tuple[Tensor, list[int], list[str]]:
        """Pictures (N, 3, H, W) of a run's target images, their adversarial classes, and of each the first caption it was given."""
        manifest = self.manifest(run, "targets")
        chosen, labels = targets_of(manifest, self.labelled(self.main).classes)
        first = {row.picture: row.caption for row in reversed(manifest.rows)}
        return self.images.__getitems__(chosen)[0], labels, [first[i] for i in chosen]

    def clean_pairs(self, run: Run, n: int) -> tuple[Tensor, list[str], list[int]]:
        """The first n pairs of a run that nobody poisoned, and their indices."""
        bad = {row.index for attack in self.config.attacks.planted for row in self.manifest(run, attack).rows}
        indices = [i for i in range(min(self.config.pairs_n(run.regime), n + len(bad))) if i not in bad][:n]
        return *self.clean(run.regime, run.seed).__getitems__(indices), indices

    # -- attacks ------------------------------------------------------------------------------------------------------------------------

    def trigger(self, attack: str) -> Trigger:
        """What a backdoor does to a picture."""
        def make() -> Trigger:
            recipe = getattr(self.config.attacks, attack)
            return make_trigger(attack, recipe.preset, size=self.size, **parse_fields(recipe.fields))

        return self.once(("trigger", attack), make)

    def watch(self, run: Run) -> Watch:
        """What is measured at the end of every epoch: on training pictures of the main set, which no CLIP is trained on."""
        config = self.config
        x, y, chosen = self._watched()
        targets, classes, said = self.target_images(run)
        clean, captions, _ = self.clean_pairs(run, config.watch_n)
        triggered = None
        if config.attacks.planted:
            attack = config.attacks.planted[0]
            triggered = (at_test(self.trigger(attack), x, chosen), y, self.label(getattr(config.attacks, attack).target))
        return Watch(self.said_once(config.data.main), (targets, classes), triggered, (x, y),
                     {"targets": (targets, said), "none": (clean, captions)})

    def _watched(self) -> tuple[Tensor, Tensor, list[int]]:
        world = self.world(self.config.data.main, "train", self.config.watch_n)
        return world.x.cpu(), world.y.cpu(), world.indices

    # -- CLIPs --------------------------------------------------------------------------------------------------------------------------

    def origin(self, regime: str) -> list[str]:
        """What training begins with: name and weights."""
        models = self.config.models
        if regime == "pretrain":
            return [models.name, "random"]
        return [models.tuned, locate(models.tuned_weights, "--models.tuned-weights")[1]]

    def start(self, regime: str, seed: int) -> nn.Module:
        """A CLIP to train: with random weights of a seed, or as it came."""
        models = self.config.models
        weights = None if regime == "pretrain" else locate(models.tuned_weights, "--models.tuned-weights")[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create_clip(models.name if regime == "pretrain" else models.tuned, weights).to(self.device)

    def key(self, run: Run) -> str:
        """Identity of the weights of a run."""
        return self.once(("key", run), lambda: runs.key(self, run))

    def made(self, run: Run, what: str):
        """The file of a run: weights by the name of their epoch, or "pools". Raises UserError if it is missing or of another configuration."""
        return self.finished(runs.checkpoint(self.config, self.scale, run, what), self.key(run), "trained CLIP")

    def identity(self, run: Run, what: str) -> str:
        """What weights (or pools, or the history) are, for keys."""
        path = (lambda: self._history_path(run)) if what == "history" else (lambda: self.made(run, what))
        return self.once(("identity", run, what), lambda: digest([self.key(run), sha256_file(path())]))

    def clip(self, run: Run, scored: str) -> nn.Module:
        """A trained CLIP; not to be changed."""
        return self.lately(("clip", run, scored), lambda: self.filled(run, scored))

    def filled(self, run: Run, scored: str) -> nn.Module:
        """A trained CLIP that may be changed."""
        clip = self.start(run.regime, run.seed)
        clip.load_state_dict(read_weights(self.made(run, scored)))
        return clip.requires_grad_(False).eval()

    def victim(self, run: Run, scored: str, spec: str) -> ZeroShot:
        """The zero-shot classifier of a set."""
        clip = self.clip(run, scored)
        return self.lately(("victim", run, scored, spec), lambda: classifier(clip, ensemble(clip, self.sentences(spec))))

    def pools(self, run: Run) -> dict[str, Pool]:
        """The pools at the end of a run, by modality."""
        count = self.config.pairs_n(run.regime) + self.config.added(run.regime, run.m)
        clip = self.clip(run, next(iter(run.epochs(self.config))))
        pools = make_pools(clip, run.matching(self.config), count, self.device)
        nn.ModuleDict(pools).load_state_dict(read_weights(self.made(run, "pools")))
        return pools

    def _history_path(self, run: Run):
        path = runs.history_path(self.config, self.scale, run)
        if runs.read_history(path).get("key") != self.key(run):
            raise UserError(f"the history {path} is missing or of another configuration: run the training with the same options first.")
        return path

    def history(self, run: Run) -> list[dict]:
        """What was measured at the end of every epoch."""
        return self.once(("history", run), lambda: json.loads(self._history_path(run).read_text())["history"])
