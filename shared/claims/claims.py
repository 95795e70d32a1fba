"""The statements and numbers of a paper, as data: `papers/<paper>/claims.yaml`. (What was measured is held against them
in `verdicts`.)

    paper: pmg_aft
    title: "Pre-trained model guided fine-tuning (CVPR 2024)"
    equivalence:             # optional: δ of each kind of quantity
    - {unit: points, quantity: {kind: accuracy}, delta: 2.495, why: "half of 4.99 (abstract)"}
    claims:
    - id: abstract-robust
      text: Guidance by the pre-trained model adds robust accuracy over the previous best, on average over 15 zero-shot sets.   # our words
      where: abstract        # abstract | table | figure | text | mechanism | code | third-party | ours
      source: abstract       # what was read, in words
      mark: S                # how sure: S, S2 (secondary), M (measured by us), I (inferred), L (low trust), D (derived), U (unknown)
      headline: true         # `make headline` measures what these need
      value: 4.99            # a number, `unknown` (nobody here has read it) or `none` (the statement has no number); with mark U: `unknown`
      unit: points           # "%", points, ratio, or the unit of the measurement; fractions become percent for "%" and points
      quantity: {method: pmg_aft, attack: pgd10, role: zero_shot, group: main}
      minus: {method: tecoa}                    # or `ratio: {…}`; tags not named are those of `quantity`
      predicate: greater
      tolerance: 1.5                            # at paper scale: |measured − value| <= tolerance, on the interval
      testable: [cpu, photos, paper]            # a scale left out needs `why_not`
    reference_tables:
    - id: tga-pgd100
      title: "PGD-100, eps 1/255"
      where: third-party
      source: "table of another paper"
      mark: S2
      unit: "%"
      row_tag: method
      column_tag: set
      columns: [tinyimagenet, cifar10]
      rows: {clip: [0.88, 2.42], tecoa: [37.57, unknown]}
      mean: {clip: 1.65}                        # optional: the row's mean over the columns, as printed
      quantity: {attack: pgd100, group: main}   # the other tags of each cell
      tolerance: 3.0
      why_not: These are ViT-B/32 numbers on public photographs; other scales have other models and pictures.

Claims that repeat each other stand as a group, `- {defaults: {where: table, testable: [paper], …}, claims: [{…}, …]}`:
what a claim leaves out is the group's, and the tags of its `quantity` are laid over the group's. Reference tables
likewise.

A selector is tags that must match: a value, a list (any of these) or `{not: value or list}`; numbers may be written
"1/255". It stands for the mean over the matching sets of the mean over examples and seeds. Predicates, x being
quantity, quantity − minus or quantity / ratio:

    greater       x > margin (0; 1 for a ratio)      at_least   x >= threshold
    within        |x − value| <= tolerance           at_most    x <= threshold
    equal_within  |quantity − minus| <= tolerance
    monotone      `sequence: [{eps: 1}, {eps: 2}, …]` (each laid over `quantity`), `order: increasing | decreasing`
    exceeds_all   quantity − rival > margin for every one of `rivals: [{method: a}, {method: b}, …]` (each laid over `quantity`)

`equivalence: δ` (greater and exceeds_all) is the difference that would matter, declared before the run: a claim whose
difference is shown to be smaller than δ either way is decided, as "no difference". A claim has the δ of the first entry
of the file's `equivalence` with its unit whose tags are among those of its `quantity`, unless it states its own. δ is
derived from the paper, never from what was measured here: half of the smallest difference of that kind that is printed
(the `value` of a claim, else a gap in a reference table), leaving out those below the tolerance at which their number
counts as reproduced; `why` says which that is. Where there is none, a kind may have no δ, and its claims stay open.

`readings: {as_written: {method: a}, as_released: {method: b}}` names several readings of a statement: wherever the
claim names the tags of the first, those of another stand instead. Each has a verdict; the first is the one that counts.

SCALE=evening is not listed: it tests what the paper's scale does, but for `within` and what `why_not` gives a reason
against (`why_not: {evening: …}`).

Every mistake is a UserError of one sentence that names the file and the claim.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shared.claims.selection import Selector, in_yaml, matches
from shared.errors import UserError

UNKNOWN = "unknown"
EVENING = "evening"  # the paper's models and data with small budgets: `testable` names the scales beside it
Where = Literal["abstract", "table", "figure", "text", "mechanism", "code", "third-party", "ours"]
Mark = Literal["S", "S2", "M", "I", "L", "D", "U"]
Scale = Literal["cpu", "photos", "paper"]
Predicate = Literal["greater", "at_least", "at_most", "within", "equal_within", "monotone", "exceeds_all"]
COMPARED = ("greater", "exceeds_all")  # the predicates of a direction, which may turn out to be no difference
NEEDS = {
    "at_least": "threshold",
    "at_most": "threshold",
    "within": "tolerance",
    "equal_within": "tolerance",
    "monotone": "order",
}


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _selector(tags: object) -> dict:
    if not isinstance(tags, dict):
        raise ValueError(f"must hold selectors such as {{method: tecoa}}, not {tags!r}")
    for tag, wanted in tags.items():
        if isinstance(wanted, dict) and set(wanted) != {"not"}:
            raise ValueError(f"is wrong: tag {tag} must be a value, a list or {{not: …}}, not {wanted!r}")
        inner = wanted["not"] if isinstance(wanted, dict) else wanted
        if any(
            isinstance(one, float) and not math.isfinite(one) for one in (inner if isinstance(inner, list) else [inner])
        ):
            raise ValueError(f"is wrong: tag {tag} must be finite, not {wanted!r}")
    return tags


def _value(value: object) -> float | str | None:
    """A statement without a number says so by `none`."""
    if value in ("none", None):
        return None
    if value != UNKNOWN and not (_is_number(value) and math.isfinite(value)):
        raise ValueError(f"must be a number, `unknown` or `none`, not {value!r}")
    return value


Tags = Annotated[dict[str, Any], BeforeValidator(_selector)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Size = Annotated[Number, Field(ge=0)]
Cell = Annotated[Number | None, BeforeValidator(lambda cell: None if cell == UNKNOWN else cell)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Margin(_Entry):
    """The difference δ of one kind of quantity that would matter, and what it is derived from."""

    unit: str
    quantity: Tags = {}
    delta: Annotated[Number, Field(gt=0)]
    why: Annotated[str, Field(min_length=1)]


class Claim(_Entry):
    """One statement of the paper (module docstring). `value`: a number, "unknown", or None for a statement without a
    number."""

    id: str
    text: str
    where: Where
    source: str
    mark: Mark
    predicate: Predicate
    quantity: Tags
    value: Annotated[float | str | None, BeforeValidator(_value)]
    unit: str
    testable: tuple[Scale, ...]
    headline: bool = False
    minus: Tags | None = None
    ratio: Tags | None = None
    sequence: tuple[Tags, ...] = ()
    rivals: tuple[Tags, ...] = ()
    order: Literal["increasing", "decreasing"] | None = None
    margin: Size | None = None
    threshold: Number | None = None
    tolerance: Size | None = None
    equivalence: Annotated[Number, Field(gt=0)] | None = None
    why_not: str | dict[str, str] = ""
    how: str = ""
    readings: dict[str, Tags] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "Claim":
        predicate, compared = self.predicate, self.minus is not None or self.ratio is not None
        missing = [scale for scale in get_args(Scale) if scale not in self.testable and not self.reason_against(scale)]
        for wrong, problem in (
            (self.mark == "U" and _is_number(self.value), "mark U says that nobody has read the number, so `value` must be `unknown`"),
            (predicate in NEEDS and getattr(self, NEEDS.get(predicate, "order")) is None, f"predicate {predicate} needs `{NEEDS.get(predicate)}`"),
            (self.minus is not None and self.ratio is not None, "`minus` and `ratio` exclude each other"),
            (predicate == "greater" and not compared, "predicate greater needs `minus` or `ratio`; to compare with a number use at_least"),
            (predicate == "equal_within" and self.minus is None, "predicate equal_within needs `minus`"),
            (predicate == "within" and self.value is None,
             "predicate within compares with the paper's number, so `value` must be a number or `unknown`"),
            ((predicate == "monotone") != bool(self.sequence), "`sequence` belongs to predicate monotone, and monotone needs it"),
            (len(self.sequence) == 1, "`sequence` must be a list of at least two selectors"),
            ((predicate == "exceeds_all") != bool(self.rivals), "`rivals` belongs to predicate exceeds_all, and exceeds_all needs it"),
            (self.rivals and compared, "`rivals` must be a list of selectors, without `minus` or `ratio` beside it"),
            (self.margin is not None and predicate not in COMPARED,
             "`margin` belongs to predicates greater and exceeds_all"),
            (self.equivalence is not None and predicate not in COMPARED,
             "`equivalence` belongs to predicates greater and exceeds_all"),
            (len(self.readings) == 1, "`readings` must name at least two"),
            (self.readings and any(reading == self for reading in list(self.variants.values())[1:]),
             "the claim must name the tags of the first of `readings`, and the others must have other values"),
            (missing, f"not testable at {', '.join(missing)}, so `why_not` must say why"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(problem)
        return self

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """Every selector that the claim needs, tags filled in."""
        if self.sequence:
            return tuple({**self.quantity, **step} for step in self.sequence)
        if self.rivals:
            return (self.quantity, *({**self.quantity, **rival} for rival in self.rivals))
        other = self.minus if self.minus is not None else self.ratio
        return (self.quantity,) if other is None else (self.quantity, {**self.quantity, **other})

    @property
    def variants(self) -> dict[str, "Claim"]:
        """The claim under each of its readings, by name; by "" where it has only one."""
        first = next(iter(self.readings.values()), {})

        def read(tags: dict, instead: dict) -> dict:
            return {**tags, **instead} if first.items() <= tags.items() else tags

        def under(instead: dict) -> "Claim":
            sides = {"quantity": self.quantity, "minus": self.minus, "ratio": self.ratio}
            changed = {side: tags and read(tags, instead) for side, tags in sides.items()}
            lists = {"sequence": self.sequence, "rivals": self.rivals}
            changed |= {side: tuple(read(tags, instead) for tags in several) for side, several in lists.items()}
            return self.model_copy(update=changed)

        return {name: under(instead) for name, instead in self.readings.items()} or {"": self}

    def reason_against(self, scale: str) -> str:
        """Why the claim is not tested at `scale`; "" where it is."""
        why = self.why_not if isinstance(self.why_not, str) else self.why_not.get(scale, "")
        if scale != EVENING or (not isinstance(self.why_not, str) and scale in self.why_not):
            return "" if scale in self.testable else why
        if "paper" not in self.testable:
            return self.reason_against("paper")
        return "The number is of the paper's budget." if self.predicate == "within" else ""

    def is_tested(self, scale: str) -> bool:
        """Whether the claim says that it is tested at `scale`: in the evening, whatever is at the paper's scale and no
        number of its budget."""
        return not self.reason_against(scale) if scale == EVENING else scale in self.testable

    def is_testable(self, scale: str) -> bool:
        """Whether there can be a verdict at `scale`: it is tested, and somebody has read the number that it needs."""
        return self.is_tested(scale) and not (self.predicate == "within" and self.value == UNKNOWN)


class ReferenceTable(_Entry):
    """Known numbers of a table, row by row; None is a cell nobody here has read."""

    id: str
    title: str
    where: Where
    source: str
    mark: Mark
    unit: str
    row_tag: str
    column_tag: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]
    quantity: Tags
    tolerance: Size
    why_not: str
    mean: dict[str, Number] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "ReferenceTable":
        for row, numbers in self.rows.items():
            if len(numbers) != len(self.columns):
                raise ValueError(f"row {row} must list {len(self.columns)} numbers, one per column")
        if not set(self.mean) <= set(self.rows):
            raise ValueError("`mean` must give numbers for rows of the table")
        return self

    def cell(self, row: str, column: str) -> float | None:
        """The number in a cell, None if unknown. Raises UserError for a row or column that the table does not have."""
        if row not in self.rows or column not in self.columns:
            known = f"rows: {list(self.rows)}, columns: {list(self.columns)}"
            raise UserError(f"reference table {self.id} has no cell ({row}, {column}); {known}")
        return self.rows[row][self.columns.index(column)]

    def claims(self) -> list[Claim]:
        """Each known cell (and printed mean) as a `within` claim that is testable at paper scale only."""
        out = []
        for row, numbers in self.rows.items():
            cells = [(c, c, n) for c, n in zip(self.columns, numbers, strict=True) if n is not None]
            if row in self.mean:
                cells.append(("mean", list(self.columns), self.mean[row]))
            out += [self._claim(row, name, column, number) for name, column, number in cells]
        return out

    def _claim(self, row: str, name: str, column: object, number: float) -> Claim:
        return Claim(
            id=f"{self.id}/{row}/{name}",
            text=f"{self.title}: {row}, {name}",
            predicate="within",
            quantity={**self.quantity, self.row_tag: row, self.column_tag: column},
            value=number,
            testable=("paper",),
            **self.model_dump(include={"where", "source", "mark", "unit", "tolerance", "why_not"}),
        )


@dataclass(frozen=True)
class ClaimsFile:
    """A claims.yaml, read and checked."""

    path: Path
    paper: str
    title: str
    claims: tuple[Claim, ...]
    reference_tables: tuple[ReferenceTable, ...] = ()
    margins: tuple[Margin, ...] = ()

    def claim(self, id: str) -> Claim:
        """The claim of that id; UserError if there is none."""
        return _find(self.claims, id, self.path)

    def reference(self, id: str) -> ReferenceTable:
        """The reference table of that id; UserError if there is none."""
        return _find(self.reference_tables, id, self.path)

    def check_plan(self, scale: str, planned: Sequence[Selector], headline: bool = False) -> None:
        """Hold the claims that are testable at `scale` against the tags of what is measured there.

        Raises UserError that names every claim with a selector which fits nothing.
        """
        claims = [one for c in self.claims if c.headline or not headline for one in c.variants.values()]
        lost = [f"claim {claim.id}: {in_yaml(selector)}" for claim in claims if claim.is_testable(scale)
                for selector in claim.selectors if not any(matches(selector, tags) for tags in planned)]  # fmt: skip
        if lost:
            raise UserError(
                f"{self.path}: nothing that is measured at scale {scale} fits {'; '.join(lost)}: mend it there."
            )


class _Top(_Entry):
    paper: str
    title: str
    claims: list
    reference_tables: list = []
    equivalence: list = []


def load(path: str | Path) -> ClaimsFile:
    """Read and check a claims file. Raises UserError naming the file and, where there is one, the claim."""
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no claims file here") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    top = _checked(_Top, raw, f"{path}")
    margins = tuple(_checked(Margin, entry, where) for entry, where in _entries(top.equivalence, path, "equivalence"))
    claims = tuple(
        _with_margin(_checked(Claim, entry, where), margins) for entry, where in _entries(top.claims, path, "claim")
    )
    tables = tuple(
        _checked(ReferenceTable, entry, where)
        for entry, where in _entries(top.reference_tables, path, "reference table")
    )
    ids = [entry.id for entry in (*claims, *tables)]
    for id in ids:
        if ids.count(id) > 1:
            raise UserError(f"{path}: claim {id}: the id occurs {ids.count(id)} times; ids must be unique")
    return ClaimsFile(path, top.paper, top.title, claims, tables, margins)


def _with_margin(claim: Claim, margins: tuple[Margin, ...]) -> Claim:
    if claim.predicate not in COMPARED or claim.equivalence is not None:
        return claim
    found = (m.delta for m in margins if m.unit == claim.unit and matches(m.quantity, claim.quantity))
    return claim.model_copy(update={"equivalence": next(found, None)})


def _entries(raw: list, path: Path, noun: str) -> Iterator[tuple[object, str]]:
    """Every entry with its group's defaults filled in, and what it is called in a message."""
    position = 0
    for item in raw:
        grouped = isinstance(item, dict) and "defaults" in item
        if grouped and not (
            set(item) == {"defaults", "claims"}
            and isinstance(item["defaults"], dict)
            and isinstance(item["claims"], list)
        ):
            raise UserError(f"{path}: a group of {noun}s must be `defaults`, a mapping, and `claims`, a list")
        defaults = item["defaults"] if grouped else {}
        for entry in item["claims"] if grouped else [item]:
            position += 1
            named = isinstance(entry, dict) and "id" in entry
            where = f"{path}: {noun} {entry['id'] if named else f'number {position}'}"
            yield _over(defaults, entry) if isinstance(entry, dict) else entry, where


