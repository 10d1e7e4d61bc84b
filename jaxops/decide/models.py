"""Flax modules from features to the levels of an ordering policy."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.task import recorded

Array = jax.Array


@recorded(formerly={"hidden": "widths"})
class LevelNetwork(nn.Module):
    """Levels from features: softplus of a multi-layer perceptron.

    Attributes:
        widths: units of each hidden layer; () for a linear function of the features.
        reorder: for orders with a fixed cost: return (..., 2) instead, the level S to order up to,
            and S - s, where an order is placed at s or below.

    >>> make = LevelNetwork().init_with_output
    >>> jax.eval_shape(make, jax.random.key(0), jnp.zeros((4, 52, 3)))[0].shape
    (4, 52)
    """

    widths: tuple[int, ...] = (32, 32)
    reorder: bool = False

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Features (..., F) -> levels (...), or (..., 2)."""
        x = features
        for i, width in enumerate(self.widths):
            x = nn.gelu(nn.Dense(width, name=f"hidden_{i}")(x))
        # starts at twice the scale, because a level at which nothing is ordered has no gradient
        level = nn.Dense(1, name="level", bias_init=nn.initializers.constant(2.0))(x)
        if not self.reorder:
            return nn.softplus(level[..., 0])
        return nn.softplus(jnp.concatenate([level, nn.Dense(1, name="gap")(x)], -1))
