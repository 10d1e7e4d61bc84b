"""The Levenberg-Marquardt method with a fixed number of steps, for use with `vmap`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ITERATIONS = 12


def least_squares(
    residuals: Callable[[jax.Array], jax.Array], u: jax.Array, free: jax.Array
) -> jax.Array:
    """Find a local minimum u of the sum of squares of residuals(u).

    Each step tries four damping factors. It keeps the best result if that lowers the sum.

    Args:
        residuals: a function (P,) -> (T,), which is differentiated in forward mode.
        u: (P,), the starting point. Its first four elements are logits, which stay in [-9, 9].
        free: bool (P,), True for the elements of u that may change.
    """
    tries = jnp.array([0.1, 1.0, 10.0, 100.0])

    def both(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = residuals(u)
        return r, r

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple:
        u, damping = carry
        J, r = jax.jacfwd(both, has_aux=True)(u)
        J = jnp.where(free[None], J, 0)
        # a small damping would be lost at the default precision of GPUs
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
    """The index of the lowest finite cost."""
    return jnp.where(jnp.isfinite(costs), costs, jnp.inf).argmin()
