"""Training that needs the whole train rows in a step: candidates, and batches of each member."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.model.finished import Model
from jaxops.state import TrainState, init_state
from jaxops.tabular.models import ModernNCA
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, row_weights

SEEN = 4096  # rows that a module looks at when it starts

Columns = dict[str, np.ndarray]


@functools.lru_cache(maxsize=16)
def own_batches(task: Task, members: int, rows: int, weighted: bool = False) -> Task:
    """A task of a module with members, in which each member sees other rows in a step.

    Member m sees row (i + m N / members) mod N of the N train rows in place of row i of a batch. As
    the rows of a batch are drawn at random, so are those of each member, and each sees every row
    once an epoch. The train rows are in the state's `extra`, as "rows", which is copied when the
    validation loss improves, and which a checkpoint holds twice: count on three times their memory.
    Evaluation and prediction are those of the task within.

    Args:
        task: of a module that takes features (B, members, d) in training.
        members: of the module.
        rows: N.
        weighted: whether the rows have weights.

    Returns:
        A task whose batches have a further column, `row`, the place of each row among the train
        rows. A weight of 0 in a batch marks padding alone: the weights of rows are in the state.

    References:
        Gorishniy et al. 2024, arXiv:2410.24210.
    """
    (width,) = next(c.shape for c in task.columns if c.name == "features")
    shifts = (np.arange(members) * rows // members).astype(np.int32)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        params, extra = task.init(key, batch)
        label = jnp.asarray(batch["label"])
        label = jnp.zeros((rows, *label.shape[1:]), label.dtype)
        known = {"features": jnp.zeros((rows, width)), "label": label}
        if weighted:
            known["mask"] = jnp.ones(rows)
        return params, {"module": extra, "rows": known}

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        if train:
            batch = _of_members(extra["rows"], batch, shifts, rows)
        total, out = task.loss(params, extra["module"], batch, key, train)
        return total, out._replace(extra={**extra, "module": out.extra})

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        return task.predict(params, extra["module"], batch)

    columns = (*task.columns, Column("row", (), "int", target=True))
    return task._replace(
        init=init, loss=loss, predict=predict, columns=columns, recipe=None, sample=None
    )


def _of_members(known: Mapping[str, Array], batch: Batch, shifts: np.ndarray, rows: int) -> Batch:
    """The rows of each member: features (B, members, d) and label (B, members, ...), weights."""
    places = (batch["row"][:, None] + shifts[None]) % rows
    real = jnp.asarray(row_weights(batch) > 0, jnp.float32)
    own = {name: known[name][places] for name in ("features", "label")} | {"mask": real}
    if "mask" in known:
        weights = known["mask"][places] * real[:, None]
        mean = weights.mean(1)
        own |= {"mask": mean, "share": weights / jnp.where(mean > 0, mean, 1.0)[:, None]}
    return own


def start_own(
    task: Task, optimizer: Any, train: Columns, seed: int, plan: Any = None
) -> tuple[TrainState, Columns]:
    """The first state of `own_batches`, and the columns to train on.

    Args:
        task: of `own_batches`.
        optimizer: that trains it.
        train: the columns of the task within, with a `mask` where rows have weights.
        seed: of the first state.
        plan: where it lies, see `jaxops.fit`.
    """
    columns = with_places({name: value for name, value in train.items() if name != "mask"})
    state = init_state(task, optimizer, seed, {k: v[:1] for k, v in columns.items()}, plan)
    rows = {
        name: jnp.asarray(train[name], leaf.dtype) for name, leaf in state.extra["rows"].items()
    }
    return state._replace(extra={**state.extra, "rows": rows}), columns


def start_candidates(
    task: Task, optimizer: Any, train: Columns, targets: np.ndarray, seed: int, plan: Any = None
) -> tuple[TrainState, Columns]:
    """The first state of a task whose module has candidates, and the columns to train on.

    Args:
        task: of a module such as `ModernNCA`.
        optimizer: that trains it.
        train: the columns of the task, with a `mask` where rows have weights.
        targets: (N, outputs): indicators of classes, or standardised numbers.
        seed: of the first state.
        plan: where it lies, see `jaxops.fit`.
    """
    columns = with_places(train)
    state = init_state(task, optimizer, seed, {k: v[:1] for k, v in columns.items()}, plan)
    known = {
        "features": jnp.asarray(train["features"], jnp.float32),
        "targets": jnp.asarray(targets, jnp.float32),
        "weights": jnp.asarray(train.get("mask", np.ones(len(targets))), jnp.float32),
    }
    return state._replace(extra={**state.extra, "candidates": known}), columns


def represented(model: Model) -> Model:
    """A model whose candidates are represented, once, for all that it will predict.

    Any other model than one of `ModernNCA` is returned as it is.
    """
    module = module_of(model.task)
    if not isinstance(module, ModernNCA):
        return model
    _, state = model.trained()
    found = _representing(module)({"params": state.params, **state.extra})
    known = {**state.extra["candidates"], "represented": found}
    extra = {**state.extra, "candidates": known}
    return replace(model, state=state._replace(extra=extra))


def module_of(task: Any) -> Any:
    """The module that a task was made of; None of a task made by hand."""
    made = dict(task.recipe[1]) if getattr(task, "recipe", None) else {}
    return module_of(made["task"]) if "task" in made else made.get("module")


@functools.lru_cache(maxsize=16)
def _representing(module: ModernNCA) -> Any:
    return jax.jit(functools.partial(module.apply, method="represent_candidates"))


def start_among(
    task: Task, optimizer: Any, train: Columns, seed: int, plan: Any = None
) -> TrainState:
    """The first state of a task whose module, such as `RealMLP`, looks at rows when it starts.

    Args:
        task: of the module.
        optimizer: that trains it.
        train: the columns of the task, of which 4,096 rows are drawn.
        seed: of the first state.
        plan: where it lies, see `jaxops.fit`.
    """
    state = init_state(task, optimizer, seed, {k: v[:1] for k, v in train.items()}, plan)
    count = len(train["label"])
    places = np.random.default_rng(seed).permutation(count)[:SEEN]
    seen = {name: column[places] for name, column in train.items()}
    params, _ = jax.jit(task.init)(jax.random.split(jax.random.key(seed))[0], seen)
    put = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params)
    return state._replace(params=put)


def with_places(columns: Columns, first: int | None = 0) -> Columns:
    """The columns with the place of each row among the train rows.

    Args:
        columns: of a task.
        first: the place of the first row; None for rows that are not among the train rows, -1.

    >>> with_places({"label": np.zeros(2)})["row"].tolist()
    [0, 1]
    """
    count = len(next(iter(columns.values())))
    places = np.full(count, -1) if first is None else first + np.arange(count)
    return {**columns, "row": places.astype(np.int32)}
