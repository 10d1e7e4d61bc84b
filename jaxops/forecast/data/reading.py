"""Reads long or wide tables as series of one regular frequency."""

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

    A "long" table has a row for each series and time. A wide table has a row for each time. Its
    columns are one series each ("series"), or the channels of one series ("channels"). Rows may
    come in any order. Ids are kept as text, in the order of their first appearance. `report` of the
    result counts the unsorted rows, duplicates, gaps and missing numbers.

    Args:
        source: a CSV file (also .gz) or a Parquet file; a pandas frame, whose times are a column or
            its index; a frame of polars or PyArrow; or a mapping from names to arrays.
        id: the column of the series' id, text or integers, in a long table.
        time: the column of times. It contains dates or periods, their text in ISO 8601, quarters
            such as "2024Q1", or integers, which are read as counts (20240131 is not a date). Times
            with a zone or an offset from UTC become local dates if steps are a day or longer, and
            times in UTC otherwise.
        value: the columns of values: the channels, or with layout "series" the series. The default
            is "value" for a long table, and for a wide table all columns that no other argument
            names.
        known: columns of covariates whose future is known, such as promotions. With layout "series"
            they apply to all series.
        past: columns of covariates whose future is not known; not with layout "series".
        static: columns with one number for each series, repeated in all its rows; not with layout
            "series".
        layout: "long", "series" or "channels". A column of layout "series" may begin late and
            end early: missing numbers at its ends are not part of the series.
        frequency: a pandas alias ("15min", "h", "D", "B", "W-MON", "MS", "QE-DEC"); an offset, such
            as `CustomBusinessDay` with holidays; or for counts a whole number such as "1". By
            default it is inferred as the most frequent step. Daily times that cover three weeks and
            never fall on some weekdays have a frequency without these weekdays.
        zone: a time zone such as "Europe/Berlin"; by default the zone of the column's own type. If
            steps are a day or longer, times with an offset from UTC become dates of this zone.
            Shorter steps stay in UTC, and `calendar` reads the clock of this zone. Give the zone
            for text with offsets, and for times in UTC that are written without an offset.
        fill: how to fill gaps, and missing numbers in given rows: "zero", "previous" (the number
            before, in the same series) or "linear" (interpolated between the numbers before and
            after). Give one for all columns, or one by column. By default gaps and missing numbers
            are errors. For backtests use "previous": with "linear" a context that ends in a gap
            would contain information from after it.
        duplicates: what to do with several rows of the same series and time: "error"; "sum" or
            "mean" of their values, with the mean of their covariates; or keep the "last" row.
        end: "latest" fills each series up to the latest time of the table, and a time fills it up
            to that time. `fill` says how, such as zeros for sales. By default each series ends with
            its own last row and is forecast from there; `report` counts the series that end early.
        encoding: encoding of a CSV file.

    Returns:
        The series. Values and covariates are float32.

    Raises:
        ValueError: a column is missing or not numeric; a time or an id is missing; a time is not
            one of the frequency; there is a gap, a duplicate or a missing number, and `fill` or
            `duplicates` does not say what to do; a static column changes; a number is infinite; the
            numbers of a column differ by less than float32 can tell; or there are no rows.

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
    """The column of times and how to read it."""

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
    """One name, or several, as a tuple."""
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
        needed: names that must exist when all columns are read.
        encoding: encoding of a CSV file.
        id: the column whose text is kept as it is, such as "007" and "NA".
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
    """The source. A pandas source whose times are in its index gets them as a column."""
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

    Times with a zone or an offset become times in UTC, or local dates if steps are a day or longer.
    Without a frequency, steps count as a day or longer if all times have the same time of day.
    """
    pd = require("pandas", extra="data")

    asked = zone
    none_missing(column, what, "a time for every row")
    if column.dtype.kind in "iu":
        return np.asarray(column.to_numpy(np.int64)), ""
    if column.dtype.kind in "fb":
        raise ValueError(f"{what} must be whole numbers or dates, got {column.dtype}")
    # a date occurs in many rows, so each distinct one is parsed once
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
    clock = seconds  # times without a zone are what a clock shows
    if local is not utc and asked != "UTC":
        clock = grid.on_the_clock(seconds, zone) if zone else local.to_numpy().astype("M8[s]")
    # Days in UTC, stored with another zone, may have the same time of day in UTC only.
    clock = clock if _daily(clock) or not _daily(seconds) else seconds
    days = _daily(clock) if frequency is None else grid.long(frequency)
    return (clock[place], "") if days else (seconds[place], zone)


def _daily(times: np.ndarray) -> bool:
    """Whether there are several times and all have the same time of day."""
    of_day = times - times.astype("datetime64[D]")
    return len(times) > 1 and bool((of_day == of_day[0]).all())


def _parsed(unique: np.ndarray, what: str) -> tuple[Any, Any]:
    """Dates from text: in UTC, and as written before the offset.

    If no text has an offset, both are the same object.
    """
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
    """Columns of a frame as float32 (N, W), with NaN for missing numbers; see `check_rounding`."""
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
    """Read a long table, or a table of one series whose columns are its channels."""
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
    """Read a wide table with a series in each column, as a long table.

    Missing numbers at the ends of a column get no row.
    """
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
