"""What each table of DiffCAP shows, by the tags of its numbers; what is measured is read off here and off figures.py.
No model is loaded.

The paper's own tables could not be read; theirs have numbers that we do not know, so ours have names.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from shared.experiment.paper import Grid
from shared.report.choices import candidate_grid, choices
from shared.report.shown import YOURS, Filled, Shown, claimed, pictures_in_words, table, table_of, with_yours
from shared.report.tables import Table

if TYPE_CHECKING:
    from papers.diffcap.config import Config

METHODS = {
    "none": "no defence",
    "tecoa": "TeCoA",
    "fare": "FARE",
    "jpeg": "JPEG",
    "bits": "bit depth",
    "resize_pad": "resize and pad",
    "blur": "blur",
    "resize": "resize only",
    "noise": "noise only",
    "clipure": "CLIPure-Cos",
    "diffpure": "DiffPure",
    "diffcap": "DiffCAP",
}
named = partial(with_yours, METHODS)
TOWERS = ("tecoa", "fare")  # robust encoders: defences that change the model
RANDOM = ("resize_pad", "noise", "diffpure", "diffcap", YOURS)  # measured once per seed
PURIFIERS = ("diffpure", "diffcap")
CLAIMED_RANDOM = (*PURIFIERS, YOURS)  # as those that claims read of language models: the others have one seed there
CLIP = "clip"
LANGUAGE = ("llava", "flamingo")
MODELS = {"llava": "LLaVA", "flamingo": "Flamingo-type", CLIP: "CLIP"}
TASKS = ("captions", "questions", "classes")
AGAINST = {
    "control": "nobody (control)",
    "transfer": "transfer",
    "bpda": "BPDA",
    "bpda_eot": "BPDA+EOT",
    "exact": "exact + EOT",
    "early_stop": "exact + EOT + early stop",
    "from_diffpure": "exact on DiffPure",
}
ONLY_DIFFCAP = ("early_stop", "from_diffpure")  # attackers
CAPTION_AGAINST = ("control", "transfer", "bpda_eot", "exact")
# rows whose setting is chosen -> the grid of `Choosing`, where it is not named like the row
GRIDS = {"tecoa": "rates", "fare": "rates", "diffpure": "times", "noise": "times"}
CHOSEN = ("tecoa", "fare", "jpeg", "bits", "resize_pad", "blur", "noise", "clipure", "diffpure", "diffcap")
VARIANTS = {
    "redraw": "fresh noise at every time (redraw)",
    "x_t/alpha": "φ sees x_t/α(t)",
    "other_phi": "the other φ",
    "max_similarity": "time of the highest similarity where τ is never reached",
}
DIGITS = "digits:all"


# ---- names -------------------------------------------------------------------------------------------------------------


def written(eps: float) -> str:
    """An ε as people write it."""
    return "clean" if eps == 0 else f"{eps * 255:g}/255"


def short(spec: str) -> str:
    """A set's name without what the table's caption says."""
    return spec.rpartition(":")[2].replace("_", " ").lower()


def strengths(c) -> tuple[float, ...]:
    """0 and the ε of the attacks."""
    return (0.0, *c.attack.eps)


def task_of(spec: str, model: str = "") -> str:
    """What is asked about the pictures of a set: captions, questions, or, of CLIP alone, classes."""
    if "captions" in spec or spec in ("coco", "flickr30k"):
        return "captions"
    return "classes" if model == CLIP else "questions"


def sets(c) -> tuple[str, ...]:
    """The six sets, in the order of tasks; or the two to classify."""
    return (*c.data.captions, *c.data.questions, *c.data.classes)


def number(c: "Config") -> str:
    """How many they are, in words."""
    return {2: "two", 6: "six"}.get(len(sets(c)), str(len(sets(c))))


# ---- rows and columns --------------------------------------------------------------------------------------------------


def rows(c, methods: Iterable[str] = METHODS, random: Iterable[str] = RANDOM) -> dict[str, dict]:
    """One method a row, the user's own last; what is not random is measured once."""
    return {
        label: {"method": m} if m in random else {"method": m, "seed": c.seeds[0]}
        for m, label in named(c, methods).items()
    }


def at(c: "Config", where: Mapping, eps: float) -> dict:
    """Tags of a model and set at an ε. Language models see clean pictures with one seed: no claim reads these."""
    once = {"seed": c.seeds[0]} if eps == 0 and where["model"] != CLIP else {}
    return {**where, "eps": eps, **once}


def asked(c: "Config") -> list[str]:
    """The tasks that have a set."""
    return [task for task in TASKS if getattr(c.data, task)]


