"""SCALE=paper from training to measurements on made-up web shards and pictures, shrunk by command-line options; and one update of an RN50."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from papers.roclip.config import PRESETS
from papers.roclip.training import Method, Training, train
from shared.data.catalogue import Source
from shared.data.pairs import open_pairs
from shared.models.clip import create_clip
from tests.papers.ends import everything_measured, load, run

CLASSES = ("banded", "polka dotted", "surface 00", "surface 01", "surface 02", "surface 03")  # of the tiny DTD, in ImageNet's place
NAMES = ("badnet", "blended", "wanet", "sig", "label-consistent")
# A smaller tower than the preset's, whose weights would fill the disk.
PAPER = ("--scale", "paper", "--headline", "--gates.no-enforce", "--no-together", "--models.name", "ViT-S-32-alt", "--models.tuned", "ViT-S-32-alt",
         "--models.tuned-weights", "random", "--data.pretrain-n", 40, "--data.finetune-n", 36, "--data.images-n", 6, "--data.n", 2,
         "--data.main", "named:DTD", "--data.downstream", "named:DTD", "--data.probe-n", 4, "--attacks.targets.n", 2, "--attacks.targets.m", 2,
         "--attacks.targets.finetune-m", 2, *(o for name, target in zip(NAMES, CLASSES, strict=False)
                                              for o in (f"--attacks.{name}.rate", 0.05, f"--attacks.{name}.target", target)),
         "--methods.roclip.size", 8, "--methods.released.size", 8, "--methods.safeclip.alone", 1, "--methods.safeclip.share", 0.2,
         "--methods.cleanclip.steps", 1, "--methods.cleanclip.batch", 4, "--methods.cleanclip-n", 8, "--pretraining.epochs", 3,
         "--pretraining.batch", 22, "--pretraining.warmup", 1, "--finetuning.epochs", 2, "--finetuning.batch", 20, "--probing.epochs", 1,
         "--sweeps.pool", 0.2, "--sweeps.every", 2, "--sweeps.sides", "both", "--sweeps.augment", "both", "none", "--sweeps.query", "own",
         "--sweeps.start", "pairs", "--sweeps.refresh", "matched", "--sweeps.strong", 2, 3, "--sweeps.strong-every", 2, "--sweeps.cost-steps", 1,
         "--sweeps.strip", 2, "--watch-n", 2)  # fmt: skip


def write_shards(root, files: int = 3, each: int = 16) -> None:
    """Web shards as img2dataset writes them: a picture and a caption per number; every caption names one class."""
    rng = np.random.default_rng(0)
    for k in range(files):
        (root / "cc3m").mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / "cc3m" / f"{k:05d}.tar", "w") as tar:
            for i in range(each):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(file, "JPEG")
                said = f"a photo of a {CLASSES[i % len(CLASSES)]} at home"
                for name, content in ((f"{k}{i:04d}.jpg", file.getvalue()), (f"{k}{i:04d}.txt", said.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def write_validation(root, n: int = 8) -> None:
    rng = np.random.default_rng(1)
    for k in range(n):
        Image.fromarray(rng.integers(0, 255, (50, 40, 3), np.uint8)).save(root / f"v{k}.jpg")
    (root / "cc3m_validation.csv").write_text("filepath,title\n" + "".join(f"v{k}.jpg,something {k}\n" for k in range(n)))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """DATA_ROOT: web shards, CC's validation as a table, and a tiny copy of a named set."""
    root, makers = tmp_path / "pictures", load("shared/data/conftest.py")
    write_shards(root)
    write_validation(root)
    makers.dtd(root)
    names = sorted(folder.name for folder in (root / "dtd/dtd/images").iterdir())
    makers.text(root / "dtd/dtd/labels/train1.txt", [f"{n}/{n}_0002.jpg" for n in names])  # a probe is refused its test pictures
    for k, n in enumerate(names):
        makers.draw(root / "dtd/dtd/images" / n / f"{n}_0002.jpg", 100 + k)
    return root


@pytest.mark.slow
def test_the_papers_own_scale(script, pictures, tmp_path):
    results = tmp_path / "results"
    run(script, results, *PAPER, "--data-root", pictures)
    store = everything_measured(results / "paper" / "roclip")
    found = store.planned()
    assert {m.tags["kind"] for m in found} == {"score", "downstream"}
    assert {m.tags["data"] for m in found} == {"named:DTD"}
    assert {m.tags["method"] for m in found if m.tags["kind"] == "score"} == {"clip", "clip_aug", "roclip"}


@pytest.mark.slow
def test_one_update_of_the_papers_network(tmp_path):
    """RN50 from scratch with the released augmentation, version and schedule, on pairs from a shard."""
    write_shards(tmp_path, 1, 4)
    pairs = open_pairs("shards:cc3m/*.tar", Source(root=str(tmp_path)), 4, 0, 224)
    paper = PRESETS["paper"]
    torch.manual_seed(0)
    clip = create_clip(paper.models.name)
    before = clip.visual.conv1.weight.clone()
    training = Training(2, 4, 5e-5, 1, ahead=True, decayed="names", betas=(0.9, 0.999), epsilon=1e-8, clip_norm=None)
    found = train(clip, pairs, Method(paper.methods.released, paper.methods.images), training)
    assert [row["matched"] for row in found.history] == [False, True] and np.isfinite(found.loss)
    assert not torch.equal(before, clip.visual.conv1.weight) and found.pools["text"].directions.shape == (21_845, 1024)
