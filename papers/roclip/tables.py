"""What each table of RoCLIP shows, by the tags of its numbers; what is measured is read off here and off figures.py. No
model is loaded.

The paper's tables could not be read, so ours have names instead of numbers. A RoCLIP run stands in two rows: as it is
after its last RoCLIP epoch, and after its last plain epoch.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from shared.claims.selection import Selected
from shared.experiment.paper import Grid
from shared.report import tables
from shared.report.choices import choices
from shared.report.shown import Filled, Shown, pictures_in_words, table, table_of, with_yours, yours

if TYPE_CHECKING:
    from papers.roclip.config import Config

METHODS = {
    "clip": "CLIP",
    "clip_aug": "CLIP + augmentation",
    "roclip": "RoCLIP, two-sided",
    "released": "RoCLIP, released",
    "cleanclip": "CLIP, then CleanCLIP",
    "safeclip": "SafeCLIP (later; inferred)",
}
named = partial(with_yours, METHODS)
FEW = {
    "clip": "CLIP",
    "clip_aug": "CLIP + augmentation",
    "clip_stopped": "CLIP, stopped early",
    "roclip": "two-sided, K = 2",
    "roclip_always": "two-sided, K = 1",
    "before_v1": "before v1",
    "before_v1_large": "before v1, larger bank",
    "cross_modal": "cross-modal, two banks",
}
CHOSEN = {"roclip_always": "roclip", "before_v1_large": "before_v1"}  # whose settings these rows have
FEWER = {"kind": "few", "regime": "few"}
FEWER_SEEDS = ("cross_modal", "before_v1_large")
PLAIN = ("clip", "clip_aug")  # what gates read
MATCHED = ("roclip", "released")
HEADLINE = ("clip", "clip_aug", "roclip")
TRAINED = {
    "pretrain": ("clip", "clip_aug", *MATCHED, "safeclip"),
    "finetune": ("clip", "clip_aug", "roclip", "cleanclip"),
}
COSTED = ("clip_aug", *MATCHED)  # of a step at equal augmentation
EITHER = ("roclip_epoch", "plain_epoch")
SCORED = {"last": "", "roclip_epoch": ", RoCLIP epoch", "plain_epoch": ", plain epoch"}
REGIMES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
ATTACKS = {
    "badnet": "BadNet",
    "blended": "Blended",
    "wanet": "WaNet",
    "sig": "SIG",
    "label_consistent": "label-consistent",
}
SWEEPS = {
    "pool": "pool",
    "every": "K",
    "sides": "matched",
    "augment": "augmented",
    "query": "asked with",
    "start": "pool starts with",
    "refresh": "pool refreshed",
}
VALUES = {
    ("sides", "image"): "pictures",
    ("sides", "text"): "captions",
    ("sides", "both"): "both sides",
    ("augment", "none"): "nothing",
    ("augment", "images"): "pictures",
    ("augment", "both"): "pictures, captions",
    ("query", "own"): "own modality",
    ("query", "cross"): "the other",
    ("start", "pairs"): "pairs",
    ("start", "unit"): "unit noise",
    ("start", "gaussian"): "noise",
    ("refresh", "matched"): "RoCLIP epochs",
    ("refresh", "always"): "all epochs",
}
PSR = {"measure": "psr", "attack": "targets"}
ACCURACY = {"measure": "accuracy", "attack": "none"}
EPOCHS = "RoCLIP epoch, plain epoch: the run as it is after its last epoch of either kind."


# ---- names -----------------------------------------------------------------------------------------------------------


def backdoors(c) -> dict[str, str]:
    """The backdoors that are planted, with the names of their triggers."""
    return {a: name for a, name in ATTACKS.items() if getattr(c.attacks, a).rate}


def demanded(c) -> list[str]:
    """Those of them that must take."""
    return [a for a in backdoors(c) if a in c.gates.attacks]


def further(c) -> tuple[int, ...]:
    """The seeds of what has fewer: SafeCLIP, which takes twice as long, the downstream table of fine-tuning, and
    variants in the world of few targets."""
    return c.seeds[: c.more_seeds or None]


def short(spec: str) -> str:
    """A set's name in a table's head."""
    name = spec.partition(":")[2]
    return "digits" if spec.startswith("digits") else name.replace("_", " ")


def share(x: float) -> str:
    """A share as people write it."""
    return f"{100 * x:.2g} %" if x < 0.1 else f"{100 * x:.0f} %"


def value(sweep: str, v: float | str) -> str:
    """A point of a sweep in words."""
    return share(v) if sweep == "pool" else VALUES.get((sweep, v), f"{v}")


def in_name(v: float | str) -> str:
    """A point of a sweep in the name of a file."""
    return f"{v:g}".replace("-", "m") if isinstance(v, float) else str(v)


def default(c, sweep: str) -> float | str:
    """Where a sweep passes through the defaults."""
    matching = c.methods.roclip
    if sweep == "pool":
        return matching.share if matching.share is not None else matching.size / c.data.pretrain_n
    if sweep == "augment":
        return "both" if c.methods.alpha else "images"
    return getattr(matching, sweep)


def rate(c, m: int) -> float:
    """The share of target pairs among all pairs of pre-training, with m captions per target image."""
    added = c.attacks.targets.n * m
    return added / (added + c.data.pretrain_n)


def poison(c, regime: str) -> str:
    """In words, what the poisoned pairs of a regime are."""
    targets = c.attacks.targets
    clean, m = (c.data.pretrain_n, targets.m) if regime == "pretrain" else (c.data.finetune_n, targets.finetune_m)
    rates = {name: getattr(c.attacks, a).rate for a, name in backdoors(c).items()}
    if len(set(rates.values())) == 1:
        said = f"{share(next(iter(rates.values())))} each have a backdoor ({', '.join(rates)})"
    else:
        said = f"some have a backdoor ({', '.join(f'{name} {share(one)}' for name, one in rates.items())})"
    part = share(targets.n * m / (clean + targets.n * m))
    return f"{clean:,} pairs, of which {said}, and {targets.n} target images with {m} captions ({part} of all)"


def trained(c: object, regime: str) -> tuple[str, ...]:
    """The methods of a regime, with the user's own."""
    return (*TRAINED[regime], *yours(c))


