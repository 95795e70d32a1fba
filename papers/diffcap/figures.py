"""What each figure of DiffCAP shows, as functions of the measurements. No model is loaded here."""

import numpy as np

from papers.diffcap.tables import METHODS, MODELS, eps, short, strengths
from shared.report import figures, style

SHOWN = ("none", "tecoa", "fare", "jpeg", "diffpure", "diffcap")


def fig_tradeoff(results):
    """Clean score against the score under the strongest attack, mean over models and sets of a task. Whiskers: 95 % intervals."""
    worst = strengths(results)[-1]
    tasks = {"captions": ("CIDEr", 1), "questions": ("VQA accuracy (%)", 100), "classes": ("top-1 (%)", 100)}
    fig, axes = style.figure(style.PAGE, 2.5, columns=3)
    look, found = style.looks(list(METHODS.values())), False
    for ax, (task, (unit, factor)) in zip(axes, tasks.items(), strict=True):
        points = {METHODS[m]: tuple(results.estimate(kind="score", task=task, method=m, eps=e) for e in (0.0, worst)) for m in METHODS}
        points = {k: v for k, v in points.items() if all(v)}
        found = found or bool(points)
        figures.tradeoff(ax, points, xlabel=f"clean {unit}", ylabel=f"{unit} at {eps(worst)}", factor=factor, look={k: look[k] for k in points})
        ax.set_title(task)
    if not found:
        return None
    figures.legend(fig, axes, 6)
    return fig


def fig_strengths(results):
    """Score against the strength of the attack, for each model and its first set of each task."""
    data, panels = results.config["data"], []
    panels += [(m, s, "CIDEr", 1) for m in ("llava", "flamingo") for s in data["captions"][:1]]
    panels += [(m, s, "VQA accuracy (%)", 100) for m in ("llava", "flamingo") for s in data["questions"][:1]]
    panels += [("clip", s, "top-1 (%)", 100) for s in data["classes"][:2]]
    if not results.select(kind="score"):
        return None
    fig, axes = style.figure(style.PAGE, 4.2, rows=2, columns=3)
    for ax, (model, spec, unit, factor) in zip(axes.T.ravel(), panels, strict=False):
        series = {METHODS[m]: [results.estimate(kind="score", model=model, data=spec, method=m, eps=e) for e in strengths(results)] for m in SHOWN}
        series = {k: v for k, v in series.items() if any(v)}
        figures.lines(ax, [eps(e) for e in strengths(results)], series, ylabel=unit, factor=factor, categorical=True)
        ax.set_title(f"{MODELS[model]}, {short(spec)}")
    for ax in axes.T.ravel()[len(panels):]:
        ax.set_axis_off()
    figures.legend(fig, axes, 6)
    return fig


def fig_stop_times(results):
    """Stop times t* of DiffCAP by set and strength: medians, quartiles and ranges; the line is DiffPure's fixed time."""
    found = results.select(kind="stop", method="diffcap")
    if not found:
        return None
    order = sorted(found, key=lambda m: (list(MODELS).index(m.tags["model"]), m.tags["data"], m.tags["eps"]))
    fig, ax = style.figure(style.PAGE, 2.8)
    levels = strengths(results)
    colours = {e: style.COLOURS[k % len(style.COLOURS)] for k, e in enumerate(levels)}
    places = {name: k for k, name in enumerate(dict.fromkeys((m.tags["model"], m.tags["data"]) for m in order))}
    for m in order:
        at = places[m.tags["model"], m.tags["data"]] + 0.25 * (levels.index(m.tags["eps"]) - (len(levels) - 1) / 2)
        box = ax.boxplot(m.values, positions=[at], widths=0.2, patch_artist=True, flierprops={"markersize": 1.5}, manage_ticks=False)
        box["boxes"][0].set(facecolor=colours[m.tags["eps"]], alpha=0.6, linewidth=0.6)
        box["medians"][0].set(color="black")
    for e in levels:
        ax.plot([], [], color=colours[e], linewidth=5, alpha=0.6, label=eps(e))
    ax.axhline(results.config["method"]["diffpure"], color="#333333", linestyle="--", linewidth=0.8, label="DiffPure")
    words = {"captions": "captions", "questions": "questions"}
    labels = [f"{MODELS[model]}\n{next((w for w in words if w in spec), '')} {short(spec)}" for model, spec in places]
    ax.set_xticks(list(places.values()), labels, rotation=35, ha="right", rotation_mode="anchor")
    ax.set(ylabel="t* (steps)")
    figures.legend(fig, ax, 4)
    return fig


