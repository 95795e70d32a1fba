"""Numbers with 95 % intervals, from per-example values.

Input everywhere: `sets`, a mapping (or sequence) of data sets to arrays of shape (seeds, examples) or (examples,). The
quantity is

    m = 1/K Σ_k  1/S Σ_s  1/n_k Σ_i  v_k[s, i]        (mean over K sets of the mean over S seeds and n_k examples)

or a difference of two such means. All seeds see the same examples, so examples and seeds are crossed. With c_k the
weight of set k, v̄ the mean over seeds and m_s the quantity of seed s alone,

    V_E = Σ c_k² var_i(v̄_k) / n_k        V_S = var_s(m_s) / S

What varies with both an example and a seed is in both, so that together they are rather too large than too small. An
end of the interval is

    m ± (q/z) sqrt(d² + z² V_S),        q = (z d² + t_{S−1} z² V_S) / (d² + z² V_S)

where d is the distance of that end if there were the examples alone. The two spreads add as squares (MOVER: Zou &
Donner 2008, Stat. Med. 27, 1693-1702), each side for itself; q weighs the two quantiles by the spreads (Cochran & Cox
1950, Experimental Designs, section 4.14), which covers at least 94 % where seeds dominate and there are 2 or 3 of them,
as Welch's approximation does not. With one seed the interval speaks of the examples only: `Estimate.seeds` says so.
What d is:

* Values 0/1: Clopper & Pearson's exact interval (1934, Biometrika 26, 404-413), for n* examples.
* Differences of 0/1 values, example by example: Tango's score interval (1998, Stat. Med. 17, 891-908), for n* pairs. It
  excludes zero exactly where McNemar's test rejects equality; Fagerland, Lydersen & Laake (2014, Stat. Med. 33,
  2850-2875) recommend it.
* Differences of rates on different examples: the two sides' d added as squares (Newcombe 1998, Stat. Med. 17, 873-890).
* Other values: t sqrt(V_E), with Student's t of Σ (n_k − 1) degrees of freedom; ∞ where a set has one example, of whose
  spread nothing is known. What is no sample but a count (`exact`) has no spread.

n* is the number of independent examples that would give the variance V_E (Korn & Graubard 1998, Surv. Methodol. 24,
193-201): with Kish's N = (Σ|c_k|)² / Σ c_k²/n_k and σ² the variance of one example drawn from all sets,

    n* = N (N σ² + 2) / (N² V_E + 2)

The two added failures keep n* near N where hardly any example differs, so that an interval never narrows because one
more example is wrong; for one set and one seed n* = n. Coverage is simulated in tests/shared/metrics/test_coverage.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from shared.errors import UserError

LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))
_POWER = float(ndtri(0.8))
_FARTHEST = 8.0  # beyond so many standard errors a p-value is 1e-15 whatever the distribution
_SLACK = 1e-9  # what two equal numbers may differ by after another order of additions

Sets = Mapping[str, np.ndarray] | Sequence[np.ndarray]
Terms = list[tuple[float, np.ndarray]]  # Σ c_k mean(V_k), V_k of shape (S, n_k)
Ends = Callable[[float], tuple[float, float]]  # two numbers for a quantile z of the standard normal distribution


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval [low, high], the examples `n` (all sets together) and the number of `seeds` behind
    it.

    `of_seeds`: the share of the variance that is between seeds. `ends` gives the interval for other levels, by z;
    without it the two distances from `value` are taken to grow in proportion to z.
    """

    value: float
    low: float
    high: float
    n: int
    seeds: int = 1
    ends: Ends | None = field(default=None, compare=False, repr=False)
    of_seeds: float = field(default=0.0, compare=False)

    def scaled(self, factor: float) -> "Estimate":
        """The same estimate in another unit, e.g. `scaled(100)` for percent. A negative factor swaps the ends."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(
            self.value * factor,
            low,
            high,
            self.n,
            self.seeds,
            lambda z: tuple(sorted(end * factor for end in self.at(z))),  # type: ignore[arg-type, return-value]
            self.of_seeds,
        )

    def interval(self, level: float) -> tuple[float, float]:
        """(low, high) at another level, e.g. 0.9 for two one-sided tests at 5 % each. Raises UserError outside (0,
        1)."""
        if not 0 < level < 1:
            raise UserError(f"the level of an interval is {level}: use a number above 0 and below 1, e.g. 0.95.")
        return self.at(float(ndtri((1 + level) / 2)))

    def p_value(self, bar: float) -> float:
        """Two-sided p of "the quantity is `bar`": 1 − the level at which an end meets it. Below 0.05 where [low, high]
        excludes it."""
        if abs(self.value - bar) <= _SLACK * max(1.0, abs(bar)):
            return 1.0
        side = 0 if self.value > bar else 1
        sign = 1 if side == 0 else -1

        def beyond(z: float) -> float:
            return sign * (self.at(z)[side] - bar)

        if beyond(_FARTHEST) > 0:
            return float(2 * ndtr(-_FARTHEST))
        return float(2 * ndtr(-_root(lambda z: -beyond(z), 0.0, _FARTHEST)))

    def with_evidence(self, times: float) -> "Estimate":
        """What is to be expected of so many times the examples, or the seeds where these vary: the same value, and
        ends as far from it as today's are for z / √times."""
        root = math.sqrt(times)
        return replace(self, low=self.at(Z / root)[0], high=self.at(Z / root)[1], ends=lambda z: self.at(z / root))

    @property
    def half_width(self) -> float:
        """Half the length of the interval: what stands behind ± in a narrow table."""
        return (self.high - self.low) / 2

    @property
    def detectable(self) -> float:
        """The smallest true distance from a bar at which such an interval excludes the bar in four cases of five (80 %
        power): z_0.975 + z_0.8 of its standard errors, these taken from its own length."""
        return self.half_width * (1 + _POWER / Z)

    @property
    def lopsided(self) -> bool:
        """Whether one side is more than twice as long as the other, so that ± would promise values which the interval
        excludes."""
        below, above = self.value - self.low, self.high - self.value
        return max(below, above) > 2 * min(below, above)

    def at(self, z: float) -> tuple[float, float]:
        if self.ends is not None:
            return self.ends(z)
        return self.value - (self.value - self.low) * z / Z, self.value + (self.high - self.value) * z / Z


