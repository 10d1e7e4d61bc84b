"""What to learn: `Task`, a value made of pure functions, and what its data must look like."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxops._modules import Called

Array = jax.Array
Key = jax.Array
Params = Any
Extra = Any
Batch = Mapping[str, Any]
"""Named columns with one leading axis; `mask` (B,), if present, weighs the rows (0 is padding)."""


class Column(NamedTuple):
    """What one named column of a data set must look like.

    Attributes:
        name: the column's key in a batch.
        shape: the shape of one row; `None` stands for any length.
        dtype: NumPy's name of the dtype, such as "uint8"; "float" and "int" take any width.
        classes: integer labels lie in [0, classes); `None` does not check.
        target: whether the column is a target; prediction does not need targets.

    >>> Column("label", dtype="int", classes=10, target=True).shape
    ()
    """

    name: str
    shape: tuple[int | None, ...] = ()
    dtype: str = "float"
    classes: int | None = None
    target: bool = False


class Out(NamedTuple):
    """The results of a loss besides its sum.

    Attributes:
        weight: (), the sum of the rows' weights, by which the loss is divided once.
        metrics: name -> mergeable metric state (see `jaxops.metrics`).
        extra: the model's new non-trained variables, such as batch statistics.
    """

    weight: Array
    metrics: dict[str, Any]
    extra: Extra


class Task(NamedTuple):
    """What to learn, as pure functions; most are made by `supervised` or by a room.

    Attributes:
        init: `(key, batch) -> (params, extra)`.
        loss: `(params, extra, batch, key, train) -> (loss, Out)`; the loss is a sum over rows.
        predict: `(params, extra, batch) -> outputs`, no randomness.
        columns: what the data must look like, checked before anything compiles.
        classes: the classes' names in order, or empty.
        recipe: how the task was made, `(function, arguments)`, which `jaxops.save` writes; `None`
            for a task made by hand.
        coupled: whether the loss of a row depends on the other rows of its batch, as with in-batch
            negatives. A batch of such a task cannot be computed in parts.
        sample: `(params, extra, batch, key) -> outputs`, as `predict` but with dropout on, for
            `jaxops.monte_carlo`; `None` if the model has no dropout.
        check: `columns -> None`, called on the host before anything compiles. It raises
            `ValueError` for rows that fit `columns` but that the task cannot use.
        statistics: the collections in `extra` that hold statistics of a batch's rows, in which
            padding would count. If there are any, `fit` does not pad batches; see `fit`.
        expected: if given, `fit` draws each row with probability `expected` / rows in each step
            (Poisson sampling), so that a batch has this number of rows on average. See
            `jaxops.privacy.private`.
        release: `(summed gradient, key) -> gradient for the optimizer`, called once per update, for
            the whole batch, instead of the division by its weight. It may add noise.
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
    statistics: tuple[str, ...] = ()
    expected: int | None = None
    release: Callable[[Params, Key], Params] | None = None


