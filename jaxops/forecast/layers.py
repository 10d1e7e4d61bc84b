"""What the forecasting networks share: PyTorch's dense layer, and the end of every network."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxops.nn import Dense

Array = jax.Array


def kernel_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Kernels (..., inputs, outputs) uniform within 1 / sqrt(inputs)."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def bias_init(inputs: int) -> Any:
    """Uniform within 1 / sqrt(inputs)."""

    bound = inputs**-0.5

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return init


def linear(features: int, inputs: int, name: str) -> Dense:
    """A dense layer that begins as PyTorch's: the networks' authors have left it so."""
    return Dense(features, kernel_init=kernel_init, bias_init=bias_init(inputs), name=name)


def forecast_of(model: Any, raw: Array, loc: Array | None, scale: Array | None) -> Array:
    """Of (B, C, H * P) raw numbers the parameters (B, H, C, P), in the values' own units."""
    raw = raw.reshape(*raw.shape[:2], model.horizon, model.output.size).swapaxes(1, 2)
    return model.output.scaled(model.output.parameters(raw), loc, scale)
