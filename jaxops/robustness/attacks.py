"""Adversarial examples on the input of a task: one step (FGSM), or several (PGD)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops._shapes import few_lengths
from jaxops.data.checks import prepare
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Array, Batch, Column, Extra, Key, Params, Task
from jaxops.train.resident import pad
from jaxops.train.settings import whole

NORMS = ("inf", "2")
SMALLEST = 1e-12  # norm of a gradient by which it is divided


class Attack(NamedTuple):
    """How a column is changed, as plain values, so that equal attacks compile once.

    Attributes:
        column: the name of the column.
        epsilon: the largest change of a row, in the unit of the column.
        norm: "inf", of each number, or "2", of the row.
        steps: number of steps.
        size: of a step.
        sign: 1 to raise the loss, -1 to lower that of a target.
        bounds: the lowest and the highest number of the column.
        scattered: whether the search starts at a random place of the ball.
    """

    column: str
    epsilon: float
    norm: str
    steps: int
    size: float
    sign: int = 1
    bounds: tuple[float, float] = (-math.inf, math.inf)
    scattered: bool = False

    def point(self, gradient: Callable[[Array], Array], start: Array, key: Key) -> Array:
        """The changed column, float32 (B, ...), from the gradient of a summed loss by it."""
        start = start.astype(jnp.float32)
        x = start
        if self.scattered:
            x = self._within(start + self._draw(key, start), start)

        def step(_: int, x: Array) -> Array:
            g = self.sign * gradient(x)
            way = jnp.sign(g) if self.norm == "inf" else g / jnp.maximum(_length(g), SMALLEST)
            return self._within(x + self.size * way, start)

        return jax.lax.fori_loop(0, self.steps, step, x)

    def _within(self, x: Array, start: Array) -> Array:
        """The nearest place in the ball; then in the bounds, which leads to no other ball."""
        change = x - start
        if self.norm == "inf":
            change = jnp.clip(change, -self.epsilon, self.epsilon)
        else:
            change = change * jnp.minimum(
                1.0, self.epsilon / jnp.maximum(_length(change), SMALLEST)
            )
        return jnp.clip(start + change, *self.bounds)

    def _draw(self, key: Key, start: Array) -> Array:
        """A change that is uniform in the ball."""
        if self.norm == "inf":
            return self.epsilon * jax.random.uniform(key, start.shape, minval=-1.0)
        way, far = jax.random.split(key)
        direction = jax.random.normal(way, start.shape)
        radius = jax.random.uniform(far, (len(start), *[1] * (start.ndim - 1)))
        radius = radius ** (1 / math.prod(start.shape[1:]))
        return self.epsilon * radius * direction / jnp.maximum(_length(direction), SMALLEST)


def _length(x: Array) -> Array:
    """The Euclidean length of each row, (B, 1, ...)."""
    return jnp.sqrt(jnp.square(x).sum(tuple(range(1, x.ndim)), keepdims=True))


def changed(
    loss: Callable[..., Any], attack: Attack, params: Params, extra: Extra, batch: Batch, key: Key
) -> Array:
    """The column of an attack at the place that the attack finds, float32 (B, ...)."""

    def gradient(x: Array) -> Array:
        own = lambda x: loss(params, extra, {**batch, attack.column: x}, key, False)[0]  # noqa: E731
        found: Array = jax.grad(own)(x)
        return found

    return attack.point(gradient, jnp.asarray(batch[attack.column]), key)


_changed = jax.jit(changed, static_argnums=(0, 1))


def attack_of(
    task: Task,
    epsilon: float,
    norm: str,
    steps: int,
    step_size: float | None,
    column: str | None,
    bounds: tuple[float, float] | None,
) -> Attack:
    """The checked settings of an attack on a task.

    Args:
        task: see `pgd`.
        epsilon: see `pgd`.
        norm: see `pgd`.
        steps: see `pgd`.
        step_size: see `pgd`.
        column: see `pgd`.
        bounds: see `pgd`.
    """
    if task.coupled:
        raise ValueError("task must not couple the rows of a batch, got coupled=True")
    chosen = input_of(task, column)
    if str(norm) not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be a number above 0, got {epsilon}")
    steps = whole("steps", steps, 1)
    size = 2.5 * epsilon / steps if step_size is None else step_size
    if not 0 < size < math.inf:
        raise ValueError(f"step_size must be a number above 0, got {step_size}")
    if bounds is None:
        bounds = (0.0, 255.0) if chosen.dtype == "uint8" else (-math.inf, math.inf)
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be the lowest and the highest number, got {bounds}")
    low, high = map(float, bounds)
    return Attack(chosen.name, float(epsilon), str(norm), steps, float(size), bounds=(low, high))


def input_of(task: Task, name: str | None = None) -> Column:
    """The column of numbers or bytes that is changed.

    Args:
        task: any task.
        name: of the column; None if the task has one of numbers alone.

    Raises:
        ValueError: there is no such column, or several of which none is named.

    >>> from jaxops import vision
    >>> input_of(vision.classifier(vision.MLP())).name
    'image'
    """
    possible = [
        c for c in task.columns if not c.target and (c.dtype == "uint8" or "float" in c.dtype)
    ]
    names = ", ".join(c.name for c in possible) or "none"
    found = [c for c in possible if name in (None, c.name)]
    if len(found) != 1:
        raise ValueError(f"column must be one of the task's columns of numbers ({names}), got "
                         f"{name}")  # fmt: skip
    return found[0]


def fgsm(
    task: Task,
    state: TrainState,
    data: Mapping[str, Any],
    epsilon: float,
    *,
    norm: str = "inf",
    target: Any = None,
    column: str | None = None,
    bounds: tuple[float, float] | None = None,
    batch_size: int = 1024,
) -> dict[str, np.ndarray]:
    """Adversarial examples by one step: x + epsilon sign(gradient of the loss by x).

    For a linear model no change of this size raises the loss more. With `norm="2"` the step is
    epsilon times the gradient divided by its length.

    Args:
        task: see `pgd`; so are all others.
        state: the trained state.
        data: the columns, with targets.
        epsilon: the size of the step.
        norm: "inf" or "2".
        target: (N,), the targets that the changed rows are to have.
        column: the column that changes.
        bounds: the lowest and the highest number of the column.
        batch_size: rows in one call.

    References:
        Goodfellow et al. 2015, arXiv:1412.6572.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> rows = {"features": np.ones((1, 2), np.float32), "label": np.ones(1, np.int32)}
    >>> task = tabular.classifier(tabular.MLP(()), features=2)
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> kernel = np.array([[1.0], [-3.0]], np.float32)
    >>> state = state._replace(params={"logits": {"kernel": kernel, "bias": np.zeros(1)}})
    >>> fgsm(task, state, rows, 0.5)["features"].tolist()
    [[0.5, 1.5]]
    """
    attack = attack_of(task, epsilon, norm, 1, epsilon, column, bounds)
    return _attacked(task, state, data, attack, target, 0, batch_size)


def pgd(
    task: Task,
    state: TrainState,
    data: Mapping[str, Any],
    epsilon: float,
    *,
    norm: str = "inf",
    steps: int = 20,
    step_size: float | None = None,
    target: Any = None,
    scattered: bool = True,
    column: str | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 1024,
) -> dict[str, np.ndarray]:
    """Adversarial examples by projected gradient ascent on the loss, in a ball around each row.

    A step goes along sign(gradient) ("inf") or gradient / length ("2"), and then to the nearest
    place in the ball and within the bounds. The loss is that of evaluation, without dropout. All
    steps of a batch run in one call.

    Args:
        task: any task whose loss does not couple rows, with an input of numbers or bytes.
        state: the trained state; if `optim.ema` has kept averaged parameters, they are used.
        data: the columns of N rows, with targets.
        epsilon: the largest change, in the unit of the column: 8 for 8/255 of an image of bytes.
        norm: "inf", of each number of a row, or "2", of the row: the Euclidean length.
        steps: number of steps.
        step_size: of a step, in the unit of the column; 2.5 * epsilon / steps by default.
        target: (N,) or (N, ...), the targets that the changed rows are to have, such as another
            class. By default the loss of their own targets is raised.
        scattered: whether the search starts at a random place in the ball, or at the row itself.
        column: the column that changes; needed if the task has several of numbers.
        bounds: the lowest and the highest number of the column; of bytes 0 and 255, of numbers by
            default without.
        seed: of the random places.
        batch_size: rows in one call.

    Returns:
        The columns of the task with the changed one, for `jaxops.evaluate`. The changes of bytes
        are rounded towards 0, so that they stay in the ball.

    Raises:
        ValueError: a coupled task, or one without such an input; a setting out of range; an epsilon
            below 1 for bytes; targets for a task with none or several; rows outside the bounds.

    References:
        Madry et al. 2018, arXiv:1706.06083.

    >>> import jaxops as jo
    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP(classes=2), (2, 2, 1), classes=2)
    >>> rows = {"image": np.zeros((3, 2, 2, 1), np.uint8), "label": np.array([0, 1, 1], np.int32)}
    >>> state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    >>> moved = pgd(task, state, rows, epsilon=8, steps=2)
    >>> moved["image"].dtype, bool(moved["image"].max() <= 8)
    (dtype('uint8'), True)
    """
    attack = attack_of(task, epsilon, norm, steps, step_size, column, bounds)
    attack = attack._replace(scattered=bool(scattered))
    return _attacked(task, state, data, attack, target, seed, batch_size)


def _attacked(
    task: Task,
    state: TrainState,
    data: Mapping[str, Any],
    attack: Attack,
    target: Any,
    seed: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    columns = {name: np.asarray(value) for name, value in prepare(task, data, True).items()}
    x, fooled = columns[attack.column], columns
    whole_numbers = x.dtype == np.uint8
    if whole_numbers and attack.epsilon < 1:
        raise ValueError(
            f"epsilon must be at least 1 for bytes, whose smallest change is 1, got "
            f"{attack.epsilon}; give 8 for 8/255"
        )
    low, high = attack.bounds
    outside = ((x < low) | (x > high)).any(axis=tuple(range(1, x.ndim)))
    if outside.any():
        raise ValueError(f"{attack.column} must be within the bounds {low:g} and {high:g}, got a "
                         f"number outside in row {int(outside.argmax())}")  # fmt: skip
    if target is not None:
        attack = attack._replace(sign=-1)
        fooled = prepare(task, {**columns, **_target(task, columns, target)}, True)
    size = whole("batch_size", batch_size, 1)
    size = min(size, few_lengths(len(x)))
    state, parts = averaged(state), []
    for first in range(0, len(x), size):
        some = {name: np.asarray(value)[first : first + size] for name, value in fooled.items()}
        key = jax.random.fold_in(jax.random.key(seed), first)
        made = _changed(task.loss, attack, state.params, state.extra, pad(some, size), key)
        parts.append(np.asarray(made)[: len(some[attack.column])])
    found = np.concatenate(parts)
    if whole_numbers:
        found = (x + np.trunc(found - x)).astype(np.uint8)
    return {**columns, attack.column: found.astype(x.dtype)}


def _target(task: Task, columns: Mapping[str, np.ndarray], target: Any) -> dict[str, np.ndarray]:
    """The task's target with other values."""
    names = [column.name for column in task.columns if column.target]
    if len(names) != 1:
        raise ValueError(f"target must be None for a task with the targets {names}, got some")
    own = columns[names[0]]
    given = np.asarray(target)
    if given.shape != own.shape:
        raise ValueError(f"target must have shape {own.shape}, got {given.shape}")
    return {names[0]: given.astype(own.dtype)}
