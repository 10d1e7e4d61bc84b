"""Readers of shards on disk: rows of NPY files and of records, and row groups of Parquet.

A reader is small, can be pickled for a worker process, and opens its files when rows are read.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxops._optional import require

Columns = dict[str, np.ndarray]


class Rows(Protocol):
    """A reader that can read single rows quickly, in any order."""

    rows: int

    def take(self, index: np.ndarray) -> Columns:
        """Return the rows at `index` (B,) int64 of every column."""
        ...


class Array(NamedTuple):
    """One column in one .npy file: its dtype, shape and offset."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """Map the file into memory; the system may drop its pages, and the file is closed."""
        pa = require("pyarrow", extra="data")

        with pa.memory_map(self.path) as file:
            buffer = file.read_buffer(file.size())  # mapped as long as the buffer is used
        if buffer.size < self.offset + self.dtype.itemsize * int(np.prod(self.shape)):
            raise ValueError(
                f"{self.path} must not be changed while it is read, got a shorter file"
            )
        count = int(np.prod(self.shape))
        return np.frombuffer(buffer, self.dtype, count, self.offset).reshape(self.shape)


class Npy:
    """Columns in .npy files named COLUMN.npy, or COLUMN-SHARD.npy with the shard's number."""

    def __init__(self, paths: Sequence[Path], columns: Sequence[str] | None) -> None:
        shards: dict[str, dict[str, Path]] = {}
        for path in paths:
            name, number = _column_and_shard(path)
            shards.setdefault(number, {})[name] = path
        names = sorted({_column_and_shard(path)[0] for path in paths})
        self.columns = _chosen(paths[0].parent, names, columns)
        self.shards: list[dict[str, Array]] = []
        for number, files in sorted(shards.items(), key=lambda item: int(item[0] or 0)):
            for name in self.columns:
                if name not in files:
                    beside = next(iter(files.values()))
                    raise ValueError(
                        f"shard {number!r} must have a file of column {name!r}, got only {beside}"
                    )
            self.shards.append({name: _header(files[name]) for name in self.columns})
            _check_shard(self.shards[-1], self.shards[0])
        self.ends = np.cumsum([next(iter(shard.values())).shape[0] for shard in self.shards])
        self.rows = int(self.ends[-1])
        self._open: dict[tuple[int, str], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a worker maps the files itself

    def take(self, index: np.ndarray) -> Columns:
        """The rows at `index` of every column, gathered shard by shard."""
        shard = np.searchsorted(self.ends, index, side="right")
        local = index - np.concatenate([[0], self.ends])[shard]
        present = [(int(number), shard == number) for number in np.unique(shard)]
        if len(present) == 1:
            return {name: self._array(present[0][0], name)[local] for name in self.columns}
        taken = {}
        for name in self.columns:
            first = self.shards[0][name]
            taken[name] = np.empty((len(index), *first.shape[1:]), first.dtype)
            for number, at in present:
                taken[name][at] = self._array(number, name)[local[at]]
        return taken

    def _array(self, shard: int, name: str) -> np.ndarray:
        if (shard, name) not in self._open:
            self._open[shard, name] = self.shards[shard][name].open()
        return self._open[shard, name]


def _column_and_shard(path: Path) -> tuple[str, str]:
    parts = re.fullmatch(r"(.+?)(?:-(\d+)(?:-of-\d+)?)?", path.stem)
    assert parts
    return parts[1], parts[2] or ""


def _header(path: Path) -> Array:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} must be a whole NumPy file of plain numbers, got an error: {error}"
        ) from None
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{path} must have at least 1 row, got shape {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{path} must be in C order (rows first), got Fortran order; save it again: "
            "np.save(path, np.ascontiguousarray(array))"
        )
    return Array(str(path), array.dtype, array.shape, array.offset)


def _check_shard(shard: dict[str, Array], first: dict[str, Array]) -> None:
    rows = {array.shape[0] for array in shard.values()}
    if len(rows) > 1:
        given = ", ".join(f"{array.shape[0]:,} in {array.path}" for array in shard.values())
        raise ValueError(f"the files of a shard must have equal numbers of rows, got {given}")
    for name, array in shard.items():
        given, wanted = (f"{a.dtype} of shape {a.shape[1:]}" for a in (array, first[name]))
        if given != wanted:
            raise ValueError(
                f"{array.path}: column {name!r} must have rows of {wanted}, as in "
                f"{first[name].path}, got {given}"
            )


