"""Metrics of the ranks of the items that users took next; with ties, the mean over all orders.

Every metric takes ranks (U, M), inf where a user has fewer than M targets, and returns one value
per user, (U,); see `jaxops.trust.intervals` for the uncertainty of their mean. Items with equal
scores count as randomly ordered: the value is the mean over all orders, in closed form. So a model
that gives all items the same score has the value of random lists, for every k.

References:
    McSherry and Najork 2008, Computing information retrieval performance measures efficiently in
    the presence of tied scores.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


def hr(ranks: np.ndarray, k: int, ties: np.ndarray | None = None) -> np.ndarray:
    """Hit rate @k: 1 if any target is among the first k, else 0.

    Args:
        ranks: (U, M) from 1, the mean rank among the items that tie; inf where there is no target.
        k: at least 1.
        ties: (U, M) number of items with the target's score, with the target itself; see `Ranks`.
            By default 1, or the number of the user's targets that have the same rank.

    >>> hr(np.array([[1.0, np.inf], [10.5, 12.0]]), 10)
    array([1. , 0.5])
    >>> hr(np.array([[5.5]]), 6, ties=np.array([[10]]))  # ten items, all alike
    array([0.6])
    """
    at = _groups(ranks, k, ties)
    # the targets take the group's positions beyond k one after the other
    missed = np.maximum(at.ties - at.inside - at.before, 0) / (at.ties - at.before)
    return 1 - missed.prod(1)


def recall(ranks: np.ndarray, k: int, ties: np.ndarray | None = None) -> np.ndarray:
    """Recall @k: the share of a user's m targets among the first k, divided by m, not min(m, k).

    >>> recall(np.array([[1.0, np.inf], [3.0, 12.0]]), 10)
    array([1. , 0.5])
    """
    at = _groups(ranks, k, ties)
    return (at.inside / at.ties).sum(1) / at.targets


def ndcg(ranks: np.ndarray, k: int, ties: np.ndarray | None = None) -> np.ndarray:
    """NDCG @k with binary gains: DCG = sum of 1 / log2(1 + rank) over targets among the first k.

    It is divided by the largest possible DCG, of targets at ranks 1 to min(m, k).

    References:
        Järvelin and Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques.

    >>> ndcg(np.array([[1.0, 2.0], [3.0, np.inf]]), 10)
    array([1. , 0.5])
    """
    at = _groups(ranks, k, ties)
    gain = (at.summed(lambda rank: 1 / np.log2(1 + rank)) / at.ties).sum(1)
    ideal = np.cumsum(1 / np.log2(2 + np.arange(at.above.shape[1])))
    return np.minimum(gain / ideal[np.minimum(at.targets, k) - 1], 1.0)


def mrr(ranks: np.ndarray, k: int, ties: np.ndarray | None = None) -> np.ndarray:
    """Reciprocal rank @k: 1 / (rank of the first target), 0 if that rank is above k.

    >>> mrr(np.array([[4.0, 2.0], [11.0, np.inf]]), 10)
    array([0.5, 0. ])
    """
    at = _groups(ranks, k, ties)
    found = at.summed(lambda rank: 1 / rank)[:, 0] / at.ties[:, 0]
    several = np.flatnonzero(at.size[:, 0] > 1)  # several targets tie, and any may be the first
    above, alike, size = (x[several, 0] for x in (at.above, at.ties, at.size))
    left, total = np.ones(len(several)), np.zeros(len(several))
    for step in range(int(min(k, (alike - size).max(initial=-1) + 1))):
        chance = size / np.maximum(alike - step, size)  # for the next position, if none was before
        total += np.where(above + step < k, left * chance / (above + 1 + step), 0)
        left *= 1 - chance
    found[several] = total
    return found


def average_precision(ranks: np.ndarray, k: int, ties: np.ndarray | None = None) -> np.ndarray:
    """Average precision @k.

    The sum of j / (rank of the j-th target) over the targets among the first k, divided by
    min(m, k), where m is the number of targets.

    >>> average_precision(np.array([[4.0, 1.0], [11.0, np.inf]]), 10)
    array([0.75, 0.  ])
    """
    at = _groups(ranks, k, ties)
    harmonic = at.summed(lambda rank: 1 / rank)
    # a position in the group holds a target with probability size / ties; the positions before it
    # in the group hold their expected number of the other targets
    later = at.inside - np.where(at.inside > 0, at.above + 1, 0) * harmonic
    others = (at.size - 1) / np.maximum(at.ties - 1, 1)
    total = (((at.earlier + 1) * harmonic + others * later) / at.ties).sum(1)
    return np.minimum(total / np.minimum(at.targets, k), 1.0)


METRICS: dict[str, Callable[..., np.ndarray]] = {
    "hr": hr,
    "recall": recall,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
}


class _Groups(NamedTuple):
    """The targets of each user by rank, and the group of tied items of each target, (U, M).

    Attributes:
        k: length of the list.
        targets: (U,) number of targets.
        above: number of items above the group.
        ties: number of items in the group.
        inside: number of the group's positions among the first k.
        size: number of the user's targets in the group.
        before: number of these that come before this one in the row.
        earlier: number of the user's targets in better groups.
    """

    k: int
    targets: np.ndarray
    above: np.ndarray
    ties: np.ndarray
    inside: np.ndarray
    size: np.ndarray
    before: np.ndarray
    earlier: np.ndarray

    def summed(self, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The gains of ranks 1 to k, summed over the positions of each target's group, (U, M)."""
        ends = np.arange(self.k + 1)
        total = np.concatenate([[0.0], np.cumsum(gain(ends[1:].astype(float)))])
        upper, lower = (np.interp(x, ends, total) for x in (self.above + self.ties, self.above))
        return np.asarray(upper - lower)


def _groups(ranks: Any, k: int, ties: Any) -> _Groups:
    ranks = np.asarray(ranks, np.float64)
    if ranks.ndim != 2 or not (ranks >= 1).all() or not np.isfinite(ranks).any(1).all():
        raise ValueError(
            "ranks must be (U, M), at least 1, with a finite rank for every user, "
            f"got shape {ranks.shape}"
        )
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k}")
    ties = np.ones(ranks.shape) if ties is None else np.asarray(ties, np.float64)
    if ties.shape != ranks.shape or not (ties >= 1).all():
        raise ValueError(f"ties must be {ranks.shape}, at least 1, as ranks, got {ties.shape}")
    order = np.argsort(ranks, axis=1, kind="stable")
    ranks, ties = (np.take_along_axis(x, order, 1) for x in (ranks, ties))
    place = np.broadcast_to(np.arange(ranks.shape[1]), ranks.shape)
    other = ranks[:, 1:] != ranks[:, :-1]
    first = np.pad(other, ((0, 0), (1, 0)), constant_values=True)
    last = np.pad(other, ((0, 0), (0, 1)), constant_values=True)
    earlier = np.maximum.accumulate(np.where(first, place, 0), 1)
    final = np.where(last, place, ranks.shape[1])[:, ::-1]
    final = np.minimum.accumulate(final, 1)[:, ::-1]
    size = final - earlier + 1
    ties = np.maximum(ties, size)
    above = ranks - (ties + 1) / 2
    inside = np.clip(k - above, 0, ties)
    targets = np.isfinite(ranks).sum(1)
    return _Groups(k, targets, above, ties, inside, size, place - earlier, earlier)
