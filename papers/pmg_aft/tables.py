"""What each table and figure of PMG-AFT holds, as functions of the measurements. No model is loaded here.

The paper's own numbering is unknown to us (its full text could not be read), so tables and figures have names.
"""

from shared.report import figures, style, tables
from shared.report.tables import Table

METHODS = {"clip": "CLIP", "ft_clean": "FT-Clean", "ft_adv": "FT-Adv", "tecoa": "TeCoA", "fare": "FARE", "pmg_aft": "PMG-AFT"}
_MEAN = {"mean of zero-shot": {"role": "zero_shot"}}
_BOTH = {"clean, zero-shot": {"attack": "clean", "role": "zero_shot"}, "robust, zero-shot": {"attack": "pgd", "role": "zero_shot"},
         "clean, seen": {"attack": "clean", "role": "seen"}, "robust, seen": {"attack": "pgd", "role": "seen"}}


def _eps(results, multiple: float = 1.0) -> str:
    units = results.config["attack"]["eps"] * 255 * multiple
    return f"{units:g}/255"


def _name(spec: str) -> str:
    return spec.partition(":")[2].lower()


def _columns(results) -> dict[str, dict]:
    data = results.config["data"]
    sets = [data["seen"], *data["zero_shot"], *data["holdout"]]
    return {**_MEAN, **{("seen: " if s == data["seen"] else "hold-out: " if s in data["holdout"] else "") + _name(s).replace("_", " "):
                        {"set": _name(s)} for s in sets}}


def _rows(names=METHODS) -> dict[str, dict]:
    return {label: {"method": name} for name, label in names.items()}


def _by_set(results, attack: str, caption: str):
    label = results.config["data"].get("label")
    caption += f" Pictures: {label}." if label else ""
    return tables.from_results(results, _rows(), _columns(results), common={"kind": "accuracy", "attack": attack}, caption=caption)


def clean(results):
    return _by_set(results, "clean", "Clean accuracy (%) on every set.")


def robust(results):
    steps = results.config["attack"]["steps"]
    return _by_set(results, "pgd", f"Robust accuracy (%) on every set under PGD-{steps}, ε = {_eps(results)}.")


def auto(results):
    a = results.config["attack"]
    return _by_set(results, "auto", f"Accuracy (%) under the cascade APGD-CE, APGD-T ({a['auto_targets']} targets), Square "
                   f"({a['auto_queries']} queries), "
                   f"{a['auto_steps']} iterations each, ε = {_eps(results)}. FAB is not part of it.")


def cw(results):
    a = results.config["attack"]
    return _by_set(results, "cw", f"Accuracy (%) under PGD-{a['steps']} on the margin with κ = {a['kappa']:g}, which this line of work calls CW, "
                   f"ε = {_eps(results)}.")


def _strengths(results) -> dict[str, str]:
    return {_eps(results, m): "pgd" if m == 1 else f"pgd_x{m:g}" for m in results.config["attack"]["multiples"]}


def strengths(results):
    first = results.config["seeds"][0]
    columns = {f"{where}, ε = {eps}": {"attack": attack, "role": role} for where, role in (("zero-shot", "zero_shot"), ("seen", "seen"))
               for eps, attack in _strengths(results).items()}
    return tables.from_results(results, _rows(), columns, common={"kind": "accuracy", "seed": first},
                               caption=f"Accuracy (%) under PGD-{results.config['attack']['steps']} of growing ε (trained at {_eps(results)}).")


def ablation(results):
    rows = {"L_robust (TeCoA)": {"method": "tecoa"}, "+ α·L_general": {"method": "pmg_general"}, "+ β·L_clean": {"method": "pmg_clean"},
            "all (PMG-AFT)": {"method": "pmg_aft"}}
    return tables.from_results(results, rows, _BOTH, common={"kind": "accuracy"}, caption="What each term of the loss does: accuracy (%), α = β = 1.")


