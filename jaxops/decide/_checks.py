"""Checks of arguments, outside of compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def positive(**values: Any) -> None:
    """Raise ValueError unless all are finite and above 0; traced values are not checked."""
    for name, value in values.items():
        _check(name, value, lambda x: x > 0, "above 0")


def not_negative(**values: Any) -> None:
    """Raise ValueError unless all are finite and at least 0; traced values are not checked."""
    for name, value in values.items():
        _check(name, value, lambda x: x >= 0, "at least 0")


def share(**values: Any) -> None:
    """Raise ValueError unless all are finite and in [0, 1]; traced values are not checked."""
    for name, value in values.items():
        _check(name, value, lambda x: (x >= 0) & (x <= 1), "in [0, 1]")


def finite(**values: Any) -> None:
    """Raise ValueError unless all are finite; traced values are not checked."""
    for name, value in values.items():
        _check(name, value, np.isfinite, "finite")


def whole(**values: int) -> None:
    """Raise ValueError unless all are whole numbers of at least 0."""
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"{name} must be a whole number of periods, at least 0, got {value!r}")


def some(**values: int) -> None:
    """Raise ValueError unless all are whole numbers of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def arms(arm: np.ndarray, count: int) -> None:
    """Raise ValueError unless all are integers below the number of arms."""
    if not np.issubdtype(arm.dtype, np.integer):
        raise ValueError(
            f"arm must be integers, the number of each arm, got {arm.dtype}, such as "
            f"{arm.flat[0].item()!r}"
        )
    if not 0 <= arm.min() <= arm.max() < count:
        raise ValueError(f"arm must be integers in [0, {count}), got {arm.min()} to {arm.max()}")


def known(**values: Any) -> None:
    """Raise ValueError if a value is traced, because shapes of the result depend on it."""
    for name, value in values.items():
        if traced(value):
            raise ValueError(f"{name} must be known, got a traced value; call this outside of jit")


def together(**values: Any) -> list[Array]:
    """The values as float32, broadcast to one shape; raises ValueError if there is none."""
    shapes = [np.shape(value) for value in values.values()]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        given = ", ".join(f"{name} {shape}" for name, shape in zip(values, shapes, strict=True))
        raise ValueError(f"shapes must be equal, or (), got those of {given}") from None
    return [jnp.broadcast_to(jnp.asarray(v, jnp.float32), shape) for v in values.values()]


def traced(value: Any) -> bool:
    """Whether the value belongs to a program that is being traced."""
    return isinstance(value, jax.core.Tracer)


def _check(name: str, value: Any, fine: Any, condition: str) -> None:
    if traced(value):
        return
    array = np.asarray(value, np.float64)
    wrong = ~(np.isfinite(array) & fine(array))
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        place = f" at {first} ({wrong.sum():,} such values)" if array.ndim else ""
        raise ValueError(f"{name} must be {condition}, got {array[wrong].flat[0]:g}{place}")
