"""What a client does in a round: some epochs of training over its own rows."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxops.metrics import fold
from jaxops.optim import EmaState, states_of
from jaxops.state import TrainState, state_shapes
from jaxops.step import many_steps, train_step
from jaxops.task import Array, Extra, Key, Params, Task
from jaxops.train.feed import check_task
from jaxops.train.resident import Take
from jaxops.train.settings import whole


class Local(NamedTuple):
    """How each client trains.

    Attributes:
        optimizer: any optax transformation; it starts anew in each round.
        epochs: passes over the client's rows (E in McMahan et al.).
        batch_size: rows of an update (B); `None` for all rows of the client.
        proximal: mu of FedProx, the strength of the pull towards the server's parameters.
    """

    optimizer: optax.GradientTransformation
    epochs: int = 1
    batch_size: int | None = None
    proximal: float = 0.0


def local_of(
    task: Task,
    optimizer: Any,
    epochs: int,
    batch_size: int | None,
    proximal: float,
    name: str = "optimizer",
) -> Local:
    """How each client trains, from the arguments of `fit` or `flower_client`.

    Args:
        task: what to learn.
        optimizer: see `Local`, as the next ones.
        epochs: passes.
        batch_size: rows.
        proximal: mu.
        name: of the argument that is the optimizer.

    Raises:
        ValueError: an argument out of range, or a task of `privacy.private`.
    """
    check_task(task)
    if task.release is not None:
        raise ValueError(
            "task must not be one of privacy.private, which draws its batches from all rows, got "
            "one; federation.Private protects whole clients"
        )
    if not callable(getattr(optimizer, "update", None)):
        raise ValueError(
            f"{name} must be an optax transformation, such as jo.optim.sgd(0.1), got {optimizer!r}"
        )
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size, 1)
    if not 0 <= proximal < math.inf:
        raise ValueError(f"proximal must be at least 0 and finite, got {proximal}")
    return Local(optimizer, whole("epochs", epochs, 1), batch_size, float(proximal))


def check_local(task: Task, local: Local, columns: dict[str, Any]) -> None:
    """Raise `ValueError` for what clients would silently get wrong, or do without effect.

    Args:
        task: what to learn.
        local: how.
        columns: that the task names.
    """
    shapes = state_shapes(task, local.optimizer, {n: v[:1] for n, v in columns.items()})
    if any(jax.tree.leaves(shapes.extra.get(name)) for name in task.statistics):
        raise ValueError(
            "module must take `mask`, so that the padding of clients' batches does not count in "
            "its batch statistics, got one that does not; see jaxops.nn.BatchNorm"
        )
    if states_of(shapes.opt_state, EmaState):
        raise ValueError(
            "a client's optimizer must be without optim.ema, whose average is not sent, got one; "
            "the server's optimizer may have it"
        )


class Trained(NamedTuple):
    """What a client has after its epochs.

    Attributes:
        params: its parameters.
        extra: its other variables.
        gradient: the mean of its batches' gradients, without `correction` and proximal term.
        metrics: the metric states of all its batches, with "loss".
    """

    params: Params
    extra: Extra
    gradient: Params
    metrics: dict[str, Any]


class GradientSum(NamedTuple):
    """The sum of the gradients that a client has computed."""

    total: Params


def train_client(
    task: Task,
    local: Local,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    params: Params,
    extra: Extra,
    rows: dict[str, Array],
    key: Key,
    correction: Params | None = None,
) -> Trained:
    """Train on the rows of one client, from the server's parameters.

    An epoch has every row of the client once, in an order of its own, and its last batch may be
    partly padding. Rows of weight 0 are in no batch, and make no update.

    Args:
        task: what to learn.
        local: how.
        shapes: (name, shape of a row) of each column.
        params: the server's parameters.
        extra: the server's other variables.
        rows: flat columns (n, ...) of the client, and `mask` (n,), 0 for padding.
        key: of this client in this round.
        correction: is added to each gradient, as the control variates of SCAFFOLD.
    """
    real = rows["mask"] > 0
    size = min(local.batch_size or len(real), len(real))
    most = -(-len(real) // size)  # steps of an epoch, if no row is padding
    steps = -(-real.sum() // size)
    order_key, key = jax.random.split(key)
    keys = jax.random.split(order_key, local.epochs)
    orders = jax.vmap(lambda k: _order(k, real, most * size))(keys)
    tx = optax.chain(_corrected(params, local.proximal, correction), local.optimizer)
    take = Take(shapes)

    def step(state: TrainState, i: Array) -> tuple[TrainState, Any]:
        epoch, batch = jnp.divmod(i, jnp.maximum(steps, 1))
        index = jax.lax.dynamic_slice(orders, (epoch, batch * size), (1, size))[0]
        return train_step(task, tx, state, take(rows, index))

    start = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), extra, key)
    every = jnp.arange(local.epochs * most)
    end, metrics = many_steps(step)(start, every, local.epochs * steps)
    made = jnp.maximum(end.step, 1)
    gradient = jax.tree.map(lambda g: g / made.astype(g.dtype), end.opt_state[0].total)
    return Trained(end.params, end.extra, gradient, fold(metrics))


def _order(key: Key, real: Array, length: int) -> Array:
    """(length,) int32: the real rows in random order, and then -1."""
    draws = jnp.where(real, jax.random.uniform(key, real.shape), 2.0)
    order = jnp.where(jnp.arange(len(real)) < real.sum(), jnp.argsort(draws), -1)
    return jnp.pad(order, (0, length - len(real)), constant_values=-1).astype(jnp.int32)


def _corrected(
    server: Params, proximal: float, correction: Params | None
) -> optax.GradientTransformation:
    """Adds `proximal * (params - server) + correction` to a gradient; sums what it is given."""

    def init(params: Params) -> GradientSum:
        summed = params if correction is not None else ()
        return GradientSum(jax.tree.map(jnp.zeros_like, summed))

    def update(grads: Any, state: GradientSum, params: Any = None) -> tuple[Any, GradientSum]:
        if correction is not None:
            state = GradientSum(jax.tree.map(jnp.add, state.total, grads))
            grads = jax.tree.map(jnp.add, grads, correction)
        if proximal:
            grads = jax.tree.map(lambda g, p, s: g + proximal * (p - s), grads, params, server)
        return grads, state

    return optax.GradientTransformation(init, update)
