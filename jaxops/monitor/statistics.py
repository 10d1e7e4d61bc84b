"""Two-sample tests of drift: are rows now drawn as the reference rows were?

A column is compared by the counts of its bins or categories, which a sketch keeps. `pooled` turns
rows into counts of their distinct values, so that the same tests are exact for rows. All tests take
many columns at once: counts (..., K), where the last axis is that of the bins.

Each test holds its level for one look. A monitor that looks every day needs
`jaxops.monitor.categories_changed` and `mean_changed`. For many columns, correct the p-values by
`scipy.stats.false_discovery_control`.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy

AT_ONCE = 2**22  # numbers held at a time


class Comparison(NamedTuple):
    """A statistic of two samples, and its p-value if both were drawn from one distribution.

    Attributes:
        statistic: (...), larger for samples that differ more.
        p: (...), the probability of such a statistic, or a larger one, without drift.

    >>> Comparison(np.array([0.3]), np.array([0.01])).p < 0.05
    array([ True])
    """

    statistic: np.ndarray
    p: np.ndarray


def pooled(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct values of two samples, and how often each sample has them.

    Args:
        reference: (N,) numbers or texts.
        current: (M,) values of the same kind.

    Returns:
        values (K,), in increasing order; counts (K,) of the reference; counts (K,) of the current.

    Raises:
        ValueError: a sample is empty, not one-dimensional, or has NaN, which `rate_changed` is for.

    >>> values, before, now = pooled(np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0]))
    >>> before.tolist(), now.tolist()
    ([1, 2, 0], [0, 1, 1])
    """
    both = {"reference": np.asarray(reference), "current": np.asarray(current)}
    for name, x in both.items():
        if x.ndim != 1 or not len(x):
            raise ValueError(f"{name} must be (N,) with a row or more, got shape {x.shape}")
        if x.dtype.kind == "f" and np.isnan(x).any():
            row = int(np.flatnonzero(np.isnan(x))[0])
            raise ValueError(f"{name} must be without NaN: leave missing rows out, got row {row}")
    values, place = np.unique(np.concatenate(list(both.values())), return_inverse=True)
    first = len(both["reference"])
    counts = [np.bincount(part, minlength=len(values)) for part in (place[:first], place[first:])]
    return values, counts[0], counts[1]


def ks(reference: np.ndarray, current: np.ndarray) -> Comparison:
    """Kolmogorov-Smirnov: the largest distance of the two cumulative distributions.

    For counts of distinct values it equals that of `scipy.stats.ks_2samp` on the rows; for coarser
    bins it is at most that. The p-value is SciPy's asymptotic one, which is too large for ties.

    Args:
        reference: (..., K) counts of bins in increasing order.
        current: (..., K) counts of the same bins.

    Raises:
        ValueError: the bins differ, a count is negative or not finite, or a column has no rows.

    >>> ks(np.array([10, 10, 0]), np.array([0, 10, 10])).statistic
    np.float64(0.5)
    """
    a, b = _pair(reference, current)
    gap = np.cumsum(a, -1) / a.sum(-1, keepdims=True) - np.cumsum(b, -1) / b.sum(-1, keepdims=True)
    statistic = np.minimum(np.abs(gap).max(-1), 1.0)
    return Comparison(
        statistic, scipy.stats.kstwo.sf(statistic, np.maximum(np.round(_size(a, b)), 1))
    )


def chi_squared(reference: np.ndarray, current: np.ndarray) -> Comparison:
    """Pearson's chi-squared test that both samples have the same shares.

    It is that of `scipy.stats.chi2_contingency` without continuity correction, over the bins that
    one of the samples has. A bin should have about five rows or more in each sample.

    Args:
        reference: (..., K) counts of bins or categories, in any order.
        current: (..., K) counts of the same bins.

    Raises:
        ValueError: see `ks`.

    >>> chi_squared(np.array([10, 20]), np.array([20, 10])).statistic.round(3)
    np.float64(6.667)
    """
    a, b = _pair(reference, current)
    gap = a / a.sum(-1, keepdims=True) - b / b.sum(-1, keepdims=True)
    both = a + b
    share = both / both.sum(-1, keepdims=True)
    part = np.divide(gap**2, share, out=np.zeros_like(gap), where=both > 0)
    statistic = _size(a, b) * part.sum(-1)
    return Comparison(statistic, _tail(statistic, both))


