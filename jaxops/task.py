"""What to learn: `Task`, a value made of pure functions, and what its data must look like."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Key = jax.Array
Params = Any
Extra = Any
Batch = Mapping[str, Any]
"""Named columns with one leading axis; `mask` (B,), if there, weighs the rows (0 is padding)."""


class Column(NamedTuple):
    """What one named column of a data set must look like.

    Attributes:
        name: the column's key in a batch.
        shape: the shape of one row; `None` stands for any length.
        dtype: NumPy's name of the dtype, such as "uint8"; "float" and "int" take any width.
        classes: integer labels lie in [0, classes); `None` does not check.
        target: the column is what is learned, so prediction does without it.
    """

    name: str
    shape: tuple[int | None, ...] = ()
    dtype: str = "float"
    classes: int | None = None
    target: bool = False


class Out(NamedTuple):
    """What a loss gives besides its sum.

    Attributes:
        weight: (), the sum of the rows' weights: what the loss is divided by, once.
        metrics: name -> mergeable metric state (see `jaxops.metrics`).
        extra: the model's new non-trained variables, such as batch statistics.
    """

    weight: Array
    metrics: dict[str, Any]
    extra: Extra


class Task(NamedTuple):
    """What to learn.

    Attributes:
        init: `(key, batch) -> (params, extra)`.
        loss: `(params, extra, batch, key, train) -> (loss, Out)`; the loss is a sum over rows.
        predict: `(params, extra, batch) -> outputs`, no randomness.
        columns: what the data must look like, checked before anything compiles.
        classes: the classes' names in order, or empty.
        recipe: how the task was made, `(function, arguments)`, so that `jaxops.save` can write
            it down; `None` for a task made by hand.
        coupled: the loss of a row depends on the other rows of its batch, as with negatives taken
            from the batch, so a batch must not be taken in parts.
        sample: `(params, extra, batch, key) -> outputs`, as `predict` but with dropout on, for
            `jaxops.monte_carlo`; `None` where the model has none.
        check: `columns -> None`, on the host and before anything compiles: raises `ValueError` for
            rows that `columns` let pass.
    """

    init: Callable[[Key, Batch], tuple[Params, Extra]]
    loss: Callable[[Params, Extra, Batch, Key, bool], tuple[Array, Out]]
    predict: Callable[[Params, Extra, Batch], Any]
    columns: tuple[Column, ...] = ()
    classes: tuple[str, ...] = ()
    recipe: tuple[Callable[..., "Task"], tuple[tuple[str, Any], ...]] | None = None
    coupled: bool = False
    sample: Callable[[Params, Extra, Batch, Key], Any] | None = None
    check: Callable[[Batch], None] | None = None


def _hashable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _hashable(value.tolist())
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(map(_hashable, value))
    return value


def recorded(make: Callable[..., Task]) -> Callable[..., Task]:
    """Let a function that makes tasks remember its arguments, and give equal calls one task.

    The record is what `jaxops.save` writes; one task for equal calls means that they compile
    once. Arrays and lists among the arguments become tuples.
    """
    signature = inspect.signature(make)

    @functools.lru_cache(maxsize=64)
    def build(arguments: tuple[tuple[str, Any], ...]) -> Task:
        return make(**dict(arguments))._replace(recipe=(wrapper, arguments))

    @functools.wraps(make)
    def wrapper(*args: Any, **kwargs: Any) -> Task:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return build(tuple((k, _hashable(v)) for k, v in bound.arguments.items()))

    wrapper.makes_task = True  # type: ignore[attr-defined]  # what a model file may call
    return wrapper


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
    """A loss that keeps for its gradient what `policy` says; `parallel.gathered` adds to it.

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


def example(columns: tuple[Column, ...]) -> dict[str, np.ndarray]:
    """One row of zeros that fits: lengths that are free are 1.

    >>> example((Column("image", (28, 28, 1), "uint8"),))["image"].shape
    (1, 28, 28, 1)
    """
    dtypes = {"float": "float32", "int": "int32"}
    return {
        c.name: np.zeros((1, *(n or 1 for n in c.shape)), dtypes.get(c.dtype, c.dtype))
        for c in columns
    }


def row_weights(batch: Batch) -> Array:
    """The weight of each row, float32 (B,): `mask` where the batch has one, else ones."""
    if "mask" in batch:
        return jnp.asarray(batch["mask"], jnp.float32)
    return jnp.ones(len(next(iter(batch.values()))), jnp.float32)


