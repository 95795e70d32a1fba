"""What each table and figure of PMG-AFT shows, by the names of its numbers; what is measured is read off here. No model
is loaded.

The paper's own numbering is unknown to us (its full text could not be read), so tables and figures have names.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from shared.experiment.paper import Grid
from shared.report import figures, style
from shared.report.choices import choices
from shared.report.shown import Filled, Shown, claimed, figure, pictures_in_words, table, table_of, with_yours, yours
from shared.report.tables import Table

if TYPE_CHECKING:
    from papers.pmg_aft.config import Config

CLIP = "clip"  # the pre-trained model, which is not fine-tuned and has no seed
METHODS = {
    CLIP: "CLIP",
    "ft_clean": "FT-Clean",
    "ft_adv": "FT-Adv",
    "tecoa": "TeCoA",
    "fare": "FARE",
    "pmg_aft": "PMG-AFT",
}
named = partial(with_yours, METHODS)
CHOSEN = {  # rows whose learning rate is chosen for themselves
    "ft_clean": "FT-Clean",
    "ft_adv": "FT-Adv",
    "fare": "FARE",
    "tecoa": "TeCoA",
    "tecoa_one": "TeCoA, temperature 1",
    "tecoa_released": "TeCoA, as released",
    "pmg_aft": "PMG-AFT",
    "pmg_one": "PMG-AFT, temperature 1",
    "pmg_released": "PMG-AFT, as released",
}
READ = {  # row -> its objective, and the reading of text and released code that it is trained by
    "tecoa": ("tecoa", "as_written"),
    "tecoa_one": ("tecoa", "temperature_1"),
    "tecoa_released": ("tecoa", "as_released"),
    "pmg_aft": ("pmg_aft", "as_written"),
    "pmg_one": ("pmg_aft", "temperature_1"),
    "pmg_released": ("pmg_aft", "as_released"),
}
BOTH = {"clean": "clean accuracy (%)", "pgd": "robust accuracy (%)"}
FIRST = ("tecoa", "pmg_aft")  # of the headline


# ---- names -----------------------------------------------------------------------------------------------------------------


def name_of(spec: str) -> str:
    """A set's own name, without its kind."""
    return spec.partition(":")[2].lower()


def set_names(c: "Config") -> dict[str, str]:
    """Name -> set, of all test sets: the seen one, those whose mean is shown, and others."""
    return {name_of(spec): spec for spec in (c.data.seen, *c.data.zero_shot, *c.data.holdout)}


def SWEPT(alpha: float, beta: float) -> str:
    """The row of one point of the α/β sweep; the corners are rows of their own."""
    corners = {(0, 0): "tecoa", (1, 1): "pmg_aft", (1, 0): "pmg_general", (0, 1): "pmg_clean"}
    return corners.get((alpha, beta), f"pmg_a{alpha:g}_b{beta:g}")


def eps(c: "Config", multiple: float = 1.0) -> str:
    return f"{c.attack.eps * 255 * multiple:g}/255"


def growing(c: "Config") -> dict[str, str]:
    """PGD of growing ε: label -> attack."""
    return {eps(c, m): "pgd" if m == 1 else f"pgd_x{m:g}" for m in c.attack.multiples}


# ---- rows and columns ------------------------------------------------------------------------------------------------------


def rows(c: "Config", names: Iterable[str] = METHODS) -> dict[str, dict]:
    """One method a row, the user's own last."""
    return {label: {"method": m, **({"seed": None} if m == CLIP else {})} for m, label in named(c, names).items()}


def chosen(c: "Config") -> dict[str, str]:
    """The same of rows whose learning rate is chosen for themselves."""
    return CHOSEN | yours(c)


def unseen(c: "Config", *without: str) -> list[dict]:
    """The sets whose mean is shown."""
    return [{"set": name_of(s)} for s in c.data.zero_shot if s not in without]


def by_set(c: "Config") -> dict:
    def label(spec: str) -> str:
        kind = "seen: " if spec == c.data.seen else "hold-out: " if spec in c.data.holdout else ""
        return kind + name_of(spec).replace("_", " ")

    return {"mean of zero-shot": unseen(c), **{label(spec): {"set": name} for name, spec in set_names(c).items()}}


def by_name(c: "Config") -> dict:
    """Every set by itself."""
    return {name: {"set": name} for name in set_names(c)}


def both(c: "Config") -> dict:
    """Clean and robust, on the sets of other classes and on that of the training."""
    seen = {"set": name_of(c.data.seen)}
    return {
        f"{what}, {where}": [{"attack": a, **s} for s in sets]
        for where, sets in (("zero-shot", unseen(c)), ("seen", [seen]))
        for what, a in (("clean", "clean"), ("robust", "pgd"))
    }


