"""Models that count the rows they predict: their reference, and the sketch of later rows."""

import dataclasses
import datetime
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxops._shapes import next_power_of_two
from jaxops.devices.plans import default
from jaxops.model.finished import Model, watched
from jaxops.monitor import sketches
from jaxops.monitor.sketches import Reference, Sketch, merge, on_host
from jaxops.monitor.views import parts_of
from jaxops.task import Batch, Task
from jaxops.train.evaluation import InOrder
from jaxops.train.resident import pad

KEPT = 1024  # batches after which the sketch of the device goes to the host, in float64
LARGEST = 20_000  # rows of a reference
COUNTED = 4096  # rows at a time of what no program of a task predicts
HOUR, MINUTE = 3600.0, 60.0  # seconds


def reference_of(model: Model, columns: Mapping[str, Any]) -> Reference:
    """The reference of a model, from rows that it did not learn from.

    Of more than 20,000 rows that many are taken, at equal distances.

    Args:
        model: a task and its state, or a blend of tasks.
        columns: the encoded columns of at least one row, see `Model.outputs`.

    Raises:
        ValueError: a model of a closed form, or whose outputs are no array.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> rows = {"features": np.eye(3, dtype=np.float32)}
    >>> task = tabular.classifier(tabular.MLP((4,)), features=3)
    >>> model = Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows))
    >>> reference_of(model, rows).numbers
    ['features 0', 'features 1', 'features 2', 'prediction']
    """
    some = _some(model, columns)
    return _learned(model, some, model.outputs(some))


