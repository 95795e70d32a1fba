"""Every model in the zoo is the one on its card, and as good as its card says."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from scipy.stats import binomtest

from shared.data.scene_sets import FINE_TUNING, SETS, ZERO_SHOT, ScenePairs, SceneSet
from shared.errors import UserError
from shared.files import sha256_file
from shared.models import zoo
from shared.models.clip import create_clip
from shared.training.pretrain import accuracy
from shared.training.zoo import TRAINING_FACTS

pytestmark = pytest.mark.numeric
NAMES = sorted(p.stem for p in zoo.FOLDER.glob("*.json"))
CLIPS = [
    name for name in NAMES if zoo.card(name).get("kind", "clip") == "clip"
]  # the others are tested beside what they are models of


def tracked(pattern: str) -> list[str]:
    try:
        found = subprocess.run(
            ["git", "ls-files", pattern], cwd=zoo.FOLDER, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return []  # a copy without git
    return found.stdout.split()


def test_the_zoo_has_a_card_for_every_model():
    assert {p.stem for p in zoo.FOLDER.glob("*.safetensors")} == set(NAMES)
    assert set(tracked("*.json")) <= {f"{name}.json" for name in NAMES}
    assert NAMES, "there is no model in the zoo"


def test_the_zoo_is_small():
    sizes = [p.stat().st_size for p in zoo.FOLDER.glob("*.safetensors")]
    assert max(sizes, default=0) <= 8 * 2**20 and sum(sizes) <= 40 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_whole_and_about_these_weights(name):
    card, path = zoo.card(name), zoo.weights(name)
    assert card["sha256"] == sha256_file(path) and card["bytes"] == path.stat().st_size
    assert (
        set(TRAINING_FACTS) <= set(card)
        and len(card["commit"]) >= 40
        and card["command"].startswith("python -m shared.training.")
    )
    if name in CLIPS and card["model"].startswith("scenes-"):
        assert card["data"] == ScenePairs(1, seed=card["seed"]).version, "the world has changed since: make zoo"
        assert set(card["accuracy"]) == set(SETS)


@pytest.mark.parametrize("name", CLIPS)
def test_a_model_is_as_good_as_its_card_says(name):
    card = zoo.card(name)
    clip = create_clip(card["model"], zoo.weights(name)).requires_grad_(False)
    # two pictures: hardly one in 256 is within rounding of a boundary
    for data in (FINE_TUNING, "cluttered", "position"):
        assert accuracy(clip, data, card["n"]) == pytest.approx(card["accuracy"][data], abs=2.1 / card["n"]), data


@pytest.mark.parametrize("name", CLIPS)
def test_a_model_is_fooled_as_its_card_says(name):
    from shared.attacks import Threat

    card = zoo.card(name)
    clip, attacked = create_clip(card["model"], zoo.weights(name)).requires_grad_(False), card["attacked"]
    value = accuracy(clip, attacked["set"], card["n"], Threat(attacked["norm"], attacked["eps"]))
    # an attack multiplies rounding: other pictures survive, about as many
    said = binomtest(round(attacked["accuracy"] * card["n"]), card["n"]).proportion_ci(method="wilson")
    assert said.low <= value <= said.high


@pytest.mark.parametrize("name", [n for n in CLIPS if n.startswith("scenes-")])
def test_a_scenes_model_is_good_enough_to_start_from(name):
    card = zoo.card(name)
    assert card["accuracy"][FINE_TUNING] >= 0.80 and card["attacked"]["accuracy"] <= 0.05
    weak = {"scenes-vit-d8": ("outline",)}.get(name, ())  # six thin blocks, trained a third as long
    for data in (data for data in ZERO_SHOT if data not in weak):
        assert card["accuracy"][data] > 1 / SceneSet(data).num_classes + 0.1, data


# ---- what can be wrong -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A zoo of one small file."""
    (tmp_path / "tiny.safetensors").write_bytes(b"weights")
    zoo.write_card(tmp_path / "tiny.safetensors", model="scenes-vit-s8", loss=1.5)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    return tmp_path


def test_a_card_holds_what_it_is_given_and_the_identity_of_the_file(copy):
    assert zoo.card("tiny") == {
        "model": "scenes-vit-s8",
        "loss": 1.5,
        "bytes": 7,
        "sha256": sha256_file(copy / "tiny.safetensors"),
    }
    assert zoo.weights("tiny") == copy / "tiny.safetensors"


def test_altered_weights_are_refused(copy):
    for content in (b"weightz", b"weight", b""):
        (copy / "tiny.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"is not the one its card describes \(wrong sha256\): restore it with git"):
            zoo.weights("tiny")


def test_missing_weights_and_unknown_names_are_refused(copy):
    (copy / "tiny.safetensors").unlink()
    with pytest.raises(UserError, match="is missing: restore it with git, or train it again with `make zoo`"):
        zoo.weights("tiny")
    with pytest.raises(UserError, match="no zoo model named 'huge'; there are: tiny"):
        zoo.card("huge")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": "x"}'])
def test_damaged_cards_are_refused(copy, content):
    (copy / "tiny.json").write_text(content)
    with pytest.raises(UserError, match=r"the zoo card .* is damaged"):
        zoo.weights("tiny")


def test_a_model_of_the_zoo_with_one_bit_turned_is_refused(tmp_path, monkeypatch):
    if not NAMES:
        pytest.skip("no model yet")
    for suffix in ("json", "safetensors"):
        shutil.copy(zoo.FOLDER / f"{NAMES[0]}.{suffix}", tmp_path)
    path = Path(tmp_path / f"{NAMES[0]}.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="wrong sha256"):
        zoo.weights(NAMES[0])
    assert json.loads((tmp_path / f"{NAMES[0]}.json").read_text())["sha256"] != sha256_file(path)
