"""What wraps a task or its gradient: remat, gathered, accumulate, ensemble, monte_carlo."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxops.devices.plans import Plan
from jaxops.metrics import fold
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task, recorded, row_weights


def remat(task: Task, policy: str | Callable[..., Any] = "dots") -> Task:
    """The task with a loss that keeps less for its gradient, and computes the rest again.

    Equal arguments give the same task, so they compile once. What `save` writes is the task itself.

    Args:
        task: any.
        policy: "dots" keeps the results of matrix products (but for batched ones, as in
            attention) and computes norms, activations, dropout and attention's weights again; or
            one of `jax.checkpoint_policies`. An XLA that orders for speed, as a CPU's does by
            default, computes them again so early that nothing is saved.

    Raises:
        ValueError: another word.

    References:
        Chen et al. 2016, arXiv:1604.06174.

    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP())
    >>> remat(task) is remat(task)
    True
    """
    if isinstance(policy, str):
        if policy != "dots":
            raise ValueError(f'policy: {policy!r} found, "dots" or a function wanted')
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return _remat(task, policy)


@functools.lru_cache(maxsize=64)
def _remat(task: Task, policy: Callable[..., Any]) -> Task:
    return task._replace(loss=Remat(task.loss, policy))


@dataclass(frozen=True)
class Remat:
    """A loss that keeps for its gradient what `policy` says; `jo.gathered` adds to it.

    Attributes:
        loss: a task's.
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
    """The task with a loss that puts together what "fsdp" splits, where it is used.

    Without it XLA may move the activations instead, or keep all that it put together for the
    backward pass: here that is put together again. `fit` does so; a loop of your own can. It goes
    with `jo.remat`; but of blocks in `flax.linen.remat` inside a model all activations are kept, as
    JAX lets the outermost `jax.checkpoint` say what is.
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
            f"accumulate: {accumulate} found, 1 wanted: the task's loss couples the rows of a "
            "batch (coupled=True), so the sum over its parts is another loss"
        )


def accumulated(of: Any, params: Params, extra: Extra, batch: Batch, key: Key, count: int) -> Any:
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


@recorded
def ensemble(task: Task, members: int) -> Task:
    """A task whose parameters are those of `members` states of `task`, put together by `stack`.

    It predicts the mean of the members' predictions (for a classifier, of their probabilities).
    Its loss is the mean of the members' losses, which the loss of the mean prediction does not
    exceed where the loss is convex in it, as cross-entropy is; metrics of the mean prediction
    are made by `evaluate(..., metrics=...)`. It cannot be trained.

    >>> from jaxops import vision
    >>> several = ensemble(vision.classifier(vision.MLP()), members=3)
    """

    def each(params: Params, extra: Extra, function: Any) -> Any:
        # one after the other: a member's activations are there once, and no operation is batched
        return jax.lax.map(lambda member: function(*member), (params, extra))

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        return jax.vmap(lambda k: task.init(k, batch))(jax.random.split(key, members))

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        if train:
            raise ValueError("ensemble: train its members one by one and `stack` their states")
        total = each(params, extra, lambda p, e: task.loss(p, e, batch, key, False)[0])
        return total.mean(0), Out(row_weights(batch).sum(), {}, extra)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        outputs = each(params, extra, lambda p, e: task.predict(p, e, batch))
        return jax.tree.map(lambda leaf: leaf.mean(0), outputs)

    return Task(init, loss, predict, task.columns, task.classes)


def stack(states: Sequence[TrainState]) -> TrainState:
    """The state of an `ensemble` from its members' states; without the optimizers' arrays."""
    kept = [state._replace(opt_state=()) for state in states]
    params, extra = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        for trees in ([s.params for s in kept], [s.extra for s in kept])
    )
    return kept[0]._replace(params=params, extra=extra)


@recorded
def monte_carlo(task: Task, samples: int = 30, seed: int = 0) -> Task:
    """The task with predictions `{"mean": ..., "std": ...}` over networks that dropout draws.

    Each sample is a prediction with dropout as in training; the spread says how sure the model is
    of its prediction (Gal and Ghahramani 2016, arXiv:1506.02142). Its parameters are those of
    `task`, and so are its loss and metrics, of the weights as they are; what is asked of the mean
    prediction is made by `evaluate(..., metrics=...)`. It cannot be trained.

    The draws depend on the seed, and on where a row stands in which batch size; samples are made
    one after the other, in the memory of one.

    Args:
        task: one whose predictions are arrays, made by `supervised` or `language.next_token` of a
            model that takes `train` and keeps no batch statistics.
        samples: how many, at least 2; the error of the mean is std / sqrt(samples).
        seed: of the draws.

    Raises:
        ValueError: fewer than 2 samples, or a task that has no dropout to turn on.

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
        raise ValueError(f"samples: {samples} found, at least 2 wanted")
    if task.sample is None:
        raise ValueError("task: one with `sample` wanted, of a model that takes `train`")
    sample = task.sample

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        if train:
            raise ValueError("monte_carlo: train the task itself; its state is of this one as well")
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
