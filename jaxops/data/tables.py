"""CSV, Parquet, NPY and NPZ files to columns."""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxops._optional import require

Columns = dict[str, np.ndarray]
Source = Any
"""A file of CSV (.gz too) or Parquet; a frame of pandas, polars or PyArrow, or another that
narwhals reads; or arrays by name."""
PARQUET = (".parquet", ".pq")


def source_frame(
    source: Source,
    wanted: Sequence[str] | None,
    needed: Sequence[str],
    read_csv: Callable[[str | Path], Any],
) -> tuple[str, Any]:
    """The source's name for messages, and the wanted columns (or all) as a pandas frame.

    Args:
        source: a file, a frame or arrays.
        wanted: names of columns, or None for all; then
        needed: those that have to be there.
        read_csv: of a file that is not Parquet.
    """
    pd = require("pandas", extra="data")

    if isinstance(source, str | Path):
        parquet = Path(source).suffix in PARQUET
        name, frame = str(source), parquet_frame(source, wanted) if parquet else read_csv(source)
    elif isinstance(source, pd.DataFrame):
        name, frame = "frame", source
    elif isinstance(source, Mapping):
        name = "arrays"
        arrays = {key: np.asarray(value) for key, value in source.items()}
        for key, array in arrays.items():
            first = next(iter(arrays.values()))
            if array.ndim != 1 or len(array) != len(first):
                raise ValueError(
                    f"column {key!r} must have shape ({len(first)},), got {array.shape}"
                )
        frame = pd.DataFrame(arrays)
    else:
        name, frame = "frame", _to_pandas(source)
    if any(not isinstance(column, str) for column in frame.columns):
        frame = frame.rename(columns=str)
    for column in wanted or needed:
        if column not in frame.columns:
            columns = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name} must have a column {column!r}, got {columns}")
    names = pd.Index(wanted or frame.columns)
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise ValueError(f"{name} must have each column once, got {twice!r} twice")
    if len(frame) == 0:
        raise ValueError(f"{name} must have at least 1 row, got 0")
    return name, frame[names]


def _to_pandas(source: Any) -> Any:
    narwhals = require("narwhals", extra="data")

    try:
        return narwhals.from_native(source, eager_only=True).to_pandas()
    except TypeError:
        raise ValueError(
            f"source must be a path, a frame or arrays, got {type(source).__name__}"
        ) from None


def parts(path: str | Path, rows: int) -> Iterator[Any]:
    """The rows of a CSV (.gz too) or Parquet file, as frames of at most so many rows.

    CSV gives text alone, so that a column has one type in all parts.

    Args:
        path: the file.
        rows: of a part.

    Raises:
        ValueError: a broken file, or a line with more or fewer fields than the header.
    """
    pd = require("pandas", extra="data")
    pq = require("pyarrow.parquet", extra="data")

    if Path(path).suffix in PARQUET:
        for batch in pq.ParquetFile(path).iter_batches(rows):
            yield batch.to_pandas()
        return
    _check_csv(Path(path), "utf-8")
    yield from pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=rows)


def none_missing(column: Any, what: str, requirement: str) -> None:
    """Raise ValueError where a frame's column has no value in a row."""
    absent = column.isna().to_numpy()
    if absent.any():
        raise ValueError(
            f"{what} must have {requirement}, got {absent.sum()} missing, the first in row "
            f"{absent.argmax()} (counted from 0)"
        )


