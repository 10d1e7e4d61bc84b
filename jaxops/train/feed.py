"""The source of a step's batches: columns kept on the device, or a stream."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxops.data.checks import prepare, rows
from jaxops.data.shards import Parquet
from jaxops.data.streams import Streamed
from jaxops.devices import hosts
from jaxops.devices.plans import Plan
from jaxops.task import Array, Batch, Task
from jaxops.train.resident import (
    Columns,
    Gathered,
    Resident,
    as_is,
    check_divides,
    checksums,
    stacked,
)

Data = Any
"""Columns in memory (`dict[str, np.ndarray]`), or an iterable of batches of such columns."""


def source(
    task: Task, data: Data, batch_size: int, seed: int, plan: Plan, accumulate: int = 1
) -> "Resident | Stream":
    """The source of a run's batches. Data are read, checked and placed only here.

    Args:
        task: names the columns that are needed and what they must look like.
        data: columns in memory, or an iterable of batches.
        batch_size: rows in one update, over all devices.
        seed: determines the order of the rows of columns in memory.
        plan: the devices.
        accumulate: number of microbatches in a batch.

    Raises:
        ValueError: the columns, or a stream's first batch, do not fit the task; or the batch size
            does not fit; or a stream for a task whose rows are to be drawn (`Task.expected`).
    """
    if hasattr(data, "as_source"):  # data with batches of their own, such as clients
        return data.as_source(batch_size, seed, plan)
    check_kind(data, "data")
    if task.expected is not None:
        _check_drawn(task.expected, data, batch_size)
    if not isinstance(data, Mapping):
        return Stream(data, batch_size, plan, checker(task, data), accumulate)
    columns = prepare(task, data, targets=True)
    if batch_size > rows(columns):
        raise ValueError(
            f"batch_size must be at most {rows(columns)} (the number of rows), got {batch_size}"
        )
    check_weights(columns, "data")
    kind = Resident if fits(columns, plan) else Gathered
    return kind(columns, batch_size, seed, plan, accumulate, task.expected is not None)


def _check_drawn(expected: int, data: Data, batch_size: int) -> None:
    """Raise `ValueError` where the batches of a private task cannot be drawn."""
    if batch_size != expected:
        raise ValueError(
            f"batch_size must be {expected}, the expected number of rows of the private task, got "
            f"{batch_size}"
        )
    if not isinstance(data, Mapping):
        raise ValueError(
            "data must be columns in memory for a private task, got a stream, of which no step can "
            "draw each row with the same probability"
        )


class Stream:
    """Batches of `data.stream`, or of an iterable of dicts of arrays such as `grain.IterDataset`.

    The next batch is fetched, checked and sent while the devices still work on the batches before
    it. The first batch is read and checked when the stream is made, and used in the first step. A
    checkpoint uses the iterator's own `get_state` and `set_state` if it has them. If not, a resumed
    run skips as many batches as were used, so the iterable must give the same batches each time it
    is iterated. When the iterator ends, the stream starts over.

    With several processes, each reads its own share of every batch, and the global batch consists
    of the shares in the order of the processes, with batch_size / processes rows each. So the plan
    must split a batch over all processes. An epoch must have equally many batches in each process.

    Attributes:
        example: the first row, whose shapes and dtypes are those of every batch.
        fingerprint: the checksums of the first batch, to notice that a resumed run has other data.
        share: the largest number of rows of a batch that this process reads.
        room: the same, with the padding that makes a batch divide evenly over the devices.
    """

    many_steps = False
    examples = 0

    def __init__(
        self,
        batches: Any,
        batch_size: int,
        plan: Plan,
        prepare: Callable[[Columns], dict[str, np.ndarray]],
        accumulate: int = 1,
    ) -> None:
        self.batches, self.batch_size, self.plan, self.prepare = batches, batch_size, plan, prepare
        if isinstance(batches, Streamed) and batches.batch_size != batch_size:
            raise ValueError(
                f"batch_size must be {batches.batch_size}, as in data.stream, got {batch_size}"
            )
        check_split(plan)
        self.padded = plan.padded(batch_size, accumulate)
        self.parts = plan.batch_shards * accumulate
        self.share = share(batch_size, plan)
        self.room = len(hosts.rows_here(plan.batch_sharding(), self.padded))
        self.fixed: dict[str, Array] = {}
        self.take = as_is
        try:
            self.steps_per_epoch: int | None = len(batches)
        except TypeError:
            self.steps_per_epoch = None
        self._iterator, self._whole = self._start(), False
        self._first: dict[str, np.ndarray] | None = self._next()  # None after the first step
        self.example = one_row(self._first)
        # with several processes each reads other rows, which depend on the number of processes
        self.fingerprint = checksums(self._first) if hosts.count() == 1 else {}

    def _start(self) -> Iterator[Any]:
        if isinstance(self.batches, Streamed):  # it has another order in each epoch
            return self.batches.endless()
        return iterate(self.batches, "data")

    def without_padding(self) -> None:
        """Give only whole batches, and drop those with fewer rows than `share`.

        If only the length of a stream is known, its epoch still has as many steps as batches.

        Raises:
            ValueError: the batches need padding to divide evenly over the devices, or no batch is
                whole.
        """
        check_divides(self.batch_size, self.parts)
        self._whole = True
        if isinstance(self.batches, Streamed) and not isinstance(self.batches.reader, Parquet):
            self.steps_per_epoch = self.batches.reader.rows // self.batch_size
        if self._is_short(self._first):
            self._first = self._next()
        self._check_weights(self._first)

    def _check_weights(self, batch: Any) -> None:
        if self._whole and not np.all(batch.get("mask", 1)):
            raise ValueError(
                "mask must be above 0 for a module with batch statistics that takes no `mask`, got "
                f"0 in row {int(batch['mask'].argmin())}"
            )

    def _is_short(self, batch: Any) -> bool:
        """Whether to drop a batch: if it is short in one process, all processes drop theirs."""
        return self._whole and min(hosts.every(rows(batch))) < self.share

    def _read(self) -> Any:
        """The next batch as it comes; the stream starts over when it ends."""
        for _ in range(2):  # to the end of the stream, and then once through all of it
            while (batch := next(self._iterator, None)) is not None:
                if not self._is_short(batch):
                    return batch
            self._iterator = self._start()
        if self._whole:
            raise ValueError(
                f"data must have a batch of {self.share} rows (batch_size) for a module with batch "
                "statistics that takes no `mask`, got only shorter batches"
            )
        return first(self._iterator, "data")

    def _next(self) -> dict[str, np.ndarray]:
        batch = self.prepare(self._read())
        if rows(batch) > self.share:
            raise ValueError(
                f"data must have at most {self.share} rows (batch_size) in a batch, "
                f"got {rows(batch)}"
            )
        self._check_weights(batch)
        return batch

    def feed(self, step: int, count: int, length: int) -> Batch:
        """The next batch on the devices, padded to (1, B, ...) with its mask."""
        batch = self._next() if self._first is None else self._first
        self._first = None
        self.examples = len(next(iter(batch.values()))) * self.batch_size // self.share
        columns = stacked(batch, self.room)
        return hosts.put_shares(columns, self.plan.batch_sharding(1), self.padded, axis=1)

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same in a resumed run and in its checkpoint."""
        known = self.batches.identity() if isinstance(self.batches, Streamed) else {}
        return {
            "batch_size": self.batch_size,
            **known,
            **({"whole_batches": True} if self._whole else {}),
        }

    def sample(self) -> None:
        """Nothing to compare, because each process reads other rows."""

    def state(self) -> Any:
        """The iterator's state as JSON-like data, or `None` if it has no state.

        With several processes it contains the states of all iterators, and all processes must call
        this.
        """
        state = self._iterator.get_state() if hasattr(self._iterator, "get_state") else None
        state = {"bytes": state.decode("latin-1")} if isinstance(state, bytes) else state
        if state is None or hosts.count() == 1 or isinstance(self.batches, Streamed):
            return state  # the state of a `Streamed` is the same in all processes
        return {"processes": hosts.every(state)}

    def restore(self, state: Any, step: int) -> None:
        """Continue after the first `step` batches.

        Raises:
            ValueError: another number of processes saved the state, which holds one position for
                each process.
        """
        if state is None:
            for _ in range(step):
                if self._first is None:
                    self._read()
                self._first = None
            return
        one = [state] * hosts.count() if isinstance(self.batches, Streamed) else [state]
        states = state["processes"] if state.keys() == {"processes"} else one
        if len(states) != hosts.count():
            raise ValueError(
                f"data must be read by {len(states)} processes, got {hosts.count()}: the "
                "checkpoint holds the position of each of them in its own stream"
            )
        state = states[hosts.index()]
        state = state["bytes"].encode("latin-1") if state.keys() == {"bytes"} else state
        self._iterator, self._first = self._start(), None
        self._iterator.set_state(state)  # type: ignore[attr-defined]


