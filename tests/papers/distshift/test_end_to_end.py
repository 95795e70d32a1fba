"""From training to the page at SCALE=smoke: everything planned is measured, nothing twice, damage is mended, the page draws all of it.

Victims have random weights and the denoiser is a tiny one with random weights: what is tested is the machinery.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from papers.distshift.paper import PAPER
from papers.distshift.steps import Attacked, Size, defence_of, guidance_of, time_of, victim_of
from shared.attacks import Threat
from shared.experiment.step import closure
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

RANDOM = [o for place in ("first", "second") for o in (f"--models.{place}.weights", "random", f"--models.{place}.at-weights", "random",
                                                       f"--models.{place}.denoiser", "random:tiny")]  # fmt: skip
SMALL = ("--scale", "smoke", *RANDOM, "--seeds", 0, "--data.n", 4, "--attack.steps", 1, "--attack.auto-steps", 1, "--attack.queries", 1,
         "--attack.sanity-n", 2, "--method.sampler-steps", 1, "--sweeps.n", 2, "--sweeps.features-n", 4, "--sweeps.block", 2,
         "--sweeps.quality-n", 2, "--adaptive.square-queries", 1)  # fmt: skip


def folder(results: Path) -> Path:
    return results / "smoke" / "distshift"


def test_everything_planned_is_there(reference, measured):
    store = everything_measured(folder(reference))
    found = store.planned()
    assert {m.slug for m in found} == measured(reference).keys()
    for m in found:
        if m.tags["kind"] == "score":
            assert (m.sanity is not None) == (m.tags["attack"] != "clean")
            assert "labels" in m.extra
        if m.tags["kind"] == "adaptive":
            assert (m.sanity is not None) == (m.tags["against"] == "exact" and m.tags["method"] != "pgd_at")
    assert {m.tags["kind"] for m in found} == {"score", "eps", "adaptive", "quality", "distribution", "norm", "time", "rounds", "scale", "variant",
                                               "cost", "strip", "choice", "released", "released_eps", "released_time"}  # fmt: skip
    assert len(store.gates()) == 8


def test_what_was_chosen_is_said_and_used(reference, measured):
    """One candidate of each choice is taken, the best by its scores; the plan says which, and the page's caption has it."""
    config, lab = configured(PAPER, *SMALL), lab_of(folder(reference))
    found = measured(reference)
    for title in ("time", "guidance", "pull"):
        numbers = [n for n in PAPER.plan(config) if n.tags["kind"] == "choice" and n.tags["method"] == title]
        scores = [found[n.name][1].mean() for n in numbers if n.tags["quantity"] == "score"]
        taken = [found[n.name][1].item() for n in numbers if n.tags["quantity"] == "chosen"]
        assert taken == [float(k == scores.index(max(scores))) for k in range(len(scores))]
    chosen = everything_measured(folder(reference)).plan()["config"]["chosen"]
    defence = defence_of(config, "distshift", "scenes:ten").open(lab)
    assert defence.purifier.t == chosen["t"] == time_of(config, "scenes:ten").settle(lab)
    assert defence.guidance == guidance_of(config).settle(lab)


def test_attacked_pictures_are_in_the_ball(reference, measured):
    config, lab = configured(PAPER, *SMALL), lab_of(folder(reference))
    numbers = PAPER.plan(config)
    made = [step for step in closure(n.step for n in numbers) if isinstance(step, Attacked)]
    balls = {(n, a) for n in ("linf", "l2") for a in ("pgd", "autoattack")}
    mine = {(v, *ball) for v in ("base", "at") for ball in balls}
    assert {(s.row, s.attack.norm, s.attack.kind) for s in made} == mine | {
        ("validation", norm, "pgd") for norm in ("linf", "l2")
    }
    sizes = {}
    for step in made:
        a, x = step.attack, step.data.read(lab, step.data.rows(lab))[0]
        x_adv = lab.weights(step)["x_adv"]
        assert x_adv.shape == x.shape
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        sizes[step] = Threat(a.norm, 1.0).distance(x_adv, x)
        assert sizes[step].max() <= a.eps + 1e-6
        assert a.kind != "pgd" or sizes[step].max() > 0.5 * a.eps
    kept = [n for n in numbers if isinstance(n.step, Size) and n.step.measure == n.step.seen.attacked.attack.norm]
    assert kept
    for n in kept:
        np.testing.assert_allclose(measured(reference)[n.name][1], sizes[n.step.seen.attacked].numpy(), rtol=1e-6)


