"""Evaluation and prediction over whole data sets: each row counts once, on all plans."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxops import metrics as m
from jaxops._shapes import few_lengths, next_power_of_two
from jaxops.data.checks import prepare, rows
from jaxops.devices import hosts
from jaxops.devices.plans import Plan, default
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.step import eval_step
from jaxops.task import Task
from jaxops.train import own_metrics
from jaxops.train.checkpoint import abstract
from jaxops.train.feed import (
    Data,
    check_kind,
    check_split,
    check_task,
    check_weights,
    checker,
    first,
    iterate,
    one_row,
    share,
)
from jaxops.train.own_metrics import Metrics
from jaxops.train.resident import Columns, pad
from jaxops.train.settings import whole

EVALUATED_AT_ONCE = 1024
BATCHES_IN_FLIGHT = 8  # each batch is one call, or two calls if the user gives metrics


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
        state: its state. If `optim.ema` has kept averaged parameters, they are used, as in the
            validation of `fit`.
        data: columns in memory, or an iterable of batches.
        batch_size: the largest number of rows at a time, for columns; the batches of a stream are
            taken as they are. The last batch is padded and masked. With several processes, each
            reads its own share of a stream, until all shares have ended.
        plan: the devices; by default the first device, or with several processes all devices.
        metrics: additional metrics by name. Each is a function `(predictions, batch)` that returns
            one value for each row, whose mean is reported, or a metric state. It sees only the real
            rows, without padding. Its batch has a column `mask` only if the data have one; these
            are the weights of the rows, and the mean is weighted by them.

    Returns:
        The values by name: "loss", the task's own metrics and `metrics`. A value is a float, or an
        array for a confusion matrix.

    Raises:
        ValueError: the data do not fit the task; or a metric has the name of one of the task's
            metrics, or returns neither one value for each row nor a state.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> rows = {"features": np.eye(3, dtype=np.float32), "label": np.array([0, 1, 1], np.int32)}
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> sorted(evaluate(task, state, rows))
    ['accuracy', 'loss']
    >>> brier = lambda predictions, batch: (predictions - batch["label"]) ** 2
    >>> 0 < evaluate(task, state, rows, metrics={"brier": brier})["brier"] < 1
    True
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
    """The task's predictions for every row, in order, as NumPy arrays (N, ...).

    Target columns are not needed, and a `mask` changes nothing. A classifier predicts
    probabilities. The arguments are those of `evaluate`. With several processes, each gets the
    predictions for all rows of columns in memory; of a stream it gets only those of its own share.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> rows = {"features": np.eye(3, dtype=np.float32)}
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> predict(task, state, rows).shape
    (3,)
    """
    in_order = InOrder(task, data, batch_size, plan or default(), targets=False)
    return in_order.predictions(_predict_program(task), state)


class Evaluation:
    """Evaluates successive states on one data set.

    Columns in memory are checked once, when the object is made. The batches of a stream are checked
    each time they are read.

    Args:
        task: the trained task.
        data: columns in memory, or an iterable of batches.
        plan: the devices.
        metrics: additional metrics by name, see `evaluate`.
        batch_size: the largest number of rows at a time, for columns.
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
        own = own_metrics.check(metrics)
        self.data = InOrder(task, data, batch_size, plan or default(), name=name)
        self._program = _eval_program(task, bool(own))
        self._own = own_metrics.program(own) if own else None

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """Name -> float, or an array for a confusion matrix."""
        total: dict[str, Any] = {}
        for states, _ in self.data.outputs(self._states, state):
            states = m.to_host(hosts.gathered(states))
            total = m.merge(total, states) if total else states
        return m.summarize(total)

    def names(self, shapes: TrainState) -> list[str]:
        """The names of the metrics that are numbers, found without compiling anything.

        The evaluation itself reuses this trace.
        """
        state, placed = self.data.shapes(shapes)
        program = functools.partial(jax.eval_shape, self._program)
        own = self._own and functools.partial(jax.eval_shape, self._own)
        states = _all_states(program, own, state, placed)
        values = m.summarize(jax.tree.map(lambda leaf: np.ones(leaf.shape), states))
        return sorted(name for name, value in values.items() if np.ndim(value) == 0)

    def _states(self, state: TrainState, placed: "Placed") -> dict[str, Any]:
        return _all_states(self._program, self._own, state, placed)


def _all_states(program: Any, own: Any, state: TrainState, placed: "Placed") -> dict[str, Any]:
    """The task's metrics by `program`, and the user's metrics of its predictions by `own`."""
    states, predictions = program(state, placed.batch)
    if own is None:
        return states
    batch = {k: v for k, v in placed.batch.items() if k != "mask" or placed.weighed}
    more = own(predictions, batch, placed.real)
    taken = sorted(states.keys() & more.keys())
    if taken:
        raise ValueError(f"metrics must have other names than the task's own, got {taken}")
    return states | more


class Placed(NamedTuple):
    """A padded batch on the devices.

    Attributes:
        batch: its columns, with `mask`.
        kept: the rows of the batch that this process returns, as it reads them.
        real: int32, the rows that are not padding.
        weighed: whether the data themselves have a `mask`.
    """

    batch: Any
    kept: Any
    real: np.ndarray
    weighed: bool


