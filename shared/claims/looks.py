"""Looks at growing evidence that leave the error of a verdict where it is: a group-sequential test.

Where a claim is open, twice the examples or seeds are measured and it is judged again, at most LOOKS times in all. The
z-statistics of these looks are jointly normal under the null, and corr(Z_j, Z_k) = sqrt(t_j / t_k) where t is the
evidence at a look (Jennison & Turnbull 2000, Group Sequential Methods, section 3.1). With one bound c at every look,

    P(|Z_k| >= c for some k) = error                         (Pocock 1977, Biometrika 64, 191-199)

so that c = 1.96 becomes 2.41 for four looks that double. Pocock's bound and not O'Brien and Fleming's, which grows like
sqrt(t_K / t_k): the first look here is the whole of the planned run and an eighth of what may come, so theirs would be
5.6 there, and a run that nobody prolongs would decide next to nothing. A bound that is the same at every look also
needs no exact doubling, as where a set has no more pictures.

`repeated` puts the bound into an estimate: its intervals then hold at all looks together, and its p-value is the error
of the looks at which it would just be rejected (repeated confidence intervals, same book, chapter 9).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

from shared.metrics.intervals import Estimate, Z

LOOKS = 4
_NODES = 64  # of the Gauss-Legendre rule on the interval in which one goes on


def crossing(bounds: Sequence[float], information: Sequence[float]) -> float:
    """P(|Z_k| >= bounds[k] for some k) under the null, for growing information.

    By recursive integration (Armitage, McPherson & Rowe 1969, J. R. Stat. Soc. A 132, 235-244): with f_k the density of
    Z_k where no look before has crossed, r = sqrt(t_k / t_{k+1}) and s = sqrt(1 − r²),

        f_1 = φ,        f_{k+1}(y) = ∫ f_k(x) φ((y − r x) / s) / s dx  over |x| < bounds[k]

    and what f_k has beyond its bound is added up.
    """
    rule, weights = _rule()
    crossed = float(2 * ndtr(-bounds[0]))
    x = rule * bounds[0]
    mass = weights * bounds[0] * _normal(x)
    for k in range(1, len(bounds)):
        r = np.sqrt(information[k - 1] / information[k])
        s = np.sqrt(1 - r * r)
        crossed += float(mass @ (ndtr((r * x - bounds[k]) / s) + ndtr((-r * x - bounds[k]) / s)))
        y = rule * bounds[k]
        mass = weights * bounds[k] * (mass @ _normal((y[None] - r * x[:, None]) / s)) / s
        x = y
    return crossed


def bound(z: float, looks: int = LOOKS) -> float:
    """Pocock's c for looks whose evidence doubles, where one look alone would have z: bound(1.96, 4) = 2.41."""
    ones, constants = _table(looks)
    return float(np.interp(z, ones, constants)) + max(0.0, z - float(ones[-1]))


def repeated(e: Estimate, looks: int = LOOKS) -> Estimate:
    """The estimate as it stands at any of so many looks: every interval as wide as they need together."""
    if looks == 1:
        return e
    low, high = e.at(bound(Z, looks))
    return Estimate(e.value, low, high, e.n, e.seeds, lambda z: e.at(bound(z, looks)), e.of_seeds)


@lru_cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NODES)


@lru_cache
def _table(looks: int) -> tuple[np.ndarray, np.ndarray]:
    """z of one look and the c of `looks` that has the same error, from 0 to where errors are below 1e-20."""
    constants, information = np.linspace(0.0, 9.5, 381), [2.0**k for k in range(looks)]
    errors = np.array([crossing([c] * looks, information) for c in constants])
    return -ndtri(errors / 2), constants


def _normal(x: np.ndarray) -> np.ndarray:
    """The density φ of the standard normal distribution."""
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
