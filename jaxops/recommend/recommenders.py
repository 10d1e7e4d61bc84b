"""A trained recommender, whatever its kind: a model, its arrays, and the ids of its items."""

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
from jaxops.recommend.data.events import Events, Histories
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, recorded


class Model(Protocol):
    """What every kind of recommender has: a frozen dataclass of settings, and pure functions.

    An item scores the product of the user's query with the item's row of the table; or, where
    there is no table, the queries are the scores themselves. The query is made of the history
    alone, so that a user who was not in training is scored as any other.

    A model may have more: `fit`, see there; `user_features`, which reads columns of users, that
    `queries` then takes as a third argument; `answers_empty`, True where it has an answer for an
    empty history (others give such a user what is most taken); and `for_update`, names of arrays
    that `fit` alone wants.
    """

    @property
    def context(self) -> int | None:
        """How many of a user's last items it reads; all by default."""

    def queries(self, params: Params, history: Array) -> Array:
        """Of items (B, L) int32, oldest first, N behind the last: (B, D), or scores (B, N)."""

    def table(self, params: Params) -> Array | None:
        """(N, D), or None where the queries are the scores."""


@dataclass(frozen=True, eq=False)
class Recommender:
    """A trained recommender.

    Attributes:
        model: its kind and settings.
        params: its arrays.
        items: (N,) the items' own ids, str.
        counts: (N,) float, how often each was taken in training; who has no history gets the
            most taken.
    """

    model: Any
    params: Params
    items: np.ndarray
    counts: np.ndarray

    @cached_property
    def on_device(self) -> tuple[Params, Array | None, Array]:
        """What scoring takes: the arrays, the table, and each item's share of the events, (N,)."""
        unused = getattr(self.model, "for_update", ())
        params = self.params
        if unused:
            params = {name: x for name, x in params.items() if name not in unused}
        share = self.counts / max(self.counts.sum(), 1)
        params, shares = jax.device_put((params, jnp.asarray(share, jnp.float32)))
        return params, _table(self.model, params), shares

    @cached_property
    def place_of(self) -> dict[str, int]:
        """Each id's place in the catalogue."""
        return {name: i for i, name in enumerate(self.items.tolist())}

    def histories(self, histories: Iterable[Iterable[str]]) -> tuple[Histories, int]:
        """Lists of ids, oldest first, as `Histories`; and how many ids the catalogue lacks.

        Raises:
            ValueError: an id or a list that is none.
        """
        found, lengths, unknown = [], [], 0
        for row, history in enumerate(histories):
            if isinstance(history, str):
                raise ValueError(f"histories: row {row}: {history!r} found, a list of ids wanted")
            history = list(history)
            odd = next((item for item in history if not isinstance(item, str)), None)
            if odd is not None:
                raise ValueError(f"histories: row {row}: {odd!r} found, ids wanted, which are text")
            given = [self.place_of.get(item) for item in history]
            own = [place for place in given if place is not None]
            unknown += len(given) - len(own)
            found += own
            lengths.append(len(own))
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Histories(np.array(found, np.int32), starts), unknown


@functools.partial(jax.jit, static_argnums=0)
def _table(model: Any, params: Params) -> Array | None:
    return model.table(params)


def queries(model: Any, params: Params, history: Array, users: Any) -> Array:
    """As the model has them; `users` are what its `user_features` has read, or None."""
    return (
        model.queries(params, history) if users is None else model.queries(params, history, users)
    )


def scores(
    model: Any, params: Params, table: Array | None, share: Array, history: Array, users: Any = None
) -> Array:
    """Of all items, (B, N) float32; of a user without history what `answers_empty` says.

    Args:
        model: of a `Recommender`; as are the next three.
        params: see `Recommender.on_device`.
        table: likewise.
        share: likewise.
        history: (B, L) int32, N behind the last.
        users: see `queries`.
    """
    found = queries(model, params, history, users)
    if table is not None:
        found = jnp.matmul(found, table.T, precision="highest", preferred_element_type=jnp.float32)
    if getattr(model, "answers_empty", False):
        return found
    return jnp.where((history < len(share)).any(1, keepdims=True), found, share[None])