def faces(results):
    rows = {"as written": {"method": "pmg_aft"}, "as written, KL(P_θ(x_a) ‖ ·)": {"method": "pmg_adversarial_first"},
            "as written, clean branch detached": {"method": "pmg_detached"}, "as released (May 2024)": {"method": "pmg_released"},
            "as released (April 2024)": {"method": "pmg_released_april"}, "TeCoA, for comparison": {"method": "tecoa"}}
    columns = {**_BOTH, "cascade, zero-shot": {"attack": "auto", "role": "zero_shot"}}
    return tables.from_results(results, rows, columns, common={"kind": "accuracy"}, best=None,
                               caption="Text and released code: accuracy (%). All rows are attacked in single precision with a summed loss and the "
                               "model's own temperature; \"released\" differs in how it was trained and in the mean/std of its pixels.")


def training_data(results):
    data = results.config["data"]
    label = {"tecoa": "TeCoA", "pmg_aft": "PMG-AFT"}
    rows = {f"{label[m]} on {_name(t).replace('_', ' ')}": {"method": m if t == data["train"] else f"{m}_on_{_name(t)}"}
            for t in (data["train"], *data["other_train"]) for m in ("tecoa", "pmg_aft")}
    unseen = [_name(s) for s in data["zero_shot"] if s not in data["other_train"] and s != data["train"]]
    sets = unseen or [_name(s) for s in data["zero_shot"]]
    columns = {"clean": {"attack": "clean", "set": sets}, "robust": {"attack": "pgd", "set": sets}}
    return tables.from_results(results, rows, columns, common={"kind": "accuracy", "seed": results.config["seeds"][0]}, best=None,
                               caption=f"Fine-tuned on other sets: accuracy (%), mean over {len(sets)} sets that are zero-shot for every row.")


def partial(results):
    rows = {f"last {k} tensors": {"method": f"pmg_last{k}"} for k in results.config["sweeps"]["last"]} | {"all": {"method": "pmg_aft"}}
    return tables.from_results(results, rows, _BOTH, common={"kind": "accuracy", "seed": results.config["seeds"][0]}, best=None,
                               caption="Training only the last parameter tensors of the vision tower: accuracy (%), PMG-AFT.")


def sweep(results):
    rows = {f"α = {a:g}, β = {b:g}": {"method": _sweep_name(a, b)} for a, b in _grid(results)}
    return tables.from_results(results, rows, _BOTH, common={"kind": "accuracy", "seed": results.config["seeds"][0]},
                               caption="The weights α and β: accuracy (%), one seed.")


def _grid(results) -> list[tuple[float, float]]:
    s = results.config["sweeps"]
    return [(a, b) for a in s["alphas"] for b in s["betas"]]


def _sweep_name(alpha: float, beta: float) -> str:
    corners = {(0.0, 0.0): "tecoa", (1.0, 1.0): "pmg_aft", (1.0, 0.0): "pmg_general", (0.0, 1.0): "pmg_clean"}
    return corners.get((float(alpha), float(beta)), f"pmg_a{alpha:g}_b{beta:g}")


def cost(results):
    rows = {label: {"method": name} for name, label in METHODS.items() if name != "clip"}
    columns = {"processor seconds per update": {"point": "seconds"}, "MB kept for the backward pass": {"point": "megabytes"}}
    batch = results.config["tuning"]["batch"]
    table = tables.from_results(results, rows, columns, common={"kind": "cost"}, best=None, factor=1, digits={"processor seconds per update": 3},
                                caption=f"What one update of {batch} images costs, attack included, on one process.")
    return table and _over_tecoa(results, table)


def _over_tecoa(results, table: Table) -> Table:
    """The same table with each method's time as a multiple of TeCoA's."""
    base = results.values(kind="cost", method="tecoa", point="seconds")
    ratios = []
    for name, label in METHODS.items():
        if label in dict(table.rows):
            own = results.values(kind="cost", method=name, point="seconds")
            ratios.append(None if own is None or base is None else f"{own.mean().value / base.mean().value:.2f}×")
    rows = [(label, [*cells, ratio]) for (label, cells), ratio in zip(table.rows, ratios, strict=True)]
    return Table([*table.columns, "time over TeCoA"], rows, table.caption, factor=1, digits=table.digits)


def fig_tradeoff(results):
    """Clean against robust accuracy, means over the zero-shot sets. Whiskers: 95 % intervals."""
    points = {label: (results.estimate(kind="accuracy", method=m, attack="clean", role="zero_shot"),
                      results.estimate(kind="accuracy", method=m, attack="pgd", role="zero_shot")) for m, label in METHODS.items()}
    if not any(x and y for x, y in points.values()):
        return None
    fig, ax = style.figure(style.COLUMN)
    figures.tradeoff(ax, points)
    figures.legend(fig, ax, 3)
    return fig


