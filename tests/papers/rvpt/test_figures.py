"""Figures and tables from made-up measurements of the real plan: the right numbers, small enough to be kept."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from papers.rvpt import figures, tables
from papers.rvpt.config import Config, Models, Sweeps
from papers.rvpt.paper import PAPER
from shared.experiment.scale import plain
from shared.experiment.store import Measurement
from shared.report import Results
from shared.report.figures import save_figure
from shared.report.style import style
from tests.papers.ends import load

arrays = load("papers/rvpt/made_up.py").arrays
CPU, MADE_OF = Config(), {"folder": {"paper": "rvpt"}, "output": {"producer": "here"}}


def results_of(config=CPU, keep=lambda tags: True, values_of=lambda tags, rng: rng.random(6), **sizes) -> Results:
    """A whole plan, or the numbers that are kept of it."""
    plan, found = [n for n in PAPER.plan(config) if keep(n.tags)], []
    for n in plan:
        rng = np.random.default_rng(zlib.crc32(n.name.encode()))
        values = values_of(n.tags, rng)
        facts = {
            "n": len(values),
            "seeds": (n.asked["seed"],),
            "unit": "share",
            "seconds": 0.0,
            "tags": dict(n.tags),
            "provenance": {},
        }
        extra = arrays(n.tags["kind"], rng, len(values), **sizes)
        found.append(Measurement(n.name, "", values.mean(), 0.0, 1.0, given=values, given_extra=extra, **facts))
    return Results(
        "rvpt", "cpu", found, json.loads(json.dumps(plain(config))), asked={n.name: list(n.asked) for n in plan}
    )


@pytest.fixture(scope="module")
def results() -> Results:
    return results_of()


def drawn(name: str, results: Results):
    with style():
        return getattr(figures, name)(results)


def test_resistivity_shows_the_numbers_of_its_measurements(results):
    fig = drawn("fig_resistivity", results)
    (m,) = results.select(kind="resistivity", attack="badclip", method="vpt", perturbation="flip")
    (line,) = [li for li in fig.axes[1].get_lines() if li.get_label() == "flip"]
    np.testing.assert_allclose(line.get_ydata(), [*m.extra["layers"].mean(0), m.values.mean()], atol=1e-6)
    bare = results_of(replace(CPU, models=Models(supervised="none")), lambda tags: tags["kind"] == "resistivity")
    assert len(drawn("fig_resistivity", bare).axes) == 3


def test_half_a_sweep_is_drawn():
    config = replace(CPU, sweeps=replace(Sweeps(), alpha=(2.0,)))
    assert (
        drawn("fig_ablations", results_of(config, lambda tags: tags["kind"] == "sweep" and tags["sweep"] == "alpha"))
        is not None
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("fig_triggers", "triggers"), ("fig_attention", "attention"), ("fig_perturbations", "perturbed")]
)
def test_photographs_stay_small(name, kind, tmp_path):
    assert (
        len(
            save_figure(
                drawn(name, results_of(keep=lambda tags: tags["kind"] == kind, side=224)), tmp_path / name, MADE_OF
            )
        )
        == 2
    )


def test_pictures_are_shrunk_by_whole_factors():
    pictures = np.arange(4 * 6 * 3).reshape(1, 4, 6, 3).astype(np.uint8)
    assert np.array_equal(figures._shrunk(pictures, 1), pictures)
    big = np.zeros((2, 200, 201, 3), np.uint8)
    big[:, :2, :2] = 100
    small = figures._shrunk(big, 4)
    assert small.shape == (2, 100, 100, 3) and (small[:, 0, 0] == 100).all() and small[:, 1:].max() == 0


# ---- tables ----------------------------------------------------------------------------------------------------------------


def test_the_headline_has_the_tables_that_it_measures():
    some = results_of(replace(CPU, headline=True))
    found = {name for name, f in PAPER.shown().items() if f.grids is not f and f(some) is not None}
    assert {"t1", "t2", "t3", "t5", "t9", "all_pictures", "fig_tradeoff", "fig_seeds"} <= found
    assert not found & {"t8", "t12", "more", "adaptive", "fig_ablations", "fig_adaptive"}


def test_every_number_stands_under_its_own_heading(results):
    table = tables.t2(results)
    column, (label, row) = table.columns.index("background, WaNet: CA"), table.rows[-1]
    wanted = {
        "kind": "score",
        "place": "third",
        "attack": "wanet",
        "method": "rvpt",
        "measure": "ca",
        "backbone": "first",
    }
    assert label == "RVPT" and row[column] == results.estimate(wanted)
    table = tables.t8(results)
    assert table.rows[1][1][2] == results.estimate(kind="tuning", method="infonce_fr", measure="asr")
    vpt = {
        "kind": "score",
        "method": "vpt",
        "measure": "ca",
        "attack": "badclip",
        "place": "main",
        "backbone": "first",
        "seed": 0,
    }
    assert table.rows[2][1][1] == results.estimate(vpt)
    table = tables.t5(results)
    wanted = {"kind": "cross", "place": "third", "attack": "wanet", "method": "rvpt", "measure": "ca", "tuned": "main"}
    assert dict(table.rows)["RVPT, tuned on colour"][column] == results.estimate(wanted)


def test_cells_without_a_number_are_those_that_cannot_be(results):
    dashes = {"t1": "TrojVQA", "all_pictures": "TrojVQA", "triggered": "TrojVQA", "t4": "BadCLIP", "t9": "CleanCLIP"}
    for name, draw in PAPER.shown().items():
        if not name.startswith("fig_"):
            table = draw(results)
            if name == "not_passed":  # nothing has failed
                assert table is None
                continue
            empty = [
                f"{label} {c}"
                for label, row in table.rows
                for c, cell in zip(table.columns, row, strict=True)
                if cell is None
            ]
            assert all(name in dashes and dashes[name] in cell for cell in empty), (name, empty)


def test_the_best_is_the_lowest_success_and_the_highest_accuracy_among_defences():
    def sharp(tags, rng):
        return np.full(400, float((tags["method"] in ("clean", "vpt")) != (tags["measure"] == "asr")))

    table = tables.t1(results_of(keep=lambda tags: tags["kind"] == "score", values_of=sharp))
    labels = [label for label, _ in table.rows]
    assert table.bold == {(labels.index("VPT"), k) for k in range(len(table.columns))}
