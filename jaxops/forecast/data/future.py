"""What is known of the time to be forecast."""

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
    """The known covariates of the steps behind each series' end, in the order of `known_names`.

    Columns of `dates`, and features of the calendar that the table lacks, are computed; all
    others are read from the table. It may hold other rows and other series as well, so the table
    that the series were read from will do where it reaches far enough.

    Args:
        series: as they end now.
        horizon: H, steps.
        source: a table, as in `series`, with a row for each series and step.
        id: the column of the series' id; None: the rows are for all series alike.
        time: the column of times.
        dates: those given to `calendar`, the future ones too.
        encoding: of a CSV file.

    Returns:
        float32 (S, H, K).

    Raises:
        ValueError: the table ends before the horizon does, for a series and a time that are
            named; a row found twice; a number that is missing; a column that is not there.

    >>> from jaxops import forecast
    >>> table = {"id": ["a"] * 2, "time": [7, 8], "value": [1, 2], "price": [3, 3]}
    >>> one = forecast.series(table, known=["price"])
    >>> future_covariates(one, 2, {"id": ["a"] * 3, "time": [8, 10, 9], "price": [3, 4, 5]})
    array([[[5.],
            [4.]]], dtype=float32)
    """
    if horizon < 1:
        raise ValueError(f"horizon={horizon}: 1 or more wanted")
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
        columns = calendar_columns(times.reshape(-1), series.frequency, made, dates)
        future[:, :, [names.index(x) for x in made]] = columns.reshape(*times.shape, -1)
    if read:
        if table is None:
            raise ValueError(f"source: None found, a table with columns {', '.join(read)} wanted")
        part = _read(series, *table, read, horizon, id, time)
        future[:, :, [names.index(x) for x in read]] = part
    return future


def _read(
    series: Series, name: str, table: Any, read: list[str], horizon: int, id: str | None, time: str
) -> np.ndarray:
    """The columns of a table behind the series' ends, (S, H, len(read))."""
    pd = require("pandas", extra="data")

    for column in (time, *read):
        if column not in table.columns:
            found = ", ".join(map(str, table.columns))
            raise ValueError(f"{name}: no column {column!r}; columns found: {found}")
    wanted, when = series.future(horizon), reading.times(table[time], f"{name}: column {time!r}")
    grid.check(series.frequency, when)
    of, end = np.zeros(len(when), np.int64), np.full(len(when), wanted.min())
    if id is not None:
        code, ids = tables.ids(table[id], f"{name}: column {id!r}")
        of = pd.Index(series.ids).get_indexer(pd.Index(ids.astype(str)))[code]
        end = wanted[of, 0]
    rows = np.flatnonzero((of >= 0) & (when >= end) & (when <= wanted.max()))
    data = reading.numbers(table[read].iloc[rows], name)

    # a number for each series and time, by which the rows are found
    low, span = wanted.min().astype(np.int64), np.ptp(wanted).astype(np.int64) + 1
    key = of[rows] * span + when[rows].astype(np.int64) - low
    order = np.argsort(key, kind="stable")
    again = np.diff(key[order]) == 0
    if again.any():
        row = rows[order[again.argmax()]]
        at = "" if id is None else f"series {str(series.ids[of[row]])!r} at "
        raise ValueError(f"{name}: {at}{when[row]}: found twice, one row for each time wanted")
    first = np.zeros((len(series), 1), np.int64)
    if id is not None:
        first[:, 0] = np.arange(len(series)) * span
    place = np.searchsorted(key[order], asked := first + wanted.astype(np.int64) - low)
    found = np.append(key[order], -1)[place] == asked
    if not found.all():
        s, step = np.unravel_index((~found).argmax(), found.shape)
        raise ValueError(
            f"{name}: series {str(series.ids[s])!r}: no row at {wanted[s, step]}, the step "
            f"{step + 1} of horizon={horizon} behind its end; known covariates of all steps wanted "
            f"({(~found.all(1)).sum()} of {len(series)} series lack some)"
        )
    future = data[order[place]]
    if np.isnan(future).any():
        s, step, j = np.argwhere(np.isnan(future))[0]
        raise ValueError(
            f"{name}: column {read[j]!r}: series {str(series.ids[s])!r} at {wanted[s, step]}: NaN "
            "found, a finite number wanted"
        )
    return future
