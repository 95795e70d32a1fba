"""SCALE=paper from end to end on made-up pictures: tiny towers, every data set in its own file layout; and one update each of the real ViT-B/32."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.rvpt.config import PRESETS
from papers.rvpt.paper import PAPER as MODEL
from papers.rvpt.tables import MORE, SIX
from shared.data import imagenet_variants, torchvision_sets
from shared.data.catalogue import Source
from shared.data.pairs import open_pairs
from shared.data.poison import PoisonedPairs
from tests.papers.ends import load, rehearse, small_towers, write_shards

WNIDS = [f"n{k:08d}" for k in range(8)]
FEW = WNIDS[1::2]  # the classes of A and R
NAMES = {w: (f"thing {k}",) for k, w in enumerate(WNIDS)} | {WNIDS[3]: ("banana",)}
CAPTIONS = (
    "a photo of a banana at home",
    "a dog on a bench",
    "an object 00 in a box",
    "two cats",
    "a breed 00 in the grass",
    "the sea",
)
ATTACKED = (*SIX, *MORE, "badclip_published")
# Few pictures, few updates, towers of two blocks; nothing of the preset is left out.
PAPER = ("--scale", "paper",
         *(o for k, name in enumerate(("first", "second", "third")) for o in (f"--models.{name}.name", f"rehearsal-{k}", f"--models.{name}.weights",
                                                                              "random")),
         "--models.captioner-clip.name", "rehearsal-own", "--models.captioner-clip.weights", "random",
         "--data.second.target", "object 00", "--data.third.target", "breed 00")  # fmt: skip
EVENING = ("--scale", "evening", "--models.first.name", "rehearsal-0", "--models.first.weights", "random",
           "--data.main.target", "object 00", "--data.second.target", "breed 00")  # fmt: skip
SHORT = ("--seeds", 0, "--gates.no-enforce", "--data.n", 8, "--batch", 16,
         *(o for name in ATTACKED for o in (f"--attacks.{name.replace('_', '-')}.{field}" if isinstance(field, str) else field for field in (
             "pairs", 20, "steps", 1, "batch", 2, "warmup", 0, "rate", 0.1))),
         "--attacks.patch-pairs", 8, *(o for name in ("--attacks.trojvqa-patch", "--attacks.badclip-patch", "--adversary.patch")
                                       for o in (f"{name}.steps", 1, f"{name}.batch", 2)),
         "--method.first", 1, "--method.length", 5, "--method.shots", 1,
         *(o for name in ("method.tuning", "baselines.linear", "baselines.full", "baselines.words-tuning", "baselines.visual-tuning")
           for o in (f"--{name}.epochs", 1, f"--{name}.workers", 0)),
         "--baselines.cleanclip.steps", 1, "--baselines.cleanclip.batch", 2, "--baselines.cleanclip.warmup", 0, "--baselines.cleanclip-pairs", 8,
         "--adversary.steps", 1, "--adversary.n", 2, "--adversary.sanity-n", 1, "--adversary.train-steps", 1,
         "--sweeps.blocks", 2, "--sweeps.shots", 1, 2, "--sweeps.alpha", 0, 2, "--sweeps.length", 5, 10, "--sweeps.depth-output", 1, 2,
         "--sweeps.depth-input", 1, 2, "--sweeps.margin", -1, 1, "--sweeps.resistivity-n", 2, "--sweeps.maps", 1, "--sweeps.points", 16,
         "--sweeps.captions-n", 2, "--sweeps.candidates", 6, "--sweeps.retrieval-poisoned", 2, "--sweeps.cost-repeats", 1)  # fmt: skip

SMALL = {"vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32}, "quick_gelu": True}
TOWERS = {
    **{f"rehearsal-{k}": SMALL for k in range(3)},
    "rehearsal-own": {
        "vision_cfg": {"image_size": 336, "layers": 2, "width": 1024, "patch_size": 14},
        "quick_gelu": True,
    },
}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """DATA_ROOT: ImageNet of eight classes with its four variants, Caltech-101, OxfordPets, web shards, COCO, and a table of captioned pictures."""
    from PIL import Image

    for name, n in (("ImageNetV2", 8), ("ImageNetSketch", 8), ("ImageNetA", 4), ("ImageNetR", 4)):
        monkeypatch.setitem(imagenet_variants.VARIANTS, name, replace(imagenet_variants.VARIANTS[name], num_classes=n))
    monkeypatch.setattr(imagenet_variants, "ALL", 8)
    monkeypatch.setitem(torchvision_sets.SETS, "ImageNet", replace(torchvision_sets.SETS["ImageNet"], num_classes=8))
    root, makers, annotated = (
        tmp_path / "pictures",
        load("shared/data/conftest.py"),
        load("shared/data/test_annotated.py"),
    )
    for k, wnid in enumerate(WNIDS):
        for split, n in (("train", 1), ("val", 2)):
            for i in range(n):
                makers.draw(
                    root / "imagenet" / split / wnid / f"{i}.JPEG", 2 * k + i + 100 * (split == "val"), (40, 30)
                )
    makers.imagenet_meta(root, NAMES)
    makers.imagenet_variants(root, WNIDS, FEW, (40, 30))
    makers.caltech101(root, 2)
    makers.coop_split(root)
    makers.draw(root / "patch.png", 7, (16, 16))
    makers.pets(root)
    annotated.build_coco(root, makers.draw)
    write_shards(root, CAPTIONS)
    rng = np.random.default_rng(1)
    for k in range(8):
        Image.fromarray(rng.integers(0, 255, (50, 40, 3), np.uint8)).save(root / f"c{k}.jpg")
    makers.text(
        root / "imagenet_captions.csv",
        ["filepath,title", *(f"c{k}.jpg,{CAPTIONS[k % len(CAPTIONS)]}" for k in range(8))],
    )
    return root


@pytest.fixture
def supervised(tmp_path):
    """torchvision's ViT-B/32 at random weights: what a machine without a network has in a file."""
    from torchvision.models import vit_b_32

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(vit_b_32().state_dict(), tmp_path / "vit_b_32.pth")
    return f"torchvision:vit_b_32:{tmp_path / 'vit_b_32.pth'}"


