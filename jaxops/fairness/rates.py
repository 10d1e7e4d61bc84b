"""Intervals of rates, and of the largest difference and the smallest ratio between groups."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

Limits = Callable[[float], tuple[np.ndarray, np.ndarray]]
"""Coverage -> the lower and the upper bounds of G values."""


class Figure(NamedTuple):
    """A value, the bounds of its interval, and the number of rows behind it.

    >>> Figure(0.5, 0.4, 0.6, 100).rows
    100
    """

    value: float
    low: float
    high: float
    rows: int


class Values(NamedTuple):
    """A value of each of G groups, NaN where it is not defined.

    Attributes:
        value: float64 (G,).
        rows: (G,), of how many rows it is.
        limits: the bounds of its interval for a coverage.

    >>> mean, half = np.array([3.0, 5.0]), np.array([0.5, 0.5])
    >>> values = Values(mean, np.array([9, 9]), lambda coverage: (mean - half, mean + half))
    >>> apart = difference([values])
    >>> apart.value, round(apart.low, 3)
    (2.0, 1.293)
    """

    value: np.ndarray
    rows: np.ndarray
    limits: Limits


def wilson(
    hits: np.ndarray, rows: np.ndarray, coverage: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of Wilson's score interval of a rate; NaN of no rows.

    It contains every rate p for which |hits / n - p| is at most z sqrt(p (1 - p) / n).

    Args:
        hits: how many of the rows, any shape.
        rows: n, the same shape.
        coverage: in (0, 1).

    References:
        Wilson 1927, Probable inference.

    >>> [round(float(bound), 4) for bound in wilson(np.array(0), np.array(10))]
    [0.0, 0.2775]
    """
    z = ndtri((1 + coverage) / 2)
    n = np.where(np.asarray(rows) > 0, rows, np.nan)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.where(p == 0, 0.0, centre - half), np.where(p == 1, 1.0, centre + half)


def rate_of(hits: np.ndarray, rows: np.ndarray) -> Values:
    """Rates with Wilson's intervals; NaN of no rows.

    >>> low, high = rate_of(np.array([0, 5]), np.array([0, 10])).limits(0.95)
    >>> low.round(4).tolist()
    [nan, 0.2366]
    """
    value = np.where(rows > 0, hits / np.maximum(rows, 1), np.nan)
    return Values(value, rows, lambda coverage: wilson(hits, rows, coverage))


def difference(several: Sequence[Values], coverage: float = 0.95) -> Figure:
    """The largest difference between two groups, over one or several kinds of values.

    Of two groups the interval of p - q is Newcombe's (MOVER): with bounds (l, u) of p and (l', u')
    of q it reaches from p - q - sqrt((p - l)^2 + (u' - q)^2) to p - q + sqrt((u - p)^2 +
    (q - l')^2). Of m pairs each gets the coverage 1 - (1 - coverage) / m; so that with at least the
    coverage asked for all of them hold at once, and the largest difference lies between the
    largest of their lower and the largest of their upper bounds.

    Args:
        several: the values, such as the true and the false positive rates of all groups.
        coverage: in (0, 1).

    Returns:
        The figure; NaN if fewer than two groups have a value.

    References:
        Newcombe 1998, Interval estimation for the difference between independent proportions;
        Zou and Donner 2008, Construction of confidence limits about effect measures.

    >>> figure = difference([rate_of(np.array([56, 48]), np.array([70, 80]))])
    >>> [round(one, 4) for one in figure[:3]]  # 0.0524 to 0.3339 in Newcombe's table II
    [0.2, 0.0524, 0.3339]
    """

    def pair(p: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        d = p[0] - p[1]
        below = d - np.hypot(p[0] - low[0], high[1] - p[1])
        above = d + np.hypot(high[0] - p[0], p[1] - low[1])
        return d, np.maximum(below, 0.0), np.maximum(above, -below)  # of |p - q|

    return _over_pairs(several, coverage, pair, np.max)


def ratio(several: Sequence[Values], coverage: float = 0.95) -> Figure:
    """The smallest ratio q / p of two groups' values q <= p, over one or several kinds.

    The interval is that of `difference` for log(q) - log(p). Where q is 0, its upper bound is the
    ratio of the bounds of q and p.

    Args:
        several: values of at least 0.
        coverage: in (0, 1).

    Returns:
        The figure; NaN if fewer than two groups have a value, or all values are 0.

    >>> round(ratio([rate_of(np.array([56, 48]), np.array([70, 80]))]).value, 4)
    0.75
    """

    def pair(p: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(divide="ignore", invalid="ignore"):
            r, (log_p, log_low, log_high) = p[1] / p[0], np.log([p, low, high])
            below = r * np.exp(-np.hypot(log_p[1] - log_low[1], log_high[0] - log_p[0]))
            above = r * np.exp(np.hypot(log_high[1] - log_p[1], log_p[0] - log_low[0]))
            below = np.where(r == 0, 0.0, below)
            above = np.where(r == 0, high[1] / low[0], above)
            return r, np.minimum(below, 1 / above), np.minimum(above, 1.0)

    return _over_pairs(several, coverage, pair, np.min)


def _over_pairs(
    several: Sequence[Values],
    coverage: float,
    pair: Callable[..., tuple[np.ndarray, ...]],
    most: Callable[..., float],
) -> Figure:
    """The extreme of all pairs of groups, the larger value first, and of their bounds."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}")
    known = [np.flatnonzero(~np.isnan(one.value)) for one in several]
    rows = sum(int(one.rows[groups].sum()) for one, groups in zip(several, known, strict=True))
    count = sum(len(groups) * (len(groups) - 1) // 2 for groups in known)
    if count == 0:
        return Figure(np.nan, np.nan, np.nan, rows)
    found = []
    for one, groups in zip(several, known, strict=True):
        order = groups[np.argsort(-one.value[groups], kind="stable")]
        pairs = order[np.array(np.triu_indices(len(order), 1))]
        bounds = one.limits(1 - (1 - coverage) / count)
        found.append(pair(one.value[pairs], *(bound[pairs] for bound in bounds)))
    parts = [np.concatenate(part) for part in zip(*found, strict=True)]
    if np.isnan(parts[0]).all():
        return Figure(np.nan, np.nan, np.nan, rows)
    parts = [part[~np.isnan(parts[0])] for part in parts]
    value, low, high = (float(most(part)) for part in parts)
    return Figure(value, low, high, rows)
