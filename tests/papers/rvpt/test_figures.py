"""Every figure from made-up measurements of the real plan: drawn, small enough to be kept, and absent where nothing was measured."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from papers.rvpt import figures
from papers.rvpt.cells import ENCODERS, PERTURBATIONS, ROWS, SWEEPS, cells
from papers.rvpt.config import Config, Models, Sweeps
from shared.experiment.scale import plain
from shared.experiment.store import Measurement
from shared.report import Results
from shared.report.figures import save_figure
from shared.report.style import style

FIGURES = {name: f for name, f in vars(figures).items() if name.startswith("fig_")}
NAMES = ["striped red star", "plain blue circle", "spotted green cross", "checkered yellow square", "plain cyan ring", "striped purple heart",
         "spotted orange triangle"]
KINDS = {"fig_resistivity": "resistivity", "fig_resistivity_badnet": "resistivity", "fig_resistivity_blended": "resistivity",
         "fig_ablations": "sweep", "fig_attention": "attention", "fig_perturbations": "perturbed", "fig_triggers": "triggers",
         "fig_embedding": "embedding", "fig_tradeoff": "score", "fig_adaptive": "adaptive"}


def fake(cell, config, rng, side, blocks):
    """(values, extra) of a cell, of the right shapes."""
    k, n = config.sweeps.maps, 24
    if cell.kind == "resistivity":
        move = {"noise": 0.01, "blur": 0.2, "colour": 0.3, "flip": 0.35, "trigger": 0.9}[dict(cell.point)["perturbation"]]
        fall = np.linspace(0.1, 1, blocks + 1) * (1 if cell.method in ("none", "vpt") else 0.5)
        layers = np.clip(1 - 1.2 * move * fall + 0.05 * rng.standard_normal((n, blocks + 1)), -1, 1)
        return layers[:, -1], {"layers": layers[:, :-1].astype(np.float32)}
    if cell.kind == "attention":
        grid = 4 if side == 32 else 7
        extra = {"clean": rng.random(n) * 0.3, "of_all": rng.random(n) * 0.3, "area": np.full(n, 0.25), "truth": np.array(NAMES[1:1 + k])}
        for state in ("clean", "triggered"):
            extra |= {f"{state}_maps": rng.random((k, grid, grid)).astype(np.float32) ** 4, f"{state}_pictures": photograph(rng, (k,), side),
                      f"{state}_said": np.array([NAMES[0] if state == "triggered" and cell.method == "none" else NAMES[1]] * k)}
        return rng.random(n) * 0.4 + 0.4, extra
    if cell.kind == "embedding":
        labels, n = np.repeat(np.arange(8), 25), 200
        xy = np.stack([10 * np.cos(labels), 10 * np.sin(labels)], 1) + rng.standard_normal((n, 2))
        own = labels[labels != 7]
        moved = xy[labels != 7] if cell.method == "rvpt" else rng.standard_normal((175, 2))
        names = np.array([*NAMES[1:], "plain pink hexagon", NAMES[0]])
        return rng.random(175), {"to_target": rng.random(175), "clean": np.ones(n), "xy": xy, "xy_triggered": moved, "labels": labels,
                                 "triggered_labels": own, "names": names}
    if cell.kind == "perturbed":
        return np.array([60.0, 25, 14, 12]), {"names": np.array(["noise", "blur", "colour", "flip"]), "pictures": photograph(rng, (k, 5), side)}
    if cell.kind == "triggers":
        columns = 1 + len(config.attacked)
        sheet = photograph(rng, (), 2 * k * (side + 2) - 2, columns * (side + 2) - 2).transpose(1, 2, 0)
        return np.linspace(12, 38, columns - 1), {"names": np.array(config.attacked), "sheet": sheet, "side": np.array([side, side]),
                                                  "gap": np.array(2), "gain": np.array(4.0)}
    mean = {"ca": 0.9, "ta": 0.6}.get(cell.measure, {"none": 0.97, "clean": 0.02, "cleanclip": 0.5, "rvpt": 0.05}.get(cell.method, 0.3))
    return (rng.random(n) < mean).astype(float), {}


def photograph(rng, shape, height, width=None):
    """Bytes as hard to compress as pictures from a camera, or harder."""
    width = width or height
    smooth = np.cumsum(rng.integers(-3, 4, (*shape, 3, height, width)), axis=-1) * 4 + 128
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def results_of(config=None, keep=lambda cell: True, side=32, blocks=4):
    config = config or Config()
    made = []
    for cell in filter(keep, cells(config)):
        values, extra = fake(cell, config, np.random.default_rng(zlib.crc32(cell.slug().encode())), side, blocks)
        made.append(Measurement(cell.slug(), "", float(values.mean()), 0, 1, len(values), (cell.seed,), "share", 0, cell.tags(config), {},
                                given=np.asarray(values, np.float64), given_extra=extra))
    return Results("rvpt", "cpu", made, plain(config))


@pytest.fixture(scope="module")
def results():
    return results_of()


def drawn(name, results):
    with style():
        return FIGURES[name](results)


def test_every_kind_of_picture_has_its_figure():
    assert set(KINDS) == set(FIGURES) and all(f.__doc__ for f in FIGURES.values())


def test_what_is_drawn_is_what_is_planned():
    assert tuple(figures.PANELS) == ENCODERS and tuple(figures.CHANGES) == PERTURBATIONS and tuple(figures.SWEEPS) == SWEEPS
    assert tuple(figures.METHODS) == ROWS and set(Config().attacked) <= set(figures.ATTACKS)


SEEN_ELSEWHERE = ("fig_resistivity_badnet", "fig_resistivity_blended", "fig_triggers", "fig_attention", "fig_tradeoff")  # drawn by like code


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SEEN_ELSEWHERE else n for n in KINDS])
def test_a_figure_reads_its_cells_and_can_be_kept(name, results, tmp_path):
    with results.tracking() as used:
        fig = drawn(name, results)
    kinds = {m.tags["kind"] for m in results.measurements if m.slug in used}
    assert KINDS[name] in kinds
    paths = save_figure(fig, tmp_path / name, {})
    assert len(paths) == 2


def test_nothing_measured_is_no_figure():
    empty = results_of(keep=lambda cell: cell.kind == "none")
    assert [name for name in KINDS if drawn(name, empty) is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fig_triggers", "fig_attention", "fig_perturbations", "fig_resistivity"])
def test_photographs_stay_small(name, tmp_path):
    kind = KINDS[name]
    save_figure(drawn(name, results_of(keep=lambda cell: cell.kind == kind, side=224, blocks=12)), tmp_path / name, {})


def test_the_headline_and_a_run_without_a_supervised_tower_have_what_they_measured():
    some = results_of(replace(Config(), headline=True))
    shown = {name for name in KINDS if drawn(name, some) is not None}
    assert shown == {"fig_tradeoff"}
    bare = results_of(replace(Config(), models=Models(supervised="none")), lambda cell: cell.kind == "resistivity")
    assert len(drawn("fig_resistivity", bare).axes) == 3


def test_half_a_sweep_is_drawn():
    config = replace(Config(), sweeps=replace(Sweeps(), alpha=(2.0,)))
    some = results_of(config, lambda cell: cell.kind == "sweep" and dict(cell.point)["sweep"] == "alpha")
    assert drawn("fig_ablations", some) is not None


def test_resistivity_shows_the_numbers_of_its_cells(results):
    fig = drawn("fig_resistivity", results)
    m, = results.select(kind="resistivity", attack="badclip", method="vpt", perturbation="flip")
    line, = [li for li in fig.axes[1].get_lines() if li.get_label() == "flip"]
    np.testing.assert_allclose(line.get_ydata(), [*m.extra["layers"].mean(0), m.values.mean()], atol=1e-6)


def test_pictures_are_shrunk_by_whole_factors():
    pictures = np.arange(4 * 6 * 3).reshape(1, 4, 6, 3).astype(np.uint8)
    assert np.array_equal(figures._shrunk(pictures, 1), pictures)
    big = np.zeros((2, 200, 201, 3), np.uint8)
    big[:, :2, :2] = 100
    small = figures._shrunk(big, 4)
    assert small.shape == (2, 100, 100, 3) and (small[:, 0, 0] == 100).all() and small[:, 1:].max() == 0
