"""A table as columns of numbers and texts: the type of each column, and the features of dates."""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.data.dates import utc
from jaxops.data.encoders import LARGEST
from jaxops.data.tables import Source, array, as_texts, csv_frame, source_frame
from jaxops.data.text_numbers import as_numbers, comma

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?([zZ]|[+-]\d{2}(:?\d{2})?)?)?$"
PARTS = ("month", "weekday", "hour")  # features of a date, in addition to its day
PLAIN = {np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}
PLAIN |= {np.dtype("f4"), np.dtype("f8")}  # of arrays that are read as they are
JUDGED = 20  # least number of rows to warn that no value of a column of text is known


def read(source: Source, text: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The columns of a table: numbers as float64 with NaN where missing, all others as text.

    A column contains numbers if every value that is not missing is a number without leading zeros.
    Spaces around a text are removed. Booleans become the texts True and False, and the categories
    of a frame become text. Durations become days.

    A column of dates, or of texts such as 2024-12-31 or 2024-12-31T18:30:00Z, becomes days since
    1970-01-01 in UTC. It also gives three more columns: its month (1 to 12), weekday (0 is Monday)
    and hour, such as "since month" for "since". Dates without an offset are taken as UTC, so the
    tables of training and of prediction must either both have offsets or both have none.

    Args:
        source: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name.
        text: the columns to read as text, also if their values look like numbers, such as zip
            codes.

    Raises:
        ValueError: no rows; numbers that float32 cannot hold or that have decimal commas (the
            message names the row).

    >>> table = {"age": ["20", " 40", ""], "plan": ["a", "b ", "a"], "zip": ["01234", "90210", "1"]}
    >>> {name: column.tolist() for name, column in read(table).items()}
    {'age': [20.0, 40.0, nan], 'plan': ['a', 'b', 'a'], 'zip': ['01234', '90210', '1']}
    """
    return read_with_dates(source, text=text)[0]


def read_with_dates(
    source: Source,
    wanted: Sequence[str] | None = None,
    numbers: Collection[str] | None = None,
    exact: Collection[str] = (),
    text: Collection[str] = (),
    dates: Collection[str] | None = None,
    id: str | None = None,
    unread: Collection[str] = (),
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """`read`, and the names of the columns of dates.

    Args:
        source: see `read`.
        wanted: the columns to read; all by default.
        numbers: the columns that must be numbers. If `dates` is None, dates among them become only
            days. By default the values of a column decide its type.
        exact: the columns that are kept as text, with "" where missing, such as ids and labels.
        text: see `read`.
        dates: the columns that must be dates; by default the values of a column decide.
        id: a column in which whole numbers stay whole numbers.
        unread: the columns that are not changed.

    Raises:
        ValueError: see `read`; a missing column; text in a column of `numbers`; a value that is not
            a date in a column of dates.
    """
    name, table = _as_it_is(source, wanted) or frame_of(source, wanted)
    columns: dict[str, np.ndarray] = {}
    found, as_text = [], {*exact, *text}
    for column, series in table.items():
        where = f"{name}: column {column!r}"
        if column in unread:
            columns[column] = np.asarray(series)
            continue
        if series.dtype == object and not isinstance(series, np.ndarray):
            _check_objects(where, series)
        number = None if numbers is None else column in numbers
        moments = None
        if column not in as_text and not (dates is None and number):
            moments = _moments(where, series, None if dates is None else column in dates)
        if moments is not None:
            columns |= _calendar(column, moments)
            found.append(column)
        elif column == id and series.dtype.kind in "iu" and not _has_missing(series):
            columns[column] = np.array(series, f"{series.dtype.kind}8")
        elif column in exact:
            columns[column] = _as_objects(series, missing=())
        else:
            columns[column] = _column(where, series, False if column in text else number)
    given = {*table} - {*unread}
    clash = next((part for part in of_dates(found) if part in given), None)
    if clash is not None:
        raise ValueError(
            f"{name} must have no column {clash!r} beside a date of that name, got one"
        )
    return columns, tuple(found)


def frame_of(source: Source, wanted: Sequence[str] | None = None) -> tuple[str, Any]:
    """The source's name for messages, and its columns as a pandas frame, for `read_with_dates`.

    Args:
        source: see `read`.
        wanted: the columns to read; all by default.

    Raises:
        ValueError: see `tables.source_frame`.

    >>> frame_of({"plan": ["a", "b"]})[1].columns.tolist()
    ['plan']
    """
    return source_frame(
        source, wanted, (), lambda path: csv_frame(path, wanted, "utf-8", (), text=None)
    )


def _as_it_is(source: Source, wanted: Sequence[str] | None) -> tuple[str, Any] | None:
    """The wanted columns of a source whose arrays say by themselves what they hold, else None.

    These are arrays of numbers, and of texts and None, all of the same length, as a server gives
    them. A frame would hold the same values, and takes longer to make than to read.
    """
    if not isinstance(source, Mapping) or not all(map(_is_plain, source.values())):
        return None
    names = wanted or [*source]
    lengths = {len(column) for column in source.values()}
    named = all(isinstance(name, str) for name in source) and source.keys() >= {*names}
    if not named or len({*names}) < len(names) or len(lengths) != 1 or lengths == {0}:
        return None
    return "arrays", {name: source[name] for name in names}


def _is_plain(column: Any) -> bool:
    """Whether a column is an array of numbers, or one of texts and None."""
    if type(column) is not np.ndarray or column.ndim != 1:
        return False
    if column.dtype != object:
        return column.dtype in PLAIN
    values = column.tolist()
    return {*map(type, values)} <= {str, type(None)} and all(map(_is_unicode, {*values}))


def _is_unicode(value: str | None) -> bool:
    return value is None or value.isascii() or not re.search("[\ud800-\udfff]", value)


def _has_missing(series: Any) -> bool:
    return not isinstance(series, np.ndarray) and bool(series.isna().any())


def _check_objects(where: str, series: Any) -> None:
    odd = (list, tuple, set, dict, bytes, np.ndarray)
    row = next((row for row, value in enumerate(series) if isinstance(value, odd)), None)
    if row is not None:
        raise ValueError(
            f"{where} must be numbers, dates or text, got {series.iloc[row]!r} in row {row} "
            "(counted from 0); make a column of each value, 1 where a row has it and 0 elsewhere"
        )


def _moments(where: str, series: Any, date: bool | None) -> np.ndarray | None:
    """A column of dates, or of dates as text, as datetime64 in UTC with NaT; None for others.

    Args:
        where: the column, for messages.
        series: a pandas column, or an array, see `_as_it_is`.
        date: True if it must hold dates, False if it must not; None finds out.

    Raises:
        ValueError: the column must hold dates and does not, or must not and does.
    """
    wanted = "dates such as 2024-12-31, as in the train rows"
    if series.dtype.kind == "M":
        if date is False:
            raise ValueError(f"{where} must be numbers, as in the train rows, got dates")
        return array(where, series)
    if date is False or (date is None and hasattr(series.dtype, "categories")):
        return None
    if series.dtype.kind in "iufb" and not require("pandas", extra="data").isna(series).all():
        if date:
            raise ValueError(f"{where} must be {wanted}, got {series.dtype}")
        return None
    few = 256  # enough to recognise most columns of numbers and texts
    first = series[:few] if isinstance(series, np.ndarray) else series.head(few)
    if date is None and _no_date(_as_objects(first, MISSING)) is not None:
        return None
    texts = _as_objects(series, MISSING)
    row, present = _no_date(texts), texts != ""
    if row is not None or (date is None and not present.any()):
        if not date:
            return None
        raise ValueError(
            f"{where} must be {wanted}, got {texts[row]!r} in row {row} (counted from 0)"
        )
    moments = np.full(len(texts), "NaT", "datetime64[us]")
    if present.any():
        hint = "dates such as 2024-12-31, or a column of text=[...]"
        moments[present] = utc(texts[present], where, hint)
    return moments


def _no_date(texts: np.ndarray) -> int | None:
    """The first row with a text that is no date; None where there is none."""
    date = re.compile(DATE, re.ASCII)
    return next((i for i, text in enumerate(texts) if text and not date.fullmatch(text)), None)


def _calendar(name: str, moments: np.ndarray) -> dict[str, np.ndarray]:
    """Days since 1970, and month, weekday and hour, as float64 with NaN."""
    epoch, day = np.datetime64(0, "D"), moments.astype("datetime64[D]")
    months = (moments.astype("datetime64[M]") - np.datetime64(0, "M")) / np.timedelta64(1, "M")
    parts = {
        "month": months % 12 + 1,
        "weekday": ((day - epoch) / np.timedelta64(1, "D") + 3) % 7,
        "hour": (moments - day) / np.timedelta64(1, "h"),
    }
    days = {name: (moments - epoch) / np.timedelta64(1, "D")}
    return days | {f"{name} {part}": value for part, value in parts.items()}


def _without_missing(series: Any) -> Any:
    """A column as an Arrow column of texts, null where a text stands for a missing value."""
    pa, pc = require("pyarrow", extra="data"), require("pyarrow.compute", extra="data")

    texts = as_texts(series)
    return pc.if_else(pc.is_in(texts, value_set=pa.array(MISSING)), None, texts)


def _column(where: str, series: Any, number: bool | None) -> np.ndarray:
    """A column of a table as float64 with NaN, or as an object array of `str`."""
    pa = require("pyarrow", extra="data")

    kind = series.dtype.kind
    if kind == "M" and number:
        return _calendar("", array(where, series))[""]
    if kind == "m":
        return np.asarray(series.to_numpy() / np.timedelta64(1, "D"))
    if kind in "iuf" and number is not False:
        plain = isinstance(series, np.ndarray)
        values = series if plain else series.to_numpy(np.float64, na_value=np.nan)
        return _finite(where, values.astype(np.float64, copy=plain))
    if number is False:
        return _as_objects(series, MISSING)
    texts = _without_missing(series)
    category = hasattr(series.dtype, "categories")
    if number or (number is None and texts.null_count < len(texts) and not category):
        values = as_numbers(texts, exact=False)
        if values is not None:
            values = values.cast(pa.float64(), safe=False)
            return _finite(where, values.to_numpy(zero_copy_only=False))
        if number:
            return _finite(where, _forced(where, texts.to_pylist()))
        row = comma(texts)
        if row is not None:
            raise ValueError(
                f"{where} must be numbers with a decimal point and no other signs, got "
                f"{texts[row].as_py()!r} in row {row} (counted from 0); write decimal commas as "
                "points, leave out those between thousands, or name the column in text=[...]"
            )
    return _objects(texts)


def _objects(texts: Any) -> np.ndarray:
    """An Arrow column of text as an object array of `str`, "" where missing."""
    return np.asarray(texts.fill_null("").to_numpy(zero_copy_only=False), object)


def _as_objects(series: Any, missing: Collection[str]) -> np.ndarray:
    """A column as an object array of `str`, "" where missing or where one of these texts stands."""
    if not isinstance(series, np.ndarray) or series.dtype != object:
        return _objects(_without_missing(series) if missing else as_texts(series))
    values = series.tolist()
    texts = {value: "" if value is None else value.strip() for value in {*values}}
    texts = {value: "" if text in missing else text for value, text in texts.items()}
    return np.array([*map(texts.__getitem__, values), None], object)[:-1]


def _forced(where: str, texts: list[str | None]) -> np.ndarray:
    """Texts as numbers; leading zeros are allowed."""
    values = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        try:
            values[row] = np.nan if text is None else float(text)
        except ValueError:
            raise ValueError(
                f"{where} must be numbers, as in the train rows, got {text!r} in row {row} "
                "(counted from 0)"
            ) from None
    return values


def _finite(where: str, values: np.ndarray) -> np.ndarray:
    large = np.abs(values) > LARGEST
    if large.any():
        row = int(large.argmax())
        raise ValueError(
            f"{where} must be finite numbers that float32 holds, got {values[row]:g} in row {row} "
            "(counted from 0)"
        )
    return values


def of_dates(dates: Collection[str]) -> list[str]:
    """The names of the additional columns that `read` makes from columns of dates.

    >>> of_dates(["since"])
    ['since month', 'since weekday', 'since hour']
    """
    return [f"{name} {part}" for name in dates for part in PARTS]


def warn_of_unknown(values: Mapping[str, list[str]], table: Mapping[str, np.ndarray]) -> None:
    """Warn if a column of text has many rows, and none of them has a value of the train rows.

    Args:
        values: column -> its known values, at least one.
        table: a table with at least these columns, as text.

    Warns:
        UserWarning: a column has 20 rows or more, and no value in it is known. The warning names
            the line of the caller three levels up.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     warn_of_unknown({"plan": ["a"]}, {"plan": np.full(20, "b", object)})
    >>> str(caught[0].message)
    "plan should have values of the train rows, such as 'a', got none in 20 rows, such as 'b'"
    """
    for name, known in values.items():
        column = table[name]
        if len(column) >= JUDGED and {*column.tolist()}.isdisjoint(known):
            warnings.warn(
                f"{name} should have values of the train rows, such as {known[0]!r}, got none in "
                f"{len(column):,} rows, such as {column[0]!r}",
                stacklevel=4,
            )
