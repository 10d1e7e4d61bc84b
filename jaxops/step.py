"""Pure steps: one update, many updates in one call, one evaluation, and an update by pmap."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops import optim
from jaxops.devices import hosts
from jaxops.metrics import Count, Mean, fold
from jaxops.state import Stays, TrainState
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task
from jaxops.transforms import accumulated, check_accumulate

Metrics = dict[str, Any]
MetricFunctions = tuple[tuple[str, Callable[[Any, Batch], Any]], ...]
RELEASE = 2**31 - 1
"""Folded into a step's key for `Task.release`; parts, devices and rows have smaller numbers."""


def train_step(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update by the gradient of the summed loss, divided once by the batch's weight.

    This function is pure. Use it as `jax.jit(partial(train_step, task, tx), donate_argnums=0)`. The
    metrics are mergeable states. They contain "loss", and also "skipped", "clipped" and
    "loss_scale" if the optimizer reports them (see `jaxops.optim`). An optimizer that takes the
    loss (`value=`), such as `optax.contrib.reduce_on_plateau`, gets it.

    With `accumulate=k` the batch is computed in k parts, one after the other, so it needs the
    memory of one part. Part j has the rows j, j + k, j + 2k, ..., so that on many devices each row
    stays on its device. The communication of a plan (gradients, gathered parameters) happens for
    each part. Sums and weights are added up and divided once. Therefore the update is that of the
    whole batch, unless something couples its rows: batch norm uses the statistics of a part.

    Args:
        task: the task.
        tx: the optimizer.
        state: the task's state; donate it when you jit the step.
        batch: columns with one leading axis.
        accumulate: number of parts in which the batch is computed.

    Raises:
        ValueError: while tracing, for a batch that `accumulate` does not divide evenly, or for a
            task whose loss couples the rows.

    >>> import numpy as np
    >>> from jaxops import init_state, tabular
    >>> task, tx = tabular.classifier(tabular.MLP((4,)), features=3), optim.sgd(0.1)
    >>> batch = {"features": np.ones((2, 3), np.float32), "label": np.array([0, 1])}
    >>> step = jax.jit(functools.partial(train_step, task, tx), donate_argnums=0)
    >>> state, metrics = step(init_state(task, tx, seed=0, batch=batch), batch)
    >>> int(state.step), sorted(metrics)
    (1, ['accuracy', 'loss'])
    """
    check_accumulate(task, accumulate)
    key = jax.random.fold_in(state.key, state.step)
    return update(tx, state, *gradients(task, state, batch, key, accumulate), task.release)


def gradients(
    task: Task, state: TrainState, batch: Batch, key: Key, accumulate: int = 1
) -> tuple[Array, Out, Params]:
    """The summed loss of a batch, its `Out`, and the gradient of the sum.

    With `optim.loss_scale` in the optimizer, the gradient is computed from the scaled loss and then
    divided by the scale.
    """
    scales = optim.states_of(state.opt_state, optim.LossScaleState)

    def loss(params: Params, extra: Extra, part: Batch, key: Key) -> Any:
        total, out = task.loss(params, extra, part, key, True)
        scaled = total * scales[0].scale.astype(total.dtype) if scales else total
        return scaled, (total, out)

    def gradients_of(extra: Extra, part: Batch, key: Key) -> Any:
        (_, (total, out)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, extra, part, key
        )
        return total, out, grads

    total, out, grads = (
        gradients_of(state.extra, batch, key)
        if accumulate == 1
        else accumulated(gradients_of, state.params, state.extra, batch, key, accumulate)
    )
    if scales:
        grads = jax.tree.map(lambda g: g / scales[0].scale.astype(g.dtype), grads)
    return total, out, grads


def update(
    tx: optax.GradientTransformation,
    state: TrainState,
    total: Array,
    out: Out,
    grads: Params,
    release: Callable[[Params, Key], Params] | None = None,
) -> tuple[TrainState, Metrics]:
    """The state after one update with the sums from `gradients`, and the metrics.

    With `release` (see `Task`) the optimizer gets what that makes of the gradient, and no loss.
    """
    weight = jnp.where(out.weight > 0, out.weight, 1.0)
    if release is None:
        # a product, which XLA fuses with the optimizer; a division took another pass over memory
        grads = jax.tree.map(lambda g: g * (1 / weight).astype(g.dtype), grads)
        known = {"value": total / weight}
    else:
        key = jax.random.fold_in(state.key, state.step)
        grads, known = release(grads, jax.random.fold_in(key, RELEASE)), {}
    try:
        updates, opt_state = optax.with_extra_args_support(tx).update(
            grads, state.opt_state, state.params, **known
        )
    except TypeError as error:
        if not re.search(
            "required (keyword-only|positional) argument|unexpected keyword", str(error)
        ):
            raise  # an error inside the optimizer
        loss = " (and value=, the loss)" if known else " (the loss is private)"
        raise ValueError(
            f"optimizer must need only the gradient{loss} to update, got one that "
            f"needs other arguments: {error}"
        ) from error
    params = optax.apply_updates(state.params, updates)
    metrics, extra = {**out.metrics, "loss": Mean(total, out.weight)}, out.extra
    for stays in optim.states_of(opt_state, Stays):
        extra = stays.of(state.params, state.extra, extra)
    counted = _counters(state.opt_state, opt_state)
    if "skipped" in counted:
        good = counted["skipped"].total == 0
        extra = _where(good, extra, state.extra)
        zeros = jax.tree.map(jnp.zeros_like, metrics)
        metrics = _where(good | jnp.isfinite(total), metrics, zeros)  # a NaN must not enter a sum
    state = TrainState(state.step + 1, params, opt_state, extra, state.key)
    return state, metrics | counted


def _counters(before: Any, after: Any) -> dict[str, Any]:
    """Metrics of one update, from the optimizer's state before and after it.

    "skipped" and "clipped" are counts; they exist if `skip_not_finite`, `loss_scale` or
    `clip_by_global_norm` is in the optimizer. "loss_scale" is the factor of the loss.
    """
    totals = {
        "skipped": (optax.ApplyIfFiniteState, "total_notfinite"),
        "clipped": (optim.ClipState, "clipped"),
    }
    states: dict[str, Any] = {}
    for name, (kind, total) in totals.items():
        pairs = zip(optim.states_of(before, kind), optim.states_of(after, kind), strict=True)
        events = [getattr(new, total) - getattr(old, total) for old, new in pairs]
        if events:
            states[name] = Count(sum(events[1:], events[0]))
    for scaled in optim.states_of(before, optim.LossScaleState):
        states["loss_scale"] = Mean(scaled.scale, jnp.ones(()))
    return states


def _where(condition: Array, tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def eval_step(task: Task, metrics: MetricFunctions, state: TrainState, batch: Batch) -> Metrics:
    """The task's own metrics on one batch, and more metrics of its predictions.

    Args:
        task: the task.
        metrics: `(name, function)` pairs, the function `(predictions, batch) -> metric state`.
        state: the task's state.
        batch: columns with one leading axis.

    >>> import numpy as np
    >>> from jaxops import init_state, tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=3)
    >>> batch = {"features": np.ones((2, 3), np.float32), "label": np.array([0, 1])}
    >>> state = init_state(task, optim.sgd(0.1), seed=0, batch=batch)
    >>> eval_step(task, (), state, batch)["accuracy"].compute()
    0.5
    """
    total, out = task.loss(state.params, state.extra, batch, state.key, False)
    states = {**out.metrics, "loss": Mean(total, out.weight)}
    if metrics:
        predictions = task.predict(state.params, state.extra, batch)
        states |= {name: function(predictions, batch) for name, function in metrics}
    return states


def many_steps(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]]:
    """A function that makes up to K steps in one call.

    It takes `(state, batches, count)`: every leaf of `batches` has a leading axis of length K, and
    the first `count` (an int32 scalar) are used. It returns the state and the metrics of each
    step, stacked along a leading axis of length K; rows from `count` on are zero.

    Unlike `lax.scan`, this loop can stop early, so one compilation serves every count. K = 1 is
    compiled without a loop, because some operations are slow in a loop on a CPU.

    Args:
        step: `(state, batch) -> (state, metrics)`, such as a partial `train_step`.

    >>> step = lambda state, batch: (state + batch, {"sum": state + batch})
    >>> state, metrics = many_steps(step)(jnp.float32(0), jnp.arange(4.0), 3)
    >>> float(state), metrics["sum"].tolist()
    (3.0, [0.0, 1.0, 3.0, 0.0])
    """

    def run(state: TrainState, batches: Any, count: Array) -> tuple[TrainState, Metrics]:
        length = len(jax.tree.leaves(batches)[0])

        def batch_at(i: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[i], batches)

        if length == 1:
            state, metrics = step(state, batch_at(0))
            return state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], metrics)
        _, shapes = jax.eval_shape(step, state, batch_at(0))
        stacked = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), shapes)

        def body(i: Array, carry: Any) -> Any:
            state, stacked = carry
            state, metrics = step(state, batch_at(i))
            stacked = jax.tree.map(lambda all_, one: all_.at[i].set(one), stacked, metrics)
            return state, stacked

        return jax.lax.fori_loop(0, count, body, (state, stacked))

    return run


def pmap_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    devices: Sequence[jax.Device] | None = None,
    accumulate: int = 1,
) -> Callable[[Any, Batch], tuple[Any, Any]]:
    """`train_step` by `jax.pmap`, for code that still uses pmap.

    The state must be placed as `init_state(..., plan=data_parallel(devices))` places it, and it is
    donated. Each device takes its rows of the batch. Sums, weights and gradients are added up over
    the devices and divided once, so the update is that of `train_step`. Two things differ from a
    plan. Batch norm uses the statistics of one device's rows, and its running statistics are the
    mean over the devices. Each device draws its own dropout masks.

    Args:
        task: the task.
        tx: the optimizer.
        devices: all local devices by default.
        accumulate: see `train_step`.

    Returns:
        The compiled step, `(state, batch) -> (state, metrics)`.

    Raises:
        ValueError: a task whose loss couples the rows of a batch, or several processes. The step
            raises it for a batch that does not divide evenly over the devices.

    >>> import numpy as np
    >>> from jaxops import init_state, tabular
    >>> from jaxops.devices import data_parallel
    >>> task, tx = tabular.classifier(tabular.MLP((4,)), features=3), optim.sgd(0.1)
    >>> rows = 2 * jax.device_count()
    >>> batch = {"features": np.ones((rows, 3), np.float32), "label": np.arange(rows) % 2}
    >>> state = init_state(task, tx, seed=0, batch=batch, plan=data_parallel())
    >>> state, metrics = pmap_train_step(task, tx)(state, batch)
    >>> int(state.step)
    1
    """
    hosts.check_started()
    if hosts.count() > 1:
        raise ValueError(
            f"pmap_train_step must run in one process, got {hosts.count()}; for several use "
            "a plan, such as data_parallel(), and train_step"
        )
    if task.coupled:
        raise ValueError(
            "task must not couple the rows of a batch, got coupled=True; use a plan instead"
        )
    devices = jax.local_devices() if devices is None else devices

    @functools.partial(
        jax.pmap,
        axis_name="data",
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )
    def step(state: Any, batch: Batch) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        total, out, grads = gradients(task, state, batch, key, accumulate)
        total, weight, grads = jax.lax.psum((total, out.weight, grads), "data")
        extra = jax.lax.pmean(out.extra, "data")
        metrics = fold(jax.lax.all_gather(out.metrics, "data"))
        return update(tx, state, total, Out(weight, metrics, extra), grads, task.release)

    def call(state: Any, batch: Batch) -> Any:
        rows = len(next(iter(batch.values())))
        if rows % len(devices):
            raise ValueError(
                f"batch must have a multiple of {len(devices)} rows (the number of devices), "
                f"got {rows}"
            )
        return step(state, {k: v.reshape(len(devices), -1, *v.shape[1:]) for k, v in batch.items()})

    return call
