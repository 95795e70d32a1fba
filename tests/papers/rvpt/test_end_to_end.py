"""From training to the page at SCALE=smoke: everything planned is measured, nothing twice, damage is mended, the page draws all of it."""

import re
import shutil
from pathlib import Path

import pytest

from papers.rvpt.paper import PAPER
from shared.experiment.store import Store
from tests.papers.ends import (
    assert_equal,
    check_drawn,
    check_second_run,
    everything_measured,
    launch,
    one_sentence,
    run,
    stamps,
)

# Smaller than smoke itself. The whole plan takes a minute: what reads it is slow, and the headline stands for it in the quick tests.
SMALL = (
    "--scale",
    "smoke",
    "--seeds",
    0,
    "--data.n",
    12,
    "--attacks.more",
    "sig",
    "--sweeps.shots",
    1,
    "--sweeps.alpha",
    0,
    2,
    "--sweeps.length",
    2,
    "--sweeps.depth-output",
    1,
    "--sweeps.margin",
    -1,
    "--sweeps.resistivity-n",
    4,
    "--sweeps.prompts",
    "{}",
)
HEADLINE = (*SMALL, "--headline")


def folder(results: Path) -> Path:
    return results / "smoke" / "rvpt"


@pytest.fixture(scope="module")
def headline(script, tmp_path_factory) -> Path:
    """The results of an uninterrupted run of the headline on one process. Read only."""
    results = tmp_path_factory.mktemp("headline")
    run(script, results, *HEADLINE)
    return results


def check_everything(results: Path, kinds: set[str]) -> Store:
    store = everything_measured(folder(results))
    found = store.planned()
    assert {m.tags["kind"] for m in found} == kinds
    for m in found:
        judged = m.tags["kind"] not in ("caption", "retrieval", "adaptive") and m.tags["measure"] in (
            "asr",
            "asr_all",
            "ta",
            "robust",
        )
        assert (m.sanity is not None) == judged, m.slug
        if judged and m.tags["measure"] != "robust":
            assert m.sanity["independent of the batch"]["passed"]
    assert [g for g in store.gates() if "attack success rate" in g["name"]]
    made = folder(results) / "checkpoints"
    poisoned = {p.stem for p in made.glob("poison__*.safetensors") if p.stem.count("__seed") == 1}
    assert poisoned == {p.name.partition(".")[0] for p in made.glob("*.manifest.jsonl")} != set()
    return store


def check_nothing_trained(out: str) -> None:
    total, there = re.search(r"(\d+) runs, (\d+) already there", out).groups()
    assert total == there and int(total) > 10


def test_the_headline_is_measured_and_a_second_run_makes_nothing(headline, script):
    check_everything(headline, {"score", "cross", "cost"})
    check_nothing_trained(check_second_run(script, headline, 80, *HEADLINE))


@pytest.mark.slow
def test_damage_is_mended(headline, script, measured, tmp_path):
    """A patch, prompts, a whole CLIP and a measurement that a full disk or a careless hand has spoilt."""
    copy = Path(shutil.copytree(headline, tmp_path / "copy"))
    for name in (
        "patch__badclip__first",
        "poison__first__blended__main__seed0__rvpt__main__seed0",
        "poison__first__blended__main__seed0__cleanclip__main__seed0",
    ):
        (path,) = (folder(copy) / "checkpoints").glob(f"{name}-*.safetensors")
        path.write_bytes(path.read_bytes()[:200])
    next((folder(copy) / "measurements").glob("score__rvpt__*.json")).write_bytes(b"{")
    outcome = script("evaluate", *HEADLINE, "--results", copy)
    assert outcome.code == 2 and "run the training" in outcome.err
    run(script, copy, *HEADLINE)
    assert_equal(measured(headline), measured(copy))


