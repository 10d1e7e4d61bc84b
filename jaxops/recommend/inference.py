"""The best items for any histories: `recommend`."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxops.model.topk import split_items, top_k
from jaxops.recommend.data.events import Histories
from jaxops.recommend.recommenders import Recommender, queries, read_users
from jaxops.task import Array

USERS_AT_ONCE = 512
PLACES_AT_ONCE = 2**23  # of histories, or of scores where a model gives all at once


class Recommendations(NamedTuple):
    """The best items of each user, best first.

    Attributes:
        places: (U, k) int32, places in `items`; N where fewer than k items are left.
        scores: (U, k) float32, as the model has them; -inf where there is no item.
        items: (N,) ids.
        unknown: how many ids in the histories the catalogue lacks; they were skipped.
        empty: how many users have no known item in their history. Unless the model has an answer
            for them, they got what is most taken, scored by its share of the training events.
    """

    places: np.ndarray
    scores: np.ndarray
    items: np.ndarray
    unknown: int
    empty: int

    def ids(self) -> list[list[str]]:
        """For each user the ids, at most k."""
        return [self.items[row[row < len(self.items)]].tolist() for row in self.places]


def recommend(
    recommender: Recommender,
    histories: Histories | Iterable[Iterable[str]],
    k: int = 10,
    *,
    exclude_seen: bool = True,
    allow: Iterable[str] | None = None,
    deny: Iterable[str] | None = None,
    users: Mapping[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Recommendations:
    """The `k` best items for each history, exactly, whether or not the user was in training.

    Users are taken some hundreds at a time, those with histories of like length together, and items
    by blocks; so the memory it takes does not depend on how many users there are. What scoring
    takes is put on the device by the first call, and stays there as long as the recommender.

    Args:
        recommender: see `fit`, `recommender`, `load`.
        histories: of each user the items' ids, oldest first, or `Histories` of their places. An id
            that the catalogue lacks is skipped, and counted.
        k: how many.
        exclude_seen: leave out what is in the history.
        allow: ids to choose among; all by default.
        deny: ids to leave out.
        users: columns of U rows, where the model reads features of users (`TwoTower`).
        devices: over which the items are split for the search; the first alone by default. The
            model itself is on each of them.

    Raises:
        ValueError: `k` beyond the catalogue, ids in `allow` or `deny` that it lacks, places outside
            it, or columns of users that the model does not read.
        FloatingPointError: a score is NaN.

    >>> from jaxops import recommend as r
    >>> log = {"user": ["a", "a", "b", "b", "c"], "item": ["x", "y", "x", "y", "z"]}
    >>> model = r.fit(r.ItemKNN(neighbours=2, shrink=0.0), r.events(log, time=None))
    >>> r.recommend(model, [["x"], ["y", "never seen"]], k=1).ids()
    [['y'], ['x']]
    """
    model, count = recommender.model, len(recommender.items)
    if not 1 <= k <= count:
        raise ValueError(f"k: {k} found, 1 to {count:,} (all items) wanted")
    unknown = 0
    if not isinstance(histories, Histories):
        histories, unknown = recommender.histories(histories)
    elif len(histories.items) and not 0 <= histories.items.min() <= histories.items.max() < count:
        raise ValueError(f"histories: places in [0, {count:,}) wanted, others found")
    lengths = histories.lengths
    columns = read_users(model, users, len(lengths))
    params, table, share = recommender.on_device
    allowed = _allowed(recommender, allow, deny)
    mesh = None
    if devices is not None:
        mesh = Mesh(np.array(devices), ("items",))
        params, share, allowed = jax.device_put((params, share, allowed), NamedSharding(mesh, P()))
        table = None if table is None else split_items(table, mesh)
    places = np.full((len(lengths), k), count, np.int32)
    best = np.full((len(lengths), k), -np.inf, np.float32)
    waiting: list[tuple[np.ndarray, Any]] = []
    for some in _batches(lengths, count if table is None else 1):
        empty = not lengths[some[0]] and not getattr(model, "answers_empty", False)
        asked = some[:1] if empty else some  # whose lists are all the same
        room = bucket(int(lengths[asked].max()))
        seen = history = histories.rows(asked, room, count)
        if model.context is not None and model.context < room:
            history = histories.rows(asked, model.context, count)
        size = bucket(len(asked))  # few programs, and not one for each number of users
        history, seen = (_padded(rows, size, count) for rows in (history, seen))
        own = columns and {name: _padded(values[asked], size) for name, values in columns.items()}
        found = _best(
            None if empty else model,
            k,
            mesh,
            params,
            None if empty else table,
            share,
            history,
            own,
            seen if exclude_seen else None,
            allowed,
        )
        waiting.append((some, [x[: len(asked)] for x in found]))
        if len(waiting) > 2:
            _take(*waiting.pop(0), places, best)
    for some, found in waiting:
        _take(some, found, places, best)
    return Recommendations(places, best, recommender.items, unknown, int((lengths == 0).sum()))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _best(
    model: Any,
    k: int,
    mesh: Mesh | None,
    params: Any,
    table: Array | None,
    share: Array,
    history: Array,
    users: Any,
    seen: Array | None,
    allowed: Array | None,
) -> tuple[Array, Array]:
    if model is None:  # nothing is known of the user
        found = jnp.broadcast_to(share, (len(history), len(share)))
    else:
        found = queries(model, params, history, users)
    scores, index = top_k(found, table, k, seen=seen, allowed=allowed, mesh=mesh, count=len(share))
    return scores, jnp.where(scores == -jnp.inf, len(share), index)


def _batches(lengths: np.ndarray, scores: int) -> Iterable[np.ndarray]:
    """Users of like lengths together, those without history first and by themselves.

    Args:
        lengths: of all histories.
        scores: that are held for each user.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        size = USERS_AT_ONCE
        longest = lengths[order[min(start + size, len(order)) - 1]]
        size = min(size, max(1, PLACES_AT_ONCE // max(bucket(int(longest)), scores)))
        some = order[start : start + size]
        if lengths[some[0]] == 0:
            some = some[lengths[some] == 0]
        yield some
        start += len(some)


def _take(some: np.ndarray, found: Any, places: np.ndarray, best: np.ndarray) -> None:
    best[some], places[some] = (np.asarray(x) for x in found)
    if np.isnan(best[some]).any():
        raise FloatingPointError(f"scores: NaN for user {some[np.isnan(best[some]).any(1)][0]}")


def _padded(rows: np.ndarray, size: int, padding: Any = 0) -> np.ndarray:
    room = [(0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)]
    return np.pad(rows, room, constant_values=padding)


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