def check_task(task: Any) -> None:
    """Raise `ValueError` if a task is something else, such as a module."""
    if not isinstance(task, Task):
        raise ValueError(
            f"task must be a jo.Task, such as jo.supervised and the rooms make, got "
            f"{type(task).__name__}"
        )


def check_weights(columns: Columns, name: str) -> None:
    """Raise `ValueError` if all rows of columns in memory have weight 0."""
    if "mask" in columns and not np.any(columns["mask"]):
        raise ValueError(f"mask of {name} must be above 0 in some row, got 0 in all")


def check_kind(data: Data, name: str) -> None:
    """Raise `ValueError` for a `Dataset`, a data frame or arrays in place of columns or batches."""
    if hasattr(data, "splits"):
        raise ValueError(f"{name} must be one split, such as data.train, got a Dataset")
    if hasattr(data, "iloc"):
        raise ValueError(
            f"{name} must be columns or batches, got a data frame; "
            "Dataset.from_arrays(**frame).train makes columns of it"
        )
    some = isinstance(data, tuple | list) and len(data) > 0 and not isinstance(data[0], Mapping)
    if some or hasattr(data, "shape") or not hasattr(data, "__iter__"):
        given = "a function; call it" if callable(data) else f"{type(data).__name__}"
        raise ValueError(
            f"{name} must be columns by name, such as a dict of arrays, or an iterable of such "
            f"batches, got {given}"
        )


