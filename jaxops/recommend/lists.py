"""Properties of the recommended lists: catalogue coverage, inequality, novelty and popularity.

Lists are (U, k) int32, indices of items; N is padding where a list is shorter than k. Popularity is
by `counts` (N,), the number of events of each item in the histories.
"""

import numpy as np


def coverage(lists: np.ndarray, items: int) -> float:
    """The share of the catalogue that is on at least one list.

    It grows with the number of users, so it has no confidence interval.

    Args:
        lists: (U, k).
        items: N.

    >>> coverage(np.array([[0, 1], [1, 4]]), 4)  # 4 is padding
    0.5
    """
    return float((_shown(lists, items) > 0).mean())


def gini(lists: np.ndarray, items: int) -> float:
    """The Gini coefficient of how often each item is on a list, including items never shown.

    It is 0 if all items are shown equally often or none is shown, and 1 - 1 / N if only one item is
    shown.

    Args:
        lists: (U, k).
        items: N.

    >>> gini(np.array([[0, 1], [2, 3]]), 4), gini(np.array([[1], [1]]), 4)
    (0.0, 0.75)
    """
    shown = np.sort(_shown(lists, items))
    weights = 2 * np.arange(items) + 1 - items
    return float((weights * shown).sum() / max(items * shown.sum(), 1))


def novelty(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The novelty of each user's list: the mean over its items of -log2(share of all events).

    This is self-information in bits. An item without events counts as one with a single event.

    Args:
        lists: (U, k).
        counts: (N,) number of events of each item.

    Returns:
        (U,) bits; NaN for an empty list.

    References:
        Vargas and Castells 2011, Rank and relevance in novelty and diversity metrics for
        recommender systems ("expected free discovery").

    >>> novelty(np.array([[0, 1], [0, 3]]), np.array([4, 2, 2]))
    array([1.5, 1. ])
    """
    counts = np.asarray(counts)
    return _mean(-np.log2(np.maximum(counts, 1) / max(counts.sum(), 1)), lists)


def mean_popularity(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The popularity of each user's list: the mean percentile of its items, 0 to 1.

    An item's percentile is the share of items with fewer events, plus half the share of items with
    equally many, so a list of random items has 0.5.

    Args:
        lists: (U, k).
        counts: (N,) number of events of each item.

    Returns:
        (U,); NaN for an empty list.

    >>> mean_popularity(np.array([[0, 1], [2, 4]]), np.array([9, 5, 1, 1]))
    array([0.75, 0.25])
    """
    return _mean(_percentiles(counts), lists)


def popularity_bias(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How much more popular each user's list is than the items of all events.

    `mean_popularity` of the list minus the mean percentile of all events: above 0 if the model
    favours popular items.

    Args:
        lists: (U, k).
        counts: (N,) number of events of each item.

    Returns:
        (U,), between -1 and 1; NaN for an empty list.

    >>> popularity_bias(np.array([[0], [2]]), np.array([2, 1, 1]))
    array([ 0.25, -0.25])
    """
    weights = counts if np.any(counts) else None  # without events all items are equally popular
    taken = np.average(_percentiles(counts), weights=weights)
    return mean_popularity(lists, counts) - taken


def _percentiles(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    _, group, size = np.unique(counts, return_inverse=True, return_counts=True)
    return ((np.cumsum(size) - size / 2) / len(counts))[group]


def _mean(values: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """The mean over each list's items, (U,); NaN for an empty list."""
    lists = np.asarray(lists)
    shown = lists < len(values)
    total = np.append(values, 0)[lists].sum(1)
    return np.divide(total, shown.sum(1), out=np.full(len(lists), np.nan), where=shown.any(1))


def _shown(lists: np.ndarray, items: int) -> np.ndarray:
    """How often each item is on a list, (N,)."""
    return np.bincount(np.ravel(lists), minlength=items + 1)[:items]
