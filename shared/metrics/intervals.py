"""Numbers with 95 % intervals, from per-example values.

Input everywhere: `sets`, a mapping (or sequence) of data sets to arrays of shape (seeds, examples) or (examples,). The quantity is

    m = 1/K Σ_k  1/S Σ_s  1/n_k Σ_i  v_k[s, i]        (mean over K sets of the mean over S seeds and n_k examples)

* One set, one seed, values 0/1: Wilson's score interval (Wilson 1927, JASA 22, 209-212).
* Otherwise a two-level percentile bootstrap (Efron & Tibshirani 1993, ch. 13), 2,000 draws from a fixed generator. The examples of
  each set are drawn with replacement, the same draw for all seeds, because all seeds see the same examples; the seeds are
  drawn with replacement, the same draw for all sets, because one seed is one trained model. A draw is

      m* = Σ_k 1/K mean_i*(v̄_k[i])  +  sqrt(S/(S−1)) Σ_s (w*_s − 1/S) m_s,      v̄ = mean over seeds,  m_s = the quantity of seed s alone,

  and the draws are stretched about m by t_ν/1.96, ν = (V_E + V_S)² / (V_S²/(S−1)) (Welch 1947; Satterthwaite 1946), where V_E is the
  variance of the first sum and V_S = var(m_s)/S. Without the root and the stretch, an interval over 3 seeds that differ covers 75 %, not
  95 %; with them it covers 0.90 (seeds are all that matters) to 0.99 (they do not matter at all) in simulation. With one seed the
  interval speaks of the examples only: `Estimate.seeds` says so.
* A paired difference is the bootstrap of v_a − v_b example by example, that is, the same draw on both sides.

A bootstrap of values that are all equal has no width. Where the values are 0/1 such an interval is opened by Wilson's bound for 0 of n,
so that 0 of 64 broken attacks, or two methods that agree on 64 examples, never read "exactly zero".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from shared.errors import UserError

DRAWS = 2000
LEVEL = 0.95
Z = 1.959963984540054  # standard normal quantile at 0.975
_GENERATOR_SEED = 20240118
_SEED_STREAM = 10**6  # the seeds' draws come from a stream that no set's draws use
_SMALL = 512  # up to so many examples, the draws are kept as a matrix (8 MB)
_CHUNK = 4_000_000  # random integers alive at a time, so that 100,000 examples do not need gigabytes
# Student's t at 0.975: for 1 … 10 degrees of freedom, and beyond by the Cornish-Fisher expansion in 1/ν
_T = (12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818, 2.4469119, 2.3646243, 2.3060041, 2.2621572, 2.2281389)
_EXPANSION = ((Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)

Sets = Mapping[str, np.ndarray] | Sequence[np.ndarray]
Terms = list[tuple[float, np.ndarray]]  # Σ c_k mean(V_k), V_k of shape (S, n_k)


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval [low, high], the examples `n` (all sets together) and the number of `seeds` behind it."""

    value: float
    low: float
    high: float
    n: int
    seeds: int = 1

    def scaled(self, factor: float) -> "Estimate":
        """The same estimate in another unit, e.g. `scaled(100)` for percent. A negative factor swaps the ends."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, low, high, self.n, self.seeds)

    @property
    def half_width(self) -> float:
        """Half the length of the interval: what stands behind ± in a narrow table."""
        return (self.high - self.low) / 2


def wilson(k: float, n: int) -> Estimate:
    """Wilson's 95 % score interval of the rate k/n: (p + z²/2n ± z sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n)."""
    if n < 1 or not 0 <= k <= n:
        raise UserError(f"a rate needs 0 <= k <= n and n >= 1, got k={k}, n={n}")
    p, shrink = k / n, 1 + Z * Z / n
    centre = (p + Z * Z / (2 * n)) / shrink
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / shrink
    low = 0.0 if k == 0 else centre - half  # exact ends: the formula leaves 1e-17
    return Estimate(p, low, 1.0 if k == n else centre + half, n)


