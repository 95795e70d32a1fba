"""Every figure from made-up measurements of the real plan: drawn, small enough to be kept, and absent where nothing was measured."""

import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from papers.roclip import figures
from papers.roclip.cells import SWEEPS, cells
from papers.roclip.config import PRESETS, Config
from shared.experiment.scale import plain
from shared.experiment.store import Measurement
from shared.report import Results
from shared.report.figures import save_figure
from shared.report.style import style

ONE_SEED = Config(seeds=(0,))
FIGURES = {name: f for name, f in vars(figures).items() if name.startswith("fig_")}
KINDS = {"fig_success": "score", "fig_epochs": "epoch", "fig_similarity": "epoch", "fig_strong": "strong", "fig_ablations": "ablation",
         "fig_downstream": "downstream", "fig_returned": "returned"}
LEVEL = {"clip": 0.97, "clip_aug": 0.9, "roclip": 0.05, "released": 0.15, "cleanclip": 0.4, "safeclip": 0.1}
SAID = ["a big red star on a plain blue background beside two small circles", "a photo of a yellow heart", "two green squares", "a ring", "stars"]


def fake(cell, config, rng, side):
    """(values, unit, extra) of a cell, of the right shapes."""
    n = 64
    if cell.kind == "cost":
        return 0.1 + 0.01 * rng.random(5) + 0.002 * (cell.method != "clip_aug"), "s", {}
    if cell.kind == "returned":
        k = config.sweeps.strip
        def pictures():
            return np.clip(np.cumsum(rng.normal(0, 0.1, (k, 3, side, side)), -1) * 0.3 + 0.5, 0, 1).astype(np.float32)

        captions = np.array([SAID[i % len(SAID)] for i in range(k)])
        extra = {"pictures": pictures(), "captions": captions, "image_captions": captions[::-1], "image_pictures": pictures(),
                 "image_cosine": rng.random(k)}
        if cell.method == "roclip":
            extra |= {"text_captions": captions, "text_pictures": pictures(), "text_cosine": rng.random(k)}
        extra["image_captions"] = np.array(["", *extra["image_captions"][1:]])
        return (rng.random(n) < 0.3).astype(float), "share" if cell.measure == "same_class" else "cosine", extra
    if cell.measure == "similarity":
        return np.clip(0.3 * LEVEL[cell.method] + 0.05 * rng.standard_normal(n) + 0.1 * (cell.attack == "none"), -1, 1), "cosine", {}
    level = LEVEL[cell.method] + (0.4 if cell.scored == "plain_epoch" and cell.method in ("roclip", "released") else 0)
    mean = {"accuracy": 0.9, "linear_probe": 0.7}.get(cell.measure, level)
    if cell.kind == "epoch":
        mean *= 1 - 0.8 ** cell.epoch
    return (rng.random(n) < mean).astype(float), "share", {}


def results_of(config=None, keep=lambda cell: True, side=32, scale="cpu"):
    config = config or ONE_SEED
    made = []
    for cell in filter(keep, cells(config)):
        values, unit, extra = fake(cell, config, np.random.default_rng(zlib.crc32(cell.slug().encode())), side)
        made.append(Measurement(cell.slug(), "", float(values.mean()), 0, 1, len(values), (cell.seed,), unit, 0, cell.tags(config), {},
                                given=np.asarray(values, np.float64), given_extra=extra))
    return Results("roclip", scale, made, plain(config))


@pytest.fixture(scope="module")
def results():
    return results_of()


def drawn(name, results):
    with style():
        return FIGURES[name](results)


@pytest.fixture(scope="module")
def once(results):
    """once(name): a figure of the whole plan, drawn when it is first asked for, and the measurements that it read."""
    @cache
    def call(name):
        with results.tracking() as used:
            return drawn(name, results), {m.tags["kind"] for m in results.measurements if m.slug in used}

    return call


def test_every_figure_has_its_kind_and_its_caption():
    assert set(KINDS) == set(FIGURES) and all(f.__doc__ for f in FIGURES.values())
    assert tuple(figures.SWEEPS) == SWEEPS


@pytest.mark.parametrize("name", KINDS)
def test_a_figure_reads_its_cells(name, once):
    fig, kinds = once(name)
    assert kinds == {KINDS[name]} and fig.axes


@pytest.mark.parametrize("name", [n if n == "fig_returned" else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])
def test_a_figure_can_be_kept(name, once, tmp_path):
    assert len(save_figure(once(name)[0], tmp_path / name, {})) == 2


def test_nothing_measured_is_no_figure():
    empty = results_of(keep=lambda cell: False)
    assert [name for name in KINDS if drawn(name, empty) is not None] == []


def test_the_headline_has_what_it_measured():
    some = results_of(replace(ONE_SEED, headline=True))
    assert {name for name in KINDS if drawn(name, some) is not None} == {"fig_success", "fig_downstream"}


@pytest.mark.slow
def test_photographs_stay_small(tmp_path):
    save_figure(drawn("fig_returned", results_of(PRESETS["paper"], lambda cell: cell.kind == "returned", side=224)), tmp_path / "strip", {})


@pytest.mark.slow
def test_the_epochs_of_the_paper_scale_can_be_drawn():
    fig = drawn("fig_epochs", results_of(PRESETS["paper"], lambda cell: cell.kind == "epoch", scale="paper"))
    assert len(fig.axes) == 6


def test_roclip_epochs_are_the_large_markers(results, once):
    axes = once("fig_epochs")[0].axes
    large = [line for line in axes[0].get_lines() if line.get_markersize() > 5]
    assert [list(line.get_xdata()) for line in large] == [[2, 4, 6], [2, 4, 6]]
    for line, method in zip(large, ("roclip", "released"), strict=True):
        e = results.estimate(kind="epoch", regime="pretrain", method=method, measure="psr", epoch=4)
        assert line.get_ydata()[1] == pytest.approx(100 * e.value)


def test_half_a_sweep_is_drawn():
    some = results_of(keep=lambda cell: cell.kind == "ablation" and dict(cell.point).get("value") == 0.02)
    assert drawn("fig_ablations", some) is not None
