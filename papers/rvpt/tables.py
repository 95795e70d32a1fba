"""What each table of RVPT shows, by the tags of its numbers, numbered as in the paper; what is measured is read off
here and off figures.py.

The rows `clean CLIP` (nobody poisoned it) and `VPT` (prompts without repulsion) stand in every table where they are
measured; the paper has them in some. Numbers that the paper prints are held against ours below the claims
(`claims.yaml`, reference tables). No model is loaded.

A number's tags: kind, method, attack, measure, backbone; place: whose target class is planted; at: the place, or
shift1 … shift4, whose pictures are seen; tuned: the place of the few shots; and what is changed of the defence
(`changes_of`) or varied beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from shared.experiment.paper import Grid, Tags
from shared.report.shown import YOURS, Filled, Shown, pictures_in_words, table, table_of, with_yours, yours
from shared.report.tables import Table

METHODS = {
    "clean": "clean CLIP",
    "none": "no defence",
    "cleanclip": "CleanCLIP",
    "linear_probe": "linear probe",
    "vpt": "VPT",
    "rvpt": "RVPT",
}
named = partial(with_yours, METHODS)
DEFENCES = ("cleanclip", "linear_probe", "vpt", "rvpt")  # of which the best is bold
ATTACKS = {
    "badnet": "BadNet",
    "blended": "Blended",
    "issba": "ISSBA",
    "wanet": "WaNet",
    "trojvqa": "TrojVQA",
    "badclip": "BadCLIP",
    "sig": "SIG",
    "badnet_textbook": "BadNet, textbook",
    "blended_textbook": "Blended, textbook",
    "badclip_published": "BadCLIP, published patch",
}
SIX = tuple(ATTACKS)[:6]  # the paper's, in its order
FURTHER = ("badnet", "blended", "wanet")  # on its two further sets
THREE = ("badnet", "blended", "badclip")  # in most of its other tables
MORE = tuple(ATTACKS)[6:9]  # ours
OPTIMISED = ("trojvqa", "badclip")  # whose patch is optimised on the clean CLIP
PLACES = ("main", "second", "third")
BACKBONES = ("first", "second", "third")
AGAINST = {"planted": "BadCLIP's patch as planted", "knowing": "a patch optimised through the model"}
ASR, CA, TA = ("asr", "ASR", "min"), ("ca", "CA", "max"), ("ta", "accuracy", "max")
HERE = {"backbone": "first", "place": "main", "at": "main", "tuned": "main"}
MAIN = {"kind": "score", **HERE}


# ---- names -----------------------------------------------------------------------------------------------------------


def name_of(spec: str) -> str:
    """A set's name as people write it."""
    return spec.removeprefix("scenes:").removeprefix("named:").replace("_", " ")


def place(c, name: str):
    """main, second or third, or that of a shift."""
    return c.data.main if name.startswith("shift") else getattr(c.data, name)


def spec_of(c, at: str) -> str:
    """The set of a place, or of shift1 … shift4."""
    return c.data.shifted[int(at.removeprefix("shift")) - 1] if at.startswith("shift") else place(c, at).data


def place_name(c, at: str) -> str:
    """The same as people write it."""
    return name_of(spec_of(c, at))


def places(c, among: Sequence[str] = PLACES) -> list[str]:
    """The places that have a set."""
    return [name for name in among if place(c, name).data]


def backbones(c) -> list[str]:
    """The backbones that are there."""
    return [name for name in BACKBONES if getattr(c.models, name).name]


def attacked(c) -> list[str]:
    """The attacks of the first table, with ours."""
    published = ["badclip_published"] if c.attacks.published_patch else []
    return [*SIX, *(attack for attack in MORE if attack in c.attacks.more), *published]


def further(c) -> Sequence[int]:
    """The seeds of the tables beyond the first."""
    return c.seeds[: c.more_seeds or None]


def setting(c, name: str = "main") -> str:
    """The set of a place, what is planted there, and the first backbone."""
    return f"{place_name(c, name)}, target “{place(c, name).target}”, {c.models.first.name}"


# ---- rows and columns ------------------------------------------------------------------------------------------------


def there(name: str) -> dict[str, str]:
    """Planted at a place, seen there, and tuned there."""
    return {"place": name, "at": name, "tuned": name}


