"""What each figure of DiffCAP shows, by the tags of its numbers. No model is loaded here."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from papers.diffcap.tables import (
    AGAINST,
    CLAIMED_RANDOM,
    CLIP,
    LANGUAGE,
    METHODS,
    MODELS,
    ONLY_DIFFCAP,
    PURIFIERS,
    TASKS,
    ablation,
    asked,
    at,
    existing,
    fading,
    judging,
    named,
    on,
    recovery,
    rows,
    sets,
    short,
    similarity_of_pairs,
    strengths,
    written,
)
from shared.experiment.paper import Grid
from shared.report import figures, style
from shared.report.shown import Filled, figure

SHOWN = ("none", "tecoa", "fare", "jpeg", "diffpure", "diffcap")
UNITS = {"captions": ("CIDEr", 1), "questions": ("VQA accuracy (%)", 100), "classes": ("top-1 (%)", 100)}


# ---- main comparison ---------------------------------------------------------------------------------------------------


def _over_sets(c) -> Grid:
    """Clean and under the strongest attack, mean over the models and sets of a task."""
    levels = (0.0, c.attack.eps[-1])
    columns = {
        f"{task} {written(e)}": [at(c, where, e) for where in judging(c, task)] for task in asked(c) for e in levels
    }
    return Grid(rows(c, random=CLAIMED_RANDOM), columns, {"kind": "score"}, c.seeds, joined=existing)


@figure(_over_sets)
def fig_tradeoff(grid: Filled) -> Figure:
    """Clean score against the score under the strongest attack, mean over models and sets of a task. Whiskers: 95 %
    intervals."""
    worst = written(grid.config.attack.eps[-1])
    tasks = asked(grid.config)
    fig, axes = style.figure(style.PAGE, 2.5, columns=len(tasks), squeeze=False)
    look = style.looks(list(named(grid.config, METHODS).values()))
    for ax, task in zip(axes[0], tasks, strict=True):
        unit, factor = UNITS[task]
        points = {name: (grid[name, f"{task} clean"], grid[name, f"{task} {worst}"]) for name in grid.rows}
        figures.tradeoff(ax, points, xlabel=f"clean {unit}", ylabel=f"{unit} at {worst}", factor=factor, look=look)
        ax.set_title(task)
    figures.legend(fig, axes, 6)
    return fig


def _panels(c) -> list[tuple[str, dict]]:
    """(task, model and set): each language model on the first set to caption and to ask about, CLIP on both of its
    own."""
    language = [(task, {"model": m, "data": getattr(c.data, task)[0]}) for task in asked(c)[:-1] for m in LANGUAGE]
    return [*language, *(("classes", {"model": CLIP, "data": s}) for s in c.data.classes[:2])]


def _growing(c) -> Grid:
    columns = {f"{k} {written(e)}": at(c, where, e) for k, (_, where) in enumerate(_panels(c)) for e in strengths(c)}
    return Grid(rows(c, SHOWN), columns, {"kind": "score"}, c.seeds)


@figure(_growing)
def fig_strengths(grid: Filled) -> Figure:
    """Score against the strength of the attack, for each model and its first set of each task."""
    panels, levels = _panels(grid.config), [written(e) for e in strengths(grid.config)]
    columns = (len(panels) + 1) // 2
    fig, axes = style.figure(style.PAGE, 4.2, rows=2, columns=columns, squeeze=False)
    places = axes.T.ravel()
    for k, (task, where) in enumerate(panels):
        unit, factor = UNITS[task]
        series = {name: [grid[name, f"{k} {level}"] for level in levels] for name in grid.rows}
        figures.lines(places[k], levels, _measured(series), ylabel=unit, factor=factor, categorical=True)
        places[k].set_title(f"{MODELS[where['model']]}, {short(where['data'])}")
    for ax in places[len(panels) :]:
        ax.set_axis_off()
    figures.legend(fig, axes, 6)
    return fig


def _measured(series: dict[str, Sequence]) -> dict[str, Sequence]:
    return {label: cells for label, cells in series.items() if any(cells)}


# ---- when it stops -----------------------------------------------------------------------------------------------------


def _stops(c) -> Grid:
    """Model and set × strength."""
    wheres = [where for task in TASKS for where in judging(c, task)]
    places = {
        f"{MODELS[where['model']]}\n{next((t for t in TASKS if t in where['data']), '')} {short(where['data'])}": where
        for where in sorted(wheres, key=lambda where: (list(MODELS).index(where["model"]), where["data"]))
    }
    columns = {written(e): {"eps": e} for e in strengths(c)}
    return Grid(places, columns, {"kind": "stop", "method": "diffcap", "seed": c.seeds[0]})


@figure(_stops, lambda c: Grid({"": {"method": "diffpure"}}, {"": {"eps": 0.0}}, on(c, "stop")))
def fig_stop_times(grid: Filled, fixed: Filled) -> Figure:
    """Stop times t* of DiffCAP by set and strength: medians, quartiles and ranges; the line is DiffPure's fixed
    time."""
    fig, ax = style.figure(style.PAGE, 2.8)
    colours = {level: style.COLOURS[k % len(style.COLOURS)] for k, level in enumerate(grid.columns)}
    for place, name in enumerate(grid.rows):
        for k, level in enumerate(grid.columns):
            for m in grid.measurements(name, level):
                at = place + 0.25 * (k - (len(grid.columns) - 1) / 2)
                look = {"widths": 0.2, "patch_artist": True, "flierprops": {"markersize": 1.5}, "manage_ticks": False}
                box = ax.boxplot(m.values, positions=[at], **look)
                box["boxes"][0].set(facecolor=colours[level], alpha=0.6, linewidth=0.6)
                box["medians"][0].set(color="black")
    for level, colour in colours.items():
        ax.plot([], [], color=colour, linewidth=5, alpha=0.6, label=level)
    if time := fixed["", ""]:
        ax.axhline(time.value, color="#333333", linestyle="--", linewidth=0.8, label="DiffPure")
    ax.set_xticks(range(len(grid.rows)), grid.rows, rotation=35, ha="right", rotation_mode="anchor")
    ax.set(ylabel="t* (steps)")
    figures.legend(fig, ax, 4)
    return fig


def _fixed(c) -> Grid:
    columns = {str(t): {"t": t} for t in c.sweeps.fixed}
    return Grid({written(e): {"eps": e} for e in strengths(c)}, columns, on(c, "fixed", method="diffpure"))


def _own(c) -> Grid:
    lines = {written(e): {"eps": e} for e in strengths(c)}
    return Grid(lines, {"score": {"kind": "score"}, "stop": {"kind": "stop"}}, on(c, "", method="diffcap"))


@figure(_fixed, _own)
def fig_fixed(fixed: Filled, own: Filled) -> Figure:
    """Purification at a fixed time t* against DiffCAP, which is drawn at its mean stop time. Top-1, one seed."""
    fig, ax = style.figure(style.COLUMN)
    look = style.looks(fixed.rows)
    times = [int(t) for t in fixed.columns]
    figures.lines(ax, times, fixed.series(), xlabel="diffusion time t* (steps)", ylabel="top-1 (%)", look=look)
    for level in own.rows:
        score, stop = own.row(level)
        if score and stop:
            spread = [[100 * (score.value - score.low)], [100 * (score.high - score.value)]]
            marker = {
                "fmt": "*",
                "markersize": 8,
                "markeredgecolor": "black",
                "markeredgewidth": 0.4,
                "elinewidth": 0.7,
            }
            ax.errorbar(stop.value, 100 * score.value, yerr=spread, color=look[level].colour, **marker)
    ax.plot([], [], "*", color="#888888", markersize=8, label="DiffCAP")
    figures.legend(fig, ax, 4)
    return fig


# ---- τ and Δt ----------------------------------------------------------------------------------------------------------


@figure(lambda c: ablation.grids(c)[0])
def fig_ablation(grid: Filled) -> Figure:
    """Top-1 with τ moved (left) and with another Δt (right), clean and under the strongest attack. Whiskers: 95 %
    intervals."""
    fig, axes = style.figure(style.PAGE, 2.4, columns=2)
    sweeps = grid.config.sweeps
    panels = ((sweeps.taus, "τ {:+g}", "τ − chosen τ"), (sweeps.factors, "Δt × {:g}", "Δt over the chosen"))
    for ax, (values, row, label) in zip(axes, panels, strict=True):
        series = {column: [grid[row.format(v), column] for v in values] for column in grid.columns}
        figures.lines(ax, list(values), _measured(series), xlabel=label, ylabel="top-1 (%)")
    figures.legend(fig, axes, 2)
    return fig


def subset_sizes(c) -> list[int]:
    """Sizes of the calibration sets whose spread is shown."""
    n = c.method.calibration_n
    return sorted({min(n, max(2, n // share)) for share in (10, 4, 2, 1)})


def _subsets(c) -> Grid:
    columns = {str(n): {"pairs": n} for n in subset_sizes(c)}
    return Grid({"": {"method": "diffcap"}}, columns, on(c, "calibration", "phi", eps=c.method.calibration_eps))


@figure(_subsets)
def fig_calibration(grid: Filled) -> Figure:
    """τ from random subsets of the calibration pairs: median, quartiles and range over 200 draws, by the number of
    pairs per set."""
    found = {pairs: grid.measurements("", pairs) for pairs in grid.columns}
    found = {pairs: several[0].values for pairs, several in found.items() if several}
    fig, ax = style.figure(style.COLUMN, 2.0)
    ax.boxplot(list(found.values()), widths=0.5, flierprops={"markersize": 1.5})
    ax.set_xticks(range(1, len(found) + 1), list(found))
    ax.set(xlabel="pairs per set", ylabel="τ")
    return fig


# ---- what the noise does -----------------------------------------------------------------------------------------------


def _consecutive(c) -> Grid:
    """φ's similarity of consecutive states at some twenty times of the loop."""
    dt, t_max, _ = c.choosing.diffcap[0]
    columns = {str(t): {"t": t} for t in range(dt, t_max + 1, max(1, t_max // 20 // dt) * dt)}
    lines = {f"{who} pictures": {"method": who} for who in ("clean", "adversarial", "noise")}
    return Grid(lines, columns, on(c, "similarity", eps=c.attack.eps[-1]))


@figure(fading, _consecutive, lambda c: Grid({"": similarity_of_pairs(c, sets(c))}, {"τ": {}}))
def fig_fading(distances: Filled, consecutive: Filled, tau: Filled) -> Figure:
    """Left: distance of the victim's embeddings of clean and adversarial pictures under the same noise, against t.
    Right: φ's similarity of consecutive states, which the stop test reads, for clean, adversarial and pure-noise
    pictures."""
    fig, axes = style.figure(style.PAGE, 2.4, columns=2)
    label = "clean against adversarial"
    looks = style.looks([label, *consecutive.rows])
    times = [int(t) for t in distances.columns]
    figures.lines(
        axes[0], times, {label: distances.row("")}, xlabel="t (steps)", ylabel="1 − cos of the embeddings", factor=1
    )
    series = consecutive.series()
    if series:
        later = [int(t) for t in consecutive.columns]
        ylabel = "cos(φ(x$_{t−Δt}$), φ(x$_t$))"
        figures.lines(axes[1], later, series, xlabel="t (steps)", ylabel=ylabel, factor=1, look=looks)
        if tau["", "τ"]:
            axes[1].axhline(tau["", "τ"].value, color="#333333", linestyle="--", linewidth=0.8, label="τ")
    figures.legend(fig, axes, 5)
    return fig


@figure(lambda c: recovery.grids(c)[0])
def fig_recovery(grid: Filled) -> Figure:
    """Share of pictures whose answer is, from time t on, the answer to the clean picture: after the noise alone, and
    after denoising from t. The dots are the share for which theory promises it (ours: twice the total variation
    distance below the lead of the clean answer)."""
    times = np.array(grid.config.sweeps.times)
    fig, ax = style.figure(style.COLUMN)

    def share(found: np.ndarray) -> list[float]:
        return [100 * ((found >= 0) & (found <= t)).mean() for t in times]

    lines = {(row, level): grid.measurements(row, level) for row in grid.rows for level in grid.columns}
    for k, ((row, level), several) in enumerate((key, found) for key, found in lines.items() if found):
        look = {"color": style.COLOURS[k]}
        name = {"noised": "noise only"}.get(row, "denoised")
        found = np.concatenate([m.extra["time"] for m in several])
        ax.plot(times, share(found), marker=style.MARKERS[k], label=f"{name}, {level}", **look)
        if row == "noised":
            ax.plot(times, share(several[0].extra["bound"]), linestyle=":", label=f"bound, {level}", **look)
    ax.set(xlabel="t (steps)", ylabel="recovered (%)", ylim=(-3, 103))
    figures.legend(fig, ax, 2)
    return fig


# ---- attackers who know the defence, pictures --------------------------------------------------------------------------


def _known(c) -> Grid:
    """Every attacker of either purifier, mean and worst."""
    lines = {
        f"{label}, {how}": {"method": m, "judged": how}
        for m, label in named(c, PURIFIERS).items()
        for how in ("mean", "worst")
    }

    def joined(row: dict, column: dict) -> dict | None:
        return None if row["method"] != "diffcap" and column["against"] in ONLY_DIFFCAP else {**row, **column}

    columns = {label: {"against": a} for a, label in AGAINST.items()}
    return Grid(lines, columns, on(c, "adaptive", eps=c.adaptive.eps), joined=joined)


@figure(_known)
def fig_adaptive(grid: Filled) -> Figure:
    """Top-1 under attackers who know the defence: the mean over repeated purifications and the worst of them. Whiskers:
    95 % intervals."""
    fig, ax = style.figure(style.PAGE, 2.6)
    figures.bars(ax, grid.columns, {name: grid.row(name) for name in grid.rows}, ylabel="top-1 (%)")
    figures.legend(fig, ax, 4)
    return fig


def _strip(c) -> Grid:
    """With the answers of LLaVA, where there is one."""
    lines = {"": {"method": "diffcap"}} if c.data.captions else {}
    return Grid(lines, {"strip": {}}, on(c, "strip", "llava", eps=c.attack.eps[-1]))


@figure(_strip)
def fig_strip(grid: Filled) -> Figure:
    """From left to right: clean, adversarial, their difference × 10, diffused to the stop time, purified; with the
    answers of LLaVA."""
    extra = grid.measurements("", "strip")[0].extra
    columns = ("clean", "adversarial", "difference", "diffused", "purified")
    n = len(extra["clean"])
    fig, axes = style.figure(style.PAGE, 1.75 * n, rows=n, columns=len(columns), squeeze=False)
    for i in range(n):
        for ax, name in zip(axes[i], columns, strict=True):
            picture = (
                np.clip(0.5 + 10 * extra["difference"][i] / 2, 0, 1) if name == "difference" else extra[name][i] / 255
            )
            ax.imshow(np.moveaxis(picture, 0, -1), interpolation="nearest")
            ax.set_axis_off()
            title = {"difference": "difference × 10", "diffused": f"diffused, t* = {extra['t'][i]}"}.get(name, name)
            ax.set_title(title, fontsize=6.5)
            if f"{name} answers" in extra:
                said = "\n".join(textwrap.wrap(str(extra[f"{name} answers"][i]), 26)[:3])
                ax.text(0.5, -0.04, said, transform=ax.transAxes, ha="center", va="top", fontsize=5.5)
    return fig
