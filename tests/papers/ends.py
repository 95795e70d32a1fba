"""What the tests of papers from end to end share: both scripts in turn, which files a run has written, and whether two runs measured the same."""

import importlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from shared.data.catalogue import Source
from shared.experiment.lab import Lab
from shared.experiment.paper import Paper
from shared.experiment.scale import parse
from shared.experiment.store import Store
from shared.report import Report

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("airplane", "bird", "cat", "delivery_van")


def load(path: str):
    """A file under tests/, for what it makes, such as tiny copies of data sets; `--import-mode=importlib` lets no test import a conftest."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "tests" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stamps(results: Path, *suffixes: str) -> dict[str, int]:
    """When each file was written last, but for the plan and the gates, which every run writes."""
    return {
        str(p.relative_to(results)): p.stat().st_mtime_ns
        for p in results.rglob("*")
        if p.suffix in suffixes and not p.name.startswith(".") and p.name not in ("plan.json", "gates.json")
    }


def run(script, results: Path, *options: object) -> str:
    """Training and evaluation, which both succeed; returns what they printed."""
    out = ""
    for name in ("train", "evaluate"):
        outcome = script(name, *options, "--results", results)
        assert outcome.code == 0, outcome.err
        out += outcome.out
    return out


def assert_equal(a: dict, b: dict, exact: bool = False) -> None:
    """Same measurements: names, keys and the value of every example, but for seconds, as a machine is never the same twice."""
    assert a.keys() == b.keys()
    for slug, (key, values) in a.items():
        assert b[slug][0] == key, slug
        if "seconds" not in slug:
            np.testing.assert_allclose(
                values, b[slug][1], rtol=0 if exact else 1e-7, atol=0 if exact else 1e-6, err_msg=slug
            )


def launch(paper: str, *options: object) -> None:
    """Training and evaluation on two processes, by the launcher."""
    command = [sys.executable, "-m", "shared.experiment.launch", "--device", "cpu2"]
    for name in ("train", "evaluate"):
        subprocess.run(
            [*command, "-m", f"papers.{paper}.{name}", *map(str, options)],
            cwd=ROOT,
            check=True,
            timeout=600,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
        )


def configured(paper: Paper, *options: object) -> object:
    """The configuration that a script has with these options."""
    return parse(paper.presets, "", [str(o) for o in options], paper.check)[1]


def lab_of(folder: Path) -> Lab:
    """One process at work in a folder of results, with data that are drawn on the spot."""
    import torch

    alone = {"num_processes": 1, "process_index": 0, "is_main_process": True, "wait_for_everyone": lambda: None}
    return Lab(folder, Source(), SimpleNamespace(device=torch.device("cpu"), **alone))


def check_drawn(paper: Paper, results: Path) -> None:
    """Every table, figure and claim of a paper has something to show of a run at SCALE=smoke."""
    report = Report(paper.name, "smoke", str(results))
    assert "not measured" not in repr(report.claims())
    for name, shown in paper.shown().items():
        apart = all(grid.apart for grid in shown.grids(paper.presets["smoke"]))  # nothing is set apart there
        assert shown.grids is shown or apart or shown(report.results) is not None, name


def everything_measured(folder: Path) -> Store:
    """The store of a run that has measured what it planned, all of it finite, and left nothing half done."""
    store = Store(folder)
    found = store.planned()
    assert {m.slug for m in found} == set(store.plan()["keys"])
    assert all(m.provenance["commit"] and m.n == len(m.values) > 0 and np.isfinite(m.values).all() for m in found)
    assert not [p for p in folder.rglob("*") if ".tmp-" in p.name or p.suffix == ".ckpt"]
    return store


def check_second_run(script, results: Path, least: int, *options: object) -> str:
    """Another run with these options measures nothing, of more than `least` measurements, and writes nothing again; returns what it said."""
    kinds = (".safetensors", ".npz", ".json", ".jsonl")
    before = stamps(results, *kinds)
    out = run(script, results, *options)
    total, there = re.search(r"(\d+) measurements, (\d+) already there", out).groups()
    assert total == there and int(total) > least
    assert stamps(results, *kinds) == before
    return out


def one_sentence(outcome, *said: str) -> None:
    """A script ended with one sentence that says these things."""
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for part in said:
        assert part in outcome.err


def photographs(root: Path, classes: Sequence[str] = CLASSES, train: int = 6, test: int = 3) -> None:
    """An image folder: each class a colour of its own with noise, 40×32 JPEGs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("test", test)):
        for k, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                picture = rng.integers(0, 90, (32, 40, 3)) + np.array([60 * (k & 1), 60 * (k & 2), 40 * k])
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i}.jpg")


def rehearse(paper: str, script, results: Path, *options: object) -> Store:
    """A scale from training to the page: everything planned is measured and finite, and nothing is missing on the page."""
    from shared.report import page

    run(script, results, *options)
    scale = options[options.index("--scale") + 1]
    store = everything_measured(results / scale / paper)
    page.main([paper, "--scale", scale, "--results", str(results)])
    assert not re.findall(r"<code>\w+</code>: not measured|class='absent'", (store.root / "page.html").read_text())
    return store


def cifar_pipeline(folder: Path) -> Path:
    """A diffusers pipeline of CIFAR-10's size in its folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder / "ddpm")
    return folder / "ddpm"


def write_shards(root: Path, captions: Sequence[str], files: int = 3, each: int = 16) -> None:
    """Web shards cc3m/<number>.tar as img2dataset writes them, below a DATA_ROOT: noise pictures, with the captions in turn."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (root / "cc3m").mkdir(parents=True, exist_ok=True)
    for k in range(files):
        with tarfile.open(root / "cc3m" / f"{k:05d}.tar", "w") as tar:
            for i in range(each):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(file, "JPEG")
                for suffix, content in (
                    ("jpg", file.getvalue()),
                    ("txt", captions[(k * each + i) % len(captions)].encode()),
                ):
                    info = tarfile.TarInfo(f"{k}{i:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def small_towers(folder: Path, towers: dict[str, dict], text_width: int = 64) -> None:
    """Make CLIPs known to open_clip: name -> what differs from an embedding of 64 numbers and a text tower of one layer with OpenAI's tokens."""
    import open_clip

    text = {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": 1, "layers": 1}
    for name, config in towers.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 64, **config, "text_cfg": text}))
        open_clip.add_model_config(folder / f"{name}.json")
