"""Sketches in a folder: one small file for the rows of a while, of one process.

Any number of processes and machines may write to one folder. Who reads it merges the files, so a
report needs no process that still runs.
"""

import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxops.monitor.sketches import Reference, Sketch, merge, on_host

SUFFIX = ".sketch"


class Snapshot(NamedTuple):
    """The sketch of the rows of a while.

    Attributes:
        model: the name of the model.
        version: of the model.
        start: when counting began, UTC.
        end: when it ended, UTC.
        sketch: of the rows, int64 and float64.

    >>> now = datetime.datetime(2026, 1, 1)
    >>> Snapshot("churn", "1", now, now, None).model
    'churn'
    """

    model: str
    version: str
    start: datetime.datetime
    end: datetime.datetime
    sketch: Sketch


def write_snapshot(folder: str | Path, reference: Reference, snapshot: Snapshot) -> Path | None:
    """Write a sketch to a folder, for `read_snapshots`; an interrupted write leaves no file.

    Args:
        folder: is made if it does not exist.
        reference: of the model.
        snapshot: of what this process has counted; one without rows is not written.

    Returns:
        The file, or None.

    Raises:
        OSError: the file cannot be written.

    >>> import tempfile
    >>> from jaxops.monitor.sketches import learned
    >>> from jaxops.monitor.views import NumberPart
    >>> one = learned((NumberPart("x"),), {"x": np.arange(3.0)}, None)
    >>> start, end = (datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (1, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for _ in range(2):
    ...         _ = write_snapshot(folder, one, Snapshot("churn", "1", start, end, one.sketch))
    ...     [merged] = read_snapshots(folder, one, whole=True)
    >>> int(merged.sketch.counts[0]), merged.end.day
    (6, 2)
    """
    from safetensors.numpy import save_file

    sketch = on_host(snapshot.sketch)
    if not sketch.counts.any():
        return None
    told = {
        "model": snapshot.model,
        "version": snapshot.version,
        "start": snapshot.start.isoformat(),
        "end": snapshot.end.isoformat(),
        "reference": reference.id,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{snapshot.model}-{snapshot.end:%Y%m%dT%H%M%S%f}-{socket.gethostname()}-{os.getpid()}"
    path, number = folder / f"{stem}{SUFFIX}", 0
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{SUFFIX}"
    beside = path.with_name(f".{path.name}")
    try:
        save_file(sketch._asdict(), beside, {"jaxops": json.dumps(told)})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def read_snapshots(
    folder: str | Path, reference: Reference, *, model: str | None = None, whole: bool = False
) -> list[Snapshot]:
    """The sketches in a folder that belong to a reference, in the order of their ends.

    Args:
        folder: that `jaxops serve --sketches` or `write_snapshot` has written to.
        reference: of the model; files of other references, as of other models, are left out.
        model: the name of the model; by default any.
        whole: merge all of them into one, of the last version.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a file that holds no sketch.

    >>> read_snapshots("nowhere", None)
    Traceback (most recent call last):
    FileNotFoundError: nowhere: no such folder
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    wanted = reference.id
    found = [one for one, id in _snapshots(folder) if id == wanted and model in (None, one.model)]
    found.sort(key=lambda one: (one.end, one.start))
    if not whole or not found:
        return found
    sketch = found[0].sketch
    for one in found[1:]:
        sketch = merge(sketch, one.sketch)
    return [found[-1]._replace(start=min(one.start for one in found), sketch=sketch)]


def _snapshots(folder: Path) -> Iterator[tuple[Snapshot, str]]:
    """Each snapshot in a folder with the id of its reference."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob(f"[!.]*{SUFFIX}")):
        try:
            with safe_open(path, framework="numpy") as file:
                told = json.loads((file.metadata() or {})["jaxops"])
                sketch = Sketch(*(np.asarray(file.get_tensor(n)) for n in Sketch._fields))
            start, end = (datetime.datetime.fromisoformat(told[n]) for n in ("start", "end"))
            one = Snapshot(told["model"], told["version"], start, end, sketch)
            reference = str(told["reference"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must be a sketch of jaxops, got another file: {error}") from (
                error
            )
        yield one, reference
