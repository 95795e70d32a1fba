"""What each table of RoCLIP holds, as functions of the measurements; figures stand in `figures.py`. No model is loaded here.

The paper's tables could not be read, so ours have names instead of numbers. A RoCLIP run stands in two rows: as it is after its last RoCLIP epoch,
and after its last plain epoch.
"""

from shared.report import tables

METHODS = {"clip": "CLIP", "clip_aug": "CLIP + augmentation", "roclip": "RoCLIP, two-sided", "released": "RoCLIP, released",
           "cleanclip": "CLIP, then CleanCLIP", "safeclip": "SafeCLIP (later; inferred)"}
SCORED = {"last": "", "roclip_epoch": ", RoCLIP epoch", "plain_epoch": ", plain epoch"}
REGIMES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
ATTACKS = {"badnet": "BadNet", "blended": "Blended", "wanet": "WaNet", "sig": "SIG", "label_consistent": "label-consistent"}
SWEEPS = {"pool": "pool", "every": "K", "sides": "matched", "augment": "augmented", "query": "asked with", "start": "pool starts with",
          "refresh": "pool refreshed"}
VALUES = {("sides", "image"): "pictures", ("sides", "text"): "captions", ("sides", "both"): "both sides", ("augment", "none"): "nothing",
          ("augment", "images"): "pictures", ("augment", "both"): "pictures, captions", ("query", "own"): "own modality",
          ("query", "cross"): "the other", ("start", "pairs"): "pairs", ("start", "unit"): "unit noise", ("start", "gaussian"): "noise",
          ("refresh", "matched"): "RoCLIP epochs", ("refresh", "always"): "all epochs"}
EPOCHS = "RoCLIP epoch, plain epoch: the run as it is after its last epoch of either kind."


def backdoors(results) -> dict[str, str]:
    """The triggers of this run, with their names."""
    return {a: name for a, name in ATTACKS.items() if results.config["attacks"][a]["rate"]}


def rows(results, **selector) -> dict[str, dict]:
    """A row per method and kind of epoch, of those that were measured."""
    out = {name + epoch: {"method": m, "scored": s} for m, name in METHODS.items() for s, epoch in SCORED.items()}
    return {label: row for label, row in out.items() if results.select({**selector, **row})}


def short(spec: str) -> str:
    """A set's name in a table's head."""
    name = spec.partition(":")[2]
    return "digits" if spec.startswith("digits") else name.replace("_", " ")


def share(x: float) -> str:
    """A share as people write it."""
    return f"{100 * x:.2g} %" if x < 0.1 else f"{100 * x:.0f} %"


def value(sweep: str, v) -> str:
    """A point of a sweep in words."""
    return share(v) if sweep == "pool" else VALUES.get((sweep, v), f"{v}")


def default(results, sweep: str):
    """Where a sweep passes through the defaults."""
    config = results.config
    matching = config["methods"]["roclip"]
    if sweep == "pool":
        return matching["share"] if matching["share"] is not None else matching["size"] / config["data"]["pretrain_n"]
    if sweep == "augment":
        return "both" if config["methods"]["alpha"] else "images"
    return matching[sweep]


def points(results, sweep: str) -> list:
    """The values of a sweep that were measured, as they are in the configuration."""
    measured = [m.tags["value"] for m in results.select(kind="ablation", sweep=sweep)]
    return [v for v in results.config["sweeps"][sweep] if v in measured]


def poison(results, regime: str) -> str:
    """In words, what the poisoned pairs of a regime are."""
    data, targets = results.config["data"], results.config["attacks"]["targets"]
    clean, m = (data["pretrain_n"], targets["m"]) if regime == "pretrain" else (data["finetune_n"], targets["finetune_m"])
    rates = {name: results.config["attacks"][a]["rate"] for a, name in backdoors(results).items()}
    if len(set(rates.values())) == 1:
        said = f"{share(next(iter(rates.values())))} each have a backdoor ({', '.join(rates)})"
    else:
        said = f"some have a backdoor ({', '.join(f'{name} {share(rate)}' for name, rate in rates.items())})"
    return (f"{clean:,} pairs, of which {said}, and {targets['n']} target images with {m} captions "
            f"({share(targets['n'] * m / (clean + targets['n'] * m))} of all)")


def _main(results, regime: str):
    common, planted = {"kind": "score", "regime": regime}, backdoors(results)
    asked = [a for a in planted if a in results.config["gates"]["attacks"]]
    columns = {"accuracy": {"measure": "accuracy"}, "PSR": {"measure": "psr"}}
    columns |= {f"BSR, {name}": {"measure": "bsr", "attack": a} for a, name in planted.items()}
    columns[f"BSR, mean of {len(asked)}"] = {"measure": "bsr", "attack": asked}
    columns |= {f"cosine, {name} pairs": {"measure": "similarity", "attack": a} for a, name in (("targets", "poisoned"), ("none", "clean"))}
    cosine = [c for c in columns if c.startswith("cosine")]
    return tables.from_results(results, rows(results, **common), columns, common=common, best=None, interval="pm", factor=dict.fromkeys(cosine, 1),
                               digits=dict.fromkeys(cosine, 2), caption=f"{REGIMES[regime].capitalize()} on {poison(results, regime)}: zero-shot "
                               "accuracy, success of targeted poisoning (PSR) and of backdoors (BSR) in %; cosine of pairs. The mean is over "
                               f"the backdoors that the gates demand ({', '.join(planted[a] for a in asked)}). " + EPOCHS)


def pretrain(results):
    return _main(results, "pretrain")


