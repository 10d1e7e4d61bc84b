"""What to learn: `Task`, a value made of pure functions, and what its data must look like."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, overload

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


Made = TypeVar("Made", bound=Callable[..., Any])


@overload
def recorded(make: Made) -> Made: ...
@overload
def recorded(*, formerly: Mapping[str, str]) -> Callable[[Made], Made]: ...
def recorded(make: Any = None, *, formerly: Mapping[str, str] | None = None) -> Any:
    """Mark a function that makes tasks, or a dataclass of settings, as what a model file may name.

    A function remembers its arguments in `Task.recipe`, which `jaxops.save` writes, and returns the
    same task for equal arguments, so that equal calls compile once. Arrays and lists among the
    arguments become tuples. A class is returned as it is, with the mark; Flax modules need none.

    Args:
        make: the function, or the class.
        formerly: old argument name -> its name now, so that older model files still load.

    >>> from jaxops import vision
    >>> vision.classifier(vision.MLP()) is vision.classifier(vision.MLP())
    True
    """
    if make is None:
        return functools.partial(recorded, formerly=formerly)
    if inspect.isclass(make):
        make.recorded_class = make  # type: ignore[attr-defined]  # a subclass is not marked by it
        make.formerly = dict(formerly or {})  # type: ignore[attr-defined]
        return make
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
    wrapper.formerly = dict(formerly or {})  # type: ignore[attr-defined]
    return wrapper


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


def masked_sum(values: Array, weights: Array) -> Array:
    """The weighted sum of `values`, in which those of weight 0 count for nothing, also NaN.

    Args:
        values: any shape.
        weights: float, the same shape.

    >>> print(masked_sum(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([2.0, 0.0, 1.0])))
    5.0
    """
    # where, not a product alone: what a model makes of padding may be infinite, and 0 * inf is NaN
    return jnp.where(weights > 0, values * weights, 0.0).sum()


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
            then `accumulate` and `jo.pmap_train_step`, which part a batch, refuse the task.

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
        return masked_sum(losses, weights), Out(
            weights.sum(), metrics(outputs, batch, weights), extra
        )

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
