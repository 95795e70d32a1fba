"""The small vision-language models in the zoo are as good, and as easily fooled, as their cards say."""

import pytest
import torch

from shared.data.vision_language import INSTRUCTION, SceneCaptions, SceneQuestions
from shared.models import zoo
from shared.models.clip import create_clip
from shared.models.vlm import open_vlm
from shared.training.vlm import Lessons, correct

pytestmark = pytest.mark.numeric
NAMES = ("scenes-llava", "scenes-idefics")


@pytest.fixture(scope="module", params=NAMES)
def both(request):
    """A model of the zoo, read only, and its card."""
    return open_vlm(f"zoo:{request.param}"), zoo.card(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_the_gates_of_a_zoo_model(name):
    """Right about colour and shape, and about questions, in four of five clean pictures; at most half as often under attack."""
    card = zoo.card(name)
    for kind, attacked in card["attacked"]["accuracy"].items():
        assert card["accuracy"][f"{kind}:plain"] >= 0.80 and attacked <= card["accuracy"][f"{kind}:plain"] / 2, kind
        assert card["accuracy"][f"{kind}:shifted"] >= 0.60, kind
    assert card["kind"] == "vlm" and card["model"] == name and card["data"] == Lessons(1, card["seed"]).version, (
        "the world has changed: make zoo"
    )
    assert card["clip"] == {"name": "scenes-vit-s8", "sha256": zoo.card("scenes-vit-s8")["sha256"]}


def test_a_model_is_as_good_as_its_card_says(both):
    vlm, card = both
    # two pictures: hardly one in 256 is within rounding of a boundary
    for name in ("captions:plain", "questions:plain", "questions:shifted"):
        assert correct(vlm, *name.split(":"), card["n"]).mean() == pytest.approx(
            card["accuracy"][name], abs=2.1 / card["n"]
        ), name


def test_a_model_is_fooled(both):
    vlm, card = both
    for kind in ("captions", "questions"):
        assert correct(vlm, kind, "plain", 24, eps=8 / 255).mean() <= card["accuracy"][f"{kind}:plain"] / 2 + 0.1, kind


@pytest.mark.slow
def test_a_model_is_fooled_as_its_card_says(both):
    vlm, card = both
    for kind, value in card["attacked"]["accuracy"].items():
        assert correct(vlm, kind, "plain", card["attacked"]["n"], eps=card["attacked"]["eps"]).mean() == pytest.approx(
            value, abs=0.05
        ), kind


def test_what_a_model_says_comes_from_the_picture(both):
    """A reference is likelier with its own picture than with another, for nearly all; and the answer to a question changes with the picture."""
    vlm, _ = both
    captions, rows = SceneCaptions("plain", "test"), range(40)
    x, texts = captions.pictures(rows), [r[0] for r in captions.references(rows)]
    with torch.no_grad():
        own, other = vlm.nll(x, [INSTRUCTION] * 40, texts), vlm.nll(x.roll(1, 0), [INSTRUCTION] * 40, texts)
    assert (own < other).float().mean() > 0.9
    assert len(set(vlm.answer(x, ["what colour is the background"] * 40))) > 3


def test_nearly_every_kind_of_question_is_answered_better_than_by_chance(both):
    """Left out: "is there a red circle", which scenes-llava answers right in 60 % only (chance: 50 %); it would need a longer training."""
    vlm, _ = both
    data, rows = SceneQuestions("plain", "test"), range(256)
    questions, answers = data.questions(rows), [a[0] for a in data.answers(rows)]
    said = vlm.answer(data.pictures(rows), questions)
    for start, chance in (
        ("what shape", 1 / 8),
        ("what surface", 1 / 4),
        ("how many", 1 / 3),
        ("how big", 1 / 3),
        ("what colour", 1 / 8),
        ("where", 1 / 5),
    ):
        some = [s == a for s, a, q in zip(said, answers, questions, strict=True) if q.startswith(start)]
        assert len(some) > 5 and sum(some) / len(some) > chance + 0.15, start


def test_on_a_random_tower_a_model_is_lost(both):
    """Features matter: the language model cannot do without the tower that it was trained on."""
    name = both[1]["model"]
    vlm = open_vlm(f"zoo:{name}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vlm.set_vision(create_clip("scenes-vit-s8").visual)
    assert correct(vlm, "captions", "plain", 64).mean() < 0.2
