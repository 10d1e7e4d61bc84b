"""Batches from columns in memory, which are kept on the devices if they fit."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import bdtrc

from jaxops._shapes import few_lengths
from jaxops.data.checks import rows
from jaxops.devices import hosts
from jaxops.devices.plans import Plan
from jaxops.task import Array, Batch

Columns = Mapping[str, np.ndarray]


# Columns of up to this many bytes are lengthened by rows of zeros, which no batch uses, to one of a
# few lengths. So data with about the same number of rows share a program. This costs up to an
# eighth more memory, and one copy.
LENGTHENED = 64 << 20
# The probability of a draw that a batch has no room for; in a million steps it is below 1e-9.
RARE = 1e-15


class Take(NamedTuple):
    """Gathers the rows of a batch from resident columns, inside the step.

    Attributes:
        shapes: (name, shape of one row) of each column.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, columns: dict[str, Array], index: Array) -> Batch:
        """The rows of `index` (B,) int32; -1 is padding and gets mask 0."""
        chosen = jnp.maximum(index, 0)
        batch = {
            name: columns[name][chosen].reshape(len(index), *shape) for name, shape in self.shapes
        }
        present = (index >= 0).astype(jnp.float32)
        batch["mask"] = present * batch["mask"] if "mask" in batch else present
        return batch


class Order:
    """The rows of a step's batch: every row once in an epoch, in another order in each epoch.

    The permutation of an epoch is made on the host, where it is cheap, and depends only on the seed
    and the number of the epoch. With `whole`, the rows that do not fill a batch at the end of an
    epoch are not used in it.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, whole: bool = False) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.capacity = batch_size
        self.steps_per_epoch = rows // batch_size if whole else -(-rows // batch_size)
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def rows_of(self, step: int) -> np.ndarray:
        """The row numbers of a step's batch; the last batch of an epoch may be shorter."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._epoch, self._permutation = epoch, random.permutation(self.rows)
        return self._permutation[batch * self.batch_size :][: self.batch_size]


class Drawn:
    """The rows of a step's batch: each row with the same probability, in every step anew.

    This is Poisson sampling with probability `batch_size` / rows, a function of the seed and the
    step. An epoch has as many steps as that of an `Order`.

    Attributes:
        capacity: the room of a batch; a draw of more rows has a probability below `RARE`.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.seed, self.rate = rows, seed, batch_size / rows
        self.steps_per_epoch = -(-rows // batch_size)
        sizes = np.arange(batch_size, rows + 1)[: 100 + 20 * batch_size]
        self.capacity = int(sizes[bdtrc(sizes, rows, self.rate) < RARE][0])

    def rows_of(self, step: int) -> np.ndarray:
        """The row numbers of a step's batch, in ascending order."""
        random = np.random.default_rng((self.seed, step))
        count = random.binomial(self.rows, self.rate)
        if count > self.capacity:
            raise ValueError(
                f"seed must be another one: step {step} draws {count} rows, which are more than "
                f"the {self.capacity} that a batch has room for"
            )
        return np.sort(random.choice(self.rows, count, replace=False, shuffle=False))