def psi(reference: np.ndarray, current: np.ndarray) -> Comparison:
    """The population stability index, Σ (q - p) ln(q / p) over bins with shares p and q.

    A bin that only one sample has counts half a row in the other. Times N M / (N + M), the index is
    asymptotically chi-squared with K - 1 degrees of freedom, which gives the p-value. With ten rows
    in a bin the p-value is a little too small (8 % false alarms at 0.05 were counted). The usual
    limits 0.1 and 0.25 do not depend on the number of rows, and say nothing of chance.

    Args:
        reference: (..., K) counts of bins or categories.
        current: (..., K) counts of the same bins.

    Raises:
        ValueError: see `ks`.

    References:
        Yurdakul 2018, Statistical properties of population stability index.

    >>> psi(np.array([50, 50]), np.array([40, 60])).statistic.round(4)
    np.float64(0.0405)
    """
    a, b = _pair(reference, current)
    p, q = _shares(a, b), _shares(b, a)
    part = scipy.special.xlogy(q - p, np.divide(q, p, out=np.ones_like(p), where=p > 0))
    statistic = part.sum(-1)
    return Comparison(statistic, _tail(_size(a, b) * statistic, a + b))


def jensen_shannon(reference: np.ndarray, current: np.ndarray) -> Comparison:
    """The Jensen-Shannon distance to base 2, from 0 to 1: that of SciPy.

    It is the square root of the divergence J = (KL(p, m) + KL(q, m)) / 2, with m = (p + q) / 2. For
    J in nats, 8 J N M / (N + M) is asymptotically chi-squared with K - 1 degrees of freedom, as
    J is (1 / 8) Σ (p - q)² / m to the second order.

    Args:
        reference: (..., K) counts of bins or categories.
        current: (..., K) counts of the same bins.

    Raises:
        ValueError: see `ks`.

    References:
        Lin 1991, Divergence measures based on the Shannon entropy.

    >>> jensen_shannon(np.array([1, 0]), np.array([0, 1])).statistic
    np.float64(1.0)
    """
    a, b = _pair(reference, current)
    p, q = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    middle = (p + q) / 2
    both = scipy.special.rel_entr(p, middle).sum(-1) + scipy.special.rel_entr(q, middle).sum(-1)
    nats = np.maximum(both / 2, 0)  # rounding can make it negative
    return Comparison(np.sqrt(nats / np.log(2)), _tail(8 * _size(a, b) * nats, a + b))


