"""SCALE=photos of every paper: what papers share is one step, and each runs to its page on a handful of made-up pictures, shrunk by options only."""

import importlib
from functools import partial

import pytest

from shared.steps.pretrained import FOLDER, Pretrained
from shared.steps.purification import Denoising
from tests.papers.conftest import _run_here
from tests.papers.ends import configured, photographs, rehearse

PRETRAINING = ("--models.pretraining.steps", 3, "--models.pretraining.batch", 8, "--models.pretraining.warmup", 1)
ATTACKS = (
    "badnet",
    "blended",
    "issba",
    "wanet",
    "trojvqa",
    "badclip",
    "sig",
    "badclip-published",
    "badnet-textbook",
    "blended-textbook",
)
SMALL = {
    "roclip": (*PRETRAINING, "--data.pretrain-n", 40, "--data.finetune-n", 30, "--data.images-n", 5, "--data.n", 6, "--data.probe-n", 12,
               "--attacks.targets.n", 2, "--attacks.targets.m", 2, "--attacks.targets.finetune-m", 2,
               "--methods.roclip.share", 0.2, "--methods.released.share", 0.2, "--methods.before-v1.size", 8, "--methods.cross-modal.size", 8,
               "--methods.cross-modal.offset", 1, "--methods.safeclip.alone", 1, "--methods.safeclip.slow", 1, "--methods.safeclip.share", 0.2,
               "--methods.cleanclip.steps", 1, "--methods.cleanclip.batch", 4, "--methods.cleanclip.warmup", 0, "--methods.cleanclip-n", 16,
               "--pretraining.epochs", 4, "--pretraining.batch", 8, "--pretraining.warmup", 1, "--finetuning.epochs", 2, "--finetuning.batch", 8,
               "--finetuning.warmup", 1, "--choosing.multiples", 1, 2, "--choosing.n", 6, "--probing.epochs", 1, "--few.pairs", 24,
               "--few.targets", 2, "--few.doses", 2, 3, "--few.large", 16, "--few.training.epochs", 2, "--few.training.batch", 8,
               "--few.training.warmup", 1, "--sweeps.strong", 3, "--sweeps.cost-steps", 1, "--sweeps.strip", 2, "--watch-n", 6),
    "rvpt": (*PRETRAINING, "--data.n", 6, *(option for attack in ATTACKS for name, value in
             (("pairs", 20), ("steps", 1), ("batch", 8), ("warmup", 0)) for option in (f"--attacks.{attack}.{name}", value)),
             "--attacks.further-lrs", 5e-4, "--attacks.further-steps", 0, "--attacks.patch-pairs", 20,
             *(option for patch in ("attacks.trojvqa-patch", "attacks.badclip-patch", "adversary.patch") for name, value in
               (("steps", 1), ("batch", 4)) for option in (f"--{patch}.{name}", value)),
             "--method.shots", 1, "--method.length", 2, "--method.tuning.epochs", 1, "--baselines.cleanclip.steps", 1,
             "--baselines.cleanclip.batch", 8, "--baselines.cleanclip.warmup", 0, "--baselines.cleanclip-pairs", 16,
             "--baselines.linear.epochs", 1, "--baselines.full.epochs", 1, "--baselines.words-tuning.epochs", 1,
             "--baselines.visual-tuning.epochs", 1, "--tried.lengths", 2, "--tried.lrs", 0.02, 0.3, "--tried.probe-lrs", 0.01, 0.1,
             "--tried.cleanclip-lrs", 3e-4, 1e-3, "--adversary.steps", 1, "--adversary.n", 4, "--adversary.sanity-n", 2,
             "--adversary.train-steps", 1, "--sweeps.shots", 1, 2, "--sweeps.alpha", 0, 2, "--sweeps.length", 1, 2, "--sweeps.depth-output", 1, 3,
             "--sweeps.depth-input", 1, "--sweeps.resistivity-n", 6, "--sweeps.maps", 1, "--sweeps.points", 12, "--sweeps.cost-repeats", 1,
             "--sweeps.supervised.epochs", 1, "--sweeps.supervised.batch", 8, "--sweeps.supervised-n", 24),
    "diffcap": (*PRETRAINING, "--models.denoising.steps", 2, "--models.denoising.batch", 4, "--models.denoising.warmup", 1,
 "--data.n", 4, "--attack.steps", 1, "--attack.targets", 1, "--attack.batch", 8,
                "--method.sampler-steps", 1, "--method.calibration-n", 4, "--method.calibration-steps", 1, "--choosing.n", 4,
                "--choosing.diffcap", 50, 100, 0, 50, 200, 0, "--choosing.times", 50, 100, "--choosing.clipure", 30, 1, "--choosing.jpeg", 75, 25,
                "--choosing.bits", 3, 2, "--choosing.resize-pad", 0.1, 0.2, "--choosing.blur", 0.8, 0.4, "--choosing.rates", 1, 3,
                "--tuning.steps", 1, "--tuning.batch", 4, "--tuning.warmup", 0, "--fare.steps", 1, "--fare.batch", 4, "--fare.warmup", 0,
                "--adaptive.n", 2, "--adaptive.steps", 1, "--adaptive.eot", 1, "--adaptive.draws", 2, "--sweeps.taus", 0,
                "--sweeps.factors", 1, 2, "--sweeps.times", 0, 50, "--sweeps.fixed", 50, "--sweeps.n", 4, "--sweeps.digits-n", 4,
                "--sweeps.quality-n", 2, "--sweeps.cost-n", 2, "--sweeps.cost-repeats", 1),
}  # fmt: skip
CLASSES = ("airplane", "bird", "cat", "delivery_van", "oak tree", "ship")