def _clean(batch: Batch, real: Array) -> Batch:
    """Zeros in the rows that do not count: they may hold anything, and 0 * NaN is NaN.

    To mask the losses is not enough: the gradient of a masked NaN is NaN as well.
    """

    def clean(column: Any) -> Array:
        rows = real.reshape(-1, *[1] * (jnp.ndim(column) - 1))
        return jnp.where(rows, column, jnp.zeros_like(column))

    return {name: clean(column) for name, column in batch.items()}


def supervised(
    model: Any,
    inputs: Callable[[Batch, Key | None], Any],
    loss: Callable[[Array, Batch, bool], Array],
    metrics: Callable[[Array, Batch, Array], dict[str, Any]],
    predict: Callable[[Array], Any],
    columns: tuple[Column, ...],
    classes: tuple[str, ...] = (),
    coupled: bool = False,
) -> Task:
    """A task from a Flax module and a loss for each row.

    Args:
        model: a `flax.linen.Module`; its `__call__` takes the inputs and, where it names them,
            `train` (bool) and `mask` ((B,) bool, False for padding). Dropout draws from the
            "dropout" stream.
        inputs: `(batch, key) -> x`, what the model sees, a tuple being its several arguments; the
            key is `None` outside training.
        loss: `(outputs, batch, train) -> (B,)`, one value a row.
        metrics: `(outputs, batch, weights) -> states`; a step adds "loss" by itself.
        predict: outputs -> what a user wants to read, such as probabilities.
        columns: what the data must look like.
        classes: names of the classes, if any.
        coupled: a row's loss depends on the other rows, as with negatives taken from the batch;
            then `accumulate` and `parallel.pmap_train_step`, which part a batch, refuse the task.

    Raises:
        ValueError: when a step is traced, for a loss that is not one value a row.
    """
    accepts = inspect.signature(type(model).__call__).parameters

    def named(weights: Array, train: bool) -> dict[str, Any]:
        known = {"train": train, "mask": weights > 0}
        return {name: value for name, value in known.items() if name in accepts}

    def arguments(x: Any) -> tuple[Any, ...]:
        return x if isinstance(x, tuple) else (x,)

    def call(variables: Any, x: Any, weights: Array, train: bool, **kwargs: Any) -> Any:
        return model.apply(variables, *arguments(x), **named(weights, train), **kwargs)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        x = inputs(batch, None)
        variables = dict(model.init(key, *arguments(x), **named(row_weights(batch), False)))
        return variables.pop("params", {}), variables

    def loss_fn(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        weights = row_weights(batch)
        if "mask" in batch:
            batch = _clean(batch, weights > 0)
        variables = {"params": params, **extra}
        if train:
            look, drop = jax.random.split(key)
            x = inputs(batch, look)
            outputs, new = call(
                variables, x, weights, True, rngs={"dropout": drop}, mutable=list(extra)
            )
            extra = {**extra, **new}
        else:
            outputs = call(variables, inputs(batch, None), weights, False)
        losses = loss(outputs, batch, train)
        if jnp.shape(losses) != weights.shape:  # it would broadcast, to another sum
            raise ValueError(
                f"loss: shape {jnp.shape(losses)} found, {weights.shape} wanted: one value a row"
            )
        # where, not a product: what a model makes of zeros may be infinite
        total = jnp.where(weights > 0, losses * weights, 0.0).sum()
        return total, Out(weights.sum(), metrics(outputs, batch, weights), extra)

    def predict_fn(params: Params, extra: Extra, batch: Batch) -> Any:
        x = inputs(batch, None)
        return predict(call({"params": params, **extra}, x, row_weights(batch), False))

    def sample(params: Params, extra: Extra, batch: Batch, key: Key) -> Any:
        if extra:  # statistics of the batch would be noise of another kind, and are to be kept
            raise ValueError(f"sample: a model of params alone wanted, {sorted(extra)} found")
        x, rngs = inputs(batch, None), {"dropout": key}
        return predict(call({"params": params}, x, row_weights(batch), True, rngs=rngs))

    return Task(
        init,
        loss_fn,
        predict_fn,
        columns,
        classes,
        coupled=coupled,
        sample=sample if "train" in accepts else None,
    )
