"""From training to the page at SCALE=smoke: everything planned is measured, nothing twice, damage is mended, the page draws all of it."""

import re
import shutil
from pathlib import Path

import pytest

from papers.diffcap.measure import CALIBRATED
from shared.experiment.store import Store
from tests.papers.ends import assert_equal, check_continues, check_page, check_second_run, everything_measured, launch, run, stamps

SMALL = ("--scale", "smoke", "--seeds", 0, "--data.n", 3, "--attack.steps", 1, "--adaptive.n", 2, "--adaptive.caption-n", 1, "--adaptive.steps", 1,
         "--adaptive.eot", 1, "--adaptive.draws", 2, "--sweeps.digits-n", 4, "--attack.target-n", 1)


def folder(results: Path) -> Path:
    return results / "smoke" / "diffcap"


def test_everything_planned_is_there(reference, measured):
    store = everything_measured(folder(reference))
    found = store.planned()
    assert {m.slug for m in found} == measured(reference).keys()
    for m in found:
        if m.tags["kind"] == "score":
            assert (m.sanity is not None) == (m.tags["attack"] == "adversarial")
            assert ("answers" if m.tags["model"] != "clip" else "labels") in m.extra
    assert len(store.gates()) == 11


def test_attacked_pictures_are_in_the_ball(reference):
    from papers.diffcap.attacked import Attacked, sources
    from papers.diffcap.cells import cells
    from papers.diffcap.config import PRESETS
    from papers.diffcap.models import Bench

    torch = pytest.importorskip("torch")
    from dataclasses import replace

    small = PRESETS["smoke"]
    config = replace(small, results=reference, seeds=(0,), data=replace(small.data, n=3), attack=replace(small.attack, steps=1, target_n=1))
    attacked = Attacked(Bench(config, "smoke", torch.device("cpu")))
    found = sources(cells(config))
    assert {s.tower for s in found} == {"base", "tecoa", "fare"} and {s.model for s in found} == {"clip", "llava", "flamingo"}
    for source in found:
        assert not attacked.missing(source)
        x, x_adv = attacked.world(source).x, attacked.pictures(source)
        assert x_adv.shape == x.shape and x_adv.min() >= 0 and x_adv.max() <= 1
        assert (x_adv - x).abs().max() <= source.eps + 1e-6
        assert attacked.sanity(source)


def test_a_second_run_makes_nothing(reference, script):
    check_second_run(script, reference, 100, *SMALL)


def test_another_tau_measures_only_what_depends_on_it(copy, script, measured):
    before, old = stamps(copy, ".npz", ".safetensors"), measured(copy)
    run(script, copy, *SMALL, "--method.tau", 0.5)
    after, new = stamps(copy, ".npz", ".safetensors"), measured(copy)
    touched = {Path(name).stem for name in after if after[name] != before.get(name)}
    tags = {m.slug: m.tags for m in Store(folder(copy)).planned()}
    assert touched == {slug for slug in tags if tags[slug]["method"] in CALIBRATED and tags[slug]["kind"] not in ("tau", "calibration")}
    assert {slug for slug in tags if tags[slug]["kind"] == "score" and tags[slug]["method"] == "diffcap"} <= touched
    assert all(new[slug][0] == old[slug][0] for slug in tags if slug not in touched)


def test_damage_is_mended(copy, script, measured, reference):
    """A robust encoder, attacked pictures, a record of checks and a measurement that a full disk or a careless hand has spoilt."""
    spoilt = next((folder(copy) / "checkpoints").glob("fare*.safetensors"))
    spoilt.write_bytes(spoilt.read_bytes()[:3000])
    pictures = next((folder(copy) / "attacked").glob("llava__base*.safetensors"))
    pictures.write_bytes(pictures.read_bytes()[:2000])
    cells = sorted((folder(copy) / "measurements").glob("score__diffcap__llava*"))
    cells[0].write_bytes(b"{")
    stopped = script("evaluate", *SMALL, "--results", copy)
    assert stopped.code == 2 and re.search(r"error: the robust encoder .*fare.*run the training", stopped.err)
    next((folder(copy) / "attacked").glob("*.sanity.json")).write_text("{")
    run(script, copy, *SMALL)
    assert_equal(measured(reference), measured(copy))


@pytest.mark.slow
def test_an_interrupted_evaluation_continues(copy, script, measured, reference, monkeypatch):
    shutil.rmtree(folder(copy) / "measurements")
    check_continues("diffcap", script, folder(copy), monkeypatch, *SMALL, "--results", copy)
    assert_equal(measured(reference), measured(copy))


def test_the_page_draws_everything(reference):
    check_page("diffcap", reference, {"eps", "strengths", "short"}, absent=("ablation",))  # one cell of the grid at this scale


@pytest.mark.slow
def test_two_processes_measure_what_one_does(reference, measured, tmp_path):
    launch("diffcap", *SMALL, "--results", tmp_path)
    assert_equal(measured(reference), measured(tmp_path))
