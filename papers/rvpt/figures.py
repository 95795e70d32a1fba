"""What each figure of RVPT shows, by the tags of its numbers. No model is loaded here."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from papers.rvpt.tables import (
    AGAINST,
    ATTACKS,
    DEFENCES,
    HERE,
    MAIN,
    SIX,
    THREE,
    attacks,
    known,
    named,
    rows,
    spread,
)
from shared.experiment.paper import Grid
from shared.metrics import intervals
from shared.report import figures, style
from shared.report.shown import Filled, figure, yours

PANELS = {"none": "backdoored CLIP", "vpt": "with VPT", "rvpt": "with RVPT", "supervised": "supervised ViT"}
CHANGES = {"noise": "noise", "blur": "blur", "colour": "colour", "flip": "flip", "trigger": "trigger"}
SWEEPS = {
    "shots": "shots per class",
    "alpha": "weight of the repulsion α",
    "length": "prompts per layer b",
    "depth_output": "prompted layers, from the output",
    "depth_input": "prompted layers, from the input",
    "margin": "margin m",
}
PIXELS = 70_000  # of all pictures of a figure together, so that its PDF stays small


def panel_names(c: Any) -> dict[str, str]:
    """method -> title of its panel, with the user's own."""
    return PANELS | yours(c)


# ---- figures 1, 7, 8 -------------------------------------------------------------------------------------------------


def resistivities(attack: str) -> Callable[[object], Grid]:
    """Every encoder under every perturbation."""

    def grid(c) -> Grid:
        encoders = {m: {"method": m} for m in panel_names(c) if m != "supervised" or c.models.supervised != "none"}
        common = {**HERE, "kind": "resistivity", "attack": attack, "measure": "pr"}
        return Grid(encoders, {name: {"perturbation": name} for name in CHANGES}, common, c.seeds[:1])

    return grid


def panels(grid: Filled) -> Figure:
    """PR of every encoder over its blocks."""
    measured = {
        m: {name: found[0] for name in grid.columns if (found := grid.measurements(m, name))} for m in grid.rows
    }
    measured = {m: found for m, found in measured.items() if found}
    fig, axes = style.figure(style.PAGE, 2.3, columns=len(measured), sharey=True, squeeze=False)
    look = style.looks(list(CHANGES.values()))
    for ax, letter, (method, found) in zip(axes[0], "abcde", measured.items(), strict=False):
        series = {
            CHANGES[name]: [intervals.mean({"all": v}) for v in (*m.extra["layers"].astype(np.float64).T, m.values)]
            for name, m in found.items()
        }
        at = [str(d) for d in range(1, max(map(len, series.values())))] + ["out"]
        figures.lines(
            ax,
            at,
            series,
            xlabel="block",
            ylabel="PR (cosine)" if ax is axes[0][0] else "",
            factor=1,
            categorical=True,
            look={k: look[k] for k in series},
        )
        if len(at) > 8:  # every second label, and the last
            ax.set_xticklabels([t if k % 2 == 0 or t == "out" else "" for k, t in enumerate(at[:-2])] + ["", "out"])
        ax.set_title(f"({letter}) {panel_names(grid.config)[method]}")
    low = min(line.get_ydata().min() for ax in axes[0] for line in ax.get_lines())
    axes[0][0].set_ylim(low - 0.06 * (1 - low), 1 + 0.04 * (1 - low))
    figures.legend(fig, axes, 5)
    return fig


@figure(resistivities("badclip"))
def fig_resistivity(grid):
    """Perturbation resistivity PR, block by block and at the output, of encoders that BadCLIP backdoored: how little
    features move under a perturbation. Mean over test pictures with 95 % bands, one seed."""
    return panels(grid)


@figure(resistivities("badnet"))
def fig_resistivity_badnet(grid):
    """Perturbation resistivity PR as in the figure of BadCLIP, for BadNet. Mean over test pictures with 95 % bands,
    one seed.
    """
    return panels(grid)


@figure(resistivities("blended"))
def fig_resistivity_blended(grid):
    """Perturbation resistivity PR as in the figure of BadCLIP, for Blended. Mean over test pictures with 95 % bands,
    one seed.
    """
    return panels(grid)


# ---- figure 3 --------------------------------------------------------------------------------------------------------