# ---- rows and columns ------------------------------------------------------------------------------------------------


def runs(
    c, methods: Iterable[str], either: Sequence[str] = EITHER, other: str = "last"
) -> dict[str, dict | list[dict]]:
    """A row per method and, of RoCLIP, per kind of epoch. other: what an epoch of the others is."""
    rows: dict[str, dict | list[dict]] = {}
    for m in methods:
        for scored in either if m in MATCHED else (other,):
            tags = {"method": m, "scored": scored}
            few = [{**tags, "seed": s} for s in further(c)]
            rows[named(c)[m] + SCORED[scored]] = few if m == "safeclip" else tags
    return rows


def poisoning(c) -> dict[str, dict]:
    """Success of targeted poisoning, and of every backdoor."""
    return {"targeted": PSR, **{name: {"measure": "bsr", "attack": a} for a, name in backdoors(c).items()}}


def scores(c, regime: str, methods: Iterable[str]) -> Grid:
    """A main table."""
    targeted, *planted = poisoning(c).items()
    columns = {"accuracy": ACCURACY, "PSR": targeted[1], **{f"BSR, {name}": tags for name, tags in planted}}
    taken = demanded(c)
    columns[f"BSR, mean of {len(taken)}"] = [{"measure": "bsr", "attack": a} for a in taken]
    pairs = {"targets": "poisoned", "none": "clean"}
    columns |= {f"cosine, {name} pairs": {"measure": "similarity", "attack": a} for a, name in pairs.items()}
    return Grid(runs(c, methods), columns, {"kind": "score", "regime": regime}, c.seeds)


def sets(c, measure: str) -> list[str]:
    """The sets of zero-shot accuracy, or those of the linear probe."""
    return [*c.data.downstream, *(c.data.probed if measure == "linear_probe" else ())]


def downstream(c, regime: str, measure: str, methods: Iterable[str], either: Sequence[str] = EITHER) -> Grid:
    """Set by set, and in the mean."""
    columns: dict[str, dict | list[dict]] = {short(spec): {"data": spec} for spec in sets(c, measure)}
    columns["mean"] = list(columns.values())
    common = {"kind": "downstream", "regime": regime, "measure": measure, "attack": "none"}
    return Grid(runs(c, methods, either), columns, common, c.seeds if regime == "pretrain" else further(c))


def by_epochs(c, regime: str, asked: dict | None) -> Grid:
    """After every epoch, as measured in training. Of the two rows of RoCLIP one has a number: an epoch is of one
    kind."""
    if asked is None:
        return Grid({}, {})
    rows = runs(c, (m for m in trained(c, regime) if m != "cleanclip"), other="plain_epoch")
    epochs = (c.pretraining if regime == "pretrain" else c.finetuning).epochs
    columns = {str(e): {"epoch": e} for e in range(1, epochs + 1)}
    return Grid(rows, columns, {"kind": "epoch", "regime": regime, **asked}, c.seeds)


