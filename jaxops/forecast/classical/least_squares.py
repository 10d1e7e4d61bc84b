"""Levenberg and Marquardt's method of a fixed number of steps, so that `vmap` makes it a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ITERATIONS = 12


def least_squares(
    residuals: Callable[[jax.Array], jax.Array], u: jax.Array, free: jax.Array
) -> jax.Array:
    """The u near which residuals(u) have the least sum of squares.

    Each step tries four dampings and keeps the best if it is better.

    Args:
        residuals: (P,) -> (T,), differentiated forwards.
        u: (P,) where to start; the first four are kept within -9 to 9, logits.
        free: bool (P,), which of them may move.
    """
    tries = jnp.array([0.1, 1.0, 10.0, 100.0])

    def both(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = residuals(u)
        return r, r

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple:
        u, damping = carry
        J, r = jax.jacfwd(both, has_aux=True)(u)
        J = jnp.where(free[None], J, 0)
        # the default precision of GPUs loses what the damping is small against
        H, g = (jnp.matmul(J.T, x, precision="highest") for x in (J, r))
        size = jnp.diagonal(H)
        ridge = size + 1e-7 * size.max() + 1e-20

        def move(d: jax.Array) -> jax.Array:
            change = jnp.linalg.solve(H + jnp.diag(d * ridge), g)
            new = u - jnp.where(free, jnp.clip(change, -3, 3), 0)
            return jnp.concatenate([jnp.clip(new[:4], -9, 9), new[4:]])

        dampings = damping * tries
        moved = jax.vmap(move)(dampings)
        costs = jax.vmap(lambda u: jnp.sum(both(u)[0] ** 2))(moved)
        best = least(costs)
        better = costs[best] < jnp.sum(r**2)
        new = jnp.where(better, moved[best], u)
        damping = jnp.clip(jnp.where(better, dampings[best], damping * 1000), 1e-6, 1e6)
        return (new, damping), None

    (u, _), _ = jax.lax.scan(step, (u, jnp.asarray(1e-2)), length=ITERATIONS)
    return u


def least(costs: jax.Array) -> jax.Array:
    """Place of the least that is finite."""
    return jnp.where(jnp.isfinite(costs), costs, jnp.inf).argmin()
