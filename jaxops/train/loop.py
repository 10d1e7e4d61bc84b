"""Training, evaluation and prediction over whole data sets: the only place with side effects."""

import functools
import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxops import metrics as m
from jaxops.data.checks import named, prepare, rows
from jaxops.data.streams import Streamed
from jaxops.devices import hosts
from jaxops.devices.plans import Plan, default
from jaxops.nn.product import check_compute
from jaxops.optim import LossScaleState, found
from jaxops.state import TrainState, init_state, state_shapes
from jaxops.step import MetricFunctions, eval_step
from jaxops.task import Task
from jaxops.train.checkpoint import Checkpointer, abstract, leaves
from jaxops.train.feed import Gathered, Resident, Stream, check_split, fits, pad, share
from jaxops.train.profile import Profile
from jaxops.train.run import CALLS_IN_FLIGHT, Run
from jaxops.train.settings import Checkpoints, EarlyStopping, Record, Reports
from jaxops.transforms import check_accumulate

Data = Any
"""Columns in memory (`dict[str, np.ndarray]`), or an iterable of batches of such columns."""

EVALUATED_AT_ONCE = 1024


def fit(
    task: Task,
    data: Data,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    epochs: int | None = None,
    steps: int | None = None,
    validation: Data = None,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    early_stopping: EarlyStopping | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    compute: str = "float32",
    accumulate: int = 1,
    state: TrainState | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    reports: Reports | Callable[[Record], Any] | Sequence[Callable[[Record], Any]] = (),
    progress: bool = True,
) -> TrainState:
    """Train, and return the last state, or with early stopping the best.

    Columns in memory are put on the devices once, if they fit, and shuffled anew each epoch; every
    example is seen once an epoch, the last batch padded. Many steps run in one call. The result
    depends on the arguments alone, not on how the steps were split into calls or interrupted.

    Args:
        task: what to learn.
        data: columns in memory, where a column `mask` (N,) weighs the rows; or a stream: an
            iterable of batches, such as a batched `grain.IterDataset`, that gives the same batches
            each time it is iterated. A stream without a length is validated and reported every
            `reports.every` steps (100 by default).
        optimizer: any optax transformation; see `jaxops.optim`.
        batch_size: rows in one update, over all devices; padded where it does not divide over
            them, which `nn.BatchNorm` leaves out and Flax's does not.
        epochs: passes over the data; or
        steps: updates in all.
        validation: columns or a stream, evaluated at the end of each epoch, with the averaged
            parameters where the optimizer keeps some (`optim.ema`).
        metrics: more validation metrics, name -> `(predictions, batch) -> metric state`.
        early_stopping: when to stop, by a validation metric.
        seed: of parameters, order and noise.
        plan: how it lies on the devices; the first device alone by default, and all devices of
            all processes where there are several (`devices.start`).
        compute: "bfloat16" multiplies matrices in bfloat16 with float32 sums while training, in
            the layers of `jaxops.nn` that say nothing else; see `jaxops.nn.matmul`. "float16" does
            so with float16, and wants an optimizer in `optim.loss_scale`.
        accumulate: take a batch in so many parts, one after the other; see `train_step`.
        state: start from this one (its arrays are donated); a fresh one by default. Without
            optimizer state, as `load` gives it, the optimizer starts afresh. The run counts its
            own steps from 0, so the order of the rows starts over: another seed gives another.
        checkpoints: a directory, which gets a checkpoint at the end of each epoch and from which
            the same call continues; or `Checkpoints`, to say more.
        reports: a function or several that are called with each `Record`; or `Reports`, to say
            more.
        progress: show a progress bar and print a line an epoch.

    Raises:
        ValueError: before anything compiles, for data or arguments that cannot be meant.
        FloatingPointError: the loss or a parameter is not finite; names the step. The last
            checkpoint is from before.
        KeyboardInterrupt: after the calls in flight have ended and a checkpoint is written.
        SystemExit: the same on SIGTERM, with code `jaxops.PREEMPTED` (75); of several processes all
            stop at the same step.

    With several processes every one calls `fit` with the same arguments: columns in memory are the
    same in each, while of a stream each reads its own share (see `data.feed.Stream`), and
    `checkpoints` is a directory that all of them see.

    >>> from jaxops import optim, tabular

    >>> from jaxops import devices
    >>> x = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    >>> train = {"features": x, "label": (x.sum(1) > 0).astype(np.int32)}
    >>> task = tabular.classifier(tabular.MLP((16,)), features=3)
    >>> state = fit(task, train, optimizer=optim.adam(1e-2), batch_size=32, epochs=20,
    ...             plan=devices.data_parallel(), progress=False)
    >>> evaluate(task, state, train, metrics={"auc": tabular.auc})["auc"] > 0.99
    True
    >>> predict(task, state, {"features": x[:5]}).shape
    (5,)
    """
    plan = plan or default()
    hosts.check_mesh(plan.mesh)
    check_compute(compute)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        checkpoints = Checkpoints(checkpoints)
    if not isinstance(reports, Reports):
        reports = Reports(reports)
    every = {
        "reports.every": reports.every,
        "checkpoints.every": checkpoints.every if checkpoints else None,
    }
    _check_numbers(
        batch_size=(batch_size, 1),
        accumulate=(accumulate, 1),
        epochs=(epochs, 0),
        steps=(steps, 0),
        seed=(seed, 0),
        **{name: (value, 1) for name, value in every.items()},
    )
    # seed: that of `fit`; a stream has one of its own
    hosts.check_same(seed=seed, accumulate=accumulate, compute=compute, **every)
    check_accumulate(task, accumulate)
    if (epochs is None) == (steps is None):
        raise ValueError(f"epochs, steps: wanted one of them, found {epochs=}, {steps=}")
    if early_stopping and validation is None:
        raise ValueError("early_stopping: wants validation data to decide by, found none")
    if not isinstance(data, Mapping) or not isinstance(validation, Mapping | None):
        check_split(plan)
    batch = _example(task, data, share(batch_size, plan), "data")
    if validation is not None:
        validated = _example(task, validation, None, "validation", EVALUATED_AT_ONCE)
    source = _source(task, data, batch_size, seed, plan, accumulate)
    period = source.steps_per_epoch or reports.every or 100
    if epochs is not None and source.steps_per_epoch is None:
        raise ValueError("epochs: the stream has no length, so give steps instead")
    total = steps if steps is not None else (epochs or 0) * period

    def validate(state: TrainState) -> Record:
        return evaluate(task, state, validation, plan=plan, metrics=metrics)

    hosts.check_same(**source.identity(), steps=total, period=period, data=_sample(data))
    shapes = state_shapes(task, optimizer, batch, plan)
    if compute == "float16" and not found(shapes.opt_state, LossScaleState):
        raise ValueError('compute: "float16" wants an optimizer in optim.loss_scale, found none')
    if state is not None:
        state = _given(state, shapes, optimizer)
    if early_stopping:
        most = EVALUATED_AT_ONCE if isinstance(validation, Mapping) else 0
        validated = pad(validated, _padded(rows(validated), most, plan.batch_shards))
        _check_early_stopping(early_stopping, task, shapes, validated, metrics, plan)
    on_log, profile = reports.on_log, reports.profile
    run = Run(
        task=task,
        optimizer=optimizer,
        plan=plan,
        compute=compute,
        accumulate=accumulate,
        source=source,
        period=period,
        total=total,
        validate=None if validation is None else validate,
        early_stopping=early_stopping,
        log_every=reports.every,
        on_log=([on_log] if callable(on_log) else list(on_log)) if hosts.first() else [],
        progress=progress and hosts.first(),
        profile=Profile(profile) if profile is not None and hosts.first() else None,
    )
    with Checkpointer(checkpoints.directory) if checkpoints else nullcontext() as saved:
        newest = None if saved is None else saved.latest_step()
        hosts.check_same(checkpoint=newest)
        if saved is not None and newest is not None:
            if checkpoints and not checkpoints.resume:
                raise ValueError(
                    f"{checkpoints.directory}: has checkpoints of an earlier run; "
                    "resume it (resume=True) or name another directory"
                )
            state = run.restore(shapes, saved)
        elif state is None:
            state = init_state(task, optimizer, seed, batch, plan)
        else:
            state = hosts.put(state, plan.state_shardings(state))
        save_every = (checkpoints.every or period) if checkpoints else 0
        return run.train(state, saved, save_every)


