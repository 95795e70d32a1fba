"""Which measurements a selector means, and the numbers they give together.

A selector is tags that must match: `{"method": "tecoa", "attack": "pgd10"}`. A wanted value may be a value, a list (any
of these), `{"not": value or list}`, or a callable on the tag; numbers may be written "1/255". The tags `set` and `seed`
span the result: the measurements that match become one (seeds, examples) matrix per set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from shared.errors import UserError
from shared.metrics import intervals
from shared.metrics.intervals import Estimate

Selector = Mapping[str, object]
FRACTIONS = ("share", "fraction", "rate")  # units of numbers in [0, 1]
COUNTS = ("parameters", "fraction", "pictures", "epochs", "p")  # of what is counted or worked out, no sample


def kind_of(unit: str) -> dict[str, bool]:
    """What `shared.metrics.intervals` has to know of numbers of this unit."""
    return {"share": unit in FRACTIONS, "exact": unit in COUNTS}


@dataclass(frozen=True)
class Selected:
    """Per-example values of the matching measurements: set -> (seeds, examples). `missing` names cells without which it
    is not whole."""

    sets: Mapping[str, np.ndarray]
    seeds: tuple[int, ...]
    unit: str
    slugs: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def mean(self) -> Estimate:
        """The mean over the sets with its interval."""
        return intervals.mean(self.sets, **kind_of(self.unit))

    def minus(self, other: "Selected") -> Estimate:
        """mean(self) − mean(other): paired example by example where both hold the same sets, unpaired where they share
        none."""
        a, b = _shared_seeds(self, other)
        if a.keys() == b.keys() and all(a[name].shape[1] == b[name].shape[1] for name in a):
            return intervals.paired_difference(a, b, **kind_of(self.unit))
        return intervals.unpaired_difference(a, b, **kind_of(self.unit))

    def over(self, other: "Selected") -> Estimate:
        """mean(self) / mean(other)."""
        return intervals.ratio(*_shared_seeds(self, other), kind_of(self.unit)["exact"])


def gather(
    measurements: Iterable, selector: Selector, planned: Mapping[str, Selector] | None = None
) -> Selected | None:
    """The measurements that match `selector`, as matrices; None if none does.

    `measurements` have `.slug`, `.tags`, `.unit`, `.seeds` and `.values` ((examples,) or (seeds, examples)). `planned`
    (slug -> tags) lets cells that the run planned and does not have be named in `missing`. Seeds that not every set has
    are left out and named too. Raises UserError when two measurements claim the same set and seed, because then the
    selector is not precise enough.
    """
    found = [m for m in measurements if matches(selector, m.tags)]
    if not found:
        return None
    have = {m.slug for m in found}
    missing = [slug for slug, tags in (planned or {}).items() if slug not in have and matches(selector, tags)]
    cells: dict[str, dict[int, np.ndarray]] = {}
    owner: dict[tuple[str, int], object] = {}
    for m in found:
        name = str(m.tags.get("set", ""))
        values = np.asarray(m.values)
        seeds = m.seeds if values.ndim == 2 else (_seed(m),)
        for seed, row in zip(seeds, np.atleast_2d(values), strict=True):
            if (name, seed) in owner:
                raise UserError(_ambiguous(selector, owner[name, seed], m))
            owner[name, seed] = m
            cells.setdefault(name, {})[seed] = row
    everywhere = sorted(set.intersection(*(set(rows) for rows in cells.values())))
    for name, rows in cells.items():
        missing += [
            f"set {name or '-'}, seed {seed}" for seed in sorted({s for r in cells.values() for s in r} - set(rows))
        ]
    units = sorted({m.unit for m in found})
    if len(units) > 1:
        raise UserError(f"the selector {in_yaml(selector)} mixes the units {', '.join(units)}: name more tags")
    if not everywhere:
        return None
    sets = {name: np.stack([rows[seed] for seed in everywhere]) for name, rows in sorted(cells.items())}
    return Selected(sets, tuple(everywhere), units[0], tuple(m.slug for m in found), tuple(missing))


def matches(selector: Selector, tags: Selector) -> bool:
    """Whether `tags` satisfy every entry of `selector`: a value, a list of values, `{"not": …}`, or a callable on the
    tag."""
    for name, wanted in selector.items():  # a page asks this some 100,000 times, so the common case comes first
        tag = tags.get(name)
        if isinstance(wanted, str) and isinstance(tag, str):
            if wanted != tag:
                return False
        elif not _matches_one(wanted, tag):
            return False
    return True


def _matches_one(wanted: object, tag: object) -> bool:
    if callable(wanted):
        return tag is not None and bool(wanted(tag))
    if isinstance(wanted, Mapping):
        return not _matches_one(wanted["not"], tag)
    if isinstance(wanted, (list, tuple, set, frozenset)):
        return any(_matches_one(one, tag) for one in wanted)
    if wanted == tag:
        return True
    if isinstance(wanted, str) and isinstance(tag, str):
        return False
    a, b = _number(wanted), _number(tag)
    return a is not None and b is not None and abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def _number(x: object) -> float | None:
    """A number, or one written as "1/255", as a float; None for anything else."""
    if isinstance(x, int | float):
        return None if isinstance(x, bool) else float(x)
    try:
        return float(Fraction(x)) if isinstance(x, str) else None
    except (ValueError, ZeroDivisionError):
        return None


def _seed(m) -> int:
    seed = m.tags.get("seed")
    return int(seed if seed is not None else m.seeds[0] if m.seeds else 0)


def _shared_seeds(a: Selected, b: Selected) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Rows of the seeds both have. One seed against several stays as it is (it is repeated); disjoint seeds are paired
    in order."""
    if 1 in (len(a.seeds), len(b.seeds)):
        return dict(a.sets), dict(b.sets)
    common = [seed for seed in a.seeds if seed in b.seeds]
    pairs = [(s, s) for s in common] or list(zip(a.seeds, b.seeds, strict=False))
    rows_a, rows_b = [a.seeds.index(s) for s, _ in pairs], [b.seeds.index(s) for _, s in pairs]
    return {k: v[rows_a] for k, v in a.sets.items()}, {k: v[rows_b] for k, v in b.sets.items()}


def _ambiguous(selector: Selector, a, b) -> str:
    differ = sorted(tag for tag in {*a.tags, *b.tags} if a.tags.get(tag) != b.tags.get(tag))
    return (
        f"the selector {in_yaml(selector)} fits several measurements of set {a.tags.get('set')} and seed "
        f"{a.tags.get('seed')} ({a.slug}, {b.slug}): name the tag{'s' if len(differ) > 1 else ''} "
        f"{', '.join(differ) or 'that tells them apart'} too"
    )


def in_yaml(selector: Selector) -> str:
    """A selector as it would be written in claims.yaml."""
    return "{" + ", ".join(f"{k}: {v}" for k, v in selector.items()) + "}"