def iterate(batches: Any, name: str) -> Iterator[Any]:
    """Iterate from the first batch; raise `ValueError` for what can be iterated only once."""
    iterator = iter(batches)
    if iterator is batches:
        raise ValueError(
            f"{name} must give the same batches each time it is iterated, as a list or a "
            "grain data set does, got a generator or iterator"
        )
    return iterator


def first(batches: Iterator[Any], name: str) -> Any:
    """The first batch of a stream; `ValueError` if it is empty."""
    batch = next(batches, None)
    if batch is None:
        raise ValueError(f"{name} must have at least one batch, got an empty stream")
    return batch


def checker(
    task: Task, batches: Any, targets: bool = True
) -> Callable[[Columns], dict[str, np.ndarray]]:
    """Return a function that checks a stream's batch and keeps the columns that the task names.

    A batch of `data.stream` may be empty, if all its rows are read by other processes.
    """
    empty = isinstance(batches, Streamed)

    def check(batch: Any) -> dict[str, np.ndarray]:
        if not isinstance(batch, Mapping):
            raise ValueError(
                "a batch must be columns by name, such as a dict of arrays, got "
                f"{type(batch).__name__}"
            )
        return prepare(task, batch, targets=targets, empty=empty)

    return check


def one_row(columns: Columns) -> dict[str, np.ndarray]:
    """The first row of a batch, or a row of zeros if the batch is empty."""
    if rows(columns) > 0:
        return {name: value[:1] for name, value in columns.items()}
    return {name: np.zeros((1, *value.shape[1:]), value.dtype) for name, value in columns.items()}


def fits(columns: Columns, plan: Plan) -> bool:
    """Whether the columns take at most half of the device's free memory."""
    stats = plan.mesh.local_devices[0].memory_stats() or {}
    if "bytes_limit" not in stats:  # a CPU: the columns are already in its memory
        return True
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    needed = 2 * sum(value.nbytes for value in columns.values())
    return all(hosts.every(needed <= free))


def check_split(plan: Plan) -> None:
    """Raise `ValueError` unless the processes hold equal parts of a batch, in their order.

    The share of a stream depends only on the process's number, not on the plan.
    """
    parts, processes = plan.batch_shards, hosts.count()
    held: list[set[int]] = [set() for _ in range(processes)]
    where: Mapping[Any, Any] = plan.batch_sharding().devices_indices_map((parts,))
    for device, (part,) in where.items():
        held[device.process_index].update(range(parts)[part])
    for process, have in enumerate(held):
        expected = range(process * parts // processes, (process + 1) * parts // processes)
        if have != set(expected) or parts % processes:
            raise ValueError(
                "plan must split the batches of a stream evenly over all processes, in their "
                f"order, such as devices.data_parallel(), got parts {sorted(have)} of {parts} in "
                f"process {process} of {processes}"
            )


def share(batch_size: int, plan: Plan) -> int:
    """Number of rows of a global batch that this process reads, proportional to its devices."""
    padded = plan.padded(batch_size)
    count = batch_size * len(hosts.rows_here(plan.batch_sharding(), padded))
    if count % padded:
        raise ValueError(
            f"batch_size must be a multiple of {padded // math.gcd(count, padded)}, so that each "
            f"process reads the same number of rows, got {batch_size}"
        )
    return count // padded
