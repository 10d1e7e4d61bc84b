"""How well a recommender ranks what its users took next: exact ranks over the whole catalogue.

Ranks are 1-based and ties stand at their mean, so that a model that scores all items alike is not
rewarded for the order of the catalogue. Every metric takes ranks (U, M), inf where a user has fewer
than M targets, and gives one value a user, (U,); see `jaxops.trust.intervals` for
how sure their mean is.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxops.recommend.data.events import Histories
from jaxops.recommend.recommenders import Params, Recommender, read_users, scores

Array = jax.Array

SCORES_AT_ONCE = 2**24  # 64 MiB of float32
USERS_AT_ONCE = 1024  # of a small catalogue: what a model computes within is also to be held


class Ranks(NamedTuple):
    """Where the targets of users stand.

    Attributes:
        users: (R,) int64, the users that have a target.
        ranks: (R, M) float64, from 1; inf where a user has fewer than M targets.
        candidates: (R,) int64, among how many items.
    """

    users: np.ndarray
    ranks: np.ndarray
    candidates: np.ndarray


def ranks(
    recommender: Recommender,
    histories: Histories,
    targets: Histories,
    exclude_seen: bool = True,
    users: Mapping[str, Any] | None = None,
) -> Ranks:
    """The exact rank of each target among all items but those its user has seen.

    A rank is 1 + (how many items score higher) + 1/2 (how many others score the same), of the N
    items less those of the user's history. Targets are never left out, also where the user has
    seen them: a user who has seen everything ranks the targets among themselves. A target named
    twice counts once. The users are scored in batches of at most 2**24 scores and 1,024
    users.

    Args:
        recommender: reads the last `context` items of a history; all of it is left out.
        histories: of U users, as they were before the targets; may be empty.
        targets: of the same U users, what they took next. Users without any are left out.
        exclude_seen: False ranks among all N items.
        users: columns of U rows, where the model reads features of users.

    Raises:
        ValueError: not the same number of users, items outside the catalogue, or no target.
        FloatingPointError: a score is NaN.
    """
    return _ranked(recommender, histories, targets, exclude_seen, users, k=0)[0]


def ranks_and_lists(
    recommender: Recommender,
    histories: Histories,
    targets: Histories,
    k: int,
    exclude_seen: bool = True,
    users: Mapping[str, Any] | None = None,
) -> tuple[Ranks, np.ndarray]:
    """What `ranks` gives, and of the same scores each user's first k items.

    Args:
        recommender: as in `ranks`, as is all else.
        histories: of U users.
        targets: of the same U users.
        k: 1 to N.
        exclude_seen: as in `ranks`: targets are never left out.
        users: as in `ranks`.

    Returns:
        The ranks, and (R, k) int32: indices of items, best first, of equal ones the lower index; N
        where fewer than k are left, or score more than -inf.
    """
    if not 1 <= k <= len(recommender.items):
        raise ValueError(f"k: found {k}, wanted 1 to {len(recommender.items):,} (all items)")
    return _ranked(recommender, histories, targets, exclude_seen, users, k)


def _ranked(
    recommender: Recommender,
    histories: Histories,
    targets: Histories,
    exclude_seen: bool,
    users: Mapping[str, Any] | None,
    k: int,
) -> tuple[Ranks, np.ndarray]:
    count, count_users = len(recommender.items), len(targets.starts) - 1
    _check(histories, targets, count)
    wanted = _keys(targets, count)
    wanted = wanted[np.sort(np.unique(wanted, return_index=True)[1])]
    taken = np.unique(_keys(histories, count)) if exclude_seen else wanted[:0]
    seen = _histories(np.setdiff1d(taken, wanted, assume_unique=True), count_users, count)
    targets = _histories(wanted, count_users, count)

    lengths = np.stack([histories.lengths, seen.lengths, targets.lengths])
    who = np.flatnonzero(targets.lengths)
    places = np.full((len(who), int(targets.lengths.max())), np.inf)
    lists = np.full((len(who), k), count, np.int32)
    row_of = np.zeros(count_users, np.int64)
    row_of[who] = np.arange(len(who))

    def write(some: np.ndarray, doubled: Array, best: Array) -> None:
        got = np.asarray(doubled)[:, : places.shape[1]]
        if (got < 0).any():
            raise FloatingPointError(f"scores: NaN for user {some[(got < 0).any(1)][0]}")
        there = np.arange(got.shape[1]) < targets.lengths[some, None]
        places[row_of[some], : got.shape[1]] = np.where(there, got / 2, np.inf)
        lists[row_of[some]] = best

    model = recommender.model
    params, table, share = recommender.on_device
    columns = read_users(model, users, count_users)
    waiting: list[tuple[np.ndarray, Array, Array]] = []
    for some in _batches(who, lengths, count):
        longest, most_seen, most = (int(n) for n in lengths[:, some].max(1))
        rows = histories.rows(some, model.context or _padded(longest, 16), count)
        hidden = seen.rows(some, _padded(most_seen, 16), count)
        goals = targets.rows(some, _padded(most, 1), count)
        own = columns and {name: values[some] for name, values in columns.items()}
        found = _score(model, k, params, table, share, rows, own, hidden, goals)
        waiting.append((some, *found))
        if len(waiting) > 1:  # the host makes a batch ready while the device works on the last
            write(*waiting.pop(0))
    write(*waiting.pop())
    return Ranks(who, places, count - seen.lengths[who]), lists


def _batches(who: np.ndarray, lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """Users of like lengths together: rows are padded to powers of 4, so few shapes compile."""
    near = np.ceil(np.log2(np.maximum(lengths[:, who], 1)) / 2)
    who = who[np.lexsort(near)]
    size = min(len(who), USERS_AT_ONCE, max(1, SCORES_AT_ONCE // count))
    batches = np.array_split(who, np.arange(size, len(who), size))
    # the last is filled up with its last user, whose ranks are then written more than once
    return [np.pad(some, (0, size - len(some)), mode="edge") for some in batches]


def _padded(length: int, least: int) -> int:
    """The next power of 4, times `least`."""
    while least < length:
        least *= 4
    return least


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    model: Any,
    k: int,
    params: Params,
    table: Array | None,
    share: Array,
    rows: Array,
    users: Any,
    seen: Array,
    targets: Array,
) -> tuple[Array, Array]:
    """Twice the ranks, (B, M) int32, or -1 where a score is NaN; and the first k items, (B, k)."""
    # computed once: two fused computations of one score may differ in their last bit
    found = lax.optimization_barrier(scores(model, params, table, share, rows, users))
    own = jnp.take_along_axis(found, targets, axis=1, mode="clip")[:, :, None]

    def above(others: Array) -> Array:
        """2 where another is higher, 1 where it is the same: the target itself gives the 1."""
        return (others > own).astype(jnp.int32) + (others >= own)

    count = found.shape[1]
    others = jnp.take_along_axis(found, seen, axis=1, mode="clip")
    hidden = jnp.where((seen < count)[:, None], above(others[:, None]), 0).sum(2)
    doubled = 1 + above(found[:, None]).sum(2) - hidden
    doubled = jnp.where(jnp.isnan(found).any(1, keepdims=True), -1, doubled)
    if k == 0:
        return doubled, jnp.zeros((len(found), 0), jnp.int32)
    left = found.at[jnp.arange(len(found))[:, None], seen].set(-jnp.inf, mode="drop")
    best, index = lax.top_k(left, k)
    return doubled, jnp.where(best == -jnp.inf, count, index)


def _keys(histories: Histories, count: int) -> np.ndarray:
    """One number for each user and item."""
    user = np.repeat(np.arange(len(histories.starts) - 1), histories.lengths)
    return user * count + histories.items


def _histories(keys: np.ndarray, users: int, count: int) -> Histories:
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys // count, minlength=users))])
    return Histories((keys % count).astype(np.int32), starts)


def _check(histories: Histories, targets: Histories, count: int) -> None:
    if len(histories.starts) != len(targets.starts):
        raise ValueError(
            f"histories, targets: found {len(histories.starts) - 1:,} and "
            f"{len(targets.starts) - 1:,} users, wanted the same"
        )
    if len(targets.items) == 0:
        raise ValueError("targets: found none")
    for name, items in (("histories", histories.items), ("targets", targets.items)):
        outside = (items < 0) | (items >= count)
        if outside.any():
            raise ValueError(f"{name}: found item {items[outside][0]}, wanted 0 to {count - 1:,}")


def hr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Hit rate @k: whether any target is among the first k.

    Args:
        ranks: (U, M), inf where there is no target.
        k: at least 1. A tie that straddles the k-th place stands behind it if its mean does.

    >>> hr(np.array([[1.0, np.inf], [10.5, 12.0]]), 10)
    array([1., 0.])
    """
    return (_ranks(ranks, k) <= k).max(1).astype(np.float64)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """Recall @k: the share of a user's m targets that are among the first k; not of min(m, k).

    >>> recall(np.array([[1.0, np.inf], [3.0, 12.0]]), 10)
    array([1. , 0.5])
    """
    ranks = _ranks(ranks, k)
    return (ranks <= k).sum(1) / np.isfinite(ranks).sum(1)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG @k: the sum of 1 / log2(1 + rank) over targets among the first k, over the largest.

    The largest has the m targets at 1 to min(m, k). A tie is discounted at its mean rank, which is
    a little less than the mean of its discounts (Järvelin and Kekäläinen 2002; binary gains).

    >>> ndcg(np.array([[1.0, 2.0], [3.0, np.inf]]), 10)
    array([1. , 0.5])
    """
    ranks = _ranks(ranks, k)
    gain = np.where(ranks <= k, 1 / np.log2(1 + ranks), 0).sum(1)
    ideal = np.cumsum(1 / np.log2(2 + np.arange(ranks.shape[1])))
    return np.minimum(gain / ideal[np.minimum(np.isfinite(ranks).sum(1), k) - 1], 1.0)


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank @k of the first target: 1 / rank, and 0 beyond k.

    >>> mrr(np.array([[4.0, 2.0], [11.0, np.inf]]), 10)
    array([0.5, 0. ])
    """
    best = _ranks(ranks, k).min(1)
    return np.asarray(np.where(best <= k, 1 / best, 0))


