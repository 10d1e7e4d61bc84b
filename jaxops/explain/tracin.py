"""Which training rows helped or hurt a prediction: TracIn, by gradients of single rows."""

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.checks import prepare, rows
from jaxops.data.tables import Source
from jaxops.explain.games import padded
from jaxops.model.finished import Model
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Extra, Params, Task

States = TrainState | Sequence[TrainState]


def influence(
    model: Model | Task,
    train: Source,
    queries: Source,
    *,
    states: States | None = None,
    rates: Sequence[float] | None = None,
    params: str = "",
    batch_size: int = 64,
) -> np.ndarray:
    """How much a step on each train row lowers the loss of each query: TracIn, float32 (Q, N).

    influence(q, n) = sum over states t of rate_t grad loss(q; t) . grad loss(n; t)

    Positive rows helped (proponents), negative ones hurt (opponents). This is the first-order
    change of the loss of q in a step of gradient descent on n, for whatever optimizer made the
    states. Losses are those of evaluation: no dropout, no augmentation, rows count alike.

    Args:
        model: a finished model of a network, or its task.
        train: N train rows with their labels: a table, if the model reads one; or the columns of
            the task.
        queries: Q rows with the labels whose loss is explained: the true class, or the predicted.
        states: to sum over, such as checkpoints of the run; by default that of the model.
        rates: the learning rate at each state; by default 1.
        params: a regular expression that is searched for in paths such as "logits/kernel", the
            parameters whose gradients count; by default all. The last layer alone is much faster.
        batch_size: train rows whose gradients are in memory at once, and queries.

    Raises:
        ValueError: columns that do not fit the task; a task whose loss couples rows; no such
            parameters; other numbers of rates than of states.

    References:
        Pruthi et al. 2020, arXiv:2002.08484.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> train = {"features": np.eye(3, dtype=np.float32), "label": np.array([0, 1, 1], np.int32)}
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=train)
    >>> found = influence(task, train, train, states=state)
    >>> found.shape, bool((found.diagonal() > 0).all()), bool(found[0, 1] < 0)
    ((3, 3), True, True)
    """
    task, chosen = _set_up(model, states, rates, params)
    train, queries = (_columns(model, task, given) for given in (train, queries))
    found = np.zeros((rows(queries), rows(train)), np.float32)
    for state, rate in chosen:
        for first, count, some in _batches(queries, batch_size):
            asked = _gradients(task, params, state.params, state.extra, some)
            for start, more, batch in _batches(train, batch_size):
                own = _gradients(task, params, state.params, state.extra, batch)
                part = rate * np.asarray(_products(asked, own))[:count, :more]
                found[first : first + count, start : start + more] += part
    return found


def self_influence(
    model: Model | Task,
    train: Source,
    *,
    states: States | None = None,
    rates: Sequence[float] | None = None,
    params: str = "",
    batch_size: int = 64,
) -> np.ndarray:
    """How much a step on each train row lowers its own loss, float32 (N,).

    Rows that are mislabelled or unlike all others are among the largest: the model has to learn
    them by heart.

    Args:
        model: see `influence`.
        train: see `influence`.
        states: see `influence`.
        rates: see `influence`.
        params: see `influence`.
        batch_size: rows whose gradients are in memory at once.

    Raises:
        ValueError: see `influence`.
    """
    task, chosen = _set_up(model, states, rates, params)
    train = _columns(model, task, train)
    found = np.zeros(rows(train), np.float32)
    for state, rate in chosen:
        for first, count, batch in _batches(train, batch_size):
            gradients = _gradients(task, params, state.params, state.extra, batch)
            found[first : first + count] += rate * np.asarray(_squares(gradients))[:count]
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(task: Task, pattern: str, params: Params, extra: Extra, batch: Batch) -> list[Array]:
    """The gradients of single rows in the parameters that match, each flat, (B, E)."""
    leaves, tree = jax.tree.flatten(params)
    places = _matched(params, pattern)

    def loss(own: list[Array], row: Batch) -> Array:
        every = list(leaves)
        for place, leaf in zip(places, own, strict=True):
            every[place] = leaf
        one = {name: value[None] for name, value in row.items()}
        key = jax.random.key(0)  # which evaluation does not use
        return task.loss(jax.tree.unflatten(tree, every), extra, one, key, False)[0]

    of_rows = jax.vmap(jax.grad(loss), in_axes=(None, 0))
    found = of_rows([leaves[place] for place in places], batch)
    return [one.reshape(len(one), -1) for one in found]


@jax.jit
def _products(one: list[Array], other: list[Array]) -> Array:
    """The products of the gradients of rows with those of others, (B, B')."""
    return sum(a @ b.T for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


@jax.jit
def _squares(gradients: list[Array]) -> Array:
    return sum(jnp.square(one).sum(1) for one in gradients)  # type: ignore[return-value]


def _matched(params: Params, pattern: str) -> list[int]:
    """The places of the leaves whose path has the pattern."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    places = [place for place, name in enumerate(names) if re.search(pattern, name)]
    if not places:
        raise ValueError(f"params must match one of {', '.join(names)}, got {pattern!r}")
    return places


def _set_up(
    model: Model | Task, states: States | None, rates: Sequence[float] | None, pattern: str
) -> tuple[Task, list[tuple[TrainState, float]]]:
    """The task, and each state with its rate."""
    if isinstance(model, Model):
        model, state = model.trained()
        states = state if states is None else states
    if not isinstance(model, Task):
        raise ValueError(
            "model must be a finished model or a task, whose loss has gradients, got "
            f"{type(model).__name__}"
        )
    if model.coupled:
        raise ValueError("model must have a loss for each row by itself, got one that couples rows")
    several = [states] if isinstance(states, TrainState) else [*(states or ())]
    rates = [1.0] * len(several) if rates is None else [*rates]
    if not several or len(rates) != len(several):
        raise ValueError(
            f"rates must be one for each of the states, at least one, got {len(rates)} rates and "
            f"{len(several)} states"
        )
    chosen = [averaged(state) for state in several]
    _matched(chosen[0].params, pattern)
    return model, [*zip(chosen, rates, strict=True)]


def _columns(model: Any, task: Task, given: Any) -> dict[str, np.ndarray]:
    """The columns of the task, checked, without weights."""
    names = {column.name for column in task.columns}
    read = getattr(getattr(model, "reader", None), "columns", None)
    encoded = isinstance(given, Mapping) and names <= given.keys()
    if read is not None and not encoded and "label" in inspect.signature(read).parameters:
        given = read(given, label=True)[1]
    columns = prepare(task, given, True)
    return {name: value for name, value in columns.items() if name != "mask"}


def _batches(columns: Mapping[str, Any], size: int) -> Any:
    """Number of the first row, number of rows, and a batch; see `padded`."""
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    size = min(size, rows(columns))
    for number, (batch, count) in enumerate(padded(columns, size)):
        yield number * size, count, batch
