"""Wrappers of a task or its gradient: remat, gathered, accumulate, ensemble, monte_carlo."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxops.devices.plans import Plan
from jaxops.metrics import fold
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task, recorded, row_weights


def remat(task: Task, policy: str | Callable[..., Any] = "dots") -> Task:
    """The task with rematerialisation: its gradient stores less and recomputes the rest.

    Equal arguments give the same task, so they compile once. `save` writes the task itself.

    Args:
        task: any task.
        policy: "dots" stores the results of matrix products (except batched ones, as in attention)
            and recomputes norms, activations, dropout and attention weights; or one of
            `jax.checkpoint_policies`. On a CPU, XLA schedules for speed by default and recomputes
            so early that no memory is saved.

    Raises:
        ValueError: a string other than "dots".

    References:
        Chen et al. 2016, arXiv:1604.06174.

    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP())
    >>> remat(task) is remat(task)
    True
    """
    if isinstance(policy, str):
        if policy != "dots":
            raise ValueError(f'policy must be "dots" or a function, got {policy!r}')
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return _remat(task, policy)


@functools.lru_cache(maxsize=64)
def _remat(task: Task, policy: Callable[..., Any]) -> Task:
    return task._replace(loss=Remat(task.loss, policy))


@dataclass(frozen=True)
class Remat:
    """A loss whose gradient stores what `policy` says; `jo.gathered` adds to it.

    Attributes:
        loss: the loss of a task.
        policy: see `jax.checkpoint`.
    """

    loss: Callable[..., tuple[Array, Out]]
    policy: Callable[..., Any]

    def __call__(
        self, params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        """The loss."""
        kept = jax.checkpoint(self.loss, policy=self.policy, static_argnums=4)
        return kept(params, extra, batch, key, train)


@functools.lru_cache(maxsize=32)
def gathered(task: Task, plan: Plan) -> Task:
    """The task with a loss that gathers the parameters that "fsdp" splits where they are used.

    Without it XLA may move the activations instead, or store every gathered parameter for the
    backward pass; with it they are gathered again. `fit` applies it; your own loop can. It works
    together with `jo.remat`. Inside a module that uses `flax.linen.remat` all activations of its
    blocks are stored, since JAX obeys the outermost `jax.checkpoint`.

    Args:
        task: any task.
        plan: the plan of the run; without an axis "fsdp" the task is returned as it is.

    >>> from jaxops import devices, vision
    >>> task = vision.classifier(vision.MLP())
    >>> gathered(task, devices.data_parallel()) is task, gathered(task, devices.fsdp()) is task
    (True, False)
    """
    if "fsdp" not in plan.mesh.axis_names:
        return task
    everything = jax.checkpoint_policies.everything_saveable
    inner = task.loss if isinstance(task.loss, Remat) else Remat(task.loss, everything)

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        split = plan.state_shardings({"params": params})["params"]
        together = jax.tree.map(_without_fsdp, split)
        params = jax.lax.with_sharding_constraint(params, split)  # so that this is what is kept
        params = jax.lax.with_sharding_constraint(params, together)
        return inner.loss(params, extra, batch, key, train)

    def policy(primitive: Any, *args: Any, **params: Any) -> Any:
        kept = inner.policy(primitive, *args, **params)
        return primitive.name != "sharding_constraint" and kept

    return task._replace(loss=Remat(loss, policy))


def _without_fsdp(sharding: NamedSharding) -> NamedSharding:
    def left(axes: Any) -> Any:
        names = axes if isinstance(axes, tuple) else (axes,)
        return tuple(name for name in names if name and name != "fsdp") or None

    return NamedSharding(sharding.mesh, PartitionSpec(*map(left, sharding.spec)))


def check_accumulate(task: Task, accumulate: int) -> None:
    """Raise `ValueError` where a batch must not be taken in parts."""
    if accumulate > 1 and task.coupled:
        raise ValueError(
            f"accumulate must be 1 for a task whose loss couples the rows of a batch "
            f"(coupled=True), got {accumulate}; the sum over parts would be another loss"
        )


def accumulated(
    gradients: Any, params: Params, extra: Extra, batch: Batch, key: Key, count: int
) -> Any:
    """Sums over the strided parts of a batch; `extra` goes from one part to the next."""
    rows = len(next(iter(batch.values())))
    if rows % count:
        raise ValueError(f"accumulate must divide the {rows} rows of a batch, got {count}")
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), dict(batch))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))

    def add(carry: Any, part: Any) -> Any:
        sums, extra = carry
        total, out, grads = gradients(extra, *part)
        return (jax.tree.map(jnp.add, sums, grads), out.extra), (total, out.weight, out.metrics)

    start = jax.tree.map(jnp.zeros_like, params), extra
    (grads, extra), (totals, weights, metrics) = jax.lax.scan(add, start, (parts, keys))
    return totals.sum(), Out(weights.sum(), fold(metrics), extra), grads


@recorded
def ensemble(task: Task, members: int) -> Task:
    """A task that predicts with several states of `task`, put together by `stack`.

    It predicts the mean of the members' predictions (for a classifier, of their probabilities).
    Its loss is the mean of the members' losses, an upper bound on the loss of the mean prediction
    where the loss is convex, as cross-entropy is; for metrics of the mean prediction use
    `evaluate(..., metrics=...)`. It cannot be trained.

    Args:
        task: the task of every member.
        members: number of states.

    >>> import numpy as np
    >>> from jaxops import init_state, optim, tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=3)
    >>> rows = {"features": np.ones((2, 3), np.float32)}
    >>> states = [init_state(task, optim.sgd(0.1), seed, rows) for seed in range(3)]
    >>> together = stack(states)
    >>> ensemble(task, members=3).predict(together.params, together.extra, rows).shape
    (2,)
    """

    def each(params: Params, extra: Extra, function: Any) -> Any:
        # one after the other: only one member's activations are stored, and nothing is batched
        return jax.lax.map(lambda member: function(*member), (params, extra))

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        return jax.vmap(lambda k: task.init(k, batch))(jax.random.split(key, members))

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        if train:
            raise ValueError(
                "an ensemble must not be trained itself; train its members and `stack` their states"
            )
        total = each(params, extra, lambda p, e: task.loss(p, e, batch, key, False)[0])
        return total.mean(0), Out(row_weights(batch).sum(), {}, extra)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        outputs = each(params, extra, lambda p, e: task.predict(p, e, batch))
        return jax.tree.map(lambda leaf: leaf.mean(0), outputs)

    return Task(init, loss, predict, task.columns, task.classes)


def stack(states: Sequence[TrainState]) -> TrainState:
    """The state of an `ensemble` from the states of its members, without optimizer states.

    Args:
        states: of one task, in any order; each leaf gets a leading axis of that length.
    """
    kept = [averaged(state)._replace(opt_state=()) for state in states]
    params, extra = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        for trees in ([s.params for s in kept], [s.extra for s in kept])
    )
    return kept[0]._replace(params=params, extra=extra)


@recorded
def monte_carlo(task: Task, samples: int = 30, seed: int = 0) -> Task:
    """The task with predictions `{"mean": ..., "std": ...}` over samples with dropout on.

    Each sample is a prediction with dropout as in training; their spread measures how certain the
    model is (Gal and Ghahramani 2016, arXiv:1506.02142). The parameters are those of `task`. So
    are its loss and metrics, without dropout; for metrics of the mean prediction use
    `evaluate(..., metrics=...)`. It cannot be trained.

    The samples depend on the seed, the batch size and the place of a row in its batch. They are
    computed one after the other, in the memory of one.

    Args:
        task: a task whose predictions are arrays, made by `supervised` or `language.next_token`
            from a module that takes `train` and has no batch statistics.
        samples: number of samples, at least 2; the error of the mean is std / sqrt(samples).
        seed: seed of the samples.

    Raises:
        ValueError: fewer than 2 samples, or a task without dropout.

    References:
        Gal and Ghahramani 2016, arXiv:1506.02142.

    >>> import numpy as np
    >>> from jaxops import tabular
    >>> from jaxops.optim import sgd
    >>> from jaxops.state import init_state
    >>> task = tabular.classifier(tabular.MLP(dropout=0.5), features=3)
    >>> state = init_state(task, sgd(0.1), seed=0, batch={"features": np.ones((1, 3), np.float32)})
    >>> sampled = monte_carlo(task, samples=10)
    >>> outputs = sampled.predict(state.params, state.extra, {"features": jnp.ones((4, 3))})
    >>> outputs["mean"].shape, bool((outputs["std"] > 0).all())
    ((4,), True)
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    if task.sample is None:
        raise ValueError("task must have `sample`, got None: its module names no `train`")
    sample = task.sample

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        if train:
            raise ValueError(
                "a monte_carlo task must not be trained itself; train the task, and its state "
                "serves both"
            )
        return task.loss(params, extra, batch, key, False)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        def add(sums: Any, i: Array) -> tuple[Any, None]:
            mean, squares = sums  # Welford 1962: no difference of large numbers
            new = sample(params, extra, batch, jax.random.fold_in(key, i))
            nearer = jax.tree.map(lambda m, x: m + (x - m) / (i + 1), mean, new)
            squares = jax.tree.map(
                lambda s, x, m, n: s + (x - m) * (x - n), squares, new, mean, nearer
            )
            return (nearer, squares), None

        key = jax.random.key(seed)
        shapes = jax.eval_shape(sample, params, extra, batch, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (mean, squares), _ = jax.lax.scan(add, (zeros, zeros), jnp.arange(samples))
        std = jax.tree.map(lambda s: jnp.sqrt(s / (samples - 1)), squares)
        return {"mean": mean, "std": std}

    return Task(task.init, loss, predict, task.columns, task.classes)
