"""What each table of distshift shows, by the tags of its numbers; what is measured is read off here and off figures.py.
No model is loaded.

Apart from four numbers of the abstract the paper's tables could not be read; theirs have numbers that we do not know,
so ours have names.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from shared.experiment.paper import Grid
from shared.report import tables
from shared.report.choices import candidate_grid, choices
from shared.report.shown import YOURS, Filled, Shown, claimed, table, table_of, with_yours, yours

METHODS = {
    "none": "no defence",
    "pgd_at": "PGD-AT",
    "jpeg": "JPEG",
    "bits": "bit depth",
    "tv": "total variation",
    "resize_pad": "resize and pad",
    "noise": "noise only",
    "one_step": "one step, as released",
    "diffpure": "DiffPure",
    "gdmp": "GDMP",
    "distshift": "distshift",
}
named = partial(with_yours, METHODS)
BASELINE = "diffpure"
GUIDED = ("gdmp", "distshift")
RANDOM = ("resize_pad", "noise", "one_step", BASELINE, *GUIDED, YOURS)  # measured once per seed
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}
ATTACKS = {"pgd": "PGD", "autoattack": "AutoAttack-type"}
CLEAN = {"attack": "clean", "norm": "none", "eps": 0.0}
AGAINST = {
    "control": "nobody (control)",
    "transfer": "transfer",
    "square": "Square, black box",
    "bpda": "BPDA",
    "bpda_eot": "BPDA+EOT",
    "bpda_released": "BPDA+EOT, as released",
    "guide": "the guidance alone",
    "exact_first_order": "exact + EOT, guidance constant",
    "exact": "exact + EOT",
    "apgd": "exact + EOT, APGD",
}
ADAPTIVE = {
    "pgd_at": ("exact",),
    "one_step": ("control", "bpda_released"),
    "diffpure": ("control", "transfer", "bpda", "bpda_eot", "exact", "square"),
    "gdmp": ("control", "transfer", "bpda_eot", "exact"),
    "distshift": ("control", "transfer", "bpda", "bpda_eot", "exact", "exact_first_order", "guide", "square"),
}
ADAPTIVE_YOURS = ADAPTIVE["diffpure"]
STATES = {
    "clean": "clean (control)",
    "adversarial": "adversarial",
    "diffused": "adversarial, diffused",
    "diffpure": "adversarial, DiffPure",
    "purified": "adversarial, distshift",
    "purified_clean": "clean, distshift",
}
# Guidance with some fields changed; everything else as configured. "coup": as COUP released it (scale 1 on the score,
# x_t as it is); "g5-released": as the first author's code has it.
VARIANTS: dict[str, dict] = {
    "g5-released": {"kind": "G5", "domain": "x_t", "rescale": "native", "unit": "sample", "scale": 1 / 128},
    "g5-picture": {"kind": "G5", "domain": "x_t", "rescale": "native", "unit": "sample", "scale": 1.0},
    "g5-ratio": {"kind": "G5", "domain": "x_t"},
    "g1-x_adv": {"kind": "G1", "label": "x_adv", "domain": "x_t"},
    "g1-running": {"kind": "G1", "label": "running", "domain": "x_t"},
    "g1-strong": {"kind": "G1", "label": "running", "domain": "x_t", "scale": 0.3},
    "g1-moving": {"kind": "G1", "label": "moving", "domain": "x_t"},
    "g3-x_adv": {"kind": "G3", "label": "x_adv", "domain": "x0_hat"},
    "g3-running": {"kind": "G3", "label": "running", "domain": "x0_hat"},
    "g2-x_t": {"kind": "G2", "domain": "x_t"},
    "g2-x0_hat": {"kind": "G2", "domain": "x0_hat"},
    "g4-x_t": {"kind": "G4", "domain": "x_t"},
    "g4-x0_hat": {"kind": "G4", "domain": "x0_hat"},
    "unscaled": {"kind": "G1", "label": "running", "domain": "x_t", "rescale": "none"},
    "coup": {"kind": "G2", "domain": "x_t", "rescale": "none", "unit": "score", "scale": 1.0},
}
VARIANT_NAMES = {
    "g5-released": "G5, as released",
    "g5-picture": "G5, as released but for its batch (w = 1)",
    "g5-ratio": "G5 at x_t",
    "g1-x_adv": "G1, label of x_adv",
    "g1-running": "G1, label of x̂₀",
    "g1-strong": "G1, label of x̂₀, ratio 0.3",
    "g1-moving": "G1, label of x_t",
    "g3-x_adv": "G3 (G1 at x̂₀), label of x_adv",
    "g3-running": "G3 (G1 at x̂₀), label of x̂₀",
    "g2-x_t": "G2 at x_t",
    "g2-x0_hat": "G2 at x̂₀",
    "g4-x_t": "G4 at x_t",
    "g4-x0_hat": "G4 at x̂₀",
    "unscaled": "G1, label of x̂₀, x_t not rescaled",
    "coup": "G2 as COUP released it (scale 1 on the score)",
}


# ---- names -------------------------------------------------------------------------------------------------------------


def radius(c, norm: str) -> float:
    """ε of the main tables."""
    return c.attack.linf if norm == "linf" else c.attack.l2


def written(eps: float) -> str:
    """An ε as people write it."""
    return f"{eps * 255:g}/255"


def sets(c) -> tuple[str, ...]:
    """The sets of this run, in the order of the paper's tables."""
    return tuple(p.data for p in (c.models.first, c.models.second) if p.data)


