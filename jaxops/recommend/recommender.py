"""A trained recommender, whatever its kind: a model, its arrays, and the ids of its items."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxops import model_file
from jaxops.recommend.events import Events, Histories
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, recorded


class Model(Protocol):
    """What every kind of recommender has: a frozen dataclass of settings, and pure functions.

    An item scores the product of the user's query with the item's row of the table; or, where
    there is no table, the queries are the scores themselves. The query is made of the history
    alone, so that a user who was not in training is scored as any other.
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
            given = [self.place_of.get(item) for item in history]
            own = [place for place in given if place is not None]
            unknown += len(given) - len(own)
            found += own
            lengths.append(len(own))
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Histories(np.array(found, np.int32), starts), unknown


def fit(model: Any, events: Events) -> Recommender:
    """Fit a model that has a `fit` of its own: `EASE`, `IALS`, `BPR`, `ItemKNN`, `Popularity`.

    Models of histories and features are tasks, for `jaxops.fit`; see `next_item`.

    Args:
        model: its kind and settings.
        events: to learn from.
    """
    params = model.fit(events)
    return Recommender(model, params, events.items, _counts(events))


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
        raise ValueError(f"recommender: {name} is trained by jaxops.fit; see recommend.extended")
    known = recommender.items
    if not np.array_equal(events.items[: len(known)], known):
        raise ValueError(
            f"events: a catalogue that begins with the {len(known):,} known items wanted; "
            "make it with events(..., items=recommender.items)"
        )
    params = recommender.model.fit(events, recommender.params)
    counts = _counts(events)
    counts[: len(known)] += recommender.counts
    return Recommender(recommender.model, params, events.items, counts)


def _counts(events: Events) -> np.ndarray:
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
