"""Pure steps and what is built from them: one update, many updates in one call, one evaluation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops import optim
from jaxops.devices import hosts
from jaxops.metrics import Mean, fold
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task
from jaxops.transforms import accumulated, check_accumulate

Metrics = dict[str, Any]
MetricFunctions = tuple[tuple[str, Callable[[Any, Batch], Any]], ...]


def train_step(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update: gradient of the summed loss, divided once by the batch's weight.

    Pure; meant for `jax.jit(partial(train_step, task, tx), donate_argnums=0)`. The metrics are
    mergeable states; "loss" is among them, and "skipped", "clipped" and "loss_scale" where the
    optimizer has such (see `jaxops.optim`). An optimizer that wants the loss (`value=`), such as
    `optax.contrib.reduce_on_plateau`, is given it.

    With `accumulate=k` the batch is taken in k parts, one after the other, which needs the memory
    of one. Part j has the rows j, j + k, j + 2k, ..., so on many devices each row stays where it
    is; what a plan exchanges (gradients, gathered parameters) it exchanges for each part. Sums and
    weights are added up and divided once: the update is that of the whole batch, but for what
    couples its rows (the statistics of batch norm are those of a part).

    Raises:
        ValueError: when it is traced, for a batch that does not divide, or a task whose loss
            couples the rows.
    """
    check_accumulate(task, accumulate)
    key = jax.random.fold_in(state.key, state.step)
    return update(tx, state, *gradients(task, state, batch, key, accumulate))


def gradients(
    task: Task, state: TrainState, batch: Batch, key: Key, accumulate: int = 1
) -> tuple[Array, Out, Params]:
    """The summed loss of a batch, what comes with it, and the gradient of the sum.

    With `optim.loss_scale` in the optimizer the gradient is that of the scaled loss, divided again.
    """
    scales = optim.found(state.opt_state, optim.LossScaleState)

    def loss(params: Params, extra: Extra, part: Batch, key: Key) -> Any:
        total, out = task.loss(params, extra, part, key, True)
        scaled = total * scales[0].scale.astype(total.dtype) if scales else total
        return scaled, (total, out)

    def of(extra: Extra, part: Batch, key: Key) -> Any:
        (_, (total, out)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, extra, part, key
        )
        return total, out, grads

    total, out, grads = (
        of(state.extra, batch, key)
        if accumulate == 1
        else accumulated(of, state.params, state.extra, batch, key, accumulate)
    )
    if scales:
        grads = jax.tree.map(lambda g: g / scales[0].scale.astype(g.dtype), grads)
    return total, out, grads


def update(
    tx: optax.GradientTransformation, state: TrainState, total: Array, out: Out, grads: Params
) -> tuple[TrainState, Metrics]:
    """The state after one update by the sums that `gradients` gives, and the metrics."""
    weight = jnp.where(out.weight > 0, out.weight, 1.0)
    # a product, which XLA puts into the optimizer's loops; a division was a pass of its own
    grads = jax.tree.map(lambda g: g * (1 / weight).astype(g.dtype), grads)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, state.opt_state, state.params, value=total / weight
    )
    params = optax.apply_updates(state.params, updates)
    metrics, extra = {**out.metrics, "loss": Mean(total, out.weight)}, out.extra
    counted = optim.counters(state.opt_state, opt_state)
    if "skipped" in counted:
        good = counted["skipped"].total == 0
        extra = _where(good, extra, state.extra)
        zeros = jax.tree.map(jnp.zeros_like, metrics)
        metrics = _where(good | jnp.isfinite(total), metrics, zeros)  # a NaN stays in no sum
    state = TrainState(state.step + 1, params, opt_state, extra, state.key)
    return state, metrics | counted


def _where(condition: Array, tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def eval_step(task: Task, metrics: MetricFunctions, state: TrainState, batch: Batch) -> Metrics:
    """The task's own metrics on one batch, and those of `metrics`, made from its predictions.

    Each of `metrics` is `(name, function)`, the function `(predictions, batch) -> metric state`.
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

    A loop with a count is `lax.scan` with the freedom to stop early: one compilation serves
    every count. K = 1 is compiled without a loop, in which some operations are slow on a CPU.
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
    """`train_step` by `jax.pmap`, for who wants it: `(state, batch) -> (state, metrics)`, compiled.

    The state lies as `init_state(..., plan=data_parallel(devices))` puts it, and is donated. Each
    device takes its rows of the batch; sums, weights and gradients are added up over the devices
    and divided once, so the update is that of `train_step`. Two things differ from a plan. Batch
    norm sees the rows of one device, not those of the batch: it divides by their statistics, and
    the running ones are the mean over the devices. And each device draws its own noise.

    Args:
        task: what to learn.
        tx: the optimizer.
        devices: all local ones by default.
        accumulate: see `train_step`.

    Raises:
        ValueError: by the step, for a batch that does not divide over the devices, or by
            `pmap_train_step` for a loss that couples the rows of a batch, or with several
            processes: it adds up over the devices of one.
    """
    hosts.check_started()
    if hosts.count() > 1:
        raise ValueError(
            f"pmap_train_step: {hosts.count()} processes found, one wanted; "
            "several want a plan, such as data_parallel(), and train_step"
        )
    if task.coupled:
        raise ValueError("task: its loss couples the rows of a batch (coupled=True); wanted a plan")
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
        return update(tx, state, total, Out(weight, metrics, extra), grads)

    def call(state: Any, batch: Batch) -> Any:
        rows = len(next(iter(batch.values())))
        if rows % len(devices):
            raise ValueError(
                f"batch: {rows} rows found, a multiple of {len(devices)} wanted, one part a device"
            )
        return step(state, {k: v.reshape(len(devices), -1, *v.shape[1:]) for k, v in batch.items()})

    return call
