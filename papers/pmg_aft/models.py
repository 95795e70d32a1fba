"""The models of the experiment: the pre-trained CLIP, and victims with its own or a fine-tuned vision tower."""

import copy
import json
from functools import cached_property
from pathlib import Path

import torch

from papers.pmg_aft.config import Config
from papers.pmg_aft.runs import Face, Run
from shared.data.base import LabelledImages
from shared.errors import UserError
from shared.experiment.bench import BaseBench
from shared.experiment.scale import WEIGHTLESS, plain
from shared.files import digest, sha256_file
from shared.models.clip import create_clip, read_weights, save_clip, small_config
from shared.models.sources import locate, open_clip_model
from shared.models.victim import ZeroShot, class_matrix

PICTURES = "folder:all"  # what `--model.pretrained pretrain` learns from


class Bench(BaseBench):
    """The pre-trained CLIP, the fine-tuned vision towers, and data sets and text embeddings, each read once."""

    config: Config

    def downloads(self) -> list[tuple[str, str]]:
        data = self.config.data
        return [*((spec, "train") for spec in (data.train, *data.other_train)),
                *((spec, "test") for spec in (data.seen, *data.zero_shot, *data.holdout))]

    @cached_property
    def pretrained(self) -> tuple[str | Path | None, str]:
        """(what create_clip loads, its identity): a path with its sha256, or a tag."""
        name = self.config.model.pretrained
        if name != "pretrain":
            return locate(name, "--model.pretrained")
        path = pretraining_path(self)
        if not path.is_file():
            raise UserError(f"the pre-trained model {path} is not there yet: run the training first (make reproduce-pmg_aft does).")
        return path, sha256_file(path)

    @cached_property
    def base(self) -> str:
        """Identity of the pre-trained model, for keys."""
        return digest([self.config.model.name, self.pretrained[1]])

    @cached_property
    def clip(self) -> torch.nn.Module:
        """The pre-trained CLIP, never trained."""
        return open_clip_model(self.config.model.name, self.pretrained[0], self.device)

    def text(self, data: LabelledImages) -> torch.Tensor:
        """Unit text embeddings of a set's prompts, computed once."""
        return self.once(("text", data.version), lambda: class_matrix(self.clip, data))

    def scale_of(self, face: Face) -> float:
        """s of the face: exp(logit_scale) of the model, or 1."""
        return 1.0 if face.temperature == "one" else self.clip.logit_scale.exp().item()

    def victim(self, data: LabelledImages, visual: torch.nn.Module | None = None, norm: str = "clip", scale: float | None = None) -> ZeroShot:
        """The zero-shot classifier of `data` with a vision tower (default: the pre-trained one) and a logit scale (default: the model's)."""
        s = self.clip.logit_scale.exp().item() if scale is None else scale
        return ZeroShot(self.clip.visual if visual is None else visual, self.text(data), s, norm).to(self.device).eval()

    def fresh_visual(self) -> torch.nn.Module:
        """A copy of the pre-trained vision tower, to be trained."""
        return copy.deepcopy(self.clip.visual)

    def run_key(self, run: Run) -> str:
        """The key of a run's weights."""
        return run.key(self.config, self.base, self.labelled(run.train, "train").version)

    def trained(self, run: Run, step: int | None = None) -> torch.nn.Module:
        """The vision tower of a finished run. Raises UserError if it is missing, damaged or of another configuration."""
        path = self.finished(run.checkpoint(self.config, self.scale, step), self.run_key(run))
        visual = self.fresh_visual()
        visual.load_state_dict(read_weights(path))
        return visual.requires_grad_(False).eval()


def pretraining_path(bench: Bench) -> Path:
    """Where the model of `--model.pretrained pretrain` is kept: named by everything it depends on."""
    model = bench.config.model
    training = plain(model.pretraining, WEIGHTLESS)
    identity = digest([model.name, small_config(model.name), training, bench.labelled(PICTURES, "train").version])
    return bench.config.results / bench.scale / "pmg_aft" / "checkpoints" / f"pretrained-{identity[:12]}.safetensors"


def pretrain_base(bench: Bench, accelerator) -> None:
    """Pre-train the small CLIP on template captions of all training pictures, unless that is done (photos scale)."""
    from shared.data.captioned import Captioned, flip_and_shift, vocabulary_of
    from shared.training.contrastive import pretrain

    config, path = bench.config, pretraining_path(bench)
    if path.is_file():
        return
    data = bench.labelled(PICTURES, "train")
    torch.manual_seed(0)
    clip = create_clip(config.model.name, vocabulary=vocabulary_of(data.classes)).to(accelerator.device)
    pretrain(clip, Captioned(data), config.model.pretraining, accelerator, path.with_suffix(".ckpt"), augment=flip_and_shift)
    if accelerator.is_main_process:
        save_clip(clip, path)
        path.with_suffix(".ckpt").unlink(missing_ok=True)
        print(f"pre-trained {path} on {len(data)} pictures of {json.dumps(data.classes)}", flush=True)
    accelerator.wait_for_everyone()