def judging(c, task: str) -> list[dict]:
    """The models that a task asks, on each of its sets."""
    models = (CLIP,) if task == "classes" else LANGUAGE
    return [{"model": m, "data": s} for m in models for s in getattr(c.data, task)]


def existing(row: Mapping, column: Mapping) -> dict | None:
    """CLIPure-Cos works on embeddings for classification only."""
    return None if row.get("method") == "clipure" and column["model"] != CLIP else {**row, **column}


def varied(c: "Config", kind: str, model: str = CLIP, **tags: object) -> dict:
    """Tags of what is varied: on CLIP and its first set, or on a captioner and its."""
    spec = (c.data.classes if model in (CLIP, "phi") or not c.data.captions else c.data.captions)[0]
    return {"kind": kind, "model": model, "data": spec, **tags}


def on(c: "Config", kind: str, model: str = CLIP, **tags: object) -> dict:
    """The same with one seed."""
    return varied(c, kind, model, seed=c.seeds[0], **tags)


def clean_and_worst(c) -> dict[str, dict]:
    """Columns: no attack, and the strongest."""
    return {written(e): {"eps": e} for e in (0.0, c.attack.eps[-1])}


# ---- main tables -------------------------------------------------------------------------------------------------------


def main_table(c, task: str, caption: str, factor: float = 100) -> Shown:
    columns = {
        f"{MODELS[where['model']]}, {short(where['data'])}, {written(e)}": at(c, where, e)
        for where in judging(c, task)
        for e in strengths(c)
    }
    methods = [m for m in METHODS if m != "clipure" or task == "classes"]
    random = RANDOM if task == "classes" else CLAIMED_RANDOM
    return Shown(rows(c, methods, random), columns, {"kind": "score"}, c.seeds, caption, factor=factor)


@table
def captions(c):
    caption = (
        "Captioning: CIDEr-D (× 100, as papers print it) under the staged attack of RobustVLM. Purifiers face the "
        "attack on the undefended model."
    )
    return main_table(c, "captions", caption, 1)


@table
def questions(c):
    caption = (
        "Question answering: VQA accuracy (%) under the staged attack. Purifiers face the attack on the undefended "
        "model."
    )
    return main_table(c, "questions", caption)


@table
def classes(c):
    caption = (
        "Zero-shot classification: top-1 (%) under APGD-CE and APGD-T. Purifiers and CLIPure-Cos face the attack on "
        "the undefended model."
    )
    return main_table(c, "classes", caption + pictures_in_words(c))


# ---- attackers who know the defence ------------------------------------------------------------------------------------


def attackers(c, names: Iterable[str]) -> dict[str, dict]:
    """(defence, attacker) of either purifier, and of the user's own."""
    names = list(names)
    return {
        f"{label}, {AGAINST[a]}": {"method": m, "against": a}
        for m, label in named(c, PURIFIERS).items()
        for a in names
        if m == "diffcap" or a not in ONLY_DIFFCAP
    }


def mean_and_worst(c) -> dict[str, dict]:
    """Two ways of judging repeated purifications."""
    return {f"mean of {c.adaptive.draws}": {"judged": "mean"}, f"worst of {c.adaptive.draws}": {"judged": "worst"}}


@table
def adaptive(c):
    a = c.adaptive
    columns = {"one": {"judged": "one"}, **mean_and_worst(c), "majority": {"judged": "majority"}}
    caption = (
        f"Attackers who know the defence: top-1 (%) of CLIP on {short(c.data.classes[0])}, ε = {written(a.eps)}, "
        f"{a.steps} steps, {a.eot} draws "
        "per gradient, after repeated purification. The control is not attacked: the worst of N falls with N even "
        "there."
    )
    return Shown(attackers(c, AGAINST), columns, on(c, "adaptive", eps=a.eps), caption=caption, best=None)


@table
def adaptive_captions(c):
    a, common = c.adaptive, on(c, "adaptive_caption", "llava", eps=c.adaptive.eps)
    caption = (
        f"Attackers who know the defence, captioning: CIDEr-D (× 100) of LLaVA on {short(common['data'])}, ε = "
        f"{written(a.eps)}, {a.steps} APGD steps against one reference."
    )
    lines = attackers(c, CAPTION_AGAINST) if c.data.captions else {}
    return Shown(lines, mean_and_worst(c), common, caption=caption, best=None, factor=1)


