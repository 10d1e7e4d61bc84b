"""The Gaussian mechanism: a sum of vectors of bounded norm, with noise."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxops.task import Array, Key, Params
from jaxops.train.settings import whole


@dataclass(frozen=True)
class Gaussian:
    """The mean of clipped vectors with noise: (sum + noise_multiplier * clip * z) / batch_size.

    Here z is standard normal. A vector is a tree of arrays, such as the gradient of a row or the
    update of a client. One vector more or less changes the sum by at most `clip` in the norm over
    all its arrays, which the noise hides. The sum is divided by the expected number of vectors,
    not by the number of those that were drawn, which is private.

    Attributes:
        clip: the bound of each vector's norm.
        noise_multiplier: the standard deviation of the noise in each number, divided by `clip`.
        batch_size: the expected number of vectors in a sum.

    Raises:
        ValueError: a bound or a multiplier that is not above 0 and finite, a batch size below 1.

    References:
        Abadi et al. 2016, arXiv:1607.00133.

    >>> mechanism = Gaussian(clip=1.0, noise_multiplier=1e-6, batch_size=4)
    >>> noisy = mechanism({"w": jnp.array([2.0, 4.0])}, jax.random.key(0))
    >>> noisy["w"].round(3).tolist()
    [0.5, 1.0]
    """

    clip: float
    noise_multiplier: float
    batch_size: int

    def __post_init__(self) -> None:
        check_positive(clip=self.clip, noise_multiplier=self.noise_multiplier)
        whole("batch_size", self.batch_size, 1)

    def __call__(self, total: Params, key: Key) -> Params:
        """The mean with noise of a sum of vectors; each array has noise of its own."""
        leaves, tree = jax.tree.flatten(total)
        std = self.clip * self.noise_multiplier

        def noisy(leaf: Array, key: Key) -> Array:
            noise = std * jax.random.normal(key, leaf.shape, jnp.float32)
            return ((leaf + noise) / self.batch_size).astype(leaf.dtype)

        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, map(noisy, leaves, keys))


def check_positive(**numbers: Any) -> None:
    """Raise `ValueError` for a number that is not finite and above 0.

    >>> check_positive(epsilon=0.0)
    Traceback (most recent call last):
    ValueError: epsilon must be above 0 and finite, got 0.0
    """
    for name, number in numbers.items():
        if isinstance(number, bool | str) or not 0 < number < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {number!r}")


def clip_factors(norms: Array, clip: float) -> Array:
    """What vectors of these norms are multiplied with to have at most the norm `clip`.

    >>> clip_factors(jnp.array([0.0, 1.0, 4.0]), clip=2.0).tolist()
    [1.0, 1.0, 0.5]
    """
    return jnp.minimum(1.0, clip / jnp.maximum(norms, 1e-30))


def clipped_sum(vectors: Params, clip: float, weights: Array | None = None) -> Params:
    """The sum of vectors, each scaled to a norm of at most `clip`.

    A vector whose norm is not finite, as with a NaN in it, counts as zero: otherwise it alone would
    decide that the sum is NaN, which no noise hides.

    Args:
        vectors: a tree of arrays (B, ...): B vectors.
        clip: the bound of the norm over all arrays.
        weights: (B,); vectors of weight 0 do not count. By default all count.

    >>> vectors = {"w": jnp.array([[3.0, 0.0], [0.0, 0.5]]), "b": jnp.array([4.0, 0.0])}
    >>> total = clipped_sum(vectors, clip=1.0)
    >>> [round(float(x), 4) for x in (*total["w"], total["b"])]
    [0.6, 0.5, 0.8]
    """
    leaves = jax.tree.leaves(vectors)
    squares = [jnp.square(leaf.reshape(len(leaf), -1)).sum(1) for leaf in leaves]
    norms = jnp.sqrt(sum(squares[1:], squares[0]))
    finite = jnp.isfinite(norms)
    kept = finite if weights is None else finite & (weights > 0)
    factors = jnp.where(kept, clip_factors(norms, clip), 0)

    def total(vectors: Params) -> Params:
        return jax.tree.map(lambda x: jnp.tensordot(factors, x, 1).astype(x.dtype), vectors)

    def total_of_finite(vectors: Params) -> Params:
        def summed(leaf: Array) -> Array:
            scaled = leaf * factors.reshape(-1, *[1] * (leaf.ndim - 1))
            there = finite.reshape(-1, *[1] * (leaf.ndim - 1))
            return jnp.where(there, scaled, 0).sum(0).astype(leaf.dtype)

        return jax.tree.map(summed, vectors)

    # 0 * NaN is NaN; where all are finite, a product is faster
    return jax.lax.cond(finite.all(), total, total_of_finite, vectors)