def short(c, spec: str) -> str:
    """A set's name; that of ImageNet30 says which pictures it has."""
    if spec.startswith("scenes:"):
        return spec.replace(":", " ", 1)
    label = c.data.label if spec.startswith("folder:") else ""
    return label or getattr(getattr(c, "names", None), spec, None) or spec


def outcome(c: object, what: str, default: object) -> object:
    """What was chosen, once the plan has recorded it."""
    return getattr(getattr(c, "chosen", None), what, default)


def time(c) -> int:
    """t* of the first set."""
    return outcome(c, "t", c.models.first.t or c.choosing.times[0])


def victim(c, place: int) -> str:
    """What is protected, and guides."""
    p = (c.models.first, c.models.second)[place]
    weights = {"train": "trained here"}.get(p.weights, p.weights.removeprefix("zoo:").rpartition("/")[2])
    restricted = ", 1,000-way, restricted to the classes of the set" if p.restrict else ""
    return f"{p.arch.removeprefix('torchvision:')} ({weights}{restricted})"


def in_words(guidance) -> str:
    """A guidance in words."""
    label = {"x_adv": ", label of x_adv", "running": ", label of x̂₀", "moving": ", label of its own input"}[
        guidance.label
    ]
    shown = {"none": "", "x_t/alpha": "/α", "native": " in [−1, 1]"}[guidance.rescale]
    where = {"x_t": "x_t", "x0_hat": "x̂₀"}[guidance.domain] + shown
    return f"{guidance.kind} at {where}{label if guidance.kind in ('G1', 'G3') else ''}, {guidance.unit} {guidance.scale:g}"


# ---- rows and columns --------------------------------------------------------------------------------------------------


def rows(c, methods: Iterable[str] = METHODS) -> dict[str, dict]:
    """One method a row, the user's own last; what is not random is measured once."""
    return {
        label: {"method": m} if m in RANDOM else {"method": m, "seed": c.seeds[0]}
        for m, label in named(c, methods).items()
    }


def under(c, norm: str, attack: str = "pgd", times: float = 1.0) -> dict:
    """Tags of an attack in a ball of so many times the main tables' ε."""
    return {"attack": attack, "norm": norm, "eps": times * radius(c, norm)}


def conditions(c, attacks: Iterable[str] = ATTACKS) -> dict[str, dict]:
    """Columns of a table: clean, and each attack in each ball."""
    columns = {"clean": CLEAN}
    for norm, ball in NORMS.items():
        columns |= {f"{ATTACKS[a]}, {ball} {written(radius(c, norm))}": under(c, norm, a) for a in attacks}
    return columns


def on_first(c, kind: str, **tags: object) -> dict:
    """Tags of what is varied on the first set, with one seed."""
    return {**first_set(c, kind), "seed": c.seeds[0], **tags}


def first_set(c, kind: str) -> dict:
    """Tags of what is measured on the first set."""
    return {"kind": kind, "data": sets(c)[0]}


