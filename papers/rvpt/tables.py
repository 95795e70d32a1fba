"""What each table of RVPT holds, as functions of the measurements, numbered as in the paper; figures stand in `figures.py`. No model is loaded here.

The rows `clean CLIP` (nobody poisoned it) and `VPT` (prompts without repulsion) stand in every table where they were measured; the paper has them in
some. Numbers that the paper prints are held against ours below the claims (`claims.yaml`, reference tables).
"""

from collections.abc import Mapping

from shared.report import tables
from shared.report.tables import Table

METHODS = {"clean": "clean CLIP", "none": "no defence", "cleanclip": "CleanCLIP", "linear_probe": "linear probe", "vpt": "VPT", "rvpt": "RVPT"}
DEFENCES = ("cleanclip", "linear_probe", "vpt", "rvpt")  # of which the best is bold
ATTACKS = {"badnet": "BadNet", "blended": "Blended", "issba": "ISSBA", "wanet": "WaNet", "trojvqa": "TrojVQA", "badclip": "BadCLIP", "sig": "SIG",
           "badnet_textbook": "BadNet, textbook", "blended_textbook": "Blended, textbook"}
PLACES = ("main", "second", "third")
SIX, FURTHER, THREE = tuple(ATTACKS)[:6], ("badnet", "blended", "wanet"), ("badnet", "blended", "badclip")
MORE = tuple(ATTACKS)[6:]
AGAINST = {"planted": "BadCLIP's patch as planted", "knowing": "a patch optimised through the model"}
ASR, CA = ("asr", "ASR", "min"), ("ca", "CA", "max")
MAIN = {"kind": "score", "backbone": "first", "place": "main"}


def name_of(spec: str) -> str:
    """A set's name as people write it."""
    return spec.removeprefix("scenes:").removeprefix("named:").replace("_", " ")


def place_name(results, place: str) -> str:
    """The set of a place."""
    return name_of(results.config["data"][place]["data"])


def shift_names(results) -> dict[str, str]:
    """shift1 … shift4, by their sets."""
    return {f"shift{k}": name_of(spec) for k, spec in enumerate(results.config["data"]["shifted"], 1)}


def places(results, among=PLACES) -> tuple[str, ...]:
    """The places of this run that have a set."""
    return tuple(p for p in among if results.config["data"][p]["data"])


def backbone_name(results, backbone: str) -> str:
    """A backbone by its architecture."""
    return results.config["models"][backbone]["name"]


def target_name(results, place: str = "main") -> str:
    """The class that attackers plant."""
    return results.config["data"][place]["target"]


def _rows(names=METHODS, **more) -> dict[str, dict]:
    return {METHODS[name]: {"method": name, **more} for name in names}


def _beside(results, rows: Mapping[str, dict], groups: Mapping[str, dict], common: dict, caption: str, measures=(ASR, CA), defences=None,
            **options) -> Table | None:  # fmt: skip
    """Measures side by side under each group: "BadNet: ASR", "BadNet: CA", … . Bold: the best of the rows whose method is among `defences`."""
    defences = DEFENCES if defences is None else defences
    fighters = {label: row for label, row in rows.items() if row.get("method", common.get("method")) in defences}
    columns = {f"{group}: {name}" if group else name: ({**tags, "measure": q}, best) for group, tags in groups.items() for q, name, best in measures}
    whole = tables.from_results(results, rows, {c: tags for c, (tags, _) in columns.items()}, common=common, best=None, caption=caption, **options)
    if whole is None:
        return None
    where, bold = {label: r for r, (label, _) in enumerate(whole.rows)}, set()
    for k, (column, (tags, best)) in enumerate(columns.items()):
        fight = tables.from_results(results, fighters, {column: tags}, common=common, best=best) if len(fighters) > 1 else None
        bold |= {(where[fight.rows[r][0]], k) for r, _ in fight.bold} if fight else set()
    return Table(whole.columns, whole.rows, whole.caption, whole.notes, whole.corner, whole.factor, whole.digits, frozenset(bold), whole.interval)


def _attacks(names) -> dict[str, dict]:
    return {ATTACKS[a]: {"attack": a} for a in names}


def _setting(results, place: str = "main", backbone: str = "first") -> str:
    return f"{place_name(results, place)}, target “{target_name(results, place)}”, {backbone_name(results, backbone)}"


def t1(results):
    return _beside(results, _rows(), _attacks(SIX), MAIN, f"Table 1. ASR and clean accuracy (%) on {_setting(results)}. ASR: triggered pictures of "
                   "other classes that are taken for the target. A linear probe has no text tower, which TrojVQA's trigger also needs.")


