"""Tables as columns: CSV and Parquet files, frames, and arrays by name.

Every source becomes a pandas frame without loss, CSV and Parquet by way of Arrow. `array` turns
each column into an array.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from jaxops._optional import require
from jaxops.data import csv_files, parquet_files

Columns = dict[str, np.ndarray]
Source = Any
"""A CSV (also .gz) or Parquet file; a frame of pandas, polars or PyArrow, or another frame that
narwhals reads; or arrays by name."""
PARQUET = (".parquet", ".pq")


def source_frame(
    source: Source,
    wanted: Sequence[str] | None,
    needed: Sequence[str],
    read_csv: Callable[[str | Path], Any],
) -> tuple[str, Any]:
    """The source's name for messages, and the wanted columns (or all) as a pandas frame.

    Whole numbers and booleans with missing values get pandas' nullable dtypes, also if the source
    has them as objects.

    Args:
        source: a file, a frame or arrays.
        wanted: names of the columns to read, or None for all.
        needed: names of columns that must be there, if `wanted` is None.
        read_csv: reads a file that is not Parquet.

    Raises:
        ValueError: no rows, a missing column or one that is there twice, or arrays of unequal
            lengths or more than one dimension.
    """
    pd = require("pandas", extra="data")

    if isinstance(source, str | Path):
        parquet = Path(source).suffix in PARQUET
        name, frame = str(source), parquet_frame(source, wanted) if parquet else read_csv(source)
    elif isinstance(source, pd.DataFrame):
        name, frame = "frame", source
    elif isinstance(source, Mapping):
        name, frame = "arrays", _of_arrays(source)
    else:
        name, frame = "frame", _of_arrow(_to_arrow(source))
    if any(not isinstance(column, str) for column in frame.columns):
        frame = frame.rename(columns=str)
    for column in wanted or needed:
        if column not in frame.columns:
            columns = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name} must have a column {column!r}, got {columns}")
    names = pd.Index(wanted or frame.columns)
    twice = names[names.duplicated()].union(names.intersection(_twice(frame)), sort=False)
    if len(twice):
        raise ValueError(f"{name} must have each column once, got {twice[0]!r} twice")
    if len(frame) == 0:
        raise ValueError(f"{name} must have at least 1 row, got 0")
    frame = frame[names]
    objects = {n: typed(c) for n, c in frame.items() if c.dtype == object or _of_pyarrow(c)}
    return name, frame.assign(**objects) if objects else frame


def _twice(frame: Any) -> Any:
    return frame.columns[frame.columns.duplicated()]


def _of_arrays(arrays: Mapping[str, Any]) -> Any:
    """Arrays by name as a frame."""
    pd = require("pandas", extra="data")

    columns = {str(name): _series(value) for name, value in arrays.items()}
    for name, column in columns.items():
        if np.ndim(column) == 0:
            raise ValueError(f"column {name!r} must be an array of rows, got one value")
        shape = column.shape if isinstance(column, np.ndarray) else (len(column),)
        first = len(next(iter(columns.values())))
        if shape != (first,):
            raise ValueError(f"column {name!r} must have shape ({first},), got {shape}")
    return pd.DataFrame(columns)


def _series(value: Any) -> Any:
    """One column as pandas holds it without loss, or an array of more dimensions."""
    pd = require("pandas", extra="data")
    pa = require("pyarrow", extra="data")

    if isinstance(value, np.ma.MaskedArray) and value.ndim == 1:
        nullable = {"i": "Int64", "u": "UInt64", "b": "boolean"}.get(value.dtype.kind)
        column = pd.Series(value.data, dtype=nullable)
        return column.mask(np.ma.getmaskarray(value)).array
    if isinstance(value, pd.Series | pd.Index):
        return value.array
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return value
    if hasattr(value, "to_arrow"):  # a polars column
        value = value.to_arrow()
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return _of_arrow(pa.table({"": value}))[""].array
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "OUf" or isinstance(value, np.ndarray):
        return array
    # a list that NumPy would turn into text may hold numbers, or NaN for missing text
    column = typed(pd.Series([*value], dtype=object))
    return array if array.dtype.kind == "f" and column.dtype == object else column.array


def typed(column: Any) -> Any:
    """A pandas column of objects with the dtype of whole numbers, numbers, booleans or dates.

    The dtype is changed only if all values that are not missing are of that type.

    >>> import pandas as pd
    >>> typed(pd.Series([1, None], dtype=object)).dtype, typed(pd.Series(["a", None])).dtype.kind
    (Int64Dtype(), 'O')
    """
    pd = require("pandas", extra="data")

    if _of_pyarrow(column):
        pa = require("pyarrow", extra="data")

        return _of_arrow(pa.table({"": pa.array(column)}))[""]
    kind = pd.api.types.infer_dtype(column, skipna=True)
    kinds = {"integer": "Int64", "boolean": "boolean", "floating": np.float64}
    kinds |= {"mixed-integer-float": np.float64, "date": "datetime64[s]"}
    if kind == "decimal" and all(_is_float(value) for value in column.dropna()):
        kinds["decimal"] = np.float64
    if kind not in kinds:
        return column
    try:
        return column.astype(kinds[kind])
    except (OverflowError, TypeError, ValueError):  # beyond int64
        return column


def _is_float(value: Decimal) -> bool:
    """Whether a float64 is written in the same way as this number."""
    return Decimal(repr(float(value))) == value


def _of_pyarrow(column: Any) -> bool:
    return hasattr(column.dtype, "pyarrow_dtype")


def _to_arrow(source: Any) -> Any:
    narwhals = require("narwhals", extra="data")

    try:
        return narwhals.from_native(source, eager_only=True).to_arrow()
    except TypeError:
        raise ValueError(
            f"source must be a path, a frame or arrays, got {type(source).__name__}"
        ) from None


def _of_arrow(table: Any) -> Any:
    """An Arrow table as a pandas frame, with nullable dtypes where others would lose values."""
    pd = require("pandas", extra="data")
    pa = require("pyarrow", extra="data")

    nullable = {pa.bool_(): pd.BooleanDtype()}
    for bits in (8, 16, 32, 64):
        nullable[getattr(pa, f"int{bits}")()] = getattr(pd, f"Int{bits}Dtype")()
        nullable[getattr(pa, f"uint{bits}")()] = getattr(pd, f"UInt{bits}Dtype")()
    for place, column in enumerate(table.columns):
        if pa.types.is_null(column.type):
            table = table.set_column(place, table.field(place).name, column.cast(pa.float64()))
    options = {"date_as_object": False, "ignore_metadata": True}
    frame = table.to_pandas(split_blocks=True, **options)
    for place, column in enumerate(table.columns):
        if column.null_count and column.type in nullable:
            frame.isetitem(place, column.to_pandas(types_mapper=nullable.get).array)
    return frame


def parts(path: str | Path, rows: int, first: int = 0) -> Iterator[Any]:
    """The rows of a CSV (also .gz) or Parquet file, as frames of `rows` rows, the last of fewer.

    All columns of a CSV file are text, so that a column has one type in all parts.

    Args:
        path: the file.
        rows: the number of rows in a part.
        first: the row to begin with, counted from 0.

    Raises:
        ValueError: a broken file, or a line with more or fewer fields than the header.
    """
    pa = require("pyarrow", extra="data")

    if Path(path).suffix in PARQUET:
        found = parquet_files.batches(path, rows, first)
    else:
        found = csv_files.batches(Path(path), first)
    waiting: list[Any] = []
    count = 0
    for table in found:
        waiting.append(table)
        count += len(table)
        while count >= rows:
            table = pa.concat_tables(waiting)
            yield _of_arrow(table.slice(0, rows))
            waiting, count = [table.slice(rows)], count - rows
    if count:
        yield _of_arrow(pa.concat_tables(waiting))


def none_missing(column: Any, what: str, requirement: str) -> None:
    """Raise ValueError if a frame's column has a missing value."""
    absent = column.isna().to_numpy()
    if absent.any():
        raise ValueError(
            f"{what} must have {requirement}, got {absent.sum()} missing, the first in row "
            f"{absent.argmax()} (counted from 0)"
        )


