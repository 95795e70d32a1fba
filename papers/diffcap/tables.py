"""What each table of DiffCAP holds, as functions of the measurements; figures stand in `figures.py`. No model is loaded here.

The paper's own tables could not be read; theirs have numbers that we do not know, so ours have names.
"""

from shared.report import tables

METHODS = {"none": "no defence", "tecoa": "TeCoA", "fare": "FARE", "jpeg": "JPEG", "bits": "bit depth", "resize_pad": "resize and pad",
           "blur": "blur", "resize": "resize only", "noise": "noise only", "clipure": "CLIPure-Cos", "diffpure": "DiffPure", "diffcap": "DiffCAP"}
MODELS = {"llava": "LLaVA", "flamingo": "Flamingo-type", "clip": "CLIP"}
AGAINST = {"control": "nobody (control)", "transfer": "transfer", "bpda": "BPDA", "bpda_eot": "BPDA+EOT", "exact": "exact + EOT",
           "early_stop": "exact + EOT + early stop", "from_diffpure": "exact on DiffPure"}


def eps(value: float) -> str:
    return "clean" if value == 0 else f"{value * 255:g}/255"


def strengths(results) -> tuple[float, ...]:
    """0 and the ε of the attacks."""
    return (0.0, *results.config["attack"]["eps"])


def short(spec: str) -> str:
    """A set's name without what the table's caption says."""
    return spec.rpartition(":")[2].replace("_", " ").lower()


def _main(results, sets, models, caption: str, factor: float):
    columns = {f"{MODELS[m]}, {short(s)}, {eps(e)}": {"model": m, "data": s, "eps": e} for m in models for s in sets for e in strengths(results)}
    rows = {label: {"method": name} for name, label in METHODS.items()}
    return tables.from_results(results, rows, columns, common={"kind": "score"}, factor=factor, caption=caption)


def captions(results):
    return _main(results, results.config["data"]["captions"], ("llava", "flamingo"),
                 "Captioning: CIDEr-D (× 100, as papers print it) under the staged attack of RobustVLM. Purifiers face the attack on the undefended "
                 "model.", 1)


def questions(results):
    return _main(results, results.config["data"]["questions"], ("llava", "flamingo"),
                 "Question answering: VQA accuracy (%) under the staged attack. Purifiers face the attack on the undefended model.", 100)


def classes(results):
    return _main(results, results.config["data"]["classes"], ("clip",),
                 "Zero-shot classification: top-1 (%) under APGD-CE and APGD-T. Purifiers and CLIPure-Cos face the attack on the undefended model.",
                 100)


def adaptive(results):
    a = results.config["adaptive"]
    rows = {f"{METHODS[m]}, {label}": {"method": m, "against": name} for m in ("diffpure", "diffcap") for name, label in AGAINST.items()}
    columns = {"one": {"judged": "one"}, f"mean of {a['draws']}": {"judged": "mean"}, f"worst of {a['draws']}": {"judged": "worst"},
               "majority": {"judged": "majority"}}
    return tables.from_results(results, rows, columns, common={"kind": "adaptive"}, best=None,
                               caption=f"Attackers who know the defence: top-1 (%) of CLIP on {short(results.config['data']['classes'][0])}, "
                               f"ε = {eps(a['eps'])}, {a['steps']} steps, {a['eot']} draws per gradient, after repeated purification. The control is "
                               "not attacked: the worst of N falls with N even there.")


def adaptive_captions(results):
    a = results.config["adaptive"]
    rows = {f"{METHODS[m]}, {AGAINST[name]}": {"method": m, "against": name} for m in ("diffpure", "diffcap")
            for name in ("control", "transfer", "bpda_eot", "exact")}
    columns = {f"mean of {a['draws']}": {"judged": "mean"}, f"worst of {a['draws']}": {"judged": "worst"}}
    return tables.from_results(results, rows, columns, common={"kind": "adaptive_caption"}, best=None, factor=1,
                               caption="Attackers who know the defence, captioning: CIDEr-D (× 100) of LLaVA on "
                               f"{short(results.config['data']['captions'][0])}, ε = {eps(a['eps'])}, {a['steps']} APGD steps against one reference.")


def targeted(results):
    rows = {METHODS[m]: {"method": m} for m in ("none", "tecoa", "fare", "jpeg", "diffpure", "diffcap")}
    columns = {f"“{s}”": {"string": s} for s in results.config["attack"]["strings"]}
    a = results.config["attack"]
    return tables.from_results(results, rows, columns, common={"kind": "targeted"}, best="min",
                               caption=f"Attacks towards a string, LLaVA, ε = {eps(a['eps'][-1])}, {a['target_steps']} steps: share of answers (%) "
                               "that hold it.")


