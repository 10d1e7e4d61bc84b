"""Tables, long or wide, to series of one regular frequency."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data import tables
from jaxops.data.dates import utc as dates_in_utc
from jaxops.data.tables import Source, none_missing
from jaxops.forecast.data import grid
from jaxops.forecast.data.regular import Duplicates, Fill, Groups, Table, regular
from jaxops.forecast.data.series import Report, Series, check_rounding

Layout = Literal["long", "series", "channels"]
MISSING = ("", "nan", "NaN", "NA", "null")


def series(
    source: Source,
    *,
    id: str = "id",
    time: str = "time",
    value: str | Sequence[str] | None = None,
    known: Sequence[str] = (),
    past: Sequence[str] = (),
    static: Sequence[str] = (),
    layout: Layout = "long",
    frequency: Any = None,
    zone: str = "",
    fill: Fill | Mapping[str, Fill] | None = None,
    duplicates: Duplicates = "error",
    end: object = None,
    encoding: str = "utf-8",
) -> Series:
    """Read series from a table.

    A "long" table has a row for each series and time; a wide one a row for each time, and its
    columns are one series each ("series"), or the channels of one series ("channels"). Rows may
    come in any order; ids are kept as text, in the order of first appearance. Counts of unsorted
    rows, duplicates, gaps and missing numbers are in `report` of the series.

    Args:
        source: a file of CSV (.gz too) or Parquet, a frame of pandas (with its times as a column or
            as its index), polars or PyArrow, or arrays by name.
        id: the column of the series' id, text or integers, of a long table.
        time: the column of times: integers, which are counts (20240131 too); dates or periods, or
            their text in ISO 8601, or quarters such as "2024Q1". With a zone or an offset from UTC,
            those of steps of a day and more are the local dates, and others become UTC.
        value: the columns of values: the channels, or with layout "series" the series. By default
            "value" of a long table, and of a wide one all columns not named otherwise.
        known: columns of covariates that are known for the future too, such as promotions; of
            layout "series" the same for all.
        past: columns of covariates that are known up to now only; not of layout "series".
        static: columns with one number for each series, in all of its rows; not of layout "series".
        layout: "long", "series" or "channels". A column of layout "series" may begin late and
            end early: missing numbers at its ends are not part of the series.
        frequency: a pandas alias ("15min", "h", "D", "B", "W-MON", "MS", "QE-DEC") or offset, such
            as `CustomBusinessDay` with holidays, or of counts a whole number such as "1"; inferred
            as the most frequent step by default. Days of which some weekdays never occur, over
            three weeks, have a frequency without these.
        zone: such as "Europe/Berlin", whose local dates are meant, and whose clock `calendar` reads
            for shorter steps, which stay of UTC. Needed for text with offsets, and for times of UTC
            without any; by default that of the column's own type.
        fill: how to fill gaps, and numbers missing in given rows: "zero", "previous" (of the same
            series) or "linear" (between the two beside it); one for all columns, or by column.
            By default both are errors. For backtests use "previous": with "linear" a context that
            ends in a gap would contain information from after it.
        duplicates: of rows of the same series and time: "error"; "sum" or "mean" of the values,
            with the mean of the covariates; or the "last" row.
        end: "latest", or a time: each series is filled up to the last row of all, or to that time,
            as `fill` says, such as sales with zeros. By default each ends with its own last row,
            and is forecast from there; `report` counts those that end early.
        encoding: of a CSV file.

    Returns:
        The series, values and covariates as float32.

    Raises:
        ValueError: a column that is missing or not numeric; a missing time or id; a time off the
            frequency; a gap, a duplicate or a missing number, unless `fill` or `duplicates` says
            what to do; a static column that changes; an infinite number; a column whose numbers
            differ by less than float32 can tell; no rows.

    >>> table = series({"id": ["a", "a", "b", "a"], "time": ["2024-01-02", "2024-01-01",
    ...                 "2024-01-02", "2024-01-04"], "value": [2, 1, 7, 4]}, fill="linear")
    >>> table.ids.tolist(), table.frequency, table.offsets.tolist(), table.values[:, 0].tolist()
    (['a', 'b'], 'D', [0, 4, 5], [1.0, 2.0, 3.0, 4.0, 7.0])
    >>> print(table.report)
    4 rows read, 1 unsorted, 0 duplicates, 1 rows missing in 1 series, 0 numbers missing, ...
    """
    _word("layout", layout, ("long", "series", "channels"))
    _word("duplicates", duplicates, ("error", "sum", "mean", "last"))
    for argument, column in (("id", id), ("time", time)):
        if not isinstance(column, str | int):
            raise ValueError(f"{argument} must be the name of one column, got {column!r}")
    known, past, static = names(known), names(past), names(static)
    frequency = None if frequency is None else grid.canonical(frequency)
    if layout == "series" and (past or static):
        raise ValueError('past and static must be empty with layout="series", got columns')
    if layout == "long" and value is None:
        value = "value"
    keys = (id, time) if layout == "long" else (time,)
    chosen = None if value is None else [*keys, *names(value), *known, *past, *static]
    name, columns = frame(source, chosen, keys, encoding, id)
    others = {*keys, *known, *past, *static}
    values = [str(c) for c in columns if c not in others] if value is None else [*names(value)]
    if not values:
        raise ValueError(f"{name} must have a column of values, got none")
    groups = Groups((*values,), known, past, static)
    how = Time(time, frequency, zone)
    table = (_wide if layout == "series" else _long)(name, columns, id, how, groups, layout)
    return regular(table, frequency, fill, duplicates, end)


class Time(NamedTuple):
    """The column of times, and how it is read."""

    column: str
    frequency: str | None
    zone: str

    def of(self, name: str, columns: Any) -> tuple[np.ndarray, str]:
        """See `times`."""
        what = f"{name}: column {self.column!r}"
        return times(columns[self.column], what, self.frequency, self.zone)


def _word(argument: str, value: Any, words: Sequence[str]) -> None:
    if value not in words:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, words))}, got {value!r}")


def names(columns: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as several."""
    return (columns,) if isinstance(columns, str) else tuple(columns)


