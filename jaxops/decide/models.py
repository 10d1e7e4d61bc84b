"""Networks from features to the levels of an ordering policy."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class LevelNetwork(nn.Module):
    """Levels from features: softplus of a perceptron, above 0.

    Attributes:
        hidden: widths of the hidden layers; empty is linear in the features.
        reorder: whether to give (..., 2) instead, the level S to order up to and S - s, how far
            below it one waits before one orders: what a fixed cost of an order asks for.

    >>> LevelNetwork().init_with_output(jax.random.key(0), jnp.zeros((4, 52, 3)))[0].shape
    (4, 52)
    """

    hidden: tuple[int, ...] = (32, 32)
    reorder: bool = False

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """(..., F) -> (...), or (..., 2)."""
        x = features
        for i, width in enumerate(self.hidden):
            x = nn.gelu(nn.Dense(width, name=f"hidden_{i}")(x))
        # it begins at twice the usual demand: a level that never orders would never learn
        level = nn.Dense(1, name="level", bias_init=nn.initializers.constant(2.0))(x)
        if not self.reorder:
            return nn.softplus(level[..., 0])
        return nn.softplus(jnp.concatenate([level, nn.Dense(1, name="gap")(x)], -1))
