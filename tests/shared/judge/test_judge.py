"""judge and compare on a linear model whose robustness is known exactly, and on what a user gets wrong."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import UserError
from shared.judge.__main__ import run
from shared.judge.given import Model, Set, Twice, defence_of
from shared.judge.page import SHOWN, Judged
from shared.models.clip import read_weights

HERE = Path(__file__).parent
EPS = 20 / 255
COUNT = 24
QUICK = ("--eps", "20/255", "--steps", "4", "--queries", "4", "--targets", "2", "--part", "16", "--sanity-n", "6")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Three classes, 8 pictures each: channel k of class k is brighter by 0.02 … 0.23."""
    root, grain = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k, name in enumerate(("reddish", "greenish", "bluish")):
        (root / name).mkdir()
        for i in range(COUNT // 3):
            x = 0.5 + 0.02 * grain.standard_normal((8, 8, 3))
            x[:, :, k] += 0.02 + 0.03 * i
            Image.fromarray((255 * x).round().clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def names(tmp_path_factory):
    """Classes in the order of the logits; folders are sorted by name."""
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("reddish\ngreenish\nbluish\n")
    return path


@pytest.fixture(scope="session")
def judged(pictures, names, tmp_path_factory):
    """(options) -> what judge left, once for the same options."""
    done = {}

    def judge(*options: str) -> Judged:
        if options not in done:
            out = tmp_path_factory.mktemp("judged")
            given = ("--data", str(pictures), "--classes", str(names), "--out", str(out))
            run(["judge", *given, "--model", "mine:linear", *QUICK, *options])
            done[options] = Judged(out)
        return done[options]

    return judge


def exact(pictures, eps: float) -> float:
    """The share of pictures whose smallest margin between channel means is above 2ε: what the best ℓ∞ attack leaves of `linear`."""
    right = []
    for path in sorted(pictures.rglob("*.png")):
        means = (np.asarray(Image.open(path)) / 255).mean(axis=(0, 1))
        k = ("reddish", "greenish", "bluish").index(path.parent.name)
        right.append(means[k] - np.delete(means, k).max() > 2 * eps)
    return float(np.mean(right))


def test_a_plain_function_is_judged_exactly_and_everything_is_written(judged, pictures):
    found = judged("--attack", "mine:shift", "--pictures")
    value = {attack: found.numbers[attack, "mean"].value for attack in found.attacks}
    assert value["clean"] == exact(pictures, 0)
    assert value["worst"] == value["pgd"] == value["own0"] == exact(pictures, EPS)
    assert 0.2 < value["worst"] < 0.8  # there is something to see
    assert found.verdict.status == "stands" and "no sign" in found.verdict.words
    assert {how for _, how in found.numbers} == {"mean", "same", "batches", "rounded"}
    again = found.numbers["worst", "same"]
    assert np.array_equal(again.values, again.extra["before"])

    page = (found.folder / "page.html").read_text()
    assert page.count("<img") == 3 * SHOWN
    assert found.verdict.words in page and not re.search(r"(src|href)=.(?!data:|#[a-z]+|[a-z]+\.(csv|tex|md))", page)
    rows = list(csv.DictReader((found.folder / "accuracy.csv").open()))
    assert [float(r["value"]) for r in rows if r["row"].startswith("worst")] == pytest.approx([100 * value["worst"]])
    checks = [row for row, _ in found.tables()["sanity"].rows]
    assert {"PGD: more_steps", "cascade: in_ball", "cascade: larger_eps", "cascade: unbounded"} <= set(checks)
    assert r"\toprule" in (found.folder / "accuracy.tex").read_text()
    entry = json.loads((found.folder / "model_info.json").read_text())
    assert entry["eps"] == "20/255" and float(entry["external"]) == pytest.approx(100 * value["worst"], abs=0.01)

    kept, files = (
        read_weights(found.folder / "adversarial.safetensors"),
        sorted((found.folder / "adversarial").glob("*")),
    )
    assert kept["x_adv"].shape == (COUNT, 3, 8, 8) and len(files) == COUNT
    order = kept["indices"].argsort()
    read = torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in files])).permute(0, 3, 1, 2) / 255
    assert (read - kept["x_adv"][order]).abs().max() <= 0.5 / 255 + 1e-6