@table
def targeted(c):
    a = c.attack
    columns = {f"“{s}”": {"string": s} for s in a.strings}
    caption = (
        f"Attacks towards a string, LLaVA, ε = {written(a.eps[-1])}, {a.target_steps} steps: share of answers (%) that "
        "hold it. Purifiers face the attack on the undefended model."
    )
    methods = ("none", *TOWERS, "jpeg", *PURIFIERS) if c.data.captions else ()
    lines = {label: {"method": m} for m, label in (named(c, methods) if methods else {}).items()}
    return Shown(lines, columns, on(c, "targeted", "llava", eps=a.eps[-1]), caption=caption, best="min")


# ---- the stop rule -----------------------------------------------------------------------------------------------------


def tried(c: "Config", methods: Iterable[str] = CHOSEN) -> Grid:
    """Every candidate of every choice."""
    words = {
        "tecoa": "lr × {:g}",
        "fare": "lr × {:g}",
        "jpeg": "quality {}",
        "bits": "{} bits",
        "resize_pad": "up to {:g}",
        "blur": "σ = {:g}",
        "noise": "t = {}",
        "clipure": "η = {:g}",
        "diffpure": "t* = {}",
    }
    said = {m: [words[m].format(v) for v in getattr(c.choosing, GRIDS.get(m, m))] for m in methods if m in words}
    said["diffcap"] = [f"Δt = {dt}, T_max = {t_max}, τ {raised:+g}" for dt, t_max, raised in c.choosing.diffcap]
    lines = {m: [f"{METHODS[m]}: {text}" for text in texts] for m, texts in said.items()}
    return candidate_grid(lines, on(c, "choice", eps=c.attack.eps[-1]))


@table_of(tried)
def settings(grid: Filled) -> Table:
    """How settings were chosen."""
    c = grid.config
    caption = (
        f"How settings were chosen: mean of clean top-1 (%) and top-1 under the attack at {written(c.attack.eps[-1])}, "
        f"CLIP, {c.choosing.n} validation pictures of {short(c.data.classes[0])}; no test picture. The highest counts, "
        "of equal ones the first. τ is that of Algorithm 2, moved by so much."
    )
    return choices(grid, caption)


@table
def ablation(c):
    lines = {f"τ {o:+g}": {"offset": o, "factor": 1.0} for o in c.sweeps.taus}
    lines |= {f"Δt × {f:g}": {"offset": 0.0, "factor": f} for f in c.sweeps.factors}
    columns = {written(0): {"eps": 0.0, "seed": c.seeds[0]}, written(c.attack.eps[-1]): {"eps": c.attack.eps[-1]}}
    caption = "τ and Δt: top-1 (%) with one of them moved from what was chosen."
    common = varied(c, "ablation", method="diffcap")
    return Shown(lines, columns, common, c.seeds, caption=caption, best=None)


@table
def variants(c):
    other = ": one small CLIP" if c.models.own_tower else ": the victim's own tower"
    lines = {"DiffCAP": {"kind": "score", "method": "diffcap"}}
    lines |= {
        label + (other if v == "other_phi" else ""): {"kind": "variant", "method": v} for v, label in VARIANTS.items()
    }
    columns = {written(e): {"eps": e} for e in strengths(c)}
    caption = "What the sources leave open: top-1 (%) with one choice changed, one seed."
    return Shown(lines, columns, on(c, ""), caption=caption, best=None)


def similarity_of_pairs(c, specs: Sequence[str]) -> list[dict]:
    """Tags of the calibration pairs of some sets."""
    return [{**on(c, "tau", "phi", method="diffcap", eps=c.method.calibration_eps), "data": s} for s in specs]


@table
def tau(c):
    words = {"captions": " (captions)", "questions": " (questions)"}
    names = {s: short(s) + next((word for task, word in words.items() if task in s), "") for s in sets(c)} | {
        DIGITS: "digits"
    }
    lines = {names[tags["data"]]: tags for tags in similarity_of_pairs(c, (*sets(c), DIGITS))}
    caption = (
        "Calibration (Algorithm 2): mean cosine of φ between validation pictures and the same pictures attacked. τ "
        f"is the mean over the {number(c)} sets; "
        "digits are not among them."
    )
    return Shown(lines, {"similarity": {}}, {}, caption=caption, best=None, factor=1, digits=3)