def ids(column: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's id, int32 (N,), and the ids by that number, `str` objects (S,)."""
    pd = require("pandas", extra="data")

    none_missing(column, what, "an id for every row")
    codes, uniques = pd.factorize(column)
    values = np.asarray(uniques, object)
    odd = next((value for value in values if not isinstance(value, str | int | np.integer)), None)
    kinds = {isinstance(value, str) for value in values}
    if odd is not None or column.dtype.kind == "b" or len(kinds) > 1:
        kind = "text and integers" if odd is None and len(kinds) > 1 else column.dtype
        detail = "" if odd is None else f" ({odd!r})"
        raise ValueError(f"{what} must be text or integers, got {kind}{detail}")
    return codes.astype(np.int32), values.astype(str).astype(object)


def read_csv(
    path: str | Path, columns: Sequence[str] | None, encoding: str, missing: Sequence[str]
) -> Columns:
    """A CSV file (or .csv.gz) with a header line, as columns."""
    return from_frame(path, csv_frame(path, columns, encoding, missing))


def csv_frame(
    path: str | Path,
    columns: Sequence[str] | None,
    encoding: str,
    missing: Sequence[str],
    text: Sequence[str] | None = (),
) -> Any:
    """A CSV file as a pandas frame; in the columns of `text` (None: all) only "" is missing."""
    pd = require("pandas", extra="data")

    path = Path(path)
    names = _check_csv(path, encoding)
    text = names if text is None else text
    for name in columns or ():
        if name not in names:
            raise ValueError(f"{path} must have a column {name!r}, got {', '.join(names)}")
    frame = pd.read_csv(
        path,
        usecols=list(columns or names),
        encoding=encoding,
        na_values={name: [""] if name in text else list(missing) for name in names},
        keep_default_na=False,
        low_memory=False,
        dtype=dict.fromkeys(text, str),
    )
    return frame[list(columns or names)]


def read_parquet(path: str | Path, columns: Sequence[str] | None) -> Columns:
    """A Parquet file as columns."""
    return from_frame(path, parquet_frame(path, columns))


def parquet_frame(path: str | Path, columns: Sequence[str] | None) -> Any:
    """A Parquet file as a pandas frame."""
    pd = require("pandas", extra="data")
    pa = require("pyarrow", extra="data")
    pq = require("pyarrow.parquet", extra="data")

    try:
        names = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must be a whole Parquet file, got an error: {error}") from None
    for name in columns or ():
        if name not in names:
            raise ValueError(f"{path} must have a column {name!r}, got {', '.join(names)}")
    return pd.read_parquet(path, columns=list(columns or names))


def from_frame(path: str | Path, frame: Any) -> Columns:
    """Numbers become int64, or float32 with NaN for missing; text an object array of `str`."""
    if len(frame) == 0:
        raise ValueError(f"{path} must have at least 1 row, got 0")
    columns = {}
    for name, series in frame.items():
        kind = series.dtype.kind
        if kind in "biu" and not series.isna().any():
            columns[str(name)] = series.to_numpy(np.int64)
        elif kind in "biuf":
            columns[str(name)] = series.to_numpy(np.float32, na_value=np.nan)
        elif kind == "M":
            columns[str(name)] = series.to_numpy("datetime64[ns]")
        else:
            filled = series.astype(object).where(series.notna(), "").to_numpy(object)
            odd = next((value for value in filled if not isinstance(value, str)), None)
            if odd is not None:
                raise ValueError(
                    f"{path}: column {name!r} must be numbers or text, got {type(odd).__name__}"
                )
            columns[str(name)] = filled
    return columns


def _open(path: Path, encoding: str) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return open(path, encoding=encoding, newline="")


def _check_csv(path: Path, encoding: str) -> list[str]:
    """The names in the header; every line must have as many fields, which pandas does not check."""
    try:
        with _open(path, encoding) as file:
            reader = csv.reader(file)
            names = next((line for line in reader if line), [])
            for line in reader:
                if line and len(line) != len(names):
                    raise ValueError(
                        f"{path}: line {reader.line_num} must have {len(names)} fields, as the "
                        f"header, got {len(line)}"
                    )
    except UnicodeDecodeError:
        raise ValueError(_encoding_message(path, encoding)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file, got an error: {error}") from None
    if not names:
        raise ValueError(f"{path} must begin with a header line of column names, got an empty file")
    names[0] = names[0].removeprefix("\ufeff")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} must have each column once in the header, got {twice[0]!r} twice")
    return names


def _encoding_message(path: Path, encoding: str) -> str:
    # the stream's error counts from its last buffer; the whole file gives the true position
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        raw.decode(encoding)
        given = "other bytes"
    except UnicodeDecodeError as error:
        given = f"0x{raw[error.start]:02x} at byte {error.start}"
    return f'{path} must be {encoding}, got {given}; try encoding="latin-1" or "cp1252"'


def read_npy(path: str | Path, label: int | None) -> Columns:
    """A .npz of named arrays, a structured .npy, or a plain 2-D .npy table."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                loaded = dict(loaded)
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} must be a whole NumPy file of plain arrays, got an error: {error}"
        ) from None
    if not isinstance(loaded, dict) and loaded.dtype.names:
        loaded = {name: np.ascontiguousarray(loaded[name]) for name in loaded.dtype.names}
    if isinstance(loaded, dict):
        if label is not None:
            raise ValueError(
                f"label must be None for named columns {[*loaded]} ({path}), got {label}"
            )
        return loaded
    if loaded.ndim != 2 or loaded.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} must be a 2-D table of numbers, a structured array or an .npz of named "
            f"arrays, got {loaded.dtype} of rank {loaded.ndim}"
        )
    if label is None:
        return {"features": loaded.astype(np.float32)}
    if not -loaded.shape[1] <= label < loaded.shape[1]:
        width = loaded.shape[1]
        raise ValueError(f"label must be in [{-width}, {width}) (columns of {path}), got {label}")
    target = loaded[:, label]
    if np.isfinite(target).all() and (target == np.floor(target)).all():
        target = target.astype(np.int64)
    features = np.delete(loaded, label, axis=1).astype(np.float32)
    return {"features": features, "label": target}
