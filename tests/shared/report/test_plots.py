"""The small plots of the pages."""

import base64
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from shared.claims.claims import load
from shared.claims.verdicts import Verdict
from shared.metrics.intervals import Estimate
from shared.report import plots, style
from shared.report.plots import MARGIN, WIDTH


def claim(**facts) -> SimpleNamespace:
    """What a plot reads of a claim."""
    common = {
        "predicate": "greater",
        "threshold": None,
        "margin": None,
        "ratio": None,
        "tolerance": None,
        "equivalence": None,
    }
    return SimpleNamespace(**{**common, "value": 3.0, **facts})


@pytest.mark.parametrize(("facts", "bars", "band"), [
    ({}, [0.0], None),
    ({"equivalence": 2.0}, [0.0], (-2.0, 2.0)),
    ({"ratio": {}, "margin": None}, [1.0], None),
    ({"margin": 5.0}, [5.0], None),
    ({"predicate": "at_most", "threshold": 10.0}, [10.0], None),
    ({"predicate": "within", "tolerance": 1.0}, [2.0, 4.0], None),
    ({"predicate": "equal_within", "tolerance": 1.0}, [-1.0, 1.0], None),
    ({"predicate": "monotone"}, [0.0], None),
])  # fmt: skip
def test_what_decides_a_claim(facts, bars, band):
    assert plots.against(claim(**facts)) == (bars, band)


def test_estimates_and_bar_stand_on_one_axis(fake_claims):
    gain = load(fake_claims).claims[0]
    one = Verdict(gain, "direction holds", "good", "", (Estimate(10.0, 5.0, 20.0, 100, 3),))
    other = replace(one, tone="bad", estimates=(Estimate(-20.0, -np.inf, 0.0, 1, 1),))
    both = replace(one, readings={"a": one, "b": other})
    drawn, unbounded = plots.plot(one, both), plots.plot(other, both)
    span = (WIDTH - 2 * MARGIN) / 40
    assert drawn.bars == unbounded.bars == [(MARGIN + 20 * span, "0")]
    assert drawn.lines == [(round(MARGIN + 25 * span, 1), MARGIN + 30 * span, WIDTH - MARGIN)]
    assert unbounded.lines == [(MARGIN, MARGIN, MARGIN + 20 * span)] and unbounded.tone == "bad"
    assert drawn.words == "estimate and 95 % interval: 10 [5, 20]; bar: 0" and drawn.band is None


def test_pictures_keep_their_pixels():
    small, large = np.zeros((2, 2, 3)), np.full((4, 4, 3), 255, np.uint8)
    small[0, 0] = (1, 0, 0)
    fig, axes = style.figure(style.COLUMN, rows=1, columns=2)
    for ax, picture in zip(axes, (small, large), strict=True):
        ax.imshow(picture)
        ax.set_axis_off()
    axes[1].imshow(np.array([[0.0, 1.0], [1.0, 1.0]]), cmap="gray", alpha=0.5, vmin=0, vmax=1)
    axes[0].set_title("clean\npicture")
    axes[1].text(0, 0, "a dog\na cat")
    first, second = plots.panels(fig)
    assert (first.row, first.column, first.title, second.column, second.said) == (
        1,
        1,
        "clean picture",
        2,
        [("a dog", ""), ("a cat", "")],
    )
    found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.data)))) for one in (first, second)]
    assert found[0].shape == (2, 2, 3) and found[0][0, 0].tolist() == [255, 0, 0] and not found[0][1].any()
    assert found[1].shape == (4, 4, 3) and set(found[1][:2, :2].ravel()) == {128} and set(found[1][2:].ravel()) == {255}
    assert plots.zoom([first, second]) == 32


def test_other_figures_are_no_pictures():
    fig, ax = style.figure(style.COLUMN)
    ax.imshow(np.zeros((2, 2)))
    assert plots.panels(fig) == []