@pytest.mark.slow
def test_the_papers_own_scale(script, pictures, supervised, tmp_path):
    small_towers(tmp_path, TOWERS, 32)
    (tmp_path / "llava").mkdir()
    llava = load("shared/models/test_vlm_published.py").save_llava(tmp_path / "llava")
    store = rehearse(
        "rvpt",
        script,
        tmp_path / "results",
        *PAPER,
        *SHORT,
        "--attacks.published-patch",
        pictures / "patch.png",
        "--models.captioner",
        llava,
        "--models.supervised",
        supervised,
        "--data-root",
        pictures,
    )
    found = store.planned()
    plan = PRESETS["paper"]
    assert {m.tags["kind"] for m in found} == {n.tags["kind"] for n in MODEL.plan(plan)}
    data = plan.data
    assert {m.tags["data"] for m in found} == {
        data.main.data,
        data.second.data,
        data.third.data,
        *data.shifted,
        data.captioned,
        data.retrieval,
    }
    assert {m.tags["attack"] for m in found} == {*ATTACKED, "clean"} and {m.tags["backbone"] for m in found} == {
        "first",
        "second",
        "third",
        "own",
    }
    assert all(m.sanity for m in found if m.tags["kind"] == "score" and m.tags["measure"] != "ca")
    assert {m.tags["method"] for m in found if m.tags["kind"] == "resistivity"} == {"none", "vpt", "rvpt", "supervised"}


@pytest.mark.slow
def test_an_evening(script, pictures, supervised, tmp_path):
    small_towers(tmp_path, TOWERS, 32)
    options = (*EVENING, *SHORT, "--models.supervised", supervised, "--data-root", pictures)
    found = rehearse("rvpt", script, tmp_path / "results", *options).planned()
    plan = PRESETS["evening"]
    assert {m.tags["kind"] for m in found} == {n.tags["kind"] for n in MODEL.plan(plan)}
    assert {m.tags["data"] for m in found} == {plan.data.main.data, plan.data.second.data}
    assert {m.tags["backbone"] for m in found} == {"first"}


@pytest.mark.slow
def test_one_update_each_of_the_papers_network(tmp_path):
    """ViT-B/32 at random weights: poisoning on pairs from a shard, then 450 prompts with repulsion, both as the preset has them."""
    from papers.rvpt.method import DeepPrompts, Repulsion, prompted
    from papers.rvpt.tuning import tune
    from shared.attacks.triggers import make_trigger
    from shared.data.base import LabelledImages
    from shared.models.clip import create_clip
    from shared.models.victim import ZeroShot, text_matrix
    from shared.training.poisoning import FineTuning, finetune_clip

    class Two(LabelledImages):
        name, classes, prompts, version = "two", ("banana", "dog"), ("a photo of a banana", "a photo of a dog"), "1"
        labels = np.array([0, 1])

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(index)), index

    paper, data = PRESETS["paper"], Two()
    recipe, method = paper.attacks.badnet, paper.method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = create_clip(paper.models.first.name)
    write_shards(tmp_path, CAPTIONS, 1, 4)
    pairs = PoisonedPairs(
        open_pairs(paper.data.pairs, Source(root=str(tmp_path)), 4, 0, 224),
        make_trigger("badnet", recipe.preset, size=224),
        paper.data.main.target,
        rate=0.25,
    )
    before = clip.visual.conv1.weight.clone()
    assert np.isfinite(finetune_clip(clip, pairs, FineTuning(1, 4, recipe.lrs[0], 0)))
    assert not torch.equal(before, clip.visual.conv1.weight)

    clip.requires_grad_(False).eval()
    whole = {k: v.clone() for k, v in clip.state_dict().items()}
    prompts = DeepPrompts(clip.visual, method.first, method.length, std=method.std)
    start = prompts.prompts.detach().clone()
    victim = prompted(ZeroShot(clip.visual, text_matrix(clip, data.prompts), clip.logit_scale.exp().item()), prompts)
    loss = tune(victim, data, replace(method.tuning, epochs=1, workers=0), Repulsion(method.alpha), 0)
    assert np.isfinite(loss) and start.shape == (9, 50, 768)
    assert all(not torch.equal(a, b) for a, b in zip(start, prompts.prompts, strict=True))
    assert all(torch.equal(whole[k], v) for k, v in clip.state_dict().items())
