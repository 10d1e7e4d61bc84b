"""Regular times: hours, business days, months, or plain counts."""

import contextlib
import re
from functools import lru_cache
from typing import Any

import numpy as np

from jaxops._optional import require

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
DAY = 86_400


OLD = {"H": "h", "T": "min", "S": "s", "M": "ME", "Q": "QE", "Y": "YE", "A": "YE", "BM": "BME"}
OLD |= {"AS": "YS", "BQ": "BQE", "BA": "BYE", "BY": "BYE", "BAS": "BYS"}
"""Aliases of pandas before 2.2, which saved files may contain, and the present aliases."""
OPEN = "C:"
"""How the name of custom business days begins. A digit follows for each day from Monday, 1 for an
open day, and after another colon the closed dates: "C:1111110:2024-12-25,2024-12-26"."""


def canonical(frequency: Any) -> str:
    """The unique name of a frequency, which may have several aliases.

    Args:
        frequency: an alias of any version of pandas; an offset of pandas, which may be a
            `CustomBusinessDay` with its own days and holidays; or, for counts, a whole number as
            text.

    Raises:
        ValueError: pandas does not know the frequency, or it goes backwards.

    >>> [canonical(name) for name in ("W", "60min", "24h", "T", "QS", "007")]
    ['W-SUN', 'h', 'D', 'min', 'QS-JAN', '7']
    >>> import pandas as pd
    >>> canonical(pd.offsets.CustomBusinessDay(weekmask="Sun Mon Tue Wed Thu"))
    'C:1111001'
    """
    if not isinstance(frequency, str):
        frequency = _named(frequency)
    return _canonical(frequency)


@lru_cache(maxsize=64)
def _canonical(frequency: str) -> str:
    fixed = step(frequency)
    if frequency.isdecimal():
        return str(fixed)
    if fixed is not None:
        return _alias(fixed)
    return _named(offset(frequency))


def _named(frequency: Any) -> str:
    """The name of a pandas offset, from which the offset can be made again."""
    pd = require("pandas", extra="data")

    text = getattr(frequency, "freqstr", None)
    if isinstance(frequency, pd.offsets.CustomBusinessDay) and frequency.n == 1:
        calendar = frequency.calendar
        open_days = "".join("01"[int(day)] for day in calendar.weekmask)
        closed = ",".join(np.datetime_as_string(calendar.holidays))
        whole = OPEN + open_days + (f":{closed}" if closed else "")
        return "B" if whole == f"{OPEN}1111100" else whole
    with contextlib.suppress(ValueError):
        if isinstance(text, str) and offset(text) == frequency:
            return text
    raise ValueError(
        "frequency must be text, such as '1' or 'D', or an offset of pandas that has an alias, "
        f"such as pandas.offsets.MonthEnd(), got {frequency!r}"
    )


@lru_cache(maxsize=64)
def offset(frequency: str) -> Any:
    """The pandas offset with a given name.

    Raises:
        ValueError: pandas does not know the name, or the offset goes backwards.
    """
    pd = require("pandas", extra="data")
    to_offset = require("pandas.tseries.frequencies", extra="data").to_offset

    form = (
        'frequency must be an alias of pandas ("h", "D", "B", "W-MON", "MS") or a whole number as '
        f"text, got {frequency!r}"
    )
    name = re.sub(r"^(\d*)([A-Z]+)(?=-|$)", lambda m: m[1] + OLD.get(m[2], m[2]), frequency)
    try:
        if name.startswith(OPEN):
            mask, _, closed = name.removeprefix(OPEN).partition(":")
            days = closed.split(",") if closed else []
            return pd.offsets.CustomBusinessDay(weekmask=mask, holidays=days)
        found = to_offset(name)
    except ValueError as error:
        raise ValueError(f"{form} ({error})") from None
    if found is None or found.n < 1:
        raise ValueError(form)
    return found


@lru_cache(maxsize=64)
def step(frequency: str) -> int | None:
    """The length of a step in seconds, or in counts. None if the steps differ in length.

    Raises:
        ValueError: pandas does not know the frequency, or it goes backwards.
    """
    pd = require("pandas", extra="data")

    if frequency.isdecimal() and int(frequency) > 0:
        return int(frequency)
    found = offset(frequency)
    if isinstance(found, pd.offsets.Day):
        return int(found.n) * DAY
    if isinstance(found, pd.offsets.Tick):
        seconds = pd.Timedelta(found) / pd.Timedelta("1s")
        if seconds < 1 or seconds % 1:
            raise ValueError(f"frequency must be whole seconds, got {frequency!r}")
        return int(seconds)
    return None