def frame(
    source: Source,
    chosen: Sequence[str] | None,
    needed: Sequence[str],
    encoding: str,
    id: str | None = None,
) -> tuple[str, Any]:
    """The source's name for messages, and the chosen columns (or all) as a pandas frame.

    Args:
        source: see `series`.
        chosen: names of columns; None for all.
        needed: names that have to exist, where all are read.
        encoding: of a CSV file.
        id: the column whose text is left as it is, such as "007" and "NA".
    """
    text = [id] if id is not None and id in needed else []

    def read(path: str | Path) -> Any:
        return tables.csv_frame(path, chosen, encoding, MISSING, text)

    try:
        return tables.source_frame(_with_times(source, needed[-1]), chosen, needed, read)
    except ValueError as error:
        if text and f"must have a column {id!r}" in str(error):
            raise ValueError(f'{error}; layout="channels" reads one series without ids') from None
        raise


def _with_times(source: Any, time: str) -> Any:
    """The source; of pandas, with the times of the index as a column."""
    pd = require("pandas", extra="data")

    if isinstance(source, pd.Series):
        source = source.to_frame("value" if source.name is None else source.name)
    if not isinstance(source, pd.DataFrame) or time in source.columns:
        return source
    if source.index.name is None and isinstance(source.index, pd.DatetimeIndex | pd.PeriodIndex):
        source = source.rename_axis(time)
    return source.reset_index() if time in source.index.names else source


def times(
    column: Any, what: str, frequency: str | None = None, zone: str = ""
) -> tuple[np.ndarray, str]:
    """Times as int64 or datetime64[s] (N,), and the zone of their clock, see `Series`.

    Times with a zone or an offset are of UTC; but local where steps are of a day or more, which
    without a frequency is where all have one time of the day.
    """
    pd = require("pandas", extra="data")

    asked = zone
    none_missing(column, what, "a time for every row")
    if column.dtype.kind in "iu":
        return np.asarray(column.to_numpy(np.int64)), ""
    if column.dtype.kind in "fb":
        raise ValueError(f"{what} must be whole numbers or dates, got {column.dtype}")
    # a date is in many rows: each is parsed once
    place, unique = pd.factorize(column)
    if isinstance(unique, pd.DatetimeIndex):
        utc = unique.tz_convert(None) if unique.tz is not None else unique
        local = unique.tz_localize(None) if unique.tz is not None else unique
        zone = zone or grid.name_of(unique.tz)
    else:
        utc, local = _parsed(np.asarray(unique, object), what)
    exact, zone = utc.to_numpy(), "" if zone == "UTC" else zone
    seconds = exact.astype("datetime64[s]")
    if (seconds != exact).any():
        raise ValueError(f"{what} must be whole seconds, got {exact[(seconds != exact).argmax()]}")
    clock = seconds  # without a zone they are what a clock shows
    if local is not utc and asked != "UTC":
        clock = grid.on_the_clock(seconds, zone) if zone else local.to_numpy().astype("M8[s]")
    # days of UTC in a column of another zone have one time of the day there alone
    clock = clock if _daily(clock) or not _daily(seconds) else seconds
    days = _daily(clock) if frequency is None else grid.long(frequency)
    return (clock[place], "") if days else (seconds[place], zone)