def defaults(c) -> dict[str, float]:
    """The default of each sweep that one setting has."""
    m = c.method
    return {
        "shots": m.shots,
        "alpha": m.alpha,
        "length": m.length,
        "margin": -1.0,
        "depth_output": c.sweeps.blocks - m.first,
    }


def changes_of(c, sweep: str, value: float) -> dict[str, float]:
    """What one point of a sweep changes of the defence: nothing where it is the default."""
    if sweep == "depth_input" and value == c.sweeps.blocks:  # all layers, counted from either end
        return {"depth_output": value}
    fixed = sweep == "length" and c.tried.lengths  # the default is then chosen, so that nobody knows it here
    return {} if value == defaults(c).get(sweep) and not fixed else {sweep: value}


def points(c) -> dict[str, dict]:
    """Label -> tags of every point of every sweep."""
    return {
        f"{s} {v:g}": {"sweep": s, "value": float(v), **changes_of(c, s, v)}
        for s in SWEEPS
        for v in getattr(c.sweeps, s)
    }


def scores(method: str = "rvpt") -> dict[str, dict]:
    """ASR and clean accuracy of a method under three attacks."""
    return {f"{ATTACKS[a]}, {q}": {"method": method, "attack": a, "measure": q} for a in THREE for q in ("asr", "ca")}


@figure(
    lambda c: Grid(scores(), points(c), {**HERE, "kind": "sweep"}, c.seeds[:1]),
    lambda c: Grid(scores("vpt"), {"": {}}, MAIN, c.seeds[:1]),
)
def fig_ablations(swept, without):
    """Attack success rate (filled markers, lower is better) and clean accuracy (open markers, dashed) over six
    settings, with 95 % bands. Grey line: the default. In the panel of the margin the dotted lines are without
    repulsion (VPT). One seed."""
    if not any(swept):
        return None
    c = swept.config
    fig, axes = style.figure(style.PAGE, 4.3, rows=2, columns=3, sharey=True)
    own = style.looks([ATTACKS[a] for a in THREE])
    for ax, letter, (sweep, label) in zip(axes.ravel(), "abcdef", SWEEPS.items(), strict=True):
        at = sorted(v for v in getattr(c.sweeps, sweep) if any(swept[row, f"{sweep} {v:g}"] for row in swept.rows))
        for measure in ("asr", "ca"):
            series = {name: [swept[f"{name}, {measure}", f"{sweep} {v:g}"] for v in at] for name in own}
            series = {k: v for k, v in series.items() if any(v)}
            look = {k: replace(own[k], line="-" if measure == "asr" else "--") for k in series}
            before = len(ax.get_lines())
            figures.lines(ax, at, series, look=look, categorical=True)
            for line in ax.get_lines()[before:] if measure == "ca" else ():
                line.set(markerfacecolor="white", label="_")
        if defaults(c).get(sweep) in at and not (sweep == "length" and c.tried.lengths):
            ax.axvline(at.index(defaults(c)[sweep]), color="#999999", linewidth=0.8, zorder=0)
        for row, (e,) in without.series().items() if sweep == "margin" else ():
            ax.axhline(100 * e.value, color=own[row.rpartition(", ")[0]].colour, linestyle=":", linewidth=0.9)
        ax.set(xlabel=f"({letter}) {label}", ylabel="rate (%)" if ax in axes[:, 0] else "", ylim=(-4, 104))
    for label, line, fill in (("ASR", "-", "#333333"), ("CA", "--", "white")):
        axes[0, 0].plot([], [], color="#333333", linestyle=line, marker="o", markerfacecolor=fill, label=label)
    figures.legend(fig, axes, 6)
    return fig


# ---- pictures: figures 4, 6, 9 ---------------------------------------------------------------------------------------


def shown(kind: str, measure: str, methods: tuple[str, ...], attack: str) -> Callable[[object], Grid]:
    """One number, with pictures, of each of some methods, and of the user's own beside them."""

    def grid(c) -> Grid:
        seed = {"seed": 0} if attack == "clean" else {}
        common = {**HERE, "kind": kind, "attack": attack, "measure": measure, **seed}
        mine = yours(c) if "rvpt" in methods else {}
        return Grid({m: {"method": m} for m in (*methods, *mine)}, {"": {}}, common, c.seeds[:1])

    return grid


def measured(grid: Filled) -> dict:
    """Row -> its measurement, of those that are there."""
    return {row: found[0] for row in grid.rows if (found := grid.measurements(row, ""))}