class InOrder:
    """A data set's rows in order, each once, in padded batches on the devices.

    Args:
        task: names the columns that are needed and what they must look like.
        data: columns in memory, which are checked here, or an iterable of batches.
        batch_size: maximum rows at a time, for columns.
        plan: the devices.
        targets: whether target columns are needed as well.
        name: the name of the data in messages.
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
        check_task(task)
        check_kind(data, name)
        batch_size = whole("batch_size", batch_size, 1)
        hosts.check_mesh(plan.mesh)
        self.plan, self.name = plan, name
        self.stream: Any = None
        if isinstance(data, Mapping):
            self.columns = prepare(task, data, targets)
            if targets:
                check_weights(self.columns, name)
            self.most, self.shards = batch_size, plan.batch_shards
        else:
            check_split(plan)
            self.stream, self.checked = data, checker(task, data, targets)
            self.most, self.shards = 0, share(plan.batch_shards, plan)

    def outputs(
        self, program: Callable[[TrainState, Placed], Any], state: TrainState
    ) -> Iterator[tuple[Any, Any]]:
        """Yield outputs and the rows to keep; up to 8 batches are in flight.

        With several processes, the rows to keep are all rows of columns, but only this process's
        rows of a stream.
        """
        # the state may lie on other devices; the optimizer's part of it is not needed
        state = averaged(state)._replace(opt_state=())
        state = hosts.put(state, self.plan.state_shardings(state))
        pending: deque[tuple[Any, Any]] = deque()
        for placed in self._placed():
            pending.append((program(state, placed), placed.kept))
            if len(pending) > BATCHES_IN_FLIGHT:
                yield pending.popleft()
        yield from pending

    def predictions(self, program: Callable[[TrainState, Any], Any], state: TrainState) -> Any:
        """What `program(state, batch)` gives for every row, in order, as NumPy arrays (N, ...)."""
        parts = [
            jax.tree.map(lambda leaf: leaf[kept], jax.device_get(hosts.gathered(outputs)))  # noqa: B023
            for outputs, kept in self.outputs(lambda s, placed: program(s, placed.batch), state)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def shapes(self, state: TrainState) -> tuple[TrainState, Placed]:
        """Shapes of a program's arguments in `outputs`; reads and checks a stream's first batch."""
        if self.stream is None:
            batch = {name: value[: self.most] for name, value in self.columns.items()}
        else:
            batch = self.checked(first(iterate(self.stream, self.name), self.name))
            batch = batch if rows(batch) else one_row(batch)
        padded = self._padded(rows(batch))
        whole = padded // self.shards * self.plan.batch_shards  # the rows of all processes
        sharding = self.plan.batch_sharding()
        columns = {
            name: jax.ShapeDtypeStruct(
                (whole, *value.shape[1:]),
                jax.dtypes.canonicalize_dtype(value.dtype),
                sharding=sharding,
            )
            for name, value in pad(batch, padded).items()
        }
        real = np.arange(rows(batch), dtype=np.int32)
        state = state._replace(opt_state=())
        placed = Placed(columns, slice(0), real, "mask" in batch)
        return abstract(state, self.plan.state_shardings(state)), placed

    def _placed(self) -> Iterator[Placed]:
        """Each padded batch on the devices."""
        sharding, padded = self.plan.batch_sharding(), 0
        for batch, counts in self._batches():
            padded = max(padded, self._padded(max(counts)))
            kept: Any = slice(0, rows(batch))
            weighed, batch = "mask" in batch, pad(batch, padded)
            # the rows of a stream are in the order of the processes
            starts = padded * np.arange(len(counts))
            parts = [start + np.arange(n) for start, n in zip(starts, counts, strict=True)]
            real = np.concatenate(parts).astype(np.int32)
            if self.shards == self.plan.batch_shards:
                yield Placed(hosts.put(batch, sharding), kept, real, weighed)
            else:
                whole = padded // self.shards * self.plan.batch_shards
                kept = hosts.rows_here(sharding, whole)[kept]
                yield Placed(hosts.put_shares(batch, sharding, whole), kept, real, weighed)

    def _batches(self) -> Iterator[tuple[Columns, list[int]]]:
        """Each batch and its number of rows; for a stream, the number in each process's batch."""
        if self.stream is not None:
            yield from self._in_step(self.checked(batch) for batch in self.stream)
            return
        for start in range(0, rows(self.columns), self.most):
            batch = {name: v[start : start + self.most] for name, v in self.columns.items()}
            yield batch, [rows(batch)]

    def _in_step(self, batches: Iterable[Columns]) -> Iterator[tuple[Columns, list[int]]]:
        """The batches of a stream, until the streams of all processes have ended.

        A process whose stream has ended before those of the others gives empty batches.
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
            yield last, [max(n, 0) for n in counts]

    def _padded(self, count: int) -> int:
        """The rows of a padded batch: a power of two up to `most`, so that few sizes compile.

        For a stream the number is rounded up by at most an eighth. It is always a multiple of the
        number of shards.
        """
        size = min(next_power_of_two(count), self.most) if self.most else few_lengths(count)
        return -(-size // self.shards) * self.shards


@functools.lru_cache(maxsize=32)
def _eval_program(task: Task, predicts: bool) -> Callable[..., Any]:
    """`(state, batch) -> (metric states, predictions)`; without `predicts` no predictions."""

    def eval_step_of(state: TrainState, batch: Any) -> tuple[dict[str, Any], Any]:
        predictions = task.predict(state.params, state.extra, batch) if predicts else None
        return eval_step(task, (), state, batch), predictions

    return jax.jit(eval_step_of)


@functools.lru_cache(maxsize=32)
def _predict_program(task: Task) -> Callable[..., Any]:
    return jax.jit(lambda state, batch: task.predict(state.params, state.extra, batch))
