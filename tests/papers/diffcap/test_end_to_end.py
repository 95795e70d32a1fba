"""From training to the page at SCALE=smoke: everything planned is measured, nothing twice, damage is mended, the page draws all of it."""

import re
from pathlib import Path

import pytest
import torch

from papers.diffcap.paper import PAPER
from papers.diffcap.steps import choice_of
from papers.diffcap.tables import CHOSEN
from shared.experiment.step import closure
from shared.steps.purification import Attacked, Seen, Transform
from tests.papers.ends import (
    assert_equal,
    check_drawn,
    check_second_run,
    configured,
    everything_measured,
    lab_of,
    launch,
    run,
)

SMALL = ("--scale", "smoke", "--seeds", 0, "--data.n", 3, "--attack.steps", 1, "--adaptive.n", 2, "--adaptive.caption-n", 1,
         "--adaptive.steps", 1, "--adaptive.eot", 1, "--adaptive.draws", 2, "--sweeps.digits-n", 4, "--attack.target-n", 1)  # fmt: skip


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
        if m.tags["kind"] == "adaptive":
            assert (m.sanity is not None) == (m.tags["against"] == "exact")
    assert len(store.gates()) == 11


def test_attacked_pictures_are_in_the_ball(reference):
    config, lab = configured(PAPER, *SMALL), lab_of(folder(reference))
    made = [step for step in closure(n.step for n in PAPER.plan(config)) if isinstance(step, Attacked)]
    towers = {f"{model}-{tower}" for model in ("clip", "llava", "flamingo") for tower in ("base", "tecoa", "fare")}
    assert {step.row for step in made} == towers | {"probe", "validation"}
    for step in made:
        x, x_adv = step.data.read(lab, step.data.rows(lab))[0], lab.weights(step)["x_adv"]
        assert x_adv.shape == x.shape
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert (x_adv - x).abs().max() <= step.attack.eps + 1e-6


def test_a_second_run_makes_nothing(reference, script):
    check_second_run(script, reference, 100, *SMALL)


@pytest.mark.slow
def test_another_tau_measures_only_what_depends_on_it(copy, script, measured):
    changed = (*SMALL, "--method.tau", 0.5)
    before, old = {n.name: n.step for n in PAPER.plan(configured(PAPER, *SMALL))}, measured(copy)
    run(script, copy, *changed)
    new = measured(copy)
    touched = {n.name for n in PAPER.plan(configured(PAPER, *changed)) if n.step != before[n.name]}
    assert {name for name in new if new[name][0] != old[name][0]} == touched
    assert any(name.startswith("score__diffcap") for name in touched)
    assert not any(name.startswith(("tau__", "calibration__")) for name in touched)


@pytest.mark.slow
def test_damage_is_mended(copy, script, measured, reference):
    """A robust encoder, attacked pictures, the similarities behind τ and a measurement that a full disk or a careless hand has spoilt."""
    made = folder(copy) / "checkpoints"
    for name in ("fare*", "attacked__llava-base*", "similarities__scenes-combinations*"):
        spoilt = next(made.glob(f"{name}.safetensors"))
        spoilt.write_bytes(spoilt.read_bytes()[:200])
    sorted((folder(copy) / "measurements").glob("score__diffcap__llava*.json"))[0].write_bytes(b"{")
    stopped = script("evaluate", *SMALL, "--results", copy)
    assert stopped.code == 2
    assert re.search(r"error: the training of fare.* is missing.*run the training", stopped.err)
    run(script, copy, *SMALL)
    assert_equal(measured(reference), measured(copy))


@pytest.mark.slow
def test_the_page_draws_everything(reference):
    check_drawn(PAPER, reference)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(reference, measured, tmp_path):
    launch("diffcap", *SMALL, "--results", tmp_path)
    assert_equal(measured(reference), measured(tmp_path))


def test_the_best_on_validation_pictures_is_taken(reference):
    """Scores are of validation pictures, and what was chosen stands in front of the victim."""
    store, config = everything_measured(folder(reference)), configured(PAPER, *SMALL)
    found = {
        (m.tags["method"], m.tags["candidate"], m.tags["quantity"]): m
        for m in store.planned()
        if m.tags["kind"] == "choice"
    }
    lab = lab_of(folder(reference))
    for method in CHOSEN:
        choice = choice_of(config, method)
        assert choice.rule.attacked.data.split == "validation"
        means = [found[method, k, "score"].value for k in range(2)]
        taken = [found[method, k, "chosen"].value for k in range(2)]
        assert taken == ([1, 0] if means[0] >= means[1] else [0, 1])
        assert choice.place(lab) == taken.index(1)
    rule = choice_of(config, "jpeg").rule
    (x, y), x_adv = Seen(rule.attacked.data).clean(lab), lab.weights(rule.attacked)["x_adv"]
    with torch.no_grad():
        right = [rule.attacked.victim.open(lab)(z).argmax(1).eq(y).double() for z in (x, x_adv)]
    assert torch.equal(rule.score(lab, Transform()), (right[0] + right[1]) / 2)
    stops = [m for m in store.planned() if m.tags["kind"] == "stop" and m.tags["method"] == "diffpure"]
    assert {m.value for m in stops} == {choice_of(config, "diffpure").settle(lab).t}
