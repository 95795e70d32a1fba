"""Every kind of model and of pictures that judge knows, for real, with models of a few thousand weights in the real formats."""

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.judge.__main__ import run
from shared.judge.given import Model, Plain, Set
from shared.judge.page import Judged
from shared.models import zoo
from shared.processes import accelerator

NAMES = ("reddish", "greenish", "bluish")
QUICK = ("--steps", "2", "--queries", "2", "--targets", "1", "--part", "16", "--sanity-n", "4")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of three classes: channel k of class k is brighter by 0.02 … 0.14; in folders, and the names of the classes."""
    root, grain = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    (root / "names.txt").write_text("\n".join(NAMES))
    for k, name in enumerate(NAMES):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(5):
            x = 0.5 + 0.02 * grain.standard_normal((8, 8, 3))
            x[:, :, k] += 0.02 + 0.03 * i
            Image.fromarray((255 * x).round().astype(np.uint8)).save(root / "pictures" / name / f"{i}.png")
    return root


def files(root: Path) -> list[Path]:
    """Its pictures."""
    return sorted((root / "pictures").rglob("*.png"))


def hf_clip(folder: Path) -> None:
    """A CLIP of transformers with random weights, a tokenizer of single letters and a preprocessor."""
    letters = [chr(c) for c in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    text = SMALL | {
        "vocab_size": len(words),
        "max_position_embeddings": 48,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = SMALL | {"image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)


def hf_classifier(folder: Path) -> None:
    """A classifier of transformers with random weights."""
    ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def torchvision_file(folder: Path) -> None:
    """Weights of torchvision's ResNet-18 for three classes."""
    folder.mkdir()
    save_file(resnet18(num_classes=3).state_dict(), folder / "weights.safetensors")


def judged(root: Path, out: Path, *options: str) -> Judged:
    """What judge leaves of the pictures of `root`, or others."""
    given = ("--data", str(root / "pictures"), "--classes", str(root / "names.txt"), "--out", str(out))
    run(["judge", *given, *QUICK, *options])
    return Judged(out)


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (hf_clip, "hf:{}"),
        (hf_classifier, "hf:{}"),
        pytest.param(torchvision_file, "torchvision:resnet18@{}/weights.safetensors", marks=pytest.mark.slow),
    ],
)
def test_models_in_the_formats_of_their_libraries(root, tmp_path, make, spec):
    torch.manual_seed(0)
    make(tmp_path / "model")
    found = judged(root, tmp_path / "out", "--model", spec.format(tmp_path / "model"))
    assert found.numbers["clean", "mean"].n == 15 and found.facts["names"] == list(NAMES)
    assert not found.facts["random"]
    same = found.numbers["worst", "same"]
    assert np.array_equal(same.values, same.extra["before"])