def mean(sets: Sets, share: bool | None = None, exact: bool = False) -> Estimate:
    """The mean over `sets` with its interval (module docstring).

    share: whether the values are shares, from 0 to 1. Of such the interval stays within [0, 1]; of others, values that
    all happen to be 0 or 1 are no rates. None: they are shares where all are 0 or 1. exact: they are counts of what is
    there, as of parameters, and no sample: between examples nothing varies. Raises UserError for shares outside [0, 1].
    """
    matrices = _matrices(sets)
    _demand_shares(matrices, share)
    terms = [(1 / len(matrices), matrix) for matrix in matrices]
    rates = share is not False and _rates(matrices) and not exact
    limits = (0.0, 1.0) if share or rates else None
    return _estimate(_value(terms), _distances(terms, rates, exact), _seeds(terms), terms, limits)


def paired_difference(a: Sets, b: Sets, share: bool | None = None, exact: bool = False) -> Estimate:
    """The interval of mean(a) − mean(b), where set k of `a` and of `b` hold the same examples in the same order.

    Mappings are paired by name. One seed against several is repeated; otherwise row s of `a` belongs to row s of `b`.
    share, exact: as of `mean`. Raises UserError when the sets or their numbers of examples differ.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() != b.keys():
        raise UserError(
            f"a paired difference needs the same sets on both sides; only one side has {sorted(a.keys() ^ b.keys())}"
        )
    left, right = _same_seeds(_matrices(a), _matrices(b))
    if [m.shape for m in left] != [m.shape for m in right]:
        raise UserError("a paired difference needs the same examples on both sides, but their numbers differ")
    _demand_shares(left + right, share)
    terms = [(1 / len(left), x - y) for x, y in zip(left, right, strict=True)]
    if exact or share is False or not _rates(left + right):
        limits = (-1.0, 1.0) if share else None
        return _estimate(_value(terms), _distances(terms, False, exact), _seeds(terms), terms, limits)
    gained = _value([(c, np.maximum(d, 0)) for c, d in terms])
    lost = _value([(c, np.maximum(-d, 0)) for c, d in terms])
    pairs = _effective(terms, gained + lost - (gained - lost) ** 2)
    return _estimate(
        gained - lost, lambda z: _tango(pairs * gained, pairs * lost, pairs, z), _seeds(terms), terms, (-1.0, 1.0)
    )


def unpaired_difference(a: Sets, b: Sets, share: bool | None = None, exact: bool = False) -> Estimate:
    """The interval of mean(a) − mean(b) for different sets of examples. share, exact: as of `mean`.

    Seeds stay paired, since they are the same models."""
    left, right = _same_seeds(_matrices(a), _matrices(b))
    _demand_shares(left + right, share)
    plus = [(1 / len(left), m) for m in left]
    minus = [(1 / len(right), m) for m in right]
    rates = share is not False and _rates(left + right) and not exact
    of_a, of_b = (
        _distances(terms, share is not False and _rates([m for _, m in terms]) and not exact, exact)
        for terms in (plus, minus)
    )

    def distances(z: float) -> tuple[float, float]:
        (low_a, high_a), (low_b, high_b) = of_a(z), of_b(z)
        return math.hypot(low_a, high_b), math.hypot(high_a, low_b)

    terms = plus + [(-c, m) for c, m in minus]
    return _estimate(_value(terms), distances, _seeds(terms), terms, (-1.0, 1.0) if share or rates else None)


def ratio(a: Sets, b: Sets, exact: bool = False) -> Estimate:
    """The interval of mean(a) / mean(b), the two sides independent (costs), from their own intervals.

    MOVER-R (Donner & Zou 2012, Stat. Methods Med. Res. 21, 347-359), which is Fieller's for symmetric intervals: an end
    r solves (A − rB)² = (distance of A's end)² + r² (distance of B's opposite end)². Where B may be zero the upper end
    is ∞. exact: as of `mean`. Raises UserError for a numerator below zero, and for a denominator that is not above it.
    """
    left, right = _same_seeds(_matrices(a), _matrices(b))
    top, bottom = mean(left, exact=exact), mean(right, exact=exact)
    if top.value < 0 or bottom.value <= 0:
        raise UserError(
            "a ratio needs a numerator of zero or more and a denominator above zero, "
            f"got {top.value:g} and {bottom.value:g}"
        )

    def ends(z: float) -> tuple[float, float]:
        (a_low, a_high), (b_low, b_high) = top.at(z), bottom.at(z)
        if not all(map(math.isfinite, (a_low, a_high, b_low, b_high))):
            return 0.0, math.inf
        product = top.value * bottom.value
        a_low, a_high, b_low, b_high = (
            end * (2 * e.value - end) for end, e in ((a_low, top), (a_high, top), (b_low, bottom), (b_high, bottom))
        )
        low = a_low / (product + math.sqrt(max(0.0, product**2 - a_low * b_high))) if a_low else 0.0
        return low, (product + math.sqrt(max(0.0, product**2 - a_high * b_low))) / b_low if b_low > 0 else math.inf

    low, high = ends(Z)
    return Estimate(top.value / bottom.value, low, high, top.n + bottom.n, top.seeds, ends)


def _estimate(
    value: float, distances: Ends, from_seeds: float, terms: Terms, limits: tuple[float, float] | None
) -> Estimate:
    """The interval from the examples' two distances and the seeds' variance (module docstring), within `limits`."""
    seeds = len(terms[0][1])

    def ends(z: float) -> tuple[float, float]:
        reach = [_with_seeds(d, from_seeds, seeds, z) for d in distances(z)]
        low, high = value - reach[0], value + reach[1]
        return (low, high) if limits is None else (max(low, limits[0]), min(high, limits[1]))

    low, high = ends(Z)
    squared = [(d / Z) ** 2 for d in distances(Z)]
    of_seeds = from_seeds / (from_seeds + sum(squared) / 2) if from_seeds else 0.0
    return Estimate(value, low, high, sum(matrix.shape[1] for _, matrix in terms), seeds, ends, of_seeds)


def _with_seeds(distance: float, from_seeds: float, seeds: int, z: float) -> float:
    if from_seeds <= 0 or z <= 0 or distance == math.inf:
        return distance
    both = distance**2 + z * z * from_seeds
    quantile = (z * distance**2 - float(stdtrit(seeds - 1, ndtr(-z))) * z * z * from_seeds) / both
    return quantile / z * math.sqrt(both)


def _value(terms: Terms) -> float:
    return float(sum(c * matrix.mean() for c, matrix in terms))


def _distances(terms: Terms, rates: bool, exact: bool) -> Ends:
    """How far the ends of Σ c_k mean(V_k) are from it when only examples vary. rates: whether all values are 0 or 1."""
    if exact or (not rates and any(matrix.shape[1] == 1 for _, matrix in terms)):
        return lambda z: (0.0 if exact else math.inf,) * 2
    if rates:
        value = min(_value(terms), 1.0)
        n = _effective(terms, value * (1 - value))
        return lambda z: _exact(n * value, n, z)
    df = sum(matrix.shape[1] - 1 for _, matrix in terms)
    error = math.sqrt(sum(c * c * matrix.mean(0).var(ddof=1) / matrix.shape[1] for c, matrix in terms))
    return lambda z: (-float(stdtrit(df, ndtr(-z))) * error,) * 2


def _seeds(terms: Terms) -> float:
    """V_S: the variance of the quantity over seeds, divided by their number."""
    seeds = len(terms[0][1])
    variance = float(sum(c * matrix.mean(1) for c, matrix in terms).var(ddof=1)) / seeds if seeds > 1 else 0.0
    return variance if variance > 1e-24 else 0.0


def _effective(terms: Terms, variance: float) -> float:
    """n* of the module docstring; `variance` is that of one example from all sets together."""
    n = sum(abs(c) for c, _ in terms) ** 2 / sum(c * c / matrix.shape[1] for c, matrix in terms)
    examples = sum(c * c * matrix.mean(0).var() / matrix.shape[1] for c, matrix in terms)
    return float(n * (n * variance + 2) / (n * n * examples + 2))


@lru_cache(maxsize=4096)
def _exact(k: float, n: float, z: float) -> tuple[float, float]:
    """The two distances of Clopper and Pearson's ends from k/n; k and n need not be whole."""
    tail = float(ndtr(-z))
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = 1 - float(betaincinv(n - k, k + 1, tail)) if n - k > 1e-12 * n else 1.0
    return max(0.0, k / n - low), max(0.0, high - k / n)


