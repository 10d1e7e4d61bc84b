"""A client for Flower, which carries the messages between real machines."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops._optional import require
from jaxops.data.checks import prepare, rows
from jaxops.federation.local import Local, check_local, local_of, train_client
from jaxops.optim import averaged, sgd
from jaxops.state import TrainState, init_state
from jaxops.task import Task
from jaxops.train.evaluation import Evaluation

ROUND = "round"


def to_arrays(state: TrainState) -> list[np.ndarray]:
    """The parameters and other variables of a state, as Flower carries them.

    Args:
        state: such as `jaxops.init_state` makes for the first parameters of a Flower server.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> rows = {"features": np.ones((2, 3), np.float32)}
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> [array.shape for array in to_arrays(state)]
    [(1,), (3, 1)]
    """
    state = averaged(state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.extra))]


def from_arrays(state: TrainState, arrays: Sequence[np.ndarray]) -> TrainState:
    """The state with the parameters and other variables that Flower's server has.

    Args:
        state: of the same task.
        arrays: as `to_arrays` gives them.

    Raises:
        ValueError: arrays of other shapes.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> rows = {"features": np.ones((2, 3), np.float32)}
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> trained = from_arrays(state, [np.ones(1), np.zeros((3, 1))])
    >>> trained.params["logits"]["bias"].tolist()
    [1.0]
    """
    leaves, tree = jax.tree.flatten((state.params, state.extra))
    wanted, given = [leaf.shape for leaf in leaves], [np.shape(array) for array in arrays]
    if wanted != given:
        raise ValueError(f"arrays must have the shapes {wanted} of the state, got {given}")
    pairs = zip(leaves, arrays, strict=True)
    params, extra = jax.tree.unflatten(tree, [jnp.asarray(a, leaf.dtype) for leaf, a in pairs])
    return state._replace(params=params, extra=extra, opt_state=())


def flower_client(
    task: Task,
    data: Mapping[str, Any],
    *,
    optimizer: optax.GradientTransformation,
    epochs: int = 1,
    batch_size: int | None = None,
    proximal: float = 0.0,
    validation: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Any:
    """A `flwr.client.NumPyClient` that does in a round what a client of `fit` does.

    Its `fit` returns the parameters, the number of rows, and the mean loss over its batches; its
    `evaluate` the loss and the task's metrics that are numbers. A server that sends "round" in the
    config, as `FedAvg(on_fit_config_fn=lambda number: {"round": number})` does, lets the order of
    the rows and the dropout differ from round to round. Without it this object counts its own
    rounds; so a `client_fn` that makes a new one for each message has the same order in each round.

    Args:
        task: what to learn.
        data: the client's own columns.
        optimizer: the client's optimizer; it starts anew in each round.
        epochs: passes over its rows in a round.
        batch_size: rows in a batch; by default all.
        proximal: mu of FedProx.
        validation: columns for `evaluate`; by default `data`.
        seed: of the order of the rows, and of dropout; give each client another.

    Raises:
        ValueError: an argument out of range, data that do not fit the task, or row weights, which
            Flower cannot carry: it weighs the clients by their numbers of rows.
        ImportError: flwr is not installed.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP(()), features=3)
    >>> rows = {"features": np.eye(3, dtype=np.float32), "label": np.array([0, 1, 1])}
    >>> client = flower_client(task, rows, optimizer=jo.optim.sgd(0.1))  # doctest: +SKIP
    >>> arrays, count, metrics = client.fit([np.zeros(1), np.zeros((3, 1))], {})  # doctest: +SKIP
    >>> [array.shape for array in arrays], count, round(metrics["loss"], 1)  # doctest: +SKIP
    ([(1,), (3, 1)], 3, 0.7)
    """
    local = local_of(task, optimizer, epochs, batch_size, proximal)
    columns = prepare(task, data, targets=True)
    for name, given in (("data", columns), ("validation", validation or {})):
        if "mask" in given:
            raise ValueError(f"{name} must have no column mask, as Flower weighs by rows, got one")
    check_local(task, local, columns)
    flower = require("flwr.client", extra="flower")
    like = init_state(task, sgd(0.0), seed, {name: v[:1] for name, v in columns.items()})
    evaluation = Evaluation(task, data if validation is None else validation)
    shapes = tuple((name, v.shape[1:]) for name, v in columns.items())
    flat = {name: jnp.asarray(v.reshape(len(v), -1) if v.ndim > 2 else v)
            for name, v in columns.items()}  # fmt: skip
    flat["mask"] = jnp.ones(rows(columns), jnp.float32)
    train = _program(task, local, (*shapes, ("mask", ())))

    class Client(flower.NumPyClient):  # type: ignore[name-defined]
        """The client of Flower."""

        rounds = 0

        def fit(self, parameters: Any, config: Any) -> tuple[list[np.ndarray], int, dict[str, Any]]:
            """Train from the server's parameters."""
            self.rounds += 1
            state = from_arrays(like, parameters)
            key = jax.random.fold_in(like.key, int(config.get(ROUND, self.rounds)))
            trained = train(state.params, state.extra, flat, key)
            new = state._replace(params=trained.params, extra=trained.extra)
            loss = jax.device_get(trained.metrics["loss"]).compute()
            return to_arrays(new), rows(columns), {"loss": loss}

        def evaluate(self, parameters: Any, config: Any) -> tuple[float, int, dict[str, Any]]:
            """The loss and metrics of the server's parameters."""
            values = evaluation(from_arrays(like, parameters))
            numbers = {name: float(v) for name, v in values.items() if np.ndim(v) == 0}
            return numbers.pop("loss"), len(next(iter(evaluation.data.columns.values()))), numbers

    return Client()


@functools.lru_cache(maxsize=32)
def _program(task: Task, local: Local, shapes: Any) -> Any:
    """`train_client` compiled; clients of one process with equal shapes share it."""
    return jax.jit(functools.partial(train_client, task, local, shapes))
