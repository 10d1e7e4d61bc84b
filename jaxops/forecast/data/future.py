"""Known covariates for the steps to forecast."""

from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.data import tables
from jaxops.data.tables import Source
from jaxops.forecast.data import grid, reading
from jaxops.forecast.data.dates import Dates, calendar_columns, computed
from jaxops.forecast.data.series import Series


def future_covariates(
    series: Series,
    horizon: int,
    source: Source | None = None,
    *,
    id: str | None = "id",
    time: str = "time",
    dates: Dates | None = None,
    encoding: str = "utf-8",
) -> np.ndarray:
    """The known covariates of the steps after each series' end, in the order of `known_names`.

    Columns of `dates` are computed, and so are features of the calendar that the table does not
    have. All other columns are read from the table. The table may have more rows and series than
    needed, so you can use the table that the series were read from if it reaches far enough.

    Args:
        series: the series to forecast.
        horizon: H, the number of steps after the end of each series.
        source: a table, see `series`, with a row for each series and step.
        id: the column of the series' id; None if the rows apply to all series.
        time: the column of times.
        dates: the dates given to `calendar`, including the future ones.
        encoding: encoding of a CSV file.

    Returns:
        float32 (S, H, K).

    Raises:
        ValueError: the table has no row for some series and step, which are named; it has
            duplicate rows; or a number or a column is missing.

    >>> from jaxops import forecast
    >>> table = {"id": ["a"] * 2, "time": [7, 8], "value": [1, 2], "price": [3, 3]}
    >>> one = forecast.series(table, known=["price"])
    >>> future_covariates(one, 2, {"id": ["a"] * 3, "time": [8, 10, 9], "price": [3, 4, 5]})
    array([[[5.],
            [4.]]], dtype=float32)
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    names = series.known_names
    future = np.full((len(series), horizon, len(names)), np.nan, np.float32)
    times = series.future(horizon)
    table = None
    if source is not None:
        keys = (time,) if id is None else (id, time)
        table = reading.frame(source, None, keys, encoding, id)
    given = set() if table is None else set(table[1].columns)
    made = [x for x in names if x in (dates or {}) or (x not in given and computed(x))]
    read = [x for x in names if x not in made]
    if made:
        columns = calendar_columns(times.reshape(-1), series.frequency, made, dates, series.zone)
        future[:, :, [names.index(x) for x in made]] = columns.reshape(*times.shape, -1)
    if read:
        if table is None:
            raise ValueError(
                f"source must be a table with columns {', '.join(read)}, got None; dates= gives "
                "those of `calendar`"
            )
        part = _read(series, *table, read, horizon, id, time)
        future[:, :, [names.index(x) for x in read]] = part
    return future


def _read(
    series: Series, name: str, table: Any, read: list[str], horizon: int, id: str | None, time: str
) -> np.ndarray:
    """The columns of a table after the series' ends, (S, H, len(read))."""
    pd = require("pandas", extra="data")

    for column in (time, *read):
        if column not in table.columns:
            columns = ", ".join(map(str, table.columns))
            raise ValueError(f"{name} must have a column {column!r}, got columns {columns}")
    steps = series.future(horizon)
    what = f"{name}: column {time!r}"
    when, _ = reading.times(table[time], what, series.frequency, series.zone)
    grid.check(series.frequency, when)
    number, end = np.zeros(len(when), np.int64), np.full(len(when), steps.min())
    if id is not None:
        code, ids = tables.ids(table[id], f"{name}: column {id!r}")
        number = pd.Index(series.ids).get_indexer(pd.Index(ids.astype(str)))[code]
        end = steps[number, 0]
    rows = np.flatnonzero((number >= 0) & (when >= end) & (when <= steps.max()))
    data = reading.numbers(table[read].iloc[rows], name)

    # one integer key for each series and time, by which the rows are looked up
    low, span = steps.min().astype(np.int64), np.ptp(steps).astype(np.int64) + 1
    key = number[rows] * span + when[rows].astype(np.int64) - low
    order = np.argsort(key, kind="stable")
    again = np.diff(key[order]) == 0
    if again.any():
        row = rows[order[again.argmax()]]
        at = "" if id is None else f"series {str(series.ids[number[row]])!r} at "
        raise ValueError(f"{name} must have one row for each time, got two for {at}{when[row]}")
    first = np.zeros((len(series), 1), np.int64)
    if id is not None:
        first[:, 0] = np.arange(len(series)) * span
    place = np.searchsorted(key[order], target := first + steps.astype(np.int64) - low)
    lacks = np.append(key[order], -1)[place] != target
    if lacks.any():
        s, step = np.unravel_index(lacks.argmax(), lacks.shape)
        raise ValueError(
            f"{name} must have a row for each series and step, got none of series "
            f"{str(series.ids[s])!r} at {steps[s, step]}, step {step + 1} of horizon={horizon} "
            f"({lacks.any(1).sum()} of {len(series)} series lack some)"
        )
    future = data[order[place]]
    if np.isnan(future).any():
        s, step, j = np.argwhere(np.isnan(future))[0]
        raise ValueError(
            f"{name} must be finite, got NaN in column {read[j]!r} of series "
            f"{str(series.ids[s])!r} at {steps[s, step]}"
        )
    return future
