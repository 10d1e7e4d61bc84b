"""The best items for any histories: `recommend`."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxops.recommend.events import Histories
from jaxops.recommend.recommender import Recommender
from jaxops.task import Array
from jaxops.topk import top_k

AT_ONCE = 512  # users


class Recommendations(NamedTuple):
    """The best items of each user, best first.

    Attributes:
        places: (U, k) int32, places in `items`; -1 where fewer than k items are left.
        scores: (U, k) float32, as the model has them; -inf where there is no item. Of a user
            without history, the items' share of the training events.
        items: (N,) ids.
        unknown: how many ids in the histories the catalogue lacks; they were skipped.
        empty: how many users have no known item in their history, and got what is most taken.
    """

    places: np.ndarray
    scores: np.ndarray
    items: np.ndarray
    unknown: int
    empty: int

    def ids(self) -> list[list[str]]:
        """For each user the ids, at most k."""
        return [self.items[row[row >= 0]].tolist() for row in self.places]


def recommend(
    recommender: Recommender,
    histories: Histories | Iterable[Iterable[str]],
    k: int = 10,
    *,
    exclude_seen: bool = True,
    allow: Iterable[str] | None = None,
    deny: Iterable[str] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Recommendations:
    """The `k` best items for each history, exactly, whether or not the user was in training.

    Users are taken some hundreds at a time, those with histories of like length together, and items
    by blocks; so the memory it takes depends neither on how many users there are nor, but for the
    table itself, on how many items.

    Args:
        recommender: see `fit`, `load`, and `Sequence`.
        histories: of each user the items' ids, oldest first, or `Histories` of their places. An id
            that the catalogue lacks is skipped, and counted.
        k: how many.
        exclude_seen: leave out what is in the history.
        allow: ids to choose among; all by default.
        deny: ids to leave out.
        devices: over which the items are split for the search; the first alone by default. The
            model itself is on each of them.

    Raises:
        ValueError: `k` beyond the catalogue, ids in `allow` or `deny` that it lacks, or places
            outside it.

    >>> from jaxops import recommend as r
    >>> log = {"user": ["a", "a", "b", "b", "c"], "item": ["x", "y", "x", "y", "z"]}
    >>> model = r.fit(r.ItemKNN(neighbours=2, shrink=0.0), r.events(log, time=None))
    >>> r.recommend(model, [["x"], ["y", "never seen"]], k=1).ids()
    [['y'], ['x']]
    """
    count = len(recommender.items)
    if not 1 <= k <= count:
        raise ValueError(f"k: {k} found, 1 to {count:,} (all items) wanted")
    unknown = 0
    if not isinstance(histories, Histories):
        histories, unknown = recommender.histories(histories)
    elif len(histories.items) and not 0 <= histories.items.min() <= histories.items.max() < count:
        raise ValueError(f"histories: places in [0, {count:,}) wanted, others found")
    allowed = _allowed(recommender, allow, deny)
    mesh = None if devices is None else Mesh(np.array(devices), ("items",))
    whole = None if mesh is None else NamedSharding(mesh, P())
    params, table, counts, allowed = jax.device_put(
        (
            recommender.params,
            _table(recommender.model, recommender.params),
            jnp.asarray(recommender.counts / max(recommender.counts.sum(), 1), jnp.float32),
            allowed,
        ),
        whole,
    )
    lengths = histories.lengths
    order = np.argsort(lengths, kind="stable")
    index = np.full((len(lengths), k), -1, np.int32)
    scores = np.full((len(lengths), k), -np.inf, np.float32)
    context = recommender.model.context
    empty = int((lengths == 0).sum())
    waiting: list[tuple[np.ndarray, Any]] = []
    parts = [order[i : i + AT_ONCE] for i in range(empty, len(order), AT_ONCE)]
    for users in ([order[:1]] if empty else []) + parts:
        room = bucket(int(lengths[users].max()))
        seen = histories.rows(users, room, count)
        history = seen
        if context is not None and context < room:
            history = histories.rows(users, context, count)
        # no user is a batch of its own size, so that few programs are compiled
        size = min(AT_ONCE, bucket(len(users)))
        history, seen = (_padded(rows, size, count) for rows in (history, seen))
        known = bool(lengths[users[0]])
        found = _best(
            recommender.model if known else None,
            k,
            mesh,
            params,
            table if known else None,
            counts,
            history,
            seen if exclude_seen else None,
            allowed,
        )
        waiting.append((users, found))
        if len(waiting) > 2:
            _take(*waiting.pop(0), index, scores)
    for users, found in waiting:
        _take(users, found, index, scores)
    if empty:
        index[order[:empty]], scores[order[:empty]] = index[order[0]], scores[order[0]]
    return Recommendations(index, scores, recommender.items, unknown, empty)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _best(
    model: Any,
    k: int,
    mesh: Mesh | None,
    params: Any,
    table: Array | None,
    counts: Array,
    history: Array,
    seen: Array | None,
    allowed: Array | None,
) -> tuple[Array, Array]:
    if model is None:  # nothing is known of the user
        queries = jnp.broadcast_to(counts, (len(history), len(counts)))
    else:
        queries = model.queries(params, history)
    scores, index = top_k(queries, table, k, seen=seen, allowed=allowed, mesh=mesh)
    return scores, jnp.where(scores == -jnp.inf, -1, index)


@functools.partial(jax.jit, static_argnums=0)
def _table(model: Any, params: Any) -> Array | None:
    return model.table(params)


def _take(users: np.ndarray, found: Any, index: np.ndarray, scores: np.ndarray) -> None:
    scores[users], index[users] = (np.asarray(x)[: len(users)] for x in found)


def _padded(rows: np.ndarray, size: int, padding: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), (0, 0)), constant_values=padding)


def bucket(length: int) -> int:
    """The next power of two: few shapes, so few compilations."""
    return 1 << max(length - 1, 0).bit_length()


def _allowed(
    recommender: Recommender, allow: Iterable[str] | None, deny: Iterable[str] | None
) -> Array | None:
    if allow is None and deny is None:
        return None
    allowed = np.full(len(recommender.items), allow is None)
    for name, ids, value in (("allow", allow, True), ("deny", deny, False)):
        ids = [] if ids is None else list(ids)
        unknown = [item for item in ids if item not in recommender.place_of]
        if unknown:
            raise ValueError(f"{name}: {unknown[0]!r} found, which the catalogue lacks")
        allowed[[recommender.place_of[item] for item in ids]] = value
    return jnp.asarray(allowed)