def test_the_example_of_the_docs(root, tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs" / "judge.md").read_text()
    (tmp_path / "my_judged_module.py").write_text(re.search(r"```python\n(# my_module.py.*?)```", text, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    of = ("--model", "make_victim"), ("--defence", "Blur"), ("--attack", "attack")
    options = [word for option, name in of for word in (option, f"my_judged_module:{name}")]
    found = judged(root, tmp_path / "out", *options, "--n", "6", "--repeats", "2", "--eot", "1")
    assert found.facts["random"] and "own0" in found.attacks


def test_a_folder_of_transformers_that_lacks_a_part_is_refused_in_a_sentence(root, tmp_path):
    hf_classifier(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    for place in ("model", "none/at/all"):
        with pytest.raises(UserError, match=r"--model hf:.* cannot be had") as refused:
            judged(root, tmp_path / "out", "--model", f"hf:{tmp_path / place}")
        assert "\n" not in str(refused.value)


def test_a_checkpoint_by_the_name_of_open_clip(tmp_path):
    card = zoo.card("scenes-vit-xs8")
    spec = f"open_clip:{card['model']}@{zoo.weights('scenes-vit-xs8')}"
    same = []
    for model in (spec, "scenes-vit-xs8"):
        out = tmp_path / str(len(same))
        run(["judge", "--model", model, "--data", "scenes:shape", "--n", "8", *QUICK, "--out", str(out)])
        same.append(Judged(out).numbers["pgd", "mean"].values)
    assert np.array_equal(*same)


def test_the_l2_ball_of_a_linear_model_exactly(root, tmp_path):
    eps = 0.5
    found = judged(root, tmp_path, "--model", "mine:linear", "--norm", "l2", "--eps", str(eps), "--steps", "8")
    right = []
    for path in files(root):
        means = (np.asarray(Image.open(path)) / 255).mean(axis=(0, 1))
        k = NAMES.index(path.parent.name)
        # the difference of two channels' means over 64 pixels has a gradient of length √(2·64)/64
        right.append(means[k] - np.delete(means, k).max() > eps * 2**0.5 / 8)
    assert 0.2 < np.mean(right) < 0.8
    assert found.numbers["worst", "mean"].value == pytest.approx(np.mean(right), abs=0.01)
    assert found.verdict.status == "stands"


def test_tables_shards_and_folders_of_the_same_pictures_are_judged_alike(root, tmp_path):
    rows = [(path, NAMES.index(path.parent.name)) for path in files(root)]
    (tmp_path / "names.csv").write_text("path,label\n" + "".join(f"{p},{p.parent.name}\n" for p, _ in rows))
    (tmp_path / "numbers.csv").write_text("image,class\n" + "".join(f"{p},{k}\n" for p, k in rows))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, (path, k) in enumerate(rows):
            for suffix, content in (("png", path.read_bytes()), ("cls", str(k).encode())):
                info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    budget = ("--model", "mine:linear", "--eps", "8/255", "--data-root", str(tmp_path))
    whole = judged(root, tmp_path / "folder", *budget)
    for data in ("csv:names.csv", "csv:numbers.csv", f"shards:{tmp_path}/a.tar"):
        found = judged(root, tmp_path / data.replace("/", "-"), *budget, "--data", data)
        for attack in ("clean", "worst"):
            assert found.numbers[attack, "mean"].value == whole.numbers[attack, "mean"].value
    with pytest.raises(UserError, match="are numbers: name them with --classes"):
        run(["judge", *budget, *QUICK, "--data", "csv:numbers.csv", "--out", str(tmp_path / "out")])
    (tmp_path / "few.txt").write_text("reddish\ngreenish\n")
    with pytest.raises(UserError, match="has 2 names and the pictures have the label 2"):
        judged(root, tmp_path / "out", *budget, "--data", "csv:numbers.csv", "--classes", str(tmp_path / "few.txt"))


def test_an_unreadable_picture_stops_or_is_left_out_and_said(root, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [f"{path},{path.parent.name}\n" for path in files(root)]
    (tmp_path / "t.csv").write_text("".join(["path,label\n", *rows, f"{tmp_path}/bad.png,reddish\n", "gone.png\n"]))
    given = ("--model", "mine:linear", "--data", f"csv:{tmp_path}/t.csv")
    with pytest.raises(UserError, match=r"row 18 .* has 1 fields .*--skip-corrupt"):
        judged(root, tmp_path / "out", *given)
    found = judged(root, tmp_path / "out", *given, "--skip-corrupt")
    assert found.facts["n"] == 15 == found.numbers["clean", "mean"].n
    assert any(caution.startswith("2 things cannot be read and are left out") for caution in found.facts["cautions"])
    assert "2 things cannot be read" in (tmp_path / "out" / "page.html").read_text()


def test_a_set_of_torchvision(root, tmp_path):
    kinds = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"
    for k, name in enumerate(kinds.split()):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (25 * k, 128, 0)).save(tmp_path / "eurosat" / "2750" / name / f"{name}_1.jpg")
    given = ("--data", "torchvision:eurosat", "--data-root", str(tmp_path), "--model", "mine:ten")
    run(["judge", *given, *QUICK, "--n", "5", "--out", str(tmp_path / "out")])
    found = Judged(tmp_path / "out")
    assert len(found.facts["names"]) == 10 and found.numbers["clean", "mean"].n == 5
    with pytest.raises(UserError, match="DTD is not at"):
        run(["judge", *given, *QUICK, "--data", "torchvision:dtd", "--out", str(tmp_path / "out")])


def test_a_clip_that_guides_a_defence_has_second_derivatives(tmp_path):
    lab = Lab(tmp_path, Source(), accelerator())
    model = Model("scenes-vit-xs8", Set("scenes:shape")).open(lab)
    plain, x = Plain(model), Set("scenes:shape").open(lab).__getitems__([0, 1])[0]

    def gradient(victim, **how):
        at = x.clone().requires_grad_()
        return at, torch.autograd.grad(victim(at)[:, 0].sum(), at, **how)[0]

    torch.testing.assert_close(plain(x), model(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient(plain)[1], gradient(model)[1], rtol=1e-2, atol=1e-3)
    at, first = gradient(plain, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), at)[0]
    step = 3e-3 * second / second.norm()
    x = x + step
    _, ahead = gradient(plain)
    x = x - 2 * step
    _, behind = gradient(plain)
    slope = (ahead.square().sum() - behind.square().sum()) / 6e-3
    assert slope.item() == pytest.approx(second.norm().item(), rel=0.02)
    assert {id(p) for p in plain.parameters()} == {id(p) for p in model.parameters()}
