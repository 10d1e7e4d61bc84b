"""Columns of dates to UTC."""

import re
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jaxops._optional import require

OFFSET = r"[T ].*(?:[zZ]|[+-]\d{2}(?::?\d{2})?)$"


def utc(column: Any, what: str, wanted: str) -> np.ndarray:
    """A column of dates, or of texts of dates in ISO 8601, as datetime64 (N,) in UTC.

    Dates without an offset are taken as UTC, if no date of the column has an offset. Years may be 1
    to 9999, with microseconds. Nanoseconds are kept if all dates are from 1678 to 2261.

    Args:
        column: a pandas column, or an array of texts, without missing values.
        what: the column, for messages.
        wanted: what it must be, for messages.

    Raises:
        ValueError: a text that is not a date; dates with and without an offset in one column.

    >>> import pandas as pd
    >>> utc(pd.Series(["2024-01-01T02:00:00+02:00", "9999-12-31T00:00:00Z"]), "time", "dates")
    array(['2024-01-01T00:00:00.000000', '9999-12-31T00:00:00.000000'],
          dtype='datetime64[us]')
    """
    pd = require("pandas", extra="data")

    if column.dtype.kind == "M":
        zone = getattr(column.dt, "tz", None)
        return np.asarray((column.dt.tz_convert(None) if zone else column).to_numpy())
    plain = isinstance(column, np.ndarray)
    texts = column if plain else np.asarray(column.astype(str), object)
    zoned = np.array([re.search(OFFSET, text) is not None for text in texts])
    if zoned.any() and not zoned.all():
        raise ValueError(
            f"{what} must have an offset from UTC in every row or in none, got "
            f"{texts[int(zoned.argmax())]!r} and {texts[int(zoned.argmin())]!r}"
        )
    parsed = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    late = np.flatnonzero(parsed.isna())
    dates = np.array(parsed.tz_convert(None))
    if len(late):  # years that nanoseconds cannot hold, or texts that are not dates
        dates = dates.astype("datetime64[us]")
    odd = []
    for row in late:
        try:
            date = datetime.fromisoformat(texts[row])
            zone = date.tzinfo
            dates[row] = date.astimezone(UTC).replace(tzinfo=None) if zone else date
        except (ValueError, OverflowError):
            odd.append(np.asarray(column)[row])
    if odd:
        first = next((text for text in odd if not str(text).isdecimal()), odd[0])
        raise ValueError(f"{what} must be {wanted}, got {first!r}")
    return dates