# ---- tables ----------------------------------------------------------------------------------------------------------------


def accuracies(c: "Config", attack: str, caption: str, seeds: Sequence[int]) -> Shown:
    return Shown(rows(c), by_set(c), {"kind": "accuracy", "attack": attack}, seeds, caption + pictures_in_words(c))


@table
def clean(c: "Config") -> Shown:
    return accuracies(c, "clean", "Clean accuracy (%) on every set.", c.seeds)


@table
def robust(c: "Config") -> Shown:
    return accuracies(c, "pgd", f"Robust accuracy (%) on every set under PGD-{c.attack.steps}, ε = {eps(c)}.", c.seeds)


@table
def auto(c: "Config") -> Shown:
    a = c.attack
    return accuracies(
        c,
        "auto",
        f"Accuracy (%) under the cascade APGD-CE, APGD-T ({a.auto_targets} targets), Square ({a.auto_queries} "
        f"queries), {a.auto_steps} iterations each, ε = {eps(c)}. FAB is not part of it.",
        c.seeds[:1],
    )


@table
def cw(c: "Config") -> Shown:
    return accuracies(
        c,
        "cw",
        f"Accuracy (%) under PGD-{c.attack.steps} on the margin with κ = {c.attack.kappa:g}, which this line of work "
        f"calls CW, ε = {eps(c)}.",
        c.seeds[:1],
    )


@table
def strengths(c: "Config") -> Shown:
    columns = {
        f"{where}, ε = {e}": [{"attack": a, **s} for s in sets]
        for where, sets in (("zero-shot", unseen(c)), ("seen", [{"set": name_of(c.data.seen)}]))
        for e, a in growing(c).items()
    }
    return Shown(
        rows(c),
        columns,
        {"kind": "accuracy"},
        c.seeds[:1],
        f"Accuracy (%) under PGD-{c.attack.steps} of growing ε (trained at {eps(c)}).",
    )


@table
def ablation(c: "Config") -> Shown:
    terms = {
        "L_robust (TeCoA)": "tecoa",
        "+ α·L_general": "pmg_general",
        "+ β·L_clean": "pmg_clean",
        "all (PMG-AFT)": "pmg_aft",
    }
    return Shown(
        {k: {"method": m} for k, m in terms.items()},
        both(c),
        {"kind": "accuracy"},
        c.seeds,
        "What each term of the loss does: accuracy (%), α = β = 1.",
    )


@table
def faces(c: "Config") -> Shown:
    few = {"seed": c.seeds[0]}
    readings = {
        "TeCoA, as written": {"method": "tecoa"},
        "PMG-AFT, as written": {"method": "pmg_aft"},
        "PMG-AFT, KL(P_θ(x_a) ‖ ·)": {"method": "pmg_adversarial_first", **few},
        "PMG-AFT, clean branch detached": {"method": "pmg_detached", **few},
        "TeCoA, temperature 1": {"method": "tecoa_one"},
        "PMG-AFT, temperature 1, KL summed": {"method": "pmg_one"},
        "TeCoA, as released": {"method": "tecoa_released"},
        "PMG-AFT, as released (May 2024)": {"method": "pmg_released"},
        "PMG-AFT, as released (April 2024)": {"method": "pmg_released_april", **few},
    }
    columns = {**both(c), "cascade, zero-shot": [{"attack": "auto", "seed": c.seeds[0], **s} for s in unseen(c)]}
    return Shown(
        readings,
        columns,
        {"kind": "accuracy"},
        c.seeds,
        best=None,
        caption="Text and released code: accuracy (%). All rows are attacked in single precision with a summed loss and "
        'the model\'s own temperature; "temperature 1" differs in the training\'s logits, "released" also in how the '
        "training attacks (half precision, mean over the batch) and in the mean/std of the pixels. Each pair has its "
        "own learning rates.",
    )


@table
def training_data(c: "Config") -> Shown:
    trained = {
        f"{label} on {name_of(t).replace('_', ' ')}": {"method": m if t == c.data.train else f"{m}_on_{name_of(t)}"}
        for t in (c.data.train, *c.data.other_train)
        for m, label in named(c, FIRST).items()
    }
    sets = unseen(c, *c.data.other_train, c.data.train) or unseen(c)
    columns = {what: [{"attack": a, **s} for s in sets] for what, a in (("clean", "clean"), ("robust", "pgd"))}
    return Shown(
        trained,
        columns,
        {"kind": "accuracy"},
        c.seeds[:1],
        best=None,
        caption=f"Fine-tuned on other sets: accuracy (%), mean over {len(sets)} sets that are zero-shot for every row.",
    )


