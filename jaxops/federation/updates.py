"""Smaller messages: a client's update in 8 bits a number, or its largest entries alone."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxops.task import Key, Params

MOST = 127  # the largest of 8 bits with a sign


class Compression(NamedTuple):
    """A transformation of a client's update, made by `eight_bits` or `top_k`.

    Attributes:
        compress: `(key, update) -> what the server gets`, a tree like the update.
        size: update -> bytes of the message; shapes are enough.
        feedback: whether a client adds to its update what its messages have left out so far.

    The signs of an update, times their mean size:

    >>> def signs(key, update):
    ...     return jax.tree.map(lambda u: jnp.sign(u) * jnp.abs(u).mean(), update)
    >>> sent = Compression(signs, lambda u: len(u) // 8 + 4, feedback=True).compress
    >>> sent(None, jnp.array([1.0, -3.0])).tolist()
    [2.0, -2.0]
    """

    compress: Callable[[Key, Params], Params]
    size: Callable[[Any], int]
    feedback: bool


def plain_size(update: Any) -> int:
    """The bytes of an update that is not compressed.

    >>> plain_size({"kernel": jnp.zeros((3, 4))})
    48
    """
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(update))


@functools.lru_cache(maxsize=8)
def eight_bits(feedback: bool = False) -> Compression:
    """Each number of an update in 8 bits, rounded at random so that its expectation is kept.

    With s the largest absolute value of a leaf divided by 127, the message has s and
    floor(x / s + u) with u uniform in [0, 1), whose expectation is x / s.

    Args:
        feedback: add to an update what earlier messages of the client have left out.

    References:
        Alistarh et al. 2017, arXiv:1610.02132; Karimireddy et al. 2019, arXiv:1901.09847 (error
        feedback).

    >>> update = {"w": jnp.array([-1.0, 0.3, 1.27])}
    >>> sent = eight_bits().compress(jax.random.key(0), update)["w"]
    >>> bool((abs(sent - update["w"]) <= 0.01).all()), eight_bits().size(update)
    (True, 7)
    """

    def one(key: Key, leaf: jax.Array) -> jax.Array:
        most = jnp.abs(leaf).max()
        scale = jnp.where(most > 0, most, 1.0) / MOST
        noise = jax.random.uniform(key, leaf.shape, leaf.dtype)
        # the sum may be rounded up to the next whole number
        bits = jnp.clip(jnp.floor(leaf / scale + noise), -MOST, MOST).astype(jnp.int8)
        return bits.astype(leaf.dtype) * scale

    def compress(key: Key, update: Params) -> Params:
        leaves, tree = jax.tree.flatten(update)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, [one(*pair) for pair in zip(keys, leaves, strict=True)])

    def size(update: Any) -> int:
        return sum(leaf.size + 4 for leaf in jax.tree.leaves(update))

    return Compression(compress, size, feedback)


@functools.lru_cache(maxsize=32)
def top_k(share: float, feedback: bool = True) -> Compression:
    """The largest entries of an update by their absolute value; the others are zero.

    A message has a number and a position, of 4 bytes each, for each entry.

    Args:
        share: the share of the entries that are sent, in (0, 1]; at least one is.
        feedback: add to an update what earlier messages of the client have left out. Without it
            entries that are small in every round never arrive.

    Raises:
        ValueError: a share out of range.

    References:
        Stich et al. 2018, arXiv:1809.07599; Karimireddy et al. 2019, arXiv:1901.09847.

    >>> update = {"w": jnp.array([-1.0, 0.3, 1.27, 0.0])}
    >>> top_k(0.5).compress(jax.random.key(0), update)["w"].tolist(), top_k(0.5).size(update)
    ([-1.0, 0.0, 1.26..., 0.0], 16)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")

    def kept(count: int) -> int:
        return max(1, round(share * count))

    def compress(key: Key, update: Params) -> Params:
        values, back = ravel_pytree(update)
        _, largest = jax.lax.top_k(jnp.abs(values), kept(len(values)))
        return back(jnp.zeros_like(values).at[largest].set(values[largest]))

    def size(update: Any) -> int:
        return 8 * kept(sum(leaf.size for leaf in jax.tree.leaves(update)))

    return Compression(compress, size, feedback)
