"""The script that fills the zoo, on a few updates."""

import json
import sys
from dataclasses import asdict, replace

import pytest
import torch

from shared.data.scene_sets import FINE_TUNING, SETS, ScenePairs
from shared.errors import UserError
from shared.files import sha256_file
from shared.models.zoo import card as zoo_card
from shared.training import pretrain as script
from shared.training import zoo
from shared.training.contrastive import ContrastiveConfig


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(script, "VALIDATION", 8)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the script with options, in `tmp_path`; returns its card."""
    state = torch.get_rng_state()

    def call(*options) -> dict:
        fixed = [
            "--out",
            str(tmp_path / "m.safetensors"),
            "--work",
            str(tmp_path / "work"),
            "--train.batch",
            "8",
            "--train.every",
            "2",
        ]
        monkeypatch.setattr(sys, "argv", ["pretrain", *fixed, *options])
        script.main()
        return json.loads((tmp_path / "m.json").read_text())

    yield call
    torch.set_rng_state(state)


def test_the_card_says_how_the_model_was_made_and_how_good_it_is(run, tmp_path):
    card = run("--train.steps", "3", "--seed", "5")
    assert (
        card["sha256"] == sha256_file(tmp_path / "m.safetensors")
        and card["bytes"] == (tmp_path / "m.safetensors").stat().st_size
    )
    assert (
        card["model"] == "scenes-vit-s8"
        and card["seed"] == 5
        and card["config"]["steps"] == 3
        and card["config"]["batch"] == 8
    )
    assert card["command"].startswith("python -m shared.training.pretrain --out ") and card["command"].endswith(
        "--train.steps 3 --seed 5"
    )
    assert len(card["commit"].removesuffix("-dirty")) in (40, len("unknown"))
    assert card["data"] == ScenePairs(1, seed=5).version and card["loss"] > 0 and card["seconds"] > 0
    assert card["n"] == 8 and set(card["accuracy"]) == set(SETS) and all(0 <= v <= 1 for v in card["accuracy"].values())
    assert card["attacked"]["set"] == FINE_TUNING and card["attacked"]["eps"] == pytest.approx(8 / 255)
    assert not list(tmp_path.glob("work/*"))


def test_only_the_card_is_written_again(run, tmp_path, monkeypatch):
    first = run("--train.steps", "2")
    weights = (tmp_path / "m.safetensors").read_bytes()
    old = {k: v for k, v in first.items() if k not in ("accuracy", "attacked", "n")}
    (tmp_path / "m.json").write_text(json.dumps(old))
    monkeypatch.setattr(zoo, "train", lambda *_: pytest.fail("trained again"))
    assert run("--card-only") == first
    assert (tmp_path / "m.safetensors").read_bytes() == weights


def test_a_card_about_other_weights_is_not_kept(run, tmp_path):
    run("--train.steps", "1")
    content = bytearray((tmp_path / "m.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is about other weights"):
        run("--card-only")
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(UserError, match="no weights with a readable card"):
        run("--card-only")
    (tmp_path / "m.json").unlink()
    with pytest.raises(UserError, match=r"leave out --card-only"):
        run("--card-only")


def test_an_interrupted_run_continues_and_one_with_other_options_starts_anew(run, tmp_path, monkeypatch):
    straight = run("--train.steps", "5")
    read, original = [], ScenePairs.__getitems__

    def fragile(self, indices):
        read.append(1)
        if len(read) == 4:
            raise KeyboardInterrupt
        return original(self, indices)

    monkeypatch.setattr(ScenePairs, "__getitems__", fragile)
    with pytest.raises(KeyboardInterrupt):
        run("--train.steps", "5")
    (checkpoint,) = (tmp_path / "work").iterdir()
    other = run("--train.steps", "5", "--train.lr", "0.0001")
    assert (
        len(read) == 4 + 5 and checkpoint.is_file()
    )  # read from the start, and the first run's checkpoint is still there
    card = run("--train.steps", "5")
    assert len(read) == 9 + 3 and not checkpoint.exists()
    assert card["sha256"] == straight["sha256"] != other["sha256"] and card["loss"] == straight["loss"]
    assert card["seconds"] is None and other["seconds"] > 0  # what the first part took is not known


def test_the_defaults_are_those_of_the_zoo():
    args = script.Args()
    card = zoo_card(args.out.stem)
    assert card["config"] == {k: v for k, v in asdict(args.train).items() if k != "workers"}  # which change no weight
    assert card["seed"] == args.seed and card["model"] == args.model
    assert replace(ContrastiveConfig(), steps=3600, every=200) == args.train


def test_without_git_the_commit_is_unknown(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(zoo.subprocess, "run", absent)
    assert zoo._commit() == "unknown"
