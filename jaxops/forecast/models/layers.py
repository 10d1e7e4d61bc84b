"""Layers that the modules share: PyTorch's dense layer, a fast dropout, and the output."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxops.nn import Dense

Array = jax.Array


def kernel_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initialise kernels (..., inputs, outputs) uniformly within 1 / sqrt(inputs)."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def bias_init(inputs: int) -> Any:
    """An initialiser of biases, uniform within 1 / sqrt(inputs)."""

    bound = inputs**-0.5

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return init


def linear(features: int, inputs: int, name: str) -> Dense:
    """A dense layer with PyTorch's initial weights, as in the code of the modules' authors."""
    return Dense(features, kernel_init=kernel_init, bias_init=bias_init(inputs), name=name)


def forecast_of(module: Any, raw: Array, loc: Array | None, scale: Array | None) -> Array:
    """The output's parameters (B, H, C, P) in the units of the values, from raw (B, C, H * P)."""
    raw = raw.reshape(*raw.shape[:2], module.horizon, module.output.size).swapaxes(1, 2)
    return module.output.scaled(module.output.parameters(raw), loc, scale)


class Dropout(nn.Module):
    """Dropout whose mask is a hash of each element's position.

    It works like `flax.linen.Dropout`, except that a hash replaces the random numbers. In these
    small modules random numbers would take longer than the matrix products; the hash needs a few
    integer operations, which are fused with the dropout. Two words of the "dropout" stream select
    the mask. The mask is the same on any number of devices.

    Attributes:
        rate: probability of dropping an element, at least 0 and below 1.

    References:
        The hash: Wellons 2018, "Prospecting for Hash Functions".
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Return x. In training, dropped elements are 0 and the others are x / (1 - rate)."""
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.rate}")
        if not train or self.rate == 0:
            return x
        first, second = jax.random.bits(self.make_rng("dropout"), (2,))
        place = lax.iota(jnp.uint32, x.size).reshape(x.shape)
        kept = _hash(_hash(place + first) ^ second) >= jnp.uint32(self.rate * 2**32)
        return jnp.where(kept, x / (1 - self.rate), 0)


def _hash(x: Array) -> Array:
    """A bijection of 32-bit numbers in which every output bit depends on every input bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
