"""Exact ranks of the items that users took next, over the whole catalogue.

Ranks count from 1, and tied items share their mean rank, so that a model that gives all items the
same score gains nothing from the order of the catalogue. `Ranks.ties` has the number of tied items,
from which the metrics compute the exact mean over all orders.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxops.model.finished import Model
from jaxops.recommend.batching import batches, cells, padded
from jaxops.recommend.data.events import Histories
from jaxops.recommend.metrics import METRICS
from jaxops.recommend.recommenders import (
    Params,
    Recommender,
    check_k,
    read_users,
    recommender_of,
    scores,
)

Array = jax.Array

USERS_AT_ONCE = 1024  # largest number of users in a batch, for a small catalogue
COMPARED = 64  # this many comparisons of a target's score count as one value in memory


class Ranks(NamedTuple):
    """The ranks of users' targets.

    Attributes:
        users: (R,) int64, the users that have a target.
        ranks: (R, M) float64, from 1; targets that no list can show rank after the catalogue, at
            N + 1, N + 2 and so on; inf where a user has fewer than M targets.
        ties: (R, M) int32, the number of items with the target's score, with the target.
        candidates: (R,) int64, the number of items ranked.
    """

    users: np.ndarray
    ranks: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray


def ranks(
    model: Model | Recommender,
    histories: Histories,
    targets: Histories,
    exclude_seen: bool = True,
    user_features: Mapping[str, Any] | None = None,
) -> Ranks:
    """The exact rank of each target among all items except those its user has seen.

    rank = 1 + (number of items with a higher score) + 1/2 (number of others with the same score).

    A target that its user has seen is ranked after the catalogue, because `recommend` does not show
    it, and so is a target with the score -inf. A target that occurs twice counts once. Users are
    scored in batches of at most 1,024; batches are smaller if a history or the catalogue is long,
    so that no array of a batch has more than 2**24 values, unless a single user needs more.

    Args:
        model: a model from `recommend.fit`, or a recommender. It reads the last `context` items of
            a history, but all items of the history are left out of the ranking.
        histories: the histories of U users, before the targets; they may be empty.
        targets: the items that the same U users took next. Users without any are left out.
        exclude_seen: if False, the ranks are among all N items.
        user_features: columns of U rows, for a model that reads features of users.

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
    return _ranked(recommender_of(model), histories, targets, exclude_seen, user_features, k=0)[0]


def ranks_and_lists(
    model: Model | Recommender,
    histories: Histories,
    targets: Histories,
    k: int,
    exclude_seen: bool = True,
    user_features: Mapping[str, Any] | None = None,
    outside: np.ndarray | None = None,
) -> tuple[Ranks, np.ndarray]:
    """The result of `ranks`, and each user's k best items by the same scores.

    Args:
        model: see `ranks`.
        histories: the histories of U users.
        targets: the targets of the same U users.
        k: 1 to N.
        exclude_seen: see `ranks`.
        user_features: see `ranks`.
        outside: (U,) number of further targets that are not in the catalogue. They rank after it,
            so that they count as missed.

    Returns:
        The ranks, and (R, k) int32: indices of items, best first; of equal scores that with the
        lower index comes first. N where fewer than k items are left whose score is above -inf.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> model = recommend.fitted(recommend.Popularity(), log)
    >>> nothing, y = Histories(np.zeros(0, np.int32), np.zeros(2, int)), np.array([1], np.int32)
    >>> ranks_and_lists(model, nothing, Histories(y, np.array([0, 1])), k=2)[1].tolist()
    [[0, 1]]
    """
    recommender = recommender_of(model)
    check_k(k, len(recommender.items))
    return _ranked(recommender, histories, targets, exclude_seen, user_features, k, outside)


def _ranked(
    recommender: Recommender,
    histories: Histories,
    targets: Histories,
    exclude_seen: bool,
    user_features: Mapping[str, Any] | None,
    k: int,
    outside: np.ndarray | None = None,
) -> tuple[Ranks, np.ndarray]:
    count, count_users = len(recommender.items), len(targets.starts) - 1
    more = np.zeros(count_users, np.int64) if outside is None else outside
    _check(histories, targets, more, count)
    seen, targets, wanted = _distinct(histories, targets, exclude_seen, count)
    wanted = wanted + more
    with_target = np.flatnonzero(wanted)
    shape = len(with_target), int(wanted.max())
    places, ties = np.full(shape, np.inf), np.ones(shape, np.int32)
    lists = np.full((len(with_target), k), count, np.int32)
    row_of = np.zeros(count_users, np.int64)
    row_of[with_target] = np.arange(len(with_target))

    def write(batch: np.ndarray, counts: Array, best: Array) -> None:
        above, alike = (np.asarray(x)[:, : shape[1]] for x in counts)
        if (above < 0).any():
            user = batch[(above < 0).any(1)][0]
            raise FloatingPointError(f"scores must not be NaN, got NaN for user {user}")
        width = ((0, 0), (0, shape[1] - above.shape[1]))
        above, alike = np.pad(above, width), np.pad(alike, width)
        place = np.arange(shape[1])
        lost = (place >= targets.lengths[batch, None]) | (above == count)
        rank = np.where(lost, count + np.cumsum(lost, 1), above + (alike + 1) / 2)
        places[row_of[batch]] = np.where(place < wanted[batch, None], rank, np.inf)
        ties[row_of[batch]] = np.where(lost, 1, alike)
        lists[row_of[batch]] = best

    model = recommender.model
    params, table, share = recommender.on_device
    features = read_users(model, user_features, count_users)
    lengths = np.stack([padded(histories.lengths, 16, 4), padded(targets.lengths, 1, 4)])

    def held(length: int, wide: int) -> int:
        return max(
            cells(recommender, length, features, USERS_AT_ONCE), count * -(-wide // COMPARED)
        )

    waiting: list[tuple[np.ndarray, Any, Array]] = []
    for batch, (length, wide) in batches(with_target, lengths, held, USERS_AT_ONCE):
        history = histories.rows(batch, min(length, model.context or length), count)
        hidden, target = seen.rows(batch, length, count), targets.rows(batch, wide, count)
        rows = features and {name: values[batch] for name, values in features.items()}
        result = _score(model, k, params, table, share, history, rows, hidden, target)
        waiting.append((batch, *result))
        if len(waiting) > 1:  # the host prepares a batch while the device computes the one before
            write(*waiting.pop(0))
    write(*waiting.pop())
    return Ranks(with_target, places, ties, count - seen.lengths[with_target]), lists


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
) -> tuple[tuple[Array, Array], Array]:
    """`above_and_alike`, with -1 where a score is NaN; and the k best items, (B, k)."""
    # scores are computed once, because two fused computations may differ in the last bit
    every = lax.optimization_barrier(scores(model, params, table, share, history, users))
    left = every.at[jnp.arange(len(every))[:, None], seen].set(-jnp.inf, mode="drop")
    above, alike = above_and_alike(left, targets)
    above = jnp.where(jnp.isnan(every).any(1, keepdims=True), -1, above)
    if k == 0:
        return (above, alike), jnp.zeros((len(every), 0), jnp.int32)
    best, index = lax.top_k(left, k)
    return (above, alike), jnp.where(best == -jnp.inf, every.shape[1], index)


