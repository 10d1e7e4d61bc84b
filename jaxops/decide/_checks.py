"""Numbers that a decision is made from, checked while they are still numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def positive(**values: Any) -> None:
    """Raise ValueError where one is not finite and above 0; traced values go unchecked."""
    for name, value in values.items():
        _check(name, value, lambda x: x > 0, "above 0")


def not_negative(**values: Any) -> None:
    """Raise ValueError where one is not finite and 0 or more; traced values go unchecked."""
    for name, value in values.items():
        _check(name, value, lambda x: x >= 0, "0 or more")


def share(**values: Any) -> None:
    """Raise ValueError where one is not finite and 0 to 1; traced values go unchecked."""
    for name, value in values.items():
        _check(name, value, lambda x: (x >= 0) & (x <= 1), "0 to 1")


def finite(**values: Any) -> None:
    """Raise ValueError where one is not finite; traced values go unchecked."""
    for name, value in values.items():
        _check(name, value, np.isfinite, "finite numbers")


def whole(**values: int) -> None:
    """Raise ValueError where one is not a whole number, 0 or more."""
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"{name}: {value!r} found, a whole number of periods, 0 up, wanted")


def known(**values: Any) -> None:
    """Raise ValueError where one is traced: what comes out has a shape that depends on it."""
    for name, value in values.items():
        if traced(value):
            raise ValueError(f"{name}: a traced value found, numbers wanted: call outside of jit")


def power_of_two(count: int) -> int:
    """The least that is not below `count`, so that problems of like size share a program."""
    return 1 << max(int(count) - 1, 0).bit_length()


def together(*values: Any) -> list[Array]:
    """As float32, broadcast to one shape."""
    return list(jnp.broadcast_arrays(*(jnp.asarray(v, jnp.float32) for v in values)))


def traced(value: Any) -> bool:
    """Whether the value is only known inside a compiled program."""
    return isinstance(value, jax.core.Tracer)


def _check(name: str, value: Any, fine: Any, wanted: str) -> None:
    if traced(value):
        return
    array = np.asarray(value, np.float64)
    wrong = ~(np.isfinite(array) & fine(array))
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        place = f" at {first} ({wrong.sum():,} such)" if array.ndim else ""
        raise ValueError(f"{name}: {array[wrong].flat[0]:g} found{place}, {wanted} wanted")
