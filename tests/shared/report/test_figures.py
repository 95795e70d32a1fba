import hashlib

import matplotlib
import numpy as np
import pytest

from shared.errors import UserError
from shared.metrics.intervals import Estimate
from shared.report import figures, manifest, style

MADE_OF = {"folder": {"paper": "fake"}, "output": {"producer": "here"}}
A, B = Estimate(0.5, 0.4, 0.6, 100, 1), Estimate(0.7, 0.65, 0.8, 100, 1)


def draw():
    with style.style():
        fig, axes = style.figure(style.PAGE, 3.4, rows=2, columns=2)
        figures.bars(axes[0, 0], ["x", "y"], {"a": [A, None], "b": [B, A]}, ylabel="%")
        figures.lines(axes[0, 1], [1, 2, 4], {"a": [A, None, B], "b": [B, B, A]}, xlabel="ε")
        figures.tradeoff(axes[1, 0], {"a": (A, B), "b": (B, A), "c": (None, A)})
        figures.heatmap(axes[1, 1], ["r1", "r2"], ["c1", "c2"], [[A, B], [None, A]])
        figures.legend(fig, axes)
    return fig


def test_same_numbers_same_bytes_with_records(tmp_path):
    for folder in "ab":
        paths = figures.save_figure(draw(), tmp_path / folder / "f.1", MADE_OF)
    assert [p.name for p in paths] == ["f.1.pdf", "f.1.png"]
    for p in paths:
        assert p.read_bytes() == (tmp_path / "a" / p.name).read_bytes()
        assert p.stat().st_size <= figures.LARGEST
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    assert manifest.read(tmp_path / "b") == {
        "paper": "fake",
        "outputs": {"f.1.pdf": {"producer": "here", "files": files}},
    }
    pdf = paths[0].read_bytes()
    assert b"CreationDate" not in pdf and b"/Type3" not in pdf.replace(b" ", b"")


def test_values_and_intervals_are_drawn_in_percent():
    fig = draw()
    bars = fig.axes[0].patches
    assert sorted(round(p.get_height(), 6) for p in bars) == [50, 50, 70]
    (line, *_), (band, *_) = fig.axes[1].lines, fig.axes[1].collections
    assert line.get_xydata().tolist() == [[1, 50], [4, 70]]  # the missing point is left out
    ys = band.get_paths()[0].vertices[:, 1]
    assert ys.min() == pytest.approx(40) and ys.max() == pytest.approx(80)
    assert [t.get_text() for t in fig.axes[3].texts] == ["50.0\n±10.0", "70.0\n±7.5", "50.0\n±10.0"]


def test_one_legend_without_doubles():
    assert [t.get_text() for t in draw().legends[0].get_texts()] == ["a", "b"]


def test_looks_survive_a_grey_printer():
    looks = style.looks([f"m{i}" for i in range(7)])
    for what in ("colour", "marker", "line", "hatch"):
        assert len({getattr(look, what) for look in looks.values()}) == 7


def test_style_leaves_the_users_settings_alone():
    with matplotlib.rc_context({"font.size": 31}):
        with style.style():
            assert matplotlib.rcParams["font.size"] == style.RC["font.size"]
        assert matplotlib.rcParams["font.size"] == 31


def test_width_is_the_column_of_the_page(tmp_path):
    from PIL import Image

    fig, ax = style.figure(style.COLUMN)
    ax.plot([0, 1])
    png = figures.save_figure(fig, tmp_path / "f", MADE_OF)[1]
    assert Image.open(png).width == pytest.approx(style.COLUMN * 200, abs=1)


def test_a_heavy_png_is_made_smaller_and_a_heavy_pdf_refused(tmp_path, monkeypatch):
    with style.style():
        fig, ax = style.figure(style.COLUMN, 2)
        ax.imshow(np.random.default_rng(0).random((600, 600, 3)))
    monkeypatch.setattr(figures, "LARGEST", 230_000)
    with pytest.raises(UserError, match="draw fewer points"):
        figures.save_figure(fig, tmp_path / "f", MADE_OF)
    monkeypatch.setattr(figures, "LARGEST", 10_000_000)
    figures.save_figure(fig, tmp_path / "full", MADE_OF)
    pdf, png = ((tmp_path / f"full.{kind}").stat().st_size for kind in ("pdf", "png"))
    if png > pdf:  # then a limit between the two lets the PDF through and shrinks the PNG
        monkeypatch.setattr(figures, "LARGEST", (png + pdf) // 2)
        assert figures.save_figure(fig, tmp_path / "less", MADE_OF)[1].stat().st_size < png


def test_twelve_series_can_be_told_apart():
    looks = style.looks([f"m{i}" for i in range(12)])
    assert (
        len({(look.colour, look.marker) for look in looks.values()})
        == len({(look.colour, str(look.line)) for look in looks.values()})
        == 12
    )


def test_a_class_that_is_called_by_a_colour_is_drawn_in_it():
    named = style.NAMED
    assert style.colours(["red", "yellow", "cat"]) == [named["red"], named["yellow"], style.COLOURS[0]]
    assert style.colours(["plain Blue circle", "dog", "blue cross", "ox"], last="#000000") == [
        named["blue"],
        *(colour for colour in style.COLOURS[:3] if colour != named["blue"]),
        "#000000",
    ]
    assert style.colours(["cyan", "pink"], last="#000000") == [named["cyan"], named["pink"]]
    many = style.colours([f"class {k}" for k in range(9)])
    assert many[:6] == list(style.COLOURS[:6]) and set(many[6:]) == {named["grey"]}
