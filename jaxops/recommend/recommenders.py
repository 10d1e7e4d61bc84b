"""A trained recommender of any kind: a model, its parameters, and the ids of its items."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.model.finished import Model, Program, inside
from jaxops.model.topk import top_k
from jaxops.nn.packed import unpacked
from jaxops.recommend.data.catalogue import as_text, same_ids
from jaxops.recommend.data.events import Events, Histories
from jaxops.task import Array, Batch, Column, Params, recorded

EXPORTED = 64  # the least number of items to which a program that is exported lengthens a history


class Method(Protocol):
    """The interface of every kind of model: a frozen dataclass of settings with pure functions.

    An item's score is the inner product of the user's query with the item's row of the table;
    without a table, the queries are the scores. The query depends only on the history, so a user
    who was not in training is scored like any other.

    A model may also have: `fit(events, params=None)`, see `recommend.fitted`; `user_features`,
    which reads columns of users that `queries` then takes as its third argument; `answers_empty`,
    True if it handles an empty history (otherwise such a user gets the most popular items); and
    `for_update`, the names of parameters that only `fit` uses. A model file holds a class that is
    marked by `jaxops.recorded`.

    >>> class Alphabetical(Method):
    ...     context = 1
    ...     def queries(self, params, history):
    ...         return jnp.broadcast_to(-jnp.arange(3.0)[None], (len(history), 3))
    ...     def table(self, params):
    ...         return None
    >>> Alphabetical().queries({}, jnp.array([[2], [3]])).shape
    (2, 3)
    """

    @property
    def context(self) -> int | None:
        """Number of a user's last items that are read; None for all."""

    def queries(self, params: Params, history: Array) -> Array:
        """The queries (B, D), or the scores (B, N), of histories.

        Args:
            params: the parameters.
            history: (B, L) int32, oldest first, N for padding, which comes last.
        """

    def table(self, params: Params) -> Array | None:
        """The items' vectors (N, D), or None if the queries are the scores."""


@recorded
@dataclass(frozen=True, eq=False)
class Recommender:
    """A trained recommender of any kind, with its arrays: the closed form in a `jaxops.Model`.

    Attributes:
        model: the kind of model and its settings; see `Method`.
        params: its parameters.
        items: (N,) the items' ids, str, or int64 if the log has integers.
        counts: (N,) float, number of training events of each item; a user without a history gets
            the items with the largest counts.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> recommender = recommend.fitted(recommend.Popularity(), log)
    >>> recommender.items.tolist(), recommender.counts.tolist(), recommender.place_of["y"]
    (['x', 'y'], [2.0, 1.0], 1)
    """

    model: Any
    params: Params
    items: np.ndarray
    counts: np.ndarray

    @cached_property
    def on_device(self) -> tuple[Params, Array | None, Array]:
        """The parameters, the table, and each item's share of the events (N,), on the device."""
        params = _for_answers(self.model, self.params)
        share = self.counts / max(self.counts.sum(), 1)
        params, shares = jax.device_put((params, jnp.asarray(share, jnp.float32)))
        return params, _table(self.model, params), shares

    @cached_property
    def cells(self) -> dict[int, int]:
        """The cached results of `batching.cells`, by length of history."""
        return {}

    @cached_property
    def place_of(self) -> dict[str, int]:
        """The index of each id, as text, in the catalogue."""
        return {name: i for i, name in enumerate(self.items.astype(str).tolist())}

    def histories(self, histories: Iterable[Iterable[Any]]) -> tuple[Histories, int]:
        """Lists of ids, oldest first, as `Histories`, and the number of ids not in the catalogue.

        Raises:
            ValueError: a history that is not a list, or an id that is neither text nor an integer.
        """
        items: list[int] = []
        lengths, unknown = [], 0
        for row, history in enumerate(histories):
            ids = as_text(history, "histories", f" in row {row}")
            known = [self.place_of[item] for item in ids if item in self.place_of]
            unknown += len(ids) - len(known)
            items += known
            lengths.append(len(known))
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Histories(np.array(items, np.int32), starts), unknown

    def indices(self, ids: Iterable[Any], name: str) -> list[int]:
        """The indices of ids in the catalogue; `name` is the name of the argument in messages.

        Raises:
            ValueError: an id that is not in the catalogue.
        """
        text = as_text(ids, name)
        unknown = [one for one in text if one not in self.place_of]
        if unknown:
            raise ValueError(f"{name} must hold ids of the catalogue, got {unknown[0]!r}")
        return [self.place_of[one] for one in text]

    def exported(self, k: int = 10, exclude_seen: bool = True) -> Program:
        """The k best items for histories, as `recommend.recommend` finds them, for `jaxops.export`.

        Features of users are not read.

        Args:
            k: number of items.
            exclude_seen: leave out the items of the history.

        Raises:
            ValueError: `k` larger than the catalogue.
        """
        check_k(k, len(self.items))
        model, count = self.model, len(self.items)
        answers_empty = getattr(model, "answers_empty", False)

        def function(arrays: Any, columns: Batch) -> dict[str, Array]:
            params, table, share = arrays
            history = columns["history"]
            query = queries(model, params, history, None)
            best, index = top_k(query, table, k, seen=columns.get("seen"))
            if not answers_empty:
                popular, places = top_k(share[None], None, k)
                known = (history < count).any(1, keepdims=True)
                best, index = jnp.where(known, best, popular), jnp.where(known, index, places)
            return {"places": jnp.where(best == -jnp.inf, count, index), "scores": best}

        columns = [Column("history", (model.context,), "int", count + 1)]
        columns += [Column("seen", (None,), "int", count + 1)] if exclude_seen else []
        reader = {
            "kind": "histories",
            "items": self.items.tolist(),
            "context": model.context,
            "length": EXPORTED,
            "exclude_seen": exclude_seen,
        }
        return Program(function, self.on_device, tuple(columns), reader)