def same(one: str, other: str) -> bool:
    """Whether two frequencies have the same steps: "h" and "60min", "7D" and "W-SUN".

    >>> same("H", "60min"), same("W-SUN", "7D"), same("W-SUN", "W-MON"), same("1", "D")
    (True, True, False, False)
    """
    names = {canonical(one), canonical(other)}
    return len(names) == 1 or ("7D" in names and any(re.match("W-", name) for name in names))


def long(frequency: str) -> bool:
    """Whether a step is a day or longer."""
    fixed = None if frequency.isdecimal() else step(frequency)
    return not frequency.isdecimal() and (fixed is None or fixed >= DAY)


def name_of(zone: Any) -> str:
    """The name by which a column's time zone can be found again; "" if it has none."""
    if zone is None:
        return ""
    try:
        on_the_clock(np.zeros(1, "datetime64[s]"), str(zone))
    except ValueError:
        return ""
    return str(zone)


def on_the_clock(times: np.ndarray, zone: str) -> np.ndarray:
    """Convert times in UTC to the local clock of a zone, datetime64[s]. "" leaves them in UTC.

    Raises:
        ValueError: the zone is unknown.

    >>> on_the_clock(np.array(["2024-07-01T04"], "datetime64[s]"), "America/New_York")
    array(['2024-07-01T00:00:00'], dtype='datetime64[s]')
    """
    if not zone:
        return times
    pd = require("pandas", extra="data")

    try:
        local = pd.DatetimeIndex(times).tz_localize("UTC").tz_convert(zone)
    except (KeyError, ValueError, TypeError, OSError):
        raise ValueError(
            f'zone must be a name such as "Europe/Berlin", or "", got {zone!r}'
        ) from None
    return np.asarray(local.tz_localize(None).to_numpy().astype("datetime64[s]"))


def check(frequency: str, times: np.ndarray) -> None:
    """Raise `ValueError` for counts with a frequency of dates, or for dates with one of counts."""
    step(frequency)
    counts = times.dtype.kind != "M"
    if frequency.isdecimal() != counts:
        form = 'a whole number such as "1"' if counts else 'an alias such as "h"'
        kind = "integers" if counts else "dates"
        raise ValueError(f"frequency must be {form}, as times are {kind}, got {frequency!r}")


def _range(first: Any, frequency: str, **until: Any) -> np.ndarray:
    pd = require("pandas", extra="data")

    grid = pd.date_range(pd.Timestamp(first), freq=offset(frequency), **until)
    return np.asarray(grid.to_numpy().astype("datetime64[s]"))


def places(times: np.ndarray, since: np.ndarray, frequency: str) -> tuple[np.ndarray, np.ndarray]:
    """The number of steps between times.

    Args:
        times: datetime64[s] or int64 (N,), not before `since`.
        since: (N,), the times to count from.
        frequency: the frequency of the steps.

    Returns:
        The number of steps, int64 (N,), and whether both times are times of the frequency, bool
        (N,).

    >>> days = np.array(["2024-01-01", "2024-03-01", "2024-03-05"], "datetime64[s]")
    >>> places(days, days[[0, 0, 0]], "MS")
    (array([0, 2, 3]), array([ True,  True, False]))
    """
    fixed = step(frequency)
    if fixed is not None:
        count, rest = np.divmod((times - since).astype(np.int64), fixed)
        return count, rest == 0
    pd = require("pandas", extra="data")

    grid = _range(since.min(), frequency, end=pd.Timestamp(times.max()))
    place, start = np.searchsorted(grid, times), np.searchsorted(grid, since)
    beyond = np.append(grid, np.datetime64("NaT", "s"))
    return place - start, (beyond[place] == times) & (beyond[start] == since)