def finetune(results):
    return _main(results, "finetune")


def sets(results, measure: str) -> list[str]:
    """The sets of zero-shot accuracy, or those of the linear probe."""
    data = results.config["data"]
    return [*data["downstream"], *(data["probed"] if measure == "linear_probe" else ())]


def _downstream(results, regime: str, measure: str, what: str):
    common = {"kind": "downstream", "regime": regime, "measure": measure}
    columns = {short(spec): {"data": spec} for spec in sets(results, measure)} | {"mean": {}}
    return tables.from_results(results, rows(results, **common), columns, common=common, interval="pm",
                               caption=f"{what} (%) on {len(columns) - 1} sets after {REGIMES[regime]} on poisoned pairs. " + EPOCHS)


def zero_shot(results):
    return _downstream(results, "pretrain", "accuracy", "Zero-shot accuracy")


def probe(results):
    return _downstream(results, "pretrain", "linear_probe", "Accuracy of a linear probe on projected features that are not normalised")


def zero_shot_finetuned(results):
    return _downstream(results, "finetune", "accuracy", "Zero-shot accuracy")


def probe_finetuned(results):
    return _downstream(results, "finetune", "linear_probe", "Accuracy of a linear probe on projected features that are not normalised")


def by_epoch(results):
    """PSR by epoch, pre-training."""
    common = {"kind": "epoch", "regime": "pretrain", "measure": "psr"}
    at = results.tags("epoch", common)
    return tables.from_results(results, {name: {"method": m} for m, name in METHODS.items()}, {f"{e}": {"epoch": e} for e in at}, common=common,
                               best=None, corner="after epoch", interval="none" if len(at) > 12 else "pm",
                               caption="PSR (%) by epoch of pre-training. Of RoCLIP's epochs every "
                               f"{_nth(results.config['methods']['roclip']['every'])} is a RoCLIP epoch (released: every "
                               f"{_nth(results.config['methods']['released']['every'])}).")


def _nth(k: int) -> str:
    return {1: "one", 2: "second", 3: "third"}.get(k, f"{k}th")


def strong(results):
    rates = sorted({(m.tags["rate"], m.tags["m"]) for m in results.select(kind="strong")})
    out = {METHODS["clip_aug"]: {"method": "clip_aug"}}
    for method in ("roclip", "released"):
        for every in results.tags("every", kind="strong", method=method):
            for s in ("roclip_epoch", "plain_epoch"):
                out[f"{METHODS[method]}, K = {every}{SCORED[s]}"] = {"method": method, "every": every, "scored": s}
    columns = {f"{share(rate)} ({m} captions): {name}": {"m": m, "measure": q} for rate, m in rates
               for q, name in (("psr", "PSR"), ("accuracy", "accuracy"))}
    return tables.from_results(results, out, columns, common={"kind": "strong"}, best=None,
                               caption="Strong poisoning in pre-training: success (PSR) and zero-shot accuracy in %, by the share of target pairs "
                               "among all. K: every so many epochs is a RoCLIP epoch. One seed. " + EPOCHS)


def ablation(results):
    attack = next(iter(backdoors(results).values()), "")
    measures = {"PSR": "psr", f"BSR, {attack}": "bsr", "accuracy": "accuracy"}
    columns = {f"{name}{SCORED[s]}": {"measure": q, "scored": s} for s in ("roclip_epoch", "plain_epoch") for name, q in measures.items()}
    out = {}
    for sweep, name in SWEEPS.items():
        for v in points(results, sweep):
            star = " (default)" if v == default(results, sweep) else ""
            out[f"{name}: {value(sweep, v)}{star}"] = {"sweep": sweep, "value": v}
    return tables.from_results(results, out, columns, common={"kind": "ablation"}, best=None,
                               caption="One setting of the two-sided RoCLIP at a time (pre-training, one seed): success of the poisons and zero-shot "
                               "accuracy in %. Pool: entries as a share of the pairs. K = 1 has no plain epoch. " + EPOCHS)


def returned(results):
    columns = {f"{what}: {name}": {"measure": q, "attack": a} for q, name in (("same_class", "names the class (%)"), ("cosine", "cosine"))
               for a, what in (("targets", "poisoned"), ("none", "clean"))}
    out = {f"{METHODS[m]}, {REGIMES[r]}": {"method": m, "regime": r} for m in ("roclip", "released") for r in REGIMES}
    cosine = [c for c in columns if c.endswith("cosine")]
    return tables.from_results(results, out, columns, common={"kind": "returned"}, best=None, factor=dict.fromkeys(cosine, 1),
                               digits=dict.fromkeys(cosine, 2),
                               caption="What the text pool returns for a picture at the end of training: does that caption name the class that the "
                               "picture's own caption names (of a poisoned pair: the adversarial class), and its cosine with what the pool was asked "
                               "with (two-sided: the pair's caption; released: the picture).")


def cost(results):
    at = {"kind": "cost", "measure": "seconds"}
    found = {m: results.values(at, method=m) for m in ("clip_aug", "roclip", "released")}
    lines = [(METHODS[m], [v.mean().scaled(1000), v.over(found["clip_aug"]) if found["clip_aug"] and m != "clip_aug" else "1"])
             for m, v in found.items() if v]
    if not lines:
        return None
    return tables.Table(["step (ms)", "over CLIP + augmentation"], lines, factor=1, digits={"over CLIP + augmentation": 3}, interval="brackets",
                        caption="An update at equal augmentation on the machine that measured (RoCLIP: of a RoCLIP epoch). Intervals over "
                        "repetitions.")
