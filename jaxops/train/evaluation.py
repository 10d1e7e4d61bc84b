"""Evaluation and prediction over whole data sets: every row once, on any number of devices."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxops import metrics as m
from jaxops._shapes import next_power_of_two
from jaxops.data.checks import prepare, rows
from jaxops.devices import hosts
from jaxops.devices.plans import Plan, default
from jaxops.state import TrainState
from jaxops.step import MetricFunctions, eval_step
from jaxops.task import Task
from jaxops.train.checkpoint import abstract
from jaxops.train.feed import (
    Columns,
    Data,
    check_kind,
    check_split,
    checker,
    first,
    iterate,
    one_row,
    pad,
    share,
)

Metrics = Mapping[str, Callable[[Any, Any], Any]]
"""Name -> `(predictions, batch) -> metric state`."""

EVALUATED_AT_ONCE = 1024
CALLS_IN_FLIGHT = 16


def evaluate(
    task: Task,
    state: TrainState,
    data: Data,
    *,
    batch_size: int = EVALUATED_AT_ONCE,
    plan: Plan | None = None,
    metrics: Metrics | None = None,
) -> dict[str, Any]:
    """The task's metrics over all of `data`: every example counts once, on any number of devices.

    Args:
        task: the trained task.
        state: its state; see `optim.averaged` for the averaged parameters.
        data: columns in memory, or an iterable of batches.
        batch_size: maximum rows at a time, for columns; a stream's batches are taken as they come.
            The last batch is padded and masked. With several processes each reads its own share
            of a stream, until all shares have ended.
        plan: the devices; by default the first, or with several processes all of them.
        metrics: additional ones, name -> `(predictions, batch) -> metric state`.

    Returns:
        name -> float, or an array for a confusion matrix: "loss" and those of the task.

    Raises:
        ValueError: the data are not what the task needs.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> rows = {"features": np.eye(3, dtype=np.float32), "label": np.array([0, 1, 1], np.int32)}
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> sorted(evaluate(task, state, rows))
    ['accuracy', 'loss']
    """
    return Evaluation(task, data, plan, metrics, batch_size)(state)


def predict(
    task: Task,
    state: TrainState,
    data: Data,
    *,
    batch_size: int = EVALUATED_AT_ONCE,
    plan: Plan | None = None,
) -> Any:
    """What the task predicts for every row, in order, as NumPy: (N, ...).

    Target columns are not needed, and a `mask` changes nothing. A classifier gives probabilities.
    The arguments are those of `evaluate`. With several processes each one gets the predictions
    of all rows of columns in memory, but of a stream only those of its own share.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> rows = {"features": np.eye(3, dtype=np.float32)}
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> predict(task, state, rows).shape
    (3,)
    """
    in_order = InOrder(task, data, batch_size, plan or default(), targets=False)
    parts = [
        jax.tree.map(lambda leaf: leaf[kept], jax.device_get(hosts.gathered(outputs)))  # noqa: B023
        for outputs, kept in in_order.outputs(_predict_program(task), state)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class Evaluation:
    """Evaluates successive states on one data set.

    Columns in memory are checked once, when it is made; a stream's batches each time they are
    read.

    Args:
        task: what was learned.
        data: columns in memory, or an iterable of batches.
        plan: the devices.
        metrics: additional ones, by name.
        batch_size: maximum rows at a time, for columns.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        plan: Plan | None = None,
        metrics: Metrics | None = None,
        batch_size: int = EVALUATED_AT_ONCE,
        name: str = "data",
    ) -> None:
        self.data = InOrder(task, data, batch_size, plan or default(), name=name)
        self._program = _eval_program(task, tuple((metrics or {}).items()))

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """Name -> float, or an array for a confusion matrix."""
        total: dict[str, Any] = {}
        for states, _ in self.data.outputs(self._program, state):
            states = m.to_host(hosts.gathered(states))
            total = m.merge(total, states) if total else states
        return m.summarize(total)

    def names(self, shapes: TrainState) -> list[str]:
        """The metrics' names, for a state of such shapes, without compiling anything.

        The evaluation itself reuses this trace.
        """
        state, batch = self.data.shapes(shapes)
        states = jax.eval_shape(self._program, state, batch)
        return sorted(m.summarize(jax.tree.map(lambda leaf: np.ones(leaf.shape), states)))


