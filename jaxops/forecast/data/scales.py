"""Scaling: shifts and scales values and covariates before a module reads them."""

from typing import Any, NamedTuple

import numpy as np

from jaxops.forecast.data.dates import computed
from jaxops.forecast.data.series import Series, ranges
from jaxops.forecast.data.windows import Rows, checked_rows
from jaxops.task import recorded

KINDS = ("none", "global", "series")


@recorded
class Scaling(NamedTuple):
    """(values - loc) / scale for the values, and the same for each column of covariates.

    Attributes:
        kind: how values are scaled: "none"; "global", the same for all series; or "series", one loc
            and scale for each series. Covariates have one loc and scale for all series.
        loc: float32 (S, C) for "series", else (1, C).
        scale: the same shape, positive.
        ids: (S,), ids of the series that the scaling was computed from.
        past: float32 (2, P), loc and scale of the past covariates; None does not scale them.
        known: float32 (2, K), the same for the known covariates.
        static: float32 (2, Q), the same for the static covariates.
    """

    kind: str
    loc: np.ndarray
    scale: np.ndarray
    ids: np.ndarray
    past: np.ndarray | None = None
    known: np.ndarray | None = None
    static: np.ndarray | None = None

    def of(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Loc and scale of each series, both (S, C), found by its id.

        Args:
            series: any series, in any order. A series whose id is not among `ids` is scaled by the
                mean and standard deviation of all its rows.
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
            loc[new], scale[new] = scaling(some, rows=whole)[1:3]
        return loc, scale

    def covariates(self, kind: str, x: np.ndarray) -> np.ndarray:
        """Scale past, known or static covariates.

        Args:
            kind: "past", "known" or "static".
            x: float32 (..., width).

        Raises:
            ValueError: the number of columns differs from that of the scaling.
        """
        pair = getattr(self, kind)
        if pair is None:
            return x
        if pair.shape[1] != x.shape[-1]:
            raise ValueError(
                f"scaling must be made with the {x.shape[-1]} {kind} covariates of these series, "
                f"got {pair.shape[1]}; add covariates first, then call `scaling`"
            )
        return np.asarray((x - pair[0]) / pair[1])


def scaling(series: Series, kind: str = "series", rows: Rows | None = None) -> Scaling:
    """Compute a scaling from the means and standard deviations of the training rows.

    A column that does not vary gets scale 1, so that nothing is divided by 0. Each covariate has
    one mean and one standard deviation for all series, so that differences between series remain.
    Two kinds of covariates are not scaled: columns that contain only 0 and 1, and the features of
    `calendar`, whose size is about 1 already.

    Args:
        series: the series to scale.
        kind: see `Scaling`; "none" does not scale the values.
        rows: int (S, 2), the range of each series' training rows, such as `split(...).train`. No
            other rows are used. It may be left out if kind is "none"; covariates are then not
            scaled either.

    Returns:
        A `Scaling`, (values - loc) / scale.

    Raises:
        ValueError: the kind is unknown; no ranges are given, they are those of other series, or one
            is empty.

    >>> from jaxops.forecast import from_arrays, split
    >>> two = from_arrays(["a", "b"], [[0, 2, 9], [5, 5, 7]])
    >>> scaled = scaling(two, rows=split(two, 2, 0, 1).train)
    >>> scaled.loc.ravel().tolist(), scaled.scale.ravel().tolist()
    ([1.0, 5.0], [1.0, 1.0])
    >>> wet = from_arrays(["a"], [[1, 2, 3]], past={"rain": [[996, 1000, 1004]]})
    >>> scaling(wet, rows=split(wet, None, 0, 1).train).past.ravel().tolist()
    [998.0, 2.0]
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    shape = (1, series.values.shape[1])
    none = Scaling(kind, np.zeros(shape, np.float32), np.ones(shape, np.float32), series.ids)
    if rows is None and kind == "none":
        return none
    if rows is None:
        raise ValueError("rows must be the training rows, such as split(...).train, got None")
    rows = checked_rows(series, rows)
    empty = rows[:, 1] <= rows[:, 0]
    if empty.any():
        name = str(series.ids[empty.argmax()])
        raise ValueError(
            f"rows must have at least 1 row of each series, got none of series {name!r} "
            f"({empty.sum()} of {len(series)}); `series.part` leaves series out before the split"
        )
    offsets, training = ranges(rows[:, 0], rows[:, 1])
    covariates: dict[str, Any] = {
        "past": _columns(series.past[training], series.past_names),
        "known": _columns(series.known[training], series.known_names),
        "static": _columns(series.static, series.static_names),
    }
    if kind == "none":
        return none._replace(**covariates)
    group = np.zeros(len(training), np.int64)
    if kind == "series":
        group = np.repeat(np.arange(len(series)), np.diff(offsets))
    loc, scale = _moments(series.values[training], group)
    return Scaling(kind, loc, scale, series.ids, **covariates)


def _moments(values: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each group of rows, float32 (G, C)."""
    values = values.astype(np.float64)

    def mean(x: np.ndarray) -> np.ndarray:
        sums = [np.bincount(group, column) for column in x.T]
        return np.stack(sums, 1) / np.bincount(group)[:, None]

    loc = mean(values)
    scale = np.sqrt(mean((values - loc[group]) ** 2))
    # the deviation of a constant channel may be a rounding error, which must not be used as a scale
    scale = np.where(scale > 1e-9 * np.abs(loc), scale, 1.0)
    return loc.astype(np.float32), scale.astype(np.float32)


def _columns(rows: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Loc and scale of each column, (2, width)."""
    if not names:
        return np.zeros((2, 0), np.float32)
    pair = np.concatenate(_moments(rows, np.zeros(len(rows), np.int64)))
    flag = ((rows == 0) | (rows == 1)).all(0)
    pair[:, flag | np.array([computed(name) for name in names])] = [[0.0], [1.0]]
    return pair
