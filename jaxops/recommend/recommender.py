"""A trained recommender, whatever its kind: a model, its arrays, and the ids of its items."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
Params = Any


class Model(Protocol):
    """What every kind of recommender has: a frozen dataclass of settings, and pure functions.

    An item scores the product of the user's query with the item's row of the table; or, where
    there is no table, the queries are the scores themselves. The query is made of the history
    alone, so that a user who was not in training is scored as any other.
    """

    context: int | None
    """How many of a user's last items it reads; all by default."""

    def queries(self, params: Params, history: Array) -> Array:
        """Of items (B, L) int32, oldest first, N behind the last: (B, D), or scores (B, N)."""

    def table(self, params: Params) -> Array | None:
        """(N, D), or None where the queries are the scores."""


class Recommender(NamedTuple):
    """A trained recommender.

    Attributes:
        model: its kind and settings.
        params: its arrays.
        items: (N,) the items' own ids, str.
    """

    model: Any
    params: Params
    items: np.ndarray
