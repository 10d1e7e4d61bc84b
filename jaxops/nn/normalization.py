"""Batch normalisation that knows which rows are padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class BatchNorm(nn.Module):
    """Normalise each channel by the mean and variance of the rows that count.

    As `flax.linen.BatchNorm`, with its names (`scale`, `bias`; `batch_stats`: `mean`, `var`), but
    for a batch with no row that counts, such as the last part of a padded batch in gradient
    accumulation: there Flax's statistics become NaN, and these stay as they were.

    Ioffe and Szegedy 2015, arXiv:1502.03167.

    Attributes:
        momentum: of the running statistics. With 0.9, not Flax's 0.99, they are right after dozens
            of steps, not hundreds.
        epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Normalise x (B, ..., C); rows where `mask` (B,) is False do not count."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        m, v = mean.value, var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            rows = x.size // (len(x) * x.shape[-1])
            count = len(x) * rows if mask is None else mask.sum() * rows
            # where, not a product: a padded row may hold anything, and 0 * inf is NaN
            counted = x
            if mask is not None:
                counted = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
            m = counted.sum(axes) / jnp.maximum(count, 1)
            v = jnp.maximum((counted**2).sum(axes) / jnp.maximum(count, 1) - m**2, 0)
            if not self.is_initializing():
                share = jnp.where(count > 0, 1 - self.momentum, 0.0)
                mean.value += share * (m - mean.value)
                var.value += share * (v - var.value)
        factor = lax.rsqrt(v + self.epsilon) * scale
        wide = (1,) * (x.ndim - 1) + channels
        return x * factor.reshape(wide) + (bias - m * factor).reshape(wide)
