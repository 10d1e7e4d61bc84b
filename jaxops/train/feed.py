"""How batches reach a step: from columns kept on the device, or from a stream."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxops.data.streams import Streamed
from jaxops.devices import hosts
from jaxops.devices.plans import Plan
from jaxops.task import Array, Batch

Columns = Mapping[str, np.ndarray]


class Take(NamedTuple):
    """Gathers the rows of a batch from resident columns, inside the step.

    Attributes:
        shapes: (name, shape of one row) of each column.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, columns: dict[str, Array], index: Array) -> Batch:
        """The rows of `index` (B,) int32; -1 is padding, and gets mask 0."""
        rows = jnp.maximum(index, 0)
        batch = {
            name: columns[name][rows].reshape(len(index), *shape) for name, shape in self.shapes
        }
        present = (index >= 0).astype(jnp.float32)
        batch["mask"] = present * batch["mask"] if "mask" in batch else present
        return batch


class Order:
    """Which rows make the batch of a step: all rows once an epoch, in an order of its own.

    The permutation of an epoch is made on the host, where it is cheap, from the seed and the
    epoch alone.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.steps_per_epoch = -(-rows // batch_size)
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def rows_of(self, step: int) -> np.ndarray:
        """The row numbers of a step's batch; the last batch of an epoch may be shorter."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._epoch, self._permutation = epoch, random.permutation(self.rows)
        return self._permutation[batch * self.batch_size :][: self.batch_size]


class Resident:
    """Columns kept on the devices as they came; a batch is a function of the step number.

    Rows are stored flat: gathering rows of one axis is several times faster than of more.

    Attributes:
        fixed: what every call is given: the columns.
        take: makes a batch of `fixed` and a row of what `feed` returns.
        steps_per_epoch: the last batch may be partly padding.
        examples: how many rows the last `feed` gave, without padding.
    """

    many_steps = True
    examples = 0

    def __init__(
        self, columns: Columns, batch_size: int, seed: int, plan: Plan, accumulate: int = 1
    ) -> None:
        self.batch_size, self.seed, self.plan = batch_size, seed, plan
        self.padded = plan.padded(batch_size, accumulate)
        self.rows = len(next(iter(columns.values())))
        self._order = Order(self.rows, batch_size, seed)
        self.steps_per_epoch: int | None = self._order.steps_per_epoch
        self._place(columns)

    def _place(self, columns: Columns) -> None:
        self.take: Any = Take(tuple((name, v.shape[1:]) for name, v in columns.items()))
        flat = {
            name: value.reshape(self.rows, -1) if value.ndim > 2 else value
            for name, value in columns.items()
        }
        self.fixed = hosts.put(flat, self.plan.whole())

    def feed(self, step: int, count: int, length: int) -> Any:
        """(length, B) int32 on the devices: the rows of steps `step` to `step + count - 1`.

        B is the batch's size, or the next that divides over the devices.
        """
        index = np.full((length, self.padded), -1, np.int32)
        self.examples = 0
        for i in range(count):
            chosen = self._order.rows_of(step + i)
            index[i, : len(chosen)] = chosen
            self.examples += len(chosen)
        return hosts.put(index, self.plan.batch_sharding(1))

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common."""
        return {"batch_size": self.batch_size, "seed": self.seed, "rows": self.rows}

    def state(self) -> None:
        """Nothing to save: the step number says it all."""

    def restore(self, state: Any, step: int) -> None:
        """Nothing to do."""


class Gathered(Resident):
    """Columns too large for the device: the very batches of `Resident`, gathered on the host."""

    many_steps = False

    def _place(self, columns: Columns) -> None:
        self.columns, self.take, self.fixed = columns, as_is, {}

    def feed(self, step: int, count: int, length: int) -> Any:
        """The batch of a step on the devices, padded to (1, B, ...) with its mask."""
        rows = self._order.rows_of(step)
        self.examples = len(rows)
        batch = {name: value[rows] for name, value in self.columns.items()}
        return hosts.put(_stacked(batch, self.padded), self.plan.batch_sharding(1))


def _stacked(batch: Columns, size: int) -> dict[str, np.ndarray]:
    return {name: value[None] for name, value in pad(batch, size).items()}


class Stream:
    """Batches of `data.stream`, or of an iterable of dicts of arrays: a `grain.IterDataset`, say.

    The next batch is fetched, checked and sent while the devices still work on those before it.
    Its iterator's own `get_state` and `set_state` are used for a checkpoint where it has them;
    where it has not, a resumed run skips as many batches as were used, so the iterable must
    give the same batches each time it is iterated. It starts over when it ends.

    With several processes each reads its own share of every batch, and the global batch is made
    of the shares, in the order of the processes: batch_size / processes rows each. So the plan has
    to split a batch over all of them. As many batches must be an epoch in each.

    Attributes:
        share: how many rows of a batch this process gives, at most.
        room: as many, and the padding that makes a batch divide over the devices.
    """

    many_steps = False
    examples = 0

    def __init__(
        self,
        batches: Any,
        batch_size: int,
        plan: Plan,
        prepare: Callable[[Columns], Columns],
        accumulate: int = 1,
    ) -> None:
        self.batches, self.batch_size, self.plan, self.prepare = batches, batch_size, plan, prepare
        if isinstance(batches, Streamed) and batches.batch_size != batch_size:
            raise ValueError(
                f"batch_size: {batch_size} found, {batches.batch_size} wanted as in data.stream"
            )
        check_split(plan)
        self.padded = plan.padded(batch_size, accumulate)
        try:
            self.steps_per_epoch: int | None = len(batches)
        except TypeError:
            self.steps_per_epoch = None
        self.share = share(batch_size, plan)
        self.room = len(hosts.rows_here(plan.batch_sharding(), self.padded))
        self.fixed: dict[str, Array] = {}
        self.take = as_is
        streamed = isinstance(batches, Streamed)  # it has an order for each epoch
        self._iterator: Iterator[Any] = batches.endless() if streamed else iter(batches)

    def feed(self, step: int, count: int, length: int) -> Batch:
        """The next batch on the devices, padded to (1, B, ...) with its mask."""
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = iter(self.batches)
            batch = next(self._iterator, None)
            if batch is None:
                raise ValueError("data: the stream is empty; wanted at least one batch")
        batch = self.prepare(batch)
        found = len(next(iter(batch.values())))
        if found > self.share:
            raise ValueError(
                f"data: a batch of {found} rows found, {self.share} (batch_size) wanted at most"
            )
        self.examples = found * self.batch_size // self.share
        stacked = _stacked(batch, self.room)
        return hosts.put_shares(stacked, self.plan.batch_sharding(1), self.padded, axis=1)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common."""
        known = self.batches.identity() if isinstance(self.batches, Streamed) else {}
        return {"batch_size": self.batch_size, **known}

    def state(self) -> Any:
        """The iterator's state as JSON-like data, or `None` where it has none.

        With several processes it is that of all their iterators, and all of them call this.
        """
        state = self._iterator.get_state() if hasattr(self._iterator, "get_state") else None
        state = {"bytes": state.decode("latin-1")} if isinstance(state, bytes) else state
        if state is None or hosts.count() == 1 or isinstance(self.batches, Streamed):
            return state  # of a `Streamed` it is the same in any number of processes
        return {"processes": hosts.every(state)}

    def restore(self, state: Any, step: int) -> None:
        """Go on behind the batch that made the step before `step`.

        Raises:
            ValueError: saved by another number of processes, each at a place of its own stream.
        """
        if state is not None:
            one = [state] * hosts.count() if isinstance(self.batches, Streamed) else [state]
            states = state["processes"] if state.keys() == {"processes"} else one
            if len(states) != hosts.count():
                raise ValueError(
                    f"data: {hosts.count()} processes found, {len(states)} wanted: the checkpoint "
                    "has the place of each in a stream of its own"
                )
            state = states[hosts.index()]
            state = state["bytes"].encode("latin-1") if state.keys() == {"bytes"} else state
            self._iterator.set_state(state)  # type: ignore[attr-defined]
            return
        for _ in range(step):
            if next(self._iterator, None) is None:
                self._iterator = iter(self.batches)
                next(self._iterator)


