"""A trained recommender of any kind: a model, its parameters, and the ids of its items."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.model import files as model_file
from jaxops.model.finished import Model as Finished
from jaxops.recommend.data.events import Events, Histories
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, recorded


class Model(Protocol):
    """The interface of every kind of model: a frozen dataclass of settings with pure functions.

    An item's score is the inner product of the user's query with the item's row of the table;
    without a table, the queries are the scores. The query depends on the history alone, so a user
    who was not in training is scored like any other.

    A model may also have: `fit(events, params=None)`, see `recommend.fit`; `user_features`, which
    reads columns of users that `queries` then takes as its third argument; `answers_empty`, True if
    it handles an empty history (otherwise such a user gets the most popular items); and
    `for_update`, the names of parameters that only `fit` uses.

    >>> class Alphabetical(Model):
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
        """The items' vectors (N, D), or None where the queries are the scores."""


@dataclass(frozen=True, eq=False)
class Recommender:
    """A trained recommender.

    Attributes:
        model: the kind of model and its settings; see `Model`.
        params: its parameters.
        items: (N,) str, the items' ids.
        counts: (N,) float, number of training events of each item; a user without history gets the
            items with the most.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> recommender = recommend.fit(recommend.Popularity(), log)
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
        unused = getattr(self.model, "for_update", ())
        params = self.params
        if unused:
            params = {name: x for name, x in params.items() if name not in unused}
        share = self.counts / max(self.counts.sum(), 1)
        params, shares = jax.device_put((params, jnp.asarray(share, jnp.float32)))
        return params, _table(self.model, params), shares

    @cached_property
    def place_of(self) -> dict[str, int]:
        """The index of each id in the catalogue."""
        return {name: i for i, name in enumerate(self.items.tolist())}

    def histories(self, histories: Iterable[Iterable[str]]) -> tuple[Histories, int]:
        """Lists of ids, oldest first, as `Histories`, and the number of ids not in the catalogue.

        Raises:
            ValueError: a history that is not a list, or an id that is not text.
        """
        items: list[int] = []
        lengths, unknown = [], 0
        for row, history in enumerate(histories):
            if isinstance(history, str):
                raise ValueError(f"histories must be lists of ids, got {history!r} in row {row}")
            ids = list(history)
            for item in ids:
                if not isinstance(item, str):
                    raise ValueError(f"histories must hold ids as text, got {item!r} in row {row}")
            known = [self.place_of[item] for item in ids if item in self.place_of]
            unknown += len(ids) - len(known)
            items += known
            lengths.append(len(known))
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Histories(np.array(items, np.int32), starts), unknown


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
    """The scores of all items, (B, N) float32; see `Model` for users without history.

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
        every = jnp.matmul(every, table.T, precision="highest", preferred_element_type=jnp.float32)
    if getattr(model, "answers_empty", False):
        return every
    return jnp.where((history < len(share)).any(1, keepdims=True), every, share[None])


def last_items(history: Array, context: int | None, padding: int) -> Array:
    """The last `context` items of each row, and the padding after them."""
    if context is None or context >= history.shape[1]:
        return history
    first = jnp.maximum((history < padding).sum(1, keepdims=True) - context, 0)
    return jnp.take_along_axis(history, first + jnp.arange(context)[None], axis=1)


def read_users(model: Any, users: Mapping[str, Any] | None, count: int) -> Any:
    """The features of `count` users as the model reads them, or None without columns.

    Raises:
        ValueError: a model that reads no features of users, or columns that it cannot read.
    """
    if users is None:
        return None
    if not hasattr(model, "user_features"):
        raise ValueError(
            f"users must be None for {type(model).__name__}, which reads no features of users, "
            "got columns"
        )
    return model.user_features.read(users, count)