def after(filled: Filled, method: str, epoch: str) -> Selected | None:
    """What such a grid has of a method after an epoch of whichever kind."""
    rows = [named(filled.config)[method] + SCORED[scored] for scored in EITHER]
    return next((found for row in rows if row in filled.rows and (found := filled.values(row, epoch))), None)


def strengths(c) -> dict[str, dict]:
    """The doses of strong poisoning: share of target pairs -> tags. The usual number of captions is not said."""
    usual = c.attacks.targets.m
    return {f"{share(rate(c, m))} ({m} captions)": {} if m == usual else {"m": m} for m in sorted(c.sweeps.strong)}


def frequencies(c) -> dict[str, dict]:
    """The rows of strong poisoning: the released version with every K and kind of epoch. The usual K is not said."""
    rows = {METHODS["clip_aug"]: {"method": "clip_aug", "scored": "last"}}
    for every in sorted(c.sweeps.strong_every):
        tags = {"method": "released"} if every == c.methods.released.every else {"method": "released", "every": every}
        for scored in EITHER:
            rows[f"{METHODS['released']}, K = {every}{SCORED[scored]}"] = {**tags, "scored": scored}
    return rows | {label: {"method": m, "scored": "last"} for m, label in yours(c).items()}


def few_names(c: "Config") -> dict[str, str]:
    """The readings of the first version, and the controls, in the world of few targets."""
    names = {**FEW, "roclip": f"two-sided, K = {c.methods.roclip.every}"}
    names["before_v1"] += f", bank of {c.methods.before_v1.size:,}"
    names["before_v1_large"] = f"before v1, bank of {c.few.large:,}"
    names["cross_modal"] = f"cross-modal, two banks of {c.methods.cross_modal.size:,}"
    return names


def few_runs(c: "Config") -> dict[str, dict | list[dict]]:
    """A row for each of these, at the end of training."""
    rows: dict[str, dict | list[dict]] = {}
    for method, name in few_names(c).items():
        tags = {"method": method, "scored": "stopped" if method == "clip_stopped" else "last"}
        rows[name] = [{**tags, "seed": s} for s in further(c)] if method in FEWER_SEEDS else tags
    return rows | {label: {"method": m, "scored": "last"} for m, label in yours(c).items()}


def few_grid(c: "Config", columns: dict[str, dict]) -> Grid:
    """Numbers of that world."""
    return Grid(few_runs(c), columns, FEWER, c.seeds)


STRONG = {"kind": "strong", "regime": "pretrain"}
ABLATION = {"kind": "ablation", "regime": "pretrain", "method": "roclip"}


def points(c, sweep: str) -> dict[str, dict]:
    """The rows of a sweep of the two-sided version."""
    return {f"{SWEEPS[sweep]}: {value(sweep, v)}": {"sweep": sweep, "value": v} for v in getattr(c.sweeps, sweep)}


# ---- tables ----------------------------------------------------------------------------------------------------------


def main_table(c, regime: str) -> Shown:
    grid = scores(c, regime, trained(c, regime))
    cosine = [column for column in grid.columns if column.startswith("cosine")]
    taken = ", ".join(ATTACKS[a] for a in demanded(c))
    caption = (
        f"{REGIMES[regime].capitalize()} on {poison(c, regime)}: zero-shot accuracy, success of targeted poisoning "
        "(PSR) and of backdoors (BSR) in %; cosine of pairs over that with other captions. The mean is over the "
        f"backdoors that the gates demand ({taken}). {EPOCHS}{pictures_in_words(c)}"
    )
    look = {"factor": dict.fromkeys(cosine, 1), "digits": dict.fromkeys(cosine, 2), "interval": "pm"}
    return Shown(grid.rows, grid.columns, grid.common, grid.seeds, caption, None, **look)


@table
def pretrain(c):
    return main_table(c, "pretrain")


@table
def finetune(c):
    return main_table(c, "finetune")


def downstream_table(c, regime: str, measure: str) -> Shown:
    grid = downstream(c, regime, measure, trained(c, regime))
    whats = {
        "accuracy": "Zero-shot accuracy",
        "linear_probe": "Accuracy of a linear probe on projected features that are not normalised",
    }
    caption = (
        f"{whats[measure]} (%) on {len(grid.columns) - 1} sets after {REGIMES[regime]} on poisoned pairs. {EPOCHS}"
    )
    return Shown(grid.rows, grid.columns, grid.common, grid.seeds, caption, interval="pm")


@table
def zero_shot(c):
    return downstream_table(c, "pretrain", "accuracy")


@table
def probe(c):
    return downstream_table(c, "pretrain", "linear_probe")


@table
def zero_shot_finetuned(c):
    return downstream_table(c, "finetune", "accuracy")