class Resident:
    """Columns kept on the devices as they came; a batch is a function of the step number.

    Rows are stored flat, because gathering rows with one axis is several times faster than with
    more.

    Attributes:
        example: the first row, whose shapes and dtypes are those of every batch.
        fixed: the columns, an argument that all calls share.
        take: makes a batch from `fixed` and one row of the result of `feed`.
        steps_per_epoch: number of steps in an epoch; the last batch may be partly padding.
        examples: number of rows that the last `feed` returned, without padding.
    """

    many_steps = True
    examples = 0

    def __init__(
        self,
        columns: Columns,
        batch_size: int,
        seed: int,
        plan: Plan,
        accumulate: int = 1,
        drawn: bool = False,
    ) -> None:
        self.batch_size, self.seed, self.plan, self.drawn = batch_size, seed, plan, drawn
        self.parts = plan.batch_shards * accumulate
        self.rows = rows(columns)
        self.example = {name: value[:1] for name, value in columns.items()}
        self._order = (Drawn if drawn else Order)(self.rows, batch_size, seed)
        self.padded = plan.padded(self._order.capacity, accumulate)
        self.steps_per_epoch: int | None = self._order.steps_per_epoch
        self._columns = columns
        self._real: np.ndarray | None = None
        self._place(columns)

    def without_padding(self) -> None:
        """Give only whole batches, of rows whose weight is not zero.

        Raises:
            ValueError: the batches need padding to divide evenly over the devices, or there are too
                few rows for one batch.
        """
        check_divides(self.batch_size, self.parts)
        weights = self._columns.get("mask", np.ones(self.rows))
        self._real = np.flatnonzero(weights > 0)
        if len(self._real) < self.batch_size:
            raise ValueError(
                f"batch_size must be at most {len(self._real)} (the number of rows whose mask is "
                f"above 0), got {self.batch_size}"
            )
        self._order = Order(len(self._real), self.batch_size, self.seed, whole=True)
        self.steps_per_epoch = self._order.steps_per_epoch

    def _rows_of(self, step: int) -> np.ndarray:
        chosen = self._order.rows_of(step)
        return chosen if self._real is None else self._real[chosen]

    def _place(self, columns: Columns) -> None:
        self.take: Any = Take(tuple((name, v.shape[1:]) for name, v in columns.items()))
        flat = {
            name: value.reshape(self.rows, -1) if value.ndim > 2 else value
            for name, value in columns.items()
        }
        if sum(value.nbytes for value in flat.values()) <= LENGTHENED:
            room = few_lengths(self.rows)
            flat = {name: _lengthened(value, room) for name, value in flat.items()}
        self.fixed = hosts.put(flat, self.plan.whole())

    def feed(self, step: int, count: int, length: int) -> Any:
        """(length, B) int32 on the devices: the rows of steps `step` to `step + count - 1`.

        B is the batch size, rounded up to a number that divides evenly over the devices.
        """
        index = np.full((length, self.padded), -1, np.int32)
        self.examples = 0
        for i in range(count):
            chosen = self._rows_of(step + i)
            index[i, : len(chosen)] = chosen
            self.examples += len(chosen)
        return hosts.put(index, self.plan.batch_sharding(1))

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same in a resumed run and in its checkpoint."""
        whole = {} if self._real is None else {"whole_batches": True}
        whole |= {"drawn": True} if self.drawn else {}
        return {"batch_size": self.batch_size, "seed": self.seed, "rows": self.rows, **whole}

    def sample(self) -> Any:
        """Shapes and checksums of some rows, to notice that another process has other data."""
        stride = -(-self.rows // 64)
        some = {name: value[::stride] for name, value in self._columns.items()}
        shapes = {name: value.shape for name, value in self._columns.items()}
        return (checksums(some), shapes) if hosts.count() > 1 else None

    @property
    def fingerprint(self) -> dict[str, str]:
        """The checksum of each column, to notice that a resumed run has other data."""
        return checksums(self._columns)

    def state(self) -> None:
        """None: nothing has to be saved, because the step number determines the batches."""

    def restore(self, state: Any, step: int) -> None:
        """There is nothing to do."""


class Gathered(Resident):
    """Columns too large for the device: the batches of `Resident`, gathered on the host."""

    many_steps = False

    def _place(self, columns: Columns) -> None:
        self.take, self.fixed = as_is, {}

    def feed(self, step: int, count: int, length: int) -> Any:
        """The batch of a step on the devices, padded to (1, B, ...) with its mask."""
        chosen = self._rows_of(step)
        self.examples = len(chosen)
        batch = {name: value[chosen] for name, value in self._columns.items()}
        return hosts.put(stacked(batch, self.padded), self.plan.batch_sharding(1))


def _lengthened(value: np.ndarray, room: int) -> np.ndarray:
    if len(value) == room:
        return value
    return np.concatenate([value, np.zeros((room - len(value), *value.shape[1:]), value.dtype)])


def check_divides(batch_size: int, parts: int) -> None:
    """Raise `ValueError` if a batch needs padding to divide evenly into its parts."""
    if batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of {parts} (devices x accumulate) for a module with "
            f"batch statistics that takes no `mask` (padding would count), got {batch_size}"
        )


def stacked(batch: Columns, size: int) -> dict[str, np.ndarray]:
    """The padded batch with a leading axis of one step."""
    return {name: value[None] for name, value in pad(batch, size).items()}


def checksums(columns: Columns) -> dict[str, str]:
    """Column -> dtype on a device, shape of a row and CRC-32 of its values, sorted by name."""

    def one(value: np.ndarray) -> str:
        value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
        return f"{value.dtype}{list(value.shape[1:])} {zlib.crc32(_bytes(value)):08x}"

    return {name: one(value) for name, value in sorted(columns.items())}


def _bytes(value: np.ndarray) -> Any:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def as_is(fixed: dict[str, Array], batch: Batch) -> Batch:
    """The batch itself, because the batch of a stream needs no gathering."""
    return batch


def pad(batch: Columns, size: int) -> dict[str, np.ndarray]:
    """The batch with `mask` and zero rows up to `size`.

    >>> pad({"x": np.ones((2, 1))}, 3)["mask"]
    array([1., 1., 0.], dtype=float32)
    """
    columns = {name: np.asarray(value) for name, value in batch.items()}
    count = len(next(iter(columns.values())))
    if count > size:
        raise ValueError(f"data must have at most {size} rows (batch_size) in a batch, got {count}")
    columns["mask"] = np.asarray(columns.get("mask", np.ones(count)), np.float32)
    return {
        name: np.concatenate([value, np.zeros((size - count, *value.shape[1:]), value.dtype)])
        if count < size
        else value
        for name, value in columns.items()
    }
