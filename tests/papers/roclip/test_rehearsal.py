"""SCALE=paper from training to the page on made-up web shards and pictures, every set in its own layout; and one update of an RN50."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papers.roclip import steps
from papers.roclip.config import PRESETS
from papers.roclip.paper import PAPER as ROCLIP
from papers.roclip.tables import FEW, SWEEPS, TRAINED
from papers.roclip.training import Method, Training, train
from shared.data.catalogue import Source
from shared.data.pairs import open_pairs
from shared.models.clip import create_clip
from tests.papers.ends import load, rehearse, small_towers, write_shards

PRESET = PRESETS["paper"]
PLANTED = [getattr(PRESET.attacks, name).target for name in PRESET.attacks.planted]
NAMED = (*PLANTED, "goldfish")  # what captions speak of: targets of the backdoors, and a class that none of them has
# Few pairs and updates, two points of every sweep, a small ResNet with the preset's parts; nothing of the preset is left out.
PAPER = ("--scale", "paper", "--gates.no-enforce", "--models.name", "rehearsal-rn", "--models.tuned", "rehearsal-rn",
         "--models.tuned-weights", "random", "--data.pretrain-n", 30, "--data.finetune-n", 24, "--data.images-n", 6, "--data.n", 4,
         "--data.probe-n", 4, "--attacks.targets.n", 2, "--attacks.targets.m", 2, "--attacks.targets.finetune-m", 2,
         *(option for name in PRESET.attacks.planted for option in (f"--attacks.{name.replace('_', '-')}.rate", 0.05)),
         "--methods.roclip.size", 8, "--methods.released.size", 8, "--methods.cross-modal.offset", 1,
         "--few.pairs", 24, "--few.targets", 2, "--few.doses", 2, 3, "--few.training.epochs", 2, "--few.training.batch", 14,
         "--few.training.warmup", 1, "--few.training.workers", 0, "--methods.safeclip.alone", 1, "--methods.safeclip.slow", 1,
         "--methods.safeclip.share", 0.2, "--methods.cleanclip.steps", 1, "--methods.cleanclip.batch", 4, "--methods.cleanclip-n", 8,
         "--pretraining.epochs", 3, "--pretraining.batch", 16, "--pretraining.warmup", 1, "--pretraining.workers", 0, "--finetuning.epochs", 3,
         "--finetuning.batch", 14, "--finetuning.warmup", 1, "--finetuning.workers", 1, "--probing.epochs", 1, "--sweeps.pool", 8 / 30, 0.5,
         "--sweeps.every", 2, 1, "--sweeps.sides", "both", "image",
         "--sweeps.augment", "both", "none", "--sweeps.strong", 2, 3, "--sweeps.cost-steps", 1, "--sweeps.strip", 2, "--watch-n", 4)  # fmt: skip
CAPTIONS = [f"a photo of a {name} at home" for name in NAMED]
TOWER = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}


def write_validation(root, n: int = 8) -> None:
    """CC's validation pairs as a table."""
    rng = np.random.default_rng(1)
    for k in range(n):
        Image.fromarray(rng.integers(0, 255, (50, 40, 3), np.uint8)).save(root / f"v{k}.jpg")
    (root / "cc3m_validation.csv").write_text(
        "filepath,title\n" + "".join(f"v{k}.jpg,something {k}\n" for k in range(n))
    )


def relisted(makers, file, folder, change, ending: str = "") -> list:
    """The pictures of a list, which are the test's, under other names; they are still to be made."""
    lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
    makers.text(file, [" ".join([change(name), *rest]) for name, *rest in lines])
    return [folder / f"{change(name)}{ending}" for name, *_ in lines]


