"""Figures from estimates: bars, lines with bands, trade-offs, heat maps; saved as PDF and PNG with their records.

All helpers draw `Estimate`s (None is left out) on given axes, multiply by `factor` (100: fractions become percent) and
show intervals.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared.errors import UserError
from shared.files import write_atomic
from shared.metrics.intervals import Estimate
from shared.report import manifest
from shared.report.style import Look, looks, style

LARGEST = 300_000  # bytes per file, so that figures can be kept in git
_NO_DATES = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}

Series = Mapping[str, Sequence[Estimate | None]]


def save_figure(fig: Figure, stem: str | Path, made_of: dict) -> list[Path]:
    """Write `<stem>.pdf` and `<stem>.png` and put them into the folder's record (made_of: `manifest.origin`); the paths
    of the two.

    The same figure gives the same bytes. The PNG's resolution is lowered until it has at most 300 kB; a PDF over that
    is a UserError.
    """
    paths = []
    with style():
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # the layout stands: the files need not compute it again
        for kind, resolutions in (("pdf", (200,)), ("png", (200, 150, 110, 80))):
            for dpi in resolutions:
                buffer = io.BytesIO()
                fig.savefig(buffer, format=kind, dpi=dpi, metadata=_NO_DATES[kind])
                if buffer.tell() <= LARGEST:
                    break
            else:
                size = f"{buffer.tell() // 1000} kB, more than {LARGEST // 1000}"
                raise UserError(f"figure {stem}.{kind} has {size}: draw fewer points or rasterise")
            path = Path(stem).with_name(f"{Path(stem).name}.{kind}")
            write_atomic(path, buffer.getvalue())
            paths.append(path)
    manifest.write(paths, made_of)
    return paths


def bars(ax, groups: Sequence[str], series: Series, *, ylabel: str = "", factor: float = 100,
         look: Mapping[str, Look] | None = None) -> None:  # fmt: skip
    """Grouped bars with interval whiskers: `series[name][g]` is the bar of `name` in group g."""
    look, width = look or looks(list(series)), 0.8 / len(series)
    for k, (name, estimates) in enumerate(series.items()):
        at = np.arange(len(groups)) - 0.4 + width * (k + 0.5)
        mid, below, above, there = _arrays(estimates, factor)
        style_ = {"color": look[name].colour, "hatch": look[name].hatch, "edgecolor": "white", "linewidth": 0.4}
        ax.bar(at[there], mid, width * 0.94, label=name, **style_)
        ax.errorbar(at[there], mid, yerr=(below, above), fmt="none", ecolor="#333333", elinewidth=0.7, capsize=1.2)
    crowded = sum(map(len, groups)) * 0.065 > 0.8 * ax.figure.get_size_inches()[0] * ax.get_position().width
    ax.set_xticks(
        range(len(groups)),
        groups,
        rotation=35 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
    )
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel(ylabel)


def lines(ax, x: Sequence[float], series: Series, *, xlabel: str = "", ylabel: str = "", factor: float = 100,
          look: Mapping[str, Look] | None = None, categorical: bool = False) -> None:  # fmt: skip
    """Lines with interval bands over `x`; `categorical` puts the x values at equal distances under their own labels."""
    look = look or looks(list(series))
    at = np.arange(len(x)) if categorical else np.asarray(x, dtype=float)
    for name, estimates in series.items():
        mid, below, above, there = _arrays(estimates, factor)
        one = look[name]
        ax.plot(at[there], mid, color=one.colour, marker=one.marker, linestyle=one.line, label=name)
        ax.fill_between(at[there], mid - below, mid + above, color=one.colour, alpha=0.16, linewidth=0)
    if categorical or len(x) <= 8:
        ax.set_xticks(at, [f"{v:g}" if isinstance(v, int | float) else str(v) for v in x])
    ax.set(xlabel=xlabel, ylabel=ylabel)


def tradeoff(ax, points: Mapping[str, tuple[Estimate | None, Estimate | None]], *, xlabel: str = "clean accuracy (%)",
             ylabel: str = "robust accuracy (%)", factor: float = 100, look: Mapping[str, Look] | None = None) -> None:  # fmt: skip
    """One labelled point per name at (x, y), with both intervals; up and to the right is better."""
    look = look or looks(list(points))
    for name, (x, y) in points.items():
        if x is None or y is None:
            continue
        (px,), bx, ax_, _ = _arrays([x], factor)
        (py,), by, ay, _ = _arrays([y], factor)
        ax.errorbar(
            px, py, xerr=(bx, ax_), yerr=(by, ay), fmt="none", ecolor=look[name].colour, elinewidth=0.7, capsize=1.2
        )
        ax.plot(px, py, color=look[name].colour, marker=look[name].marker, markersize=4.5, linestyle="none", label=name)
    ax.grid(True, axis="both")
    ax.set(xlabel=xlabel, ylabel=ylabel)


def heatmap(ax, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Estimate | None]], *, xlabel: str = "",
            ylabel: str = "", factor: float = 100, digits: int = 1, label: str = "") -> None:  # fmt: skip
    """A matrix of values, each written into its cell (below: ± half its interval, or its ends if lopsided); missing
    cells stay blank."""
    grid = np.array([[np.nan if e is None else e.value * factor for e in line] for line in cells], dtype=float)
    image = ax.imshow(grid, aspect="auto")
    middle = np.nanmin(grid) + 0.5 * np.ptp(grid[np.isfinite(grid)])
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            e = cells[i][j].scaled(factor)
            spread = f"{e.low:.{digits}f}…{e.high:.{digits}f}" if e.lopsided else f"±{e.half_width:.{digits}f}"
            text = f"{value:.{digits}f}\n{spread}"
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color="black" if value > middle else "white")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.figure.colorbar(image, ax=ax, label=label).outline.set_visible(False)


def legend(fig: Figure, axes, columns: int | None = None) -> None:
    """One legend above all axes, for the union of their labels."""
    entries: dict[str, object] = {}
    for ax in np.atleast_1d(axes).ravel():
        handles, labels = ax.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in entries}
    fig.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper center",
        ncols=columns or min(len(entries), 6),
        columnspacing=1.2,
    )


def _arrays(
    estimates: Sequence[Estimate | None], factor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Values, distance to the lower and to the upper end, and the positions of the estimates that exist."""
    there = [i for i, e in enumerate(estimates) if e is not None]
    scaled = [estimates[i].scaled(factor) for i in there]
    mid = np.array([e.value for e in scaled])
    ends = [np.array([e.low for e in scaled]), np.array([e.high for e in scaled])]
    low, high = (np.where(np.isfinite(end), end, np.nan) for end in ends)  # nothing is drawn without bound
    return mid, mid - low, high - mid, there