def rows(c, names: Iterable[str] = METHODS) -> dict[str, dict]:
    """Methods, the user's own last; a model that nobody poisoned is measured once."""
    return {
        label: {"method": m, **({"seed": c.seeds[0]} if m == "clean" else {})} for m, label in named(c, names).items()
    }


def attacks(names: Iterable[str]) -> dict[str, dict]:
    """Attacks by their names."""
    return {ATTACKS[name]: {"attack": name} for name in names}


def elsewhere(c) -> dict[str, dict]:
    """The further sets under each of their attacks."""
    return {
        f"{place_name(c, p)}, {ATTACKS[a]}": {"attack": a, **there(p)} for p in places(c, PLACES[1:]) for a in FURTHER
    }


def seeded(tags: Tags, seeds: Iterable[int]) -> list[dict]:
    """The same number for some seeds."""
    return [{**tags, "seed": seed} for seed in seeds]


def beside(
    lines: Mapping[str, Tags],
    groups: Mapping[str, Tags | Sequence[Tags]],
    common: Tags,
    seeds: Sequence[int],
    caption: str,
    measures: Sequence[tuple[str, str, str]] = (ASR, CA),
    defences: Sequence[str] = (),
    **options: object,
) -> Shown:
    """Measures side by side under each group: "BadNet: ASR", "BadNet: CA", … . Bold: the best of the rows whose method
    is among `defences`.
    """
    columns, best = {}, {}
    for group, tags in groups.items():
        for measure, name, sense in measures:
            label = f"{group}: {name}" if group else name
            several = [tags] if isinstance(tags, Mapping) else tags
            columns[label] = [{**one, "measure": measure} for one in several]
            best[label] = sense
    rivals = (*defences, YOURS) if defences else ()
    among = [label for label, row in lines.items() if row.get("method") in rivals]
    return Shown(lines, columns, common, seeds, caption, best, among=among, **options)


# ---- tables ----------------------------------------------------------------------------------------------------------


@table
def t1(c):
    return beside(
        rows(c),
        attacks(SIX),
        MAIN,
        c.seeds,
        f"Table 1. ASR and clean accuracy (%) on {setting(c)}. ASR: triggered pictures of other "
        "classes that are taken for the target. A linear probe has no text tower, which TrojVQA's trigger also needs."
        + pictures_in_words(c),
        defences=DEFENCES,
    )


@table
def t2(c):
    where = "; ".join(setting(c, p) for p in places(c, PLACES[1:]))
    return beside(
        rows(c),
        elsewhere(c),
        {"kind": "score", "backbone": "first"},
        further(c),
        "Table 2. ASR and clean accuracy (%) on further sets, each with its own target and its own poisoned models: "
        f"{where}.",
        defences=DEFENCES,
    )


@table
def t3(c):
    return beside(
        rows(c),
        attacks(THREE),
        MAIN,
        c.seeds,
        f"Table 3. Accuracy (%) on triggered pictures, {place_name(c, 'main')}.",
        (TA,),
        DEFENCES,
    )


@table
def t4(c):
    groups = {}
    for p in places(c):
        groups[f"{place_name(c, p)}, without it"] = seeded(
            {"kind": "emerging", **there(p), "without_target": 1}, further(c)
        )
        groups[f"{place_name(c, p)}, with it"] = seeded({"kind": "score", **there(p)}, further(c))
    lines = {
        f"{ATTACKS[a]}, {label}": {"attack": a, "method": m}
        for a in (*FURTHER, "badclip")
        for m, label in named(c, ("vpt", "rvpt")).items()
    }

    def joined(row: Tags, column: Tags) -> dict | None:
        return {**row, **column} if row["attack"] in FURTHER or column["place"] == "main" else None

    return beside(
        lines,
        groups,
        {"backbone": "first"},
        (),
        "Table 4. An emerging target class: prompts without and with shots of the target class, "
        "ASR and clean accuracy (%).",
        joined=joined,
    )


