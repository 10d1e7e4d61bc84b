"""What a server tells of drift: metrics of each model's sketch, and sketches in a folder."""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.monitor.observing import History, Observer
from jaxops.monitor.reading import missing_rates, out_of_range_rates, psi_of, told
from jaxops.monitor.sketches import Sketch, merge
from jaxops.monitor.snapshots import write_snapshot
from jaxops.serve.models import Served
from jaxops.serve.versions import Models
from jaxops.serve.watch import SHARED

SPANS = {"": "since the version was loaded", "_hour": "in the last hour"}
FIGURES = {
    "jaxops_drift_psi": "Population stability index",
    "jaxops_missing_rate": "Share of rows without a value",
    "jaxops_out_of_range_rate": "Share of rows outside of the reference's range, or of a new "
    "category,",
}


def observer_of(served: Any) -> Observer | None:
    """The observer of a served model; None for a model without a reference."""
    found: Observer | None = getattr(served.model, "observer", None)
    return found


def families(models: Models) -> Iterator[Any]:
    """The drift of each used version and column, for Prometheus; of all workers, if there are.

    Args:
        models: the served models.
    """
    make = require("prometheus_client.core", extra="serve")
    labels, now, gauges = ["model", "version", "column"], time.monotonic(), {}
    for span, when in SPANS.items():
        for name, told_of in FIGURES.items():
            gauge = make.GaugeMetricFamily(f"{name}{span}", f"{told_of} {when}", labels=labels)
            gauges[name + span] = gauge
    rows = make.CounterMetricFamily("jaxops_observed_rows", "Rows counted", labels=labels[:2])
    recent = make.GaugeMetricFamily(
        "jaxops_observed_rows_hour", "Rows counted in the last hour", labels=labels[:2]
    )
    for served in models.used():
        observer, own = observer_of(served), [served.name, served.version]
        if observer is None or not (histories := _histories(served, observer)):
            continue
        total = functools.reduce(merge, (one.total for one in histories))
        hour = functools.reduce(merge, (one.last_hour(now) for one in histories))
        rows.add_metric(own, int(total.counts[0]))
        recent.add_metric(own, int(hour.counts[0]))
        for span, sketch in zip(SPANS, (total, hour), strict=True):
            if not sketch.counts[0]:  # no share of nothing
                continue
            found = told(observer.reference, sketch)
            values = psi_of(observer.reference, sketch), missing_rates(found)
            for name, shares in zip(FIGURES, (*values, out_of_range_rates(found)), strict=True):
                for column, value in shares.items():
                    gauges[name + span].add_metric([*own, column], value)
    yield from (*gauges.values(), recent, rows)


def _histories(served: Served, observer: Observer) -> list[History]:
    """What was counted of a version: by this process alone, or by each worker."""
    folder = os.environ.get(SHARED)
    if folder is None:
        return [observer.history()]
    return [_read(file) for file in sorted(_place(Path(folder), served).glob("[!.]*.npz"))]


def _place(folder: Path, served: Served) -> Path:
    return folder / f"{served.name}@{served.version}"  # no name has an @


def _read(file: Path) -> History:
    with np.load(file) as arrays:
        rows = zip(*(arrays[name] for name in Sketch._fields), strict=True)
        total, *marks = (Sketch(*row) for row in rows)
        return History(total, tuple(arrays["times"].tolist()), tuple(marks))


class Shared:
    """Writes what a worker has counted to the folder of the workers' metrics.

    What a worker wrote last stays when it is killed, as its other metrics do.

    Args:
        models: the served models.
    """

    def __init__(self, models: Models) -> None:
        self._models, self._folder = models, Path(os.environ[SHARED])
        self._written: dict[Served, Sketch] = {}

    def write(self) -> None:
        """Write a file for each version that has counted rows since the last time.

        Raises:
            OSError: a file cannot be written.
        """
        for served in self._models.used():
            observer = observer_of(served)
            if observer is None:
                continue
            history = observer.history()
            if self._written.get(served) is history.total:
                continue
            sketches = zip(history.total, *history.marks, strict=True)
            arrays: dict[str, Any] = dict(zip(Sketch._fields, map(np.stack, sketches), strict=True))
            place = _place(self._folder, served)
            place.mkdir(exist_ok=True)
            beside = place / f".{os.getpid()}.npz"
            np.savez(beside, times=np.array(history.times), **arrays)
            beside.replace(place / f"{os.getpid()}.npz")
            self._written[served] = history.total


class Snapshots:
    """Writes what each model has counted to a folder: at intervals, and when it is closed.

    Args:
        models: the served models.
        folder: of the sketches, see `monitor.read_snapshots`.
        interval: seconds.
        failed: is called with an error of writing, after which the next interval goes on.
    """

    def __init__(
        self,
        models: Models,
        folder: Path,
        interval: float,
        failed: Callable[[OSError], None],
    ) -> None:
        self._models, self._folder, self._interval = models, folder, interval
        self._failed, self._end = failed, threading.Event()
        self._before = models.loaded()
        self._thread = threading.Thread(target=self._work, name="jaxops-sketches", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is told at the start

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left, and end."""
        self._end.set()
        self._thread.join()
        self.write()

    def write(self) -> None:
        """Write the rows of each version since its last snapshot, also of one unloaded since."""
        before, self._before = self._before, self._models.loaded()
        for served in dict.fromkeys([*before, *self._before]):
            observer = observer_of(served)
            try:
                if observer is not None:
                    write_snapshot(self._folder, observer, served.name, served.version)
            except OSError as error:
                self._failed(error)

    def _work(self) -> None:
        while not self._end.wait(self._interval):
            self.write()
