"""Covariates of the calendar: hour, weekday, season, holidays, promotions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from jaxops._optional import require
from jaxops.forecast.data import grid
from jaxops.forecast.data.series import Series

Encoding = Literal["centred", "cyclic"]
Dates = Mapping[str, Sequence[Any]]
"""The days on which a column is 1, by the column's name."""

COUNTS = {
    "minute_of_hour": 60,
    "hour_of_day": 24,
    "day_of_week": 7,
    "day_of_month": 31,
    "day_of_year": 366,
    "week_of_year": 53,
    "month_of_year": 12,
}


def calendar(
    series: Series,
    features: Sequence[str] = (),
    *,
    encoding: Encoding = "centred",
    dates: Dates | None = None,
) -> Series:
    """Add covariates of the calendar to series, as covariates whose future is known.

    Args:
        series: series whose times are dates. Features and days are read on the clock of the series'
            `zone`.
        features: any of "minute_of_hour", "hour_of_day", "day_of_week" (Monday first),
            "day_of_month", "day_of_year", "week_of_year" (ISO 8601) and "month_of_year".
        encoding: "centred" makes one column x / (n - 1) - 0.5 for each feature, where x counts its
            n values from 0. "cyclic" makes two columns, sin and cos of 2 pi x / n, whose names end
            in `_sin` and `_cos`.
        dates: for each column name the days on which the column is 1; on other days it is 0. For
            example `{"holiday": ["2024-12-25", ...]}`. With steps of "h" or shorter, all rows of
            such a day are 1. A row that stands for more than a day is 1 if such a day lies in [its
            time, the next row's time); with "ME", "QE" and "YE", if it lies in (the time of the row
            before, its time].

    Raises:
        ValueError: a feature is unknown; the times are counts; a date is invalid; or the series
            already have a column of that name.

    >>> from jaxops.forecast import from_arrays
    >>> one = from_arrays(["a"], [[5, 6]], start="2024-12-24T23:00", frequency="h")
    >>> one = calendar(one, ["hour_of_day"], dates={"holiday": ["2024-12-25"]})
    >>> one.known_names, one.known.tolist()
    (('hour_of_day', 'holiday'), [[0.5, 0.0], [-0.5, 1.0]])
    """
    if encoding not in ("centred", "cyclic"):
        raise ValueError(f'encoding must be "centred" or "cyclic", got {encoding!r}')
    for name in features:
        if name not in COUNTS:
            raise ValueError(f"features must be among {', '.join(COUNTS)}, got {name!r}")
    ends = ("",) if encoding == "centred" else ("_sin", "_cos")
    names = [name + end for name in features for end in ends] + list(dates or {})
    if not names:
        raise ValueError("features or dates must be given, got neither")
    columns = calendar_columns(series.times(), series.frequency, names, dates, series.zone)
    return replace(
        series,
        known=np.concatenate([series.known, columns], axis=1),
        known_names=(*series.known_names, *names),
    )


def computed(name: str) -> bool:
    """Whether a column has a name that `calendar` gives to a feature."""
    return name.removesuffix("_sin").removesuffix("_cos") in COUNTS


def calendar_columns(
    times: np.ndarray,
    frequency: str,
    names: Sequence[str],
    dates: Dates | None = None,
    zone: str = "",
) -> np.ndarray:
    """The columns that `calendar` makes, by name, for any times.

    Args:
        times: datetime64[s] (N,), times of the frequency.
        frequency: see `Series`.
        names: names of features, which end in `_sin` or `_cos` if cyclic, or names of `dates`.
        dates: see `calendar`.
        zone: see `Series`.

    Returns:
        float32 (N, len(names)).
    """
    pd = require("pandas", extra="data")

    if times.dtype.kind != "M":
        raise ValueError("times must be dates, got counts")
    times = grid.on_the_clock(times, zone)
    index = pd.DatetimeIndex(times)
    columns = np.empty((len(times), len(names)), np.float32)
    for j, name in enumerate(names):
        if dates is not None and name in dates:
            columns[:, j] = _marks(times, frequency, name, dates[name])
            continue
        feature = name.removesuffix("_sin").removesuffix("_cos")
        count = COUNTS[feature]
        value = _values(index, feature)
        if feature == name:
            columns[:, j] = value / (count - 1) - 0.5
        else:
            angle = 2 * np.pi * value / count
            columns[:, j] = np.sin(angle) if name.endswith("_sin") else np.cos(angle)
    return columns


def _values(index: Any, feature: str) -> np.ndarray:
    """The values of the feature at each time, counted from 0."""
    if feature == "week_of_year":
        return np.asarray(index.isocalendar().week.to_numpy(np.int64) - 1)
    attribute = {
        "minute_of_hour": "minute",
        "hour_of_day": "hour",
        "day_of_month": "day",
        "month_of_year": "month",
    }.get(feature, feature)
    first = feature in ("day_of_month", "day_of_year", "month_of_year")
    return np.asarray(getattr(index, attribute).to_numpy() - int(first))


def _marks(times: np.ndarray, frequency: str, name: str, days: Sequence[Any]) -> np.ndarray:
    """Whether one of the days lies in each row, bool (N,)."""
    try:
        sorted_days = np.sort(np.asarray(days, "datetime64[D]"))
    except (ValueError, TypeError):
        raise ValueError(f"dates must be dates for {name!r}, got {days!r}") from None
    if sorted_days.ndim != 1 or np.isnat(sorted_days).any():
        raise ValueError(f"dates must be a list of dates for {name!r}, got {days!r}")
    first = last = times.astype("datetime64[D]")
    fixed = grid.step(frequency)
    if fixed is None and frequency[0] in "MQY" and frequency.lstrip("MQY")[:1] == "E":
        before = grid.moved(times, -1, frequency).astype("datetime64[D]")
        first = before + np.timedelta64(1, "D")
    elif frequency[:2] not in ("B", grid.OPEN) and (fixed is None or fixed > grid.DAY):
        following = grid.moved(times, 1, frequency)
        last = (following - np.timedelta64(1, "s")).astype("datetime64[D]")
    after = np.searchsorted(sorted_days, last, "right")
    return np.asarray(after > np.searchsorted(sorted_days, first, "left"))
