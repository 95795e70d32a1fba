"""Small plots for the page: a verdict as its estimates, intervals and bar; a figure of pictures as these pictures."""

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shared.claims.claims import Claim
from shared.claims.verdicts import BAD, GOOD, Verdict
from shared.claims.wording import margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, MARGIN = 200, 14  # of a plot, in its own units; the margin holds half a label
SHOWN = 128  # pixels that a picture has at least on the page
TONES = {"#009E73": GOOD, "#D55E00": BAD}  # the green of what is right and the red of what is wrong, as papers say it


@dataclass(frozen=True)
class Plot:
    """Positions from 0 to WIDTH. lines: (low, value, high), from top to bottom; bars: what they are compared with, and
    in words; band: where a difference does not matter, None where no such margin is declared."""

    lines: list[tuple[float, float, float]]
    bars: list[tuple[float, str]]
    band: tuple[float, float] | None
    words: str
    tone: str


def plot(verdict: Verdict, whole: Verdict) -> Plot:
    """The estimates of one reading of a claim, on an axis that all readings of `whole` share."""
    bars, band = against(verdict.claim)
    together = [e for one in (*whole.readings.values(), whole) for e in one.estimates]
    values = [x for e in together for x in (e.low, e.value, e.high)] + bars + list(band or ())
    ends = [x for x in values if math.isfinite(x)]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def at(x: float) -> float:
        share = min(max((x - low) / span, 0.0), 1.0) if math.isfinite(x) else float(x > 0)
        return round(MARGIN + (WIDTH - 2 * MARGIN) * share, 1)

    said = "; ".join(f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]" for e in verdict.estimates)
    return Plot(
        [(at(e.low), at(e.value), at(e.high)) for e in verdict.estimates],
        [(at(bar), f"{bar:g}".replace("-", "−")) for bar in bars],
        band and (at(band[0]), at(band[1])),
        f"estimate and 95 % interval: {said}; bar: {' and '.join(f'{bar:g}' for bar in bars)}",
        verdict.tone,
    )


def against(claim: Claim) -> tuple[list[float], tuple[float, float] | None]:
    """What decides a claim: one number, or the two ends of a range; and the margin of equivalence around it."""
    if claim.predicate in ("within", "equal_within"):
        centre = 0.0 if claim.predicate == "equal_within" else claim.value
        return [centre - claim.tolerance, centre + claim.tolerance], None
    bar = claim.threshold if claim.threshold is not None else margin(claim)
    return [bar], claim.equivalence and (bar - claim.equivalence, bar + claim.equivalence)


@dataclass(frozen=True)
class Panel:
    """One picture with its place in the figure (from 1), what stands above it and what is said below it, line by line,
    with the tone of each ("" for most).

    data: PNG, base64; width, height: in its own pixels."""

    row: int
    column: int
    title: str
    said: list[tuple[str, str]]
    data: str
    width: int
    height: int


def panels(fig: "Figure") -> list[Panel]:
    """The pictures of a figure that has nothing else; [] for any other."""
    if not all(ax.images and not ax.axison for ax in fig.axes):
        return []
    return [_panel(ax) for ax in fig.axes]


def zoom(found: list[Panel]) -> int:
    """The least whole factor at which the pictures are large enough to look at."""
    return max(1, -(-SHOWN // max(panel.width for panel in found)))


def _panel(ax: "Axes") -> Panel:
    from PIL import Image

    layers = [np.asarray(image.to_rgba(image.get_array(), alpha=image.get_alpha())) for image in ax.images]
    shape = np.max([layer.shape[:2] for layer in layers], axis=0)
    picture = np.ones((*shape, 3))
    for layer in layers:
        rows, columns = (np.arange(size) * layer.shape[k] // size for k, size in enumerate(shape))
        over = layer[rows][:, columns]
        picture += over[..., 3:] * (over[..., :3] - picture)
    out = io.BytesIO()
    Image.fromarray((255 * picture).round().astype(np.uint8)).save(out, "PNG")
    place = ax.get_subplotspec()
    said = [(line, TONES.get(text.get_color(), "")) for text in ax.texts for line in text.get_text().split("\n")]
    height, width = map(int, shape)
    data = base64.b64encode(out.getvalue()).decode()
    title = " ".join(ax.get_title().split())
    return Panel(place.rowspan.start + 1, place.colspan.start + 1, title, said, data, width, height)