def test_a_second_run_makes_nothing(reference, script):
    assert "training: 3 runs, 3 already there" in check_second_run(script, reference, 300, *SMALL)


@pytest.mark.slow
def test_another_scale_of_the_guidance_measures_only_what_depends_on_it(copy, script, measured):
    changed = (*SMALL, "--guidance.scale", 0.4)
    before, old = {n.name: n.step for n in PAPER.plan(configured(PAPER, *SMALL))}, measured(copy)
    run(script, copy, *changed)
    new = measured(copy)
    after = {n.name: n.step for n in PAPER.plan(configured(PAPER, *changed))}
    touched = {name for name, step in after.items() if step != before.get(name)}
    assert {name for name in new if new[name][0] != old.get(name, ("",))[0]} == touched
    assert len(touched) < len(after) / 3


@pytest.mark.slow
def test_damage_is_mended(copy, script, measured, reference):
    """Attacked pictures and a measurement that a full disk or a careless hand has spoilt."""
    for name in ("attacked__base__scenes-ten__autoattack__linf*", "checked__base__scenes-ten__autoattack__linf*"):
        pictures = next((folder(copy) / "checkpoints").glob(f"{name}.safetensors"))
        pictures.write_bytes(pictures.read_bytes()[:500] + b"x")
    spoilt = sorted((folder(copy) / "measurements").glob("score__jpeg__scenes-thirty__autoattack__linf*.json"))
    spoilt[0].write_bytes(b"{")
    run(script, copy, *SMALL)
    assert_equal(measured(reference), measured(copy))


@pytest.mark.slow
def test_the_page_draws_everything(reference):
    check_drawn(PAPER, reference)


def test_what_is_trained_here_is_found_and_kept(script, tmp_path):
    """Weights `train`: a victim, its adversarially trained twin and a denoiser; a second run skips them, another length makes them again."""
    options = ("--scale", "smoke", "--results", tmp_path, "--models.first.weights", "train", "--models.first.at-weights", "train",
               "--models.first.denoiser", "train", "--models.second.data", "", "--models.denoiser-config", "scenes", "--training.batch", 4,
               "--at-training.batch", 4, "--at-training.eps", "8/255", "--at-training.attack-steps", 1, "--denoising.batch", 2,
               "--data.n", 2, "--attack.steps", 1, "--attack.auto-steps", 1, "--attack.queries", 1, "--attack.sanity-n", 2)  # fmt: skip
    lengths = ("--training.steps", 2, "--at-training.steps", 1, "--denoising.steps", 1)
    early = script("evaluate", *options, *lengths)
    assert early.code == 2
    assert "run the training" in early.err
    first = script("train", *options, *lengths)
    assert first.code == 0, first.err
    assert "6 runs, 0 already there" in first.out
    assert "6 runs, 6 already there" in script("train", *options, *lengths).out
    assert "6 runs, 2 already there" in script("train", *options, "--training.steps", 1, *lengths[2:]).out
    names = [p.name.partition("__")[0] for p in (folder(tmp_path) / "checkpoints").glob("*.safetensors")]
    made = sorted(n for n in names if n not in ("attacked", "checked"))
    assert made == ["at", "base", "base", *["choice"] * 6, "denoiser"]  # the victim is part of what is judged
    assert not list(folder(tmp_path).rglob("*.ckpt"))
    config, lab = configured(PAPER, *options, *lengths), lab_of(folder(tmp_path))
    x = lab.data("scenes:ten").__getitems__([0, 1])[0]
    base, at = (victim_of(config, "scenes:ten", which).open(lab) for which in ("base", "at"))
    with torch.no_grad():
        assert not torch.equal(base(x), at(x))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(reference, measured, tmp_path):
    launch("distshift", *SMALL, "--results", tmp_path)
    assert_equal(measured(reference), measured(tmp_path))