def t2(results):
    groups = {f"{place_name(results, p)}, {ATTACKS[a]}": {"place": p, "attack": a} for p in places(results, PLACES[1:]) for a in FURTHER}
    where = "; ".join(_setting(results, p) for p in places(results, PLACES[1:]))
    return _beside(results, _rows(), groups, {"kind": "score", "backbone": "first"},
                   f"Table 2. ASR and clean accuracy (%) on further sets, each with its own target and its own poisoned models: {where}.")


def t3(results):
    return _beside(results, _rows(), _attacks(THREE), MAIN, f"Table 3. Accuracy (%) on triggered pictures, {place_name(results, 'main')}.",
                   measures=(("ta", "accuracy", "max"),))


def t4(results):
    groups = {}
    for p in places(results):
        groups[f"{place_name(results, p)}, without it"] = {"kind": "emerging", "place": p}
        groups[f"{place_name(results, p)}, with it"] = {"kind": "score", "backbone": "first", "place": p}
    return _beside(results, {ATTACKS[a]: {"attack": a} for a in (*FURTHER, "badclip")}, groups, {"method": "rvpt"},
                   "Table 4. An emerging target class: RVPT without and with shots of the target class, ASR and clean accuracy (%).", defences=())


def t5(results):
    rows = {"no defence": {"kind": "score", "method": "none"}, "CleanCLIP": {"kind": "score", "method": "cleanclip"},
            f"VPT, tuned on {place_name(results, 'main')}": {"kind": "cross", "method": "vpt"},
            f"RVPT, tuned on {place_name(results, 'main')}": {"kind": "cross", "method": "rvpt"},
            "RVPT, tuned there": {"kind": "score", "method": "rvpt"}}
    groups = {f"{place_name(results, p)}, {ATTACKS[a]}": {"place": p, "attack": a} for p in places(results, PLACES[1:]) for a in FURTHER}
    return _beside(results, rows, groups, {"backbone": "first"},
                   "Table 5. Prompts on other sets than they were tuned on: ASR and clean accuracy (%).", defences=())


def t6(results):
    rows = {f"{name}, {METHODS[m]}": {"at": at, "method": m} for at, name in shift_names(results).items()
            for m in ("none", "cleanclip", "vpt", "rvpt")}
    return _beside(results, rows, _attacks(THREE), {"kind": "shifted"},
                   f"Table 6. Other domains, prompts tuned on {place_name(results, 'main')}: ASR and clean accuracy (%).", defences=())


def t7(results):
    columns = {"captions: ASR": {"kind": "caption", "measure": "asr"}, "captions: CIDEr-D": {"kind": "caption", "measure": "cider"},
               "captions: BLEU-4": {"kind": "caption", "measure": "bleu"}, "retrieval: ASR": {"kind": "retrieval", "measure": "asr"},
               "retrieval: rank ratio": {"kind": "retrieval", "measure": "rank_ratio"}, "retrieval: CA": {"kind": "retrieval", "measure": "ca"}}
    attack = ATTACKS[results.config["attacks"]["downstream"]]
    return tables.from_results(results, _rows(("clean", "none", "cleanclip", "vpt", "rvpt")), columns, best=None,
                               factor=_factors(results, columns),
                               caption=f"Table 7. Downstream, {attack}: a captioner with the model's tower (ASR: the caption of a triggered picture "
                               "names the target; CIDEr-D × 100 and BLEU-4 on clean ones), and retrieval (ASR: the poisoned picture is among the "
                               "first ten for captions of the target; rank ratio: share of the target's clean pictures ahead of it, higher is "
                               "better; CA: first picture for its own caption). One seed.")


def _factors(results, columns: Mapping[str, dict]) -> dict[str, float]:
    """100 for shares, 1 for what is printed as measured."""
    units = {c: {m.unit for m in results.select(tags)} for c, tags in columns.items()}
    return {c: 100 if found & {"share", "fraction", "rate"} else 1 for c, found in units.items()}


def t8(results):
    def pair(a: str, b: str) -> list:
        out = []
        for method in (a, b):
            for q in ("asr", "ca"):
                kind = {"kind": "score", "backbone": "first"} if method in ("vpt", "rvpt") else {"kind": "tuning"}
                at = {**kind, "place": "main", "attack": "badclip", "method": method, "measure": q, "seed": seed}
                out.append(results.estimate(at))
        return out

    seed = results.config["seeds"][0]
    rows = [("few shots, whole vision tower", pair("full", "full_fr")), ("pairs, InfoNCE, whole CLIP", pair("infonce", "infonce_fr")),
            ("few shots, prompts", pair("vpt", "rvpt"))]
    rows = [(label, cells) for label, cells in rows if any(cells)]
    if not any(label.startswith(("few shots, whole", "pairs")) for label, _ in rows):
        return None
    return Table(["without FR: ASR", "without FR: CA", "with FR: ASR", "with FR: CA"], rows,
                 f"Table 8. What the repulsion L_FR adds to each fine-tuning, BadCLIP, {place_name(results, 'main')} (%). One seed.")