def write_sets(root) -> None:
    """The ten sets of the preset, both splits of each with pictures of their own."""
    from scipy.io import savemat

    makers = load("shared/data/conftest.py")
    for name in (
        "cifar10",
        "cifar100",
        "Food101",
        "OxfordPets",
        "Flowers102",
        "DTD",
        "FGVC-Aircraft",
        "StanfordCars",
        "ImageNet",
    ):
        makers.BUILDERS[name](root)
    makers.caltech101(root, 2)
    pets, planes = root / "oxford-iiit-pet", root / "fgvc-aircraft-2013b/data"
    train = [
        *relisted(
            makers,
            root / "dtd/dtd/labels/train1.txt",
            root / "dtd/dtd/images",
            lambda name: name.replace("_0001", "_0002"),
        ),
        *relisted(makers, pets / "annotations/trainval.txt", pets / "images", lambda name: f"{name}00", ".jpg"),
        *relisted(
            makers, planes / "images_variant_trainval.txt", planes / "images", lambda name: f"9{name[1:]}", ".jpg"
        ),
    ]
    cars = root / "stanford_cars"
    annotations = np.array(
        [(f"{k + 1:05d}.jpg", k + 1) for k in range(196)], dtype=[("fname", object), ("class", object)]
    )
    savemat(cars / "devkit/cars_train_annos.mat", {"annotations": annotations})
    train += [cars / "cars_train" / f"{k + 1:05d}.jpg" for k in range(196)]
    wnids = sorted(folder.name for folder in (root / "imagenet/val").iterdir())
    train += [root / "imagenet/train" / wnid / f"{wnid}_1.JPEG" for wnid in wnids]
    for k, path in enumerate([*sorted(p for p in root.rglob("*") if p.suffix in (".jpg", ".JPEG")), *train]):
        makers.draw(path, k)  # no picture twice: a probe is refused its test pictures
    meta, _ = torch.load(root / "imagenet/meta.bin")
    meta |= {wnid: (name, "another name") for wnid, name in zip(wnids[100:], NAMED, strict=False)}
    torch.save((meta, []), root / "imagenet/meta.bin")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """DATA_ROOT: web shards, CC's validation as a table, and tiny copies of the named sets."""
    from torchvision.datasets import cifar, flowers102

    for module in (cifar, flowers102):  # tiny copies have other checksums
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    root = tmp_path / "pictures"
    write_sets(root)
    write_shards(root, CAPTIONS, each=18)
    write_validation(root)
    return root


@pytest.fixture
def tower(tmp_path, monkeypatch):
    """A small ResNet with the tokenizer of CLIP, which is made once and takes a text apart once; two of ImageNet's templates."""
    import open_clip

    small_towers(tmp_path, {"rehearsal-rn": TOWER}, 32)
    monkeypatch.setattr(steps, "OPENAI_IMAGENET_TEMPLATES", steps.OPENAI_IMAGENET_TEMPLATES[:2])
    monkeypatch.setattr(open_clip, "get_tokenizer", cache(open_clip.get_tokenizer))
    monkeypatch.setattr(open_clip.SimpleTokenizer, "encode", cache(open_clip.SimpleTokenizer.encode))
    monkeypatch.setattr(steps, "REPEATS", 1)


@pytest.mark.slow
def test_the_papers_own_scale(script, tower, pictures, tmp_path):
    store = rehearse("roclip", script, tmp_path / "results", *PAPER, "--data-root", pictures)
    found = store.planned()
    assert {m.tags["kind"] for m in found} == {n.tags["kind"] for n in ROCLIP.plan(PRESET)}
    assert {m.tags["data"] for m in found} == {PRESET.data.main, *PRESET.data.downstream}
    assert {m.tags["method"] for m in found if m.tags["kind"] == "few"} == set(FEW)
    for regime, methods in TRAINED.items():
        assert {m.tags["method"] for m in found if m.tags["kind"] == "score" and m.tags["regime"] == regime} == set(
            methods
        )
    assert {m.tags["sweep"] for m in found if m.tags["kind"] == "ablation"} == set(SWEEPS)


@pytest.mark.slow
def test_one_update_of_the_papers_network(tmp_path):
    """RN50 from scratch with the released augmentation, version and schedule, on pairs from a shard."""
    write_shards(tmp_path, CAPTIONS, 1, 4)
    pairs = open_pairs("shards:cc3m/*.tar", Source(root=str(tmp_path)), 4, 0, 224)
    torch.manual_seed(0)
    clip = create_clip(PRESET.models.name)
    before = clip.visual.conv1.weight.clone()
    training = Training(2, 4, 5e-5, 1, ahead=True, decayed="names", betas=(0.9, 0.999), epsilon=1e-8, clip_norm=None)
    found = train(clip, pairs, Method(PRESET.methods.released, PRESET.methods.images), training)
    assert [row["matched"] for row in found.history] == [False, True] and np.isfinite(found.loss)
    assert not torch.equal(before, clip.visual.conv1.weight) and found.pools["text"].directions.shape == (21_845, 1024)