def wasserstein(
    reference: np.ndarray,
    current: np.ndarray,
    values: np.ndarray,
    permutations: int = 199,
    seed: int = 0,
) -> Comparison:
    """The Wasserstein distance of order 1, ∫ |F - G|, in the unit of the column.

    For counts of distinct values it equals `scipy.stats.wasserstein_distance` of the rows. The
    p-value is that of a permutation test: without drift, the counts of the reference are a draw
    without replacement from those of both samples. It is at least 1 / (permutations + 1).

    Args:
        reference: (..., K) whole numbers, the counts of bins.
        current: (..., K) whole numbers.
        values: (K,) or (..., K), the place of each bin, such as its middle, in increasing order.
        permutations: number of draws; 0 leaves the p-value out (NaN).
        seed: the seed of the draws.

    Raises:
        ValueError: `values` do not increase, or a count is not a whole number; see also `ks`.

    >>> wasserstein(np.array([9, 0]), np.array([0, 9]), np.array([1.0, 3.0])).statistic
    np.float64(2.0)
    """
    a, b = np.broadcast_arrays(*_pair(reference, current))
    steps = np.diff(np.asarray(values, np.float64), axis=-1)
    if steps.shape[-1] != a.shape[-1] - 1 or not (steps > 0).all():
        raise ValueError(
            f"values must be {a.shape[-1]} increasing numbers, got shape {np.shape(values)}"
        )
    if (a % 1 != 0).any() or (b % 1 != 0).any():
        raise ValueError("reference and current must be whole numbers of rows, got fractions")
    steps = np.broadcast_to(steps, (*a.shape[:-1], a.shape[-1] - 1))

    def distance(first: np.ndarray, other: np.ndarray, steps: np.ndarray) -> np.ndarray:
        F, G = (np.cumsum(x, -1) / x.sum(-1, keepdims=True) for x in (first, other))
        return (np.abs(F - G)[..., :-1] * steps).sum(-1)

    found = distance(a, b, steps)
    p = np.full(found.shape, np.nan)
    for column in np.ndindex(found.shape) if permutations else ():
        both, rng = (a[column] + b[column]).astype(np.int64), np.random.default_rng(seed)
        size, as_large = max(1, AT_ONCE // len(both)), 1
        for first in range(0, permutations, size):
            count = min(size, permutations - first)
            drawn = rng.multivariate_hypergeometric(both, int(a[column].sum()), count)
            chance = distance(drawn, both - drawn, steps[column])
            as_large += int((chance >= found[column] * (1 - 1e-12)).sum())
        p[column] = as_large / (1 + permutations)
    return Comparison(found, p)


def rate_changed(
    reference: np.ndarray, reference_rows: np.ndarray, current: np.ndarray, rows: np.ndarray
) -> Comparison:
    """Fisher's exact test of a rate, such as that of missing values or of values out of range.

    Args:
        reference: (...), whole numbers: the reference rows that are missing or out of range.
        reference_rows: (...), the number of all reference rows.
        current: (...), such rows now.
        rows: (...), the number of all rows now.

    Returns:
        The change of the rate (now less before), and SciPy's two-sided p-value.

    Raises:
        ValueError: a count is negative, not whole, or above its number of rows, or there are none.

    >>> changed = rate_changed(np.array([1, 5]), 100, np.array([20, 6]), 100)
    >>> changed.statistic, (changed.p < 0.05).tolist()
    (array([0.19, 0.01]), [True, False])
    """
    given = np.broadcast_arrays(reference, reference_rows, current, rows)
    a, n, b, m = (np.asarray(x, np.float64) for x in given)
    whole = all((x % 1 == 0).all() for x in (a, n, b, m))
    if not whole or not ((a >= 0) & (a <= n) & (b >= 0) & (b <= m) & (n > 0) & (m > 0)).all():
        raise ValueError(
            "reference and current must be whole numbers from 0 to their number of rows, got "
            f"{np.asarray(reference).tolist()} of {np.asarray(reference_rows).tolist()} and "
            f"{np.asarray(current).tolist()} of {np.asarray(rows).tolist()}"
        )
    p = np.empty(a.shape)
    for column in np.ndindex(a.shape):
        table = [[x[column], y[column] - x[column]] for x, y in ((a, n), (b, m))]
        p[column] = scipy.stats.fisher_exact(np.asarray(table, np.int64)).pvalue
    return Comparison(b / m - a / n, p)


def _pair(reference: Any, current: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    if a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            "reference and current must be counts (..., K) of the same bins, got shapes "
            f"{a.shape} and {b.shape}"
        )
    for name, x in (("reference", a), ("current", b)):
        if not np.isfinite(x).all() or (x < 0).any():
            raise ValueError(f"{name} must be finite counts of at least 0, got {x.min()}")
        if (x.sum(-1) <= 0).any():
            raise ValueError(f"{name} must have rows in each column, got a column without any")
    return a, b


def _size(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """N M / (N + M)."""
    n, m = a.sum(-1), b.sum(-1)
    return n * m / (n + m)


def _tail(statistic: np.ndarray, both: np.ndarray) -> np.ndarray:
    """The chi-squared p-value over the bins that occur; 1 if there is only one."""
    freedom = (both > 0).sum(-1) - 1
    return np.where(freedom > 0, scipy.special.chdtrc(np.maximum(freedom, 1), statistic), 1.0)


def _shares(counts: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The shares, where an empty bin that the other sample has counts half a row."""
    filled = np.where((counts == 0) & (other > 0), 0.5, counts)
    return filled / filled.sum(-1, keepdims=True)
