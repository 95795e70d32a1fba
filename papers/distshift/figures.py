"""What each figure of distshift shows, as functions of the measurements. No model is loaded here."""

from dataclasses import replace

import numpy as np

from papers.distshift.tables import AGAINST, ATTACKS, METHODS, NORMS, STATES, candidates, conditions, radius, sets, short, time
from shared.report import figures, style

# the first seven have colours of their own
ORDER = ("diffpure", "pgd_at", "distshift", "gdmp", "none", "jpeg", "tv", "bits", "resize_pad", "noise")


def _look() -> dict:
    return style.looks([METHODS[m] for m in ORDER])


def fig_tradeoff(results):
    """Clean accuracy against accuracy under attack (mean over both attacks), for each set and ball. Whiskers: 95 % intervals."""
    if not results.select(kind="score"):
        return None
    places = range(1, len(sets(results)) + 1)
    fig, axes = style.figure(style.PAGE, 2.4 * len(places), rows=len(places), columns=2, squeeze=False)
    look, attack = _look(), results.config["attack"]
    for place, line in zip(places, axes, strict=True):
        for ax, (norm, label) in zip(line, NORMS.items(), strict=True):
            at = {"kind": "score", "place": place}
            points = {name: (results.estimate(at, method=m, attack="clean"), results.estimate(at, method=m, attack=list(ATTACKS), norm=norm))
                      for m, name in METHODS.items()}
            points = {k: v for k, v in points.items() if all(v)}
            figures.tradeoff(ax, points, ylabel=f"accuracy at {label} {radius(attack[norm])} (%)", look={k: look[k] for k in points})
            ax.set_title(f"{short(results, sets(results)[place - 1])}, {label}")
            ax.set(ylim=(-4, 104))
    figures.legend(fig, axes, 5)
    return fig


def fig_eps(results):
    """Accuracy against ε under PGD, in either ball. One seed."""
    found = results.select(kind="eps")
    if not found:
        return None
    look = _look()
    fig, axes = style.figure(style.PAGE, 2.5, columns=2)
    for ax, (norm, label) in zip(axes, NORMS.items(), strict=True):
        levels = sorted({m.tags["eps"] for m in found if m.tags["norm"] == norm})
        series = {name: [results.estimate(kind="eps", method=m, norm=norm, eps=e) for e in levels] for m, name in METHODS.items()}
        series = {k: v for k, v in series.items() if any(v)}
        figures.lines(ax, [radius(e) for e in levels], series, xlabel=f"ε ({label})", ylabel="accuracy (%)", look={k: look[k] for k in series},
                      categorical=True)
        ax.set(ylim=(-4, 104))
    figures.legend(fig, axes, 6)
    return fig


def _sweep(results, kind: str, tag: str, xlabel: str, vertical: float | None):
    found = results.select(kind=kind)
    if not found:
        return None
    at = sorted({m.tags[tag] for m in found})
    columns = conditions(results, ("pgd",))
    fig, axes = style.figure(style.PAGE, 2.3, columns=len(columns), sharey=True)
    look = _look()
    for ax, (name, condition) in zip(axes, columns.items(), strict=True):
        series = {METHODS[m]: [results.estimate({"kind": kind, **condition, tag: v}, method=m) for v in at] for m in ("diffpure", "distshift")}
        series = {k: v for k, v in series.items() if any(v)}
        figures.lines(ax, at, series, xlabel=xlabel, ylabel="accuracy (%)" if ax is axes[0] else "", look={k: look[k] for k in series})
        if vertical is not None:
            ax.axvline(vertical, color="#333333", linestyle="--", linewidth=0.8)
        ax.set_title(name)
        ax.set(ylim=(-4, 104))
    figures.legend(fig, axes, 4)
    return fig


def fig_time(results):
    """Accuracy against the diffusion time t*, with and without guidance; the dashed line is the time of all other tables. One seed."""
    return _sweep(results, "time", "t", "t* (steps)", time(results))


def fig_rounds(results):
    """Accuracy against the number of rounds of purification, with and without guidance. One seed."""
    return _sweep(results, "rounds", "rounds", "rounds", None)


def fig_scale(results):
    """Accuracy against the scale of the guidance (ratio: guidance norm over score norm); 0 is no guidance, the dashed line the default. One seed."""
    found = results.select(kind="scale")
    if not found:
        return None
    at, g = sorted({m.tags["scale"] for m in found}), results.config["guidance"]
    fig, ax = style.figure(style.COLUMN)
    series = {name: [results.estimate({"kind": "scale", **condition, "scale": v}) for v in at] for name, condition in
              conditions(results, ("pgd",)).items()}
    figures.lines(ax, at, series, xlabel=f"scale ({g['unit']})", ylabel="accuracy (%)", categorical=True)
    ax.set(ylim=(-4, 104))
    if g["scale"] in at:
        ax.axvline(at.index(g["scale"]), color="#333333", linestyle="--", linewidth=0.8)
    figures.legend(fig, ax, 1)
    return fig


def fig_variants(results):
    """Candidates for the guidance: accuracy clean and under PGD; first the default and no guidance. One seed. Whiskers: 95 % intervals."""
    if not results.select(kind="variant"):
        return None
    rows = candidates(results, "default: {}")
    fig, ax = style.figure(style.PAGE, 3.6)
    columns = conditions(results, ("pgd",))
    at, width, look = np.arange(len(rows))[::-1], 0.8 / len(columns), style.looks(list(columns))
    for k, (name, condition) in enumerate(columns.items()):
        found = [results.estimate({**row, **condition, "place": 1}) for row in rows.values()]
        y = at + 0.4 - width * (k + 0.5)
        there = [i for i, e in enumerate(found) if e is not None]
        values, low, high = (np.array([100 * getattr(found[i], part) for i in there]) for part in ("value", "low", "high"))
        ax.barh(y[there], values, width * 0.94, label=name, color=look[name].colour, hatch=look[name].hatch, edgecolor="white", linewidth=0.4)
        ax.errorbar(values, y[there], xerr=(values - low, high - values), fmt="none", ecolor="#333333", elinewidth=0.7, capsize=1.2)
    ax.set_yticks(at, rows)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="accuracy (%)", xlim=(0, 104))
    figures.legend(fig, ax, 3)
    return fig