def fits(columns: Columns, plan: Plan) -> bool:
    """Whether the columns leave half of the device's free memory to the rest."""
    stats = plan.mesh.local_devices[0].memory_stats() or {}
    if "bytes_limit" not in stats:  # a CPU: its memory is where the columns are already
        return True
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    needed = 2 * sum(value.nbytes for value in columns.values())
    return all(hosts.every(needed <= free))


def check_split(plan: Plan) -> None:
    """Raise `ValueError` where processes do not hold equal parts of a batch, one after the other.

    A share of a stream knows its process's number alone, and nothing of the plan.
    """
    parts, processes = plan.batch_shards, hosts.count()
    found: list[set[int]] = [set() for _ in range(processes)]
    where: Mapping[Any, Any] = plan.batch_sharding().devices_indices_map((parts,))
    for device, (rows,) in where.items():
        found[device.process_index].update(range(parts)[rows])
    for process, have in enumerate(found):
        wanted = range(process * parts // processes, (process + 1) * parts // processes)
        if have != set(wanted) or parts % processes:
            raise ValueError(
                f"stream: parts {sorted(have)} of {parts} of a batch found in process {process} of "
                f"{processes}, a plan that splits the batch over all processes wanted, in their "
                "order and evenly, such as devices.data_parallel()"
            )


def share(batch_size: int, plan: Plan) -> int:
    """How many rows of a global batch this process gives, in the proportion of its devices."""
    padded = plan.padded(batch_size)
    rows = batch_size * len(hosts.rows_here(plan.batch_sharding(), padded))
    if rows % padded:
        raise ValueError(
            f"batch_size: {batch_size} found, a multiple of {padded // math.gcd(rows, padded)} "
            "wanted, so that each process gives as many rows"
        )
    return rows // padded


def as_is(fixed: dict[str, Array], batch: Batch) -> Batch:
    """A streamed batch is whole already."""
    return batch


def pad(batch: Columns, size: int) -> dict[str, np.ndarray]:
    """The batch with `mask` and zero rows up to `size`.

    >>> pad({"x": np.ones((2, 1))}, 3)["mask"]
    array([1., 1., 0.], dtype=float32)
    """
    columns = {name: np.asarray(value) for name, value in batch.items()}
    found = len(next(iter(columns.values())))
    if found > size:
        raise ValueError(f"data: a batch of {found} rows found, {size} (batch_size) wanted at most")
    columns["mask"] = np.asarray(columns.get("mask", np.ones(found)), np.float32)
    return {
        name: np.concatenate([value, np.zeros((size - found, *value.shape[1:]), value.dtype)])
        if found < size
        else value
        for name, value in columns.items()
    }