def both(c, norm: str) -> list[dict]:
    """Either attack in a ball, of which the mean is shown."""
    return [under(c, norm, attack) for attack in ATTACKS]


def of_place(c, place: int) -> dict:
    """Tags of the main numbers on a set; none where there is no such set."""
    return {"kind": "score", "data": sets(c)[place]}


# ---- tables ------------------------------------------------------------------------------------------------------------


def main_table(c, place: int) -> Shown:
    if len(sets(c)) <= place:
        return Shown({}, {})
    caption = (
        f"{short(c, sets(c)[place])}: accuracy (%). The bare victim, {victim(c, place)}, is attacked (gray box); "
        "PGD-AT is attacked itself. AutoAttack-type: APGD-CE, APGD-T, Square."
    )
    return Shown(rows(c), conditions(c), of_place(c, place), c.seeds, caption, interval="brackets")


@table
def first(c):
    return main_table(c, 0)


@table
def second(c):
    return main_table(c, 1)


@table
def oddity(c):
    """The paper's ℓ2 numbers are below its ℓ∞ numbers; what ours say."""
    attacked = ("none", "pgd_at")
    lines = {
        f"{short(c, s)}, {name}": {**tags, "data": s}
        for s in sets(c)
        for name, tags in rows(c, (*attacked, "diffpure", "distshift")).items()
    }
    columns: dict[str, object] = {"clean": {"kind": "score", **CLEAN}}
    columns |= {
        f"{ball}: accuracy": [{"kind": "score", **tags} for tags in both(c, norm)] for norm, ball in NORMS.items()
    }
    sizes = {
        f"{ball}: mean {name} norm": {"kind": "norm", "measure": measured, "seed": c.seeds[0], **under(c, norm)}
        for norm, ball in NORMS.items()
        for measured, name in NORMS.items()
    }

    def joined(row: Mapping, column: Mapping) -> dict | None:
        return None if column["kind"] == "norm" and row["method"] not in attacked else {**row, **column}

    caption = (
        "Is the ℓ2 ball the harder one? Accuracy (%), mean over both attacks, beside the clean accuracy of the same "
        "defence, and the sizes that the PGD perturbations came out with (in pixels; in the row of the attacked "
        "victim)."
    )
    options = {"factor": dict.fromkeys(sizes, 1), "digits": dict.fromkeys(sizes, 3), "interval": "pm", "joined": joined}
    return Shown(lines, columns | sizes, {}, c.seeds, caption, None, **options)


JUDGED = ("one", "mean", "worst", "majority")


def known(c, pairs: Mapping[str, Sequence[str]], judged: Mapping[str, dict]) -> Grid:
    """Attackers who know the defence: (method, attacker) × ways of judging, in every ball."""
    balls = {n: f", {NORMS[n]}" if len(c.adaptive.norms) > 1 else "" for n in c.adaptive.norms}
    lines = {
        f"{named(c)[m]}, {'exact' if m == 'pgd_at' else AGAINST[a]}{ball}": {
            "method": m,
            "against": a,
            **under(c, n, "adaptive"),
            **({} if m in RANDOM and a in HEADLINE_ADAPTIVE.get(m, ()) else {"seed": c.seeds[0]}),
        }
        for n, ball in balls.items()
        for m, attackers in pairs.items()
        for a in AGAINST
        if a in attackers
    }
    return Grid(lines, judged, first_set(c, "adaptive"), c.seeds)


def adversaries(c) -> dict[str, tuple[str, ...]]:
    """Defence -> attackers."""
    apgd = ("apgd",) if c.adaptive.apgd else ()
    everyone = ADAPTIVE | dict.fromkeys(yours(c), ADAPTIVE_YOURS)
    return {
        m: (*attackers, *apgd) if m in ("diffpure", "distshift", YOURS) else attackers
        for m, attackers in everyone.items()
    }


@table
def adaptive(c):
    a, where = c.adaptive, ", ".join(f"{NORMS[n]} {written(radius(c, n))}" for n in c.adaptive.norms)
    names = ("one", f"mean of {a.draws}", f"worst of {a.draws}", "majority")
    grid = known(c, adversaries(c), {name: {"judged": how} for name, how in zip(names, JUDGED, strict=True)})
    caption = (
        f"Attackers who know the defence: accuracy (%) on {a.n} pictures of {short(c, sets(c)[0])} (for claims of the "
        f"abstract: {a.headline_n}), {where}, {a.steps} steps, {a.eot} draws per gradient, after repeated purification "
        f"(Square: {a.square_n} pictures, {a.square_queries} queries). The control is not attacked: the worst of N "
        "falls with N even there."
    )
    return Shown(grid.rows, grid.columns, grid.common, grid.seeds, caption=caption, best=None)


