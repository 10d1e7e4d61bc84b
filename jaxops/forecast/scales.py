"""Bringing series of all sizes to one: what is taken off and divided by before a network."""

from typing import NamedTuple

import numpy as np

from jaxops.forecast.data import Series

KINDS = ("none", "global", "series")


class Scaling(NamedTuple):
    """(values - loc) / scale.

    Attributes:
        kind: "none"; "global", the same for all series; or "series", each its own.
        loc: float32 (S, C), or (1, C) but for "series".
        scale: the same, positive.
    """

    kind: str
    loc: np.ndarray
    scale: np.ndarray

    def of(self, history: Series, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loc and scale, both (S, C), of each series of `history`.

        Args:
            history: any series. One that was not scaled in training is scaled by itself.
            ids: (S',), of the series that `loc` and `scale` are of.
        """
        shape = (len(history.ids), history.values.shape[1])
        if self.kind != "series":
            return np.broadcast_to(self.loc, shape), np.broadcast_to(self.scale, shape)
        place = {name: i for i, name in enumerate(ids.tolist())}
        known = np.array([place.get(name, -1) for name in history.ids.tolist()])
        own = scaling(history, "series") if (known < 0).any() else self
        found = [
            np.where(known[:, None] < 0, a if own is not self else b[known], b[known])
            for a, b in ((own.loc, self.loc), (own.scale, self.scale))
        ]
        return found[0], found[1]


def scaling(series: Series, kind: str = "series", rows: int | np.ndarray | None = None) -> Scaling:
    """Means and standard deviations of the training rows.

    A channel that does not vary has scale 1: it becomes 0, and nothing is divided by 0.

    Args:
        series: to be scaled.
        kind: see `Scaling`.
        rows: how many of each series' first rows are for training, one number or (S,); all of them
            by default. Later rows must not be looked at.

    Raises:
        ValueError: another kind, or numbers of rows that the series have not.

    >>> from jaxops.forecast.data import from_arrays
    >>> two = from_arrays(["a", "b"], [np.array([0.0, 2.0, 9.0]), np.array([5.0, 5.0])])
    >>> scaling(two, rows=2).loc.ravel().tolist(), scaling(two, rows=2).scale.ravel().tolist()
    ([1.0, 5.0], [1.0, 1.0])
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} found, one of {KINDS} wanted")
    channels = series.values.shape[1]
    if kind == "none":
        return Scaling(
            kind, np.zeros((1, channels), np.float32), np.ones((1, channels), np.float32)
        )
    lengths = series.lengths
    count = lengths if rows is None else np.broadcast_to(rows, lengths.shape)
    bad = np.flatnonzero((count < 1) | (count > lengths))
    if len(bad):
        name, found = str(series.ids[bad[0]]), int(count[bad[0]])
        raise ValueError(
            f"rows: {found} of series {name!r} found, 1 to {int(lengths[bad[0]])} (all) wanted"
        )
    group = np.repeat(np.arange(len(lengths)), lengths)
    training = np.arange(len(group)) - series.offsets[group] < count[group]
    group = group[training] if kind == "series" else np.zeros(int(training.sum()), np.int64)
    values = series.values[training].astype(np.float64)

    def mean(x: np.ndarray) -> np.ndarray:
        sums = [np.bincount(group, column) for column in x.T]
        return np.stack(sums, 1) / np.bincount(group)[:, None]

    loc = mean(values)
    scale = np.sqrt(mean((values - loc[group]) ** 2))
    # what rounding alone leaves of a constant is no scale
    scale = np.where(scale > 1e-9 * np.abs(loc), scale, 1.0)
    return Scaling(kind, loc.astype(np.float32), scale.astype(np.float32))
