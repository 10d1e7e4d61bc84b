"""Pure steps and what is built from them: one update, many updates in one call, one evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops import optim
from jaxops.metrics import Mean, fold
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task

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


def check_accumulate(task: Task, accumulate: int) -> None:
    """Raise `ValueError` where a batch must not be taken in parts."""
    if accumulate > 1 and task.coupled:
        raise ValueError(
            f"accumulate: {accumulate} found, 1 wanted: the task's loss couples the rows of a "
            "batch (coupled=True), so the sum over its parts is another loss"
        )


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
        else _accumulated(of, state.params, state.extra, batch, key, accumulate)
    )
    if scales:
        grads = jax.tree.map(lambda g: g / scales[0].scale.astype(g.dtype), grads)
    return total, out, grads


def _accumulated(of: Any, params: Params, extra: Extra, batch: Batch, key: Key, count: int) -> Any:
    """Sums over the strided parts of a batch; `extra` goes from one part to the next."""
    rows = len(next(iter(batch.values())))
    if rows % count:
        raise ValueError(f"accumulate: a batch of {rows} rows found, a multiple of {count} wanted")
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), dict(batch))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))

    def add(carry: Any, part: Any) -> Any:
        sums, extra = carry
        total, out, grads = of(extra, *part)
        return (jax.tree.map(jnp.add, sums, grads), out.extra), (total, out.weight, out.metrics)

    start = jax.tree.map(jnp.zeros_like, params), extra
    (grads, extra), (totals, weights, metrics) = jax.lax.scan(add, start, (parts, keys))
    return totals.sum(), Out(weights.sum(), fold(metrics), extra), grads


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