def average_precision(ranks: np.ndarray, k: int) -> np.ndarray:
    """MAP @k, before the mean: the sum of j / (rank of the j-th target found), over min(m, k).

    >>> average_precision(np.array([[4.0, 1.0], [11.0, np.inf]]), 10)
    array([0.75, 0.  ])
    """
    ranks = np.sort(_ranks(ranks, k), axis=1)
    precision = (1 + np.arange(ranks.shape[1]))[None] / ranks
    found = np.where(ranks <= k, precision, 0).sum(1)
    return np.minimum(found / np.minimum(np.isfinite(ranks).sum(1), k), 1.0)


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
    """What the metrics would be among a sample of the items, for comparison with old papers only.

    Each target is ranked among itself and `negatives` others, drawn evenly and without repeats from
    the items it was exactly ranked among: how many of them stand above it is hypergeometric, so
    that nothing is scored again. Of items with the target's score half count as above it.

    Args:
        ranks: exact ones.
        k: at least 1.
        negatives: fewer than the candidates of any user.
        seed: of the draw.

    Returns:
        name -> (R,) values, the names those of the metrics behind "sampled_".

    Warns:
        UserWarning: always. The order of models by sampled metrics need not be that by the metrics
            themselves (Krichene and Rendle 2020, On sampled metrics for item recommendation).

    Raises:
        ValueError: more negatives than there are.
    """
    warnings.warn(
        f"sampled metrics: ranked among {negatives} drawn items instead of all, which can reverse "
        "the order of models (Krichene and Rendle 2020); never compare them with full ones",
        stacklevel=2,
    )
    others = ranks.candidates[:, None] - 1
    if not 1 <= negatives <= others.min():
        raise ValueError(f"negatives: found {negatives}, wanted 1 to {others.min():,}")
    rng = np.random.default_rng(seed)
    there = np.isfinite(ranks.ranks)
    above = np.where(there, ranks.ranks - 1, 0)
    whole = (above + rng.integers(0, 2, above.shape) / 2).astype(np.int64)
    drawn = rng.hypergeometric(whole, others - whole, negatives)
    found = np.where(there, 1.0 + drawn, np.inf)
    return {f"sampled_{name}@{k}": metric(found, k) for name, metric in METRICS.items()}


def _ranks(ranks: Any, k: int) -> np.ndarray:
    ranks = np.asarray(ranks, np.float64)
    if ranks.ndim != 2 or not (ranks >= 1).all() or not np.isfinite(ranks).any(1).all():
        raise ValueError(
            f"ranks: found shape {ranks.shape}, wanted (U, M), from 1, one finite a user"
        )
    if k < 1:
        raise ValueError(f"k: found {k}, wanted at least 1")
    return ranks
