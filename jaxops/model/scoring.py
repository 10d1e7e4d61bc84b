"""Answers for files of any length: as one file, or as a folder of parts that survives a kill.

A part has the answers for `PART` rows of the data, so its number says which rows these are. It is
written beside its place, brought to the disk and renamed, and only then is it recorded in
`_manifest.json`, in the same way. The same call, made again, makes the parts that are not recorded.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxops._optional import require
from jaxops.data import parquet_files, tables
from jaxops.model.files import load
from jaxops.model.finished import Model
from jaxops.monitor.observing import observed
from jaxops.monitor.snapshots import write_snapshot
from jaxops.train import checksums
from jaxops.train.checkpoint import lock

ROWS = 50_000  # rows that are read and predicted at a time
PART = 500_000  # rows of a part
MANIFEST = "_manifest.json"  # readers of folders pass over names that begin so
FORMAT = 1


def score(
    path: Path, data: str, out: Path, actors: int | None = None, sketches: Path | None = None
) -> str:
    """Write a model's answers for a file into a folder of Parquet files, and go on where it ended.

    Args:
        path: the model file; the rows of its room are independent of each other.
        data: a CSV (also .gz) or Parquet file; with `actors` a Parquet file.
        out: the folder; it is new, or is one of the same model and data.
        actors: number of Ray actors, each with a model; None predicts in this process.
        sketches: a folder for the sketch of the rows of each part, see `monitor.read_snapshots`. A
            part that is made again has the same file there, so it counts once.

    Returns:
        A line that says what the folder has.

    Raises:
        ValueError: a model whose rows are not independent; data that the model cannot read; a
            folder of another model or of other data, or with other files, or whose parts have
            their sketches elsewhere; a model file or data that change meanwhile, of which no part
            is recorded; sketches of a model without a reference.
        OSError: the folder cannot be written to, or another process writes to it. Complete parts
            are kept.
    """
    before = {str(path): _state(path), data: _state(data)}
    model = load(path)
    if not getattr(model.reader, "streams", False):
        raise ValueError(
            f"out must be a .parquet or .csv file for {model.room or 'a model without a reader'}, "
            f"whose rows are not independent, got the folder {out}"
        )
    if Path(data).is_dir():
        raise ValueError(f"data must be one file, CSV or Parquet, got the folder {data}")
    if actors is not None and Path(data).suffix not in tables.PARQUET:
        raise ValueError(
            f"data must be a Parquet file for Ray, whose actors read in several places, got {data}"
        )
    model = model if sketches is None else observed(model)
    with Folder(out) as folder:
        made = {"model": checksums.sha256(path), "data": checksums.sha256(Path(data))}
        place = None if sketches is None else str(sketches.resolve())
        names = json.dumps([str(out.resolve()), PART, *made.values()])
        stem = f"{path.stem}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"
        kept = None if place is None else Kept(place, path.stem, stem)
        try:
            folder.begin({**made, "sketches": place})
            if folder.finished:
                return f"finished before: {folder}"
            if folder.parts:
                print(f"resumed: {folder}")
            parts = _here(model, data, folder, kept)
            if actors is not None:
                parts = _on_ray(path, data, folder, actors, kept)
            for number, part in parts:
                _check_unchanged(before)  # else a part of another file would be recorded
                folder.add(number, part)
            _check_unchanged(before)
            folder.finish()
        except OSError as error:
            raise OSError(
                f"{folder}, are kept, and the same command goes on after them: {error}"
            ) from error
        return f"written: {folder}"


def answers(
    model: Model, data: str, rows: int | None = None, first: int = 0, **options: Any
) -> Iterator[Any]:
    """The frames of a model's answers: several if its reader says that rows are independent.

    Args:
        model: the model.
        data: what its reader reads.
        rows: number of rows in a frame; `ROWS` by default.
        first: the row to begin with, if rows are independent.
        **options: of the reader, if they are not.

    Raises:
        ValueError: data that the reader cannot read; the message names the rows.
    """
    if not getattr(model.reader, "streams", False) or Path(data).is_dir():
        yield model.predict(data, **options).frame()
        return
    for part in tables.parts(data, rows or ROWS, first):
        try:
            answer = model.predict(part, first=first)
        except ValueError as error:
            last = first + len(part) - 1
            raise ValueError(f"{data}, of rows {first:,} to {last:,}: {error}") from error
        yield answer.frame()
        first += len(part)
    if first == 0:
        raise ValueError(f"{data} must have at least 1 row, got 0")


def write(path: Path, frames: Iterator[Any]) -> int:
    """Write frames one after the other to a Parquet or CSV file, and return the number of rows.

    Raises:
        ValueError: a frame with other columns than the first.
        OSError: the file cannot be written.
    """
    pa, pq = require("pyarrow", extra="data"), require("pyarrow.parquet", extra="data")

    rows, writer = 0, None
    with open(path, "wb") as file, contextlib.ExitStack() as last:
        for frame in frames:
            if path.suffix == ".csv":
                frame.to_csv(file, index=False, header=rows == 0)
            else:
                arrow = pa.Table.from_pandas(frame, preserve_index=False)
                writer = writer or last.enter_context(pq.ParquetWriter(file, arrow.schema))
                check_same(_columns(writer.schema), _columns(arrow.schema))
                writer.write_table(arrow)
            rows += len(frame)
    return rows


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside a file, to be written: the file has all of it afterwards, or is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "a.txt") as beside:
    ...         _ = beside.write_text("all of it")
    ...     (Path(folder) / "a.txt").read_text(), len([*Path(folder).iterdir()])
    ('all of it', 1)
    """
    beside = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class Folder:
    """A folder of parts, to which one process at a time writes.

    Attributes:
        parts: number of a part -> its rows and bytes; all of them are whole and on the disk.
        finished: whether there are no further rows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place, Folder(Path(place)) as folder:
    ...     folder.begin({"model": "3f", "data": "9a"})
    ...     folder.finished, len(folder.parts)
    (False, 0)
    """

    def __init__(self, path: Path) -> None:
        if path.is_file():
            raise ValueError(f"out must be a folder, or end in .parquet or .csv, got {path}")
        path.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, lock(path, "answer")
        self.parts: dict[int, dict[str, int]] = {}
        self.finished = False
        self._made: dict[str, Any] = {}
        self._columns: dict[str, str] = {}

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self._lock)

    def __str__(self) -> str:
        rows = sum(part["rows"] for part in self.parts.values())
        return f"{self.path}, {rows:,} rows in {len(self.parts):,} parts"

    def begin(self, made: dict[str, Any]) -> None:
        """Read which parts there are, or begin the manifest of an empty folder.

        A part whose file is missing or has another size is to be made again.

        Args:
            made: what the parts are made of; with the number of rows in a part it must be the same.

        Raises:
            ValueError: parts of something else, or other files.
        """
        self._made = {**made, "rows": PART}
        self._clear()
        file = self.path / MANIFEST
        if not file.exists():
            other = next(self.path.iterdir(), None)
            if other is not None:
                raise ValueError(f"out must be a folder of parts or empty, got {other} in it")
            self._write()
            return
        try:
            manifest = json.loads(file.read_text())
            known, was, self._columns = manifest["format"], manifest["made"], manifest["columns"]
            parts = {int(number): part for number, part in manifest["parts"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} must be a manifest of parts, got another text") from error
        if known != FORMAT:
            raise ValueError(f"{file} must have the format {FORMAT}, got {known}")
        if not parts:  # what begun without one may have been of something else
            for left in self.path.glob("part-*.parquet"):
                left.unlink()
            self._write()
            return
        for what, value in self._made.items():
            if was.get(what) != value:
                raise ValueError(
                    f"{what} must be as for the parts in {self.path}, {was.get(what)}, got "
                    f"{value}; give another folder"
                )
        self.parts = {n: part for n, part in parts.items() if _size(self.path, n) == part["bytes"]}
        self.finished = manifest["finished"] and len(self.parts) == len(parts)

    def add(self, number: int, part: dict[str, Any]) -> None:
        """Record a part that `write_part` has written.

        Raises:
            ValueError: it has other columns than the parts before.
        """
        self._columns = self._columns or part["columns"]
        check_same(self._columns, part["columns"])
        self.parts[number] = {name: part[name] for name in ("rows", "bytes")}
        os.fsync(self._lock)  # the file's name, before the manifest's
        self._write()

    def finish(self) -> None:
        """Record that there are no further rows."""
        self._clear()
        self.finished = True
        self._write()

    def _clear(self) -> None:
        """Remove what a killed process, or a killed actor of Ray, has begun."""
        for left in self.path.glob(f".{'[0-9a-f]' * 32}.*"):
            left.unlink(missing_ok=True)

    def _write(self) -> None:
        with whole(self.path / MANIFEST) as beside:
            kept = {
                "made": self._made,
                "columns": self._columns,
                "parts": dict(sorted(self.parts.items())),
            }
            text = json.dumps({"format": FORMAT, **kept, "finished": self.finished}, indent=1)
            beside.write_text(text)
        os.fsync(self._lock)


def write_part(folder: Path, number: int, frames: Iterator[Any]) -> dict[str, Any]:
    """Write a part, and return its rows, bytes and columns."""
    pq = require("pyarrow.parquet", extra="data")

    path = part_file(folder, number)
    with whole(path) as beside:
        write(beside, frames)
        metadata = pq.read_metadata(beside)
    columns = _columns(metadata.schema.to_arrow_schema())
    return {"rows": metadata.num_rows, "bytes": path.stat().st_size, "columns": columns}


def part_file(folder: Path, number: int) -> Path:
    """The file of a part.

    >>> part_file(Path("scores"), 3).name
    'part-000003.parquet'
    """
    return folder / f"part-{number:06d}.parquet"


def check_same(wanted: dict[str, str], got: dict[str, str]) -> None:
    """Check that a part has the columns of the rows before.

    Raises:
        ValueError: another column, or one of another type.

    >>> check_same({"id": "int64"}, {"id": "string"})
    Traceback (most recent call last):
    ValueError: answers must have the columns of the rows before, id int64, got id string
    """
    if wanted != got:
        told = [", ".join(f"{n} {one}" for n, one in named.items()) for named in (wanted, got)]
        raise ValueError(
            f"answers must have the columns of the rows before, {told[0]}, got {told[1]}"
        )


def _columns(schema: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _size(folder: Path, number: int) -> int | None:
    path = part_file(folder, number)
    return path.stat().st_size if path.exists() else None


def _state(file: str | Path) -> tuple[int, int]:
    """What changes when somebody writes to a file."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _check_unchanged(before: dict[str, tuple[int, int]]) -> None:
    for file, state in before.items():
        if _state(file) != state:
            raise ValueError(f"{file} must stay as it is while it is read, got a change of it")


class Kept(NamedTuple):
    """Where the sketches of parts are kept: one file a part, of one name however often it is made.

    Attributes:
        folder: of `write_snapshot`.
        model: the name of the model.
        stem: what the names of the files begin with.

    >>> Kept("sketches", "churn", "churn-3f").stem
    'churn-3f'
    """

    folder: str
    model: str
    stem: str

    def write(self, model: Any, number: int) -> None:
        """Write what an observed model has counted since the part before."""
        stem = f"{self.stem}-part-{number:06d}"
        write_snapshot(self.folder, model.observer, self.model, stem=stem)


def _here(
    model: Model, data: str, folder: Folder, kept: Kept | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Make the parts that are missing, in order, in this process."""
    rows = min(ROWS, PART)
    position = -1
    frames: Iterator[Any] = iter(())
    for number in itertools.count():
        if number in folder.parts:
            continue
        if number != position:
            frames = answers(model, data, rows, number * PART)
        part = list(itertools.islice(frames, 1))  # none after the last row
        if not part:
            return
        more = itertools.islice(frames, PART // rows - 1)
        record = write_part(folder.path, number, itertools.chain(part, more))
        if kept is not None:  # before the part is recorded: one that is not is made again
            kept.write(model, number)
        yield number, record
        position = number + 1


def _on_ray(
    path: Path, data: str, folder: Folder, actors: int, kept: Kept | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Make the parts that are missing, as they come, on a cluster whose machines see the files."""
    ray, ray_data = require("ray", extra="ray"), require("ray.data", extra="ray")

    numbers = range(math.ceil(parquet_files.count(data) / PART))
    missing = [{"number": number} for number in numbers if number not in folder.parts]
    if not missing:
        return
    files = [str(Path(name).absolute()) for name in (path, data, folder.path)]
    with contextlib.nullcontext() if ray.is_initialized() else ray.init():
        scored = ray_data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            _Scorer,
            fn_constructor_args=(*files, min(ROWS, PART), PART, kept),
            batch_size=1,
            compute=ray_data.ActorPoolStrategy(size=actors),
            num_gpus=min(1, ray.cluster_resources().get("GPU", 0)),
        )
        for row in scored.iter_rows():
            part = json.loads(row["part"])
            if "error" in part:
                raise (OSError if part["disk"] else ValueError)(part["error"])
            yield int(row["number"]), part


class _Scorer:
    """What is in an actor of Ray: the model, which makes a part by its number.

    A part that an actor makes a second time, because the one before was killed, has the same name.
    """

    def __init__(
        self, path: str, data: str, folder: str, rows: int, part: int, kept: Kept | None
    ) -> None:
        self.model: Any = load(path)
        self.data, self.folder = data, Path(folder)
        self.rows, self.part, self.kept = rows, part, kept
        if kept is not None:
            self.model = observed(self.model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One part: {"number": (1,)} to that and its record as JSON, or what went wrong."""
        (number,) = batch["number"].tolist()
        if self.kept is not None:  # what a part that failed has counted is counted with its file
            self.model.observer.clear()
        frames = answers(self.model, self.data, self.rows, number * self.part)
        part = itertools.islice(frames, self.part // self.rows)
        try:
            record = write_part(self.folder, number, part)
            if self.kept is not None:
                self.kept.write(self.model, number)
        except (ValueError, OSError) as error:  # by Ray itself it would be many lines
            record = {"error": str(error), "disk": isinstance(error, OSError)}
        return {"number": batch["number"], "part": [json.dumps(record)]}
