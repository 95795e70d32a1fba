"""What each figure of distshift shows, by the tags of its numbers. No model is loaded here."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from papers.distshift.tables import (
    AGAINST,
    BASELINE,
    CLEAN,
    GUIDED,
    METHODS,
    NORMS,
    adversaries,
    both,
    candidates,
    conditions,
    named,
    of_place,
    on_first,
    radius,
    rows,
    sets,
    short,
    state_names,
    states,
    time,
    under,
    written,
)
from shared.experiment.paper import Grid
from shared.report import figures, style
from shared.report.shown import Filled, figure

# the first seven have colours of their own
ORDER = ("diffpure", "pgd_at", "distshift", "gdmp", "none", "jpeg", "tv", "bits", "resize_pad", "noise", "one_step")
REFERENCE = Path(__file__).with_name("released.csv")
FULL = (-4, 104)  # limits of an axis of per cents


def _look(c: object) -> dict:
    return style.looks(list(named(c, ORDER).values()))


def _measured(series: dict[str, Sequence]) -> dict[str, Sequence]:
    return {label: cells for label, cells in series.items() if any(cells)}


def _mean_of_both(place: int) -> Callable[[object], Grid]:
    def grid(c) -> Grid:
        if len(sets(c)) <= place:
            return Grid({}, {})
        return Grid(rows(c), {"clean": CLEAN, **{norm: both(c, norm) for norm in NORMS}}, of_place(c, place), c.seeds)

    return grid


@figure(_mean_of_both(0), _mean_of_both(1))
def fig_tradeoff(*places: Filled) -> Figure:
    """Clean accuracy against accuracy under attack (mean over both attacks), for each set and ball. Whiskers: 95 %
    intervals."""
    places = [grid for grid in places if any(grid)]
    fig, axes = style.figure(style.PAGE, 2.4 * len(places), rows=len(places), columns=2, squeeze=False)
    look = _look(places[0].config)
    for grid, line in zip(places, axes, strict=True):
        for ax, (norm, ball) in zip(line, NORMS.items(), strict=True):
            points = {name: (grid[name, "clean"], grid[name, norm]) for name in grid.rows}
            at = written(radius(grid.config, norm))
            figures.tradeoff(ax, points, ylabel=f"accuracy at {ball} {at} (%)", look=look)
            ax.set_title(f"{short(grid.config, grid.grid.common['data'])}, {ball}")
            ax.set(ylim=FULL)
    figures.legend(fig, axes, 5)
    return fig


EPS_ROWS = ("none", "pgd_at", "jpeg", "diffpure", "gdmp", "distshift")


def _growing(norm: str) -> Callable[[object], Grid]:
    def grid(c) -> Grid:
        columns = {written(t * radius(c, norm)): under(c, norm, times=t) for t in c.sweeps.times}
        lines = {label: {"method": m} for m, label in named(c, EPS_ROWS).items()}
        return Grid(lines, columns, on_first(c, "eps"))

    return grid


@figure(*(_growing(norm) for norm in NORMS))
def fig_eps(*balls: Filled) -> Figure:
    """Accuracy against ε under PGD, in either ball. One seed."""
    look = _look(balls[0].config)
    fig, axes = style.figure(style.PAGE, 2.5, columns=2)
    for ax, grid, ball in zip(axes, balls, NORMS.values(), strict=True):
        label = {"xlabel": f"ε ({ball})", "ylabel": "accuracy (%)"}
        figures.lines(ax, grid.columns, grid.series(), **label, look=look, categorical=True)
        ax.set(ylim=FULL)
    figures.legend(fig, axes, 6)
    return fig


def _swept(
    kind: str, values: Callable[[object], Sequence], methods: Sequence[str] = (BASELINE, "distshift")
) -> list[Callable]:
    """One grid for each condition (clean, PGD in either ball): methods × the values of what is varied."""

    def of(k: int) -> Callable[[object], Grid]:
        def grid(c) -> Grid:
            tag = {"time": "t"}.get(kind, kind)
            condition = list(conditions(c, ("pgd",)).values())[k]
            points = {f"{v:g}": {tag: v} for v in values(c)}
            return Grid({METHODS[m]: {"method": m} for m in methods}, points, on_first(c, kind, **condition))

        return grid

    return [of(k) for k in range(1 + len(NORMS))]


def _panels(grids: Sequence[Filled], xlabel: str, vertical: float | None) -> Figure:
    names = conditions(grids[0].config, ("pgd",))
    fig, axes = style.figure(style.PAGE, 2.3, columns=len(names), sharey=True)
    look = _look(grids[0].config)
    for ax, grid, name in zip(axes, grids, names, strict=True):
        ylabel = "accuracy (%)" if ax is axes[0] else ""
        figures.lines(ax, [float(v) for v in grid.columns], grid.series(), xlabel=xlabel, ylabel=ylabel, look=look)
        if vertical is not None:
            _dashed(ax.axvline, vertical)
        ax.set_title(name)
        ax.set(ylim=FULL)
    figures.legend(fig, axes, 4)
    return fig


def _dashed(line: Callable, at: float, **more: object) -> None:
    line(at, color="#333333", linestyle="--", linewidth=0.8, **more)


@figure(*_swept("time", lambda c: c.sweeps.t))
def fig_time(*grids: Filled) -> Figure:
    """Accuracy against the diffusion time t*, with and without guidance; the dashed line is the time of all other
    tables. One seed."""
    return _panels(grids, "t* (steps)", time(grids[0].config))


@figure(*_swept("rounds", lambda c: c.sweeps.rounds))
def fig_rounds(*grids: Filled) -> Figure:
    """Accuracy against the number of rounds of purification, with and without guidance. One seed."""
    return _panels(grids, "rounds", None)


@figure(*_swept("scale", lambda c: c.sweeps.scales, ("distshift",)))
def fig_scale(*grids: Filled) -> Figure:
    """Accuracy against the scale of the guidance as a multiple of the chosen one (dashed); 0: none. One seed."""
    c = grids[0].config
    series = _measured(
        {name: grid.row(METHODS["distshift"]) for name, grid in zip(conditions(c, ("pgd",)), grids, strict=True)}
    )
    fig, ax = style.figure(style.COLUMN)
    scales = [float(v) for v in grids[0].columns]
    figures.lines(ax, scales, series, xlabel="scale, times the chosen one", ylabel="accuracy (%)", categorical=True)
    ax.set(ylim=FULL)
    _dashed(ax.axvline, scales.index(1.0))
    figures.legend(fig, ax, 1)
    return fig


def stored(figure: str) -> dict[str, list[tuple[float, float, float]]]:
    """The first author's own curves of one figure, of released.csv: victim -> (x, clean, robust), in shares."""
    lines = [line for line in REFERENCE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in csv.DictReader(lines):
        if row["figure"] == figure:
            found.setdefault(row["victim"], []).append((float(row["x"]), float(row["clean"]), float(row["robust"])))
    return found


def _released(ax: Axes, x: Sequence[float], series: dict[str, Sequence], figure: str, column: int, xlabel: str) -> None:
    """Ours in colours, his in grey."""
    figures.lines(ax, x, series, xlabel=xlabel, ylabel="accuracy (%)")
    for line, (victim, points) in zip(style.LINES, stored(figure).items(), strict=False):
        values = [100 * point[column] for point in points]
        ax.plot([p[0] for p in points], values, color="#888888", linestyle=line, linewidth=0.8, label=f"{victim} (his)")
    ax.set(ylim=FULL)


def _released_eps(c: object) -> Grid:
    columns = {
        f"{e:g}": {"attack": "pgd_released", "norm": "linf", "eps": e / 255} if e else CLEAN for e in c.released.eps
    }
    return Grid(
        {"no defence": {"method": "none"}, "one step": {"method": "one_step"}}, columns, on_first(c, "released_eps")
    )


@figure(_released_eps)
def fig_released_eps(grid: Filled) -> Figure:
    """Accuracy against ε, as the first author's code attacks (PGD-5, ℓ∞, on the bare victim) and purifies (one step, no
    guide); grey: the curves stored there, of his CIFAR-10 victims. Five steps of 3/255 go no farther than 15/255 from a
    random start: beyond that ε is mostly noise."""
    fig, ax = style.figure(style.PAGE, 2.6)
    _released(ax, [float(e) for e in grid.columns], grid.series(), "eps", 2, "ε (1/255)")
    figures.legend(fig, ax, 3)
    return fig


def _released_time(attack: int) -> Callable[[object], Grid]:
    def grid(c: object) -> Grid:
        condition = (CLEAN, under(c, "linf", "pgd_released"))[attack]
        points = {f"{t:g}": {"t": t, **condition} for t in c.released.times}
        return Grid({("clean", "PGD-5, ℓ∞")[attack]: {"method": "one_step"}}, points, on_first(c, "released_time"))

    return grid


def _second_time(c: object) -> Grid:
    if len(sets(c)) < 2 or not c.released.second_times:
        return Grid({}, {})
    where = {**on_first(c, "released_time"), "data": sets(c)[1]}
    rows_ = {
        "clean": {"method": "one_step", **CLEAN},
        "PGD-5, ℓ∞": {"method": "one_step", **under(c, "linf", "pgd_released")},
    }
    return Grid(rows_, {f"{t:g}": {"t": t} for t in c.released.second_times}, where)


@figure(_released_time(0), _released_time(1), _second_time)
def fig_released_time(clean: Filled, attacked: Filled, second: Filled) -> Figure:
    """Accuracy against t* (of 4,000 cosine steps; ours at the same noise) of one-step denoising without a guide, clean
    and under PGD-5; grey: the curves stored in the first author's code. A sweep on a second set is in its own steps."""
    there = any(second)
    fig, axes = style.figure(style.PAGE, 2.4, columns=3 if there else 2, sharey=True)
    for ax, grid, column in zip(axes, (clean, attacked), (1, 2), strict=False):
        series = grid.series()
        _released(ax, [float(t) for t in grid.columns], series, "time", column, "t* of 4,000")
        ax.set_title(grid.rows[0])
    if there:
        figures.lines(axes[2], [float(t) for t in second.columns], second.series(), xlabel="t*")
        axes[2].set_title(short(second.config, sets(second.config)[1]))
    figures.legend(fig, axes, 4)
    return fig


def _compared(c: object) -> Grid:
    common = {"method": "distshift", "data": sets(c)[0], "seed": c.seeds[0]}
    return Grid(candidates(c, "chosen: {}"), conditions(c, ("pgd",)), common)


@figure(_compared)
def fig_variants(grid: Filled) -> Figure:
    """Candidates for the guidance: accuracy clean and under PGD; first the chosen one and none. One seed. Whiskers:
    95 % intervals."""
    fig, ax = style.figure(style.PAGE, 3.6)
    at = np.arange(len(grid.rows))[::-1]
    width = 0.8 / len(grid.columns)
    look = style.looks(grid.columns)
    for k, name in enumerate(grid.columns):
        found = [grid[row, name] for row in grid.rows]
        there = [i for i, e in enumerate(found) if e is not None]
        y = (at + 0.4 - width * (k + 0.5))[there]
        values, low, high = (
            np.array([100 * getattr(found[i], part) for i in there]) for part in ("value", "low", "high")
        )
        one = look[name]
        ax.barh(
            y, values, width * 0.94, label=name, color=one.colour, hatch=one.hatch, edgecolor="white", linewidth=0.4
        )
        ax.errorbar(
            values, y, xerr=(values - low, high - values), fmt="none", ecolor="#333333", elinewidth=0.7, capsize=1.2
        )
    ax.set_yticks(at, grid.rows)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="accuracy (%)", xlim=(0, 104))
    figures.legend(fig, ax, 3)
    return fig