def fit(model: Any, events: Events) -> Recommender:
    """Fit `EASE`, `IALS`, `BPR`, `ItemKNN` or `Popularity` to a log.

    Sequence models and two towers are trained by `jaxops.fit`; see `next_item` and `retrieval`.

    Args:
        model: the kind of model and its settings.
        events: the training log.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> recommender = fit(recommend.ItemKNN(neighbours=1), log)
    >>> recommend.recommend(recommender, [["x"]], k=1).ids()
    [['y']]
    """
    params = model.fit(events)
    return Recommender(model, params, events.items, event_counts(events))


def update(recommender: Recommender, events: Events) -> Recommender:
    """Update a recommender with new events; the indices of known items do not change.

    Args:
        recommender: one that `fit` made.
        events: only the new events. Their `items` begin with the known items, and new items follow;
            see `events(items=)`.

    Raises:
        ValueError: `items` that do not begin with the known items, or a model without `fit`.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> recommender = fit(recommend.Popularity(), log)
    >>> new = recommend.events({"user": ["c"], "item": ["z"]}, time=None, items=recommender.items)
    >>> update(recommender, new).counts.tolist()
    [2.0, 1.0, 1.0]
    """
    if not hasattr(recommender.model, "fit"):
        raise ValueError(
            "recommender must be of a model with a fit method, such as EASE, got "
            f"{type(recommender.model).__name__}; sequence models are trained further by "
            "jaxops.fit after recommend.sequence_with_items, and two towers take new items by "
            "recommend.two_tower_with_items"
        )
    known = recommender.items
    if not np.array_equal(events.items[: len(known)], known):
        raise ValueError(
            f"events must have a catalogue that begins with the {len(known):,} known items, got "
            "other items; make it with events(..., items=recommender.items)"
        )
    params = recommender.model.fit(events, recommender.params)
    counts = event_counts(events)
    counts[: len(known)] += recommender.counts
    return Recommender(recommender.model, params, events.items, counts)


def event_counts(events: Events) -> np.ndarray:
    """The number of events of each item, (N,) float64."""
    return np.bincount(events.item, minlength=len(events.items)).astype(np.float64)


@recorded
def _stored(model: Any, arrays: tuple[tuple[str, tuple[int, ...], str], ...]) -> Task:
    """What a file holds of a recommender: its model, and its arrays' names, shapes and dtypes."""

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        flat = {name: jnp.zeros(shape, dtype) for name, shape, dtype in arrays}
        return flax.traverse_util.unflatten_dict(flat, sep="/"), {}

    def loss(*_: Any) -> tuple[Array, Out]:
        raise ValueError("task must be trainable, got a recommender's; see recommend.update")

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        return model.queries(params, jnp.asarray(batch["history"], jnp.int32))

    return Task(init, loss, predict, (Column("history", (None,), "int"),))


def save(path: str | Path, recommender: Recommender) -> None:
    """Write a recommender to one model file, with its items' ids; see `jaxops.save`.

    Args:
        path: the file; an existing one is replaced.
        recommender: the recommender.

    >>> import tempfile
    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/popular.safetensors", recommend.fit(recommend.Popularity(), log))
    ...     recommend.recommend(load(f"{folder}/popular.safetensors"), [["y"]], k=1).ids()
    [['x']]
    """
    flat = flax.traverse_util.flatten_dict(recommender.params, sep="/")
    arrays = tuple((name, np.shape(x), str(jnp.asarray(x).dtype)) for name, x in flat.items())
    state = TrainState(jnp.int32(0), recommender.params, (), {}, jax.random.key(0))
    about = {"items": recommender.items.tolist(), "counts": recommender.counts.tolist()}
    task = _stored(recommender.model, arrays)
    model_file.save(path, Finished(task, state, about=about))


def load(path: str | Path) -> Recommender:
    """Read a recommender from a model file that `save` wrote.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a model file, or one that does not hold a recommender.
    """
    stored = model_file.load(path)
    make, arguments = stored.task.recipe or (None, ())
    if make is not _stored:
        raise ValueError(f"path must be a recommender's file, got {path}; see jaxops.load")
    about = stored.about
    items, counts = np.array(about["items"], dtype=object), np.array(about["counts"])
    return Recommender(dict(arguments)["model"], stored.state.params, items, counts)
