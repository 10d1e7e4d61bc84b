"""What a recommender shows to all its users together: how much of the catalogue, how popular.

Lists are (U, k) int32, indices of items, and N where a list is shorter than k, which counts for
nothing. Popularity is by `counts` (N,): how many events each item has in the histories.
"""

import numpy as np


def coverage(lists: np.ndarray, items: int) -> float:
    """The share of the catalogue that is on any list.

    It is a count over these very users, which more users raise, and has no interval.

    Args:
        lists: (U, k).
        items: N.

    >>> coverage(np.array([[0, 1], [1, 4]]), 4)  # 4 is no item
    0.5
    """
    return float((_shown(lists, items) > 0).mean())


def gini(lists: np.ndarray, items: int) -> float:
    """How unevenly the N items are shown: 0 all alike, 1 - 1 / N one item alone.

    The Gini coefficient of how often each item is on a list, those never shown included. 0 where
    nothing is shown.

    >>> gini(np.array([[0, 1], [2, 3]]), 4), gini(np.array([[1], [1]]), 4)
    (0.0, 0.75)
    """
    shown = np.sort(_shown(lists, items))
    weights = 2 * np.arange(items) + 1 - items
    return float((weights * shown).sum() / max(items * shown.sum(), 1))


def novelty(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How rarely taken each user's list is: the mean over its items of -log2(share of all events).

    Self-information in bits, the expected free discovery of Vargas and Castells (2011, Rank and
    relevance in novelty and diversity metrics for recommender systems). An item that nobody took
    counts as taken once.

    Args:
        lists: (U, k).
        counts: (N,) how many events each item has.

    Returns:
        (U,) bits; NaN for an empty list.

    >>> novelty(np.array([[0, 1], [0, 3]]), np.array([4, 2, 2]))
    array([1.5, 1. ])
    """
    counts = np.asarray(counts)
    return _mean(-np.log2(np.maximum(counts, 1) / max(counts.sum(), 1)), lists)


def mean_popularity(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How popular each user's list is: the mean percentile of its items in the catalogue, 0 to 1.

    An item's percentile is the share of items with fewer events, plus half of those with as many:
    items shown at random give .5.

    Returns:
        (U,); NaN for an empty list.

    >>> mean_popularity(np.array([[0, 1], [2, 4]]), np.array([9, 5, 1, 1]))
    array([0.75, 0.25])
    """
    return _mean(_percentiles(counts), lists)


def popularity_bias(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How much more popular each user's list is than what users take.

    `mean_popularity` of the list, less the mean percentile of all events: 0 if items were shown as
    popular as those taken, above 0 if the popular are favoured.

    Returns:
        (U,), between -1 and 1; NaN for an empty list.

    >>> popularity_bias(np.array([[0], [2]]), np.array([2, 1, 1]))
    array([ 0.25, -0.25])
    """
    weights = counts if np.any(counts) else None  # before the first event all are alike
    taken = np.average(_percentiles(counts), weights=weights)
    return mean_popularity(lists, counts) - taken


def _percentiles(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    _, kind, alike = np.unique(counts, return_inverse=True, return_counts=True)
    return ((np.cumsum(alike) - alike / 2) / len(counts))[kind]


def _mean(values: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Of each list's items: (U,)."""
    lists = np.asarray(lists)
    there = lists < len(values)
    total = np.append(values, 0)[lists].sum(1)
    return np.divide(total, there.sum(1), out=np.full(len(lists), np.nan), where=there.any(1))


def _shown(lists: np.ndarray, items: int) -> np.ndarray:
    """How often each item is on a list: (N,)."""
    return np.bincount(np.ravel(lists), minlength=items + 1)[:items]
