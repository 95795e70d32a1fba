"""One look for every figure: print sizes, colours for the colour-blind, shapes that survive a grey printer, no dates in
the files."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 6.9  # inches: one column and the full width of a two-column page
# Okabe & Ito (2008), ordered so that neighbours differ in lightness as well as in hue; their yellow is too light for
# lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NAMED = {"red": "#D55E00", "green": "#009E73", "blue": "#0072B2", "yellow": "#D8C800", "purple": "#7B3294", "orange": "#E69F00", "cyan": "#35B5C9",
         "pink": "#E78AC3", "black": "#000000", "grey": "#999999", "brown": "#8C564B"}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xx", "--", "oo")

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same bytes on every machine
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "hatch.linewidth": 0.5,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text: searchable, and accepted by conference checkers
    "pdf.compression": 9,
    "image.cmap": "cividis",
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Look:
    """How one series is drawn, in colour and in grey."""

    colour: str
    marker: str
    line: object
    hatch: str


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The project's matplotlib settings inside the block, over matplotlib's defaults and not over the user's own
    settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look per series, by position: give all figures of a paper the same list and a method looks the same in each.
    From the eighth on colours come again, with other shapes."""
    out = {}
    for i, name in enumerate(names):
        shape = i + 3 * (i // len(COLOURS))
        out[name] = Look(COLOURS[i % len(COLOURS)], *(kind[shape % len(kind)] for kind in (MARKERS, LINES, HATCHES)))
    return out


def colours(names: Sequence[str], last: str | None = None) -> list[str]:
    """A colour per name: the one that it says ("red", "plain red circle"), unless a name before it does; else the next
    of COLOURS that no name says, and grey when they are used up. last: the colour of the last name instead, where it
    says none."""
    said: list[str | None] = []
    for name in names:
        word = next((NAMED[word] for word in name.lower().split() if word in NAMED), None)
        said.append(None if word in said else word)
    if last is not None and said[-1] is None:
        said[-1] = last
    free = [colour for colour in COLOURS[:-1] if colour not in said]
    return [one or (free.pop(0) if free else NAMED["grey"]) for one in said]


def figure(
    width: float = COLUMN, height: float | None = None, rows: int = 1, columns: int = 1, **options
) -> tuple[Figure, object]:
    """A figure of `width` inches (`COLUMN` or `PAGE`) with its axes, as `plt.subplots` returns them but with no global
    state."""
    per_axes = width / columns
    fig = Figure(figsize=(width, height or rows * min(0.68 * per_axes, 2.4)), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, **options)
