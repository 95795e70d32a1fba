"""What a process works with: CLIPs (clean, poisoned, defended), triggers, and the pictures of every set."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from papers.rvpt import runs
from papers.rvpt.baselines import LinearProbe
from papers.rvpt.cells import Cell, Defence, Poison
from papers.rvpt.config import Config
from papers.rvpt.kept import load_prompts
from papers.rvpt.words import LearnedWords
from shared.attacks.triggers import Trigger, at_test, make_trigger, parse_fields
from shared.attacks.triggers.optimised import read_patch
from shared.data.targets import Target, scene_target, target
from shared.experiment.bench import PairBench
from shared.experiment.scale import plain
from shared.files import digest, sha256_file
from shared.models import zoo
from shared.models.clip import read_weights
from shared.models.sources import locate, open_clip_model
from shared.models.victim import ZeroShot, text_matrix

CODE = "rvpt-train-1"  # raise it when the meaning of a training changes: everything is then trained again
HELD = 2  # CLIPs that are kept in memory, and defended ones
ROOM = 2**30  # bytes of triggered pictures that are kept for the next model, by each process


@dataclass(frozen=True)
class Model:
    """A CLIP, defended or not. clip: text tower, tokenizer and scale; visual: its tower, or the same with prompts; probe: a linear head instead of
    text embeddings; words: learned context in place of hand-written prompts."""

    clip: nn.Module
    visual: nn.Module
    probe: LinearProbe | None = None
    words: Tensor | None = None

    def zero_shot(self, prompts: Sequence[str], classes: Sequence[str] = ()) -> ZeroShot:
        """The classifier z_k = s·cos(F(x), t_k) from one prompt per class. classes: names, for learned words."""
        return ZeroShot(self.visual, self.text(prompts, classes), self.clip.logit_scale.exp().item()).to(self.clip.logit_scale.device)

    def text(self, prompts: Sequence[str], classes: Sequence[str] = ()) -> Tensor:
        """Unit text embeddings (K, D)."""
        if self.words is None:
            return text_matrix(self.clip, prompts)
        learned = LearnedWords(self.clip, classes, len(self.words))
        with torch.no_grad():
            learned.words.copy_(self.words)
            return learned().detach()


class Bench(PairBench):
    """Models and sets opened once, when first needed."""

    config: Config

    @property
    def main(self) -> str:
        return self.config.data.main.data

    # -- sets ---------------------------------------------------------------------------------------------------------------------------

    def downloads(self):
        return [(self.config.place(place).data, split) for place in self.config.places for split in ("train", "test")] + [
            (spec, "test") for spec in self.config.data.shifted]

    def label(self, place: str, at: str | None = None) -> int:
        """The label of a place's target class in the set of `at` (default: the place itself). Raises UserError where it has no such class."""
        return self.label_of(self.config.spec(at or place), self.config.place(place).target)

    def target(self, place: str) -> Target:
        """How the target class is said."""
        p = self.config.place(place)
        return scene_target(p.data.partition(":")[2], p.target) if p.data.startswith("scenes:") else target(p.target)

    def prompts(self, at: str, choice: float | None = None) -> list[str]:
        """One prompt per class of a place (or shift); choice: index into config.sweeps.prompts."""
        data = self.labelled(self.config.spec(at))
        templates = self.config.template(at) if choice is None else [self.config.sweeps.prompts[int(choice)]]
        return [templates[0].format(name) for name in data.classes] if templates else list(data.prompts)

    # -- triggers -----------------------------------------------------------------------------------------------------------------------

    def trigger(self, attack: str, backbone: str = "first") -> Trigger:
        """What the attack does to a picture (and its caption)."""
        return self.once(("trigger", attack, backbone), lambda: self._trigger(attack, backbone))

    def _trigger(self, attack: str, backbone: str) -> Trigger:
        recipe = self.config.attacks.recipe(attack)
        own = parse_fields(recipe.fields)
        if attack in runs.OPTIMISED:
            spec = read_patch(self.made(runs.Patch(attack, backbone))).spec
            return make_trigger(**{**spec, **own, "preset": recipe.preset})
        return make_trigger(attack.removesuffix("_textbook"), recipe.preset, size=self.size, **own)

    def trigger_key(self, attack: str, backbone: str) -> str:
        """Everything the trigger is made of."""
        if attack == "clean":
            return "none"
        files = [sha256_file(zoo.weights("scenes-stega"))] if attack == "issba" else []
        return self.once(("trigger key", attack, backbone), lambda: digest([plain(self.trigger(attack, backbone).spec), files]))

    def triggered(self, cell: Cell) -> Tensor:
        """The test pictures of a cell's set with its trigger, (N, 3, H, W): the same for every model."""
        spec, trigger = self.config.spec(cell.at), self.trigger(cell.attack, cell.backbone)
        world = self.world(spec)
        fit = ROOM // max(1, world.x.nbytes)

        def stamped() -> Tensor:
            return at_test(trigger, world.x, world.indices)

        return self.lately(("triggered", spec, self.trigger_key(cell.attack, cell.backbone)), stamped, fit) if fit else stamped()

    # -- weights ------------------------------------------------------------------------------------------------------------------------

    def made(self, run: runs.Run):
        """The file of a training. Raises UserError if it is missing or of another configuration."""
        return self.finished(runs.checkpoint(self.config, self.scale, run), self.key(run), "trained model")

    def key(self, run: runs.Run) -> str:
        """Identity of the weights of a run: everything that training reads, and nothing else."""
        return self.once(("key", run), lambda: self._key(run))

    def _key(self, run: runs.Run) -> str:
        from papers.rvpt.training import settings

        read = [CODE, settings(self, run)]
        if isinstance(run, runs.Patch):
            return digest([*read, self.origin(run.backbone)])
        if isinstance(run, runs.Supervised):
            return digest([*read, self.origin("first")])
        if isinstance(run, Poison):
            return digest([*read, self.origin(run.backbone), self.trigger_key(run.attack, run.backbone)])
        return digest([*read, self.identity(run.poison)])

    def origin(self, backbone: str) -> list[str]:
        """Name and weights of a backbone as it came."""
        b = self.config.backbone(backbone)
        return self.once(("origin", backbone), lambda: [b.name, locate(b.weights, "--models.*.weights")[1]])

    def identity(self, poison: Poison, defence: Defence | None = None) -> str:
        """What a CLIP (defended, where one is given) is made of, for keys."""
        def make() -> str:
            if defence is not None:
                run = runs.Defended(poison, defence)
                return digest([self.key(run), sha256_file(self.made(run))])
            return digest(self.origin(poison.backbone)) if poison.clean else digest([self.key(poison), sha256_file(self.made(poison))])

        return self.once(("identity", poison, defence), make)

    # -- models -------------------------------------------------------------------------------------------------------------------------

    def clip(self, poison: Poison) -> nn.Module:
        """A CLIP, clean or poisoned; not to be changed (see `fresh`)."""
        def make() -> nn.Module:
            b = self.config.backbone(poison.backbone)
            clip = open_clip_model(b.name, locate(b.weights, "--models.*.weights")[0], self.device)
            return clip if poison.clean else _fill(clip, self.made(poison))

        return self.lately(("clip", poison), make, HELD)

    def fresh(self, poison: Poison) -> nn.Module:
        """A copy that may be trained."""
        return copy.deepcopy(self.clip(poison))

    def model(self, poison: Poison, defence: Defence | None = None) -> Model:
        """A CLIP behind its defence."""
        return self.lately(("model", poison, defence), lambda: self._model(poison, defence), HELD)

    def _model(self, poison: Poison, defence: Defence | None) -> Model:
        clip = self.clip(poison)
        if defence is None:
            return Model(clip, clip.visual)
        path, method = self.made(runs.Defended(poison, defence)), defence.method
        if method in runs.WHOLE:
            whole = _fill(self.fresh(poison), path)
            return Model(whole, whole.visual)
        if method == "linear_probe":
            probe = LinearProbe(Model(clip, clip.visual).zero_shot(self.prompts(defence.tuned)))
            probe.head.load_state_dict(read_weights(path))
            return Model(clip, clip.visual, probe.to(self.device).requires_grad_(False).eval())
        if method == "words":
            return Model(clip, clip.visual, words=read_weights(path)["words"].to(self.device))
        return Model(clip, load_prompts(path, clip.visual).to(self.device))

    def of(self, cell: Cell) -> Model:
        """The model of a cell."""
        return self.model(cell.poison, cell.defence)

    def classifier(self, cell: Cell, trigger: Trigger | None = None, at: str | None = None) -> nn.Module:
        """pixels -> logits over the classes of the cell's set; trigger: its text part is on the prompts too."""
        at, model = at or cell.at, self.of(cell)
        if model.probe is not None:
            return model.probe
        prompts = self.prompts(at, dict(cell.changes).get("prompt"))
        return model.zero_shot(prompts if trigger is None else [trigger.text(p) for p in prompts], self.labelled(self.config.spec(at)).classes)


def _fill(clip: nn.Module, path) -> nn.Module:
    clip.load_state_dict(read_weights(path))
    return clip.requires_grad_(False).eval()