def _chosen(where: Any, present: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    for name in wanted or ():
        if name not in present:
            raise ValueError(f"{where} must have a column {name!r}, got {', '.join(present)}")
    return list(wanted or present)


class Records:
    """Rows that are read one at a time: a data source of TFDS or Grain, or ArrayRecord files."""

    def __init__(
        self,
        source: Any,
        decode: Callable[[Any], Mapping[str, Any]] | None,
        columns: Sequence[str] | None,
        name: str,
    ) -> None:
        self.source, self.decode, self.columns, self.name = source, decode, columns, name
        self.rows = len(source)

    def take(self, index: np.ndarray) -> Columns:
        """The records at `index`, decoded and stacked; read in one call if the source can."""
        numbers = index.tolist()
        together = getattr(self.source, "__getitems__", None)
        records = together(numbers) if together else [self.source[i] for i in numbers]
        if self.decode:
            records = [self.decode(record) for record in records]
        if not isinstance(records[0], Mapping):
            raise ValueError(
                f"{self.name} must give records that are dicts of arrays, got "
                f"{type(records[0]).__name__}; decode=function makes a dict of a record"
            )
        names = _chosen(self.name, list(records[0]), self.columns)
        return {name: self._stacked(name, [r[name] for r in records], index) for name in names}

    def _stacked(self, name: str, values: list[Any], index: np.ndarray) -> np.ndarray:
        if isinstance(values[0], bytes | str):
            return np.array(values, dtype=object)
        first = np.shape(values[0])
        for value, row in zip(values, index, strict=True):
            if np.shape(value) != first or isinstance(value, Mapping):
                raise ValueError(
                    f"{self.name}: column {name!r} must have one shape, got {np.shape(value)} in "
                    f"row {row} and {first} in row {index[0]}; decode=function can resize or pad"
                )
        return np.asarray(values)


def array_records(
    paths: Sequence[Path],
    decode: Callable[[Any], Mapping[str, Any]] | None,
    columns: Sequence[str] | None,
) -> Records:
    """Open ArrayRecord files; those that TFDS prepared are decoded by its `features.json`."""
    reading = require("array_record.python.array_record_data_source", extra="data")

    splits = {re.sub(r"\.array_record.*", "", path.name) for path in paths}
    if (paths[0].parent / "features.json").exists():
        if len(splits) > 1:
            raise ValueError(
                f"source must name one split, such as {paths[0].parent / min(splits)}"
                f".array_record*, got {', '.join(sorted(splits))}"
            )
        decode = _TfdsDecode(str(paths[0].parent), decode)
    try:
        source = reading.ArrayRecordDataSource([str(path) for path in paths])
    except Exception as error:  # a RuntimeError or ValueError of C++, depending on the damage
        raise ValueError(
            f"{paths[0]} must be a whole ArrayRecord file, got an error: {error}"
        ) from None
    return Records(source, decode, columns, str(paths[0].parent))


class _TfdsDecode:
    """Bytes to columns by the features of a prepared TFDS set, then the user's function."""

    def __init__(self, directory: str, then: Callable[[Any], Mapping[str, Any]] | None) -> None:
        self.directory, self.then = directory, then

    @functools.cached_property
    def features(self) -> Any:
        tfds = require("tensorflow_datasets", extra="data")

        return tfds.features.FeatureConnector.from_config(self.directory)

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "then": self.then}

    def __call__(self, record: bytes) -> Mapping[str, Any]:
        row = self.features.deserialize_example_np(record)
        return self.then(row) if self.then else row


class Group(NamedTuple):
    """One row group of a Parquet file."""

    path: str
    number: int
    rows: int


class Parquet:
    """Row groups of Parquet files. A group is read whole, and no file stays open."""

    def __init__(self, paths: Sequence[Path], columns: Sequence[str] | None) -> None:
        pa = require("pyarrow", extra="data")
        pq = require("pyarrow.parquet", extra="data")

        self.groups: list[Group] = []
        types: dict[str, Any] = {}
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    meta, schema = file.metadata, file.schema_arrow
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(
                    f"{path} must be a whole Parquet file, got an error: {error}"
                ) from None
            if not types:
                self.columns = _chosen(path, schema.names, columns)
                types = {name: schema.field(name).type for name in self.columns}
            for name in _chosen(path, schema.names, self.columns):
                if schema.field(name).type != types[name]:
                    raise ValueError(
                        f"{path}: column {name!r} must be {types[name]}, as in {paths[0]}, got "
                        f"{schema.field(name).type}"
                    )
            rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
            self.groups += [Group(str(path), i, n) for i, n in enumerate(rows) if n]
        self.rows = sum(group.rows for group in self.groups)
        if not self.groups:
            raise ValueError(f"{paths[0]} must have at least 1 row, got 0")

    def read(self, group: Group) -> Columns:
        """All rows of a row group, with the dtypes of the file."""
        pq = require("pyarrow.parquet", extra="data")

        with pq.ParquetFile(group.path) as file:
            # without threads, because the stream has its own, and the stack of each takes memory
            table = file.read_row_group(group.number, columns=self.columns, use_threads=False)
        where = f"{group.path}: row group {group.number}"
        return {name: _arrow(f"{where}: column {name!r}", table[name]) for name in self.columns}


def _arrow(where: str, column: Any) -> np.ndarray:
    """An Arrow column as an array; (nested) lists of equal length become axes."""
    pa = require("pyarrow", extra="data")

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # it has no chunks, or is too large for one
        array = pa.concat_arrays(array.chunks)
    shape = [len(array)]
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        if array.null_count:
            raise ValueError(f"{where} must have no missing values, got {array.null_count}")
        flat = array.flatten()
        if pa.types.is_list(array.type):
            lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
            if len(lengths) > 1:
                raise ValueError(
                    f"{where} must have lists of equal length, got {lengths[0]} to {lengths[-1]} "
                    "values; pad them"
                )
        shape.append(len(flat) // max(1, len(array)))
        array = flat
    if array.null_count and not pa.types.is_floating(array.type):
        raise ValueError(
            f"{where} must have no missing values of {array.type}, got {array.null_count}"
        )
    return array.to_numpy(zero_copy_only=False).reshape(shape)
