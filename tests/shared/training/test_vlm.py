"""The script that trains the small vision-language models, on a few updates, and what it measures."""

import copy
import json
import sys

import pytest
import torch

from shared.data.language import named_objects, objects
from shared.data.scenes import VL_DOMAINS, sample
from shared.data.vision_language import INSTRUCTION, SceneCaptions
from shared.errors import UserError
from shared.files import sha256_file
from shared.models import zoo
from shared.models.vlm.open import own_state, small_vlm
from shared.training import vlm as script
from shared.training.vlm import Lessons, VLMConfig, correct, fit_vlm
from tests.accuracy import assert_same_way, assert_within_rounding
from tests.processes import saved_by_one_and_two

MODELS = ("scenes-llava", "scenes-idefics")
WIDEST = 4 * 96  # terms of the longest sum of a forward pass, in an MLP


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(script, "VALIDATION", 3)
    monkeypatch.setattr(script, "ATTACKED", 2)


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
        monkeypatch.setattr(sys, "argv", ["vlm", *fixed, *options])
        script.main()
        return json.loads((tmp_path / "m.json").read_text())

    yield call
    torch.set_rng_state(state)


def test_the_card_says_how_the_model_was_made_and_how_good_it_is(run, tmp_path):
    card = run("--train.steps", "2", "--seed", "5", "--model", "scenes-idefics")
    assert (
        card["sha256"] == sha256_file(tmp_path / "m.safetensors")
        and card["kind"] == "vlm"
        and card["model"] == "scenes-idefics"
    )
    assert card["seed"] == 5 and card["config"]["steps"] == 2 and card["loss"] > 0 and card["seconds"] > 0
    assert card["command"].startswith("python -m shared.training.vlm --out ") and len(
        card["commit"].removesuffix("-dirty")
    ) in (40, len("unknown"))
    assert card["data"] == Lessons(1, seed=5).version != Lessons(1).version
    assert card["clip"] == {"name": "scenes-vit-s8", "sha256": zoo.card("scenes-vit-s8")["sha256"]}
    assert card["n"] == 3 and set(card["accuracy"]) == {
        f"{k}:{d}" for k in ("captions", "questions") for d in VL_DOMAINS
    }
    assert card["attacked"]["n"] == 2 and card["attacked"]["eps"] == pytest.approx(8 / 255)
    assert set(card["attacked"]["accuracy"]) == {"captions", "questions"} and not list(tmp_path.glob("work/*"))
    old = {k: v for k, v in card.items() if k not in ("accuracy", "attacked", "n")}
    (tmp_path / "m.json").write_text(json.dumps(old))
    assert run("--card-only") == card


@pytest.mark.slow
def test_an_interrupted_run_continues_and_one_with_other_options_starts_anew(run, tmp_path, monkeypatch):
    straight = run("--train.steps", "5")
    read, original = [], Lessons.__getitems__

    def fragile(self, indices):
        read.append(1)
        if len(read) == 4:
            raise KeyboardInterrupt
        return original(self, indices)

    monkeypatch.setattr(Lessons, "__getitems__", fragile)
    with pytest.raises(KeyboardInterrupt):
        run("--train.steps", "5")
    (checkpoint,) = (tmp_path / "work").iterdir()
    other = run("--train.steps", "5", "--train.lr", "0.0001")
    assert len(read) == 4 + 5 and checkpoint.is_file()
    card = run("--train.steps", "5")
    assert len(read) == 9 + 3 and not checkpoint.exists()
    assert (
        card["sha256"] == straight["sha256"] != other["sha256"]
        and card["loss"] == straight["loss"]
        and card["seconds"] is None
    )


class Alone:
    """What `fit_vlm` uses of an accelerator, as process `rank` of `world` without any other."""

    device = torch.device("cpu")
    is_main_process = True

    def __init__(self, rank=0, world=1):
        self.process_index, self.num_processes = rank, world

    prepare = staticmethod(lambda module: module)
    backward = staticmethod(lambda loss: loss.backward())


@pytest.mark.parametrize("name", MODELS)
def test_all_is_trained_but_the_tower(name):
    vlm = small_vlm(name)
    before = copy.deepcopy(vlm.model.state_dict())
    fit_vlm(vlm, Lessons(16), VLMConfig(steps=2, batch=8, warmup=1, every=0), Alone())
    own, after = own_state(vlm), vlm.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in after if k not in own)
    unchanged = [k for k in own if torch.equal(after[k], before[k])]
    assert not unchanged and not vlm.training and not any(p.requires_grad for p in vlm.parameters())


