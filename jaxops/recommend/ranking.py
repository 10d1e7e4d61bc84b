"""Exact ranks of the items that users took next, over the whole catalogue, and their metrics.

Ranks count from 1, and tied items share their mean rank, so that a model that gives all items the
same score gains nothing from the order of the catalogue. Every metric takes ranks (U, M), inf where
a user has fewer than M targets, and returns one value per user, (U,); see
`jaxops.trust.intervals` for the uncertainty of their mean.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxops.model.finished import Model
from jaxops.recommend.data.events import Histories
from jaxops.recommend.recommenders import Params, Recommender, read_users, recommender_of, scores

Array = jax.Array

SCORES_AT_ONCE = 2**24  # 64 MiB of float32
USERS_AT_ONCE = 1024  # for a small catalogue, where the model's own arrays are the larger ones


class Ranks(NamedTuple):
    """The ranks of users' targets.

    Attributes:
        users: (R,) int64, the users that have a target.
        ranks: (R, M) float64, from 1; inf where a user has fewer than M targets.
        candidates: (R,) int64, the number of items ranked.
    """

    users: np.ndarray
    ranks: np.ndarray
    candidates: np.ndarray


def ranks(
    model: Model | Recommender,
    histories: Histories,
    targets: Histories,
    exclude_seen: bool = True,
    users: Mapping[str, Any] | None = None,
) -> Ranks:
    """The exact rank of each target among all items except those its user has seen.

    rank = 1 + (number of items that score higher) + 1/2 (number of others that score the same).

    The items of a user's history are left out, but never a target, even if the user has seen it
    before: for a user who has seen everything, the targets are ranked among themselves. A target
    that occurs twice counts once. Users are scored in batches of at most 2**24 scores and 1,024
    users.

    Args:
        model: of `recommend.fit`, or a recommender. It reads the last `context` items of a history,
            while all items of the history are left out.
        histories: of U users, before the targets; may be empty.
        targets: of the same U users, the items they took next. Users without any are left out.
        exclude_seen: if False, the ranks are among all N items.
        users: columns of U rows, for a model that reads features of users.

    Raises:
        ValueError: different numbers of users, items outside the catalogue, or no target.
        FloatingPointError: a score is NaN.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> model = recommend.fitted(recommend.Popularity(), log)  # "x" has two events, "y" has one
    >>> nothing, y = Histories(np.zeros(0, np.int32), np.zeros(2, int)), np.array([1], np.int32)
    >>> ranks(model, nothing, Histories(y, np.array([0, 1]))).ranks.tolist()
    [[2.0]]
    """
    return _ranked(recommender_of(model), histories, targets, exclude_seen, users, k=0)[0]


def ranks_and_lists(
    model: Model | Recommender,
    histories: Histories,
    targets: Histories,
    k: int,
    exclude_seen: bool = True,
    users: Mapping[str, Any] | None = None,
    outside: np.ndarray | None = None,
) -> tuple[Ranks, np.ndarray]:
    """The result of `ranks`, and each user's k best items by the same scores.

    Args:
        model: as in `ranks`, like the other arguments.
        histories: of U users.
        targets: of the same U users.
        k: 1 to N.
        exclude_seen: as in `ranks`; targets are never left out.
        users: as in `ranks`.
        outside: (U,) number of further targets that are not in the catalogue: they rank after it,
            at N + 1, so that they count as missed.

    Returns:
        The ranks, and (R, k) int32: indices of items, best first, the lower index
        first among equal scores; N where fewer than k items are left, or score more than -inf.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> model = recommend.fitted(recommend.Popularity(), log)
    >>> nothing, y = Histories(np.zeros(0, np.int32), np.zeros(2, int)), np.array([1], np.int32)
    >>> ranks_and_lists(model, nothing, Histories(y, np.array([0, 1])), k=2)[1].tolist()
    [[0, 1]]
    """
    recommender = recommender_of(model)
    if not 1 <= k <= len(recommender.items):
        raise ValueError(
            f"k must be 1 to {len(recommender.items):,} (the number of items), got {k}"
        )
    return _ranked(recommender, histories, targets, exclude_seen, users, k, outside)


def _ranked(
    recommender: Recommender,
    histories: Histories,
    targets: Histories,
    exclude_seen: bool,
    users: Mapping[str, Any] | None,
    k: int,
    outside: np.ndarray | None = None,
) -> tuple[Ranks, np.ndarray]:
    count, count_users = len(recommender.items), len(targets.starts) - 1
    more = np.zeros(count_users, np.int64) if outside is None else outside
    _check(histories, targets, more, count)
    goals = _keys(targets, count)
    goals = goals[np.sort(np.unique(goals, return_index=True)[1])]
    taken = np.unique(_keys(histories, count)) if exclude_seen else goals[:0]
    seen = _histories(np.setdiff1d(taken, goals, assume_unique=True), count_users, count)
    targets = _histories(goals, count_users, count)

    lengths = np.stack([histories.lengths, seen.lengths, targets.lengths])
    wanted = targets.lengths + more
    with_target = np.flatnonzero(wanted)
    places = np.full((len(with_target), int(wanted.max())), np.inf)
    lists = np.full((len(with_target), k), count, np.int32)
    row_of = np.zeros(count_users, np.int64)
    row_of[with_target] = np.arange(len(with_target))

    def write(batch: np.ndarray, doubled: Array, best: Array) -> None:
        got = np.asarray(doubled)[:, : places.shape[1]]
        if (got < 0).any():
            user = batch[(got < 0).any(1)][0]
            raise FloatingPointError(f"scores must not be NaN, got NaN for user {user}")
        place = np.arange(places.shape[1])
        got = np.pad(got / 2, ((0, 0), (0, places.shape[1] - got.shape[1])))
        got = np.where(place < targets.lengths[batch, None], got, count + 1)
        places[row_of[batch]] = np.where(place < wanted[batch, None], got, np.inf)
        lists[row_of[batch]] = best

    model = recommender.model
    params, table, share = recommender.on_device
    features = read_users(model, users, count_users)
    waiting: list[tuple[np.ndarray, Array, Array]] = []
    for batch in _batches(with_target, lengths, count):
        # three lengths make a program: steps of 4, or there would be many
        history = histories.padded(batch, count, model.context, base=4)
        hidden = seen.padded(batch, count, base=4)
        target = targets.padded(batch, count, least=1, base=4)
        rows = features and {name: values[batch] for name, values in features.items()}
        result = _score(model, k, params, table, share, history, rows, hidden, target)
        waiting.append((batch, *result))
        if len(waiting) > 1:  # the host prepares a batch while the device computes the previous one
            write(*waiting.pop(0))
    write(*waiting.pop())
    return Ranks(with_target, places, count - seen.lengths[with_target]), lists


def _batches(users: np.ndarray, lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """Users of similar lengths together, so that little is computed for padding."""
    near = np.ceil(np.log2(np.maximum(lengths[:, users], 1)) / 2)  # powers of 4, as the padding
    users = users[np.lexsort(near)]
    size = min(len(users), USERS_AT_ONCE, max(1, SCORES_AT_ONCE // count))
    batches = np.array_split(users, np.arange(size, len(users), size))
    # the last batch is filled with its last user, whose ranks are written more than once
    return [np.pad(batch, (0, size - len(batch)), mode="edge") for batch in batches]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    model: Any,
    k: int,
    params: Params,
    table: Array | None,
    share: Array,
    history: Array,
    users: Any,
    seen: Array,
    targets: Array,
) -> tuple[Array, Array]:
    """Twice the ranks, (B, M) int32, or -1 where a score is NaN; and the k best items, (B, k)."""
    # computed once: two fused computations of one score may differ in their last bit
    every = lax.optimization_barrier(scores(model, params, table, share, history, users))
    doubled = doubled_ranks(every, targets, seen)
    doubled = jnp.where(jnp.isnan(every).any(1, keepdims=True), -1, doubled)
    if k == 0:
        return doubled, jnp.zeros((len(every), 0), jnp.int32)
    left = every.at[jnp.arange(len(every))[:, None], seen].set(-jnp.inf, mode="drop")
    best, index = lax.top_k(left, k)
    return doubled, jnp.where(best == -jnp.inf, every.shape[1], index)


def doubled_ranks(scores: Array, targets: Array, hidden: Array) -> Array:
    """Twice the ranks of the targets, (B, M) int32: ties make half ranks.

    Args:
        scores: (B, N) float.
        targets: (B, M) int, N for padding, whose rank means nothing.
        hidden: (B, L) int, the items that are not ranked, N for padding; a target is ranked also
            if it is one of them.

    >>> scores = jnp.array([[5.0, 3.0, 3.0, 1.0]])
    >>> doubled_ranks(scores, jnp.array([[2, 3]]), jnp.array([[0, 4]])).tolist()
    [[3, 6]]
    """
    row = jnp.arange(len(scores))[:, None]
    own = jnp.take_along_axis(scores, targets, axis=1, mode="clip")
    # NaN is neither above nor equal to any score, where -inf may be a score
    ranked = scores.at[row, hidden].set(jnp.nan, mode="drop")
    ranked = ranked.at[row, targets].set(own, mode="drop")[:, None]
    own = own[:, :, None]
    # 2 for a higher score, 1 for an equal one, so the target itself adds 1
    above = (ranked > own).astype(jnp.int32) + (ranked >= own)
    return 1 + above.sum(2)


def _keys(histories: Histories, count: int) -> np.ndarray:
    """One number for each user and item."""
    user = np.repeat(np.arange(len(histories.starts) - 1), histories.lengths)
    return user * count + histories.items


def _histories(keys: np.ndarray, users: int, count: int) -> Histories:
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys // count, minlength=users))])
    return Histories((keys % count).astype(np.int32), starts)


def _check(histories: Histories, targets: Histories, outside: np.ndarray, count: int) -> None:
    if len(histories.starts) != len(targets.starts):
        raise ValueError(
            f"targets must be of {len(histories.starts) - 1:,} users, as histories are, "
            f"got {len(targets.starts) - 1:,}"
        )
    if len(targets.items) + outside.sum() == 0:
        raise ValueError("targets must hold at least 1 item, got none")
    for name, items_of_users in (("histories", histories), ("targets", targets)):
        items_of_users.check(name, count)


def hr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Hit rate @k: 1 if any target is among the first k, else 0.

    Args:
        ranks: (U, M), inf where there is no target.
        k: at least 1. Tied items count as among the first k if their mean rank is at most k.

    >>> hr(np.array([[1.0, np.inf], [10.5, 12.0]]), 10)
    array([1., 0.])
    """
    return (_ranks(ranks, k) <= k).max(1).astype(np.float64)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """Recall @k: the share of a user's m targets among the first k, divided by m, not min(m, k).

    >>> recall(np.array([[1.0, np.inf], [3.0, 12.0]]), 10)
    array([1. , 0.5])
    """
    ranks = _ranks(ranks, k)
    return (ranks <= k).sum(1) / np.isfinite(ranks).sum(1)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG @k with binary gains: DCG = sum of 1 / log2(1 + rank) over targets among the first k.

    It is divided by the largest possible DCG, of targets at ranks 1 to min(m, k). Tied items are
    discounted at their mean rank, which gives a little less than the mean of their discounts.

    References:
        Järvelin and Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques.

    >>> ndcg(np.array([[1.0, 2.0], [3.0, np.inf]]), 10)
    array([1. , 0.5])
    """
    ranks = _ranks(ranks, k)
    gain = np.where(ranks <= k, 1 / np.log2(1 + ranks), 0).sum(1)
    ideal = np.cumsum(1 / np.log2(2 + np.arange(ranks.shape[1])))
    return np.minimum(gain / ideal[np.minimum(np.isfinite(ranks).sum(1), k) - 1], 1.0)


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank @k: 1 / (rank of the first target), 0 where that is above k.

    >>> mrr(np.array([[4.0, 2.0], [11.0, np.inf]]), 10)
    array([0.5, 0. ])
    """
    best = _ranks(ranks, k).min(1)
    return np.asarray(np.where(best <= k, 1 / best, 0))