def plain_id(value: Any) -> Any:
    """An id: a UUID or bytes in UTF-8 as text, and any other id unchanged.

    >>> plain_id(b"tea"), plain_id(7)
    ('tea', 7)
    """
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return str(value) if isinstance(value, UUID) else value


def ids(column: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's id, int32 (N,), and the ids by that number, `str` objects (S,)."""
    pd = require("pandas", extra="data")

    none_missing(column, what, "an id for every row")
    codes, uniques = pd.factorize(column)
    given = np.asarray(uniques, object)
    values = np.array([plain_id(value) for value in given], object)
    wrong = [v for v in values if not isinstance(v, str | int | np.integer) or isinstance(v, bool)]
    if wrong or column.dtype.kind == "b":
        detail = f" ({wrong[0]!r})" if wrong else ""
        raise ValueError(f"{what} must be text or integers, got {column.dtype}{detail}")
    if len({isinstance(value, str) for value in values}) > 1:
        raise ValueError(f"{what} must be all text or all integers, got both; convert all to text")
    if len(set(values)) < len(values):
        kinds = ", ".join(sorted({type(value).__name__ for value in given}))
        raise ValueError(f"{what} must hold ids of one type, got {kinds}")
    return codes.astype(np.int32), values.astype(str).astype(object)


def csv_frame(
    path: str | Path,
    columns: Sequence[str] | None,
    encoding: str,
    missing: Sequence[str],
    text: Sequence[str] | None = (),
    separator: str | None = None,
    header: Sequence[str] | None = None,
) -> Any:
    """A CSV file as a pandas frame; the arguments are those of `csv_files.read`."""
    form = csv_files.Form(encoding, separator, header)
    return _of_arrow(csv_files.read(path, columns, form, missing, text))


def parquet_frame(path: str | Path, columns: Sequence[str] | None) -> Any:
    """A Parquet file as a pandas frame; see `parquet_files.read`."""
    return _of_arrow(parquet_files.read(path, columns))


def from_frame(path: str | Path, frame: Any) -> Columns:
    """The columns of a frame as arrays; see `array`."""
    if len(frame) == 0:
        raise ValueError(f"{path} must have at least 1 row, got 0")
    return {str(name): array(f"{path}: column {name!r}", c) for name, c in frame.items()}


def array(where: str, series: Any) -> np.ndarray:
    """A pandas column as an array that holds it exactly.

    Whole numbers and booleans become int64, or float64 with NaN if some are missing. float32 stays
    float32, and other numbers become float64. Dates become datetime64 of their own unit, in UTC.
    Categories and text become an object array of `str`, "" where missing.

    Args:
        where: the column, for messages.
        series: (N,), a pandas column.

    Raises:
        ValueError: whole numbers that the dtype cannot hold; or the values are neither numbers,
            dates nor text.

    >>> import pandas as pd
    >>> array("store", pd.Series([101, 202], dtype="category")).tolist()
    ['101', '202']
    """
    pd = require("pandas", extra="data")

    if series.dtype == object or _of_pyarrow(series):
        series = typed(series)
    kind = series.dtype.kind
    if kind == "f":
        narrow = getattr(series.dtype, "itemsize", 8) <= 4
        return np.asarray(series.to_numpy(np.float32 if narrow else np.float64, na_value=np.nan))
    if kind in "biu":
        return _whole_numbers(where, series)
    if kind == "M":
        utc = series.dt.tz_convert(None) if getattr(series.dt, "tz", None) else series
        return np.asarray(utc.to_numpy())
    if isinstance(series.dtype, pd.CategoricalDtype):
        names = [*map(as_text, series.cat.categories.tolist()), ""]
        return np.array(names, object)[series.cat.codes.to_numpy()]
    filled = series.astype(object).where(series.notna(), "").to_numpy(object)
    if isinstance(series.dtype, pd.StringDtype):
        return np.asarray(filled)
    row = next((row for row, v in enumerate(filled.tolist()) if not isinstance(v, str)), None)
    if row is not None:
        raise ValueError(f"{where} must be numbers or text, got {filled[row]!r} in row {row}")
    return np.asarray(filled)


def as_array(name: str, value: Any) -> np.ndarray:
    """Convert a user's column to an array without loss. An array stays as it is.

    Args:
        name: the name of the column, for messages.
        value: an array of any shape, a list, or a column of pandas, polars or PyArrow.

    Raises:
        ValueError: masked rows of a dtype without NaN, and what `array` raises.

    >>> as_array("x", np.ma.array([1.0, 2.0], mask=[False, True])).tolist()
    [1.0, nan]
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        if value.dtype.kind == "f":
            return np.asarray(value.filled(np.nan))
        if value.ndim > 1:
            row = np.argwhere(np.ma.getmaskarray(value))[0][0]
            raise ValueError(f"{name} must have no masked values, got one in row {row}")
    elif type(value).__module__.partition(".")[0] not in ("pandas", "polars", "pyarrow"):
        plain = np.asarray(value)
        texts = plain.dtype.kind == "U" and plain.ndim == 1 and isinstance(value, list | tuple)
        # NumPy would turn a missing value in a list of texts into the text "nan"
        if texts and not all(isinstance(v, str) for v in value):
            return np.array(value, object)
        return plain
    series = require("pandas", extra="data").Series(_series(value))
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biufM":
        return np.asarray(series.to_numpy())
    return array(name, series)


def as_texts(series: Any) -> Any:
    """A column, or an array, as an Arrow column of text without surrounding spaces.

    It is null where a value is missing, and 1.0 becomes "1".
    """
    pa, pc = require("pyarrow", extra="data"), require("pyarrow.compute", extra="data")

    try:
        texts = pa.array(series, pa.string(), from_pandas=True)
    except (TypeError, pa.ArrowInvalid):
        series = require("pandas", extra="data").Series(series)
        present = series.astype(object).where(series.notna(), None).tolist()
        texts = pa.array([None if v is None else as_text(v) for v in present], pa.string())
    return pc.utf8_trim_whitespace(texts)


def as_text(value: Any) -> str:
    """A value as text: "1" for 1.0, because whole numbers may come as floats; "" for None or NaN.

    >>> [as_text(value) for value in ("a", 1.0, 2.5, True, None, float("nan"))]
    ['a', '1', '2.5', 'True', '', '']
    """
    if value is None or value != value:
        return ""
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value) if whole else value)


def _whole_numbers(where: str, series: Any) -> np.ndarray:
    """Whole numbers or booleans as int64, or as float64 where some are missing."""
    absent = series.isna().to_numpy()
    rows = np.flatnonzero(~absent)
    present = (series[~absent] if absent.any() else series).to_numpy()
    whole, wanted = present.astype(np.int64), "in the int64 range"
    lost = (
        np.flatnonzero(present > np.iinfo(np.int64).max) if present.dtype.kind == "u" else rows[:0]
    )
    numbers = np.full(len(series), np.nan)
    if absent.any() and not len(lost):
        numbers[rows], wanted = whole, "numbers that float64 holds, as some are missing"
        large = np.flatnonzero(np.abs(numbers[rows]) >= 2**53)
        lost = large[[int(numbers[rows[i]]) != int(whole[i]) for i in large]]
    if len(lost):
        value, row = present[lost[0]], rows[lost[0]]
        raise ValueError(f"{where} must be {wanted}, got {value} in row {row} (counted from 0)")
    return numbers if absent.any() else whole
