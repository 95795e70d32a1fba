"""DiffCAP as the scripts, the page and the tests see it."""

from papers.diffcap import figures, tables
from papers.diffcap.config import PRESETS, Config, check
from papers.diffcap.steps import Stopping, data_of, describe, diffusion_of, number, stopping_of
from shared.experiment.paper import Gate, Grid, Paper, Tags
from shared.experiment.scale import check_batch, show_eps
from shared.experiment.step import Lab
from shared.experiment.store import slug
from shared.steps.yours import Yours

POINTS = ("offset", "factor", "candidate", "against", "judged", "t", "quantity", "pairs", "measure", "string")


def name(tags: Tags) -> str:
    """kind, method, model, set, ε, seed, and what is varied."""

    def value(x: object) -> str:
        return f"{x:g}".replace("-", "m") if isinstance(x, float) else str(x)

    where = (tags[k] for k in ("kind", "method", "model", "data"))
    point = (f"{k}-{value(tags[k])}" for k in POINTS if k in tags)
    return slug(*where, f"{tags['eps'] * 255:g}", f"seed{tags['seed']}", *point)


def gates(c: Config) -> list[Gate]:
    """What must hold of the undefended models on the first set of each task, and of DiffPure."""
    worst, found = c.attack.eps[-1], []

    def of(eps: float, model: str, spec: str, kind: str = "score", method: str = "none") -> Grid:
        where = {"kind": kind, "model": model, "data": spec, "eps": eps}
        return Grid({"": {"method": method}}, {"": where}, seeds=c.seeds[:1])

    asked = [(m, task) for task in tables.asked(c)[:-1] for m in tables.LANGUAGE] + [(tables.CLIP, "classes")]
    for model, task in asked:
        spec = getattr(c.data, task)[0]
        if task != "captions":
            found.append(Gate(f"{model}: clean score on {task}", of(0.0, model, spec), ">=", c.gates.clean, spec))
        elif spec.startswith("scenes-"):
            title = f"{model}: captions with the right colour and shape"
            found.append(Gate(title, of(0.0, model, spec, "named"), ">=", c.gates.clean, spec))
        title = f"{model}: share of the clean score on {task} under the attack at {show_eps(worst)}"
        found.append(Gate(title, of(worst, model, spec), "<=", c.gates.broken, spec, share_of=of(0.0, model, spec)))
    first = c.data.classes[0]
    pure = of(0.0, tables.CLIP, first, method="diffpure")
    lost = Gate("clean top-1 lost to DiffPure", of(0.0, tables.CLIP, first), "<=", c.gates.purified, minus=pure)
    return [*found, lost]


def defence(model: object) -> Stopping:
    """DiffCAP in front of any model, at the cpu scale's first setting; τ is calibrated with φ, which is not the
    model."""
    c = PRESETS["cpu"]
    return stopping_of(c, *c.choosing.diffcap[0])


def look(lab: Lab, c: Config) -> None:
    """Raises UserError for a time that the diffusion model does not have, and a batch larger than what is trained
    on."""
    times = {"--choosing.diffcap": [t_max for _, t_max, _ in c.choosing.diffcap], "--choosing.times": c.choosing.times}
    diffusion_of(c).check_times(lab, times)
    n = len(lab.data(c.data.train, "train"))
    check_batch("--tuning.batch", c.tuning.batch, n, "pictures")
    check_batch("--fare.batch", c.fare.batch, n, "pictures")


def yours(lab: Lab, c: Config) -> None:
    """A look at the user's own defence, on a few pictures of the first set to classify."""
    Yours.of(c).look(lab, data_of(c, c.data.classes[0]))


EXAMPLES = (
    *("data.n", "attack.target_n", "adaptive.n", "adaptive.caption_n"),
    *("sweeps.n", "sweeps.digits_n", "sweeps.quality_n"),
)
SHOWN = [tables, figures]
FITS = {"examples": EXAMPLES, "defence": defence, "look": look, "yours": yours}
PAPER = Paper("diffcap", PRESETS, check, SHOWN, number, name, describe, gates, **FITS)
