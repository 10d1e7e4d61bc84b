"""What the networks share: PyTorch's dense layer, a fast dropout, and the end of all of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

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


class Dropout(nn.Module):
    """Dropout whose mask is a hash of each number's place.

    As `flax.linen.Dropout`, but for the random numbers, which in these small networks would take
    longer than their products: two multiplications each, twice, fused with what they drop. Two
    words of the "dropout" stream say which mask. It is the same on any number of devices.

    Attributes:
        rate: probability of dropping a number, at least 0 and below 1.

    References:
        The hash: Wellons 2018, "Prospecting for Hash Functions".
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """x, or in training zeros and x / (1 - rate)."""
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout: {self.rate} found, at least 0 and below 1 wanted")
        if not train or self.rate == 0:
            return x
        first, second = jax.random.bits(self.make_rng("dropout"), (2,))
        place = lax.iota(jnp.uint32, x.size).reshape(x.shape)
        kept = _hash(_hash(place + first) ^ second) >= jnp.uint32(self.rate * 2**32)
        return jnp.where(kept, x / (1 - self.rate), 0)


def _hash(x: Array) -> Array:
    """Numbers of 32 bits to others, one to one, every bit of which hangs on every bit of x."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