@table
def t5(c):
    here = place_name(c, "main")
    lines = {
        "no defence": {"kind": "score", "method": "none"},
        "CleanCLIP": {"kind": "score", "method": "cleanclip"},
        f"VPT, tuned on {here}": {"kind": "cross", "method": "vpt", "tuned": "main"},
        f"RVPT, tuned on {here}": {"kind": "cross", "method": "rvpt", "tuned": "main"},
        "VPT, tuned there": {"kind": "score", "method": "vpt"},
        "RVPT, tuned there": {"kind": "score", "method": "rvpt"},
    }
    for m, label in yours(c).items():
        lines[f"{label}, tuned on {here}"] = {"kind": "cross", "method": m, "tuned": "main"}
        lines[f"{label}, tuned there"] = {"kind": "score", "method": m}
    return beside(
        lines,
        elsewhere(c),
        {"backbone": "first"},
        further(c),
        "Table 5. Prompts on other sets than they were tuned on: ASR and clean accuracy (%).",
        joined=lambda row, column: {**column, **row},
    )


@table
def t6(c):
    lines = {
        f"{place_name(c, at)}, {label}": {"at": at, "method": m}
        for at in (f"shift{k + 1}" for k in range(len(c.data.shifted)))
        for m, label in named(c, ("none", "cleanclip", "vpt", "rvpt")).items()
    }
    return beside(
        lines,
        attacks(THREE),
        {**HERE, "kind": "shifted"},
        c.seeds,
        f"Table 6. Other domains, prompts tuned on {place_name(c, 'main')}: ASR and clean accuracy (%).",
    )


@table
def t7(c):
    shown = {
        "caption": {"asr": "ASR", "cider": "CIDEr-D", "bleu": "BLEU-4"},
        "retrieval": {"asr": "ASR", "rank_ratio": "rank ratio", "ca": "CA"},
    }
    towers = {"caption": c.models.captioner_tower, "retrieval": "first"}
    there = {"caption": c.models.captioner, "retrieval": c.data.retrieval}
    columns = {
        f"{'captions' if kind == 'caption' else kind}: {name}": {
            "kind": kind,
            "measure": measure,
            "backbone": towers[kind],
        }
        for kind, measures in shown.items()
        for measure, name in measures.items()
        if there[kind]
    }
    attack = c.attacks.downstream
    return Shown(
        rows(c, ("clean", "none", "cleanclip", "vpt", "rvpt")),
        columns,
        {**HERE, "attack": attack},
        c.seeds[:1],
        f"Table 7. Downstream, {ATTACKS[attack]}: a captioner with the model's tower (ASR: the caption of a triggered "
        "picture names the target; CIDEr-D × 100 and BLEU-4 on clean ones), and retrieval (ASR: the poisoned picture "
        "is among the first ten for captions of the target; rank ratio: share of the target's clean pictures ahead of "
        "it, higher is better; CA: first picture for its own caption). One seed.",
        best=None,
        factor={column: 1 if column == "captions: CIDEr-D" else 100 for column in columns},
    )


def tunings(c) -> Grid:
    """Each fine-tuning without and with the repulsion."""
    pairs = {
        "few shots, whole vision tower": ("full", "full_fr"),
        "pairs, InfoNCE, whole CLIP": ("infonce", "infonce_fr"),
        "few shots, prompts": ("vpt", "rvpt"),
    }
    columns = {
        f"{label} FR: {name}": {"with": k, "measure": q}
        for k, label in enumerate(("without", "with"))
        for q, name, _ in (ASR, CA)
    }

    def joined(row: Tags, column: Tags) -> dict:
        method = row["methods"][column["with"]]
        return {"kind": "score" if method in METHODS else "tuning", "method": method, "measure": column["measure"]}

    return Grid(
        {label: {"methods": methods} for label, methods in pairs.items()},
        columns,
        {**HERE, "attack": "badclip"},
        c.seeds[:1],
        joined=joined,
    )


@table_of(tunings)
def t8(grid: Filled):
    """The headline measures prompts alone, which are no table."""
    found = grid.series()
    if set(found) <= {"few shots, prompts"}:
        return None
    return Table(
        grid.columns,
        list(found.items()),
        f"Table 8. What the repulsion L_FR adds to each fine-tuning, BadCLIP, "
        f"{place_name(grid.config, 'main')} (%). One seed.",
    )


