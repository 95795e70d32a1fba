"""What each figure of RoCLIP shows, by the tags of its numbers. No model is loaded here."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from papers.roclip.tables import (
    ABLATION,
    ACCURACY,
    EITHER,
    MATCHED,
    PSR,
    REGIMES,
    SCORED,
    SWEEPS,
    after,
    backdoors,
    by_epochs,
    default,
    downstream,
    few_grid,
    named,
    points,
    poisoning,
    runs,
    sets,
    short,
    trained,
    value,
)
from shared.experiment.paper import Grid
from shared.metrics.intervals import Estimate
from shared.report import figures, style
from shared.report.shown import Filled, figure

SHOWN = 5  # pairs of a kind in the strip
LETTERS = "abcdefghij"
FULL = (-4, 104)  # limits of an axis of per cents


def _look(c: object) -> dict[str, style.Look]:
    return style.looks(list(named(c).values()))


def _first_backdoor(c) -> dict | None:
    return next(({"measure": "bsr", "attack": a} for a in backdoors(c)), None)


def _success(regime: str) -> Callable[[object], Grid]:
    return lambda c: Grid(runs(c, trained(c, regime)), poisoning(c), {"kind": "score", "regime": regime}, c.seeds)


@figure(*map(_success, REGIMES))
def fig_success(*regimes: Filled) -> Figure:
    """Success of targeted poisoning (PSR) and of backdoors (BSR); lower is better. RoCLIP after its last RoCLIP epoch
    (full colour) and after its last plain epoch (hatched). Whiskers: 95 % intervals."""
    found = [grid for grid in regimes if any(grid)]
    fig, axes = style.figure(style.PAGE, 2.2 * len(found) + 0.3, rows=len(found), sharex=False, squeeze=False)
    own = _look(found[0].config)
    for ax, grid in zip(axes[:, 0], found, strict=True):
        series = grid.series()
        look = {}
        for label in series:
            name = label.removesuffix(SCORED["roclip_epoch"]).removesuffix(SCORED["plain_epoch"])
            look[label] = replace(own[name], hatch="//////" if label.endswith(SCORED["plain_epoch"]) else "")
        figures.bars(ax, grid.columns, series, ylabel="success (%)", look=look)
        ax.set(ylim=(0, 104))
        ax.set_title(REGIMES[grid.grid.common["regime"]], loc="left")
    figures.legend(fig, axes, 4)
    return fig


EPOCH_ROWS = {"PSR (%)": lambda c: PSR, "BSR (%)": _first_backdoor, "accuracy (%)": lambda c: ACCURACY}


def _growing(regime: str, asked: Callable[[object], dict | None]) -> Callable[[object], Grid]:
    return lambda c: by_epochs(c, regime, asked(c))


@figure(*(_growing(regime, asked) for regime in REGIMES for asked in EPOCH_ROWS.values()))
def fig_epochs(*grids: Filled) -> Figure:
    """Success of targeted poisoning, success of the first backdoor, and zero-shot accuracy after every epoch, measured
    while training. Large markers: RoCLIP epochs. Bands: 95 % intervals."""
    rows = len(EPOCH_ROWS)
    found = [part for part in (grids[:rows], grids[rows:]) if any(any(grid) for grid in part)]
    fig, axes = style.figure(style.PAGE, 5.0, rows=rows, columns=len(found), sharey="row", sharex="col", squeeze=False)
    for column, part in enumerate(found):
        for ax, grid, label in zip(axes[:, column], part, EPOCH_ROWS, strict=True):
            last = ax is axes[-1, column]
            _by_epoch(ax, grid, xlabel="epoch" if last else "", ylabel="" if column else label)
            ax.set(ylim=FULL)
        axes[0, column].set_title(REGIMES[part[0].grid.common["regime"]])
    figures.legend(fig, axes, 5)
    return fig


def _similar(regime: str, attack: str) -> Callable[[object], Grid]:
    return lambda c: by_epochs(c, regime, {"measure": "similarity", "attack": attack})


@figure(*(_similar(regime, attack) for regime in REGIMES for attack in ("none", "targets")))
def fig_similarity(*grids: Filled) -> Figure:
    """Cosine of a picture with its caption over that with other captions, after every epoch: poisoned pairs (full
    lines) and clean pairs (thin dotted lines). Large markers: RoCLIP epochs. Bands: 95 % intervals of poisoned
    pairs."""
    found = [part for part in (grids[:2], grids[2:]) if any(any(grid) for grid in part)]
    fig, axes = style.figure(style.PAGE, 2.6, columns=len(found), sharey=True, squeeze=False)
    for k, (ax, (clean, poisoned)) in enumerate(zip(axes[0], found, strict=True)):
        _by_epoch(ax, clean, factor=1, thin=True)
        _by_epoch(ax, poisoned, factor=1, xlabel="epoch", ylabel="" if k else "cosine")
        ax.set_title(REGIMES[poisoned.grid.common["regime"]])
    axes[0][0].plot([], [], color="#333333", linestyle=":", linewidth=0.8, label="clean pairs")
    figures.legend(fig, axes, 6)
    return fig


def _by_epoch(ax: Axes, grid: Filled, *, factor: float = 100, thin: bool = False, **labels: str) -> None:
    """A line per method over the epochs; RoCLIP epochs have larger markers."""
    epochs = [int(e) for e in grid.columns]
    look = _look(grid.config)
    for m, name in named(grid.config).items():
        found = [after(grid, m, e) for e in grid.columns]
        series = [values and values.mean() for values in found]
        if not any(series):
            continue
        before = len(ax.get_lines())
        figures.lines(ax, epochs, {name: series}, factor=factor, look=look, **labels)
        line = ax.get_lines()[before]
        if thin:
            line.set(linestyle=":", linewidth=0.8, marker="", label="_")
            ax.collections[-1].remove()
            continue
        line.set(linestyle="-", markersize=2.2)
        row = name + SCORED["roclip_epoch"]
        matched = [e for e in epochs if row in grid.rows and grid[row, str(e)]]
        there = [k for k, e in enumerate(line.get_xdata()) if e in matched]
        if there:
            x, y = line.get_xdata()[there], line.get_ydata()[there]
            ax.plot(x, y, linestyle="none", marker=look[name].marker, markersize=5.2, color=look[name].colour)
    if epochs:
        step = -(-len(epochs) // 12)
        ax.set_xticks(epochs[step - 1 :: step])


FEW_COLUMNS = {"accuracy": ACCURACY, "PSR": PSR}


@figure(lambda c: few_grid(c, FEW_COLUMNS))
def fig_few(filled: Filled) -> Figure:
    """The world of few targets: success of targeted poisoning against zero-shot accuracy at the end of training. Small
    markers: every seed; large ones: their mean. Below and to the right is better."""
    fig, ax = style.figure(style.COLUMN, 3.2)
    for name, look in style.looks(filled.rows).items():
        at = [[100 * m.value for m in filled.measurements(name, column)] for column in FEW_COLUMNS]
        if not all(at):
            continue
        marker = {"linestyle": "none", "marker": look.marker, "color": look.colour}
        ax.plot(*at, markersize=3, alpha=0.5, label="_", **marker)
        ax.plot(*np.mean(at, axis=1, keepdims=True), markersize=6, label=name, **marker)
    ax.grid(True, axis="both")
    ax.set(xlabel="accuracy (%)", ylabel="PSR (%)", xlim=FULL, ylim=FULL)
    figures.legend(fig, ax, 2)
    return fig


ABLATED = {
    "PSR, RoCLIP epoch": ({**PSR, "scored": "roclip_epoch"}, "-"),
    "PSR, plain epoch": ({**PSR, "scored": "plain_epoch"}, "--"),
    "accuracy, RoCLIP epoch": ({**ACCURACY, "scored": "roclip_epoch"}, ":"),
}


def _ablated(c) -> Grid:
    rows = {label: tags for sweep in SWEEPS for label, tags in points(c, sweep).items()}
    return Grid(rows, {name: tags for name, (tags, _) in ABLATED.items()}, ABLATION, c.seeds[:1])


@figure(_ablated)
def fig_ablations(filled: Filled) -> Figure:
    """One setting of the two-sided RoCLIP at a time: success of targeted poisoning after the last RoCLIP epoch (full)
    and the last plain epoch (dashed), and zero-shot accuracy after the last RoCLIP epoch. Grey line: the default. One
    seed. Whiskers: 95 % intervals."""
    c = filled.config
    found = {}
    for sweep in SWEEPS:
        at = {label: tags["value"] for label, tags in points(c, sweep).items() if any(filled.row(label))}
        if at:
            found[sweep] = at
    columns = len(found) if len(found) <= 3 else -(-len(found) // 2)
    rows = -(-len(found) // columns)
    fig, axes = style.figure(style.PAGE, 1.9 * rows + 0.3, rows=rows, columns=columns, sharey=True, squeeze=False)
    look = {name: replace(one, line=ABLATED[name][1]) for name, one in style.looks(list(ABLATED)).items()}
    for ax, letter, (sweep, at) in zip(axes.ravel(), LETTERS, found.items(), strict=False):
        numbers = sweep in ("pool", "every")
        values = list(at.values())
        names = [textwrap.fill(value(sweep, v), 9) for v in values]
        for k, name in enumerate(ABLATED):
            series = [filled[label, name] for label in at]
            if any(series):
                figures.lines(ax, names, {name: series}, look=look, categorical=True)
                line = ax.get_lines()[-1]
                line.set(linestyle=look[name].line if numbers else "none", markersize=4)
                if not numbers:
                    _whiskers(ax, line, series, 0.14 * (k - 1))
        if default(c, sweep) in values:
            ax.axvline(values.index(default(c, sweep)), color="#999999", linewidth=0.8, zorder=0)
        ylabel = "rate (%)" if ax in axes[:, 0] else ""
        ax.set(xlabel=f"({letter}) {SWEEPS[sweep]}", ylabel=ylabel, ylim=FULL, xlim=(-0.4, len(at) - 0.6))
    for ax in axes.ravel()[len(found) :]:
        ax.set_axis_off()
    figures.legend(fig, axes, 3)
    return fig


def _whiskers(ax: Axes, line, series: Sequence[Estimate | None], aside: float) -> None:
    """Between words there is nothing, so the band of `figures.lines` becomes whiskers; what is equal stands side by
    side."""
    ax.collections[-1].remove()
    line.set_xdata(np.asarray(line.get_xdata()) + aside)
    look = {"color": line.get_color(), "linewidth": 0.8, "marker": "", "linestyle": "-", "label": "_"}
    for k, e in enumerate(series):
        if e is not None:
            ax.plot([k + aside] * 2, [100 * e.low, 100 * e.high], **look)


def _pretrained(measure: str) -> Callable[[object], Grid]:
    return lambda c: downstream(c, "pretrain", measure, trained(c, "pretrain"), EITHER[:1])


@figure(_pretrained("accuracy"), _pretrained("linear_probe"))
def fig_downstream(*measures: Filled) -> Figure:
    """Zero-shot accuracy and a linear probe after pre-training on poisoned pairs, set by set and in the mean. RoCLIP
    after its last RoCLIP epoch. Whiskers: 95 % intervals."""
    shown = [*map(short, sets(measures[0].config, "linear_probe")), "mean"]
    fig, axes = style.figure(style.PAGE, 4.4, rows=2, sharex=True)
    own = _look(measures[0].config)
    for ax, grid, label in zip(axes, measures, ("zero-shot accuracy (%)", "linear probe (%)"), strict=True):
        series = {}
        for row in grid.series():
            cells = [grid[row, name] if name in grid.columns else None for name in shown]
            series[row.removesuffix(SCORED["roclip_epoch"])] = cells
        figures.bars(ax, shown, series, ylabel=label, look=own)
        ax.set(ylim=(0, 104))
    axes[0].tick_params(axis="x", labelbottom=False)
    figures.legend(fig, axes, 5)
    return fig


STRIP = {
    "pair": (None, "pair"),
    "two-sided:\ncaption": ("roclip", "image"),
    "two-sided:\npicture": ("roclip", "text"),
    "released:\ncaption": ("released", "image"),
}


PAIRS = {"targets": "poisoned pair", "none": "clean pair"}


def _strip(c) -> Grid:
    common = {"kind": "returned", "regime": "pretrain", "measure": "same_class", "scored": "last"}
    return Grid({m: {"method": m} for m in MATCHED}, {a: {"attack": a} for a in PAIRS}, common, c.seeds[:1])


@figure(_strip)
def fig_returned(filled: Filled) -> Figure:
    """What the pools return at the end of pre-training, for poisoned pairs (left) and clean pairs (right). First
    column: the pair. Then the caption that takes the place of its own (with the picture it came with), and, two-sided,
    the picture that takes the place of its own."""
    measured = {(m, a): filled.measurements(m, a) for m in filled.rows for a in filled.columns}
    found = {at: one[0].extra for at, one in measured.items() if one}
    cells = []
    for attack in filled.columns:
        for title, (method, side) in STRIP.items():
            extra = found.get((method or "roclip", attack), {})
            if side == "pair" and extra:
                cells.append((PAIRS[attack], extra["pictures"], extra["captions"]))
            elif f"{side}_captions" in extra:
                cells.append((title, extra[f"{side}_pictures"], extra[f"{side}_captions"]))
    n = min(SHOWN, *(len(captions) for *_, captions in cells))
    fig, axes = style.figure(style.PAGE, 1.2 * n + 0.45, rows=n, columns=len(cells), squeeze=False)
    fig.get_layout_engine().set(h_pad=0.03, w_pad=0.02)
    for k, (title, pictures, captions) in enumerate(cells):
        for i in range(n):
            ax = axes[i, k]
            ax.imshow(_shrunk(np.clip(np.moveaxis(pictures[i], 0, -1), 0, 1)), interpolation="nearest", vmin=0, vmax=1)
            ax.set_axis_off()
            lines = textwrap.wrap(str(captions[i]) or "(noise)", 21)
            said = "\n".join(lines[:4]) + ("…" if lines[4:] else "")
            colour = "#D55E00" if title == PAIRS["targets"] else "#333333"
            ax.text(0.5, -0.03, said, transform=ax.transAxes, ha="center", va="top", fontsize=4.6, color=colour)
        axes[0, k].set_title(title, fontsize=6)
    return fig


def _shrunk(picture: np.ndarray, side: int = 40) -> np.ndarray:
    """A picture (H, W, 3) made smaller by a whole factor, so that a page of them stays a small file."""
    factor = -(-picture.shape[0] // side)
    h, w = (s // factor * factor for s in picture.shape[:2])
    return picture[:h, :w].astype(np.float64).reshape(h // factor, factor, w // factor, factor, 3).mean((1, 3))