def moved(times: np.ndarray, steps: np.ndarray | int, frequency: str) -> np.ndarray:
    """Move times by a number of steps; a negative number moves them to earlier times.

    Args:
        times: datetime64[s] or int64, times of the frequency.
        steps: int64, which must broadcast with `times`.
        frequency: the frequency of the steps.

    >>> moved(np.array(["2024-01-31"], "datetime64[s]"), np.array([1, -2]), "ME").astype("M8[D]")
    array(['2024-02-29', '2023-11-30'], dtype='datetime64[D]')
    """
    fixed = step(frequency)
    steps = np.asarray(steps, np.int64)
    if fixed is not None:
        return np.asarray(times + (steps * fixed).astype(_difference(times)))
    if times.size == 0 or steps.size == 0:
        return np.broadcast_to(times, np.broadcast_shapes(times.shape, steps.shape))
    pd = require("pandas", extra="data")

    low, high = min(int(steps.min()), 0), max(int(steps.max()), 0)
    first = pd.Timestamp(times.min()) + low * offset(frequency)
    last = pd.Timestamp(times.max()) + high * offset(frequency)
    grid = _range(first, frequency, end=last)
    return np.asarray(grid[np.searchsorted(grid, times) + steps])


def _difference(times: np.ndarray) -> str:
    return "timedelta64[s]" if times.dtype.kind == "M" else "int64"


def inferred(times: np.ndarray, same: np.ndarray) -> str:
    """Infer the frequency: the most frequent step within the series, or the smallest of ties.

    Daily times that cover three calendar weeks and never fall on some weekdays have a frequency
    without these weekdays.

    Args:
        times: (N,) datetime64[s] or int64, series by series, sorted within each series.
        same: bool (N - 1,), whether the next row belongs to the same series.

    Returns:
        The frequency, in the form of `canonical`.

    Raises:
        ValueError: no series has two times, or the most frequent step has no alias in pandas.

    >>> inferred(np.array(["2024-01-04", "2024-01-05", "2024-01-08"], "datetime64[s]"),
    ...          np.array([True, True]))
    'B'
    """
    steps = np.diff(times).astype(np.int64)[same]
    steps = steps[steps > 0]
    if len(steps) == 0:
        raise ValueError(
            'frequency must be given, such as "h", "D", "MS", or "1" where times are counts, got '
            "None and no series with two times to infer it from"
        )
    common = _mode(steps)
    if times.dtype.kind != "M":
        return str(common)
    if common >= 28 * DAY:
        return _months(times, same, steps, common)
    weeks, weekday = np.divmod(times.astype("datetime64[D]").astype(np.int64) + 3, 7)
    weekdays = np.unique(weekday)
    later = (np.diff(weeks)[same] > 0).any()  # a series goes on in a later week
    if common == DAY and weekdays.max() < 5 and later:
        return "B"
    if common == DAY and len(weekdays) < 7 and later and np.ptp(weeks) > 1:
        return OPEN + "".join("01"[day in weekdays] for day in range(7))
    if common == 7 * DAY and len(weekdays) == 1:
        return f"W-{WEEKDAYS[weekdays[0]]}"
    return _alias(common)


def _mode(steps: np.ndarray) -> int:
    values, counts = np.unique(steps, return_counts=True)
    return int(values[counts.argmax()])


def _alias(seconds: int) -> str:
    units = {"D": DAY, "h": 3600, "min": 60, "s": 1}
    alias = next(name for name, unit in units.items() if seconds % unit == 0)
    count = seconds // units[alias]
    return alias if count == 1 else f"{count}{alias}"


def _months(times: np.ndarray, same: np.ndarray, steps: np.ndarray, common: int) -> str:
    days = times.astype("datetime64[D]")
    starts = bool((days == days.astype("datetime64[M]")).all())
    after = days + np.timedelta64(1, "D")
    if not starts and (after != after.astype("datetime64[M]")).any():
        if (steps % common).any():
            raise ValueError(
                "frequency must be given, got None and times that are neither all first nor all "
                f"last days of a month and have steps of {steps.min() / DAY:g} to "
                f"{steps.max() / DAY:g} days"
            )
        return _alias(common)
    months = times.astype("datetime64[M]").astype(np.int64)
    gaps = np.diff(months)[same]
    count, first = _mode(gaps[gaps > 0]), int(months[0]) % 12
    letter = "S" if starts else "E"
    if count == 3:
        return f"Q{letter}-{MONTHS[first % 3 if starts else 9 + first % 3]}"
    if count == 12:
        return f"Y{letter}-{MONTHS[first]}"
    return f"M{letter}" if count == 1 else f"{count}M{letter}"