def _check_numbers(**bounds: tuple[int | None, int]) -> None:
    for name, (value, least) in bounds.items():
        if value is not None and value < least:
            raise ValueError(f"{name}: {value} found, at least {least} wanted")


def _source(
    task: Task, data: Data, batch_size: int, seed: int, plan: Plan, accumulate: int
) -> Resident | Stream:
    if not isinstance(data, Mapping):
        checked = functools.partial(prepare, task, targets=True, empty=isinstance(data, Streamed))
        return Stream(data, batch_size, plan, checked, accumulate)
    count = rows(data)
    if batch_size > count:
        raise ValueError(f"batch_size: {batch_size} found, at most {count} (all rows) wanted")
    columns = named(task, data)
    kind = Resident if fits(columns, plan) else Gathered
    return kind(columns, batch_size, seed, plan, accumulate)


def _sample(data: Data) -> dict[str, Any] | None:
    """Enough of columns in memory to see that another process holds others."""
    if hosts.count() == 1 or not isinstance(data, Mapping):
        return None
    few = {name: np.asarray(v)[:: -(-rows(data) // 64)] for name, v in data.items()}
    return {n: [np.shape(data[n]), zlib.crc32(v.tobytes())] for n, v in sorted(few.items())}


def _example(
    task: Task, data: Data, batch_size: int | None, name: str, count: int = 1
) -> dict[str, np.ndarray]:
    """The first rows; all that is in memory, or a stream's first batch, is checked."""
    if hasattr(data, "splits"):
        raise ValueError(f"{name}: a Dataset found, one of its splits wanted, such as data.train")
    if hasattr(data, "iloc"):
        raise ValueError(f"{name}: a data frame found; wanted Dataset.from_arrays(**frame).train")
    batch = data
    if not isinstance(data, Mapping):
        batches = iter(data)
        if batches is data:
            raise ValueError(
                f"{name}: a generator or iterator found, which can be iterated once; wanted what "
                "gives its batches anew each time, such as a list or a grain data set"
            )
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"{name}: the stream is empty; wanted at least one batch")
    columns = prepare(task, batch, targets=True, empty=isinstance(data, Streamed))
    if batch is not data:
        pad(columns, batch_size or rows(batch))  # is it too large?
    if rows(columns) == 0:  # others have all of the first batch, and the shapes of one row
        columns = {n: np.zeros((1, *v.shape[1:]), v.dtype) for n, v in columns.items()}
    return {n: v[:count] for n, v in columns.items()}


def _given(
    state: TrainState, wanted: TrainState, optimizer: optax.GradientTransformation
) -> TrainState:
    if not jax.tree.leaves(state.opt_state):
        state = state._replace(opt_state=jax.jit(optimizer.init)(state.params))
    found, needed = leaves({"state": state}), leaves({"state": wanted})
    for name in sorted(found.keys() | needed.keys()):
        have, want = (tree.get(name, "nothing") for tree in (found, needed))
        if have != want:
            raise ValueError(f"{name}: {have} found, {want} wanted by the task and the optimizer")
    return state


def _check_early_stopping(
    stopping: EarlyStopping, task: Task, state: Any, batch: Any, metrics: Any, plan: Plan
) -> None:
    """What is traced here for a padded batch is what `evaluate` will compile."""
    if stopping.mode not in ("min", "max"):
        raise ValueError(f'early_stopping: mode "min" or "max" wanted, {stopping.mode!r} found')
    program = _eval_program(task, tuple((metrics or {}).items()))
    state = state._replace(opt_state=())
    state = abstract(state, plan.state_shardings(state))
    columns = jax.tree.map(lambda column: jax.typeof(column), batch)
    columns = abstract(columns, dict.fromkeys(columns, plan.batch_sharding()))
    states = jax.eval_shape(program, state, columns)
    found = m.summarize(jax.tree.map(lambda leaf: np.ones(leaf.shape), states))
    if stopping.metric not in found:
        name = stopping.metric
        raise ValueError(f"early_stopping: metric {name!r} wanted, {sorted(found)} found")


def evaluate(
    task: Task,
    state: TrainState,
    data: Data,
    *,
    batch_size: int = EVALUATED_AT_ONCE,
    plan: Plan | None = None,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
) -> dict[str, Any]:
    """The task's metrics over all of `data`: every example counts once, on any number of devices.

    Args:
        task: what was learned.
        state: a state of it; see `optim.averaged` for the averaged parameters.
        data: columns in memory, or an iterable of batches.
        batch_size: rows at a time, at most, of columns; a stream's batches are taken as they come.
            The last batch is padded and masked. With several processes each reads its own share
            of a stream, until all have come to their ends.
        plan: the devices; the first alone, or all of several processes, by default.
        metrics: more of them, name -> `(predictions, batch) -> metric state`.

    Returns:
        name -> float, or an array for a confusion matrix: "loss" and those of the task.
    """
    program = _eval_program(task, tuple((metrics or {}).items()))
    total: dict[str, Any] = {}
    for states, _ in _over(program, task, state, data, batch_size, plan, targets=True):
        states = m.to_host(hosts.gathered(states))
        total = m.merge(total, states) if total else states
    if not total:
        raise ValueError("data: the stream is empty; wanted at least one batch")
    return m.summarize(total)


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
    The arguments are those of `evaluate`. With several processes each gets all rows of columns in
    memory, which all of them hold, and of a stream the rows of its own share.
    """
    program = _predict_program(task)
    parts = [
        jax.tree.map(lambda leaf: leaf[own], jax.device_get(hosts.gathered(outputs)))  # noqa: B023
        for outputs, own in _over(program, task, state, data, batch_size, plan, targets=False)
    ]
    if not parts:
        raise ValueError("data: the stream is empty; wanted at least one batch")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _over(
    program: Callable[[TrainState, Any], Any],
    task: Task,
    state: TrainState,
    data: Data,
    batch_size: int,
    plan: Plan | None,
    targets: bool,
) -> Iterable[tuple[Any, Any]]:
    """The program's outputs for each padded batch, a few calls behind, and which rows to read.

    With several processes these are all rows of columns, and of a stream this process's own.
    """
    plan = plan or default()
    hosts.check_mesh(plan.mesh)
    sharding, parts = plan.batch_sharding(), plan.batch_shards
    if isinstance(data, Mapping):
        columns, size, here = prepare(task, data, targets), batch_size, parts
        starts = range(0, rows(columns), size)
        cut = ({name: v[start : start + size] for name, v in columns.items()} for start in starts)
        batches: Iterable[tuple[Any, int]] = ((batch, rows(batch)) for batch in cut)
    else:
        check_split(plan)
        size, here = 0, share(parts, plan)
        empty = isinstance(data, Streamed)
        batches = _in_step(prepare(task, batch, targets, empty) for batch in data)
    # wherever it was trained; what the optimizer keeps is not needed
    state = state._replace(opt_state=())
    state = hosts.put(state, plan.state_shardings(state))
    padded = 0
    pending: deque[tuple[Any, Any]] = deque()
    for batch, most in batches:
        padded = max(padded, _padded(most, size, here))
        own: Any = slice(0, rows(batch))
        batch = pad(batch, padded)
        if here == parts:
            placed = hosts.put(batch, sharding)
        else:
            whole = padded // here * parts
            placed = hosts.put_shares(batch, sharding, whole)
            own = hosts.rows_here(sharding, whole)[own]
        pending.append((program(state, placed), own))
        if len(pending) > CALLS_IN_FLIGHT[False]:
            yield pending.popleft()
    yield from pending


def _in_step(batches: Iterable[Any]) -> Iterable[tuple[Any, int]]:
    """Each batch, and the most rows that a process has in its own.

    A process whose stream has ended gives empty batches until all have ended.
    """
    last: Any = None
    for batch in itertools.chain(batches, itertools.repeat(None)):
        counts = hosts.every(-1 if batch is None else rows(batch))
        if max(counts) < 0:
            return
        if last is None and min(counts) < 0:
            process = counts.index(-1)
            raise ValueError(f"data: the stream of process {process} is empty; wanted a batch")
        last = {name: v[:0] for name, v in last.items()} if batch is None else batch
        yield last, max(counts)


def _padded(count: int, most: int, shards: int) -> int:
    """The rows of a padded batch: a power of two up to `most`, so that few sizes compile.

    With `most` 0, for a stream, as many as it has; always a multiple of the shards.
    """
    size = min(1 << (count - 1).bit_length(), most) if most else count
    return -(-size // shards) * shards


@functools.lru_cache(maxsize=32)
def _eval_program(task: Task, metrics: MetricFunctions) -> Callable[..., Any]:
    return jax.jit(functools.partial(eval_step, task, metrics))


@functools.lru_cache(maxsize=32)
def _predict_program(task: Task) -> Callable[..., Any]:
    return jax.jit(lambda state, batch: task.predict(state.params, state.extra, batch))
