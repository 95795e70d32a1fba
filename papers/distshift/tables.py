"""What each table of distshift holds, as functions of the measurements; figures stand in `figures.py`. No model is loaded here.

Apart from four numbers of the abstract the paper's tables could not be read; theirs have numbers that we do not know, so ours have names.
"""

from shared.report import tables

METHODS = {"none": "no defence", "pgd_at": "PGD-AT", "jpeg": "JPEG", "bits": "bit depth", "tv": "total variation", "resize_pad": "resize and pad",
           "noise": "noise only", "diffpure": "DiffPure", "gdmp": "GDMP", "distshift": "distshift"}
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}
ATTACKS = {"pgd": "PGD", "autoattack": "AutoAttack-type"}
AGAINST = {"control": "nobody (control)", "transfer": "transfer", "square": "Square, black box", "bpda": "BPDA", "bpda_eot": "BPDA+EOT",
           "guide": "the guidance alone", "exact_first_order": "exact + EOT, guidance constant", "exact": "exact + EOT", "apgd": "exact + EOT, APGD"}
STATES = {"clean": "clean (control)", "adversarial": "adversarial", "diffused": "adversarial, diffused", "diffpure": "adversarial, DiffPure",
          "purified": "adversarial, distshift", "purified_clean": "clean, distshift"}
VARIANTS = {"g1-x_adv": "G1, label of x_adv", "g1-running": "G1, label of x̂₀", "g1-moving": "G1, label of x_t",
            "g3-x_adv": "G3 (G1 at x̂₀), label of x_adv", "g3-running": "G3 (G1 at x̂₀), label of x̂₀", "g2-x_t": "G2 at x_t", "g2-x0_hat": "G2 at x̂₀",
            "g4-x_t": "G4 at x_t", "g4-x0_hat": "G4 at x̂₀", "unscaled": "default, x_t not rescaled",
            "coup": "G2 as COUP released it (scale 1 on the score)"}


def radius(eps: float) -> str:
    """An ε as people write it."""
    return f"{eps * 255:g}/255"


def sets(results) -> tuple[str, ...]:
    """The sets of this run, in the order of the paper's tables."""
    models = results.config["models"]
    return tuple(models[place]["data"] for place in ("first", "second") if models[place]["data"])


def short(results, spec: str) -> str:
    """A set's name; that of ImageNet30 says which pictures it has."""
    if spec.startswith("scenes:"):
        return spec.replace(":", " ", 1)
    label = results.config["data"]["label"] if spec.startswith("folder:") else ""
    return label or results.config.get("names", {}).get(spec) or spec


def time(results) -> int:
    """t* of the first set."""
    return results.config["models"]["first"]["t"] or results.config["method"]["t"]


def victim(results, place: int) -> str:
    """What is protected, and guides."""
    p = results.config["models"][("first", "second")[place - 1]]
    weights = {"train": "trained here"}.get(p["weights"], p["weights"].removeprefix("zoo:").rpartition("/")[2])
    return f"{p['arch'].removeprefix('torchvision:')} ({weights}{', 1,000-way, restricted to the classes of the set' if p['restrict'] else ''})"


def conditions(results, attacks=tuple(ATTACKS)) -> dict[str, dict]:
    """Columns of a table: clean, and each attack in each ball."""
    a = results.config["attack"]
    return {"clean": {"attack": "clean"}, **{f"{ATTACKS[k]}, {NORMS[n]} {radius(a[n])}": {"attack": k, "norm": n, "times": 1} for n in NORMS
                                             for k in attacks}}


def _main(results, place: int):
    if len(sets(results)) < place:
        return None
    rows = {label: {"method": name} for name, label in METHODS.items()}
    return tables.from_results(results, rows, conditions(results), common={"kind": "score", "place": place}, interval="brackets",
                               caption=f"{short(results, sets(results)[place - 1])}: accuracy (%). The bare victim, {victim(results, place)}, is "
                               "attacked (gray box); PGD-AT is attacked itself. AutoAttack-type: APGD-CE, APGD-T, Square.")


def first(results):
    return _main(results, 1)


def second(results):
    return _main(results, 2)


def oddity(results):
    """The paper's ℓ2 numbers are below its ℓ∞ numbers; what ours say."""
    rows = {f"{short(results, s)}, {METHODS[m]}": {"place": k, "method": m} for k, s in enumerate(sets(results), 1)
            for m in ("none", "pgd_at", "diffpure", "distshift")}
    score, size = {"kind": "score"}, {"kind": "norm", "attack": "pgd"}
    columns = {"clean": {**score, "attack": "clean"}}
    for n, label in NORMS.items():
        columns[f"{label}: accuracy"] = {**score, "attack": ["pgd", "autoattack"], "norm": n}
    for n, label in NORMS.items():
        for measured, name in NORMS.items():
            columns[f"{label}: mean {name} norm"] = {**size, "norm": n, "measure": measured}
    sizes = [c for c in columns if "norm" in c]
    return tables.from_results(results, rows, columns, best=None, factor=dict.fromkeys(sizes, 1), digits=dict.fromkeys(sizes, 3), interval="pm",
                               caption="Is the ℓ2 ball the harder one? Accuracy (%), mean over both attacks, beside the clean accuracy of the same "
                               "defence, and the sizes that the PGD perturbations came out with (in pixels; in the row of the attacked victim).")