COSTS = {
    "seconds": "seconds",
    "memory": "memory (MB)",
    "trained": "trained parameters",
    "share": "of all but the token table (%)",
    "share_whole": "of all (%)",
    "samples": "pictures",
}


@table
def t9(c):
    lines = {
        "CleanCLIP": {"method": "cleanclip", **there("main")},
        f"VPT, {place_name(c, 'main')}": {"method": "vpt", **there("main")},
        **{f"RVPT, {place_name(c, p)}": {"method": "rvpt", **there(p)} for p in places(c, ("main", "third"))},
        **{label: {"method": m, **there("main")} for m, label in yours(c).items()},
    }

    def joined(row: Tags, column: Tags) -> dict | None:
        return None if row["method"] == "cleanclip" and "share" in column["measure"] else {**row, **column}

    digits = {label: 3 if "share" in q else 0 if q in ("trained", "samples") else 1 for q, label in COSTS.items()}
    return Shown(
        lines,
        {label: {"measure": q} for q, label in COSTS.items()},
        {"kind": "cost", "attack": "badnet", "backbone": "first"},
        c.seeds[:1],
        "Table 9. What a defence costs on the machine that measured: one process, a few updates scaled to the whole "
        "schedule; processor time and the memory kept for the backward pass without a GPU.",
        best=None,
        interval="none",
        digits=digits,
        factor={label: 100 if "share" in q else 1 for q, label in COSTS.items()},
        joined=joined,
    )


@table
def t10(c):
    lines = {
        f"“{p.format('CLS')}”, {label}": {"kind": "hand", "prompt": k, "method": m}
        for k, p in enumerate(c.sweeps.prompts)
        for m, label in named(c, ("vpt", "rvpt")).items()
    } | {
        f"the set's own prompt, {label}": {"kind": "score", "method": m}
        for m, label in named(c, ("vpt", "rvpt")).items()
    }
    return beside(
        lines,
        attacks(THREE),
        HERE,
        c.seeds[:1],
        f"Table 10. Hand-written prompts, visual prompts tuned with each, {place_name(c, 'main')}: ASR and "
        "clean accuracy (%). One seed.",
    )


@table
def t11(c):
    lines = {
        f"{getattr(c.models, b).name}, {label}": {"backbone": b, **row}
        for b in backbones(c)[1:]
        for label, row in rows(c, ("clean", "none", "linear_probe", "vpt", "rvpt")).items()
    }
    return beside(
        lines,
        attacks(THREE),
        MAIN,
        further(c),
        f"Table 11. Further backbones, {place_name(c, 'main')}, settings of the first: ASR and clean accuracy (%).",
    )


@table
def t12(c):
    lines = rows(c, ("clean", "none", "vpt", "rvpt")) | {
        "adversarial tuning of the same visual prompts": {"method": "adversarial_prompts"},
        "adversarial prompt tuning (words)": {"method": "words"},
    }
    a = c.adversary
    return Shown(
        lines,
        {"clean": {"measure": "clean"}, "PGD": {"measure": "robust"}},
        {**HERE, "kind": "adversarial", "attack": "badnet"},
        c.seeds[:1],
        f"Table 12. Adversarial pictures: accuracy (%) under PGD-{a.steps}, ε = {a.eps * 255:g}/255, on the model that "
        "BadNet poisoned. One seed.",
        best=None,
    )


# ---- beyond the paper ------------------------------------------------------------------------------------------------


@table
def all_pictures(c):
    return beside(
        rows(c),
        attacks(SIX),
        MAIN,
        c.seeds,
        "Two readings of the attack success rate (%): over triggered pictures of other classes, and "
        "over all triggered pictures, where recognised pictures of the target class count as successes.",
        (ASR, ("asr_all", "ASR (all)", "min")),
    )


