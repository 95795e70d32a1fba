"""SCALE=paper from end to end on made-up pictures: the published classifiers at random weights, both sets in their own file layouts."""

from pathlib import Path

import numpy as np
import pytest

from tests.papers.ends import cifar_pipeline, load, rehearse

# A few passes of each network; nothing of the preset is left out but the 256×256 denoiser, whose conversion has tests of its own.
PAPER = ("--seeds", 0, "--gates.no-enforce", "--data.n", 2,
         "--attack.steps", 1, "--attack.auto-steps", 1, "--attack.targets", 1, "--attack.queries", 1, "--attack.sanity-n", 1, "--attack.batch", 2,
         "--method.sampler-steps", 2, "--method.batch", 4, "--training.steps", 1, "--training.batch", 2, "--training.workers", 0,
         "--at-training.steps", 1, "--at-training.batch", 2, "--at-training.attack-steps", 1, "--at-training.workers", 0,
         "--adaptive.n", 1, "--adaptive.steps", 1, "--adaptive.eot", 1, "--adaptive.draws", 2, "--adaptive.square-n", 1,
         "--adaptive.square-queries", 1, "--adaptive.sanity-n", 1, "--sweeps.n", 1, "--sweeps.times", 1, 2, "--sweeps.t", 50, 100,
         "--released.n", 1, "--released.times", 400, "--released.second-times", 50, "--released.eps", 0, 8,
         "--released.bpda-steps", 1, "--released.bpda-draws", 1, "--sweeps.rounds", 1, 2, "--sweeps.scales", 0, 1,
         "--choosing.n", 2, "--sweeps.features-n", 2, "--sweeps.block", 2, "--sweeps.permutations", 5,
         "--sweeps.quality-n", 1, "--sweeps.strip", 1, "--sweeps.cost-n", 1, "--sweeps.cost-repeats", 1)  # fmt: skip


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """DATA_ROOT: CIFAR-10 as torchvision keeps it, and the two original archives of ImageNet30."""
    from PIL import Image
    from torchvision.datasets import cifar

    from shared.data.imagenet30 import FOLDERS

    monkeypatch.setattr(
        cifar, "check_integrity", lambda path, md5=None: Path(path).is_file()
    )  # tiny copies have other checksums
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    load("shared/data/conftest.py").cifar(root, 10)
    for part, n in (("one_class_train", 2), ("one_class_test", 1)):
        for name in FOLDERS:
            for k in range(n):
                path = root / part / name / f"{k}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(path)
    return root


@pytest.fixture
def standard(tmp_path) -> Path:
    """A checkpoint of a WRN-28-10 as RobustBench publishes it."""
    import torch

    from shared.models.classifier import random_classifier

    path = tmp_path / "Standard.pt"
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in random_classifier("wrn-28-10", 10, 0).weights().items()}}, path
    )
    return path


@pytest.fixture
def pipeline(tmp_path) -> Path:
    return cifar_pipeline(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["evening", "paper"])
def test_the_papers_own_scale(script, pictures, standard, pipeline, tmp_path, scale):
    """The WRN-28-10 takes half an hour and is read at the paper's scale; an evening has a small network in its place."""
    own = {
        "evening": ("--models.first.arch", "resnet8", "--models.first.weights", "random"),
        "paper": ("--models.first.weights", standard, "--models.second.denoiser", "random:tiny"),
    }[scale]
    denoiser = ("--models.first.denoiser", f"diffusers:{pipeline}")
    options = ("--scale", scale, *PAPER, *own, *denoiser, "--data-root", pictures)
    store = rehearse("distshift", script, tmp_path / "results", *options)
    scores = [m for m in store.planned() if m.tags["kind"] == "score"]
    there = {"evening": {"named:cifar10"}, "paper": {"named:cifar10", "named:ImageNet30"}}[scale]
    assert {m.tags["data"] for m in scores} == there
    assert all(m.sanity for m in scores if m.tags["attack"] != "clean")
    if scale == "paper":
        assert "ImageNet30" in store.plan()["config"]["names"]["named:ImageNet30"]
