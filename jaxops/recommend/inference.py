"""The best items for any history: `recommend`."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxops._shapes import next_power_of_two
from jaxops.model.finished import Model, frame
from jaxops.model.topk import split_items, top_k
from jaxops.recommend.data.events import Histories
from jaxops.recommend.recommenders import Recommender, queries, read_users, recommender_of
from jaxops.task import Array

USERS_AT_ONCE = 512
CELLS_AT_ONCE = 2**23  # of padded histories, or of scores where a model returns all scores


class Recommendations(NamedTuple):
    """The best items of each user, best first.

    Attributes:
        places: (U, k) int32, indices into `items`; N where fewer than k items are left.
        scores: (U, k) float32, the model's scores; -inf where there is no item.
        items: (N,) str, the items' ids.
        users: (U,) the users' ids, or the numbers of the histories.
        unknown: number of ids in the histories that are not in the catalogue; they were skipped.
        empty: number of users without a known item in their history. Unless the model handles empty
            histories, they get the most popular items, scored by their share of training events.

    >>> scores = np.array([[2.0, 1.0], [3.0, -np.inf]])
    >>> items = np.array(["x", "y", "z"])
    >>> users = np.array(["ann", "bob"])
    >>> two = Recommendations(np.array([[2, 0], [1, 3]]), scores, items, users, unknown=0, empty=0)
    >>> two.ids()
    [['z', 'x'], ['y']]
    >>> two.frame()["item"].tolist()
    ['z', 'x', 'y']
    """

    places: np.ndarray
    scores: np.ndarray
    items: np.ndarray
    users: np.ndarray
    unknown: int
    empty: int

    def ids(self) -> list[list[str]]:
        """The ids of each user's items, at most k."""
        return [self.items[row[row < len(self.items)]].tolist() for row in self.places]

    def frame(self) -> Any:
        """One row for each item of each user: user, rank from 1, item and score."""
        user, place = np.nonzero(self.places < len(self.items))
        return frame(
            {
                "user": self.users[user],
                "rank": place + 1,
                "item": self.items[self.places[user, place]],
                "score": self.scores[user, place],
            }
        )


def recommend(
    model: Model | Recommender,
    histories: Histories | Iterable[Iterable[str]],
    k: int = 10,
    *,
    exclude_seen: bool = True,
    allow: Iterable[str] | None = None,
    deny: Iterable[str] | None = None,
    users: Mapping[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Recommendations:
    """The exact `k` best items for each history, whether or not the user was in training.

    Users are scored in batches of at most 512, grouped by length of history, and items in blocks,
    so the memory needed does not grow with the number of users. The first call puts the
    parameters on the device, where they stay as long as the recommender exists.

    Args:
        model: of `recommend.fit`, or a recommender.
        histories: the items' ids for each user, oldest first, or `Histories` of their indices. An
            id that is not in the catalogue is skipped and counted.
        k: number of items.
        exclude_seen: leave out the items of the history.
        allow: ids to choose among; by default all.
        deny: ids to leave out.
        users: columns of U rows, for a model that reads features of users (`TwoTower`).
        devices: the devices over which the items are split for the search; by default only the
            first. The model is replicated on each of them.

    Raises:
        ValueError: `k` larger than the catalogue, an id in `allow` or `deny` or an index in
            `histories` that is not in the catalogue, or columns of users that the model does not
            read.
        FloatingPointError: a score is NaN.

    >>> from jaxops import recommend as r
    >>> log = {"user": ["a", "a", "b", "b", "c"], "item": ["x", "y", "x", "y", "z"]}
    >>> model = r.fitted(r.ItemKNN(neighbours=2, shrink=0.0), r.events(log, time=None))
    >>> r.recommend(model, [["x"], ["y", "never seen"]], k=1).ids()
    [['y'], ['x']]
    """
    recommender = recommender_of(model)
    method, count = recommender.model, len(recommender.items)
    if not 1 <= k <= count:
        raise ValueError(f"k must be 1 to {count:,} (the number of items), got {k}")
    unknown = 0
    if not isinstance(histories, Histories):
        histories, unknown = recommender.histories(histories)
    histories.check("histories", count)
    lengths = histories.lengths
    features = read_users(method, users, len(lengths))
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
    for batch in _batches(lengths, count if table is None else 1):
        empty = not lengths[batch[0]] and not getattr(method, "answers_empty", False)
        chosen = batch[:1] if empty else batch  # users without history all get the same list
        size = next_power_of_two(len(chosen))  # few programs, not one per number of users
        seen = _padded(histories.padded(chosen, count), size, count)
        history = seen
        if method.context is not None:
            history = _padded(histories.padded(chosen, count, method.context), size, count)
        rows = features and {name: _padded(x[chosen], size) for name, x in features.items()}
        result = _best(
            None if empty else method,
            k,
            mesh,
            params,
            None if empty else table,
            share,
            history,
            rows,
            seen if exclude_seen else None,
            allowed,
        )
        waiting.append((batch, [x[: len(chosen)] for x in result]))
        if len(waiting) > 2:
            _write(*waiting.pop(0), places, best)
    for batch, result in waiting:
        _write(batch, result, places, best)
    numbers, without = np.arange(len(lengths)), int((lengths == 0).sum())
    return Recommendations(places, best, recommender.items, numbers, unknown, without)


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
    if model is None:  # users without history
        query = jnp.broadcast_to(share, (len(history), len(share)))
    else:
        query = queries(model, params, history, users)
    scores, index = top_k(query, table, k, seen=seen, allowed=allowed, mesh=mesh, count=len(share))
    return scores, jnp.where(scores == -jnp.inf, len(share), index)


def _batches(lengths: np.ndarray, scores: int) -> Iterable[np.ndarray]:
    """Users of similar lengths together; users without history come first, in batches of their own.

    Args:
        lengths: (U,), of all histories.
        scores: number of scores per user that the model returns at once.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        size = USERS_AT_ONCE
        longest = lengths[order[min(start + size, len(order)) - 1]]
        size = min(size, max(1, CELLS_AT_ONCE // max(next_power_of_two(int(longest)), scores)))
        batch = order[start : start + size]
        if lengths[batch[0]] == 0:
            batch = batch[lengths[batch] == 0]
        yield batch
        start += len(batch)


def _write(batch: np.ndarray, result: Any, places: np.ndarray, best: np.ndarray) -> None:
    best[batch], places[batch] = (np.asarray(x) for x in result)
    wrong = np.isnan(best[batch]).any(1)
    if wrong.any():
        raise FloatingPointError(f"scores must not be NaN, got NaN for user {batch[wrong][0]}")


def _padded(rows: np.ndarray, size: int, padding: Any = 0) -> np.ndarray:
    width = [(0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)]
    return np.pad(rows, width, constant_values=padding)


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
            raise ValueError(f"{name} must hold ids of the catalogue, got {unknown[0]!r}")
        allowed[[recommender.place_of[item] for item in ids]] = value
    return jnp.asarray(allowed)