class InOrder:
    """A data set's rows in order, each once, in padded batches on the devices.

    Args:
        task: names the columns that are needed and what they must look like.
        data: columns in memory, which are checked here, or an iterable of batches.
        batch_size: maximum rows at a time, for columns.
        plan: the devices.
        targets: whether target columns are needed too.
        name: what messages call the data.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        batch_size: int,
        plan: Plan,
        targets: bool = True,
        name: str = "data",
    ) -> None:
        check_kind(data, name)
        hosts.check_mesh(plan.mesh)
        self.plan, self.name = plan, name
        self.stream: Any = None
        if isinstance(data, Mapping):
            self.columns = prepare(task, data, targets)
            self.most, self.shards = batch_size, plan.batch_shards
        else:
            check_split(plan)
            self.stream, self.checked = data, checker(task, data, targets)
            self.most, self.shards = 0, share(plan.batch_shards, plan)

    def outputs(
        self, program: Callable[[TrainState, Any], Any], state: TrainState
    ) -> Iterator[tuple[Any, Any]]:
        """Yield outputs and the rows to keep; up to 16 calls are in flight.

        With several processes, the rows to keep are all rows of columns, but only this process's
        rows of a stream.
        """
        # the state may lie on other devices; the optimizer's part of it is not needed
        state = state._replace(opt_state=())
        state = hosts.put(state, self.plan.state_shardings(state))
        pending: deque[tuple[Any, Any]] = deque()
        for batch, kept in self._placed():
            pending.append((program(state, batch), kept))
            if len(pending) > CALLS_IN_FLIGHT:
                yield pending.popleft()
        yield from pending

    def shapes(self, state: TrainState) -> tuple[TrainState, Any]:
        """Shapes of what `outputs` gives to a program; reads and checks a stream's first batch."""
        if self.stream is None:
            batch = {name: value[: self.most] for name, value in self.columns.items()}
        else:
            batch = self.checked(first(iterate(self.stream, self.name), self.name))
            batch = batch if rows(batch) else one_row(batch)
        padded = self._padded(rows(batch))
        whole = padded // self.shards * self.plan.batch_shards  # with the rows of other processes
        sharding = self.plan.batch_sharding()
        columns = {
            name: jax.ShapeDtypeStruct(
                (whole, *value.shape[1:]),
                jax.dtypes.canonicalize_dtype(value.dtype),
                sharding=sharding,
            )
            for name, value in pad(batch, padded).items()
        }
        state = state._replace(opt_state=())
        return abstract(state, self.plan.state_shardings(state)), columns

    def _placed(self) -> Iterator[tuple[Any, Any]]:
        """Each padded batch on the devices, and which of its rows are to be read."""
        sharding, padded = self.plan.batch_sharding(), 0
        for batch, largest in self._batches():
            padded = max(padded, self._padded(largest))
            kept: Any = slice(0, rows(batch))
            batch = pad(batch, padded)
            if self.shards == self.plan.batch_shards:
                yield hosts.put(batch, sharding), kept
            else:
                whole = padded // self.shards * self.plan.batch_shards
                kept = hosts.rows_here(sharding, whole)[kept]
                yield hosts.put_shares(batch, sharding, whole), kept

    def _batches(self) -> Iterator[tuple[Columns, int]]:
        """Each batch, and the largest number of rows in any process's batch."""
        if self.stream is not None:
            yield from self._in_step(self.checked(batch) for batch in self.stream)
            return
        for start in range(0, rows(self.columns), self.most):
            batch = {name: v[start : start + self.most] for name, v in self.columns.items()}
            yield batch, rows(batch)

    def _in_step(self, batches: Iterable[Columns]) -> Iterator[tuple[Columns, int]]:
        """The batches of a stream, until the streams of all processes have ended.

        A process whose stream has ended before the others' gives empty batches.
        """
        last: Columns | None = None
        for batch in itertools.chain(batches, itertools.repeat(None)):
            counts = hosts.every(-1 if batch is None else rows(batch))
            if last is None and min(counts) < 0:
                where = f" in process {counts.index(-1)}" * (hosts.count() > 1)
                raise ValueError(
                    f"{self.name} must have at least one batch, got an empty stream{where}"
                )
            if max(counts) < 0:
                return
            last = {name: v[:0] for name, v in (last or {}).items()} if batch is None else batch
            yield last, max(counts)

    def _padded(self, count: int) -> int:
        """The rows of a padded batch: a power of two up to `most`, so that few sizes compile.

        For a stream, as many as it has; always a multiple of the shards.
        """
        size = min(next_power_of_two(count), self.most) if self.most else count
        return -(-size // self.shards) * self.shards


@functools.lru_cache(maxsize=32)
def _eval_program(task: Task, metrics: MetricFunctions) -> Callable[..., Any]:
    return jax.jit(functools.partial(eval_step, task, metrics))


@functools.lru_cache(maxsize=32)
def _predict_program(task: Task) -> Callable[..., Any]:
    return jax.jit(lambda state, batch: task.predict(state.params, state.extra, batch))
