"""What a process works with: the three victims, φ, the diffusion model, the defences, and the six sets with their scores."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from papers.diffcap.cells import CLASSIFIER, PURIFIERS, TOWERS, Cell
from papers.diffcap.config import Config
from papers.diffcap.method import DiffCAP, StopRule
from papers.diffcap.runs import Base, Run, bases, run_of
from shared.data.base import LabelledImages, subset
from shared.data.catalogue import open_vl
from shared.data.vision_language import fare_draw
from shared.diffusion import Denoiser, Purifier, Sampler, open_denoiser
from shared.errors import UserError
from shared.experiment.bench import BaseBench
from shared.experiment.scale import plain
from shared.files import digest, sha256_file
from shared.metrics.captions import Cider
from shared.metrics.vqa import first_answer, vqa_accuracy
from shared.models import preprocess
from shared.models.clip import read_weights
from shared.models.sources import identity, locate, open_clip_model
from shared.models.victim import ZeroShot, class_matrix
from shared.models.vlm import open_vlm

DRAW = 500  # examples of a file-based set that FARE's protocol draws; fewer are the first of these


@dataclass
class World:
    """The chosen pictures of one set with what is known about them: x (N, 3, H, W), indices, and per task its texts."""

    spec: str
    task: str
    x: Tensor
    indices: list[int]
    version: str
    y: Tensor | None = None
    prompts: list[str] = field(default_factory=list)
    truths: list[list[str]] = field(default_factory=list)
    cider: Cider | None = None
    skipped: tuple[str, ...] = ()

    def part(self, n: int) -> "World":
        """The first n examples."""
        return replace(self, x=self.x[:n], indices=self.indices[:n], y=None if self.y is None else self.y[:n], prompts=self.prompts[:n],
                       truths=self.truths[:n])

    def scores(self, answers: Sequence[str], rows: Sequence[int] | None = None) -> np.ndarray:
        """(N,) per example: CIDEr × 100, or VQA accuracy in [0, 1]; rows: which examples were answered."""
        truths = self.truths if rows is None else [self.truths[i] for i in rows]
        return self.score(answers, truths)

    @property
    def score(self) -> Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]:
        """(answers, truths) -> (N,)."""
        return self.cider.points if self.task == "captions" else lambda answers, truths: vqa_accuracy([first_answer(a) for a in answers], truths)

    @property
    def unit(self) -> str:
        return "CIDEr" if self.task == "captions" else "share"

    @property
    def max_tokens(self) -> int:
        return 20 if self.task == "captions" else 10 if self.spec == "textvqa" else 5


class Bench(BaseBench):
    """The models, the defences and the six sets, opened once, when first needed."""

    config: Config

    # -- sets ---------------------------------------------------------------------------------------------------------------------------

    def downloads(self) -> list[tuple[str, str]]:
        return [(self.config.data.train, "train"), *((spec, "test") for spec in self.config.data.classes)]

    def text_set(self, spec: str, split: str):
        """A set with captions or questions, opened once."""
        return self.once(("vl", spec, split), lambda: open_vl(spec, split, self.config.source, self._text_size))

    @property
    def _text_size(self) -> int | None:
        return None if self.config.models.llava.startswith("zoo:") else self.vlm("llava").size

    def world(self, spec: str, task: str, split: str = "test", n: int | None = None) -> World:
        """The chosen examples of a set; the same for every model."""
        n = self.config.data.n if n is None else n
        return self.once(("world", spec, task, split, n), lambda: self._world(spec, task, split, n))

    def _world(self, spec: str, task: str, split: str, n: int) -> World:
        if task == "classes":
            data, used = self._classes(spec, split)
            indices = subset(data, used + n if n else None, self.config.data.seed)[used:]  # the first `used` are those of the evaluation
            if not indices:
                raise UserError(f"{spec} has {len(data)} pictures, all of which are evaluated, and none is left to calibrate τ on: choose a smaller "
                                "--data.n, or give --method.tau.")
            x, y = data.__getitems__(indices)
            return World(spec, task, x.to(self.device), indices, data.version, y.to(self.device), skipped=data.skipped)
        data = self.text_set(spec, split)
        if spec.startswith("scenes-"):
            indices = list(range(n or 500))
        else:
            indices = data.usable(fare_draw(len(data), min(DRAW, len(data)), self.config.data.seed))[: n or None]
        x = data.pictures(indices).to(self.device)
        if task == "captions":
            truths = data.references(indices)
            return World(spec, task, x, indices, data.version, None, [data.prompt] * len(x), truths, Cider(truths), data.skipped)
        return World(spec, task, x, indices, data.version, None, data.questions(indices), data.answers(indices), None, data.skipped)

    def version(self, spec: str, task: str, split: str = "test") -> str:
        """Identity of a set's examples, without reading a picture."""
        if task != "classes":
            return self.text_set(spec, split).version
        data, used = self._classes(spec, split)
        return f"{data.version}, from {used}" if used else data.version

    def _classes(self, spec: str, split: str) -> tuple[LabelledImages, int]:
        """A set to classify, and how many of its chosen pictures to pass over: sets in files have no validation split, so what calibrates τ comes
        from the pictures of the test split that the evaluation leaves."""
        if split != "validation" or spec.startswith("scenes:"):
            return self.labelled(spec, split), 0
        data = self.labelled(spec, "test")
        return data, self.config.data.n or len(data)

    # -- models -------------------------------------------------------------------------------------------------------------------------

    def open_clip(self, base: Base) -> nn.Module:
        """A CLIP, never trained; opened once."""
        return self.once(("clip", base), lambda: open_clip_model(base.name, self._located(base)[0], self.device))

    def _located(self, base: Base):
        return self.once(("located", base), lambda: locate(base.weights, "--models.clip-weights"))

    def run_key(self, run: Run) -> str:
        """The key of a robust encoder's weights."""
        return run.key(self.config, self._located(run.base)[1], self.version(self.config.data.train, "classes", "train"))

    def _tower(self, model: str, tower: str) -> dict[str, Tensor]:
        run = run_of(self.config, model, tower)
        return read_weights(self.finished(run.checkpoint(self.config, self.scale), self.run_key(run), "robust encoder"))

    def classifier(self, spec: str, tower: str = "base") -> ZeroShot:
        """CLIP on the classes of a set, with its own or a robust encoder."""
        def make():
            clip = self.open_clip(bases(self.config)["clip"])
            data = self.labelled(spec)
            text = self.once(("text", spec), lambda: class_matrix(clip, data))
            visual = clip.visual
            if tower != "base":
                visual = copy.deepcopy(visual)
                visual.load_state_dict(self._tower("clip", tower))
            return ZeroShot(visual, text, clip.logit_scale.exp().item()).to(self.device).requires_grad_(False).eval()

        return self.once(("classifier", spec, tower), make)

    def vlm(self, model: str, tower: str = "base"):
        """LLaVA or the Flamingo-type model, with its own or a robust encoder."""
        def make():
            source = getattr(self.config.models, model)
            vlm = open_vlm(source, device=self.device)
            if tower != "base":
                vlm.set_vision(self._tower(model, tower))
            return vlm

        return self.once(("vlm", model, tower), make)

    def victim(self, model: str, spec: str, tower: str = "base"):
        """What is attacked and asked: a ZeroShot or a VLM."""
        return self.classifier(spec, tower) if model == CLASSIFIER else self.vlm(model, tower)

    def identity(self, model: str, tower: str) -> str:
        """What a victim is made of, for keys."""
        def make():
            own = self._located(bases(self.config)["clip"])[1] if model == CLASSIFIER else identity(getattr(self.config.models, model))
            robust = "base"
            if tower != "base":
                run = run_of(self.config, model, tower)
                path = run.checkpoint(self.config, self.scale)
                self._tower(model, tower)  # says so if it is missing or stale
                robust = digest([self.run_key(run), sha256_file(path)])
            return digest([model, own, bases(self.config)["clip"].name, robust])

        return self.once(("identity", model, tower), make)

    # -- purification -------------------------------------------------------------------------------------------------------------------

    @cached_property
    def denoiser(self) -> Denoiser:
        return open_denoiser(self.config.models.denoiser).to(self.device)

    def phi(self, model: str = CLASSIFIER, other: bool = False) -> Callable[[Tensor], Tensor]:
        """φ: pixels in [0, 1] -> embeddings; one small CLIP, or the tower of what is protected. other: the choice that was not made."""
        m = self.config.models
        if m.own_tower != other:
            return self.classifier(self.config.data.classes[0]).embed if model == CLASSIFIER else self.vlm(model).embed
        base = Base(m.phi, m.phi_weights)

        def make():
            clip = self.open_clip(base)
            return ZeroShot(clip.visual, torch.zeros(1, 1, device=self.device), 1.0).to(self.device).requires_grad_(False).eval()

        return self.once("phi", make).embed

    @property
    def sampler(self) -> Sampler:
        m = self.config.method
        return Sampler(m.sampler, m.sampler_steps, m.eta)

    def diffpure(self, t: int | None = None) -> Purifier:
        """Purification at a fixed time."""
        m = self.config.method
        return Purifier(self.denoiser, m.diffpure if t is None else t, self.sampler, m.recompute)

    def diffcap(self, tau: float, model: str = CLASSIFIER, **changes) -> DiffCAP:
        """DiffCAP with threshold τ; changes: fields of StopRule."""
        m = self.config.method
        rule = StopRule(**{"tau": tau, "dt": m.dt, "t_max": m.t_max, "coupling": m.coupling, "encode": m.encode, "fallback": m.fallback, **changes})
        return DiffCAP(Purifier(self.denoiser, 0, self.sampler, m.recompute), self.phi(model), rule)

    def defence(self, method: str, tau: float, model: str = CLASSIFIER) -> Callable:
        """The purifier of a row; identity for rows that change the model."""
        b, t = self.config.baselines, self.config.method.diffpure
        return {"none": preprocess.Identity, **dict.fromkeys((*TOWERS, "clipure"), preprocess.Identity),
                "jpeg": lambda: preprocess.JPEG(b.jpeg), "bits": lambda: preprocess.BitDepth(b.bits),
                "resize_pad": lambda: preprocess.ResizePad(1 + b.pad),
                "blur": lambda: preprocess.GaussianBlur(b.blur), "resize": lambda: preprocess.ResizeOnly(self._resize_to),
                "noise": lambda: preprocess.NoiseOnly(self.denoiser.schedule, t), "diffpure": self.diffpure,
                "diffcap": lambda: self.diffcap(tau, model)}[method]()

    @property
    def _resize_to(self) -> int:
        """The diffusion model's size; where it is the pictures' own, nothing would happen, so three quarters of it."""
        size = self.denoiser.size
        return size * 3 // 4 if self.world(self.config.data.classes[0], "classes").x.shape[-1] == size else size

    def purifier_key(self, cell: Cell) -> list:
        """Everything that a cell's defence is made of, for keys."""
        m, method = self.config.method, cell.method
        if method in TOWERS or method not in (*PURIFIERS, "clipure"):
            return [method]
        if method in ("diffpure", "diffcap", "noise"):
            settings = {k: v for k, v in plain(m).items() if k not in ("batch", "recompute", "tau")}
            return [method, self.denoiser_identity, settings, *([self.phi_identity] if method == "diffcap" else [])]
        return [method, plain(self.config.baselines)]

    @cached_property
    def denoiser_identity(self) -> str:
        return identity(self.config.models.denoiser)

    @cached_property
    def phi_identity(self) -> str:
        m = self.config.models
        return digest([m.own_tower, m.phi, locate(m.phi_weights, "--models.phi-weights")[1]])
