"""Figures from made-up measurements of the real plan, beside what the contract of all papers asks of them."""

from dataclasses import replace

import numpy as np
import pytest

from papers.roclip import figures
from papers.roclip.config import PRESETS
from papers.roclip.paper import PAPER
from shared.report import Results
from shared.report.figures import save_figure
from shared.report.manifest import origin
from shared.report.style import style
from tests.papers.ends import load
from tests.papers.test_contract import made_up

SMOKE = PRESETS["smoke"]


def drawn(name: str, results: Results):
    with style():
        return getattr(figures, name)(results)


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up(PAPER, "smoke", PAPER.plan(SMOKE))


def test_the_headline_has_what_it_measured():
    some = made_up(PAPER, "smoke", PAPER.plan(replace(SMOKE, headline=True)))
    assert {name for name, f in PAPER.shown().items() if f(some)} == {
        "pretrain",
        "finetune",
        "zero_shot",
        "probe",
        "fig_success",
        "fig_downstream",
    }


def test_every_seed_of_few_targets_is_a_point(results):
    (ax,) = drawn("fig_few", results).axes
    small = [line for line in ax.get_lines() if line.get_markersize() == 3]
    assert [len(line.get_xdata()) for line in small] == [3] * 6 + [1] * 2
    e = results.estimate(kind="few", method="before_v1", measure="psr")
    assert 100 * e.value == pytest.approx(np.mean(small[5].get_ydata()))


def test_roclip_epochs_are_the_large_markers(results):
    large = [line for line in drawn("fig_epochs", results).axes[0].get_lines() if line.get_markersize() > 5]
    assert [list(line.get_xdata()) for line in large] == [[2, 4], [2, 4]]
    for line, method in zip(large, ("roclip", "released"), strict=True):
        e = results.estimate(kind="epoch", regime="pretrain", method=method, measure="psr", epoch=4)
        assert line.get_ydata()[1] == pytest.approx(100 * e.value)


def test_half_a_sweep_is_drawn():
    plan = [n for n in PAPER.plan(SMOKE) if n.tags.get("value") == 0.1]
    assert drawn("fig_ablations", made_up(PAPER, "smoke", plan)) is not None


@pytest.mark.slow
def test_photographs_stay_small(results, tmp_path):
    extra = load("papers/roclip/made_up.py").arrays("returned", np.random.default_rng(0), 224)
    some = [replace(m, given_extra=extra) for m in results.measurements if m.tags["kind"] == "returned"]
    asked = {n.name: list(n.asked) for n in PAPER.plan(SMOKE)}
    photographs = Results("roclip", "smoke", some, results.config, asked=asked)
    strip = drawn("fig_returned", photographs)
    assert len(save_figure(strip, tmp_path / "strip", origin(photographs, (), ""))) == 2