def _shrunk(pictures: np.ndarray, cells: int) -> np.ndarray:
    """Pictures (…, H, W, 3) made smaller by whole factors, so that `cells` of them have at most PIXELS pixels
    together.
    """
    factor = 1
    while cells * (pictures.shape[-3] // factor) * (pictures.shape[-2] // factor) > PIXELS:
        factor += 1
    h, w = (n // factor * factor for n in pictures.shape[-3:-1])
    cut = pictures[..., :h, :w, :].astype(np.float64)
    return (
        cut.reshape(*cut.shape[:-3], h // factor, factor, w // factor, factor, 3)
        .mean((-4, -2))
        .round()
        .astype(np.uint8)
    )


def _picture(ax: Axes, picture: np.ndarray) -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_axis_off()


@figure(shown("attention", "map", ("none", "vpt", "rvpt"), "badclip"))
def fig_attention(grid):
    """Attention of the last block's class token on the picture's tokens, clean and with BadCLIP's patch, mean over
    heads; dark: little, yellow: much (each map from 0 to its maximum). Below the pictures what the model says, green
    where it is right; below the maps the share of the attention that lies under the patch."""
    found = measured(grid)
    methods = list(found)
    extra, names, titles = {m: found[m].extra for m in methods}, named(grid.config), panel_names(grid.config)
    n, first = len(extra[methods[0]]["truth"]), extra[methods[0]]
    columns = [(state, who) for state in ("clean", "triggered") for who in (None, *methods)]
    fig, axes = style.figure(style.PAGE, 1.42 * n + 0.3, rows=n, columns=len(columns), squeeze=False)
    fig.get_layout_engine().set(h_pad=0.08)
    shown = {s: _shrunk(np.moveaxis(first[f"{s}_pictures"], 1, -1), n * len(columns)) for s in ("clean", "triggered")}
    for i in range(n):
        for ax, (state, who) in zip(axes[i], columns, strict=True):
            h, w = shown[state].shape[1:3]
            if who is None:
                _picture(ax, shown[state][i])
                ax.set_title("" if i else f"{state}\npicture", fontsize=6.5)
                _answers(ax, [(names[m], str(extra[m][f"{state}_said"][i])) for m in methods], str(first["truth"][i]))
                continue
            grey = shown[state][i].mean(-1)
            ax.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            maps = extra[who][f"{state}_maps"][i]
            ax.imshow(
                maps,
                vmin=0,
                vmax=max(maps.max(), 1e-9),
                alpha=0.65,
                extent=(-0.5, w - 0.5, h - 0.5, -0.5),
                interpolation="nearest",
            )
            ax.set_axis_off()
            ax.set_title("" if i else f"{state}\n{titles[who]}", fontsize=6.5)
            share = found[who].values[i] if state == "triggered" else extra[who]["clean"][i]
            ax.text(0.5, -0.04, f"{100 * share:.0f} %", transform=ax.transAxes, ha="center", va="top", fontsize=5.5)
    mean = {m: (grid[m, ""], extra[m]["clean"].mean(), extra[m]["area"].mean()) for m in methods}
    words = [f"{titles[m]}: {100 * e.value:.0f} % (clean {100 * clean:.0f} %)" for m, (e, clean, _) in mean.items()]
    where = (
        f"attention under the patch (its tokens are {100 * mean[methods[0]][2]:.0f} % of the picture), mean over "
        f"{mean[methods[0]][0].n} triggered pictures:"
    )
    fig.supxlabel(f"{where}\n{'; '.join(words)}", fontsize=6.5)
    return fig


def _answers(ax: Axes, said: list[tuple[str, str]], truth: str) -> None:
    for k, (who, answer) in enumerate(said):
        ax.text(
            0.5,
            -0.04 - 0.12 * k,
            f"{who}: {answer}",
            transform=ax.transAxes,
            ha="center",
            va="top",
            fontsize=5,
            color="#009E73" if answer == truth else "#D55E00",
        )


@figure(shown("perturbed", "pictures", ("clean",), "clean"))
def fig_perturbations(grid):
    """The perturbations behind PR, each at the value of the paper's appendix. Below: PSNR against the original, mean
    over test pictures.
    """
    found = measured(grid)["clean"]
    extra = found.extra
    pictures = np.moveaxis(extra["pictures"], 2, -1)
    n, columns = pictures.shape[:2]
    titles = ["original", *(CHANGES.get(str(name), str(name)) for name in extra["names"])]
    fig, axes = style.figure(style.PAGE, 1.38 * n + 0.3, rows=n, columns=columns, squeeze=False)
    pictures = _shrunk(pictures, n * columns)
    for i in range(n):
        for k, ax in enumerate(axes[i]):
            _picture(ax, pictures[i, k])
            ax.set_title("" if i else titles[k], fontsize=6.5)
            if i == n - 1 and k:
                ax.text(
                    0.5,
                    -0.04,
                    f"{found.values[k - 1]:.1f} dB",
                    transform=ax.transAxes,
                    ha="center",
                    va="top",
                    fontsize=6,
                )
    return fig


@figure(shown("triggers", "pictures", ("clean",), "clean"))
def fig_triggers(grid):
    """The triggers: triggered pictures, and below each what the trigger changed, four times as large, on grey. Under
    the names: PSNR against the original in dB, mean over test pictures."""
    found = measured(grid)["clean"]
    extra, names = found.extra, [str(name) for name in found.extra["names"]]
    (h, w), gap, sheet = extra["side"].tolist(), int(extra["gap"]), extra["sheet"]
    rows, columns = (sheet.shape[0] + gap) // (h + gap), 1 + len(names)
    cells = np.stack(
        [np.stack([sheet[i * (h + gap) :, k * (w + gap) :][:h, :w] for k in range(columns)]) for i in range(rows)]
    )
    cells = _shrunk(cells, rows * columns)
    fig, axes = style.figure(style.PAGE, 0.66 * rows + 0.5, rows=rows, columns=columns, squeeze=False)
    titles = [
        "original",
        *(f"{ATTACKS.get(a, a).replace(', ', chr(10))}\n{v:.1f}" for a, v in zip(names, found.values, strict=True)),
    ]
    for i in range(rows):
        for k, ax in enumerate(axes[i]):
            if i % 2 == 0 or k:  # nothing was changed in the original
                _picture(ax, cells[i, k])
            ax.set_axis_off()
            ax.set_title("" if i else titles[k], fontsize=6)
    return fig


# ---- figure 5 --------------------------------------------------------------------------------------------------------


@figure(shown("embedding", "points", ("none", "vpt", "rvpt"), "badclip"))
def fig_embedding(grid):
    """Features of clean (dots) and BadCLIP-triggered pictures (stars) of eight classes, one colour each, by t-SNE; the
    target's class is black, unless it names another colour. Below: triggered pictures whose nearest clean neighbour is
    of their own class, and of the target's."""
    found = measured(grid)
    fig, axes = style.figure(style.PAGE, 2.9, columns=len(found), squeeze=False)
    for ax, (method, m) in zip(axes[0], found.items(), strict=True):
        extra = m.extra
        names = [str(name) for name in extra["names"]]
        colours = style.colours(names, last="#000000")
        for k, name in enumerate(names):
            label = f"{name} (target)" if k == len(names) - 1 else name
            dots, stars = extra["xy"][extra["labels"] == k], extra["xy_triggered"][extra["triggered_labels"] == k]
            ax.plot(
                *dots.T, linestyle="none", marker="o", markersize=2.6, markeredgewidth=0, color=colours[k], label=label
            )
            ax.plot(
                *stars.T,
                linestyle="none",
                marker="*",
                markersize=5,
                markeredgewidth=0.3,
                markeredgecolor="white",
                color=colours[k],
                label="_",
            )
        ax.grid(False)
        ax.set_xticks([])
        ax.set_yticks([])
        target = extra["to_target"].mean()
        ax.set_title(panel_names(grid.config)[method])
        ax.set_xlabel(f"own class {100 * grid[method, ''].value:.0f} %, target {100 * target:.0f} %")
    for marker, size, label in (("o", 2.6, "clean"), ("*", 5, "triggered")):
        axes[0][0].plot([], [], linestyle="none", marker=marker, markersize=size, color="#333333", label=label)
    figures.legend(fig, axes, 5)
    return fig


# ---- ours ------------------------------------------------------------------------------------------------------------


@figure(
    lambda c: Grid(
        rows(c), {f"{a} {q}": {"attack": a, "measure": q} for a in SIX for q in ("ca", "asr")}, MAIN, c.seeds
    )
)
def fig_tradeoff(grid):
    """Clean accuracy against attack success rate of every defence, one panel per attack: right and down is better.
    Whiskers: 95 % intervals.
    """
    names = named(grid.config).values()
    points = {a: {name: (grid[name, f"{a} ca"], grid[name, f"{a} asr"]) for name in names} for a in SIX}
    points = {a: {k: v for k, v in found.items() if all(v)} for a, found in points.items()}
    points = {a: found for a, found in points.items() if found}
    high = -(-len(points) // 3)
    fig, axes = style.figure(
        style.PAGE, 2.15 * high + 0.2, rows=high, columns=min(3, len(points)), sharex=True, sharey=True, squeeze=False
    )
    look, left = style.looks(list(names)), 100.0
    for ax, (attack, found) in zip(axes.ravel(), points.items(), strict=False):
        last, edge = ax.get_subplotspec().is_last_row(), ax.get_subplotspec().is_first_col()
        figures.tradeoff(
            ax,
            found,
            xlabel="clean accuracy (%)" if last else "",
            ylabel="ASR (%)" if edge else "",
            look={k: look[k] for k in found},
        )
        left = min([left, *(100 * ca.low for ca, _ in found.values())])
        ax.set_title(ATTACKS[attack])
    axes.ravel()[0].set(xlim=(max(-2.0, left - 3), 100.5), ylim=(-4, 104))
    for ax in axes.ravel()[len(points) :]:
        ax.set_axis_off()
    figures.legend(fig, axes, 6)
    return fig


def dots(c: Any) -> Grid:
    """ASR of every seed at every setting, nothing else of that table."""
    whole = spread(c)
    return replace(whole, columns={name: tags for name, tags in whole.columns.items() if ", seed" in name})


@figure(dots, lambda c: Grid(rows(c, DEFENCES), attacks(THREE), {**MAIN, "measure": "asr"}, c.seeds))
def fig_seeds(settings: Filled, attacked: Filled) -> Figure:
    """Attack success rate of every seed, one dot each, since outcomes may fall apart: prompts at every setting of the
    grid, which nobody looked at when settings were chosen, and all defences as they were chosen.
    """
    panels = [("settings", dict.fromkeys(settings.rows, settings), settings.columns)]
    panels += [(attack, dict.fromkeys(attacked.rows, attacked), [attack]) for attack in attacked.columns]
    panels = [(name, rows, columns) for name, rows, columns in panels if _dots(rows, columns)]
    widths = [2] + [1] * (len(panels) - 1)
    fig, axes = style.figure(style.PAGE, 2.6, columns=len(panels), squeeze=False, width_ratios=widths)
    for ax, (name, filled, columns) in zip(axes[0], panels, strict=True):
        dots = _dots(filled, columns)
        for k, values in enumerate(dots.values()):
            ax.plot([k] * len(values), values, linestyle="none", marker="o", markersize=3.5, alpha=0.7, color="#0072B2")
        ax.set_xticks(range(len(dots)), [row.replace("learning rate", "lr") for row in dots], rotation=90, fontsize=5.5)
        ax.set(ylim=(-4, 104), title=name if name != "settings" else "prompts, all settings")
    axes[0][0].set_ylabel("ASR (%)")
    return fig


def _dots(filled: dict, columns: list[str]) -> dict[str, list[float]]:
    """Row -> percentages, one of each measurement behind some columns."""
    found = {
        row: [100 * m.values.mean() for column in columns for m in grid.measurements(row, column)]
        for row, grid in filled.items()
    }
    return {row: values for row, values in found.items() if values}


@figure(known)
def fig_adaptive(grid):
    """BadCLIP's patch as it was planted, and patches optimised against the very model that the user has; on the clean
    CLIP a patch is an adversarial example, which is the control. Whiskers: 95 % intervals."""
    methods = list(named(grid.config, ("clean", "none", "vpt", "rvpt")).values())
    fig, axes = style.figure(style.PAGE, 2.3, columns=2, sharey=True)
    for ax, column, label in zip(
        axes, grid.columns, ("attack success rate (%)", "triggered accuracy (%)"), strict=True
    ):
        series = {who: [grid[f"{m}, {who}", column] for m in methods] for who in AGAINST.values()}
        figures.bars(ax, methods, {k: v for k, v in series.items() if any(v)}, ylabel=label)
        ax.set(ylim=(0, 104))
    figures.legend(fig, axes, 2)
    return fig