def test_shares_of_two_processes_add_up_to_the_batch():
    """The mean of two processes' gradients is the gradient of one process."""
    grads = []

    class Stop(Exception):
        pass

    def gradient(rank, world) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vlm = small_vlm("scenes-llava")
        accelerator = Alone(rank, world)

        def backward(loss):
            loss.backward()
            grads.append(torch.cat([p.grad.flatten() for p in vlm.parameters() if p.grad is not None]))
            raise Stop

        accelerator.backward = backward
        with pytest.raises(Stop):
            fit_vlm(vlm, Lessons(100), VLMConfig(steps=2, batch=8, warmup=0, every=0), accelerator)

    for rank, world in ((0, 1), (0, 2), (1, 2)):
        gradient(rank, world)
    whole, first, second = grads
    assert_within_rounding((first + second) / 2, whole, terms=WIDEST)
    assert not torch.allclose(first, whole, rtol=1e-2)
    with pytest.raises(UserError, match="a batch of 9 pictures has no equal shares for 2 processes"):
        fit_vlm(small_vlm("scenes-llava"), Lessons(100), VLMConfig(batch=9), Alone(0, 2))


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tmp_path):
    quick = ("--train.steps", "3", "--train.batch", "16", "--train.warmup", "1", "--work", str(tmp_path / "work"))
    one, two = saved_by_one_and_two(tmp_path, "-m", "shared.training.vlm", "--model", "scenes-idefics", *quick, "--out")
    torch.manual_seed(0)
    start = own_state(small_vlm("scenes-idefics"))
    assert one.keys() == start.keys()
    assert_same_way(one, two, start)


# ---- the lessons and the measurement ---------------------------------------------------------------------------------------


def test_lessons_are_functions_of_seed_and_index():
    lessons = Lessons(100)
    x, prompts, targets = lessons.__getitems__(range(60))
    some = [5, 59, 17]
    x2, prompts2, targets2 = lessons.__getitems__(some)
    assert (
        torch.equal(x2, x[some])
        and prompts2 == [prompts[i] for i in some]
        and targets2 == [targets[i] for i in some]
        and len(lessons) == 100
    )
    assert not torch.equal(Lessons(100, seed=1).__getitems__([5])[0], x[5:6])
    told = [i for i in range(60) if prompts[i] == INSTRUCTION]
    assert 15 < len(told) < 45
    scenes = sample(lessons._seed, range(60), lessons.domain)
    assert all(named_objects(targets[i]) == objects(scenes, i) for i in told)
    assert all(len(targets[i].split()) == 1 for i in range(60) if i not in told)


class Oracle(torch.nn.Module):
    """Reads the truth, not the picture, unless the pixels were moved: then it says something else."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.weight = kind, torch.nn.Parameter(torch.zeros(()))
        self.data = (
            script.SceneCaptions("plain", "validation")
            if kind == "captions"
            else script.SceneQuestions("plain", "validation")
        )

    def answer(self, x, prompts):
        rows = range(len(x))
        truths = (
            [r[3] for r in self.data.references(rows)]
            if self.kind == "captions"
            else [a[0] for a in self.data.answers(rows)]
        )
        moved = (x - self.data.pictures(rows)).flatten(1).abs().amax(1)
        assert moved.max() < 8 / 255 + 1e-6
        return [t if m == 0 else "a pink moon and a red heart" for t, m in zip(truths, moved, strict=True)]

    def nll(self, x, prompts, targets):
        assert len(prompts) == len(targets) == len(x)
        return x.sum((1, 2, 3)) + self.weight


@pytest.mark.parametrize("kind", ["captions", "questions"])
def test_the_measurement_counts_what_is_right_and_what_an_attack_breaks(kind):
    assert correct(Oracle(kind), kind, "plain", 20).all()
    assert not correct(Oracle(kind), kind, "plain", 70, eps=8 / 255, steps=2).any()


def test_a_caption_with_one_object_too_many_or_too_few_is_wrong():
    data, oracle = SceneCaptions("plain", "validation"), Oracle("captions")
    several = next(i for i in range(50) if data.scenes([i]).kind[0] == 2)
    oracle.answer = lambda x, prompts: [
        r[0].split(" and ")[0].split(" to the left")[0] for r in data.references(range(50))
    ]
    assert not correct(oracle, "captions", "plain", 50)[several] and correct(oracle, "captions", "plain", 50).any()
    oracle.answer = lambda x, prompts: [r[0] + " and a pink moon" for r in data.references(range(50))]
    assert correct(oracle, "captions", "plain", 50).mean() < 0.2
