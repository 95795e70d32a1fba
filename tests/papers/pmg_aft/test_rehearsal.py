"""SCALE=photos and SCALE=paper from end to end on a handful of made-up pictures, shrunk by command-line options only."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from shared.data.captioned import vocabulary_of
from shared.data.catalogue import Source, open_set
from shared.experiment.store import Store
from shared.models.clip import create_clip
from tests.accuracy import assert_same_way
from tests.papers.ends import everything_measured, load, photographs, rehearse


@pytest.fixture(scope="module")
def makers():
    """Writers of tiny copies of the data sets, each in its own format on disk."""
    return load("shared/data/conftest.py")


def check_results(store: Store, kinds: set[str]) -> None:
    """Every kind is measured, with checks beside every robust cell."""
    found = store.planned()
    assert {m.tags["kind"] for m in found} == kinds
    assert all(m.sanity for m in found if m.tags["kind"] == "accuracy" and m.tags["attack"] != "clean")


PHOTOS = ("--scale", "photos", "--seeds", 0, "--gates.no-enforce", "--data.n", 6,
          "--model.pretraining.steps", 4, "--model.pretraining.batch", 8, "--model.pretraining.warmup", 1, "--model.pretraining.every", 2,
          "--tuning.steps", 2, "--tuning.batch", 4, "--fare.steps", 2, "--fare.batch", 4,
          "--attack.steps", 1, "--attack.auto-n", 4, "--attack.auto-steps", 1, "--attack.auto-queries", 2, "--attack.auto-targets", 1,
          "--attack.sanity-n", 2, "--attack.strong-steps", 2, "--attack.multiples", 1, 2, "--sweeps.alphas", 0, 1, "--sweeps.betas", 0, 1,
          "--sweeps.curve", 0, 1, "--sweeps.curve-n", 4, "--sweeps.last", 2, "--sweeps.test-batches", 64, 1024, "--sweeps.test-batch-n", 2,
          "--sweeps.cost-steps", 1)  # fmt: skip


@pytest.mark.slow
def test_photographs(script, tmp_path):
    """A small CLIP is pre-trained on the folder, tuned on every other class, and measured on these, the others and all.

    A broken picture stops the training, or another of its class stands in for it.
    """
    photographs(tmp_path / "pictures")
    strict = (*PHOTOS, "--data-root", tmp_path / "pictures", "--results", tmp_path / "results")
    options = (*strict, "--skip-corrupt")
    for picture in (tmp_path / "pictures" / "train" / "cat").glob("[0-4].jpg"):
        picture.write_bytes(picture.read_bytes()[:200])
    broken = script("train", *strict)
    assert broken.code == 2 and re.search(
        r"^error: the picture .*cat.* is corrupt or truncated: .*--skip-corrupt", broken.err, re.M
    )
    trained = script("train", *options)
    assert trained.code == 0, trained.err
    assert re.search(r"pictures so far cannot be read and others stand in for them, the last is: .*cat", trained.err)
    assert "training: pretrained by all processes" in trained.out
    outcome = script("evaluate", *options)
    assert outcome.code == 0, outcome.err
    store = everything_measured(tmp_path / "results" / "photos" / "pmg_aft")
    check_results(store, {"accuracy", "curve", "test_batch", "cost", "gate", "choice"})
    assert {m.tags["set"] for m in store.planned()} == {"seen", "unseen", "all", "none"}
    lengths = {
        m.tags["set"]: m.n for m in store.planned() if m.tags["kind"] == "accuracy" and m.tags["attack"] == "clean"
    }
    assert lengths == {"seen": 6, "unseen": 6, "all": 6}
    again = script("train", *options)
    assert "pretrained" not in again.out
    assert re.search(r"training: (\d+) runs, \1 already there", again.out)
    assert re.search(r"evaluation: (\d+) measurements, \1 already there", script("evaluate", *options).out)

    picture = next((tmp_path / "pictures" / "test" / "bird").iterdir())
    picture.write_bytes(picture.read_bytes()[:200])
    broken = script("evaluate", *strict)
    assert broken.code == 2
    assert re.fullmatch(r"error: the picture .*bird.* is corrupt or truncated: .*--skip-corrupt.*\n", broken.err)


@pytest.mark.slow
def test_pre_training_on_two_processes_is_that_of_one(script, nursery, tmp_path):
    """Each process takes half of every batch and all negatives; sums in another order round differently, and that is all."""
    from safetensors.torch import load_file

    photographs(tmp_path / "pictures")
    options = (*PHOTOS, "--headline", "--data-root", tmp_path / "pictures", "--results")
    assert script("train", *options, tmp_path / "one").code == 0
    nursery.start(tmp_path / "log", 2, "train", *options, tmp_path / "two").finish()
    one, two = (load_file(next((tmp_path / name).rglob("pretrained-*.safetensors"))) for name in ("one", "two"))
    classes = open_set("folder:all", "train", Source(str(tmp_path / "pictures"))).classes
    torch.manual_seed(0)
    start = create_clip("photos-vit-s8", vocabulary=vocabulary_of(classes)).state_dict()
    assert_same_way(one, two, start)


# 151 million weights: everything that costs a forward pass is as small as it can be, and nothing is left out.
PAPER = ("--seeds", 0, "--model.pretrained", "random", "--gates.no-enforce",
         "--data.zero-shot", "named:cifar10", "named:PCAM", "--data.n", 1,
         "--tuning.steps", 1, "--tuning.batch", 2, "--tuning.workers", 1, "--fare.steps", 1, "--fare.batch", 2, "--fare.workers", 0,
         "--attack.steps", 1, "--attack.long-steps", 2, "--attack.auto-n", 1, "--attack.auto-steps", 1, "--attack.auto-targets", 1,
         "--attack.auto-queries", 1, "--attack.sanity-n", 1, "--attack.strong-steps", 1, "--attack.multiples", 1, 2, "--attack.batch", 2,
         "--sweeps.alphas", 0, 1, "--sweeps.betas", 0, 1, "--sweeps.curve", 0, "--sweeps.curve-n", 1, "--sweeps.last", 2,
         "--sweeps.test-batches", 64, 1024, "--sweeps.test-batch-n", 1, "--sweeps.cost-steps", 1)  # fmt: skip


@pytest.fixture
def roomy(tmp_path):
    """A folder whose 5 GB of checkpoints do not outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path / "results", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["evening", "paper"])
def test_the_papers_own_scale(script, makers, roomy, monkeypatch, scale):
    """The real ViT-B/32 at random weights, TinyImageNet in its own folder layout, one update of every method, every table."""
    from torchvision.datasets import cifar as cifar_module

    monkeypatch.setattr(
        cifar_module, "check_integrity", lambda path, md5=None: Path(path).is_file()
    )  # tiny copies have other checksums
    for name in ("TinyImageNet", "cifar10", "cifar100", "PCAM"):
        makers.BUILDERS[name](roomy / "pictures")
    options = ("--scale", scale, *PAPER, "--data-root", roomy / "pictures")
    store = rehearse("pmg_aft", script, roomy / "results", *options)
    check_results(store, {"accuracy", "curve", "test_batch", "cost", "gate", "choice"})
    assert {m.tags["set"] for m in store.planned()} == {"tinyimagenet", "cifar10", "pcam", "none"}
    assert {m.tags["attack"] for m in store.planned() if m.tags["kind"] == "accuracy"} == {
        "clean", "pgd", "pgd_x2", "pgd_long", "cw", "auto", "pgd_paired"}  # fmt: skip
    records = json.loads((store.root / "figures" / "robust.md.json").read_text())
    assert records["scale"] == scale