@table
def partial(c: "Config") -> Shown:
    depths = {f"last {k} tensors": {"method": f"pmg_last{k}"} for k in c.sweeps.last} | {"all": {"method": "pmg_aft"}}
    return Shown(
        depths,
        both(c),
        {"kind": "accuracy"},
        c.seeds[:1],
        best=None,
        caption="Training only the last parameter tensors of the vision tower: accuracy (%), PMG-AFT.",
    )


@table
def sweep(c: "Config") -> Shown:
    points = {f"α = {a:g}, β = {b:g}": {"method": SWEPT(a, b)} for a in c.sweeps.alphas for b in c.sweeps.betas}
    return Shown(points, both(c), {"kind": "accuracy"}, c.seeds[:1], "The weights α and β: accuracy (%), one seed.")


@table
def cost(c: "Config") -> Shown:
    columns = {
        "processor seconds per update": {"point": "seconds"},
        "MB kept for the backward pass": {"point": "megabytes"},
    }
    return Shown(
        rows(c, list(METHODS)[1:]),
        columns,
        {"kind": "cost"},
        c.seeds[:1],
        best=None,
        factor=1,
        digits={"processor seconds per update": 3},
        over={"time over TeCoA": ("processor seconds per update", METHODS["tecoa"])},
        caption=f"What one update of {c.tuning.batch} images costs, attack included, on one process.",
    )


def tried(c: "Config") -> Grid:
    """Every candidate of every choice."""
    lines = {
        f"{label}, lr × {m:g}": {"method": name, "point": m}
        for name, label in chosen(c).items()
        for m in c.choosing.multiples
    }
    columns = {"score": {"attack": "pgd"}, "chosen": {"attack": "taken"}}
    return Grid(lines, columns, {"kind": "choice"}, c.seeds[:1])


@table_of(tried)
def settings(grid: Filled) -> Table:
    """How settings were chosen."""
    c = grid.config
    caption = (
        f"How settings were chosen: accuracy (%) on {c.choosing.n or 'all'} validation pictures of the training "
        f"classes, under PGD-{c.attack.steps} (FT-Clean: clean), by multiple of the preset's learning rate "
        f"({c.tuning.lr:g}; FARE {c.fare.lr:g}), {c.tuning.steps} updates, one seed; the best is taken for all seeds. "
        "Ablations, sweeps and partial fine-tuning have the rate of PMG-AFT."
    )
    return choices(grid, caption, growing=True)


# ---- figures ---------------------------------------------------------------------------------------------------------------


def means(c: "Config", kind: str = "accuracy", seeds: Sequence[int] = (), methods: Iterable[str] = METHODS) -> Grid:
    return Grid(
        rows(c, methods), {a: [{"attack": a, **s} for s in unseen(c)] for a in BOTH}, {"kind": kind}, seeds or c.seeds
    )


@figure(means)
def fig_tradeoff(grid: Filled) -> Figure:
    """Clean against robust accuracy, means over the zero-shot sets. Whiskers: 95 % intervals."""
    fig, ax = style.figure(style.COLUMN)
    figures.tradeoff(ax, {row: (grid[row, "clean"], grid[row, "pgd"]) for row in grid.rows})
    figures.legend(fig, ax, 3)
    return fig


@figure(lambda c: Grid(rows(c), by_set(c), {"kind": "accuracy", "attack": "pgd"}, c.seeds))
def fig_sets(grid: Filled) -> Figure:
    """Robust accuracy of every method on every set, beside the mean over the zero-shot sets."""
    fig, ax = style.figure(style.PAGE, 2.6)
    figures.bars(ax, grid.columns, grid.series(), ylabel="robust accuracy (%)")
    figures.legend(fig, ax)
    return fig


@figure(
    lambda c: Grid(
        rows(c),
        {e: [{"attack": a, **s} for s in unseen(c)] for e, a in growing(c).items()},
        {"kind": "accuracy"},
        c.seeds[:1],
    )
)
def fig_strengths(grid: Filled) -> Figure:
    """Accuracy under PGD of growing ε, mean over the zero-shot sets, one seed."""
    fig, ax = style.figure(style.COLUMN)
    figures.lines(ax, grid.columns, grid.series(), xlabel="ε of the attack", ylabel="accuracy (%)", categorical=True)
    figures.legend(fig, ax, 3)
    return fig