def bootstrap_mean(sets: Sets) -> Estimate:
    """The mean over `sets` with its interval (module docstring). A single 0/1 set of a single seed gets Wilson's interval."""
    matrices = _matrices(sets)
    if len(matrices) == 1 and len(matrices[0]) == 1 and _rates(matrices):
        return wilson(float(matrices[0].sum()), matrices[0].shape[1])
    return _bootstrap([(1 / len(matrices), matrix) for matrix in matrices], 0.0 if _rates(matrices) else None)


def paired_difference(a: Sets, b: Sets) -> Estimate:
    """The interval of mean(a) − mean(b), where set k of `a` and of `b` hold the same examples in the same order.

    Mappings are paired by name. One seed against several is repeated; otherwise row s of `a` belongs to row s of `b`.
    Raises UserError when the sets or their numbers of examples differ.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() != b.keys():
        raise UserError(f"a paired difference needs the same sets on both sides; only one side has {sorted(a.keys() ^ b.keys())}")
    left, right = _same_seeds(_matrices(a), _matrices(b))
    if [m.shape for m in left] != [m.shape for m in right]:
        raise UserError("a paired difference needs the same examples on both sides, but their numbers differ")
    terms = [(1 / len(left), x - y) for x, y in zip(left, right, strict=True)]
    return _bootstrap(terms, -1.0 if _rates(left + right) else None)


def unpaired_difference(a: Sets, b: Sets) -> Estimate:
    """The interval of mean(a) − mean(b) for different sets of examples; seeds stay paired, since they are the same models."""
    left, right = _same_seeds(_matrices(a), _matrices(b))
    terms = [(1 / len(left), m) for m in left] + [(-1 / len(right), m) for m in right]
    return _bootstrap(terms, -1.0 if _rates(left + right) else None)


def ratio(a: Sets, b: Sets) -> Estimate:
    """The interval of mean(a) / mean(b), examples drawn independently on both sides (costs). A denominator <= 0 counts as ∞."""
    left, right = _same_seeds(_matrices(a), _matrices(b))
    top, bottom = (float(np.mean([m.mean() for m in side])) for side in (left, right))
    if bottom <= 0:
        raise UserError(f"a ratio needs a denominator above zero, got {bottom:g}")
    tops = _draws([(1 / len(left), m) for m in left])
    bottoms = _draws([(1 / len(right), m) for m in right], first=len(left))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.where(bottoms > 0, tops / bottoms, np.inf)
    return _estimate(top / bottom, draws, left + right)


def _bootstrap(terms: Terms, floor: float | None) -> Estimate:
    """Σ c_k mean(V_k) with its interval. `floor`: where values are 0/1, the least it can be (0 for a mean, −1 for a difference)."""
    matrices = [matrix for _, matrix in terms]
    estimate = _estimate(sum(c * float(matrix.mean()) for c, matrix in terms), _draws(terms), matrices)
    if floor is None:
        return estimate
    slack = wilson(0, estimate.n).high if estimate.low == estimate.high else 0.0
    return replace(estimate, low=max(estimate.low - slack, floor), high=min(estimate.high + slack, 1.0))


def _draws(terms: Terms, first: int = 0) -> np.ndarray:
    """(DRAWS,) resampled values of Σ c_k mean(V_k). Set number k has its own stream, so its draws do not depend on the others."""
    total = np.zeros(DRAWS)
    for k, (coefficient, matrix) in enumerate(terms):
        total += coefficient * _resampled_means(matrix.mean(0), first + k)
    seeds = len(terms[0][1])
    if seeds == 1:
        return total
    generator = np.random.default_rng((_GENERATOR_SEED, _SEED_STREAM))
    weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds - 1 / seeds
    by_seed = sum(c * matrix.mean(1) for c, matrix in terms)
    from_examples, from_seeds = total.var(), by_seed.var(ddof=1) / seeds
    if from_seeds <= 1e-24:
        return total
    df = (seeds - 1) * ((from_examples + from_seeds) / from_seeds) ** 2
    total += weights @ by_seed * math.sqrt(seeds / (seeds - 1))
    return by_seed.mean() + (total - by_seed.mean()) * student_t(df) / Z


def _resampled_means(values: np.ndarray, k: int) -> np.ndarray:
    """(DRAWS,) means of the (n,) values of set number k over n examples drawn with replacement."""
    n, generator = len(values), np.random.default_rng((_GENERATOR_SEED, k))
    if n <= _SMALL:  # all sets share one matrix of draws; each takes them in an order of its own, so that sets stay independent
        return (_weights(n, DRAWS) @ values)[generator.permutation(DRAWS)]
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) * 4 <= n:  # few distinct values: drawing how often each one occurs is the same bootstrap, and fast for any n
        return generator.multinomial(n, counts / n, size=DRAWS) @ levels / n
    step = max(1, _CHUNK // n)
    sizes = [min(step, DRAWS - start) for start in range(0, DRAWS, step)]
    return np.concatenate([values[generator.integers(0, n, size=(size, n), dtype=np.int32)].mean(1) for size in sizes])


@lru_cache(maxsize=8)
def _weights(n: int, draws: int) -> np.ndarray:
    """(draws, n) shares of each example in each draw; kept, since a page asks for the same ones thousands of times."""
    picks = np.random.default_rng((n, _GENERATOR_SEED)).integers(0, n, size=(draws, n), dtype=np.int32)
    return np.bincount((picks + n * np.arange(draws)[:, None]).ravel(), minlength=draws * n).reshape(draws, n) / n


def student_t(df: float) -> float:
    """The 0.975 quantile of Student's t with `df` >= 1 degrees of freedom: to 1e-4 for whole ones, to 3 % between 1 and 2."""
    if df >= len(_T):
        return Z + sum(c / df ** (k + 1) for k, c in enumerate(_EXPANSION))
    return math.exp(np.interp(-1 / df, [-1 / d for d in range(1, len(_T) + 1)], np.log(_T)))