def test_a_model_that_changes_its_argument_is_judged_alike(judged):
    found, other = judged("--attack", "mine:shift", "--pictures"), judged("--model", "mine:changing")
    assert other.numbers["worst", "mean"].value == found.numbers["worst", "mean"].value


def test_it_continues_and_finds_everything_there(judged, pictures, names, capsys):
    found = judged("--attack", "mine:shift", "--pictures")
    given = ("--data", str(pictures), "--classes", str(names), "--out", str(found.folder), "--model", "mine:linear")
    run(["judge", *given, *QUICK, "--attack", "mine:shift"])
    said = capsys.readouterr().out
    count = len(found.numbers)
    assert f"{count} measurements, {count} already there" in said and found.verdict.words in said


def test_a_defence_that_masks_gradients_is_not_believed(judged, pictures):
    found = judged("--defence", "mine:Rounded")
    value = {attack: found.numbers[attack, "mean"].value for attack in found.attacks}
    assert value["pgd"] > value["bpda"] + 0.1  # what its own gradient would make believe
    assert value["worst"] <= value["bpda"] <= exact(pictures, EPS) + 2 / COUNT
    assert found.verdict.status == "not believed" and "zero_samples" in found.verdict.words
    assert found.numbers["clean", "bare"].value == exact(pictures, 0)
    assert "BPDA: in_ball" in [row for row, _ in found.tables()["sanity"].rows]


@pytest.mark.parametrize("name", ["mine:Noisy", "mine:drawn"])
def test_a_random_defence_is_judged_by_repeats(judged, name):
    found = judged("--defence", name, "--repeats", "6", "--eot", "2")
    worst, clean = found.numbers["worst", "mean"], found.numbers["clean", "mean"]
    assert found.facts["random"] and len(worst.values) == COUNT
    assert set(np.unique(clean.values * 6).round(6)) - {0.0, 6.0}  # shares of draws, not one lucky draw
    assert 0 < worst.value < clean.value < 1
    assert found.numbers["clean", "all"].value < clean.value
    low = min(found.numbers[a, "mean"].value for a in found.attacks)
    assert worst.value <= low + 1e-9
    same = found.numbers["worst", "same"]
    assert np.array_equal(same.values, same.extra["before"])


def test_the_cause_is_named_where_the_figure_is_not_the_same_again(judged):
    found = judged("--model", "mine:batchy")
    assert any("train mode" in caution for caution in found.facts["cautions"])
    assert found.verdict.status == "no verdict" and "other pictures of a batch" in found.verdict.words


def test_a_model_that_wants_normalised_pictures_and_a_defence_without_gradient_are_noticed(judged):
    odd = judged("--model", "mine:normalised", "--defence", "mine:detaching").facts["cautions"]
    assert "normalised (imagenet)" in odd[0] and "depends on the other" in odd[1] and "no gradient" in odd[2]