@lru_cache(maxsize=4096)
def _tango(gained: float, lost: float, n: float, z: float) -> tuple[float, float]:
    """The two distances of Tango's ends from (gained − lost)/n: the differences λ that the score test does not
    reject."""
    return _tango_above(lost, gained, n, z), _tango_above(gained, lost, n, z)


def _tango_above(gained: float, lost: float, n: float, z: float) -> float:
    value = (gained - lost) / n

    def rejected(difference: float) -> float:
        linear = (2 * n - gained + lost) * difference - gained - lost
        product = lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, linear**2 + 8 * n * product)) - linear) / (
            4 * n
        )  # of `lost` under the null, by maximum likelihood
        return n * (difference - value) - z * math.sqrt(n * max(0.0, 2 * share + difference * (1 - difference)))

    if value >= 1 - 1e-9 or z <= 0:
        return 0.0
    return _root(rejected, value + 1e-12, 1.0) - value  # at `value` itself, the variance under the null may be zero


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function passes zero between `low` and `high`, to 1e-12 of their distance. (To import
    scipy.optimize takes a second.)"""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2


def _matrices(sets: Sets) -> list[np.ndarray]:
    arrays = [sets[name] for name in sorted(sets)] if isinstance(sets, Mapping) else list(sets)
    try:
        out = [np.atleast_2d(np.asarray(array, dtype=np.float64)) for array in arrays]
    except (TypeError, ValueError) as error:
        raise UserError(f"per-example values are real numbers, as many for every seed, not these: {error}") from None
    if not out or any(m.ndim != 2 or m.size == 0 for m in out):
        raise UserError("an interval needs at least one set, each of shape (seeds, examples) with at least one example")
    if len({len(m) for m in out}) != 1:
        raise UserError(f"all sets need the same seeds, got {[len(m) for m in out]} of them")
    if not all(np.isfinite(m).all() for m in out):
        raise UserError(
            "per-example values hold NaN or infinity: the measurement went wrong, delete it and measure again"
        )
    return out


def _same_seeds(left: list[np.ndarray], right: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    a, b = len(left[0]), len(right[0])
    if a != b and 1 not in (a, b):
        raise UserError(f"the two sides have {a} and {b} seeds: compare the seeds they share")
    seeds = max(a, b)
    return [np.broadcast_to(m, (seeds, m.shape[1])) for m in left], [
        np.broadcast_to(m, (seeds, m.shape[1])) for m in right
    ]


def _demand_shares(matrices: list[np.ndarray], share: bool | None) -> None:
    if share and not all((m >= -_SLACK).all() and (m <= 1 + _SLACK).all() for m in matrices):
        raise UserError("values that are called shares are not all from 0 to 1: give shares, or leave `share` out")


def _rates(matrices: list[np.ndarray]) -> bool:
    """Whether all values are 0 or 1."""
    return all(np.isin(m, (0.0, 1.0)).all() for m in matrices)