def last_items(history: Array, context: int | None, padding: int) -> Array:
    """The last `context` items of each row, with what is behind them."""
    if context is None or context >= history.shape[1]:
        return history
    first = jnp.maximum((history < padding).sum(1, keepdims=True) - context, 0)
    return jnp.take_along_axis(history, first + jnp.arange(context)[None], axis=1)


def read_users(model: Any, users: Mapping[str, Any] | None, count: int) -> Any:
    """Columns of `count` users as the model takes them.

    Raises:
        ValueError: a model that reads none, or columns that it cannot read.
    """
    if users is None:
        return None
    if not hasattr(model, "user_features"):
        raise ValueError(f"users: columns found, which {type(model).__name__} does not read")
    return model.user_features.read(users, count)


def fit(model: Any, events: Events) -> Recommender:
    """Fit a model that has a `fit` of its own: `EASE`, `IALS`, `BPR`, `ItemKNN`, `Popularity`.

    Models of histories and features are tasks, for `jaxops.fit`; see `next_item`.

    Args:
        model: its kind and settings.
        events: to learn from.
    """
    params = model.fit(events)
    return Recommender(model, params, events.items, event_counts(events))


def update(recommender: Recommender, events: Events) -> Recommender:
    """Learn from new events, from where it stands; no id changes its place.

    Args:
        recommender: by a model with a `fit` of its own.
        events: the new ones alone, whose `items` begin with those that are known (see
            `events(items=)`), and may go on with new ones.

    Raises:
        ValueError: `items` that begin otherwise, or a model of another kind.
    """
    if not hasattr(recommender.model, "fit"):
        name = type(recommender.model).__name__
        raise ValueError(
            f"recommender: {name} found, wanted one with a fit of its own; models of histories are "
            "trained on by jaxops.fit after recommend.extended, and two towers take new items in "
            "by recommend.with_items"
        )
    known = recommender.items
    if not np.array_equal(events.items[: len(known)], known):
        raise ValueError(
            f"events: a catalogue that begins with the {len(known):,} known items wanted; "
            "make it with events(..., items=recommender.items)"
        )
    params = recommender.model.fit(events, recommender.params)
    counts = event_counts(events)
    counts[: len(known)] += recommender.counts
    return Recommender(recommender.model, params, events.items, counts)


def event_counts(events: Events) -> np.ndarray:
    """How many events each item has, (N,) float64."""
    return np.bincount(events.item, minlength=len(events.items)).astype(np.float64)


@recorded
def _stored(model: Any, arrays: tuple[tuple[str, tuple[int, ...], str], ...]) -> Task:
    """What a file tells of a recommender: its model, and its arrays' names, shapes and dtypes."""

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        flat = {name: jnp.zeros(shape, dtype) for name, shape, dtype in arrays}
        return flax.traverse_util.unflatten_dict(flat, sep="/"), {}

    def loss(*_: Any) -> tuple[Array, Out]:
        raise ValueError("a recommender from a file is not trained; see recommend.update")

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        return model.queries(params, jnp.asarray(batch["history"], jnp.int32))

    return Task(init, loss, predict, (Column("history", (None,), "int"),))


def save(path: str | Path, recommender: Recommender) -> None:
    """Write it to one model file, with its items' ids; see `jaxops.save`."""
    flat = flax.traverse_util.flatten_dict(recommender.params, sep="/")
    arrays = tuple((name, np.shape(x), str(jnp.asarray(x).dtype)) for name, x in flat.items())
    state = TrainState(jnp.int32(0), recommender.params, (), {}, jax.random.key(0))
    about = {"items": recommender.items.tolist(), "counts": recommender.counts.tolist()}
    model_file.save(path, _stored(recommender.model, arrays), state, about)


def load(path: str | Path) -> Recommender:
    """The recommender of a model file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a model file, or of something else.
    """
    found = model_file.load(path)
    make, arguments = found.task.recipe or (None, ())
    if make is not _stored:
        raise ValueError(f"{path}: not a recommender; see jaxops.load")
    about = found.about
    items, counts = np.array(about["items"], dtype=object), np.array(about["counts"])
    return Recommender(dict(arguments)["model"], found.state.params, items, counts)