def _in_first_ball(c) -> Grid:
    """Every attacker of every defence (not of the row "as released"), mean and worst, in the first ball; PGD-AT as it
    is."""
    norm = c.adaptive.norms[0]
    everyone = adversaries(c)
    lines = {m: {"method": m} for m in everyone if m != "one_step"}
    columns = {
        f"{a} {how}": {"against": a, "judged": how, **under(c, norm, "adaptive")}
        for a in AGAINST
        for how in ("one", "mean", "worst")
    }

    def joined(row: dict, column: dict) -> dict | None:
        fits = column["against"] in everyone[row["method"]]
        wanted = (column["judged"] == "one") == (row["method"] == "pgd_at")
        return {**row, **column} if fits and wanted else None

    return Grid(lines, columns, on_first(c, "adaptive"), joined=joined)


@figure(_in_first_ball)
def fig_adaptive(grid: Filled) -> Figure:
    """Accuracy under attackers who know the defence: the mean over repeated purifications and the worst of them.
    Whiskers: 95 % intervals."""
    own, series, look = _look(grid.config), {}, {}
    for m, name in named(grid.config, (BASELINE, *GUIDED)).items():
        for how, hatch in (("mean", ""), ("worst", "//////")):
            label = f"{name}, {how}"
            series[label] = [grid[m, f"{a} {how}"] for a in AGAINST]
            look[label] = replace(own[name], hatch=hatch)
    series = _measured(series)
    shown = [k for k in range(len(AGAINST)) if any(cells[k] for cells in series.values())]
    fig, ax = style.figure(style.PAGE, 2.8)
    names = [list(AGAINST.values())[k] for k in shown]
    figures.bars(
        ax,
        names,
        {label: [cells[k] for k in shown] for label, cells in series.items()},
        ylabel="accuracy (%)",
        look=look,
    )
    ax.set(ylim=(0, 104))
    trained = grid["pgd_at", "exact one"]
    if trained:
        _dashed(ax.axhline, 100 * trained.value, label="PGD-AT, exact")
    figures.legend(fig, ax, 4)
    return fig