def candidates(c: object, default: str = "chosen ({})") -> dict[str, dict]:
    """Rows of what compares guidances: the chosen and none, which the sweep of the scale has measured, and others."""
    return {
        default.format(outcome(c, "guidance", "")): {"kind": "scale", "scale": 1.0},
        "no guidance": {"kind": "scale", "scale": 0.0},
        **{VARIANT_NAMES[v]: {"kind": "variant", "variant": v} for v in VARIANTS},
    }


@table
def variants(c):
    caption = (
        f"Candidates for the guidance: accuracy (%) on {c.sweeps.n} pictures of {short(c, sets(c)[0])}, one seed. The "
        "label of x_adv is the attacker's class."
    )
    common = {"method": "distshift", "data": sets(c)[0], "seed": c.seeds[0]}
    return Shown(candidates(c), conditions(c, ("pgd",)), common, caption=caption, best=None)


GRIDS = {"time": "times", "guidance": "guidances", "pull": "pulls"}
CHOSEN = {"time": "t* (by DiffPure)", "guidance": "guidance of distshift", "pull": "scale of GDMP"}


def tried(c: object) -> Grid:
    """Every candidate of every choice: its score, and whether it was taken."""
    said = {
        title: [f"{CHOSEN[title]}: {VARIANT_NAMES.get(v) or f'{v:g}'}" for v in getattr(c.choosing, grid)]
        for title, grid in GRIDS.items()
    }
    return candidate_grid(said, {**on_first(c, "choice"), "attack": "validation", "norm": "none", "eps": 0.0})


@table_of(tried)
def settings(grid: Filled) -> tables.Table:
    """How settings were chosen."""
    c = grid.config
    caption = (
        "How settings were chosen: mean of the accuracy (%) on clean pictures and under PGD on the bare victim (both "
        f"balls), {c.choosing.n} pictures of every set, of its {c.choosing.split} part; no test picture. The highest "
        "counts, and of equal ones the first."
    )
    return choices(grid, caption)


# ---- as released -----------------------------------------------------------------------------------------------------


def released_conditions(c: object) -> dict[str, dict]:
    """Clean, the first author's PGD, and the cascade in both balls."""
    five = {f"PGD-{c.released.steps}, ℓ∞ {written(radius(c, 'linf'))}": under(c, "linf", "pgd_released")}
    cascade = {f"{ATTACKS['autoattack']}, {NORMS[n]} {written(radius(c, n))}": under(c, n, "autoattack") for n in NORMS}
    return {"clean": CLEAN, **five, **cascade}


@table
def released(c: object):
    """As the first author's code has it, before the paper."""
    lines = {
        "no defence": {"method": "none"},
        "one step": {"method": "one_step"},
        "one step, guided by G5": {"method": "one_step_guided"},
        "every step": {"method": "chain"},
        "every step, guided by G5": {"method": "chain_guided"},
    }

    def joined(row: Mapping, column: Mapping) -> dict | None:
        slow = row["method"].startswith("chain") and column["attack"] == "autoattack"
        return None if slow else {**row, **column}

    caption = (
        f"As the first author's code has it before the paper (t* = {c.released.t} of 4,000): accuracy (%) on "
        f"{c.released.n} pictures of {short(c, sets(c)[0])} (every step: {c.sweeps.n}). Its ℓ∞ attack is PGD with "
        f"{c.released.steps} steps of {written(c.released.step_size)}, its ℓ2 attack AutoAttack, on the bare victim."
    )
    return Shown(lines, released_conditions(c), on_first(c, "released"), caption=caption, best=None, joined=joined)


def state_names(c: object) -> dict[str, str]:
    """Of every state, with pictures behind the user's own."""
    return STATES | {m: f"adversarial, {label}" for m, label in yours(c).items()}


