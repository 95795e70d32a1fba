"""What each figure of RoCLIP shows, as functions of the measurements. No model is loaded here."""

import textwrap
from dataclasses import replace

import numpy as np

from papers.roclip.tables import METHODS, REGIMES, SWEEPS, backdoors, default, points, rows, sets, share, short, value
from shared.report import figures, style

EPOCH_ROWS = {"psr": "PSR (%)", "bsr": "BSR (%)", "accuracy": "accuracy (%)"}
SHOWN = 5  # pairs of a kind in the strip
LETTERS = "abcdefghij"


def _look() -> dict:
    return style.looks(list(METHODS.values()))


def fig_success(results):
    """Success of targeted poisoning (PSR) and of backdoors (BSR); lower is better. RoCLIP after its last RoCLIP epoch (full colour) and after its
    last plain epoch (hatched). Whiskers: 95 % intervals."""
    found = [r for r in REGIMES if results.select(kind="score", regime=r)]
    if not found:
        return None
    fig, axes = style.figure(style.PAGE, 2.2 * len(found) + 0.3, rows=len(found), sharex=False, squeeze=False)
    groups = {"targets": "targeted", **backdoors(results)}
    own = dict(zip(METHODS, _look().values(), strict=True))
    for ax, regime in zip(axes[:, 0], found, strict=True):
        series, look = {}, {}
        for label, row in rows(results, kind="score", regime=regime).items():
            series[label] = [results.estimate(row, kind="score", regime=regime, attack=a, measure="psr" if a == "targets" else "bsr") for a in groups]
            look[label] = replace(own[row["method"]], hatch="//////" if row["scored"] == "plain_epoch" else "")
        figures.bars(ax, list(groups.values()), series, ylabel="success (%)", look=look)
        ax.set(ylim=(0, 104))
        ax.set_title(REGIMES[regime], loc="left")
    figures.legend(fig, axes, 4)
    return fig


def fig_epochs(results):
    """Success of targeted poisoning, success of the first backdoor, and zero-shot accuracy after every epoch, measured while training. Large markers:
    RoCLIP epochs. Bands: 95 % intervals."""
    found = [r for r in REGIMES if results.select(kind="epoch", regime=r)]
    if not found:
        return None
    fig, axes = style.figure(style.PAGE, 5.0, rows=len(EPOCH_ROWS), columns=len(found), sharey="row", sharex="col", squeeze=False)
    for column, regime in enumerate(found):
        for ax, (measure, label) in zip(axes[:, column], EPOCH_ROWS.items(), strict=True):
            last = measure == "accuracy"
            _by_epoch(results, ax, {"kind": "epoch", "regime": regime, "measure": measure}, xlabel="epoch" if last else "",
                      ylabel="" if column else label)
            ax.set(ylim=(-4, 104))
        axes[0, column].set_title(REGIMES[regime])
    figures.legend(fig, axes, 5)
    return fig


def fig_similarity(results):
    """Cosine of a picture with its caption after every epoch: poisoned pairs (full lines) and clean pairs (thin dotted lines). Large markers: RoCLIP
    epochs. Bands: 95 % intervals of poisoned pairs."""
    found = [r for r in REGIMES if results.select(kind="epoch", regime=r, measure="similarity")]
    if not found:
        return None
    fig, axes = style.figure(style.PAGE, 2.6, columns=len(found), sharey=True, squeeze=False)
    for k, (ax, regime) in enumerate(zip(axes[0], found, strict=True)):
        at = {"kind": "epoch", "regime": regime, "measure": "similarity"}
        _by_epoch(results, ax, {**at, "attack": "none"}, factor=1, thin=True)
        _by_epoch(results, ax, {**at, "attack": "targets"}, factor=1, xlabel="epoch", ylabel="" if k else "cosine")
        ax.set_title(REGIMES[regime])
    axes[0][0].plot([], [], color="#333333", linestyle=":", linewidth=0.8, label="clean pairs")
    figures.legend(fig, axes, 6)
    return fig