def spread(c: Any) -> Shown:
    """ASR of every seed at every setting that prompts could have been given."""
    lines = {said(tags): tags for tags in tried(c) if "length" in tags}
    columns = {f"ASR, seed {seed}": {"kind": "setting", "measure": "asr", "seed": seed} for seed in c.seeds}
    columns["ASR"] = [{"kind": "setting", "measure": "asr", "seed": seed} for seed in c.seeds]
    columns["CA"] = [{"kind": "setting", "measure": "ca", "seed": seed} for seed in c.seeds]
    columns["triggered accuracy"] = [{"kind": "setting", "measure": "ta", "seed": seed} for seed in c.seeds]
    columns["share of the parameters"] = {"kind": "setting", "measure": "share", "seed": c.seeds[0]}

    return Shown(
        lines,
        columns,
        {**HERE, "attack": c.tried.attack},
        c.seeds,
        f"{ATTACKS[c.tried.attack]} at every setting, seed by seed (%): prompts per layer b, learning rate. "
        "This chooses nothing: a defender has no triggered picture.",
        best=None,
        joined=lambda row, column: {**{k: v for k, v in row.items() if k != "candidate"}, **column},
    )


every_setting = table(spread)


def tried(c: Any) -> list[dict[str, object]]:
    """The tags of every candidate of every defence, in their order."""
    t = c.tried
    prompts = [{"length": length, "lr": lr} for length in t.lengths for lr in t.lrs]
    others = {"linear_probe": t.probe_lrs, "cleanclip": t.cleanclip_lrs}
    grids = {"vpt": prompts, "rvpt": prompts} | {m: [{"lr": lr} for lr in lrs] for m, lrs in others.items()}
    return [{"method": m, "candidate": k, **tags} for m, grid in grids.items() for k, tags in enumerate(grid)]


def said(tags: Tags) -> str:
    """One candidate in words."""
    length = f"b = {tags['length']}, " if "length" in tags else ""
    return f"{METHODS[tags['method']]}, {length}learning rate {tags['lr']:g}"


@table
def settings_chosen(c: Any):
    def joined(row: Tags, column: Tags) -> dict:
        judged = column["kind"] == "choice"
        kept = ("method", "candidate") if judged else ("method", "length", "lr")
        return {**{name: row[name] for name in kept if name in row}, **column}

    columns = {
        "log likelihood": {"kind": "choice", "measure": "score"},
        "taken": {"kind": "choice", "measure": "taken"},
        "ASR, not looked at": {"kind": "setting", "measure": "asr"},
        "CA, not looked at": {"kind": "setting", "measure": "ca"},
    }
    return Shown(
        {said(tags): tags for tags in tried(c)},
        columns,
        {**HERE, "attack": c.tried.attack},
        c.seeds[:1],
        f"How settings were chosen: log likelihood of clean held-out pictures of {place_name(c, 'main')}, on the CLIP "
        f"that {ATTACKS[c.tried.attack]} poisoned, first seed. What is taken holds for all attacks, sets, backbones "
        "and seeds; VPT has in all tables what is taken for RVPT. What test pictures say (%) chose nothing.",
        best=None,
        factor=dict.fromkeys(columns, 100) | {"log likelihood": 1, "taken": 1},
        digits=dict.fromkeys(columns, 1) | {"log likelihood": 3, "taken": 0},
        interval="none",
        joined=joined,
    )


def chosen_places(c: Any) -> list[tuple[str, str, str]]:
    """(attack, backbone, place) of every trigger whose strength is chosen."""
    found = [(a, "first", "main") for a in attacked(c)]
    found += [(a, "first", p) for p in places(c, PLACES[1:]) for a in FURTHER]
    found += [(a, b, "main") for b in backbones(c)[1:] for a in THREE if a in OPTIMISED]  # others have the first's
    return [(a, b, p) for a, b, p in found if getattr(c.attacks, a).strengths]


@table
def strengths_chosen(c: Any):
    lines = {
        f"{ATTACKS[a]}, {place_name(c, p)}, {getattr(c.models, b).name}, {strength}": {
            "attack": a, "backbone": b, **there(p), "candidate": k,
        }
        for a, b, p in chosen_places(c)
        for k, strength in enumerate(getattr(c.attacks, a).strengths)
    }  # fmt: skip
    return Shown(
        lines,
        {"gates passed": {"measure": "score"}, "taken": {"measure": "taken"}},
        {"kind": "choice", "method": "none"},
        c.seeds[:1],
        "How strong triggers were chosen, weakest first: share of the three gates that the poisoned CLIP passes on "
        "validation pictures (attack success rate, clean accuracy, and triggered pictures that a CLIP nobody poisoned "
        "recognises; %). The first that passes all is taken, or that which passes most. No defence is looked at.",
        best=None,
        factor={"gates passed": 100, "taken": 1},
        digits=0,
        interval="none",
    )