def swept(attack: str):
    def grid(c: "Config") -> Grid:
        point = {"kind": "accuracy", "attack": attack}
        return Grid(
            {f"{a:g}": [{"alpha": a, **s} for s in unseen(c)] for a in c.sweeps.alphas},
            {f"{b:g}": {"beta": b} for b in c.sweeps.betas},
            point,
            c.seeds[:1],
            joined=lambda row, column: {"method": SWEPT(row["alpha"], column["beta"]), "set": row["set"]},
        )

    return grid


@figure(swept("clean"), swept("pgd"))
def fig_sweep(clean: Filled, robust: Filled) -> Figure:
    """Clean and robust accuracy over the weights α and β, means over the zero-shot sets, one seed. (0, 0) is TeCoA, (1,
    1) PMG-AFT."""
    fig, axes = style.figure(style.PAGE, 2.6, columns=2)
    for ax, grid, what in zip(axes, (clean, robust), BOTH.values(), strict=True):
        figures.heatmap(
            ax, grid.rows, grid.columns, [grid.row(r) for r in grid.rows], xlabel="β", ylabel="α", label=what
        )
    return fig


def along(attack: str):
    def grid(c: "Config"):
        lines = {
            f"{label}, {where}": [{"method": m, **s} for s in sets]
            for m, label in named(c, FIRST).items()
            for where, sets in (("seen", [{"set": name_of(c.data.seen)}]), ("zero-shot", unseen(c)))
        }
        steps = [*(s for s in c.sweeps.curve if s < c.tuning.steps), c.tuning.steps]
        return Grid(lines, {str(s): {"step": s} for s in steps}, {"kind": "curve", "attack": attack}, c.seeds[:1])

    return grid


@figure(along("clean"), along("pgd"))
def fig_curve(clean: Filled, robust: Filled) -> Figure:
    """Along the training: clean and robust accuracy on the seen classes and, on average, on the zero-shot sets, one
    seed.

    A method over-fits where the seen classes still gain and the zero-shot sets lose.
    """
    fig, axes = style.figure(style.PAGE, 2.5, columns=2)
    for ax, grid, what in zip(axes, (clean, robust), BOTH.values(), strict=True):
        figures.lines(ax, [int(s) for s in grid.columns], grid.series(), xlabel="updates", ylabel=what)
    figures.legend(fig, axes, 4)
    return fig


def test_batches(c: "Config", attack: str, points: Sequence[int]) -> Grid:
    readings = {"pmg_aft": "as written", "pmg_released": "as released"}
    return Grid(
        {f"{label}, {attack} attack": {"method": m} for m, label in readings.items()},
        {f"{p:g}": {"point": p} for p in points},
        {"kind": "test_batch", "attack": attack, "set": name_of(c.data.seen)},
        c.seeds[:1],
    )


@figure(lambda c: test_batches(c, "released", c.sweeps.test_batches), lambda c: test_batches(c, "correct", [0]))
def fig_test_batch(released: Filled, correct: Filled) -> Figure:
    """The defect of the released evaluation: accuracy under its PGD (half precision, loss averaged over the test batch,
    temperature 1) against the size of the test batch, and under the same PGD in single precision with a summed loss
    (ours). An honest attack does not depend on it."""
    fig, ax = style.figure(style.COLUMN)
    constant = {label: cells * len(released.columns) for label, cells in correct.series().items()}
    series = dict(
        sorted((released.series() | constant).items(), key=lambda line: line[0].startswith("as released"))
    )  # pairs of one reading
    figures.lines(ax, released.columns, series, xlabel="test batch", ylabel="accuracy under PGD (%)", categorical=True)
    figures.legend(fig, ax, 2)
    return fig


@claimed
def paired(c: "Config") -> list[Grid]:
    """PGD on the cascade's pictures, so that the two can be compared picture by picture."""
    return [Grid(rows(c), by_name(c), {"kind": "accuracy", "attack": "pgd_paired"}, c.seeds[:1])]


@claimed
def long(c: "Config") -> list[Grid]:
    """The literature's PGD-100, where it is measured."""
    return (
        [Grid(rows(c), by_name(c), {"kind": "accuracy", "attack": "pgd_long"}, c.seeds[:1])]
        if c.attack.long_steps
        else []
    )


def headline(c: "Config") -> list[Grid]:
    """What the headline claims read, under every reading."""
    pairs = {CHOSEN[name]: {"method": name} for name in READ}
    written = [Grid(rows(c, (CLIP, *FIRST)), by_name(c), {"kind": "accuracy", "attack": a}, c.seeds) for a in BOTH]
    return [*written, Grid(pairs, both(c), {"kind": "accuracy"}, c.seeds)]
