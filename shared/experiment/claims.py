"""The statements and numbers of a paper, as data: `papers/<paper>/claims.yaml`. (What was measured is held against them in `verdicts`.)

    paper: pmg_aft
    title: "Pre-trained model guided fine-tuning (CVPR 2024)"
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

A selector is tags that must match: a value, a list (any of these) or `{not: value or list}`; numbers may be written "1/255". It stands
for the mean over the matching sets of the mean over examples and seeds. Predicates, x being quantity, quantity − minus or quantity / ratio:

    greater       x > margin (0; 1 for a ratio)      at_least   x >= threshold
    within        |x − value| <= tolerance           at_most    x <= threshold
    equal_within  |quantity − minus| <= tolerance
    monotone      `sequence: [{eps: 1}, {eps: 2}, …]` (each laid over `quantity`), `order: increasing | decreasing`
    exceeds_all   quantity − rival > margin for every one of `rivals: [{method: a}, {method: b}, …]` (each laid over `quantity`)

Unknown keys, duplicate ids, unknown predicates and missing fields are a UserError that names the file and the claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import UserError
from shared.experiment.selection import Selector, matches

WHERE = ("abstract", "table", "figure", "text", "mechanism", "code", "third-party", "ours")
MARKS = ("S", "S2", "M", "I", "L", "D", "U")
SCALES = ("cpu", "photos", "paper")
PREDICATES = ("greater", "at_least", "at_most", "within", "equal_within", "monotone", "exceeds_all")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Claim:
    """One statement of the paper (module docstring). `value`: a number, "unknown", or None for a statement without a number."""

    id: str
    text: str
    where: str
    source: str
    mark: str
    predicate: str
    quantity: Selector
    value: float | str | None
    unit: str
    testable: tuple[str, ...]
    headline: bool = False
    minus: Selector | None = None
    ratio: Selector | None = None
    sequence: tuple[Selector, ...] = ()
    rivals: tuple[Selector, ...] = ()
    order: str | None = None
    margin: float | None = None
    threshold: float | None = None
    tolerance: float | None = None
    why_not: str | Mapping[str, str] = ""
    how: str = ""

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """Every selector that the claim needs, tags filled in."""
        if self.sequence:
            return tuple({**self.quantity, **step} for step in self.sequence)
        if self.rivals:
            return (self.quantity, *({**self.quantity, **rival} for rival in self.rivals))
        other = self.minus if self.minus is not None else self.ratio
        return (self.quantity,) if other is None else (self.quantity, {**self.quantity, **other})

    def reason_against(self, scale: str) -> str:
        """Why the claim is not tested at `scale`."""
        return self.why_not if isinstance(self.why_not, str) else self.why_not.get(scale, "")


@dataclass(frozen=True)
class ReferenceTable:
    """Known numbers of a table, row by row; None is a cell nobody here has read."""

    id: str
    title: str
    where: str
    source: str
    mark: str
    unit: str
    row_tag: str
    column_tag: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    quantity: Selector
    tolerance: float
    why_not: str
    mean: Mapping[str, float] = field(default_factory=dict)

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
            where=self.where,
            source=self.source,
            mark=self.mark,
            predicate="within",
            quantity={**self.quantity, self.row_tag: row, self.column_tag: column},
            value=number,
            unit=self.unit,
            testable=("paper",),
            tolerance=self.tolerance,
            why_not=self.why_not,
        )


@dataclass(frozen=True)
class ClaimsFile:
    """A claims.yaml, read and checked."""

    path: Path
    paper: str
    title: str
    claims: tuple[Claim, ...]
    reference_tables: tuple[ReferenceTable, ...] = ()

    def claim(self, id: str) -> Claim:
        """The claim of that id; UserError if there is none."""
        return _find(self.claims, id, self.path)

    def reference(self, id: str) -> ReferenceTable:
        """The reference table of that id; UserError if there is none."""
        return _find(self.reference_tables, id, self.path)

    def wants(self, tags: Selector, headline: bool = False) -> bool:
        """Whether a (headline) claim needs the measurement that carries these tags."""
        claims = [claim for claim in self.claims if claim.headline or not headline]
        return any(matches(selector, tags) for claim in claims for selector in claim.selectors)


def load(path: str | Path) -> ClaimsFile:
    """Read and check a claims file. Raises UserError naming the file and, where there is one, the claim."""
    from shared.experiment.claims_file import read

    return read(Path(path))


def _find(entries, id: str, path: Path):
    for entry in entries:
        if entry.id == id:
            return entry
    raise UserError(f"{path}: there is no entry {id!r}; known: {', '.join(entry.id for entry in entries)}")