@figure(states)
def fig_distribution(grid: Filled) -> Figure:
    """Left: pictures in the plane of two principal axes of the victim's features (clean and adversarial together);
    grey: the clean pictures that each sample is compared with. Right: MMD² to those, with 95 % intervals; the p-value
    of the permutation test is written beside it."""
    names = state_names(grid.config)
    shown = [s for s in names if grid[s, "mmd2"]]
    extra = {s: grid.measurements(s, "mmd2")[0].extra for s in shown}
    fig, axes = style.figure(style.PAGE, 3.0, columns=2, width_ratios=(1.15, 1))
    look = style.looks(list(names.values()))
    axes[0].plot(
        *extra[shown[0]]["reference"].T,
        linestyle="none",
        marker=".",
        markersize=5,
        color="#bbbbbb",
        label="other clean pictures",
    )
    for s in shown:
        if s in ("clean", "purified_clean"):
            continue
        one = look[names[s]]
        axes[0].plot(
            *extra[s]["xy"].T,
            linestyle="none",
            marker=one.marker,
            markersize=2.6,
            color=one.colour,
            alpha=0.75,
            label=names[s],
        )
    axes[0].grid(True, axis="both")
    axes[0].set(xlabel="first axis", ylabel="second axis")
    for k, s in enumerate(shown):
        e, p, one = grid[s, "mmd2"], grid[s, "p"], look[names[s]]
        spread = [[max(0, e.value - e.low)], [max(0, e.high - e.value)]]
        axes[1].errorbar(
            e.value, -k, xerr=spread, fmt=one.marker, markersize=4.5, color=one.colour, elinewidth=0.9, capsize=1.5
        )
        if p:
            axes[1].annotate(
                f"p = {p.value:.3f}", (e.value, -k), textcoords="offset points", xytext=(0, 5), ha="center", fontsize=6
            )
    axes[1].axvline(0, color="#333333", linewidth=0.6)
    axes[1].set_yticks([-k for k in range(len(shown))], [names[s] for s in shown])
    axes[1].grid(True, axis="x")
    axes[1].set(xlabel="MMD² to other clean pictures", ylim=(-len(shown) + 0.4, 0.7))
    figures.legend(fig, axes[0], 3)
    return fig


