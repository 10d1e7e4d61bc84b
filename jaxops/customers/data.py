"""An event log to purchases.

A purchase is what one customer buys within one period, a day by default: several rows of a day
count as one purchase, and their amounts are added.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data.columns import DATE, read_with_dates
from jaxops.data.tables import Source
from jaxops.data.text_numbers import as_numbers
from jaxops.model.exported.tables import none_such

Period = Literal["hour", "day", "week", "month", "year"]
Refunds = Literal["error", "drop", "net"]
HOURS = {"hour": 1, "day": 24, "week": 168}
PERIODS = (*HOURS, "month", "year")


class Report(NamedTuple):
    """Counts that reading a log gives.

    Attributes:
        rows: rows of the source.
        refunds: rows of negative amount.
        merged: rows of a customer and period that an earlier row has.
        unmatched: the amount of refunds that was taken from no purchase: the total of the purchases
            less that of the rows.
    """

    rows: int
    refunds: int
    merged: int
    unmatched: float


@dataclass(frozen=True, eq=False)
class Purchases:
    """P purchases of C customers, in the order of the customers' ids, then of time.

    Attributes:
        customers: (C,) the ids, increasing: int64 where the source has integers, else `str`.
        starts: (C + 1,) int64; customer c has the purchases starts[c] to starts[c + 1].
        time: (P,) the number of the period since 1970, int64; or numbers as given, float64.
        amount: (P,) float64 of money, or None.
        period: within which purchases count as one; None where times are numbers.
        report: counts from reading.
        names: the columns of customers, times and amounts (or None) that were read.
        refunds: what was done with negative amounts.

    >>> log = purchases({"customer": ["b", "a", "a"], "time": ["2024-01-01"] * 2 + ["2024-01-09"]})
    >>> log.customers.tolist(), log.starts.tolist(), log.date(log.time[1])
    (['a', 'b'], [0, 2, 3], '2024-01-09')
    """

    customers: np.ndarray
    starts: np.ndarray
    time: np.ndarray
    amount: np.ndarray | None
    period: Period | None
    report: Report
    names: tuple[str, str, str | None]
    refunds: Refunds

    def date(self, time: Any) -> str:
        """A time as text: an hour, day, month or year, the last day of a week, or the number."""
        if self.period is None:
            return f"{time:g}"
        if self.period == "week":
            return str(np.datetime64(int(time) * 7 + 3, "D"))
        letter = self.period[0] if self.period == "hour" else self.period[0].upper()
        return str(np.array(int(time)).astype(f"datetime64[{letter}]"))

    def at(self, cutoff: Any, name: str = "cutoff") -> Any:
        """A date (or number) as a time of this log; None is the last.

        A day, month or year stands for all of it, also where hours are periods.

        Raises:
            ValueError: a date for numbers, a number for dates, neither, or a date within a week,
                month or year that is a period.
        """
        if cutoff is None:
            return self.time.max()
        number = isinstance(cutoff, int | float | np.integer | np.floating)
        if self.period is None:
            try:
                value = float(cutoff) if number or isinstance(cutoff, str) else np.nan
            except ValueError:
                value = np.nan
            if not np.isfinite(value):
                raise ValueError(f"{name} must be a number, as the log's times are, got {cutoff!r}")
            return value
        try:
            moment = None if number else np.datetime64(cutoff)
        except ValueError:
            moment = None
        if moment is None or np.isnat(moment):
            raise ValueError(f"{name} must be a date such as 2024-12-31, got {cutoff!r}")
        return _last_period(moment, self.period, f"{name} must be the last day of a", cutoff)

    def per_unit(self, unit: Period | None) -> float:
        """The number of periods in a unit of time; None is a day, or 1 where times are numbers.

        Raises:
            ValueError: a unit for numbers, an unknown one, or one of another calendar.
        """
        if self.period is None:
            if unit is not None:
                raise ValueError(f"unit must be None where times are numbers, got {unit!r}")
            return 1.0
        unit = unit or ("day" if self.period in HOURS else self.period)
        if unit not in PERIODS:
            raise ValueError(f"unit must be one of {', '.join(PERIODS)}, got {unit!r}")
        if unit == self.period:
            return 1.0
        if unit not in HOURS or self.period not in HOURS:
            raise ValueError(
                f"unit must be the period ({self.period!r}) where one of both is a month or a "
                f"year, got {unit!r}"
            )
        return HOURS[unit] / HOURS[self.period]

    def counts(self, until: Any) -> np.ndarray:
        """The number of purchases of each customer up to a time, with it: (C,) int64."""
        seen = np.concatenate([[0], np.cumsum(self.time <= until)])
        return np.diff(seen[self.starts])

    def money(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The amount of each customer's purchases number `first` (with) to `last` (without)."""
        if self.amount is None:
            raise ValueError("log must have amounts, got none; read it with amount=")
        # not by differences of a running total, which rounds by what other customers spend
        ends = (self.starts[:-1] + np.stack([first, last])).T.ravel()
        sums = np.add.reduceat(np.append(self.amount, 0.0), ends)[::2]
        return np.where(first == last, 0.0, sums)