def fig_ablation(results):
    """Top-1 over τ and Δt: clean pictures on the left, the strongest attack on the right. One seed."""
    s, first = results.config["sweeps"], results.config["seeds"][0]
    panels = {e: [[results.estimate(kind="ablation", offset=o, dt=dt, eps=e, seed=first) for dt in s["dts"]] for o in s["taus"]]
              for e in (0.0, strengths(results)[-1])}
    if sum(cell is not None for grid in panels.values() for line in grid for cell in line) < 4:
        return None
    fig, axes = style.figure(style.PAGE, 2.6, columns=2)
    for ax, (e, grid) in zip(axes, panels.items(), strict=True):
        if any(cell is not None for line in grid for cell in line):
            figures.heatmap(ax, [f"{o:+g}" for o in s["taus"]], [str(dt) for dt in s["dts"]], grid, xlabel="Δt (steps)", ylabel="τ − calibrated τ",
                            label=f"top-1 (%), {eps(e)}")
        else:
            ax.set_axis_off()
    return fig


def fig_fixed(results):
    """Purification at a fixed time t* against DiffCAP, which is drawn at its mean stop time. Top-1, one seed."""
    times, first = results.config["sweeps"]["fixed"], results.config["seeds"][0]
    if not results.select(kind="fixed"):
        return None
    fig, ax = style.figure(style.COLUMN)
    look = style.looks([eps(e) for e in strengths(results)])
    spec = results.config["data"]["classes"][0]
    series = {eps(e): [results.estimate(kind="fixed", t=t, eps=e) for t in times] for e in strengths(results)}
    figures.lines(ax, times, series, xlabel="diffusion time t* (steps)", ylabel="top-1 (%)", look=look)
    for e in strengths(results):
        own, stop = (results.estimate(kind=k, method="diffcap", model="clip", data=spec, eps=e, seed=first) for k in ("score", "stop"))
        if own and stop:
            ax.errorbar(stop.value, 100 * own.value, yerr=[[100 * (own.value - own.low)], [100 * (own.high - own.value)]], fmt="*", markersize=8,
                        color=look[eps(e)].colour, markeredgecolor="black", markeredgewidth=0.4, elinewidth=0.7)
    ax.plot([], [], "*", color="#888888", markersize=8, label="DiffCAP")
    figures.legend(fig, ax, 4)
    return fig


def fig_fading(results):
    """Left: distance of the victim's embeddings of clean and adversarial pictures under the same noise, against t. Right: φ's similarity of
    consecutive states, which the stop test reads, for clean, adversarial and pure-noise pictures."""
    times = sorted({m.tags["t"] for m in results.select(kind="fading")})
    if not times:
        return None
    fig, axes = style.figure(style.PAGE, 2.4, columns=2)
    figures.lines(axes[0], times, {"clean against adversarial": [results.estimate(kind="fading", t=t) for t in times]}, xlabel="t (steps)",
                  ylabel="1 − cos of the embeddings", factor=1)
    later = sorted({m.tags["t"] for m in results.select(kind="similarity")})
    series = {f"{who} pictures": [results.estimate(kind="similarity", method=who, t=t) for t in later] for who in ("clean", "adversarial", "noise")}
    series = {k: v for k, v in series.items() if any(v)}
    if series:
        look = style.looks(["clean against adversarial", *series])
        figures.lines(axes[1], later, series, xlabel="t (steps)", ylabel="cos(φ(x$_{t−Δt}$), φ(x$_t$))", factor=1, look=look)
        tau = results.estimate(kind="tau", model="phi", data={"not": "digits:all"})
        if tau:
            axes[1].axhline(tau.value, color="#333333", linestyle="--", linewidth=0.8, label="τ")
    figures.legend(fig, axes, 5)
    return fig