def states(c: object) -> Grid:
    """Both two-sample tests of every state."""
    where = {**first_set(c, "distribution"), **under(c, "linf")}
    columns = {"mmd2": {"quantity": "mmd2"}, "p": {"quantity": "p", "seed": c.seeds[0]}}
    return Grid({s: {"method": s} for s in state_names(c)}, columns, where, c.seeds)


@table_of(states)
def distribution(grid: Filled):
    """Two-sample tests."""
    c = grid.config
    lines = [
        (state_names(c)[s], [grid[s, "mmd2"], f"{grid[s, 'p'].value:.3f}"])
        for s in grid.rows
        if grid[s, "mmd2"] and grid[s, "p"]
    ]
    if not lines:
        return None
    caption = (
        f"Two-sample tests in the victim's features against {c.sweeps.features_n} other clean pictures of "
        f"{short(c, sets(c)[0])}: unbiased MMD² (mean over blocks of {c.sweeps.block}) and the p-value of "
        f"{c.sweeps.permutations} permutations, first seed."
    )
    return tables.Table(["MMD²", "p"], lines, factor=1, digits=3, caption=caption)


MEASURES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}


@table
def quality(c):
    columns = {
        f"{unit}, {name}": {**condition, "measure": measure}
        for measure, unit in MEASURES.items()
        for name, condition in conditions(c, ("pgd",)).items()
    }
    digits = {name: 1 if name.startswith("PSNR") else 3 for name in columns}
    shown = ("none", "jpeg", "tv", "noise", BASELINE, *GUIDED)
    caption = "Pictures behind the defence against the clean ones."
    where = first_set(c, "quality")
    return Shown(rows(c, shown), columns, where, c.seeds, caption, best=None, factor=1, digits=digits)


COSTS = ("denoiser_calls", "victim_calls", "seconds", "gradient_seconds")


def costs(c) -> Grid:
    """Every quantity of every diffusion defence."""
    where = {**on_first(c, "cost"), **under(c, "linf")}
    return Grid({m: {"method": m} for m in named(c, (BASELINE, *GUIDED))}, {q: {"quantity": q} for q in COSTS}, where)


@table_of(costs)
def cost(grid: Filled):
    """What purification costs."""
    measured, names = {m: grid.row(m) for m in grid.rows}, named(grid.config)
    lines = [
        (names[m], [*(e and f"{e.value:g}" for e in cells[:2]), *cells[2:]])
        for m, cells in measured.items()
        if all(cells[2:])
    ]
    if not lines:
        return None
    caption = "Cost per picture on the machine that measured, one batch, one process (processor time without a GPU). Intervals over repetitions."
    columns = ["denoiser passes", "victim passes", "purification (ms)", "exact gradient (ms)"]
    return tables.Table(columns, lines, factor=1000, interval="pm", caption=caption)


# ---- the headline ------------------------------------------------------------------------------------------------------

HEADLINE_ROWS = ("none", "pgd_at", "jpeg", "bits", "tv", "resize_pad", "diffpure", "distshift")
HEADLINE_ADAPTIVE = {"pgd_at": ("exact",), "distshift": ("control", "exact")}


def twice(c, methods: Iterable[str]) -> Grid:
    """Accuracy at twice the ε, which a claim of the abstract needs."""
    return Grid(rows(c, methods), {n: under(c, n, times=2.0) for n in NORMS}, first_set(c, "eps"), c.seeds)


def headline(c) -> list[Grid]:
    """What the claims of the abstract read."""
    pictures = Grid(
        rows(c, ("none", "distshift")),
        {q: {"measure": q, **under(c, "linf")} for q in MEASURES},
        first_set(c, "quality"),
        c.seeds,
    )
    main = [Grid(rows(c, HEADLINE_ROWS), conditions(c), of_place(c, place), c.seeds) for place in range(len(sets(c)))]
    everyone = HEADLINE_ADAPTIVE | dict.fromkeys(yours(c), ("control", "exact"))
    judged = known(c, everyone, {how: {"judged": how} for how in JUDGED})
    return [*main, twice(c, ("pgd_at", "distshift")), judged, pictures, states(c)]


@claimed
def larger(c) -> list[Grid]:
    """Both balls at twice the ε, whatever the figure over ε shows."""
    return [twice(c, ("pgd_at", "distshift"))]