def purchases(
    source: Source | Purchases,
    *,
    customer: str = "customer",
    time: str = "time",
    amount: str | None = None,
    period: Period | None = None,
    refunds: Refunds = "error",
) -> Purchases:
    """Read an event log.

    Rows with an amount of 0 are purchases. Of refunds, rows of negative amount, "drop" leaves them
    out; "net" adds them to the purchases of the customer in the same period, and a period with a
    refund whose sum is not above 0 has no purchase. Neither takes money from earlier periods.

    Args:
        source: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name; or
            `Purchases`, which stay as they are, without other settings.
        customer: the column of ids.
        time: the column of times: dates, texts of them such as 2024-12-31T18:30:00Z, or numbers,
            which stay as they are. Dates are in UTC.
        amount: the column of amounts of money.
        period: within which a customer's rows are one purchase, by default a day of UTC; weeks
            begin on Monday. Where times are numbers, rows of equal time are one purchase.
        refunds: what to do with negative amounts.

    Raises:
        ValueError: no rows; a missing column; a missing customer, time or amount, a time that is no
            date, or a negative amount, with its row; whole numbers such as 20241231 for dates;
            nothing but refunds; a setting beside `Purchases`.

    >>> table = {"who": [7, 7, 7], "day": ["2024-05-01", "2024-05-01", "2024-05-03"]}
    >>> table["paid"] = [5.0, 2.5, 4.0]
    >>> log = purchases(table, customer="who", time="day", amount="paid")
    >>> log.amount.tolist(), log.report.merged
    ([7.5, 4.0], 1)
    """
    pd = require("pandas", extra="data")

    if isinstance(source, Purchases):
        _no_settings(customer=customer, time=time, amount=amount, period=period, refunds=refunds)
        return source
    names = [name for name in (customer, time, amount) if name is not None]
    if len(set(names)) < len(names):
        raise ValueError(f"customer, time and amount must be distinct, got {', '.join(names)}")
    for name, value, known in (
        ("period", period, (None, *PERIODS)),
        ("refunds", refunds, ("error", "drop", "net")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    if amount is None and refunds != "error":
        raise ValueError(f'refunds must be "error" without amount, got {refunds!r}')
    columns, dates = read_with_dates(source, names, exact=(customer,), id=customer)
    where = f"{source}: column" if isinstance(source, str | Path) else "column"
    ids, moments = columns[customer], columns[time]
    if ids.dtype.kind == "O":
        none_such(ids == "", ids, f"{where} {customer!r} must have an id in every row")
    times = _times(moments, f"{where} {time!r}", time in dates, period)
    period = (period or "day") if time in dates else None
    paid, refund = np.zeros(len(ids)), np.zeros(len(ids), bool)
    if amount is not None:
        paid = _amounts(columns[amount], f"{where} {amount!r}", refunds)
        refund = paid < 0
    report, total = Report(len(ids), int(refund.sum()), 0, 0.0), paid.sum()
    if refunds == "drop" and refund.any():
        ids, times, paid, refund = (column[~refund] for column in (ids, times, paid, refund))
    if len(ids) == 0:
        raise ValueError(f"source must have a purchase, got {report.refunds:,} refunds alone")
    codes, known = pd.factorize(ids, sort=True)
    order = np.lexsort((times, codes))
    codes, times = codes[order], times[order]
    first = np.concatenate([[True], (np.diff(codes) != 0) | (np.diff(times) != 0)])
    place = np.flatnonzero(first)
    report = report._replace(merged=len(first) - len(place))
    paid, size = (np.add.reduceat(x[order], place) for x in (paid, np.abs(paid)))
    kept = ~(np.logical_or.reduceat(refund[order], place) & (paid <= 1e-9 * size))
    if not kept.any():
        raise ValueError(f"source must have a purchase, got {report.rows:,} rows that refunds undo")
    codes, times, paid = codes[place][kept], times[place][kept], paid[kept]
    report = report._replace(unmatched=float(paid.sum() - total) if report.refunds else 0.0)
    some, counts = np.unique(codes, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)])
    spent = paid if amount else None
    read = (customer, time, amount)
    return Purchases(np.asarray(known)[some], starts, times, spent, period, report, read, refunds)


def _no_settings(**settings: Any) -> None:
    defaults = {"customer": "customer", "time": "time", "refunds": "error"}
    for name, value in settings.items():
        if value != defaults.get(name):
            raise ValueError(
                f"{name} must be left out for Purchases, which are read already, got {value!r}"
            )


