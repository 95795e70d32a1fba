"""distshift as the scripts, the page and the tests see it."""

from functools import partial

from papers.distshift import figures, tables
from papers.distshift.config import PRESETS, Config, check
from papers.distshift.steps import (
    Shift,
    describe,
    diffusion_of,
    guidance_named,
    guidance_of,
    number,
    protected,
    purification_of,
    time_of,
)
from shared.experiment.leaves import Pictures
from shared.experiment.paper import Gate, Grid, Paper, Tags
from shared.experiment.scale import check_batch, show_eps
from shared.experiment.step import Lab
from shared.experiment.store import slug
from shared.steps.choice import settled
from shared.steps.yours import Yours

POINTS = ("against", "judged", "measure", "quantity", "t", "rounds", "scale", "variant", "candidate")


def name(tags: Tags) -> str:
    """kind, method, set, attack, ball, ε, seed, and what is varied."""

    def value(x: object) -> str:
        return f"{x:g}".replace("-", "m") if isinstance(x, float) else str(x)

    point = (f"{k}-{value(tags[k])}" for k in POINTS if k in tags)
    where = (tags[k] for k in ("kind", "method", "data", "attack", "norm"))
    return slug(*where, f"{tags['eps'] * 255:g}", f"seed{tags['seed']}", *point)


def gates(c: Config) -> list[Gate]:
    """What must hold of the undefended victims, and of DiffPure."""
    found = []
    for place, spec in enumerate(tables.sets(c)):
        source = protected(c, spec).weights

        def of(method: str, tags: Tags, place: int = place) -> Grid:
            return Grid({method: {"method": method}}, {"": tags}, tables.of_place(c, place), c.seeds[:1])

        found.append(Gate(f"{spec}: clean accuracy", of("none", tables.CLEAN), ">=", c.gates.clean, source))
        for norm, bar in (("linf", c.gates.linf), ("l2", c.gates.l2)):
            title = f"{spec}: accuracy under the cascade, {norm} {show_eps(tables.radius(c, norm))}"
            found.append(Gate(title, of("none", tables.under(c, norm, "autoattack")), "<=", bar, source))
        lost = {"minus": of("diffpure", tables.CLEAN), "detail": partial(time_in_words, c, spec)}
        found.append(
            Gate(f"{spec}: clean accuracy lost to DiffPure", of("none", tables.CLEAN), "<=", c.gates.purified, **lost)
        )
    return found


def time_in_words(c: Config, spec: str, lab: Lab) -> str:
    """t* of a set, once it is chosen."""
    return f"t* = {settled(lab, time_of(c, spec))}"


def facts(lab: Lab, c: Config) -> dict:
    """What the page says of the sets: which pictures they are (ImageNet30). And what was chosen."""
    return {
        "names": {spec: lab.data(spec).name for spec in tables.sets(c)},
        "chosen": {
            "t": settled(lab, time_of(c, tables.sets(c)[0])),
            "guidance": tables.in_words(settled(lab, guidance_of(c))),
        },
    }


def defence(model: object) -> Shift:
    """distshift, guided by the model that it stands before, at the cpu scale's first setting."""
    c = PRESETS["cpu"]
    purification = purification_of(c, tables.sets(c)[0], c.choosing.times[0])
    return Shift(purification, model, guidance_named(c, c.choosing.guidances[0]), c.method.rounds)


def look(lab: Lab, c: Config) -> None:
    """Raises UserError for a time that a diffusion model does not have, and a batch larger than what is trained on."""
    for name, p in ((name, p) for name, p in vars(c.models).items() if getattr(p, "data", "")):
        times = {f"--models.{name}.t": (p.t,)} if p.t else {"--choosing.times": c.choosing.times}
        first, own = name == "first", c.released.second_times
        diffusion_of(c, p.data).check_times(
            lab, {**times, **({"--sweeps.t": c.sweeps.t} if first else {"--released.second-times": own})}
        )
        for option, weights, training in (
            ("--training.batch", p.weights, c.training),
            ("--at-training.batch", p.at_weights, c.at_training),
            ("--denoising.batch", p.denoiser, c.denoising),
        ):
            if weights == "train":
                check_batch(option, training.batch, len(lab.data(p.data, "train")), "pictures")


def yours(lab: Lab, c: Config) -> None:
    """A look at the user's own defence, on a few pictures of every set."""
    for spec in tables.sets(c):
        Yours.of(c).look(lab, Pictures(spec, "test", c.data.n, c.data.seed))


EXAMPLES = ("data.n", "adaptive.n", "adaptive.square_n", "sweeps.n", "sweeps.features_n", "sweeps.quality_n")
PAPER = Paper(
    "distshift",
    PRESETS,
    check,
    [tables, figures],
    number,
    name,
    describe,
    gates,
    facts,
    examples=EXAMPLES,
    defence=defence,
    look=look,
    yours=yours,
)
