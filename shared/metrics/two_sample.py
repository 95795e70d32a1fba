"""Do two samples come from one distribution? The maximum mean discrepancy with a Gaussian kernel, and its permutation
test (Gretton et al. 2012).

k(a, b) = exp(−‖a − b‖²/(2 s²))
MMD²_u  = 1/(m(m−1)) Σ_{i≠j} k(x_i, x_j) + 1/(n(n−1)) Σ_{i≠j} k(y_i, y_j) − 2/(mn) Σ_{i,j} k(x_i, y_j)      eq. 3, unbiased, may be negative
p       = (1 + #{π : MMD²_u of the samples divided anew by π ≥ MMD²_u}) / (1 + number of divisions)             never 0
"""

import numpy as np

from shared.errors import UserError


def median_distance(x) -> float:
    """The median of ‖x_i − x_j‖ over pairs i < j of rows of x (N, D): the usual width s. Raises UserError if it is 0
    (or there is one row)."""
    x = _rows(x)
    distances = np.sqrt(_squared(x, x)[np.triu_indices(len(x), 1)])
    width = float(np.median(distances)) if len(distances) else 0.0
    if not width > 0:
        raise UserError(
            f"the median distance among {len(x)} samples is {width}: more than half of them are equal, so give a "
            "bandwidth."
        )
    return width


def mmd2(x, y, bandwidth: float | None = None) -> float:
    """MMD²_u of features x (m, D) and y (n, D), arrays or tensors. bandwidth: s (None: the median distance in the
    pooled sample).

    Raises UserError for samples of fewer than 2 rows or of other widths, values that are no numbers, and a bandwidth
    that is not positive.
    """
    kernel, m = _kernel(x, y, bandwidth)
    return float(_statistic(kernel, np.arange(len(kernel))[None] < m)[0])


def permutation_test(
    x, y, bandwidth: float | None = None, n: int = 500, seed: int = 0, strata: np.ndarray | None = None
) -> tuple[float, float]:
    """(MMD²_u, p) under the hypothesis that both samples are of one distribution, by `n` random divisions, a function
    of `seed`.

    strata: the class of every row of x, then of y, where the samples were drawn class by class: rows then change places
    within their class only, since a division that mixes classes otherwise could not have been drawn, and p would be too
    large. The width is that of the pooled sample and so does not depend on the division. Other arguments and errors as
    in `mmd2`.
    """
    if n < 1:
        raise UserError(f"a permutation test needs at least 1 division, not {n}.")
    kernel, m = _kernel(x, y, bandwidth)
    rng, total = np.random.default_rng(seed), len(kernel)
    first = np.arange(total)[None] < m
    masks = np.repeat(first, n, 0)
    for stratum in np.unique(classes := np.zeros(total, np.int64) if strata is None else np.asarray(strata)):
        rows = np.flatnonzero(classes == stratum)
        masks[:, rows] = rng.permuted(masks[:, rows], axis=1)
    observed, others = _statistic(kernel, first)[0], _statistic(kernel, masks)
    # a division that gives the same two samples must count, whatever the order it was summed in
    return float(observed), float((1 + np.sum(others >= observed - 1e-12)) / (1 + n))


def _rows(x) -> np.ndarray:
    x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(
            "a sample must be finite features (N, D), not an array of shape "
            f"{x.shape}{'' if x.ndim != 2 else ' with others in it'}."
        )
    return x


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """‖x_i − y_j‖² (m, n)."""
    x, y = x - y.mean(0), y - y.mean(0)  # a difference of squares: near the origin it is exact enough
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def _kernel(x, y, bandwidth: float | None) -> tuple[np.ndarray, int]:
    """k of the pooled sample (m + n, m + n) with zeros on the diagonal, and m."""
    x, y = _rows(x), _rows(y)
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise UserError(
            f"samples of shapes {x.shape} and {y.shape} cannot be compared: both need at least 2 rows, of one width."
        )
    both = np.concatenate([x, y])
    width = median_distance(both) if bandwidth is None else bandwidth
    if not width > 0:
        raise UserError(f"the bandwidth must be positive, not {width}.")
    kernel = np.exp(-_squared(both, both) / (2 * width**2))
    np.fill_diagonal(kernel, 0)
    return kernel, len(x)


def _statistic(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    """MMD²_u of each division; first (divisions, m + n) says which samples are of x."""
    w = first.astype(np.float64)
    m, n = w[0].sum(), len(kernel) - w[0].sum()
    within = w @ kernel
    xx, total, degree = (within * w).sum(1), kernel.sum(), within.sum(1)
    xy = degree - xx
    yy = total - xx - 2 * xy
    return xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)