def recommender_of(model: Model | Recommender) -> Recommender:
    """The recommender itself, or the one in a finished model.

    Raises:
        ValueError: the model belongs to another room.
    """
    found: Recommender = inside(
        model, lambda part: isinstance(part, Recommender), "of the recommend room"
    )
    return found


def in_place_of(model: Model | Recommender, recommender: Recommender) -> Any:
    """The recommender, put into the finished model if one was given."""
    return replace(model, task=recommender) if isinstance(model, Model) else recommender


@functools.partial(jax.jit, static_argnums=0)
def _table(model: Any, params: Params) -> Array | None:
    return model.table(params)


def queries(model: Any, params: Params, history: Array, users: Any) -> Array:
    """The model's queries; `users` are features as its `user_features` reads them, or None."""
    return (
        model.queries(params, history) if users is None else model.queries(params, history, users)
    )


def scores(
    model: Any, params: Params, table: Array | None, share: Array, history: Array, users: Any = None
) -> Array:
    """The scores of all items, (B, N) float32; see `Method` for users without history.

    Args:
        model: the model of a `Recommender`.
        params: see `Recommender.on_device`.
        table: see `Recommender.on_device`.
        share: see `Recommender.on_device`.
        history: (B, L) int32, N for padding, which comes last.
        users: see `queries`.
    """
    every = queries(model, params, history, users)
    if table is not None:
        columns = unpacked(table).T
        every = jnp.matmul(every, columns, precision="highest", preferred_element_type=jnp.float32)
    if getattr(model, "answers_empty", False):
        return every
    return jnp.where((history < len(share)).any(1, keepdims=True), every, share[None])


def last_items(history: Array, context: int | None, padding: int) -> Array:
    """The last `context` items of each row, and the padding after them."""
    length = history.shape[1]  # any, where a program is exported
    if context is None or (isinstance(length, int) and context >= length):
        return history
    place = jnp.maximum((history < padding).sum(1, keepdims=True) - context, 0)
    place = place + jnp.arange(context)[None]
    return jnp.take_along_axis(history, place, axis=1, mode="fill", fill_value=padding)


def check_k(k: Any, count: int) -> None:
    """Raise `ValueError` if the length of lists is not a whole number from 1 to `count`."""
    whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if not whole or not 1 <= k <= count:
        raise ValueError(f"k must be 1 to {count:,} (the number of items), got {k!r}")


def reads(model: Model | Recommender, features: Any) -> Any:
    """The features of users that a log holds, or None if the model reads none."""
    read = getattr(recommender_of(model).model, "user_features", None)
    return features if features and getattr(read, "names", read) else None


def read_users(model: Any, users: Mapping[str, Any] | None, count: int) -> Any:
    """The features of `count` users as the model reads them, or None without columns.

    Raises:
        ValueError: the model reads no features of users, or cannot read the columns.
    """
    if users is None:
        return None
    if not hasattr(model, "user_features"):
        raise ValueError(
            f"user_features must be None for {type(model).__name__}, which reads none, got columns"
        )
    return model.user_features.read(users, count)


def fitted(model: Any, events: Events) -> Recommender:
    """Fit `EASE`, `IALS`, `BPR`, `ItemKNN` or `Popularity` to all events of a log.

    `recommend.fit` does this and more. `jaxops.fit` trains sequence models and two towers; see
    `next_item` and `retrieval`.

    Args:
        model: the kind of model and its settings.
        events: the training log.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> recommender = fitted(recommend.ItemKNN(neighbours=1), log)
    >>> recommend.recommend(recommender, [["x"]], k=1).ids()
    [['y']]
    """
    params = model.fit(events)
    return Recommender(model, params, events.items, event_counts(events))


def updated(recommender: Recommender, events: Events) -> Recommender:
    """Update a recommender with new events; the indices of known items do not change.

    Args:
        recommender: a recommender from `fitted`.
        events: only the new events. Their `items` must begin with the known items, and new items
            follow; see `events(items=)`.

    Raises:
        ValueError: `items` that do not begin with the known items, or a model without `fit`.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> recommender = fitted(recommend.Popularity(), log)
    >>> new = recommend.events({"user": ["c"], "item": ["z"]}, time=None, items=recommender.items)
    >>> updated(recommender, new).counts.tolist()
    [2.0, 1.0, 1.0]
    """
    if not hasattr(recommender.model, "fit"):
        raise ValueError(
            "recommender must have a model with a fit method, such as EASE, got "
            f"{type(recommender.model).__name__}; sequence models are trained further by "
            "jaxops.fit after recommend.sequence_with_items, and two towers take new items by "
            "recommend.two_tower_with_items"
        )
    known = recommender.items
    if not same_ids(events.items[: len(known)], known):
        raise ValueError(
            f"events must have a catalogue that begins with the {len(known):,} known items, got "
            "other items; make it by events(..., items=recommender.items)"
        )
    params = recommender.model.fit(events, recommender.params)
    counts = event_counts(events)
    counts[: len(known)] += recommender.counts
    return Recommender(recommender.model, params, events.items, counts)


def _for_answers(model: Any, params: Params) -> Params:
    """The parameters without those that only `fit` uses, also of the models of a blend."""
    if hasattr(model, "models"):
        parts = {str(i): _for_answers(m, params[str(i)]) for i, m in enumerate(model.models)}
        return {**params, **parts}
    unused = getattr(model, "for_update", ())
    return {n: x for n, x in params.items() if n not in unused} if unused else params


def event_counts(events: Events) -> np.ndarray:
    """The number of events of each item, (N,) float64."""
    return np.bincount(events.item, minlength=len(events.items)).astype(np.float64)
