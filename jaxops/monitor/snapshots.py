"""Sketches in a folder: one small file for the rows of a while, of one process.

Any number of processes and machines may write to one folder. Who reads it merges the files, so a
report needs no process that still runs.
"""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxops.monitor.observing import Observer
from jaxops.monitor.sketches import Reference, Sketch, merge

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


def write_snapshot(
    folder: str | Path, observer: Observer, model: str, version: str = "", stem: str = ""
) -> Path | None:
    """Write what an observer has counted since the last time to a folder, for `read_snapshots`.

    An interrupted write leaves no file.

    Args:
        folder: is made if it does not exist.
        observer: of the model.
        model: the name of the model.
        version: of the model.
        stem: the name of the file, which takes the place of one that has it; by default a new one.

    Returns:
        The file; None where there were no rows.

    Raises:
        OSError: the file cannot be written; the rows are in the file of the next time then.

    >>> import tempfile
    >>> from jaxops.monitor.sketches import learned
    >>> from jaxops.monitor.views import NumberPart
    >>> observer = Observer(learned((NumberPart("x"),), {"x": np.arange(3.0)}, None))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(write_snapshot(folder, observer, "churn"))
    None
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    start, end, sketch = observer.window()
    if not sketch.counts.any():
        return None
    told = {
        "model": model,
        "version": version,
        "start": start.isoformat(),
        "end": end.isoformat(),
        "reference": observer.reference.id,
    }
    folder = Path(folder)
    new = f"{model}-{end:%Y%m%dT%H%M%S%f}-{socket.gethostname()}-{os.getpid()}-{version}"
    path = folder / f"{stem or new}{SUFFIX}"
    beside = path.with_name(f".{path.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(sketch._asdict(), beside, {"jaxops": json.dumps(told)})
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        observer.give_back(start, sketch)
        raise OSError(f"{path}: the sketch could not be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return path


def read_snapshots(
    folder: str | Path, reference: Reference, *, model: str | None = None, whole: bool = False
) -> list[Snapshot]:
    """The sketches in a folder that belong to a reference, in the order of their ends.

    Args:
        folder: of the option `--sketches` of `jaxops serve` and `predict`, or of `write_snapshot`.
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