def fig_adaptive(results):
    """Accuracy under attackers who know the defence: the mean over repeated purifications and the worst of them. Whiskers: 95 % intervals."""
    if not results.select(kind="adaptive"):
        return None
    norm = results.config["adaptive"]["norms"][0]
    series = {f"{METHODS[m]}, {how}": [results.estimate(kind="adaptive", method=m, against=a, judged=how, norm=norm) for a in AGAINST]
              for m in ("diffpure", "gdmp", "distshift") for how in ("mean", "worst")}
    series = {k: v for k, v in series.items() if any(v)}
    own = _look()
    look = {f"{METHODS[m]}, {how}": replace(own[METHODS[m]], hatch="" if how == "mean" else "//////") for m in ("diffpure", "gdmp", "distshift")
            for how in ("mean", "worst")}
    shown = [k for k in range(len(AGAINST)) if any(v[k] for v in series.values())]
    fig, ax = style.figure(style.PAGE, 2.8)
    figures.bars(ax, [list(AGAINST.values())[k] for k in shown], {name: [v[k] for k in shown] for name, v in series.items()}, ylabel="accuracy (%)",
                 look=look)
    ax.set(ylim=(0, 104))
    trained = results.estimate(kind="adaptive", method="pgd_at", against="exact", judged="one", norm=norm)
    if trained:
        ax.axhline(100 * trained.value, color="#333333", linestyle="--", linewidth=0.8, label="PGD-AT, exact")
    figures.legend(fig, ax, 4)
    return fig


def fig_distribution(results):
    """Left: pictures in the plane of two principal axes of the victim's features (clean and adversarial together); grey: the clean pictures that each
    sample is compared with. Right: MMD² to those, with 95 % intervals; the p-value of the permutation test is written beside it."""
    found = {m.tags["method"]: m for m in results.select(kind="distribution", quantity="mmd2")}
    if not found:
        return None
    shown = [s for s in STATES if s in found]
    fig, axes = style.figure(style.PAGE, 3.0, columns=2, width_ratios=(1.15, 1))
    look = style.looks([STATES[s] for s in STATES])
    reference = found[shown[0]].extra["reference"]
    axes[0].plot(*reference.T, linestyle="none", marker=".", markersize=5, color="#bbbbbb", label="other clean pictures")
    for s in shown:
        if s in ("clean", "purified_clean"):
            continue
        one = look[STATES[s]]
        axes[0].plot(*found[s].extra["xy"].T, linestyle="none", marker=one.marker, markersize=2.6, color=one.colour, alpha=0.75, label=STATES[s])
    axes[0].grid(True, axis="both")
    axes[0].set(xlabel="first axis", ylabel="second axis")
    for k, s in enumerate(shown):
        e = results.estimate(kind="distribution", method=s, quantity="mmd2")
        p = results.estimate(kind="distribution", method=s, quantity="p")
        axes[1].errorbar(e.value, -k, xerr=[[max(0, e.value - e.low)], [max(0, e.high - e.value)]], fmt=look[STATES[s]].marker, markersize=4.5,
                         color=look[STATES[s]].colour, elinewidth=0.9, capsize=1.5)
        if p:
            axes[1].annotate(f"p = {p.value:.3f}", (e.value, -k), textcoords="offset points", xytext=(0, 5), ha="center", fontsize=6)
    axes[1].axvline(0, color="#333333", linewidth=0.6)
    axes[1].set_yticks([-k for k in range(len(shown))], [STATES[s] for s in shown])
    axes[1].grid(True, axis="x")
    axes[1].set(xlabel="MMD² to other clean pictures", ylim=(-len(shown) + 0.4, 0.7))
    figures.legend(fig, axes[0], 3)
    return fig


def fig_strip(results):
    """From left to right: clean, adversarial, their difference × 10, diffused to t*, DiffPure, distshift; below each what the victim says, in green
    where it is right."""
    found = results.select(kind="strip")
    if not found:
        return None
    extra = found[0].extra
    columns = {"clean": "clean", "adversarial": "adversarial", "difference": "difference × 10",
               "diffused": f"diffused, t* = {time(results)}", "diffpure": "DiffPure", "purified": "distshift"}
    n = len(extra["clean"])
    fig, axes = style.figure(style.PAGE, 1.42 * n, rows=n, columns=len(columns), squeeze=False)
    for i in range(n):
        for ax, (name, title) in zip(axes[i], columns.items(), strict=True):
            picture = np.clip(0.5 + 10 * extra["difference"][i] / 2, 0, 1) if name == "difference" else extra[name][i] / 255
            ax.imshow(np.moveaxis(picture, 0, -1), interpolation="nearest")
            ax.set_axis_off()
            if i == 0:
                ax.set_title(title, fontsize=6.5)
            if f"{name} answers" in extra:
                said = str(extra[f"{name} answers"][i])
                ax.text(0.5, -0.04, said, transform=ax.transAxes, ha="center", va="top", fontsize=5.5,
                        color="#009E73" if said == str(extra["truth"][i]) else "#D55E00")
    return fig
