"""What a server tells of drift: metrics of each model's sketch, and sketches in a folder."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxops._optional import require
from jaxops.monitor.observing import Observer
from jaxops.monitor.reading import missing_rates, out_of_range_rates, psi_of, told
from jaxops.monitor.snapshots import write_snapshot
from jaxops.serve.versions import Models


def observer_of(served: Any) -> Observer | None:
    """The observer of a served model; None for a model without a reference."""
    found: Observer | None = getattr(served.model, "observer", None)
    return found


def families(models: Models) -> Iterator[Any]:
    """The drift of each used version and column since it was loaded, for Prometheus.

    Args:
        models: the served models.
    """
    make = require("prometheus_client.core", extra="serve")
    labels = ["model", "version", "column"]
    psi = make.GaugeMetricFamily(
        "jaxops_drift_psi", "Population stability index since the version was loaded", labels=labels
    )
    missing = make.GaugeMetricFamily(
        "jaxops_missing_rate", "Share of rows without a value since then", labels=labels
    )
    outside = make.GaugeMetricFamily(
        "jaxops_out_of_range_rate",
        "Share of rows outside of the reference's range, or of a new category, since then",
        labels=labels,
    )
    rows = make.CounterMetricFamily("jaxops_observed_rows", "Rows counted", labels=labels[:2])
    for served in models.used():
        observer = observer_of(served)
        if observer is None:
            continue
        sketch, own = observer.sketch(), [served.name, served.version]
        count = int(sketch.counts[0])
        rows.add_metric(own, count)
        if not count:  # no share of nothing
            continue
        for column, value in psi_of(observer.reference, sketch).items():
            psi.add_metric([*own, column], value)
        found = told(observer.reference, sketch)
        for column, value in missing_rates(found).items():
            missing.add_metric([*own, column], value)
        for column, value in out_of_range_rates(found).items():
            outside.add_metric([*own, column], value)
    yield from (psi, missing, outside, rows)


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