def covariates_of(source: Source, customer: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a table of customers, all numbers, with one row for each of the ids.

    Args:
        source: a table with the column of ids and others; further customers are left out.
        customer: the column of ids.
        ids: (C,) the customers.

    Raises:
        ValueError: a customer without a row, or with two; a column that is not of finite numbers,
            such as one of dates.

    >>> covariates_of({"id": ["b", "a"], "age": [30, 40]}, "id", np.array(["a"]))["age"]
    array([40.])
    """
    pd = require("pandas", extra="data")

    table, dates = read_with_dates(source, exact=(customer,), id=customer)
    if dates:
        raise ValueError(
            f"column {dates[0]!r} must be numbers, got dates; give the time since one date instead"
        )
    if customer not in table:
        raise ValueError(f"covariates must have a column {customer!r}, got {', '.join(table)}")
    known = pd.Index(np.asarray(table.pop(customer)).astype(str))
    if known.has_duplicates:
        raise ValueError(
            f"column {customer!r} must be distinct, got {known[known.duplicated()][0]!r}"
        )
    place = known.get_indexer(np.asarray(ids).astype(str))
    none_such(place < 0, np.asarray(ids), f"covariates must have a row for every {customer}")
    found = {}
    for name, column in table.items():
        what = f"column {name!r}"
        found[name] = _amounts(column, what, "drop")[place]
    return found


def _times(values: np.ndarray, what: str, dated: bool, period: Period | None) -> np.ndarray:
    """Numbers of periods since 1970, int64, of days since 1970; or numbers as they are."""
    if values.dtype.kind == "O":
        bad = np.array([not re.match(DATE, text) for text in values.tolist()])
        none_such(bad, values, f"{what} must be dates such as 2024-12-31, or numbers")
        raise ValueError(f"{what} must be dates or numbers, got categories; make it dates first")
    none_such(~np.isfinite(values), values, f"{what} must have a time in every row")
    if not dated:
        if period is not None:
            raise ValueError(f"{what} must be dates, as period is {period!r}, got numbers")
        year, month, day = values // 10_000, values // 100 % 100, values % 100
        parts = ((year, 1900, 2200), (month, 1, 12), (day, 1, 31))
        digits = (values == np.round(values)) & np.all(
            [(a <= x) & (x <= b) for x, a, b in parts], 0
        )
        if digits.all():
            raise ValueError(
                f"{what} must be dates such as 2024-12-31, or numbers of some unit of time, got "
                f"{values[0]:.0f} in row 0 (counted from 0), a date as a number; read it by "
                'pandas.to_datetime(column, format="%Y%m%d")'
            )
        return values
    return _periods(values, period or "day")


def _periods(days: np.ndarray, period: Period) -> np.ndarray:
    if period in ("month", "year"):
        day = np.floor(days).astype("datetime64[D]")
        return day.astype(f"datetime64[{period[0].upper()}]").astype(np.int64)
    shift = 3 if period == "week" else 0  # 1970-01-01 is a Thursday
    # days are exact to a microsecond only
    return np.floor((days + shift) * (24 / HOURS[period]) + 1e-9).astype(np.int64)


def _last_period(moment: np.datetime64, period: Period, wanted: str, given: Any) -> Any:
    """The number of the period that a date ends; hours and days may be cut off within."""
    unit: Any = np.datetime_data(moment)[0]
    short = np.timedelta64(1, "ms")
    last = moment.astype("datetime64[us]")
    if unit in ("Y", "M", "W", "D"):
        last = (moment + np.timedelta64(1, unit)).astype("datetime64[us]") - short
    elif last == last.astype("datetime64[D]") and period != "hour":
        last = last + np.timedelta64(1, "D") - short
    times = np.array([last, last + short]) - np.datetime64(0, "us")
    this, following = _periods(times / np.timedelta64(1, "D"), period)
    if this == following and period not in ("hour", "day"):
        raise ValueError(f"{wanted} {period} (the log's period), got {given!r}")
    return this


def _amounts(values: np.ndarray, what: str, refunds: Refunds) -> np.ndarray:
    if values.dtype.kind == "O":
        pa = require("pyarrow", extra="data")
        numbers = as_numbers(pa.array(values))
        if numbers is None:
            bad = np.array([as_numbers(pa.array([text])) is None for text in values.tolist()])
            none_such(bad, values, f"{what} must be numbers")
            raise ValueError(f"{what} must be numbers")
        values = numbers.to_numpy(zero_copy_only=False).astype(np.float64)
    none_such(~np.isfinite(values), values, f"{what} must have a number in every row")
    if refunds == "error":
        hint = '; say refunds="drop" or refunds="net"'
        none_such(values < 0, values, f"{what} must be at least 0", hint)
    return values