def _over(defaults: Mapping, entry: Mapping) -> dict:
    both = isinstance(defaults.get("quantity"), dict) and isinstance(entry.get("quantity"), dict)
    quantity = {"quantity": {**defaults["quantity"], **entry["quantity"]}} if both else {}
    return {**defaults, **entry, **quantity}


def _checked(model: type[BaseModel], raw: object, where: str) -> Any:
    """An entry as its model; the first mistake, in words of ours, is a UserError that begins with `where`."""
    if not isinstance(raw, dict):
        raise UserError(f"{where}: must be a mapping, not {type(raw).__name__}")
    try:
        return model.model_validate({str(key): given for key, given in raw.items() if given is not None})
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        kinds = {
            kind: [str(m["loc"][0]) for m in mistakes if m["type"] == kind] for kind in ("extra_forbidden", "missing")
        }
        if kinds["extra_forbidden"]:
            raise UserError(
                f"{where}: unknown key {', '.join(kinds['extra_forbidden'])}; known: "
                f"{', '.join(sorted(model.model_fields))}"
            ) from None
        if kinds["missing"]:
            raise UserError(f"{where}: missing {', '.join(kinds['missing'])}") from None
        raise UserError(f"{where}: {_sentence(mistakes[0])}") from None


def _sentence(mistake: Mapping) -> str:
    place, kind, given, context = mistake["loc"], mistake["type"], mistake["input"], mistake.get("ctx", {})
    if not place:
        return str(context["error"])
    name = f"`{place[0]}`"
    if kind == "value_error":
        return f"{name} {context['error']}"
    if place[0] == "rows" and len(place) > 2:
        return f"row {place[1]} must hold numbers or `unknown`, not {given!r}"
    if place[0] == "predicate":
        return f"unknown predicate {given!r}; known: {', '.join(get_args(Predicate))}"
    if place[0] == "testable":
        return f"`testable` must be a list of {', '.join(get_args(Scale))}, not {given!r}"
    needed = {
        "literal_error": f"be one of {context.get('expected', '')}".replace("'", ""),
        "greater_than": "be above 0",
        "greater_than_equal": "be a number that is not below 0",
        "finite_number": "be a finite number",
        "float_type": "give numbers for rows of the table" if place[0] == "mean" else "be a number",
        "bool_parsing": "be true or false",
    }.get(
        kind,
        "be a "
        f"{kind.removesuffix('_type').replace('dict', 'mapping').replace('tuple', 'list').replace('string', 'text')}",
    )
    return f"{name} must {needed}, not {given!r}"


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where the plain loader would silently keep the last."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is written twice", node.start_mark)
    return dict(zip(keys, [loader.construct_object(value, deep=True) for _, value in node.value], strict=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _find(entries: Iterable, id: str, path: Path) -> Any:
    for entry in entries:
        if entry.id == id:
            return entry
    raise UserError(f"{path}: there is no entry {id!r}; known: {', '.join(entry.id for entry in entries)}")