@table
def digits(c):
    lines = {
        "no defence": {"method": "none"},
        "DiffPure": {"method": "diffpure"},
        f"DiffCAP, τ of the {number(c)} sets": {"method": "diffcap"},
        "DiffCAP, τ calibrated on digits": {"method": "diffcap_own"},
    }
    levels = (0.0, c.attack.eps[-1])
    columns = {f"top-1 (%), {written(e)}": {"kind": "digits", "eps": e} for e in levels}
    steps = {f"stop time, {written(e)}": {"kind": "digits_stop", "eps": e} for e in levels}

    def joined(row: Mapping, column: Mapping) -> dict | None:
        stops = row["method"].startswith("diffcap")
        return {**row, **column} if stops or column["kind"] == "digits" else None

    caption = (
        "τ under domain shift: real handwritten digits, a linear probe on the victim's embeddings, the diffusion "
        f"model of the {'scenes' if c.data.captions else 'photographs'}."
    )
    common = {"model": "probe", "data": DIGITS, "seed": c.seeds[0]}
    look = {"caption": caption, "best": None, "factor": dict.fromkeys(steps, 1), "interval": "pm", "joined": joined}
    return Shown(lines, columns | steps, common, **look)


# ---- pictures, costs, theory -------------------------------------------------------------------------------------------

MEASURES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "clip": "cosine of φ"}


@table
def quality(c):
    shown = named(c, [m for m in METHODS if m not in (*TOWERS, "clipure")])
    lines = {label: {"method": m} for m, label in shown.items()}
    columns = {
        f"{label}, {level}": {"measure": measure, **tags}
        for measure, label in MEASURES.items()
        for level, tags in clean_and_worst(c).items()
    }
    digits = {name: 1 if "PSNR" in name else 3 for name in columns}
    caption = "Pictures after the defence against the clean ones."
    return Shown(lines, columns, on(c, "quality"), caption=caption, best=None, factor=1, digits=digits)


COSTS = {
    "denoiser_calls": "denoiser passes",
    "encoder_calls": "φ passes",
    "encoder_seconds": "loop (ms)",
    "reverse_seconds": "reverse (ms)",
    "seconds": "all with CLIP (ms)",
}


@table
def cost(c):
    lines = {label: {"method": m} for m, label in named(c, PURIFIERS).items()}
    columns = {label: {"quantity": q} for q, label in COSTS.items()}
    factor = {name: 1000 if "ms" in name else 1 for name in columns}
    caption = "Cost per picture on the machine that measured, one batch, one process (processor time without a GPU)."
    look = {"caption": caption, "best": None, "interval": "pm", "factor": factor, "digits": dict.fromkeys(columns, 2)}
    return Shown(lines, columns, varied(c, "cost", eps=c.attack.eps[-1]), c.seeds, **look)


@table
def recovery(c):
    first, *stronger = c.attack.eps
    once = {"seed": c.seeds[0]}  # a claim reads the other
    lines = {"noised": {"method": "noised", **once}, "noised and denoised": {"method": "purified"}}
    columns = {written(first): {"eps": first}} | {written(e): {"eps": e, **once} for e in stronger}
    caption = (
        f"Recovery region: share of pictures (%) with a time up to {c.sweeps.times[-1]} from which on the answer to "
        "the adversarial picture is the "
        "answer to the clean one."
    )
    return Shown(lines, columns, varied(c, "recovery"), c.seeds, caption=caption, best=None)


# ---- what claims read --------------------------------------------------------------------------------------------------

HEADLINE_ROWS = ("none", *TOWERS, "jpeg", "clipure", "diffpure", "diffcap")


def scores(c, methods: Iterable[str], task: str) -> Grid:
    """Every model, set and strength of a task."""
    columns = {f"{where} {e}": at(c, where, e) for where in judging(c, task) for e in strengths(c)}
    return Grid(rows(c, methods), columns, {"kind": "score"}, c.seeds, joined=existing)


@claimed
def stops(c) -> list[Grid]:
    """Diffusion times of both purifiers in the main tables."""
    columns = {f"{where} {e}": at(c, where, e) for task in TASKS for where in judging(c, task) for e in strengths(c)}
    return [Grid(rows(c, PURIFIERS, ("diffcap",)), columns, {"kind": "stop"}, c.seeds)]


def fading(c) -> Grid:
    """Distance of embeddings along the noise."""
    columns = {str(t): {"t": t} for t in c.sweeps.times}
    return Grid({"": {"method": "none"}}, columns, varied(c, "fading", eps=c.attack.eps[-1]), c.seeds)


def headline(c) -> list[Grid]:
    """What the claims of the abstract read."""
    moved = ablation.grids(c)[0]
    worst = {k: v for k, v in moved.columns.items() if v["eps"]}
    return [
        *(scores(c, HEADLINE_ROWS, task) for task in TASKS),
        *stops(c),
        tried(c, [m for m in CHOSEN if m in HEADLINE_ROWS]),
        Grid({"": similarity_of_pairs(c, sets(c))}, {"": {}}),
        fading(c),
        Grid(moved.rows, worst, moved.common, c.seeds),
        *cost.grids(c),
        *recovery.grids(c),
    ]