@figure(lambda c: Grid({"distshift": {"method": "distshift"}}, {"strip": under(c, "linf")}, on_first(c, "strip")))
def fig_strip(grid: Filled) -> Figure:
    """From left to right: clean, adversarial, their difference × 10, diffused to t*, DiffPure, distshift; below each
    what the victim says, in green where it is right."""
    extra = grid.measurements("distshift", "strip")[0].extra
    columns = {
        "clean": "clean",
        "adversarial": "adversarial",
        "difference": "difference × 10",
        "diffused": f"diffused, t* = {time(grid.config)}",
        "diffpure": "DiffPure",
        "purified": "distshift",
    }
    n = len(extra["clean"])
    fig, axes = style.figure(style.PAGE, 1.42 * n, rows=n, columns=len(columns), squeeze=False)
    for i in range(n):
        for ax, (name, title) in zip(axes[i], columns.items(), strict=True):
            _picture(ax, extra, name, i)
            if i == 0:
                ax.set_title(title, fontsize=6.5)
    return fig


def _picture(ax: Axes, extra: dict, name: str, i: int) -> None:
    picture = np.clip(0.5 + 10 * extra["difference"][i] / 2, 0, 1) if name == "difference" else extra[name][i] / 255
    ax.imshow(np.moveaxis(picture, 0, -1), interpolation="nearest")
    ax.set_axis_off()
    if f"{name} answers" in extra:
        said = str(extra[f"{name} answers"][i])
        colour = "#009E73" if said == str(extra["truth"][i]) else "#D55E00"
        ax.text(0.5, -0.04, said, transform=ax.transAxes, ha="center", va="top", fontsize=5.5, color=colour)
