"""From training to the page at SCALE=smoke: everything planned is measured, nothing twice, damage is mended, the page draws all of it.

Victims have random weights and the denoiser is a tiny one with random weights: what is tested is the machinery.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.experiment.store import Store
from tests.papers.ends import assert_equal, check_continues, check_page, check_second_run, everything_measured, launch, run, stamps

RANDOM = [o for place in ("first", "second") for o in (f"--models.{place}.weights", "random", f"--models.{place}.at-weights", "random",
                                                       f"--models.{place}.denoiser", "random:tiny")]
SMALL = ("--scale", "smoke", *RANDOM, "--seeds", 0, "--data.n", 4, "--attack.steps", 1, "--attack.auto-steps", 1, "--attack.queries", 1,
         "--attack.sanity-n", 2, "--method.sampler-steps", 1, "--sweeps.n", 2, "--sweeps.features-n", 4, "--sweeps.block", 2, "--sweeps.quality-n", 2,
         "--adaptive.square-queries", 1)


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
                                               "cost", "strip"}
    assert len(store.gates()) == 8


def test_attacked_pictures_are_in_the_ball(reference, measured):
    from papers.distshift.attacked import Attacked, sources
    from papers.distshift.cells import cells
    from papers.distshift.models import Bench

    from papers.distshift.config import PRESETS
    from shared.attacks import Threat
    from shared.experiment.scale import plain

    planned = Store(folder(reference)).plan()["config"]
    small = PRESETS["smoke"]
    models = replace(small.models, **{name: replace(getattr(small.models, name), weights="random", at_weights="random", denoiser="random:tiny")
                                      for name in ("first", "second")})
    config = replace(small, results=reference, seeds=(0,), models=models, data=replace(small.data, n=4),
                     attack=replace(small.attack, steps=1, auto_steps=1, queries=1, sanity_n=2))
    assert plain(config)["attack"] == planned["attack"]
    attacked = Attacked(Bench(config, "smoke", torch.device("cpu")))
    found = sources(cells(config))
    assert {(s.victim, s.norm, s.attack) for s in found} == {(v, n, a) for v in ("base", "at") for n in ("linf", "l2") for a in ("pgd", "autoattack")}
    values = measured(reference)
    for source in found:
        assert not attacked.missing(source)
        x, x_adv = attacked.world(source).x, attacked.pictures(source)
        assert x_adv.shape == x.shape and x_adv.min() >= 0 and x_adv.max() <= 1
        size = Threat(source.norm, 1.0).distance(x_adv, x)
        assert size.max() <= source.eps + 1e-6 and (source.attack != "pgd" or size.max() > 0.5 * source.eps)
        assert attacked.sanity(source)
        method = "pgd_at" if source.victim == "at" else "none"
        kept = [v for slug, (_, v) in values.items() if slug.startswith(f"norm__{method}__{source.name.split('__', 1)[1]}__")
                and slug.endswith(f"measure-{source.norm}")]
        assert len(kept) == (source.eps == config.attack.budget(source.norm))
        assert all(np.allclose(k, size.numpy()) for k in kept)


def test_a_second_run_makes_nothing(reference, script):
    assert "nothing to train" in check_second_run(script, reference, 300, *SMALL)


def test_another_scale_of_the_guidance_measures_only_what_depends_on_it(copy, script, measured):
    before, old = stamps(copy, ".npz", ".safetensors"), measured(copy)
    run(script, copy, *SMALL, "--guidance.scale", 0.4)
    after, new = stamps(copy, ".npz", ".safetensors"), measured(copy)
    touched = {Path(name).stem for name in after if after[name] != before.get(name)}
    tags = {m.slug: m.tags for m in Store(folder(copy)).planned()}
    guided = {slug for slug, t in tags.items() if t["kind"] != "norm" and t["method"] in ("distshift", "purified", "purified_clean")}
    assert touched == guided and guided
    assert all(new[slug][0] == old[slug][0] for slug in tags if slug not in touched)


def test_damage_is_mended(copy, script, measured, reference):
    """Attacked pictures, those with the checks of an attack, and a measurement that a full disk or a careless hand has spoilt."""
    for name in ("base__scenes-ten__autoattack__linf*", "base__scenes-thirty__autoattack__linf*"):
        pictures = next((folder(copy) / "attacked").glob(name))
        pictures.write_bytes(pictures.read_bytes()[:500])
    cells = sorted((folder(copy) / "measurements").glob("score__jpeg__scenes-thirty__autoattack__linf*.json"))
    cells[0].write_bytes(b"{")
    run(script, copy, *SMALL)
    assert_equal(measured(reference), measured(copy))


def test_the_page_draws_everything(reference):
    check_page("distshift", reference, {"radius", "sets", "short", "time", "victim", "conditions", "written", "candidates"})


def test_what_is_trained_here_is_found_and_kept(script, tmp_path):
    """Weights `train`: a victim, its adversarially trained twin and a denoiser; a second run skips them, another length makes them again."""
    from papers.distshift.models import Bench

    from papers.distshift.config import PRESETS, Protected

    options = ("--scale", "smoke", "--results", tmp_path, "--models.first.weights", "train", "--models.first.at-weights", "train",
               "--models.first.denoiser", "train", "--models.second.data", "", "--models.denoiser-config", "scenes", "--training.batch", 4,
               "--at-training.batch", 4, "--at-training.eps", "8/255", "--at-training.attack-steps", 1, "--denoising.batch", 2)
    lengths = ("--training.steps", 2, "--at-training.steps", 1, "--denoising.steps", 1)
    early = script("evaluate", *options, *lengths)
    assert early.code == 2 and "run the training" in early.err
    first = script("train", *options, *lengths)
    assert first.code == 0 and "3 networks, 0 already there" in first.out, first.err
    assert "3 networks, 3 already there" in script("train", *options, *lengths).out
    assert "3 networks, 2 already there" in script("train", *options, "--training.steps", 1, *lengths[2:]).out
    assert len(list((folder(tmp_path) / "checkpoints").glob("*.safetensors"))) == 3
    assert not list(folder(tmp_path).rglob("*.ckpt"))
    smoke = PRESETS["smoke"]
    config = replace(
        smoke, results=tmp_path, models=replace(smoke.models, first=Protected("scenes:ten", "resnet8", "train", "train", "train"),
                                                second=Protected(), denoiser_config="scenes"),
        training=replace(smoke.training, steps=1, batch=4), denoising=replace(smoke.denoising, steps=1, batch=2),
        at_training=replace(smoke.at_training, steps=1, batch=4, eps=8 / 255, attack_steps=1))
    bench = Bench(config, "smoke", torch.device("cpu"))
    x = bench.world("scenes:ten", n=2).x
    assert not torch.equal(bench.victim("scenes:ten")(x), bench.victim("scenes:ten", "at")(x))
    assert bench.identity("scenes:ten", "base") != bench.identity("scenes:ten", "at")
    assert bench.denoiser("scenes:ten").size == 32


@pytest.mark.slow
def test_an_interrupted_evaluation_continues(copy, script, measured, reference, monkeypatch):
    shutil.rmtree(folder(copy) / "measurements")
    check_continues("distshift", script, folder(copy), monkeypatch, *SMALL, "--results", copy)
    assert_equal(measured(reference), measured(copy))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(reference, measured, tmp_path):
    launch("distshift", *SMALL, "--results", tmp_path)
    assert_equal(measured(reference), measured(tmp_path))


@pytest.mark.slow
def test_every_candidate_of_the_choice_has_a_line(monkeypatch):
    from papers.distshift.models import Bench

    from papers.distshift import choose
    from papers.distshift.config import PRESETS

    monkeypatch.setattr(choose, "N", 4)
    monkeypatch.setattr(choose, "TIMES", (50, 100))
    monkeypatch.setattr(choose, "TRIED", (0.1,))
    monkeypatch.setattr(choose, "SCALES", (0.1, 0.3))
    asked, whole = [], Bench._world
    monkeypatch.setattr(Bench, "_world", lambda self, spec, split, n: asked.append(split) or whole(self, spec, split, n))
    smoke = PRESETS["smoke"]
    models = replace(smoke.models, **{name: replace(getattr(smoke.models, name), weights="random", denoiser="random:tiny")
                                      for name in ("first", "second")})
    lines = list(choose.choose(Bench(replace(smoke, models=models), "smoke", torch.device("cpu"))))
    assert lines[0].startswith("no defence") and [line.split("  ")[0] for line in lines[1:3]] == ["DiffPure, t* = 50", "DiffPure, t* = 100"]
    assert sum(line.startswith("->") for line in lines) == 3 and sum(line.startswith("G") for line in lines) == 11 + len(choose.GDMP_SCALES)
    assert set(asked) == {"validation"}