def t9(results):
    rows = {"CleanCLIP": {"method": "cleanclip", "place": "main"}, **{f"RVPT, {place_name(results, p)}": {"method": "rvpt", "place": p}
                                                                      for p in places(results, ("main", "third"))}}
    columns = {"seconds": "seconds", "memory (MB)": "memory", "trained parameters": "trained", "of all but the token table (%)": "share",
               "of all (%)": "share_whole", "pictures": "samples"}
    selectors = {c: {"measure": q} for c, q in columns.items()}
    digits = {"seconds": 1, "memory (MB)": 1, "trained parameters": 0, "of all but the token table (%)": 3, "of all (%)": 3, "pictures": 0}
    return tables.from_results(results, rows, selectors, common={"kind": "cost"}, best=None, interval="none", digits=digits,
                               factor=_factors(results, selectors),
                               caption="Table 9. What a defence costs on the machine that measured: one process, a few updates scaled to the whole "
                               "schedule; processor time and the memory kept for the backward pass without a GPU.")


def t10(results):
    said = results.config["sweeps"]["prompts"]
    rows = {f"“{p.format('CLS')}”": {"kind": "hand", "prompt": k} for k, p in enumerate(said)}
    rows["the set's own prompt"] = {**MAIN, "seed": results.config["seeds"][0]}
    return _beside(results, rows, _attacks(THREE), {"method": "rvpt", "place": "main"},
                   f"Table 10. Hand-written prompts, RVPT tuned with each, {place_name(results, 'main')}: ASR and clean accuracy (%). One seed.",
                   defences=())


def t11(results):
    there = [b for b in ("second", "third") if results.config["models"][b]["name"]]
    rows = {f"{backbone_name(results, b)}, {METHODS[m]}": {"backbone": b, "method": m} for b in there
            for m in ("clean", "none", "linear_probe", "vpt", "rvpt")}
    return _beside(results, rows, _attacks(THREE), {"kind": "score", "place": "main"},
                   f"Table 11. Further backbones, {place_name(results, 'main')}, settings of the first: ASR and clean accuracy (%).",
                   defences=())


def t12(results):
    rows = {**_rows(("clean", "none", "vpt", "rvpt")), "adversarial tuning of the same visual prompts": {"method": "adversarial_prompts"},
            "adversarial prompt tuning (words)": {"method": "words"}}
    columns = {"clean": {"measure": "clean"}, "PGD": {"measure": "robust"}}
    a = results.config["adversary"]
    return tables.from_results(results, rows, columns, common={"kind": "adversarial"}, best=None,
                               caption=f"Table 12. Adversarial pictures: accuracy (%) under PGD-{a['steps']}, ε = {a['eps'] * 255:g}/255, on the "
                               "model that BadNet poisoned. One seed.")


# ---- beyond the paper ------------------------------------------------------------------------------------------------------


def all_pictures(results):
    measures = (ASR, ("asr_all", "ASR (all)", "min"))
    return _beside(results, _rows(), _attacks(SIX), MAIN, "Two readings of the attack success rate (%): over triggered pictures of other classes, "
                   "and over all triggered pictures, where recognised pictures of the target class count as successes.", measures=measures,
                   defences=())


def triggered(results):
    return _beside(results, _rows(), _attacks(SIX[2:5]), MAIN, "Accuracy (%) on triggered pictures, the attacks that table 3 leaves out.",
                   measures=(("ta", "accuracy", "max"),))


def more(results):
    names = [a for a in MORE if a in results.config["attacks"]["more"]]
    measures = (ASR, CA, ("ta", "triggered", "max"))
    return _beside(results, _rows(), _attacks(names), MAIN, f"Further triggers on {_setting(results)}: ASR, clean accuracy and accuracy on triggered "
                   "pictures (%).", measures=measures) if names else None


def adaptive(results):
    rows = {f"{METHODS[m]}, {label}": {"method": m, "against": who} for m in ("clean", "none", "vpt", "rvpt") for who, label in AGAINST.items()}
    return _beside(results, rows, {"": {}}, {"kind": "adaptive"}, "An attacker who knows the defence: ASR and accuracy on triggered pictures (%), "
                   f"BadCLIP, {place_name(results, 'main')}. On the CLIP that nobody poisoned a patch is an adversarial example and nothing else: "
                   "the control. One seed.", measures=(ASR, ("ta", "triggered accuracy", "max")), defences=())