def _by_epoch(results, ax, at: dict, *, factor: float = 100, thin: bool = False, **labels) -> None:
    """A line per method over the epochs; RoCLIP epochs have larger markers."""
    epochs, look = results.tags("epoch", at), _look()
    for m, name in METHODS.items():
        series = [results.estimate(at, method=m, epoch=e) for e in epochs]
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
        matched = [e for e in epochs if results.select(at, method=m, epoch=e, scored="roclip_epoch")]
        there = [k for k, e in enumerate(line.get_xdata()) if e in matched]
        if there:
            ax.plot(line.get_xdata()[there], line.get_ydata()[there], linestyle="none", marker=look[name].marker, markersize=5.2,
                    color=look[name].colour)
    step = -(-len(epochs) // 12)
    ax.set_xticks(epochs[step - 1::step])


def fig_strong(results):
    """Strong poisoning in pre-training, by the share of target pairs: success, and zero-shot accuracy. K: every so many epochs is a RoCLIP epoch;
    dashed: after the last plain epoch. One seed. Bands: 95 % intervals."""
    found = results.select(kind="strong")
    if not found:
        return None
    rates = sorted({(m.tags["rate"], m.tags["m"]) for m in found})
    wanted = {METHODS["clip_aug"]: ({"method": "clip_aug"}, "-")}
    for method in ("roclip", "released"):
        for every in results.tags("every", kind="strong", method=method):
            for scored, line, epoch in (("roclip_epoch", "-", ""), ("plain_epoch", "--", ", plain epoch")):
                row = {"method": method, "every": every, "scored": scored}
                if results.select(row, kind="strong"):
                    wanted[f"{METHODS[method]}, K = {every}{epoch}"] = (row, line)
    look = {name: replace(one, line=wanted[name][1]) for name, one in style.looks(list(wanted)).items()}
    fig, axes = style.figure(style.PAGE, 2.5, columns=2)
    for ax, (measure, label) in zip(axes, {"psr": "PSR (%)", "accuracy": "accuracy (%)"}.items(), strict=True):
        series = {name: [results.estimate(row, kind="strong", measure=measure, m=m) for _, m in rates] for name, (row, _) in wanted.items()}
        figures.lines(ax, [share(rate) for rate, _ in rates], series, xlabel="target pairs among all", ylabel=label, look=look, categorical=True)
        ax.set(ylim=(-4, 104))
    figures.legend(fig, axes, 3)
    return fig


def fig_ablations(results):
    """One setting of the two-sided RoCLIP at a time: success of targeted poisoning after the last RoCLIP epoch (full) and the last plain epoch
    (dashed), and zero-shot accuracy after the last RoCLIP epoch. Grey line: the default. One seed. Whiskers: 95 % intervals."""
    sweeps = [s for s in SWEEPS if points(results, s)]
    if not sweeps:
        return None
    columns = len(sweeps) if len(sweeps) <= 3 else -(-len(sweeps) // 2)
    fig, axes = style.figure(style.PAGE, 1.9 * -(-len(sweeps) // columns) + 0.3, rows=-(-len(sweeps) // columns), columns=columns, sharey=True,
                             squeeze=False)
    lines = {"PSR, RoCLIP epoch": ("psr", "roclip_epoch", "-"), "PSR, plain epoch": ("psr", "plain_epoch", "--"),
             "accuracy, RoCLIP epoch": ("accuracy", "roclip_epoch", ":")}
    look = {name: replace(one, line=lines[name][2]) for name, one in style.looks(list(lines)).items()}
    for ax, letter, sweep in zip(axes.ravel(), LETTERS, sweeps, strict=False):
        at = points(results, sweep)
        numbers = sweep in ("pool", "every")
        for k, (name, (measure, scored, _)) in enumerate(lines.items()):
            series = [results.estimate(kind="ablation", sweep=sweep, value=v, measure=measure, scored=scored) for v in at]
            if any(series):
                figures.lines(ax, [textwrap.fill(value(sweep, v), 9) for v in at], {name: series}, look=look, categorical=True)
                line = ax.get_lines()[-1]
                line.set(linestyle=look[name].line if numbers else "none", markersize=4)
                if not numbers:
                    _whiskers(ax, line, series, 0.14 * (k - 1))
        if default(results, sweep) in at:
            ax.axvline(at.index(default(results, sweep)), color="#999999", linewidth=0.8, zorder=0)
        ax.set(xlabel=f"({letter}) {SWEEPS[sweep]}", ylabel="rate (%)" if ax in axes[:, 0] else "", ylim=(-4, 104), xlim=(-0.4, len(at) - 0.6))
    for ax in axes.ravel()[len(sweeps):]:
        ax.set_axis_off()
    figures.legend(fig, axes, 3)
    return fig


def _whiskers(ax, line, series, aside: float) -> None:
    """Between words there is nothing, so the band of `figures.lines` becomes whiskers; what is equal stands side by side."""
    ax.collections[-1].remove()
    line.set_xdata(np.asarray(line.get_xdata()) + aside)
    for k, e in enumerate(series):
        if e is not None:
            ax.plot([k + aside] * 2, [100 * e.low, 100 * e.high], color=line.get_color(), linewidth=0.8, marker="", linestyle="-", label="_")


def fig_downstream(results):
    """Zero-shot accuracy and a linear probe after pre-training on poisoned pairs, set by set and in the mean. RoCLIP after its last RoCLIP epoch.
    Whiskers: 95 % intervals."""
    if not results.select(kind="downstream", regime="pretrain"):
        return None
    shown = sets(results, "linear_probe")
    fig, axes = style.figure(style.PAGE, 4.4, rows=2, sharex=True)
    own = _look()
    for ax, (measure, label) in zip(axes, {"accuracy": "zero-shot accuracy (%)", "linear_probe": "linear probe (%)"}.items(), strict=True):
        series = {}
        for m, name in METHODS.items():
            at = {"kind": "downstream", "regime": "pretrain", "method": m, "measure": measure, "scored": ["last", "roclip_epoch"]}
            series[name] = [*(results.estimate(at, data=spec) for spec in shown), results.estimate(at)]
        series = {k: v for k, v in series.items() if any(v)}
        figures.bars(ax, [*map(short, shown), "mean"], series, ylabel=label, look=own)
        ax.set(ylim=(0, 104))
    axes[0].tick_params(axis="x", labelbottom=False)
    figures.legend(fig, axes, 5)
    return fig


def fig_returned(results):
    """What the pools return at the end of pre-training, for poisoned pairs (left) and clean pairs (right). First column: the pair. Then the caption
    that takes the place of its own (with the picture it came with), and, two-sided, the picture that takes the place of its own."""
    found = {(m.tags["method"], m.tags["attack"]): m.extra for m in results.select(kind="returned", regime="pretrain", measure="same_class")}
    cells = [(attack, method, side) for attack in ("targets", "none") for method, side in
             ((None, "pair"), ("roclip", "image"), ("roclip", "text"), ("released", "image"))
             if (method or "roclip", attack) in found and (side == "pair" or f"{side}_captions" in found[method, attack])]
    if not cells:
        return None
    n = min(SHOWN, min(len(found[m or "roclip", a]["captions"]) for a, m, _ in cells))
    titles = {(None, "pair"): "pair", ("roclip", "image"): "two-sided:\ncaption", ("roclip", "text"): "two-sided:\npicture",
              ("released", "image"): "released:\ncaption"}
    fig, axes = style.figure(style.PAGE, 1.2 * n + 0.45, rows=n, columns=len(cells), squeeze=False)
    fig.get_layout_engine().set(h_pad=0.03, w_pad=0.02)
    for k, (attack, method, side) in enumerate(cells):
        extra = found[method or "roclip", attack]
        pictures, captions = (extra["pictures"], extra["captions"]) if side == "pair" else (extra[f"{side}_pictures"], extra[f"{side}_captions"])
        for i in range(n):
            ax, said = axes[i, k], str(captions[i]) or "(noise)"
            ax.imshow(_shrunk(np.clip(np.moveaxis(pictures[i], 0, -1), 0, 1)), interpolation="nearest", vmin=0, vmax=1)
            ax.set_axis_off()
            lines = textwrap.wrap(said, 21)
            ax.text(0.5, -0.03, "\n".join(lines[:4]) + ("…" if lines[4:] else ""), transform=ax.transAxes, ha="center", va="top", fontsize=4.6,
                    color="#D55E00" if side == "pair" and attack == "targets" else "#333333")
        what = ("poisoned pair" if attack == "targets" else "clean pair") if side == "pair" else titles[method, side]
        axes[0, k].set_title(what, fontsize=6)
    return fig


def _shrunk(picture: np.ndarray, side: int = 40) -> np.ndarray:
    """A picture (H, W, 3) made smaller by a whole factor, so that a page of them stays a small file."""
    factor = -(-picture.shape[0] // side)
    h, w = (s // factor * factor for s in picture.shape[:2])
    return picture[:h, :w].astype(np.float64).reshape(h // factor, factor, w // factor, factor, 3).mean((1, 3))