def _daily(times: np.ndarray) -> bool:
    """Whether all of several times have one time of the day."""
    of_day = times - times.astype("datetime64[D]")
    return len(times) > 1 and bool((of_day == of_day[0]).all())


def _parsed(unique: np.ndarray, what: str) -> tuple[Any, Any]:
    """Text of dates: of UTC, and as written with an offset; the same object without any."""
    pd = require("pandas", extra="data")

    texts = pd.Series(unique).astype(str)
    if texts.str.fullmatch(r"\d{4}-?Q[1-4]").all():
        quarters = pd.DatetimeIndex(pd.PeriodIndex(texts, freq="Q").to_timestamp())
        return quarters, quarters
    bare = texts.str.replace(r"^([^T ]+[T ][^Z+-]*)(?:Z|[+-].*)$", r"\1", regex=True)
    wanted = "whole numbers or dates in ISO 8601 (pandas.to_datetime reads other forms)"
    utc = pd.DatetimeIndex(dates_in_utc(texts, what, wanted))
    if (bare == texts).all():
        return utc, utc
    return utc, pd.DatetimeIndex(dates_in_utc(bare, what, wanted))


def numbers(
    columns: Any, what: str, ids: np.ndarray | None = None, code: np.ndarray | None = None
) -> np.ndarray:
    """Columns of a frame as float32 (N, W), NaN for missing; see `check_rounding`."""
    table = np.empty((len(columns), columns.shape[1]), np.float32)
    for j, (name, column) in enumerate(columns.items()):
        if column.dtype.kind not in "biuf":
            pd = require("pandas", extra="data")

            bad = pd.to_numeric(column, errors="coerce").isna() & column.notna()
            odd = column[bad if bad.any() else column.notna()]
            value = repr(odd.iloc[0]) if len(odd) else "nothing"
            raise ValueError(f"{what}: column {name!r} must be numbers, got {value}")
        with np.errstate(over="ignore"):
            table[:, j] = column.to_numpy(np.float32, na_value=np.nan)
        infinite = np.isinf(table[:, j])
        if infinite.any():
            raise ValueError(
                f"{what}: column {name!r} must be finite float32, got "
                f"{column.iloc[int(infinite.argmax())]} in row {infinite.argmax()} (counted from 0)"
            )
        exact = column.to_numpy(np.float64, na_value=np.nan)
        check_rounding(exact, f"{what}: column {name!r}", ids, code)
    return table


def _long(name: str, columns: Any, id: str, time: Time, groups: Groups, layout: Layout) -> Table:
    """A long table; or one series, its columns the channels."""
    if layout == "long":
        code, names = tables.ids(columns[id], f"{name}: column {id!r}")
        ids = names.astype(str)
    else:
        code, ids = np.zeros(len(columns), np.int64), np.asarray(["series"])
    when, zone = time.of(name, columns)
    values = numbers(columns[list(groups.values)], name, ids, code)
    others = numbers(columns[[*groups.known, *groups.past, *groups.static]], name)
    data = np.concatenate([values, others], axis=1)
    return Table(name, ids, code, when, data, groups, Report(len(columns)), zone)


def _wide(name: str, columns: Any, id: str, time: Time, groups: Groups, layout: Layout) -> Table:
    """A wide table, with a series in each column, as a long one without its missing ends."""
    when, zone = time.of(name, columns)
    unsorted = int((np.diff(when).astype(np.int64) < 0).sum())
    if unsorted:
        order = np.argsort(when, kind="stable")
        when, columns = when[order], columns.iloc[order]
    wide = numbers(columns[list(groups.values)], name)
    count, width = wide.shape
    exists = ~np.isnan(wide)
    if not exists.any(0).all():
        empty = groups.values[int((~exists.any(0)).argmax())]
        raise ValueError(f"{name}: column {empty!r} must have at least 1 number, got 0")
    first, last = exists.argmax(0), count - 1 - exists[::-1].argmax(0)
    row = np.arange(count)[:, None]
    inside = ((row >= first) & (row <= last)).T  # (S, N)
    code, row = np.nonzero(inside)
    known = numbers(columns[list(groups.known)], name)[row]
    data = np.concatenate([wide.T[inside][:, None], known], axis=1)
    report = Report(count, unsorted=unsorted, trimmed=count * width - len(row))
    ids, groups = np.asarray(groups.values), groups._replace(values=("value",))
    return Table(name, ids, code, when[row], data, groups, report, zone)
