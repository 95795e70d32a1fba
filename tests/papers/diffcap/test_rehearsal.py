"""SCALE=paper from end to end on made-up pictures: the published models' own classes at reduced depth, every data set in its own file layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.papers.ends import cifar_pipeline, load, rehearse

# Few pictures, few steps, towers of two layers; nothing of the preset is left out.
PAPER = ("--scale", "paper", "--models.denoiser", "random:tiny",
         "--models.llava-tower", "rehearsal-llava", "random", "--models.flamingo-tower", "rehearsal-idefics", "random")  # fmt: skip
SHORT = ("--seeds", 0, "--gates.no-enforce", "--data.n", 2,
         "--models.clip", "rehearsal-clip", "--models.clip-weights", "random", "--models.phi", "rehearsal-phi", "--models.phi-weights", "random",
         "--attack.steps", 1, "--attack.references", 1, "--attack.targets", 1, "--attack.target-steps", 1, "--attack.target-n", 1,
         "--attack.no-half-first", "--choosing.n", 2, "--choosing.diffcap", 100, 200, 0, "--choosing.times", 50, 100,
         "--choosing.clipure", 30, "--choosing.jpeg", 75, "--choosing.bits", 3, "--choosing.resize-pad", 0.1,
         "--choosing.blur", 1,
         "--method.sampler-steps", 2, "--method.calibration-n", 2,
         "--method.calibration-steps", 1, "--tuning.steps", 1, "--tuning.batch", 2, "--tuning.workers", 0, "--fare.steps", 1, "--fare.batch", 2,
         "--fare.workers", 0, "--adaptive.n", 1, "--adaptive.caption-n", 1, "--adaptive.steps", 1, "--adaptive.eot", 1, "--adaptive.draws", 2,
         "--sweeps.factors", 1, 2, "--sweeps.times", 0, 100, "--sweeps.fixed", 50, 100, "--sweeps.n", 2,
         "--sweeps.digits-n", 4, "--sweeps.quality-n", 2, "--sweeps.strip", 1, "--sweeps.cost-n", 1, "--sweeps.cost-repeats", 1)  # fmt: skip

TOWERS = {  # open_clip configurations: image tower of the published width, two layers
    "rehearsal-clip": {
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
        "quick_gelu": True,
    },
    "rehearsal-phi": {
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "patch_size": 32},
        "quick_gelu": True,
    },
    "rehearsal-llava": {
        "vision_cfg": {"image_size": 336, "layers": 2, "width": 1024, "patch_size": 14},
        "quick_gelu": True,
    },
    "rehearsal-idefics": {
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 320, "head_width": 80, "patch_size": 14}
    },
}


@pytest.fixture
def towers(tmp_path):
    import open_clip

    for name, config in TOWERS.items():
        text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
        (tmp_path / f"{name}.json").write_text(json.dumps({"embed_dim": 64, **config, "text_cfg": text}))
        open_clip.add_model_config(tmp_path / f"{name}.json")


@pytest.fixture
def pictures(tmp_path):
    """DATA_ROOT: the four annotated sets, ImageNet and Caltech-101."""
    from PIL import Image

    def picture(path, seed, size=(40, 32)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path)

    root, annotated, named = (
        tmp_path / "pictures",
        load("shared/data/test_annotated.py"),
        load("shared/data/conftest.py"),
    )
    (
        annotated.build_coco(root, picture),
        annotated.build_flickr(root, picture),
        annotated.build_vqa(root),
        annotated.build_textvqa(root, picture, 100),
    )
    named.imagenet(root), named.caltech101(root)
    (root / "imagenet/train").symlink_to("val")
    return root


@pytest.mark.slow
def test_the_papers_own_scale(script, towers, pictures, tmp_path):
    models = load("shared/models/test_vlm_published.py")
    (tmp_path / "llava").mkdir(), (tmp_path / "idefics").mkdir()
    options = (
        *PAPER,
        *SHORT,
        "--models.llava",
        models.save_llava(tmp_path / "llava"),
        "--models.flamingo",
        models.save_idefics(tmp_path / "idefics"),
        "--data-root",
        pictures,
    )
    store = rehearse("diffcap", script, tmp_path / "results", *options)
    scores = [m for m in store.planned() if m.tags["kind"] == "score"]
    assert all(m.sanity for m in scores if m.tags["attack"] == "adversarial")
    assert {m.tags["data"] for m in scores} == {
        "coco",
        "flickr30k",
        "vqav2",
        "textvqa",
        "named:ImageNet",
        "named:Caltech101",
    }
    made = (store.root / "checkpoints").glob("*.safetensors")
    assert sum(path.name.startswith(("tecoa__", "fare__")) for path in made) == 6  # of three towers


@pytest.mark.slow
def test_an_evening(script, towers, tmp_path, monkeypatch):
    """Classification at CIFAR's size."""
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())  # of tiny copies
    makers = load("shared/data/conftest.py")
    for classes in (10, 100):
        makers.cifar(tmp_path / "pictures", classes)
    options = ("--scale", "evening", *SHORT, "--models.denoiser", f"diffusers:{cifar_pipeline(tmp_path)}")
    store = rehearse("diffcap", script, tmp_path / "results", *options, "--data-root", tmp_path / "pictures")
    scores = [m for m in store.planned() if m.tags["kind"] == "score"]
    assert all(m.sanity for m in scores if m.tags["attack"] == "adversarial")
    assert {m.tags["data"] for m in scores} == {"named:cifar10", "named:cifar100"}
    assert {m.tags["model"] for m in scores} == {"clip"}
