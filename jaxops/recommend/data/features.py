"""Columns of items or users to numbers: what a value means is learned in training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxops.data.encoders import Encoder, encode, fit_encoder
from jaxops.task import recorded

Columns = Mapping[str, Any]


@recorded
@dataclass(frozen=True)
class Features:
    """How columns of items or of users are read: what a value means is learned in training.

    Attributes:
        categories: of each column of text its name and its values, sorted.
        numbers: of each column of numbers its name, mean, standard deviation, and whether some
            were missing, for which there is an indicator then.

    >>> features = Features.fitted({"brand": np.array(["b", "a"]), "price": np.array([1.0, 3.0])})
    >>> read = features.read({"brand": np.array(["a", "new"]), "price": np.array([3.0, 2.0])}, 2)
    >>> read["categories"].tolist(), read["numbers"].tolist()
    ([[1], [0]], [[1.0], [0.0]])
    """

    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    numbers: tuple[tuple[str, float, float, bool], ...] = ()

    @classmethod
    def fitted(cls, columns: Columns) -> "Features":
        """Of columns of text or of numbers (NaN is missing); raises `ValueError` for others."""
        if not columns:
            return cls()
        found = fit_encoder(columns)
        return cls(
            tuple((name, tuple(values)) for name, values in found.values.items()),
            tuple((n, m, found.std[n], n in found.missing) for n, m in found.mean.items()),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return (*(c[0] for c in self.categories), *(n[0] for n in self.numbers))

    def read(self, columns: Columns, count: int) -> dict[str, np.ndarray]:
        """What the towers take.

        Args:
            columns: those of `fitted`; others are ignored.
            count: N, their rows.

        Returns:
            `categories` (N, C) int32, 0 for a value that was not seen, and `numbers` (N, F)
            float32, standardised, 0 for a missing one.

        Raises:
            ValueError: a missing column, another number of rows, or numbers for text.
        """
        columns = {name: columns[name] for name in self.names if name in columns}
        odd = next((n for n in columns if len(columns[n]) != count), None)
        if odd is not None:
            raise ValueError(f"{odd}: {len(columns[odd]):,} rows found, {count:,} wanted")
        mean = {name: value for name, value, _, _ in self.numbers}
        std = {name: value for name, _, value, _ in self.numbers}
        missing = [name for name, *_, some in self.numbers if some]
        values = {name: list(known) for name, known in self.categories}
        numbers = np.zeros((count, 0), np.float32)
        if mean:
            encoder = Encoder(mean, std, missing, {}, None, [])
            numbers = encode(encoder, columns)["features"]
        categories = np.zeros((count, len(values)), np.int32)
        for place, (name, known) in enumerate(values.items()):
            if name not in columns:
                raise ValueError(f"no column {name!r}; columns found: {', '.join(columns)}")
            column = np.asarray(columns[name])
            if column.dtype.kind not in "OUT":
                raise ValueError(f"{name}: {column.dtype} found, text wanted, as in training")
            number = {value: i for i, value in enumerate(known, 1)}
            categories[:, place] = [number.get(value, 0) for value in column.tolist()]
        return {"categories": categories, "numbers": numbers}