def ablation(results):
    s, m = results.config["sweeps"], results.config["method"]
    rows = {f"τ {o:+g}, Δt = {dt}": {"offset": o, "dt": dt} for o in s["taus"] for dt in s["dts"]}
    columns = {"clean": {"eps": 0.0}, eps(strengths(results)[-1]): {"eps": strengths(results)[-1]}}
    return tables.from_results(results, rows, columns, common={"kind": "ablation"}, best=None,
                               caption=f"τ × Δt: top-1 (%) with τ moved from its calibrated value and another Δt (the default is {m['dt']}).")


def variants(results):
    rows = {"DiffCAP": {"kind": "score", "method": "diffcap", "model": "clip", "seed": results.config["seeds"][0]},
            "fresh noise at every time (redraw)": {"kind": "variant", "method": "redraw"},
            "φ sees x_t/α(t)": {"kind": "variant", "method": "x_t/alpha"},
            "the other φ" + (": one small CLIP" if results.config["models"]["own_tower"] else ": the victim's own tower"):
                {"kind": "variant", "method": "other_phi"},
            "time of the highest similarity where τ is never exceeded": {"kind": "variant", "method": "max_similarity"}}
    columns = {eps(e): {"eps": e, "data": results.config["data"]["classes"][0]} for e in strengths(results)}
    return tables.from_results(results, rows, columns, best=None, caption="What the sources leave open: top-1 (%) with one choice changed, one seed.")


def tau(results):
    tasks = {"captions": " (captions)", "questions": " (questions)"}
    rows = {"digits" if s == "digits:all" else short(s) + next((word for task, word in tasks.items() if task in s), ""): {"data": s}
            for s in results.tags("data", kind="tau")}
    return tables.from_results(results, rows, {"similarity": {"kind": "tau"}}, best=None, factor=1, digits=3,
                               caption="Calibration (Algorithm 2): mean cosine of φ between validation pictures and the same pictures attacked. τ is "
                               "the mean over the six sets; digits are not among them.")


def digits(results):
    rows = {"no defence": {"method": "none"}, "DiffPure": {"method": "diffpure"}, "DiffCAP, τ of the six sets": {"method": "diffcap"},
            "DiffCAP, τ calibrated on digits": {"method": "diffcap_own"}}
    columns = {f"top-1 (%), {eps(e)}": {"kind": "digits", "eps": e} for e in strengths(results) if results.select(kind="digits", eps=e)}
    steps = {f"stop time, {eps(e)}": {"kind": "digits_stop", "eps": e} for e in strengths(results) if results.select(kind="digits_stop", eps=e)}
    return tables.from_results(results, rows, {**columns, **steps}, best=None, factor=dict.fromkeys(steps, 1), interval="pm",
                               caption="τ under domain shift: real handwritten digits, a linear probe on the victim's embeddings, the diffusion "
                               "model of the scenes.")


def quality(results):
    rows = {label: {"method": name} for name, label in METHODS.items()}
    units = {"psnr": "PSNR (dB)", "ssim": "SSIM", "clip": "cosine of φ"}
    columns = {f"{label}, {eps(e)}": {"measure": q, "eps": e} for q, label in units.items() for e in (0.0, strengths(results)[-1])}
    return tables.from_results(results, rows, columns, common={"kind": "quality"}, best=None, factor=1,
                               digits={c: 1 if "PSNR" in c else 3 for c in columns}, caption="Pictures after the defence against the clean ones.")


def cost(results):
    rows = {"DiffPure": {"method": "diffpure"}, "DiffCAP": {"method": "diffcap"}}
    columns = {"denoiser passes": {"quantity": "denoiser_calls"}, "φ passes": {"quantity": "encoder_calls"},
               "loop (ms)": {"quantity": "encoder_seconds"}, "reverse (ms)": {"quantity": "reverse_seconds"},
               "all with CLIP (ms)": {"quantity": "seconds"}}
    return tables.from_results(results, rows, columns, common={"kind": "cost"}, best=None, interval="pm",
                               factor={c: 1000 if "ms" in c else 1 for c in columns}, digits=dict.fromkeys(columns, 2),
                               caption="Cost per picture on the machine that measured, one batch, one process (processor time without a GPU).")


def recovery(results):
    rows = {"noised": {"method": "noised"}, "noised and denoised": {"method": "purified"}}
    columns = {eps(e): {"eps": e} for e in strengths(results)[1:]}
    return tables.from_results(results, rows, columns, common={"kind": "recovery"}, best=None,
                               caption=f"Recovery region: share of pictures (%) with a time up to {results.config['sweeps']['times'][-1]} from which "
                               "on the answer to the adversarial picture is the answer to the clean one.")
