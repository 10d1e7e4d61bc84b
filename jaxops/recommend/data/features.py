"""Features of items and users: columns as numbers, read in the same way as in training."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.encoders import Encoder, encode, fit_encoder
from jaxops.recommend.data.events import Events
from jaxops.task import recorded

Columns = Mapping[str, Any]


@recorded
@dataclass(frozen=True)
class Features:
    """How columns of items or of users are read, as learned from the training columns.

    Attributes:
        categories: for each column of text, its name and its values in training, sorted.
        numbers: for each column of numbers, its name, mean, standard deviation, and whether values
            were missing in training, in which case an indicator of missing values is added.

    >>> features = Features.fitted({"brand": np.array(["b", "a"]), "price": np.array([1.0, 3.0])})
    >>> read = features.read({"brand": np.array(["a", "new"]), "price": np.array([3.0, 2.0])}, 2)
    >>> read["categories"].tolist(), read["numbers"].tolist()
    ([[1], [0]], [[1.0], [0.0]])
    """

    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    numbers: tuple[tuple[str, float, float, bool], ...] = ()

    @classmethod
    def fitted(cls, columns: Columns) -> "Features":
        """Learn from columns of text or of numbers, in which NaN is a missing value.

        Raises:
            ValueError: a column that is neither text nor numbers, or has no value.
        """
        if not columns:
            return cls()
        encoder = fit_encoder(columns)
        return cls(
            tuple((name, tuple(values)) for name, values in encoder.values.items()),
            tuple((n, m, encoder.std[n], n in encoder.missing) for n, m in encoder.mean.items()),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return (*(c[0] for c in self.categories), *(n[0] for n in self.numbers))

    @property
    def widths(self) -> tuple[int, int]:
        """The number of columns that `read` returns: C of `categories`, F of `numbers`."""
        return len(self.categories), len(self.numbers) + sum(n[3] for n in self.numbers)

    def read(self, columns: Columns, count: int) -> dict[str, np.ndarray]:
        """The columns as arrays.

        Args:
            columns: those of `fitted`; other columns are ignored.
            count: N, the number of rows.

        Returns:
            `categories` (N, C) int32, 0 for a value that was not in training, and `numbers` (N, F)
            float32, standardised, 0 for a missing value.

        Raises:
            ValueError: a missing column, another number of rows, or numbers instead of text.
        """
        columns = {name: columns[name] for name in self.names if name in columns}
        for name, column in columns.items():
            if len(column) != count:
                raise ValueError(f"{name} must have {count:,} rows, got {len(column):,}")
        mean = {name: value for name, value, _, _ in self.numbers}
        std = {name: value for name, _, value, _ in self.numbers}
        missing = [name for name, *_, incomplete in self.numbers if incomplete]
        values = {name: list(known) for name, known in self.categories}
        numbers = np.zeros((count, 0), np.float32)
        if mean:
            encoder = Encoder(mean, std, missing, {}, None, [])
            numbers = encode(encoder, columns)["features"]
        categories = np.zeros((count, len(values)), np.int32)
        for place, (name, known) in enumerate(values.items()):
            if name not in columns:
                raise ValueError(
                    f"columns must include {name!r}, got {', '.join(columns) or 'none'}"
                )
            column = np.asarray(columns[name])
            if column.dtype.kind not in "OUT":
                raise ValueError(f"{name} must be text, as in training, got {column.dtype}")
            number = {value: i for i, value in enumerate(known, 1)}
            categories[:, place] = [number.get(value, 0) for value in column.tolist()]
        return {"categories": categories, "numbers": numbers}


@recorded
@dataclass(frozen=True)
class Catalogue:
    """The items that `retrieval` scores: their number, features, and how often each was taken.

    Catalogues with the same contents are equal. A model file holds only the size, because the
    arrays are in the state's `extra`.

    Attributes:
        size: N, the number of items.
        digest: a checksum of the arrays; empty in a task that was read from a file.
        items: name -> (N, ...), the features of each item for `TwoTower`; None in a task that was
            read from a file.
        log_q: (N,) float32, the logarithm of each item's share of the training rows; None likewise.
    """

    size: int
    digest: str = field(default="", init=False)
    items: dict[str, np.ndarray] | None = field(default=None, init=False, compare=False, repr=False)
    log_q: np.ndarray | None = field(default=None, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, events: Events, features: Features, known: int) -> "Catalogue":
        """The items of a training log.

        Args:
            events: the training log.
            features: how the items' columns are read.
            known: number of items that have their own embedding: those with events, or 0.

        Raises:
            ValueError: no events, a missing column, or another number of items with events.
        """
        if len(events) == 0:
            raise ValueError("events must hold at least 1 event, got none")
        size = len(events.items)
        counts = np.bincount(events.item, minlength=size)
        taken = counts > 0
        if known not in (0, taken.sum()):
            raise ValueError(f"events must hold {known:,} items with events, got {taken.sum():,}")
        ids = np.where(taken, np.cumsum(taken), 0) if known else np.zeros(size)
        items = {"own": ids.astype(np.int32), **features.read(events.item_features, size)}
        log_q = np.log(np.maximum(counts, 1) / len(events)).astype(np.float32)
        checksum = hashlib.sha256()
        for values in (*items.values(), log_q):
            checksum.update(f"{values.dtype} {values.shape} ".encode())
            checksum.update(np.ascontiguousarray(values).data)
        catalogue = cls(size)
        contents = {"digest": checksum.hexdigest(), "items": items, "log_q": log_q}
        for name, value in contents.items():
            object.__setattr__(catalogue, name, value)  # a frozen dataclass
        return catalogue

    def arrays(self, features: Features) -> dict[str, Any]:
        """The state's `extra`: `items` and `log_q`.

        In a task that was read from a file they have the shapes of the file's arrays, and `log_q`
        is NaN, so that training cannot start without the file's state.
        """
        if self.items is not None:
            return jax.tree.map(jnp.asarray, {"items": self.items, "log_q": self.log_q})
        categories, numbers = features.widths
        items = {
            "own": jnp.zeros(self.size, jnp.int32),
            "categories": jnp.zeros((self.size, categories), jnp.int32),
            "numbers": jnp.zeros((self.size, numbers), jnp.float32),
        }
        return {"items": items, "log_q": jnp.full(self.size, jnp.nan, jnp.float32)}
