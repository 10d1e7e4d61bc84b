"""Files to columns: CSV, Parquet, NPY and NPZ."""

import csv
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Columns = dict[str, np.ndarray]


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
    text: Sequence[str] = (),
) -> Any:
    """A CSV file as a pandas frame; in the columns of `text` only "" is missing."""
    import pandas as pd

    path = Path(path)
    names = _check_csv(path, encoding)
    for name in columns or ():
        if name not in names:
            raise ValueError(f"{path}: no column {name!r}; columns found: {', '.join(names)}")
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
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a whole Parquet file: {error}") from None
    for name in columns or ():
        if name not in names:
            raise ValueError(f"{path}: no column {name!r}; columns found: {', '.join(names)}")
    return pd.read_parquet(path, columns=list(columns or names))


def from_frame(path: str | Path, frame: Any) -> Columns:
    """Numbers become int64, or float32 with NaN for missing; text an object array of `str`."""
    if len(frame) == 0:
        raise ValueError(f"{path}: 0 rows found, at least 1 wanted")
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
                    f"{path}: column {name!r}: {type(odd).__name__} found, numbers or text wanted"
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
                        f"{path}: line {reader.line_num}: {len(line)} fields found, "
                        f"{len(names)} wanted, as in the header"
                    )
    except UnicodeDecodeError:
        raise ValueError(_encoding_message(path, encoding)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from None
    if not names:
        raise ValueError(f"{path}: empty file, a header line with column names wanted")
    names[0] = names[0].removeprefix("\ufeff")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: column {twice[0]!r} found twice in the header")
    return names


def _encoding_message(path: Path, encoding: str) -> str:
    # the stream's error counts from its last buffer; the whole file gives the true position
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        raw.decode(encoding)
        where = "somewhere"
    except UnicodeDecodeError as error:
        where = f"0x{raw[error.start]:02x} found at byte {error.start}"
    return f'{path}: {where}, {encoding} wanted; try encoding="latin-1" or "cp1252"'


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
        raise ValueError(f"{path}: not a whole NumPy file of plain arrays: {error}") from None
    if not isinstance(loaded, dict) and loaded.dtype.names:
        loaded = {name: np.ascontiguousarray(loaded[name]) for name in loaded.dtype.names}
    if isinstance(loaded, dict):
        if label is not None:
            raise ValueError(f"{path}: label={label} is for a plain table; columns: {[*loaded]}")
        return loaded
    if loaded.ndim != 2 or loaded.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: {loaded.dtype} of rank {loaded.ndim} found, a 2-D table of numbers, a "
            "structured array or an .npz of named arrays wanted"
        )
    if label is None:
        return {"features": loaded.astype(np.float32)}
    if not -loaded.shape[1] <= label < loaded.shape[1]:
        raise ValueError(f"{path}: label={label}, but the table has {loaded.shape[1]} columns")
    target = loaded[:, label]
    if np.isfinite(target).all() and (target == np.floor(target)).all():
        target = target.astype(np.int64)
    features = np.delete(loaded, label, axis=1).astype(np.float32)
    return {"features": features, "label": target}
