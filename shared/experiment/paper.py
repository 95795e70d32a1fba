"""A paper: its presets, what its tables and figures show, and what the tags of a number mean.

    papers/<paper>/tables.py      what is shown, by the tags of numbers. No model is loaded there.
    papers/<paper>/steps.py       number(config, **tags) -> what is computed for it
    papers/<paper>/paper.py       PAPER = Paper(…)

What is measured is what is shown: the plan is read off the tables and figures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

from shared.experiment.step import Lab, Measured
from shared.experiment.store import slug

Tags = Mapping[str, object]


@dataclass(frozen=True)
class Grid:
    """Rows × columns of numbers. A row or column is a label and tags, or several of them whose mean is shown.

    common: tags of every number. seeds: of every number; tags with a `seed` of their own keep it, and with `seed: None`
    have none. joined: what the tags of a row and of a column mean together, None where there is no such number. apart:
    shows what has failed a gate of its own (`Gate.of`) and nothing else; other grids leave that out.
    """

    rows: Mapping[str, Tags | Sequence[Tags]]
    columns: Mapping[str, Tags | Sequence[Tags]]
    common: Tags = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    joined: Callable[[Tags, Tags], Tags | None] = field(default=lambda row, column: {**row, **column}, kw_only=True)
    apart: bool = field(default=False, kw_only=True)

    def cell(self, row: str, column: str) -> Iterator[dict[str, object]]:
        """The tags of the numbers behind one cell; tags that are None are left out."""
        for a in _several(self.rows[row]):
            for b in _several(self.columns[column]):
                joined = self.joined(a, b)
                if joined is None:
                    continue
                tags = {**self.common, **joined}
                for seed in (tags["seed"],) if "seed" in tags else self.seeds:
                    yield {k: v for k, v in {**tags, "seed": seed}.items() if v is not None}

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (tags for row in self.rows for column in self.columns for tags in self.cell(row, column))


def _several(tags: Tags | Sequence[Tags]) -> Sequence[Tags]:
    return [tags] if isinstance(tags, Mapping) else tags


@dataclass(frozen=True, eq=False)
class Number:
    """One measurement of a plan. asked: the tags that tables ask for it by; tags: these and what `describe` adds; step:
    what makes it; name: of its file, unique in a plan."""

    name: str
    step: Measured
    asked: Tags
    tags: Tags


@dataclass(frozen=True)
class Gate:
    """What must hold before any defence is trained or measured: the mean over a grid's numbers, less that over `minus`
    if there is one, or as a share of that over `share_of` (1 where that is 0), against a threshold, sense ">=" or "<=".

    threshold, detail: as they are, or functions of the Lab, where they depend on the data (a plan is made without any).
    of: the numbers that it is about, by tags. Where it fails, these are in no claim and shown apart, and all others
    go on; a gate without is about everything.
    """

    name: str
    grid: Grid
    sense: str
    threshold: float | Callable[[Lab], float]
    detail: str | Callable[[Lab], str] = ""
    minus: Grid | None = None
    share_of: Grid | None = None
    of: Tags = field(default_factory=dict)

    @property
    def grids(self) -> list[Grid]:
        """All that it reads."""
        return [grid for grid in (self.grid, self.minus, self.share_of) if grid is not None]


def named(*order: str) -> Callable[[Tags], str]:
    """Names made of tags in this order, tags that are absent left out:
    `named("kind", "seed{}")({"kind": "clean", "seed": 1})` is clean__seed1."""
    forms = [(part.partition("{")[0], part) if "{" in part else (part, "{}") for part in order]

    def name(tags: Tags) -> str:
        return slug(*(form.format(tags[tag]) for tag, form in forms if tag in tags))

    return name


@dataclass(frozen=True)
class Paper:
    """What the scripts, the page and the tests ask of a paper. name: its folder.

    presets: scale -> configuration; check: raises UserError for a configuration that cannot work. shows: its modules of
    tables and figures; what `shared.report.shown` has marked there is shown. One of them has `headline(config)`: the
    grids that the claims of the abstract read (all that `--headline` measures). number: (config, **asked tags) -> the
    step behind a number, None where there is no such number. describe: (config, **asked tags) -> further tags that
    claims may select by, such as the role of a set. number_name: asked tags -> the name of a number; see `named`.
    gates: (config) -> what must hold first. defence: (model) -> its method in front of a model, for `shared.judge`;
    None where it has none of that kind. look: (lab, config) -> None, raises UserError for options that do not go with
    the data and models, once these are there and before anything is made. yours: (lab, config) -> None, a look at the
    user's own method (`config.yours`) before anything long runs; None where no table has a row for one. examples: the
    options that say how many pictures numbers have, as in data.n; `shared.experiment.looks` doubles them. facts: (lab,
    config) -> what the page needs to know of the data; it stands in the plan among the fields of the configuration.
    """

    name: str
    presets: Mapping[str, object]
    check: Callable[[object], None]
    shows: Sequence[ModuleType]
    number: Callable[..., Measured | None]
    number_name: Callable[[Tags], str]
    describe: Callable[..., dict[str, object]] = lambda config, **asked: {}
    gates: Callable[[object], Sequence[Gate]] = lambda config: ()
    facts: Callable[[Lab, object], dict[str, object]] = lambda lab, config: {}
    examples: Sequence[str] = ("data.n",)
    defence: Callable[[object], object] | None = None
    look: Callable[[Lab, object], None] = lambda lab, config: None
    yours: Callable[[Lab, object], None] | None = None

    def plan(self, config: object) -> list[Number]:
        """Every number that a gate reads or that is shown or claimed (with `config.headline`: of the headline), each
        once."""
        grids = [grid for gate in self.gates(config) for grid in gate.grids]
        if config.headline:
            grids += next(module.headline(config) for module in self.shows if hasattr(module, "headline"))
        else:
            grids += [grid for shown in self.shown().values() for grid in shown.grids(config)]
        return self.numbers(config, grids)

    def everything(self, config: object) -> list[Number]:
        """The plan without `--headline`."""
        return self.plan(replace(config, headline=False))

    def shown(self) -> dict[str, Callable]:
        """The tables, figures and grids of claims, by the name of their function."""
        return {name: f for module in self.shows for name, f in vars(module).items() if hasattr(f, "grids")}

    def numbers(self, config: object, grids: Iterable[Grid]) -> list[Number]:
        """The numbers of some grids, each once. Raises ValueError where two of other tags have one name."""
        found: dict[str, Number] = {}
        absent: set[str] = set()
        for asked in (tags for grid in grids for tags in grid):
            name = self.number_name(asked)
            if name in absent:
                continue
            if name in found:
                if found[name].asked != asked:
                    raise ValueError(f"two numbers are named {name}: {dict(found[name].asked)} and {asked}")
                continue
            step = self.number(config, **asked)
            if step is None:
                absent.add(name)
            else:
                found[name] = Number(name, step, asked, {**asked, **self.describe(config, **asked)})
        return list(found.values())