def fig_recovery(results):
    """Share of pictures whose answer is, from time t on, the answer to the clean picture: after the noise alone, and after denoising from t.
    The dots are the share for which theory promises it (ours: twice the total variation distance below the lead of the clean answer)."""
    found = results.select(kind="recovery")
    if not found:
        return None
    grid = np.array(results.config["sweeps"]["times"])
    fig, ax = style.figure(style.COLUMN)
    for k, m in enumerate(sorted(found, key=lambda m: (m.tags["method"], m.tags["eps"]))):
        time, name = m.extra["time"], f"{'noise only' if m.tags['method'] == 'noised' else 'denoised'}, {eps(m.tags['eps'])}"
        ax.plot(grid, [100 * ((time >= 0) & (time <= t)).mean() for t in grid], color=style.COLOURS[k], marker=style.MARKERS[k], label=name)
        if m.tags["method"] == "noised":
            bound = m.extra["bound"]
            promised = [100 * ((bound >= 0) & (bound <= t)).mean() for t in grid]
            ax.plot(grid, promised, color=style.COLOURS[k], linestyle=":", label=f"bound, {eps(m.tags['eps'])}")
    ax.set(xlabel="t (steps)", ylabel="recovered (%)", ylim=(-3, 103))
    figures.legend(fig, ax, 2)
    return fig


def fig_calibration(results):
    """τ from random subsets of the calibration pairs: median, quartiles and range over 200 draws, by the number of pairs per set."""
    found = sorted(results.select(kind="calibration"), key=lambda m: m.tags["pairs"])
    if not found:
        return None
    fig, ax = style.figure(style.COLUMN, 2.0)
    ax.boxplot([m.values for m in found], widths=0.5, flierprops={"markersize": 1.5})
    ax.set_xticks(range(1, len(found) + 1), [str(m.tags["pairs"]) for m in found])
    ax.set(xlabel="pairs per set", ylabel="τ")
    return fig


def fig_adaptive(results):
    """Top-1 under attackers who know the defence: the mean over repeated purifications and the worst of them. Whiskers: 95 % intervals."""
    from papers.diffcap.tables import AGAINST

    if not results.select(kind="adaptive"):
        return None
    fig, ax = style.figure(style.PAGE, 2.6)
    series = {f"{METHODS[m]}, {how}": [results.estimate(kind="adaptive", method=m, against=a, judged=how) for a in AGAINST]
              for m in ("diffpure", "diffcap") for how in ("mean", "worst")}
    figures.bars(ax, list(AGAINST.values()), series, ylabel="top-1 (%)")
    figures.legend(fig, ax, 4)
    return fig


def fig_strip(results):
    """From left to right: clean, adversarial, their difference × 10, diffused to the stop time, purified; with the answers of LLaVA."""
    found = results.select(kind="strip")
    if not found:
        return None
    extra = found[0].extra
    columns = ("clean", "adversarial", "difference", "diffused", "purified")
    n = len(extra["clean"])
    fig, axes = style.figure(style.PAGE, 1.75 * n, rows=n, columns=len(columns), squeeze=False)
    for i in range(n):
        for ax, name in zip(axes[i], columns, strict=True):
            picture = np.clip(0.5 + 10 * extra["difference"][i] / 2, 0, 1) if name == "difference" else extra[name][i] / 255
            ax.imshow(np.moveaxis(picture, 0, -1), interpolation="nearest")
            ax.set_axis_off()
            title = {"difference": "difference × 10", "diffused": f"diffused, t* = {extra['t'][i]}"}.get(name, name)
            ax.set_title(title, fontsize=6.5)
            if f"{name} answers" in extra:
                ax.text(0.5, -0.04, _wrapped(str(extra[f"{name} answers"][i])), transform=ax.transAxes, ha="center", va="top", fontsize=5.5)
    return fig


def _wrapped(text: str, width: int = 26) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])
