"""The best items for any history: `recommend`."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxops.model.finished import Model, frame
from jaxops.model.topk import split_items, top_k
from jaxops.nn.packed import unpacked
from jaxops.recommend.batching import batches, cells, padded
from jaxops.recommend.data.catalogue import in_catalogue, of_users, within
from jaxops.recommend.data.events import Events, Histories
from jaxops.recommend.recommenders import (
    Recommender,
    check_k,
    queries,
    read_users,
    reads,
    recommender_of,
)
from jaxops.task import Array

USERS_AT_ONCE = 512


class Recommendations(NamedTuple):
    """The best items of each user, best first.

    Attributes:
        places: (U, k) int32, indices into `items`; N where fewer than k items are left.
        scores: (U, k) float32, the model's scores; -inf where there is no item.
        items: (N,) the items' ids, text or integers as in the log.
        users: (U,) the users' ids, or the numbers of the histories; see also `similar_items`.
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

    def ids(self) -> list[list[Any]]:
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
    histories: Events | Histories | Iterable[Iterable[Any]],
    k: int = 10,
    *,
    exclude_seen: bool = True,
    allow: Iterable[Any] | None = None,
    deny: Iterable[Any] | None = None,
    users: Iterable[Any] | None = None,
    user_features: Mapping[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Recommendations:
    """The exact `k` best items for each history, also for users not seen in training.

    Users are scored in batches of at most 512, grouped by the length of their history; batches of
    long histories are smaller. Items are scored in blocks. So the memory does not grow with the
    number of users. The first call puts the parameters on the device, where they stay as long as
    the recommender exists.

    Args:
        model: a model from `recommend.fit`, or a recommender.
        histories: a log with the history of each of its users; or for each user the items' ids,
            oldest first; or `Histories` of their indices. An id that is not in the catalogue is
            skipped and counted. `model.predict` also reads a table.
        k: number of items.
        exclude_seen: leave out the items of the history.
        allow: ids to choose among; by default all. One list for all users, or a list of lists, one
            for each user of the answer.
        deny: ids to leave out, in the same form.
        users: ids of users of the log to answer for, in that order; by default all.
        user_features: columns with a row for each user of the answer, for a model that reads
            features of users (`TwoTower`); by default those of the log.
        devices: the devices over which the items are split for the search; by default only the
            first. The model is replicated on each of them.

    Raises:
        ValueError: `k` is larger than the catalogue; an id in `allow` or `deny`, or an index in
            `histories`, is not in the catalogue; a user is not in the log; or the model does not
            read features of users.
        FloatingPointError: a score is NaN.

    >>> from jaxops import recommend as r
    >>> log = {"user": ["a", "a", "b", "b", "c"], "item": ["x", "y", "x", "y", "z"]}
    >>> model = r.fitted(r.ItemKNN(neighbours=2, shrink=0.0), r.events(log, time=None))
    >>> r.recommend(model, [["x"], ["y", "never seen"]], k=1).ids()
    [['y'], ['x']]
    >>> r.recommend(model, r.events(log, time=None), k=1, users=["c"]).frame()["user"].tolist()
    ['c']
    """
    recommender = recommender_of(model)
    check_k(k, len(recommender.items))
    histories, ids, unknown, known_features = read_histories(recommender, histories, users)
    user_features = known_features if user_features is None else user_features
    features = read_users(recommender.model, user_features, len(histories.lengths))
    on_device = recommender.on_device
    allowed, denied, candidates = _limits(recommender, allow, deny, len(ids))
    mesh = None
    if devices is not None:
        mesh = Mesh(np.array(devices), ("items",))
        params, table, share = on_device
        params, share, allowed = jax.device_put((params, share, allowed), NamedSharding(mesh, P()))
        on_device = params, None if table is None else split_items(table, mesh), share
    seen = histories if exclude_seen else None
    wanted = _Wanted(histories, features, allowed, seen, denied, candidates)
    places, best = _search(recommender, on_device, mesh, k, wanted)
    empty = int((histories.lengths == 0).sum())
    return Recommendations(places, best, recommender.items, ids, unknown, empty)


class _Wanted(NamedTuple):
    """The histories of U users, and the items that they may be shown; None means no restriction.

    Attributes:
        histories: the items that they took.
        features: their features.
        allowed: (N,) bool, the items that may be shown to any user.
        seen: the items of their histories, if these are left out.
        denied: further items to leave out.
        candidates: for each user, the only items to choose among, in ascending order.
    """

    histories: Histories
    features: Any
    allowed: Array | None
    seen: Histories | None
    denied: Histories | None
    candidates: Histories | None


def _search(
    recommender: Recommender,
    on_device: tuple[Any, Array | None, Array],
    mesh: Mesh | None,
    k: int,
    wanted: _Wanted,
) -> tuple[np.ndarray, np.ndarray]:
    """The places (U, k) and scores (U, k) of the best items."""
    method, count, lengths = recommender.model, len(recommender.items), wanted.histories.lengths
    params, table, share = on_device
    places = np.full((len(lengths), k), count, np.int32)
    best = np.full((len(lengths), k), -np.inf, np.float32)
    waiting: list[tuple[np.ndarray, Any]] = []
    width = 1 if table is None else table.shape[1]
    own = [x for x in (wanted.denied, wanted.candidates) if x is not None]
    sizes = np.stack([padded(x.lengths) for x in (wanted.histories, *own)])

    def start(batch: np.ndarray, sizes: tuple[int, ...], known: bool) -> None:
        """Start the search for the lists of a batch, and write those of an earlier batch."""
        length, last = sizes[0], sizes[-1]
        history = wanted.histories.rows(batch, min(length, method.context or length), count)
        rows = wanted.features and {name: x[batch] for name, x in wanted.features.items()}
        left_out = [] if wanted.seen is None else [wanted.seen.rows(batch, length, count)]
        if wanted.denied is not None:
            left_out.append(wanted.denied.rows(batch, sizes[1], count))
        some = None if wanted.candidates is None else wanted.candidates.rows(batch, last, count)
        result = _best(
            method if known else None,
            k,
            mesh,
            params,
            table if known else None,
            share,
            history,
            rows,
            np.concatenate(left_out, 1) if left_out else None,
            wanted.allowed,
            some,
        )
        waiting.append((batch, result))
        if len(waiting) > 2:
            _write(*waiting.pop(0), places, best)

    def held(length: int, *more: int) -> int:
        every = count if table is None else 1
        one = cells(recommender, length, wanted.features, USERS_AT_ONCE)
        return max(one, every, *(width * n for n in more))

    answers = (lengths > 0) | getattr(method, "answers_empty", False)
    without = np.flatnonzero(~answers)
    alike = without[:1] if not own else without  # all users without a history share one list
    for users, known in ((np.flatnonzero(answers), True), (alike, False)):
        for batch, longest in batches(users, sizes, held, USERS_AT_ONCE):
            start(batch, longest, known)
    for batch, result in waiting:
        _write(batch, result, places, best)
    if not own:
        places[without], best[without] = places[alike], best[alike]
    return places, best


def read_histories(
    recommender: Recommender, data: Any, users: Iterable[Any] | None
) -> tuple[Histories, np.ndarray, int, Any]:
    """The histories, the users' ids, the number of unknown items, and features of a log."""
    count = len(recommender.items)
    if isinstance(data, Events):
        log = in_catalogue(data, recommender.items)
        log = log if users is None else of_users(log, users)
        histories, _ = within(log, count)
        unknown = int((log.item >= count).sum())
        return histories, log.users, unknown, reads(recommender, log.user_features)
    if users is not None:
        raise ValueError(f"users must be None for histories without ids of users, got {users!r}")
    if isinstance(data, str | Path | Mapping) or hasattr(data, "columns"):
        raise ValueError(
            "histories must be a log of recommend.events or lists of ids, got "
            f"{type(data).__name__}; model.predict reads tables"
        )
    unknown = 0
    if not isinstance(data, Histories):
        data, unknown = recommender.histories(data)
    data.check("histories", count)
    return data, np.arange(len(data.lengths)), unknown, None


def similar_items(model: Model | Recommender, items: Iterable[Any], k: int = 10) -> Recommendations:
    """The k most similar items for each of the given items.

    If the model has vectors of items, the similarity is their cosine. Otherwise, as with `EASE` or
    `ItemKNN`, it is the score after a history with only this item.

    Args:
        model: a model from `recommend.fit`, or a recommender.
        items: ids in the catalogue.
        k: number of items.

    Returns:
        Lists like those of `recommend`, without the item itself; `users` holds the given items.

    Raises:
        ValueError: `k` larger than the catalogue, or an id that is not in it.

    >>> from jaxops import recommend as r
    >>> log = r.events({"user": ["a", "a", "b", "b"], "item": ["x", "y", "x", "y"]}, time=None)
    >>> similar_items(r.fitted(r.IALS(factors=2, sweeps=2), log), ["x"], k=1).ids()
    [['y']]
    """
    recommender = recommender_of(model)
    check_k(k, len(recommender.items))
    index = np.array(recommender.indices(items, "items"), np.int32)
    table = recommender.on_device[1]
    if table is None:
        alone = Histories(index, np.arange(len(index) + 1))
        return recommend(recommender, alone, k)._replace(users=recommender.items[index])
    table = unpacked(table)
    vectors = table / jnp.maximum(jnp.linalg.norm(table, axis=1, keepdims=True), 1e-30)
    places = np.zeros((len(index), k), np.int32)
    scores = np.zeros((len(index), k), np.float32)
    lengths = np.ones((1, len(index)), int)
    for batch, _ in batches(np.arange(len(index)), lengths, lambda _: 1, USERS_AT_ONCE):
        own = index[batch]
        found = top_k(vectors[own], vectors, k, seen=own[:, None])
        scores[batch], places[batch] = (np.asarray(x) for x in found)
    places = np.where(scores == -np.inf, len(recommender.items), places)
    return Recommendations(places, scores, recommender.items, recommender.items[index], 0, 0)


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
    left_out: Array | None,
    allowed: Array | None,
    candidates: Array | None,
) -> tuple[Array, Array]:
    if model is None:  # users without history
        query = jnp.broadcast_to(share, (len(history), len(share)))
    else:
        query = queries(model, params, history, users)
    if candidates is None:
        scores, index = top_k(
            query, table, k, seen=left_out, allowed=allowed, mesh=mesh, count=len(share)
        )
    else:
        scores, index = _best_of(query, table, k, candidates, left_out, allowed)
    return scores, jnp.where(scores == -jnp.inf, len(share), index)


