"""What a server tells of itself: metrics for Prometheus, and a line of JSON for each request.

No line and no metric holds what a request sent or was answered, nor an address.
"""

import datetime
import functools
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxops._optional import require

LOG = logging.getLogger("jaxops.serve")
AUDIT = logging.getLogger("jaxops.serve.audit")
COMPILED = "/jax/core/compile/backend_compile_duration"
SECONDS = (*(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), float("inf"))
DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, float("inf"))
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # set before the start where several workers count together
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, float("inf"))


@dataclass
class Record:
    """What is told of a request, besides its time and status."""

    id: str
    method: str
    key: str = ""
    model: str = ""
    version: str = ""
    rows: int = 0
    bytes: int = 0  # of the body
    tokens: int = 0  # of a generated text
    status: int = 499  # the client went before there was an answer
    start: float = field(default_factory=time.perf_counter)


@functools.cache
def compilations() -> Callable[[], int]:
    """What counts the programs that XLA has compiled in this process since the first call."""
    seen: list[float] = []

    def on_event(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return lambda: len(seen)


class Watch:
    """The metrics and logs of one application.

    Args:
        queued: gives the number of requests that wait.
        drift: gives the metrics of the models' drift.
    """

    def __init__(self, queued: Callable[[], int], drift: Callable[[], Iterable[Any]]) -> None:
        self._prometheus = require("prometheus_client", extra="serve")
        self._registry = self._prometheus.CollectorRegistry()
        self._queued, self._drift, self._seen = queued, drift, 0
        self._compiled = compilations()
        counter, histogram = self._prometheus.Counter, self._prometheus.Histogram
        own = {"registry": self._registry}
        labels = ["model", "version", "route", "status"]
        self._requests = counter("jaxops_requests", "Requests", labels, **own)
        told = "Seconds from a request to its answer"
        self._seconds = histogram(
            "jaxops_request_seconds", told, labels[:3], buckets=SECONDS, **own
        )
        self._rows = histogram(
            "jaxops_batch_rows", "Rows of a batch", ["model"], buckets=ROWS, **own
        )
        told = "Answers of a version in shadow, by how they differ"
        labels = ["model", "version", "shadow", "outcome"]
        self._shadows = counter("jaxops_shadow_answers", told, labels, **own)
        told = "Largest difference of the fractions of two answers"
        self._difference = histogram(
            "jaxops_shadow_difference", told, labels[:3], buckets=DIFFERENCES, **own
        )
        told = "Requests that wait"
        self._queue = self._prometheus.Gauge(
            "jaxops_queue", told, multiprocess_mode="livesum", **own
        )
        self._programs = counter("jaxops_compilations", "Programs compiled by XLA", **own)
        self._registry.register(self)

    def look(self) -> None:
        """Set the metrics that no event tells, in the thread of the loop."""
        self._queue.set(self._queued())
        compiled = self._compiled()
        self._programs.inc(compiled - self._seen)
        self._seen = compiled

    def collect(self) -> Iterable[Any]:
        """The drift of the models, which is read when it is asked for."""
        return self._drift()

    def text(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its content type; those of all workers."""
        registry = self._registry
        if SHARED in os.environ:
            registry = self._prometheus.CollectorRegistry()
            multiprocess = require("prometheus_client.multiprocess", extra="serve")
            multiprocess.MultiProcessCollector(registry)
            registry.register(self)
        text: bytes = self._prometheus.generate_latest(registry)
        return text, self._prometheus.CONTENT_TYPE_LATEST

    def metric(self, kind: str, name: str, told: str, **how: Any) -> Any:
        """One more metric with a value for each model: a "Counter", "Gauge" or "Histogram"."""
        make = getattr(self._prometheus, kind)
        return make(name, told, ["model"], registry=self._registry, **how)

    def batch(self, model: str, rows: int) -> None:
        """Count a batch."""
        self._rows.labels(model).observe(rows)

    def done(self, record: Record, route: str) -> None:
        """Count and log a request that has ended."""
        seconds = time.perf_counter() - record.start
        labels = record.model, record.version, route
        self._requests.labels(*labels, str(record.status)).inc()
        self._seconds.labels(*labels).observe(seconds)
        told = {name: value for name, value in vars(record).items() if name != "start" and value}
        LOG.info(line(route=route, milliseconds=round(1000 * seconds, 3), **told))

    def shadow(
        self, record: Record, version: str, outcome: str, difference: float | None = None
    ) -> None:
        """Count what a version told in shadow of the one that answered a request."""
        labels = record.model, record.version, version
        self._shadows.labels(*labels, outcome).inc()
        if difference is not None:
            self._difference.labels(*labels).observe(difference)

    def failed(self, record: Record, error: BaseException) -> None:
        """Log where an error that nobody expected came from, without its message."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
        LOG.error(line(id=record.id, error=type(error).__name__, place=place))

    def unwritten(self, error: OSError) -> None:
        """Log that a sketch could not be written; its rows are in the next one."""
        LOG.error(line(error=type(error).__name__, reason=error.strerror or "", sketch="late"))

    def audit(self, record: Record, act: str, **told: Any) -> None:
        """Log an act of an administrator."""
        AUDIT.info(line(id=record.id, key=record.key, act=act, **told))


def line(**told: Any) -> str:
    """A line of the log, with the time.

    >>> json.loads(line(act="load"))["act"]
    'load'
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, **told})
