"""Parquet files as Arrow tables, whole or batch by batch."""

import base64
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.data.checks import check_lists

BUFFER = 1 << 18  # bytes of each column that are read at once; else the column of a row group is


def read(path: str | Path, columns: Sequence[str] | None = None) -> Any:
    """A Parquet file as an Arrow table. A named index of pandas is a column.

    Args:
        path: the file.
        columns: the names of the columns to read; None for all.

    Raises:
        ValueError: a broken file; a missing column, or one that is there twice.
    """
    check_lists(columns=columns)
    names = _names(path, columns)
    with _whole(path) as file:
        return _declared(file, file.read(columns=names).select(names))


def batches(path: str | Path, rows: int, first: int = 0) -> Iterator[Any]:
    """The rows of a Parquet file from row `first`, as Arrow tables of at most `rows` rows.

    Row groups before that row are not read.

    Raises:
        ValueError: see `read`.
    """
    pa = require("pyarrow", extra="data")

    names = _names(path, None)
    # what Arrow buffers in advance is the whole file, which it keeps to its end
    with _whole(path, buffer_size=BUFFER, pre_buffer=False) as file:
        metadata = file.metadata
        groups = range(metadata.num_row_groups)
        ends = np.cumsum([metadata.row_group(group).num_rows for group in groups], dtype=np.int64)
        start = int(np.searchsorted(ends, first, side="right"))
        skip = first - (int(ends[start - 1]) if start else 0)
        if start == len(ends):
            return
        for batch in file.iter_batches(rows, row_groups=groups[start:], columns=names):
            table = pa.Table.from_batches([batch])
            yield _declared(file, table.slice(skip))
            skip = max(skip - len(table), 0)


def count(path: str | Path) -> int:
    """The number of rows of a Parquet file.

    Raises:
        ValueError: a broken file.
    """
    with _whole(path) as file:
        return int(file.metadata.num_rows)


@contextlib.contextmanager
def _whole(path: str | Path, **options: Any) -> Iterator[Any]:
    """The file, opened with options of Arrow; an error says that it is broken."""
    pa = require("pyarrow", extra="data")
    pq = require("pyarrow.parquet", extra="data")

    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} must be a whole Parquet file, got an error: {error}") from None


def _declared(file: Any, table: Any) -> Any:
    """A table with the categories that its file declares; Arrow itself reads only text ones."""
    pa = require("pyarrow", extra="data")

    stored = (file.metadata.metadata or {}).get(b"ARROW:schema")
    if stored is None:
        return table
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored)))
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        declared = pa.types.is_dictionary(schema.field(name).type)
        if declared and not pa.types.is_dictionary(column.type):
            table = table.set_column(place, name, column.dictionary_encode())
    return table


def _names(path: str | Path, columns: Sequence[str] | None) -> list[str]:
    """The columns to read: the wanted ones, or all but an unnamed index of pandas."""
    pa = require("pyarrow", extra="data")
    pq = require("pyarrow.parquet", extra="data")

    if Path(path).is_dir():
        raise ValueError(f"{path} must be a file, got a folder; read its files one by one")
    try:
        present = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must be a whole Parquet file, got an error: {error}") from None
    for name in columns or ():
        if name not in present:
            raise ValueError(f"{path} must have a column {name!r}, got {', '.join(present)}")
    names = list(columns or (n for n in present if not n.startswith("__index_level_")))
    twice = next((name for name in names if present.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} must have each column once, got {twice!r} twice")
    return names