def above_and_alike(scores: Array, targets: Array) -> tuple[Array, Array]:
    """The number of items above each target, and of items with its score, with the target itself.

    Args:
        scores: (B, N) float; -inf for an item that is not shown.
        targets: (B, M) int, N for padding; the results for padding have no meaning.

    Returns:
        Two (B, M) int32. For a target that is not shown the number of items above is N, which no
        other target has.

    >>> above, alike = above_and_alike(jnp.array([[5.0, 3.0, 3.0, -jnp.inf]]), jnp.array([[2, 3]]))
    >>> above.tolist(), alike.tolist()
    ([[1, 4]], [[2, 1]])
    """
    own = jnp.take_along_axis(scores, targets, axis=1, mode="clip")
    found = scores[:, None] > own[:, :, None], scores[:, None] == own[:, :, None]
    above, alike = lax.reduce(  # both in one pass, which is many times faster than two sums
        tuple(x.astype(jnp.int32) for x in found),
        (jnp.int32(0), jnp.int32(0)),
        lambda x, y: (x[0] + y[0], x[1] + y[1]),
        (2,),
    )
    shown = own > -jnp.inf
    return jnp.where(shown, above, scores.shape[1]), jnp.where(shown, alike, 1)


def _distinct(
    histories: Histories, targets: Histories, exclude_seen: bool, count: int
) -> tuple[Histories, Histories, np.ndarray]:
    """The items to leave out, the targets that are not among them, and the number of all (U,)."""
    users = len(targets.starts) - 1
    goals = _keys(targets, count)
    goals = goals[np.sort(np.unique(goals, return_index=True)[1])]
    taken = np.unique(_keys(histories, count)) if exclude_seen else goals[:0]
    wanted = np.bincount(goals // count, minlength=users)
    fresh = goals[~np.isin(goals, taken)]
    return _histories(taken, users, count), _histories(fresh, users, count), wanted


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


def sampled_metrics(
    ranks: Ranks, k: int, negatives: int = 100, seed: int = 0
) -> dict[str, np.ndarray]:
    """The metrics among a sample of the items, only for comparison with older papers.

    Each target is ranked among itself and `negatives` others, which are drawn uniformly without
    replacement from the items of its exact ranking. The number of drawn items above it is
    hypergeometric, so no scores are computed again. Half of the items with the target's score count
    as above it. A target that no list can show is a miss.

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

    >>> exact = Ranks(np.array([0]), np.array([[1.0]]), np.array([[1]]), np.array([500]))
    >>> with warnings.catch_warnings(action="ignore"):
    ...     sampled_metrics(exact, k=10)["sampled_hr@10"]
    array([1.])
    """
    warnings.warn(
        f"sampled metrics: ranks among {negatives} drawn items instead of all can reverse the "
        "order of models (Krichene and Rendle 2020); never compare them with exact metrics",
        stacklevel=2,
    )
    others = np.broadcast_to(ranks.candidates[:, None] - 1, ranks.ranks.shape)
    shown = ranks.ranks <= others + 1  # the other targets rank after all drawn items
    fewest = others.min(initial=np.iinfo(np.int64).max, where=shown)
    if not 1 <= negatives <= fewest:
        raise ValueError(
            f"negatives must be 1 to {fewest:,} (the fewest candidates of a user, less 1), "
            f"got {negatives}"
        )
    rng = np.random.default_rng(seed)
    above = np.where(shown, ranks.ranks - 1, 0)
    whole = (above + rng.integers(0, 2, above.shape) / 2).astype(np.int64)
    rest = np.where(shown, others - whole, negatives)
    drawn = rng.hypergeometric(whole, rest, negatives)
    behind = np.where(np.isfinite(ranks.ranks), negatives + ranks.ranks, np.inf)
    sampled = np.where(shown, 1.0 + drawn, behind)
    return {f"sampled_{name}@{k}": metric(sampled, k) for name, metric in METRICS.items()}
