"""Batch normalisation that ignores padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class BatchNorm(nn.Module):
    """Normalise each channel by the mean and variance of the rows that are not padding.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias. The statistics are those of the batch in
    training, and running ones otherwise. Names are those of `flax.linen.BatchNorm` (`scale`,
    `bias`; `batch_stats`: `mean`, `var`). They differ for a batch of padding alone, such as the
    last part of a padded batch in gradient accumulation: there Flax's running statistics become
    NaN, and these do not change.

    Attributes:
        momentum: of the running statistics. With 0.9, instead of Flax's 0.99, they are accurate
            after dozens of steps instead of hundreds.
        epsilon: added to the variance.

    References:
        Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167.

    >>> shapes = jax.eval_shape(BatchNorm().init, jax.random.key(0), jnp.ones((8, 3)))
    >>> shapes["batch_stats"]["mean"].shape
    (3,)
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Normalise x (B, ..., C); rows where `mask` (B,) is False are padding."""
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
