"""Features of a column of numbers: bins, quantiles, robust scaling."""

import functools
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri  # the inverse of the normal distribution

ENDS = 1e-7  # the smallest probability, and 1 minus the largest one, as in scikit-learn
MOST = float(ndtri(1 - (ENDS - np.spacing(1))))
NOISE = 1e-5  # in standard deviations, so that equal values do not make equal quantiles


def bin_edges(x: np.ndarray, bins: int) -> list[float]:
    """Edges of bins: each value that fills a bin is an edge; the others share the rest equally.

    Args:
        x: (N,), without missing values.
        bins: about how many bins to make.

    >>> bin_edges(np.arange(5.0), 2)
    [0.0, 2.0, 4.0]
    """
    values, counts = np.unique(x, return_counts=True)
    frequent = np.flatnonzero(counts > len(x) / bins)
    after = np.minimum(frequent + 1, len(values) - 1)
    edges = [values[[0, -1]], values[frequent], values[after]]
    others = x[~np.isin(x, values[frequent])]
    if len(others):
        shares = np.linspace(0, 1, max(bins - len(frequent), 1) + 1)
        edges.append(np.quantile(others, shares, method="nearest"))
    return np.unique(np.concatenate(edges)).tolist()


def quantiles(x: np.ndarray) -> list[float]:
    """Quantiles of a column at equal steps from 0 to 1, for `normal_scores`.

    There is one quantile for 30 rows, but at least 10 and at most 1,000. Before, normal noise of
    1e-5 standard deviations is added, so that a value in many rows does not make many equal
    quantiles (Gorishniy et al. 2021, arXiv:2106.11959, where the noise is in the unit of the
    column).

    Args:
        x: (N,), without missing values.

    >>> len(quantiles(np.arange(3_000.0))), len(quantiles(np.arange(5.0)))
    (100, 5)
    """
    count = min(max(min(len(x) // 30, 1000), 10), len(x))
    noise = np.random.default_rng(0).normal(0, NOISE, len(x)) * x.std()
    found = np.quantile(x + noise, np.linspace(0, 1, count))
    return np.maximum.accumulate(found).tolist()


def normal_scores(x: np.ndarray, quantiles: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """The values of a standard normal distribution at the same probabilities; NaN stays NaN.

    Between quantiles the probability is interpolated linearly. Numbers beyond the first or the last
    quantile become -5.2 or 5.2. This is scikit-learn's `QuantileTransformer` without its tolerance
    of 1e-7 at both ends, which is in the unit of the column.

    Args:
        x: (C, N), float64, the numbers of C columns.
        quantiles: of each column, in rising order, at equal steps of the probability from 0 to 1.

    >>> normal_scores(np.array([[-9.0, 1.0, 9.0]]), [[0.0, 1.0, 2.0]]).round(2).tolist()
    [[-5.2, 0.0, 5.2]]
    """
    probability = np.empty_like(x)
    for row, values, given in zip(probability, x, quantiles, strict=True):
        at, share = np.asarray(given), _steps(len(given))
        # if a value stands for several quantiles, the middle one
        row[:] = np.interp(values, at, share) - np.interp(-values, -at[::-1], -share[::-1])
    probability /= 2
    first, last = (np.array([given[end] for given in quantiles])[:, None] for end in (0, -1))
    probability[x <= first] = 0
    probability[x >= last] = 1
    return np.asarray(np.clip(ndtri(probability), -MOST, MOST))


@functools.cache
def _steps(count: int) -> np.ndarray:
    return np.linspace(0, 1, count)


def median_and_spread(x: np.ndarray) -> tuple[float, float]:
    """The median and the distance between the quartiles, or half the range if that is 0.

    >>> median_and_spread(np.array([0.0, 1.0, 2.0, 3.0, 99.0]))
    (2.0, 2.0)
    """
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    return float(middle), float(high - low or np.ptp(x) / 2)


def smooth_clip(x: np.ndarray) -> np.ndarray:
    """Numbers clipped smoothly to (-3, 3): x / sqrt(1 + (x / 3)^2).

    Holzmüller et al. 2024, arXiv:2407.04491.

    >>> smooth_clip(np.array([0.0, 1e9])).round(4).tolist()
    [0.0, 3.0]
    """
    return x / np.sqrt(1 + np.square(x / 3))
