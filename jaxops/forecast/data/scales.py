"""Scaling: what is subtracted and divided by before a module sees the values."""

from typing import NamedTuple

import numpy as np

from jaxops.forecast.data.series import Series, ranges
from jaxops.forecast.data.windows import Rows, checked_rows
from jaxops.task import recorded

KINDS = ("none", "global", "series")


@recorded
class Scaling(NamedTuple):
    """(values - loc) / scale.

    Attributes:
        kind: "none"; "global", one for all series; or "series", one for each.
        loc: float32 (S, C) for "series", else (1, C).
        scale: the same shape, positive.
        ids: (S,), of the series that it was computed from.
    """

    kind: str
    loc: np.ndarray
    scale: np.ndarray
    ids: np.ndarray

    def of(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Loc and scale of each series, both (S, C), by its id.

        Args:
            series: any, in any order. A series whose id is not among `ids` is scaled by all its
            rows.
        """
        shape = (len(series), series.values.shape[1])
        if self.kind != "series":
            return np.broadcast_to(self.loc, shape), np.broadcast_to(self.scale, shape)
        place = {name: i for i, name in enumerate(self.ids.tolist())}
        index = np.array([place.get(name, -1) for name in series.ids.tolist()])
        loc, scale = self.loc[index], self.scale[index]
        new = index < 0
        if new.any():
            some = series.part(new)
            whole = np.stack([some.offsets[:-1], some.offsets[1:]], axis=1)
            _, loc[new], scale[new], _ = scaling(some, rows=whole)
        return loc, scale


def scaling(series: Series, kind: str = "series", rows: Rows | None = None) -> Scaling:
    """A scaling by means and standard deviations of the training rows.

    A channel that does not vary has scale 1, so that nothing is divided by 0.

    Args:
        series: to be scaled.
        kind: see `Scaling`.
        rows: int (S, 2), the range of each series' training rows, such as `split(...).train`;
            needed unless kind is "none". No other rows are used.

    Returns:
        A `Scaling`, (values - loc) / scale.

    Raises:
        ValueError: another kind; no ranges, ranges of other series, or a range without a row.

    >>> from jaxops.forecast import from_arrays, split
    >>> two = from_arrays(["a", "b"], [[0, 2, 9], [5, 5, 7]])
    >>> scaled = scaling(two, rows=split(two, 2, 0, 1).train)
    >>> scaled.loc.ravel().tolist(), scaled.scale.ravel().tolist()
    ([1.0, 5.0], [1.0, 1.0])
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    shape = (1, series.values.shape[1])
    if kind == "none":
        return Scaling(kind, np.zeros(shape, np.float32), np.ones(shape, np.float32), series.ids)
    if rows is None:
        raise ValueError("rows must be the training rows, such as split(...).train, got None")
    rows = checked_rows(series, rows)
    none = rows[:, 1] <= rows[:, 0]
    if none.any():
        name = str(series.ids[none.argmax()])
        raise ValueError(
            f"rows must have at least 1 row of each series, got none of series {name!r}"
        )
    offsets, training = ranges(rows[:, 0], rows[:, 1])
    values = series.values[training].astype(np.float64)
    group = np.zeros(len(values), np.int64)
    if kind == "series":
        group = np.repeat(np.arange(len(series)), np.diff(offsets))

    def mean(x: np.ndarray) -> np.ndarray:
        sums = [np.bincount(group, column) for column in x.T]
        return np.stack(sums, 1) / np.bincount(group)[:, None]

    loc = mean(values)
    scale = np.sqrt(mean((values - loc[group]) ** 2))
    # a constant channel may leave rounding errors only, which are no scale
    scale = np.where(scale > 1e-9 * np.abs(loc), scale, 1.0)
    return Scaling(kind, loc.astype(np.float32), scale.astype(np.float32), series.ids)