def steps(paper: str) -> tuple[object, object]:
    """A paper's module of steps, and its photos preset."""
    return importlib.import_module(f"papers.{paper}.steps"), importlib.import_module(f"papers.{paper}.config").PRESETS[
        "photos"
    ]


def test_papers_share_what_they_train_on_photographs():
    """Within one folder of results it is then trained once (`Lab.make`)."""
    clips = []
    pmg_aft, c = steps("pmg_aft")
    clips.append(pmg_aft.base(c))
    roclip, c = steps("roclip")
    clips.append(roclip.begin_of(c, "finetune"))
    rvpt, c = steps("rvpt")
    clips += [rvpt.backbone_of(c, "first"), rvpt.backbone_of(c, "second")]
    diffcap, c = steps("diffcap")
    clips += [diffcap.backbone(c, "clip"), diffcap.phi_of(c).clip]
    distshift, other = steps("distshift")
    denoisers = {diffcap.diffusion_of(c), distshift.diffusion_of(other, FOLDER)}
    assert len(denoisers) == 1 and {type(one.weights) for one in denoisers} == {Denoising}
    assert {type(clip) for clip in clips} == {Pretrained} and len(set(clips)) == 2
    assert {clip.architecture for clip in clips} == {"photos-vit-s8", "photos-vit-xs8"}
    assert Pretrained.shared and Denoising.shared


@pytest.mark.slow
@pytest.mark.parametrize("paper", SMALL)
def test_from_the_pictures_to_the_page(paper, tmp_path):
    photographs(tmp_path / "pictures", CLASSES, 12, 4)
    options = (
        "--scale",
        "photos",
        "--seeds",
        0,
        "--gates.no-enforce",
        "--data-root",
        tmp_path / "pictures",
        *SMALL[paper],
    )
    found = importlib.import_module(f"papers.{paper}.paper").PAPER
    store = rehearse(paper, partial(_run_here, paper), tmp_path / "results", *options)
    kinds = {n.tags["kind"] for n in found.plan(configured(found, *map(str, options)))}
    assert {m.tags["kind"] for m in store.planned()} == kinds