def _some(model: Model, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """At most 20,000 rows of the columns that a model reads."""
    task = _task_of(model)
    if task is None:
        kind = type(model.task).__name__
        raise ValueError(f"model must have a task, whose columns can be counted, got a {kind}")
    names = [column.name for column in task.columns if not column.target]
    count = len(columns[names[0]])
    return {name: np.asarray(columns[name])[:: -(-count // LARGEST)] for name in names}


def _learned(model: Model, columns: Mapping[str, Any], outputs: Any) -> Reference:
    task = _task_of(model)
    assert task is not None  # `_some` has said so
    return sketches.learned(parts_of(task, model.reader, outputs), columns, outputs)


def with_reference(model: Model, data: Any) -> Model:
    """The model with the reference that rows of raw data give, for a file or for `observed`.

    `fit` of tables, texts and images has added one, of the validation rows.

    Args:
        model: whose reader makes encoded columns.
        data: raw input, as `model.predict` takes it; better not the rows it has learned from.

    Raises:
        ValueError: a model that does not predict by the columns of a task, such as trees.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(40.0), "left": np.arange(40) % 2}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> with_reference(model, table).reference.numbers
    ['age', 'prediction']
    """
    seeing = watched(model)
    if _task_of(model) is not None:
        seeing.predict(data)
    seen = seeing.seen
    if not seen:
        kind = type(model.task).__name__
        raise ValueError(f"model must predict by the columns of a task, got a {kind}")
    columns = {name: np.concatenate([part[name] for part, _ in seen]) for name in seen[0][0]}
    outputs = np.concatenate([part for _, part in seen])
    some = outputs[:: -(-len(outputs) // LARGEST)]
    return dataclasses.replace(model, reference=_learned(model, _some(model, columns), some))


class History(NamedTuple):
    """What was counted, and what had been counted at moments of the last hour.

    Attributes:
        total: the sketch of all rows.
        times: T times of the monotonic clock, rising, about a minute apart.
        marks: the T sketches of the rows before them.

    >>> one, two = (Sketch(np.array([n]), np.array([0.0]), np.zeros(0)) for n in (3, 5))
    >>> History(two, (100.0,), (one,)).last_hour(now=200.0).counts.tolist()
    [2]
    """

    total: Sketch
    times: tuple[float, ...]
    marks: tuple[Sketch, ...]

    def last_hour(self, now: float) -> Sketch:
        """The sketch of the rows of the hour before `now`, up to a minute of them more or less.

        Its counts and sums are those of these rows; its extremes are of all rows.
        """
        inside = (mark for at, mark in zip(self.times, self.marks, strict=True) if at >= now - HOUR)
        before = next(inside, self.total)
        return self.total._replace(
            counts=self.total.counts - before.counts, sums=self.total.sums - before.sums
        )


class Observer:
    """The sketch of what a model predicts, on the device while it does, and for whoever reads it.

    On the device it is int32 and float32; after every 1,024 batches, and when it is read, it is
    added to sketches of int64 and float64 on the host. Several threads may use it.

    Args:
        reference: of the model.

    >>> from jaxops.monitor.views import NumberPart
    >>> reference = sketches.learned((NumberPart("x"),), {"x": np.arange(3.0)}, None)
    >>> observer = Observer(reference)
    >>> int(observer.sketch().counts[0])
    0
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._lock = threading.Lock()
        self._device, self._calls = self.empty(), 0
        self._nothing = on_host(self._device)
        self._total = self._window = self._nothing
        self._marks: deque[tuple[float, Sketch]] = deque()
        self._since = datetime.datetime.now(datetime.UTC)

    def empty(self) -> Sketch:
        """The sketch of no rows, for a device."""
        return sketches.empty(self.reference)

    def update(self, sketch: Sketch, columns: Batch, outputs: Any, mask: Any) -> Sketch:
        """See `monitor.update`."""
        return sketches.update(self.reference, sketch, columns, outputs, mask)

    def run(self, program: Callable[..., tuple[Any, Any]], *arguments: Any) -> Any:
        """The outputs of `program(sketch, *arguments)`, which returns the next sketch too.

        Where the program fails on the device, the rows are lost that it held, of the last batches.
        """
        with self._lock:
            self._mark()
            try:
                outputs, self._device = program(self._device, *arguments)
            except Exception:
                if self._device.counts.is_deleted():  # the program had it already
                    self._device, self._calls = self.empty(), 0
                raise
            self._calls += 1
            if self._calls >= KEPT:
                self._take()
        return outputs

    def lacking(self, table: Mapping[str, np.ndarray]) -> None:
        """Count as missing what raw columns lack and their encoding does not show.

        Args:
            table: the columns of rows that `run` has counted, with NaN where a number is missing.
        """
        names = {name for part in self.reference.parts for name in part.filled}
        lost = {name: int(np.isnan(table[name]).sum()) for name in names & table.keys()}
        if any(lost.values()):
            correction = sketches.withdrawn(self.reference, lost)
            with self._lock:
                self._total = merge(self._total, correction)
                self._window = merge(self._window, correction)

    def sketch(self) -> Sketch:
        """The sketch of all rows since `clear`, on the host."""
        with self._lock:
            self._take()
            return self._total

    def history(self) -> History:
        """The sketch of all rows since `clear`, and those of moments of the last hour."""
        with self._lock:
            self._take()
            times, marks = zip(*self._marks, strict=True) if self._marks else ((), ())
            return History(self._total, times, marks)

    def window(self) -> tuple[datetime.datetime, datetime.datetime, Sketch]:
        """When `window` was last called (or `clear`), and now, UTC, and the sketch of the rows."""
        with self._lock:
            self._take()
            now = datetime.datetime.now(datetime.UTC)
            found = self._since, now, self._window
            self._since, self._window = now, self._nothing
            return found

    def give_back(self, start: datetime.datetime, sketch: Sketch) -> None:
        """Add the rows of a `window` that could not be used to the next one, which starts then."""
        with self._lock:
            self._since, self._window = start, merge(self._window, sketch)

    def clear(self) -> None:
        """Forget all rows."""
        with self._lock:
            self._device, self._calls = self.empty(), 0
            self._total = self._window = self._nothing
            self._marks.clear()
            self._since = datetime.datetime.now(datetime.UTC)

    def _mark(self) -> None:
        """Keep what was counted before the first batch of each minute, for an hour."""
        now = time.monotonic()
        if self._marks and now - self._marks[-1][0] < MINUTE:
            return
        self._take()
        self._marks.append((now, self._total))
        while self._marks[0][0] < now - HOUR:
            self._marks.popleft()

    def _take(self) -> None:
        """Add the device's sketch to those of the host."""
        if self._calls:
            new = on_host(self._device)
            self._total, self._window = merge(self._total, new), merge(self._window, new)
            self._device, self._calls = self.empty(), 0


@dataclass(frozen=True, eq=False)
class Observed(Model):
    """A model that counts the rows that it predicts.

    Attributes:
        observer: has the sketch; None counts nothing.

    >>> Observed("a closed form").observer is None
    True
    """

    observer: Observer | None = None

    def outputs(self, columns: Any, batch_size: int = 1024) -> Any:
        """See `Model.outputs`; the rows are counted inside the program of a task."""
        observer = self.observer
        if observer is None:
            return super().outputs(columns, batch_size)
        if not isinstance(self.task, Task):
            outputs = super().outputs(columns, batch_size)
            _count(observer, columns, outputs)
            return outputs
        task, state = self.trained()
        program = _program(task, observer.reference)

        def run(state: Any, batch: Any) -> Any:
            return observer.run(program, state, batch)

        ordered = InOrder(task, columns, batch_size, default(), targets=False)
        return ordered.predictions(run, state)


def observed(model: Model) -> Observed:
    """The model with an observer: `predict` counts its rows, `observer.sketch()` has the sketch.

    Its answers are those of the model, bit for bit.

    Args:
        model: with a reference, see `with_reference`.

    Raises:
        ValueError: a model without a reference.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(40.0), "left": np.arange(40) % 2}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> model = observed(model)
    >>> _ = model.predict({"age": [20.0, 90.0]})
    >>> from jaxops.monitor import told
    >>> told(model.reference, model.observer.sketch())["age"].high.__round__(3)
    90.0
    """
    if model.reference is None:
        raise ValueError(
            "model must have a reference to be observed, got none; monitor.with_reference(model, "
            "data) adds it"
        )
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(Model)}
    return Observed(**fields, observer=Observer(model.reference))


def _task_of(model: Model) -> Task | None:
    """The task that names the columns of a model, or of all members of a blend; else None."""
    members = [model.task, *getattr(model.task, "tasks", ())]
    return next((one for one in members if isinstance(one, Task)), None)


@functools.lru_cache(maxsize=32)
def _program(task: Task, reference: Reference) -> Any:
    """`(sketch, state, batch) -> (outputs, sketch)`, jitted; the first sketch is donated."""

    def function(sketch: Sketch, state: Any, batch: Batch) -> tuple[Any, Sketch]:
        outputs = task.predict(state.params, state.extra, batch)
        # behind the barrier nothing is fused with what predicts, whose bits then stay as they are
        seen, told = jax.lax.optimization_barrier((batch, outputs))
        return outputs, sketches.update(reference, sketch, seen, told, seen["mask"])

    return jax.jit(function, donate_argnums=0)


def _count(observer: Observer, columns: Mapping[str, Any], outputs: Any) -> None:
    """Count rows that were predicted already, as those of a blend."""
    rows = {**columns, "outputs of the model": outputs}
    for start in range(0, len(outputs), COUNTED):
        part = {name: np.asarray(value)[start : start + COUNTED] for name, value in rows.items()}
        padded: dict[str, Any] = pad(part, next_power_of_two(len(part["outputs of the model"])))
        own, mask = padded.pop("outputs of the model"), padded.pop("mask")
        observer.run(_counting(observer.reference), padded, own, mask)


@functools.lru_cache(maxsize=32)
def _counting(reference: Reference) -> Any:
    return jax.jit(
        lambda sketch, columns, outputs, mask: (
            None,
            sketches.update(reference, sketch, columns, outputs, mask),
        ),
        donate_argnums=0,
    )