@pytest.mark.slow
def test_everything_planned_is_there(reference):
    found = check_everything(reference, {n.tags["kind"] for n in PAPER.plan(PAPER.presets["smoke"])}).planned()
    data = {
        kind: {m.tags["data"] for m in found if m.tags["kind"] == kind} for kind in ("caption", "retrieval", "score")
    }
    assert data == {
        "caption": {"scenes-captions"},
        "retrieval": {"scenes"},
        "score": {"scenes:colour", "scenes:shape", "scenes:background"},
    }
    assert {m.tags["captioner"] for m in found if m.tags["kind"] == "caption"} == {"zoo:scenes-llava"}


@pytest.mark.slow
def test_the_rest_continues_from_the_headline(headline, reference, script, measured, tmp_path):
    copy = Path(shutil.copytree(headline, tmp_path / "copy"))
    part, whole = measured(headline), measured(reference)
    assert_equal(part, {slug: whole[slug] for slug in part})
    before = stamps(copy, ".safetensors", ".npz")
    check = script("train", *SMALL, "--results", copy)
    assert check.code == 0 and script("evaluate", *SMALL, "--results", copy).code == 0
    assert before.items() <= stamps(copy, ".safetensors", ".npz").items()
    assert_equal(whole, measured(copy))


@pytest.mark.slow
def test_a_second_run_makes_nothing(reference, script):
    check_nothing_trained(check_second_run(script, reference, 500, *SMALL))


@pytest.mark.slow
def test_what_captions_and_retrieval_are_made_of_touches_them_alone(copy, script, measured):
    before, old = stamps(copy, ".npz", ".safetensors"), measured(copy)
    run(script, copy, *SMALL, "--data.captioned", "scenes-captions:shifted", "--sweeps.candidates", 30)
    after, new = stamps(copy, ".npz", ".safetensors"), measured(copy)
    touched = {Path(name).stem.rpartition("-")[0] for name in after if after[name] != before.get(name)}
    assert (
        touched == {m.slug for m in Store(folder(copy)).planned() if m.tags["kind"] in ("caption", "retrieval")}
        and touched
    )
    assert all((new[slug][0] == old[slug][0]) == (slug not in touched) for slug in new)


@pytest.mark.slow
def test_the_page_draws_everything(reference):
    check_drawn(PAPER, reference)


def test_what_cannot_work_is_one_sentence(script, tmp_path):
    for name, options, said in (
        ("train", ("--method.beta", 2), "--method.beta"),
        ("evaluate", ("--method.shots", "few"), "few"),
    ):
        outcome = script(name, *SMALL, "--results", tmp_path, *options)
        assert outcome.code == 2 and said in outcome.err + outcome.out
    for name, options, said in (
        ("train", ("--method.shots", 3), "--sweeps.shots"),
        ("evaluate", ("--data.main.target", ""), "--data.main.target"),
        ("train", ("--attacks.badnet.rate", 1.5), "--attacks.badnet.rate"),
        ("evaluate", ("--seeds", 1, 1), "--seeds"),
    ):
        one_sentence(script(name, *SMALL, "--results", tmp_path, *options), said)
    for name in ("train", "evaluate"):
        one_sentence(script(name, "--scale", "tiny"), "'tiny'", "smoke, cpu, photos, evening, paper")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_said_before_anything_is_trained(script, tmp_path):
    for options, said in (
        (("--data.main.target", "mauve", "--headline"), "no class 'mauve'"),
        (("--data.shifted", "scenes:shape"), "scenes:shape has no class 'blue'"),
        (("--data.captioned", "coco"), "DATA_ROOT"),
        (("--data.retrieval", "csv:no.csv", "--data-root", tmp_path), "no.csv"),
        (("--data.second.data", "named:Caltech101", "--data-root", tmp_path), "Caltech101"),
    ):
        one_sentence(script("train", *SMALL, "--results", tmp_path, *options), said)
    assert not list(tmp_path.rglob("*.safetensors"))
    one_sentence(script("evaluate", *SMALL, "--results", tmp_path), "run the training")


@pytest.mark.slow
def test_two_processes_measure_what_one_does(reference, measured, tmp_path):
    launch("rvpt", *SMALL, "--results", tmp_path)
    assert_equal(measured(reference), measured(tmp_path))