def average_precision(ranks: np.ndarray, k: int) -> np.ndarray:
    """Average precision @k.

    The sum of j / (rank of the j-th target) over the targets among the first k, divided by
    min(m, k), where m is the number of targets.

    >>> average_precision(np.array([[4.0, 1.0], [11.0, np.inf]]), 10)
    array([0.75, 0.  ])
    """
    ranks = np.sort(_ranks(ranks, k), axis=1)
    precision = (1 + np.arange(ranks.shape[1]))[None] / ranks
    total = np.where(ranks <= k, precision, 0).sum(1)
    return np.minimum(total / np.minimum(np.isfinite(ranks).sum(1), k), 1.0)


METRICS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "hr": hr,
    "recall": recall,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
}


def sampled_metrics(
    ranks: Ranks, k: int, negatives: int = 100, seed: int = 0
) -> dict[str, np.ndarray]:
    """The metrics among a sample of the items, only for comparison with older papers.

    Each target is ranked among itself and `negatives` others, drawn uniformly without replacement
    from the items of its exact ranking. The number of those above it is hypergeometric, so nothing
    is scored again. Half of the items with the target's score count as above it.

    Args:
        ranks: exact ranks.
        k: at least 1.
        negatives: fewer than the candidates of any user.
        seed: seed of the draw.

    Returns:
        name -> (R,) values, with the metrics' names after "sampled_".

    Warns:
        UserWarning: always. Sampled metrics may order models differently than the exact metrics.

    Raises:
        ValueError: more negatives than candidates.

    References:
        Krichene and Rendle 2020, On sampled metrics for item recommendation.

    >>> exact = Ranks(np.array([0]), np.array([[1.0]]), np.array([500]))
    >>> with warnings.catch_warnings(action="ignore"):
    ...     sampled_metrics(exact, k=10)["sampled_hr@10"]
    array([1.])
    """
    warnings.warn(
        f"sampled metrics: ranks among {negatives} drawn items instead of all can reverse the "
        "order of models (Krichene and Rendle 2020); never compare them with exact metrics",
        stacklevel=2,
    )
    others = ranks.candidates[:, None] - 1
    if not 1 <= negatives <= others.min():
        raise ValueError(
            f"negatives must be 1 to {others.min():,} (the fewest candidates of a user, less 1), "
            f"got {negatives}"
        )
    rng = np.random.default_rng(seed)
    filled = np.isfinite(ranks.ranks)
    above = np.where(filled, ranks.ranks - 1, 0)
    whole = (above + rng.integers(0, 2, above.shape) / 2).astype(np.int64)
    drawn = rng.hypergeometric(whole, others - whole, negatives)
    sampled = np.where(filled, 1.0 + drawn, np.inf)
    return {f"sampled_{name}@{k}": metric(sampled, k) for name, metric in METRICS.items()}


def _ranks(ranks: Any, k: int) -> np.ndarray:
    ranks = np.asarray(ranks, np.float64)
    if ranks.ndim != 2 or not (ranks >= 1).all() or not np.isfinite(ranks).any(1).all():
        raise ValueError(
            "ranks must be (U, M), at least 1, with a finite rank for every user, "
            f"got shape {ranks.shape}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return ranks