def fig_sets(results):
    """Robust accuracy of every method on every set, beside the mean over the zero-shot sets."""
    columns = _columns(results)
    series = {label: [results.estimate({"kind": "accuracy", "attack": "pgd", "method": m, **c}) for c in columns.values()]
              for m, label in METHODS.items()}
    series = {label: cells for label, cells in series.items() if any(cells)}
    if not series:
        return None
    fig, ax = style.figure(style.PAGE, 2.6)
    figures.bars(ax, list(columns), series, ylabel="robust accuracy (%)")
    figures.legend(fig, ax)
    return fig


def fig_strengths(results):
    """Accuracy under PGD of growing ε, mean over the zero-shot sets, one seed."""
    attacks, first = _strengths(results), results.config["seeds"][0]
    series = {label: [results.estimate(kind="accuracy", method=m, attack=a, role="zero_shot", seed=first) for a in attacks.values()]
              for m, label in METHODS.items()}
    if not any(len([e for e in s if e]) > 1 for s in series.values()):
        return None
    fig, ax = style.figure(style.COLUMN)
    figures.lines(ax, list(attacks), series, xlabel="ε of the attack", ylabel="accuracy (%)", categorical=True)
    figures.legend(fig, ax, 3)
    return fig


def fig_sweep(results):
    """Clean and robust accuracy over the weights α and β, means over the zero-shot sets, one seed. (0, 0) is TeCoA, (1, 1) PMG-AFT."""
    s, first = results.config["sweeps"], results.config["seeds"][0]
    panels = {attack: [[results.estimate(kind="accuracy", method=_sweep_name(a, b), attack=attack, role="zero_shot", seed=first) for b in s["betas"]]
                       for a in s["alphas"]] for attack in ("clean", "pgd")}
    if sum(e is not None for row in panels["clean"] for e in row) < 4:
        return None
    fig, axes = style.figure(style.PAGE, 2.6, columns=2)
    for ax, (_attack, cells), label in zip(axes, panels.items(), ("clean accuracy (%)", "robust accuracy (%)"), strict=True):
        figures.heatmap(ax, [f"{a:g}" for a in s["alphas"]], [f"{b:g}" for b in s["betas"]], cells, xlabel="β", ylabel="α", label=label)
    return fig


def fig_curve(results):
    """Along the training: clean and robust accuracy on the seen classes and, on average, on the zero-shot sets, one seed.

    A method over-fits where the seen classes still gain and the zero-shot sets lose.
    """
    steps = sorted({m.tags["step"] for m in results.select(kind="curve")})
    if not steps:
        return None
    fig, axes = style.figure(style.PAGE, 2.5, columns=2)
    for ax, attack, label in zip(axes, ("clean", "pgd"), ("clean accuracy (%)", "robust accuracy (%)"), strict=True):
        series = {f"{METHODS[m]}, {where}": [results.estimate(kind="curve", method=m, attack=attack, role=role, step=s) for s in steps]
                  for m in ("tecoa", "pmg_aft") for where, role in (("seen", "seen"), ("zero-shot", "zero_shot"))}
        figures.lines(ax, steps, series, xlabel="updates", ylabel=label)
    figures.legend(fig, axes, 4)
    return fig


def fig_test_batch(results):
    """The defect of the released evaluation: accuracy under its PGD (half precision, loss averaged over the test batch, temperature 1) against the
    size of the test batch, and under the same PGD in single precision with a summed loss (ours). An honest attack does not depend on it."""
    points = sorted({m.tags["point"] for m in results.select(kind="test_batch", attack="released")})
    if not points:
        return None
    fig, ax = style.figure(style.COLUMN)
    series = {}
    for method, label in (("pmg_aft", "as written"), ("pmg_released", "as released")):
        series[f"{label}, released attack"] = [results.estimate(kind="test_batch", method=method, attack="released", point=p) for p in points]
        series[f"{label}, correct attack"] = [results.estimate(kind="test_batch", method=method, attack="correct")] * len(points)
    figures.lines(ax, [f"{p:g}" for p in points], series, xlabel="test batch", ylabel="accuracy under PGD (%)", categorical=True)
    figures.legend(fig, ax, 2)
    return fig