@table
def probe_finetuned(c):
    return downstream_table(c, "finetune", "linear_probe")


@table_of(lambda c: by_epochs(c, "pretrain", PSR))
def by_epoch(filled: Filled):
    """PSR by epoch, pre-training."""
    methods = filled.config.methods
    names = named(filled.config)
    rows = {names[m]: [after(filled, m, e) for e in filled.columns] for m in trained(filled.config, "pretrain")}
    caption = (
        f"PSR (%) by epoch of pre-training. Of RoCLIP's epochs every {_nth(methods.roclip.every)} is a RoCLIP epoch "
        f"(released: every {_nth(methods.released.every)})."
    )
    interval = "none" if len(filled.columns) > 12 else "pm"
    return tables.of_values(rows, filled.columns, None, corner="after epoch", interval=interval, caption=caption)


def _nth(k: int) -> str:
    return {1: "one", 2: "second", 3: "third"}.get(k, f"{k}th")


@table
def few(c: "Config"):
    columns = {"epochs": {"measure": "epochs", "attack": "none"}, "PSR": PSR, "accuracy": ACCURACY}
    columns |= {short(spec): {**ACCURACY, "data": spec} for spec in c.few.sets}
    pairs = {"targets": "poisoned", "none": "clean"}
    cosines = {f"cosine, {name} pairs": {"measure": "similarity", "attack": a} for a, name in pairs.items()}
    grid = few_grid(c, columns | cosines)
    caption = (
        f"The world of few targets: {c.few.pairs:,} clean pairs and {c.few.targets} target images, each with as many "
        "captions as plain CLIP with and without augmentation had to be given (see how the dose was chosen); no "
        "backdoors. Success (PSR) and zero-shot accuracy in % at the end of training; cosine of pairs over that with "
        "other captions. Pools without augmentation. Stopped early: by validation accuracy alone, "
        f"{100 * c.few.stop.least:g} point or more within {c.few.stop.patience} epochs."
    )
    factor = {"epochs": 1, **dict.fromkeys(cosines, 1)}
    look = {"factor": factor, "digits": dict.fromkeys(cosines, 2), "interval": "pm"}
    return Shown(grid.rows, grid.columns, grid.common, grid.seeds, caption, None, **look)


@table
def dose(c: "Config"):
    columns = {"PSR": {"measure": "psr"}, "chosen": {"measure": "chosen"}}
    caption = (
        "How the dose of the world of few targets was chosen: captions per target image, in their order; PSR (%) of "
        "plain CLIP with augmentation or without, whichever is lower, on the first seed (of one that fails with "
        f"augmentation the other is not tried). Chosen (1): the first of {100 * (c.gates.psr + c.few.margin):g} % or "
        "more; those after it are not tried (0)."
    )
    common = {"kind": "dose", "regime": "few", "method": "clip", "attack": "targets", "scored": "last"}
    rows = {f"{m} captions ({share(few_rate(c, m))} of all pairs)": {"m": m} for m in c.few.doses}
    return Shown(rows, columns, common, c.seeds[:1], caption, None, factor={"chosen": 1}, digits={"chosen": 0})


def chosen_rows(c: "Config") -> dict[str, dict]:
    """The candidates of every method whose learning rate is chosen, in every regime that has it."""
    regimes = REGIMES | {"few": "few targets"} if c.choosing.multiples else {}
    of_few = {m: name for m, name in few_names(c).items() if m not in (*CHOSEN, "clip_stopped")} | yours(c)
    return {
        f"{name}, {title}, lr × {times:g}": {"regime": regime, "method": m, "value": times}
        for regime, title in regimes.items()
        for m, name in (of_few if regime == "few" else {m: named(c)[m] for m in trained(c, regime)}).items()
        for times in c.choosing.multiples
    }


def tried(c: "Config") -> Grid:
    """Every candidate of every choice."""
    common = {"kind": "choice", "attack": "none", "scored": "last"}
    return Grid(chosen_rows(c), {m: {"measure": m} for m in ("score", "taken")}, common, c.seeds[:1])


@table_of(tried)
def settings(grid: Filled):
    """How learning rates were chosen."""
    c = grid.config
    rates = {
        "pre-training": c.pretraining.lr,
        "fine-tuning": c.finetuning.lr,
        "CleanCLIP": c.methods.cleanclip.lr,
        "few targets": c.few.training.lr,
    }
    said = ", ".join(f"{what} {lr:g}" for what, lr in rates.items())
    caption = (
        f"How settings were chosen: zero-shot accuracy (%) on {c.choosing.n or 'all'} clean validation pictures of "
        f"the main set, by multiple of the peak learning rate ({said}), of candidates trained on one in "
        f"{c.choosing.part} of the pairs (CleanCLIP: clean ones) through all epochs, first seed. The best is taken "
        "for all seeds, and by what varies a method (K, the bank, the dose of strong poisoning). With few targets "
        "candidates have the smallest dose."
    )
    return choices(grid, caption, growing=True, by=("regime", "method"))