def test_two_results_side_by_side(judged, pictures, names, tmp_path, capsys):
    bare, blurred = judged("--attack", "mine:shift", "--pictures"), judged("--defence", "blur:1")
    side = ("--out", str(tmp_path / "side"))
    run(["compare", str(bare.folder), str(blurred.folder), *side])
    rows = {r["row"]: r for r in csv.DictReader((tmp_path / "side" / "compare.csv").open()) if r["column"] == "A − B"}
    gap = bare.numbers["worst", "mean"].value - blurred.numbers["worst", "mean"].value
    assert float(rows["worst case of each picture"]["value"]) == pytest.approx(100 * gap)
    assert "Worst case: " in capsys.readouterr().out
    given = ("--data", str(pictures), "--classes", str(names), "--out", str(tmp_path / "few"))
    run(["judge", *given, "--model", "mine:linear", *QUICK, "--n", "6"])
    with pytest.raises(UserError, match="different pictures"):
        run(["compare", str(bare.folder), str(tmp_path / "few"), *side])
    with pytest.raises(UserError, match="no folder that judge has written"):
        run(["compare", str(bare.folder), str(tmp_path), *side])
    with pytest.raises(UserError, match="is one of the two that are compared"):
        run(["compare", str(bare.folder), str(blurred.folder), "--out", str(blurred.folder)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "nowhere:model"), "cannot be imported"),
        (("--model", "mine:Model"), "has no class or function 'Model'; it has"),
        (("--model", "mine:Wordless"), "cannot be called"),
        (("--model", "mine:two_classes"), r"\(24, 2\) for 24 pictures of 3 classes"),
        (("--model", "mine:undefined"), "not finite for 24 of 24"),
        (("--model", "mine:detached"), "no gradient"),
        (("--model", "no-such-model"), "no zoo model named"),
        (("--defence", "mine:Wordless"), "neither __call__"),
        (("--defence", "mine:larger"), r"\(24, 3, 10, 10\)"),
        (("--defence", "mine:outside"), "keep them in"),
        (("--defence", "jpeg:fine"), "write jpeg:NUMBER"),
        (("--defence", "wall"), "there is no defence 'wall'"),
        (("--attack", "mine:far"), "left the ball"),
        (("--data", "/nowhere/at/all"), "no such folder"),
        (("--classes", "/nowhere/at/all"), "cannot be read"),
        (("--eps", "300/255"), r"--eps is 1\.17.* and pixels lie in \[0, 1\]"),
        (("--eps", "2000"), "--eps is 2000"),
        (("--defence", "jpeg:75.5"), "jpeg takes a whole number, not 75.5"),
        (("--defence", "bits:nan"), "bits takes a whole number, not nan"),
        (("--model", "ends:model"), r"the module ends cannot be imported \(SystemExit: 0\)"),
        (("--n", "-1"), "--n is"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(pictures, names, tmp_path, options, said):
    given = ("--data", str(pictures), "--classes", str(names), "--model", "mine:linear", "--out", str(tmp_path))
    with pytest.raises(UserError, match=said) as refused:
        run(["judge", *given, *QUICK, *options])
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("measurements"))


def test_classes_are_matched_by_name_or_by_place(pictures, tmp_path):
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("reddish\ngreenish\nmauve\n")
    given = ("judge", "--data", str(pictures), "--model", "mine:linear", "--out", str(tmp_path / "out"), *QUICK)
    with pytest.raises(UserError, match="the first is 'bluish'"):
        run([*given, "--classes", str(wrong)])
    for text, said in (
        ("sky\n\ngrass\nbrick\n", "is blank in line 2"),
        ("\nsky\n", "blank in line 1"),
        ("\n", "no names"),
    ):
        wrong.write_text(text)
        with pytest.raises(UserError, match=f"--classes .* {said}"):
            run([*given, "--classes", str(wrong)])
    wrong.write_text("sky\ngrass\nbrick\n", encoding="utf-8-sig")  # one for each of bluish, greenish, reddish
    run([*given, "--classes", str(wrong), "--model", "mine:linear"])
    found = Judged(tmp_path / "out")
    assert found.facts["names"] == ["sky", "grass", "brick"]
    assert found.numbers["clean", "mean"].value == pytest.approx(1 / 3)  # linear's logits are in the other order


def test_a_paper_s_defence_stands_before_any_model():
    model = Model("scenes-ten-resnet8", Set("scenes:ten"))
    assert defence_of("distshift", "", model).victim == Twice(model)
    assert type(defence_of("diffcap", "", model)).__name__ == "Stopping"


def test_the_shipped_model_and_the_command_line(tmp_path):
    command = [sys.executable, "-m", "shared.judge", "judge", "--device", "cpu", "--out", str(tmp_path)]
    few = ["--n", "6", *QUICK]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    done = subprocess.run([*command, *few], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "worst case of each picture" in done.stdout and (tmp_path / "page.html").is_file()
    done = subprocess.run(
        [*command, "--model", "nowhere:f"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 2 and done.stderr.startswith("error: --model nowhere:f") and done.stderr.count("\n") == 1