def adaptive(results):
    a, budget = results.config["adaptive"], results.config["attack"]
    balls = {n: f", {label}" if len(a["norms"]) > 1 else "" for n, label in NORMS.items()}
    rows = {f"{METHODS[m]}, {'exact' if m == 'pgd_at' else AGAINST[name]}{balls[n]}": {"method": m, "against": name, "norm": n}
            for n in a["norms"] for m in ("pgd_at", "diffpure", "gdmp", "distshift") for name in AGAINST}
    columns = {"one": {"judged": "one"}, f"mean of {a['draws']}": {"judged": "mean"}, f"worst of {a['draws']}": {"judged": "worst"},
               "majority": {"judged": "majority"}}
    where = ", ".join(f"{NORMS[n]} {radius(budget[n])}" for n in a["norms"])
    return tables.from_results(results, rows, columns, common={"kind": "adaptive"}, best=None,
                               caption=f"Attackers who know the defence: accuracy (%) on {a['n']} pictures of "
                               f"{short(results, sets(results)[0])}, {where}, {a['steps']} steps, {a['eot']} draws per gradient, "
                               f"after repeated purification (Square: {a['square_n']} pictures, {a['square_queries']} queries). The "
                               "control is not attacked: the worst of N falls with N even there.")


def candidates(results, default: str = "default ({})") -> dict[str, dict]:
    """Rows of what compares guidances: the default and none, which the sweep of the scale has measured, and the others."""
    g = results.config["guidance"]
    return {default.format(written(g)): {"kind": "scale", "scale": g["scale"]}, "no guidance": {"kind": "scale", "scale": 0.0},
            **{label: {"kind": "variant", "variant": v} for v, label in VARIANTS.items()}}


def variants(results):
    seed = results.config["seeds"][0]
    return tables.from_results(results, candidates(results), conditions(results, ("pgd",)), common={"place": 1, "seed": seed}, best=None,
                               caption=f"Candidates for the guidance: accuracy (%) on {results.config['sweeps']['n']} pictures of "
                               f"{short(results, sets(results)[0])}, one seed. The label of x_adv is the attacker's class.")


def written(guidance: dict) -> str:
    """A guidance in words."""
    label = {"x_adv": ", label of x_adv", "running": ", label of x̂₀", "moving": ", label of its own input"}[guidance["label"]]
    where = {"x_t": "x_t", "x0_hat": "x̂₀"}[guidance["domain"]] + ("/α" if guidance["rescale"] == "x_t/alpha" else "")
    return f"{guidance['kind']} at {where}{label if guidance['kind'] in ('G1', 'G3') else ''}, {guidance['unit']} {guidance['scale']:g}"


def distribution(results):
    s, at = results.config["sweeps"], {"kind": "distribution"}
    measured = {state: (results.estimate(at, method=state, quantity="mmd2"), results.estimate(at, method=state, quantity="p")) for state in STATES}
    rows = [(STATES[state], [mmd2, f"{p.value:.3f}"]) for state, (mmd2, p) in measured.items() if mmd2 and p]
    if not rows:
        return None
    return tables.Table(["MMD²", "p"], rows, factor=1, digits=3,
                        caption=f"Two-sample tests in the victim's features against {s['features_n']} other clean pictures of "
                        f"{short(results, sets(results)[0])}: unbiased MMD² (mean over blocks of {s['block']}) and the p-value of "
                        f"{s['permutations']} permutations.")


def quality(results):
    rows = {label: {"method": name} for name, label in METHODS.items()}
    columns = {f"{unit}, {name}": {**condition, "measure": q} for q, unit in (("psnr", "PSNR (dB)"), ("ssim", "SSIM"))
               for name, condition in conditions(results, ("pgd",)).items()}
    return tables.from_results(results, rows, columns, common={"kind": "quality"}, best=None, factor=1,
                               digits={c: 1 if "PSNR" in c else 3 for c in columns}, caption="Pictures behind the defence against the clean ones.")


def cost(results):
    at = {"kind": "cost"}
    rows = []
    for m in ("diffpure", "gdmp", "distshift"):
        passes = [results.estimate(at, method=m, quantity=f"{of}_calls") for of in ("denoiser", "victim")]
        seconds = [results.estimate(at, method=m, quantity=q) for q in ("seconds", "gradient_seconds")]
        if all(passes):
            rows.append((METHODS[m], [*(f"{e.value:g}" for e in passes), *seconds]))
    if not rows:
        return None
    return tables.Table(["denoiser passes", "victim passes", "purification (ms)", "exact gradient (ms)"], rows, factor=1000, interval="pm",
                        caption="Cost per picture on the machine that measured, one batch, one process (processor time without a GPU). Intervals "
                        "over repetitions.")
