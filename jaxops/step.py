"""Pure steps and what is built from them: one update, many updates in one call, one evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops.metrics import Mean
from jaxops.optim import counters
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Task

Metrics = dict[str, Any]
MetricFunctions = tuple[tuple[str, Callable[[Any, Batch], Any]], ...]


def train_step(
    task: Task, tx: optax.GradientTransformation, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """One update: gradient of the summed loss, divided once by the batch's weight.

    Pure; meant for `jax.jit(partial(train_step, task, tx), donate_argnums=0)`. The metrics are
    mergeable states; "loss" is among them, and "skipped", "clipped" and "loss_scale" where the
    optimizer has such (see `jaxops.optim`). An optimizer that wants the loss (`value=`), such as
    `optax.contrib.reduce_on_plateau`, is given it.
    """
    key = jax.random.fold_in(state.key, state.step)
    (total, out), grads = jax.value_and_grad(task.loss, has_aux=True)(
        state.params, state.extra, batch, key, True
    )
    weight = jnp.where(out.weight > 0, out.weight, 1.0)
    grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, state.opt_state, state.params, value=total / weight
    )
    params = optax.apply_updates(state.params, updates)
    metrics, extra = {**out.metrics, "loss": Mean(total, out.weight)}, out.extra
    counted = counters(state.opt_state, opt_state)
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