def _hashable(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _hashable(np.asarray(value).tolist())
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(map(_hashable, value))
    return value


def check_not_private(task: Task) -> None:
    """Raise `ValueError` for a private task, where a function would change its clipped loss.

    Args:
        task: the task.

    Raises:
        ValueError: the task has a `release`.

    >>> from jaxops import tabular
    >>> check_not_private(tabular.regressor(tabular.MLP(), features=3))
    """
    if task.release is not None:
        raise ValueError(
            "task must not be private already, got one that is: its clipped gradients would be "
            "changed; give the task itself, and make the result private"
        )


Made = TypeVar("Made", bound=Callable[..., Any])


@overload
def recorded(make: Made) -> Made: ...
@overload
def recorded(
    *, formerly: Mapping[str, str] | None = None, before: Mapping[str, Any] | None = None
) -> Callable[[Made], Made]: ...
def recorded(
    make: Any = None,
    *,
    formerly: Mapping[str, str] | None = None,
    before: Mapping[str, Any] | None = None,
) -> Any:
    """Allow model files to name a function that makes tasks, or a dataclass of settings.

    The function remembers its arguments in `Task.recipe`, which `jaxops.save` writes, and returns
    the same task for equal arguments, so that equal calls compile once. Arrays and lists among the
    arguments become tuples. A class is marked and returned; Flax modules need no mark.

    Args:
        make: the function, or the class.
        formerly: old argument name -> its name now, so that older model files still load.
        before: argument -> its value for older files that lack it, if that is not the default.

    >>> from jaxops import vision
    >>> vision.classifier(vision.MLP()) is vision.classifier(vision.MLP())
    True
    """
    if make is None:
        return functools.partial(recorded, formerly=formerly, before=before)
    if inspect.isclass(make):
        make.recorded_class = make  # type: ignore[attr-defined]  # a subclass is not marked by it
        make.formerly = dict(formerly or {})  # type: ignore[attr-defined]
        make.before = dict(before or {})  # type: ignore[attr-defined]
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
    wrapper.before = dict(before or {})  # type: ignore[attr-defined]
    return wrapper


def example(columns: tuple[Column, ...]) -> dict[str, np.ndarray]:
    """One row of zeros that fits the columns; a length of `None` becomes 1.

    >>> example((Column("image", (28, 28, 1), "uint8"),))["image"].shape
    (1, 28, 28, 1)
    """
    dtypes = {"float": "float32", "int": "int32"}
    return {
        c.name: np.zeros((1, *(n or 1 for n in c.shape)), dtypes.get(c.dtype, c.dtype))
        for c in columns
    }


def row_weights(batch: Batch) -> Array:
    """The weight of each row, float32 (B,): `mask` if the batch has one, else ones.

    >>> row_weights({"x": jnp.zeros((2, 3)), "mask": jnp.array([1, 0])}).tolist()
    [1.0, 0.0]
    """
    if "mask" in batch:
        return jnp.asarray(batch["mask"], jnp.float32)
    return jnp.ones(len(next(iter(batch.values()))), jnp.float32)


def masked_sum(values: Array, weights: Array) -> Array:
    """The weighted sum of `values`; those of weight 0 do not count, also if they are NaN.

    Args:
        values: any shape.
        weights: float, the same shape.

    >>> print(masked_sum(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([2.0, 0.0, 1.0])))
    5.0
    """
    # where, not a product alone: the outputs for padding may be infinite, and 0 * inf is NaN
    return jnp.where(weights > 0, values * weights, 0.0).sum()


def _clean(batch: Batch, real: Array) -> Batch:
    """The batch with zeros in its padding rows, which may hold any values.

    Masking the losses is not enough: the gradient of a masked NaN is NaN as well.
    """

    def clean(column: Any) -> Array:
        rows = real.reshape(-1, *[1] * (jnp.ndim(column) - 1))
        return jnp.where(rows, column, jnp.zeros_like(column))

    return {name: clean(column) for name, column in batch.items()}


def check_function(name: str, function: Any, *arguments: str) -> None:
    """Check that a function can be called with as many positional arguments as are named.

    Args:
        name: the name of the function in messages.
        function: the object to check.
        *arguments: the names of the arguments, for messages.

    Raises:
        ValueError: the object is not a function, or it takes other arguments.

    >>> check_function("predict", lambda outputs, batch: outputs, "outputs")
    Traceback (most recent call last):
    ValueError: predict must be a function of (outputs), got one of (outputs, batch)
    """
    wanted = f"{name} must be a function of ({', '.join(arguments)}), got"
    if not callable(function):
        raise ValueError(f"{wanted} {function!r}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions that are written in C have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ValueError(f"{wanted} one of {signature}") from None


def check_module(name: str, module: Any) -> None:
    """Check that an object is a Flax module, or has the `apply` of one.

    Args:
        name: the name of the module in messages.
        module: the object to check.

    Raises:
        ValueError: anything else.

    >>> check_module("module", "MLP")
    Traceback (most recent call last):
    ValueError: module must be a Flax module, such as nn.Dense(1), got 'MLP'
    """
    if isinstance(module, type) or not hasattr(module, "apply"):
        given = (
            f"the class {module.__name__}; call it" if isinstance(module, type) else repr(module)
        )
        raise ValueError(f"{name} must be a Flax module, such as nn.Dense(1), got {given}")


def _check_parts(module: Any, columns: tuple[Column, ...], **functions: Any) -> None:
    check_module("module", module)
    for column in columns:
        if not isinstance(column, Column):
            raise ValueError(f"columns must be jo.Column values, got {column!r}")
    check_function("inputs", functions["inputs"], "batch", "key")
    check_function("loss", functions["loss"], "outputs", "batch", "train")
    check_function("metrics", functions["metrics"], "outputs", "batch", "weights")
    check_function("predict", functions["predict"], "outputs")


def _check_losses(losses: Any, weights: Array) -> None:
    if jnp.shape(losses) != weights.shape:  # broadcasting would give a different sum
        raise ValueError(
            f"loss must have shape {weights.shape} (one value a row), got {jnp.shape(losses)}"
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"loss must be float, got {losses.dtype}, which has no gradient")


def _check_states(states: Any) -> None:
    """Raise `ValueError` if a task's metrics are not a dict of states."""
    if not isinstance(states, Mapping):
        raise ValueError(f"metrics must return states by name, got {type(states).__name__}")
    if "loss" in states:
        raise ValueError('metrics must have other names than "loss", which a step adds')
    for name, state in states.items():
        if not hasattr(state, "merge"):
            given = f"shape {state.shape}" if hasattr(state, "shape") else repr(state)
            raise ValueError(
                f"metrics[{name!r}] must be a state, such as jo.metrics.mean(values, weights), "
                f"got {given}"
            )


def supervised(
    module: Any,
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
        module: a `flax.linen.Module`, or what `jaxops.from_nnx` makes of an NNX module; its
            `__call__` takes the inputs and, where it names them, `mask` ((B,) bool, False for
            padding) and what says whether it trains: `train`, `training` or `is_training`,
            `deterministic` or `use_running_average`. Dropout draws from the "dropout" stream.
            A module with batch statistics that does not name `mask` is trained without padding,
            see `fit`.
        inputs: `(batch, key) -> x`, the inputs of the module, a tuple for several arguments; the
            key is `None` outside training.
        loss: `(outputs, batch, train) -> (B,)`, one value a row.
        metrics: `(outputs, batch, weights) -> states`; a step adds "loss".
        predict: outputs -> predictions, such as probabilities.
        columns: what the data must look like.
        classes: names of the classes, if any.
        coupled: whether a row's loss depends on the other rows, as with negatives taken from the
            batch; `accumulate` and `pmap_train_step`, which divide a batch, then raise.

    Raises:
        ValueError: what is no module, function or column; while the task or a step is traced: a
            loss that is not one float a row; metrics that are no states by name; a module with
            dropout or batch statistics that names none of the arguments which turn them on;
            variables that grow from step to step; batch norm over single values.

    Warns:
        UserWarning: in training a dropout stays off, batch statistics do not change, or a batch
            norm of a module that names `mask` is not given it.

    A linear regression:

    >>> import flax.linen as nn
    >>> task = supervised(
    ...     nn.Dense(1),
    ...     inputs=lambda batch, key: batch["x"],
    ...     loss=lambda outputs, batch, train: jnp.square(outputs[:, 0] - batch["y"]),
    ...     metrics=lambda outputs, batch, weights: {},
    ...     predict=lambda outputs: outputs[:, 0],
    ...     columns=(Column("x", (3,)), Column("y", target=True)),
    ... )
    >>> params, extra = task.init(jax.random.key(0), example(task.columns))
    >>> task.predict(params, extra, {"x": jnp.zeros((2, 3))}).tolist()
    [0.0, 0.0]
    """
    columns = tuple(columns)
    _check_parts(module, columns, inputs=inputs, loss=loss, metrics=metrics, predict=predict)
    called = Called(module)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        variables = called.init(key, inputs(batch, None), row_weights(batch))
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
            outputs, extra = called.train(variables, x, weights, drop)
        else:
            outputs = called.apply(variables, inputs(batch, None), weights, False)
        losses = loss(outputs, batch, train)
        states = metrics(outputs, batch, weights)
        _check_losses(losses, weights)
        _check_states(states)
        return masked_sum(losses, weights), Out(weights.sum(), states, extra)

    def predict_fn(params: Params, extra: Extra, batch: Batch) -> Any:
        x = inputs(batch, None)
        return predict(called.apply({"params": params, **extra}, x, row_weights(batch), False))

    def sample(params: Params, extra: Extra, batch: Batch, key: Key) -> Any:
        if extra:  # batch statistics would be noise of another kind, and would change the state
            raise ValueError(f"extra must be empty to sample with dropout, got {sorted(extra)}")
        x, rngs = inputs(batch, None), {"dropout": key}
        return predict(called.apply({"params": params}, x, row_weights(batch), True, rngs=rngs))

    return Task(
        init,
        loss_fn,
        predict_fn,
        columns,
        classes,
        coupled=coupled,
        sample=sample if called.flags else None,
        statistics=() if called.masked else getattr(module, "statistics", ("batch_stats",)),
    )
