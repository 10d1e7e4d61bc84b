"""The state that training changes: `TrainState`, which is created on its devices."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxops.devices.plans import Plan, default
from jaxops.task import Array, Batch, Extra, Key, Params, Task


class TrainState(NamedTuple):
    """The arrays of a run; the task and the optimizer are closed over by the step.

    Attributes:
        step: () int32, the number of updates made so far.
        params: what is trained.
        opt_state: the optimizer's own arrays.
        extra: the model's other variables, such as batch statistics.
        key: a typed PRNG key; the randomness of a step is `fold_in(key, step)`.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    extra: Extra
    key: Key


@jax.tree_util.register_static
@dataclass(frozen=True)
class Stays:
    """A part of an optimizer's state that says which parameters the optimizer does not change.

    Attributes:
        pattern: a regular expression that is searched for in paths such as "trunk/norm/scale".
    """

    pattern: str

    def of(self, params: Params, before: Extra, after: Extra) -> Extra:
        """The new `extra`; layers whose parameters all stay keep their old variables."""
        layers: dict[str, bool] = {}
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            layer, stays = name.rpartition("/")[0], bool(re.search(self.pattern, name))
            layers[layer] = layers.get(layer, True) and stays

        def one(path: Any, old: Any, new: Any) -> Any:
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            layer = name.rpartition("/")[0]
            return old if layers.get(layer, bool(re.search(self.pattern, name))) else new

        return jax.tree_util.tree_map_with_path(one, before, after)


def init_state(
    task: Task,
    tx: optax.GradientTransformation,
    seed: int,
    batch: Batch,
    plan: Plan | None = None,
) -> TrainState:
    """A new state, initialised inside one jitted call with each leaf on its devices.

    Args:
        task: the task.
        tx: the optimizer.
        seed: the seed of the parameters and of all later random numbers.
        batch: any batch; only its shapes and dtypes matter.
        plan: how the state is placed on the devices; one device by default.

    >>> import numpy as np, optax
    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP())
    >>> batch = {"image": np.zeros((1, 28, 28, 1), np.uint8), "label": np.zeros(1, np.int32)}
    >>> state = init_state(task, optax.adam(1e-3), seed=0, batch=batch)
    >>> sum(leaf.size for leaf in jax.tree.leaves(state.params))
    101770
    """
    return _init_program(task, tx, plan or default(), _shapes(batch))[1](jax.random.key(seed))


def state_shapes(
    task: Task, tx: optax.GradientTransformation, batch: Batch, plan: Plan | None = None
) -> TrainState:
    """Shapes and dtypes of the state that `init_state` makes; the result is cached."""
    return _init_program(task, tx, plan or default(), _shapes(batch))[0]


def _shapes(batch: Batch) -> tuple[tuple[str, jax.ShapeDtypeStruct], ...]:
    return tuple(
        # NumPy gives int64 labels and float64 features, which a device narrows
        (name, jax.ShapeDtypeStruct(value.shape, jax.dtypes.canonicalize_dtype(value.dtype)))
        for name, value in batch.items()
    )


@functools.lru_cache(maxsize=64)
def _init_program(
    task: Task, tx: optax.GradientTransformation, plan: Plan, shapes: Any
) -> tuple[TrainState, Callable[[Key], TrainState]]:
    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes
    def init(key: Key) -> TrainState:
        batch = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes}
        init_key, key = jax.random.split(key)
        params, extra = task.init(init_key, batch)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), extra, key)

    abstract = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))  # no key is made
    return abstract, jax.jit(init, out_shardings=plan.state_shardings(abstract))