def _write(batch: np.ndarray, result: Any, places: np.ndarray, best: np.ndarray) -> None:
    best[batch], places[batch] = (np.asarray(x) for x in result)
    wrong = np.isnan(best[batch]).any(1)
    if wrong.any():
        raise FloatingPointError(f"scores must not be NaN, got NaN for user {batch[wrong][0]}")


def _best_of(
    query: Array,
    table: Array | None,
    k: int,
    candidates: Array,
    left_out: Array | None,
    allowed: Array | None,
) -> tuple[Array, Array]:
    """The result of `top_k` among (B, A) candidates, in ascending order, with N for padding."""
    if table is None:
        scores = jnp.take_along_axis(query, candidates, 1, mode="clip")
    else:
        rows = unpacked(jax.tree.map(lambda x: x.at[candidates].get(mode="clip"), table))
        scores = jnp.einsum("bd,bad->ba", query, rows, precision="highest")
    inside = candidates < (query.shape[1] if table is None else len(table))
    if allowed is not None:
        inside &= allowed.at[candidates].get(mode="fill", fill_value=False)
    if left_out is not None:
        inside &= ~(candidates[:, :, None] == left_out[:, None]).any(2)
    scores = jnp.where(inside, scores, -jnp.inf).astype(jnp.float32)
    short = ((0, 0), (0, max(0, k - scores.shape[1])))
    scores, candidates = (
        jnp.pad(scores, short, constant_values=-jnp.inf),
        jnp.pad(candidates, short),
    )
    best, place = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(candidates, place, 1)


def _limits(
    recommender: Recommender, allow: Any, deny: Any, users: int
) -> tuple[Array | None, Histories | None, Histories | None]:
    """The items allowed for all users, those denied to each user, and each user's candidates."""
    own: dict[str, Histories] = {}
    allowed = np.ones(len(recommender.items), bool)
    for name, given in (("allow", allow), ("deny", deny)):
        ids = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else given
        several = isinstance(ids, list) and len(ids) > 0
        if several and all(isinstance(x, Iterable) and not isinstance(x, str) for x in ids):
            if len(ids) != users:
                raise ValueError(
                    f"{name} must be one list, or one for each of {users:,} users, got {len(ids):,}"
                )
            rows = [sorted({*recommender.indices(x, name)}) for x in ids]
            starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
            own[name] = Histories(np.array([i for row in rows for i in row], np.int32), starts)
        elif ids is not None:
            here = np.isin(np.arange(len(allowed)), recommender.indices(ids, name))
            allowed &= here if name == "allow" else ~here
    for_all = None if allowed.all() else jnp.asarray(allowed)
    return for_all, own.get("deny"), own.get("allow")