@table
def not_passed(c: Any):
    lines = {
        f"{ATTACKS[a]}, {place_name(c, p)}, {getattr(c.models, b).name}: {label}": {
            "attack": a, "method": m, "backbone": b, **there(p), **({"seed": c.seeds[0]} if m == "clean" else {}),
        }
        for b, p, a, _ in under_attack(c)
        for m, label in named(c).items()
        if b == "first" or m != "cleanclip"  # which has not cleaned further backbones
    }  # fmt: skip
    return Shown(
        lines,
        {name: {"measure": measure} for measure, name, _ in (ASR, CA, TA)},
        {"kind": "score"},
        further(c),
        "Apart: attacks that have not passed their gates. They are in no claim and in no other table (%).",
        best=None,
        apart=True,
    )


def under_attack(c: Any) -> list[tuple[str, str, str, Sequence[int]]]:
    """(backbone, place, attack, seeds) of every attack that is measured."""
    shown = [("first", "main", attack, c.seeds) for attack in (THREE if c.headline else SIX)]
    shown += [] if c.headline else [("first", "main", attack, further(c)) for attack in attacked(c)[6:]]
    others = places(c, PLACES[1:])
    shown += [("first", p, attack, further(c)) for p in (others[:1] if c.headline else others) for attack in FURTHER]
    behind = [] if c.headline else backbones(c)[1:]
    return shown + [(b, "main", attack, further(c)) for b in behind for attack in THREE]


@table
def triggered(c):
    return beside(
        rows(c),
        attacks(SIX[2:5]),
        MAIN,
        c.seeds,
        "Accuracy (%) on triggered pictures, the attacks that table 3 leaves out.",
        (TA,),
        DEFENCES,
    )


@table
def more(c):
    return beside(
        rows(c),
        attacks(attacked(c)[6:]),
        MAIN,
        further(c),
        f"Further triggers on {setting(c)}: ASR, clean accuracy and accuracy on triggered pictures (%).",
        (ASR, CA, ("ta", "triggered", "max")),
        DEFENCES,
    )


def known(c) -> Shown:
    """Patches planted, and optimised against the model as the user has it."""
    lines = {
        f"{name}, {label}": {"method": m, "against": who}
        for m, name in named(c, ("clean", "none", "vpt", "rvpt")).items()
        for who, label in AGAINST.items()
    }
    return beside(
        lines,
        {"": {}},
        {**HERE, "kind": "adaptive", "attack": "badclip"},
        c.seeds[:1],
        "An attacker who knows the defence: ASR and accuracy on triggered pictures (%), "
        f"BadCLIP, {place_name(c, 'main')}. On the CLIP that nobody poisoned a patch is an adversarial example and "
        "nothing else: the control. One seed.",
        (ASR, ("ta", "triggered accuracy", "max")),
    )


adaptive = table(known)


def headline(c) -> list[Grid]:
    """What the claims of the abstract read."""
    measures = {q: {"measure": q} for q in ("ca", "asr", "asr_all", "ta")}
    main = [Grid({a: {"attack": a} for a in THREE}, measures, {**MAIN, **row}, c.seeds) for row in rows(c).values()]
    cost = Grid(
        {"": {"method": "rvpt"}},
        {q: {"measure": q} for q in ("share", "share_whole")},
        {"kind": "cost", "attack": "badnet", **HERE},
        c.seeds[:1],
    )
    lines = {
        "no defence": {"method": "none"},
        "CleanCLIP": {"method": "cleanclip"},
        "RVPT": {"method": "rvpt"},
        "VPT, tuned on the main set": {"kind": "cross", "method": "vpt", "tuned": "main"},
        "RVPT, tuned on the main set": {"kind": "cross", "method": "rvpt", "tuned": "main"},
    }
    columns = {
        f"{a}: {q}": {"attack": a, **there(p), "measure": q}
        for p in places(c, PLACES[1:2])
        for a in FURTHER
        for q in ("ca", "asr")
    }
    second = Grid(
        lines, columns, {"kind": "score", "backbone": "first"}, further(c), joined=lambda row, column: {**column, **row}
    )
    return [*main, cost, second]