def few_rate(c: "Config", m: int) -> float:
    """The share of target pairs among all pairs of that world, with m captions per target image."""
    return c.few.targets * m / (c.few.targets * m + c.few.pairs)


@table
def strong(c):
    measures = {"PSR": PSR, "accuracy": ACCURACY}
    columns = {}
    for dose, tags in strengths(c).items():
        columns |= {f"{dose}: {name}": {**tags, **asked} for name, asked in measures.items()}
    caption = (
        "Strong poisoning in pre-training: success (PSR) and zero-shot accuracy in %, by the share of target pairs "
        f"among all. K: every so many epochs is a RoCLIP epoch. One seed. {EPOCHS}"
    )
    return Shown(frequencies(c), columns, STRONG, c.seeds[:1], caption, None)


@table
def ablation(c):
    measures = {"PSR": PSR}
    for attack, name in list(backdoors(c).items())[:1]:
        measures[f"BSR, {name}"] = {"measure": "bsr", "attack": attack}
    measures["accuracy"] = ACCURACY
    columns = {f"{name}{SCORED[s]}": {**asked, "scored": s} for s in EITHER for name, asked in measures.items()}
    rows = {}
    for sweep in SWEEPS:
        for label, tags in points(c, sweep).items():
            rows[f"{label} (default)" if tags["value"] == default(c, sweep) else label] = tags
    caption = (
        "One setting of the two-sided RoCLIP at a time (pre-training, one seed): success of the poisons and zero-shot "
        f"accuracy in %. Pool: entries as a share of the pairs. K = 1 has no plain epoch. {EPOCHS}"
    )
    return Shown(rows, columns, ABLATION, c.seeds[:1], caption, None)


@table
def returned(c):
    quantities = {"same_class": "names the class (%)", "cosine": "cosine"}
    pairs = {"targets": "poisoned", "none": "clean"}
    columns = {}
    for quantity, name in quantities.items():
        columns |= {f"{what}: {name}": {"measure": quantity, "attack": a} for a, what in pairs.items()}
    trained = [(m, r) for m in MATCHED for r in REGIMES if m in TRAINED[r]]
    rows = {f"{METHODS[m]}, {REGIMES[r]}": {"method": m, "regime": r} for m, r in trained}
    cosine = [column for column in columns if column.endswith("cosine")]
    caption = (
        "What the text pool returns for a picture at the end of training: does that caption name the class that the "
        "picture's own caption names (of a poisoned pair: the adversarial class), and its cosine with what the pool "
        "was asked with (two-sided: the pair's caption; released: the picture)."
    )
    look = {"factor": dict.fromkeys(cosine, 1), "digits": dict.fromkeys(cosine, 2)}
    return Shown(rows, columns, {"kind": "returned", "scored": "last"}, c.seeds[:1], caption, None, **look)


def costs(c) -> Grid:
    """An update of every method."""
    common = {"kind": "cost", "regime": "pretrain", "attack": "none", "scored": "last"}
    return Grid({m: {"method": m} for m in (*COSTED, *yours(c))}, {"step": {"measure": "seconds"}}, common, c.seeds[:1])


@table_of(costs)
def cost(filled: Filled):
    """Seconds of an update."""
    found = {m: filled.values(m, "step") for m in filled.rows}
    plain = found["clip_aug"]
    lines = []
    for m, seconds in found.items():
        if seconds:
            times = seconds.over(plain) if plain and m != "clip_aug" else "1"
            lines.append((named(filled.config)[m], [seconds.mean().scaled(1000), times]))
    if not lines:
        return None
    caption = (
        "An update at equal augmentation on the machine that measured (RoCLIP: of a RoCLIP epoch; processor time "
        "without a GPU). Intervals over repetitions."
    )
    columns = ["step (ms)", "over CLIP + augmentation"]
    return tables.Table(columns, lines, factor=1, digits={columns[1]: 3}, interval="brackets", caption=caption)


def headline(c) -> list[Grid]:
    """What the claims of the abstract read."""
    methods = (*HEADLINE, *yours(c))
    main = [scores(c, regime, methods) for regime in REGIMES]
    return [*main, *(downstream(c, "pretrain", measure, methods) for measure in ("accuracy", "linear_probe"))]