def _estimate(value: float, draws: np.ndarray, matrices: list[np.ndarray]) -> Estimate:
    tail = (1 - LEVEL) / 2
    # "nearest" keeps an infinite draw infinite (interpolation would give inf - inf); with 2,000 draws it moves an end by one draw at most
    low, high = np.quantile(draws, (tail, 1 - tail), method="nearest")
    if high - low < 1e-12:
        low = high = value
    n = sum(matrix.shape[1] for matrix in matrices)
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), n, len(matrices[0]))


def _matrices(sets: Sets) -> list[np.ndarray]:
    arrays = [sets[name] for name in sorted(sets)] if isinstance(sets, Mapping) else list(sets)
    out = [np.atleast_2d(np.asarray(array, dtype=np.float64)) for array in arrays]
    if not out or any(m.ndim != 2 or m.size == 0 for m in out):
        raise UserError("an interval needs at least one set, each of shape (seeds, examples) with at least one example")
    if len({len(m) for m in out}) != 1:
        raise UserError(f"all sets need the same seeds, got {[len(m) for m in out]} of them")
    if not all(np.isfinite(m).all() for m in out):
        raise UserError("per-example values hold NaN or infinity: the measurement went wrong, delete it and measure again")
    return out


def _same_seeds(left: list[np.ndarray], right: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    a, b = len(left[0]), len(right[0])
    if a != b and 1 not in (a, b):
        raise UserError(f"the two sides have {a} and {b} seeds: compare the seeds they share")
    seeds = max(a, b)
    return [np.broadcast_to(m, (seeds, m.shape[1])) for m in left], [np.broadcast_to(m, (seeds, m.shape[1])) for m in right]


def _rates(matrices: list[np.ndarray]) -> bool:
    """Whether all values are 0 or 1."""
    return all(np.isin(m, (0.0, 1.0)).all() for m in matrices)
