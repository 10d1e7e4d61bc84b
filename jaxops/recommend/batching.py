"""Batches of users, whose memory is bounded for any length of history."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops._shapes import next_power_of_two
from jaxops.recommend.recommenders import Recommender, queries

CELLS_AT_ONCE = 2**24  # values in the largest array of a batch: 64 MiB of float32
PLACE = 64  # a position of a history counts as at least 64 values, which also bounds the time


def padded(lengths: np.ndarray, least: int = 16, base: int = 2) -> np.ndarray:
    """Lengths rounded up to `least` times a power of `base`, so that few programs compile.

    >>> padded(np.array([0, 16, 17, 100])).tolist()
    [16, 16, 32, 128]
    """
    few = [least]
    while few[-1] < lengths.max(initial=0):
        few.append(few[-1] * base)
    return np.array(few)[np.searchsorted(few, lengths)]


def batches(
    users: np.ndarray, lengths: np.ndarray, held: Any, most: int
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Batches of users with similar lengths, the longest first.

    Args:
        users: (R,) indices of users.
        lengths: (S, U) padded lengths, of each of the S lists that a user has.
        held: a function of S lengths: the number of values in memory for one user.
        most: the largest number of users in a batch.

    Yields:
        (B,) users, where B is a power of two (the last batch is filled up with its last user), and
        the largest S lengths of the batch.

    >>> for batch in batches(np.arange(5), np.array([[1, 1, 64, 1, 1]]), lambda n: n * 2**18, 4):
    ...     print(batch)
    (array([2]), (64,))
    (array([4, 3, 1, 0]), (1,))
    """
    users = users[np.lexsort(lengths[:, users])[::-1]]
    most = min(most, next_power_of_two(len(users)))
    start = 0
    while start < len(users):
        size = 2 * most
        while True:
            size //= 2
            some = users[start : start + size]
            longest = tuple(lengths[:, some].max(1).tolist())
            if size == 1 or size * held(*longest) <= CELLS_AT_ONCE:
                break
        yield np.pad(some, (0, size - len(some)), mode="edge"), longest
        start += size


def cells(recommender: Recommender, length: int, features: Any, most: int) -> int:
    """The number of values in memory for the query of one user with a history of that length.

    It is the size of the largest array of the program for `most` users, such as (B, L, D) for
    factors, divided by `most`. The result is cached with the recommender.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    >>> model = recommend.fitted(recommend.IALS(factors=128, sweeps=1), log)
    >>> cells(model, 512, None, most=64)
    65536
    """
    known = recommender.cells
    if length not in known:
        context = recommender.model.context
        history = jax.ShapeDtypeStruct((most, min(length, context or length)), jnp.int32)
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((most, *x.shape[1:]), x.dtype), features)
        traced = jax.make_jaxpr(queries, static_argnums=0)(
            recommender.model, recommender.on_device[0], history, rows
        )
        known[length] = max(PLACE * length, _largest(traced.jaxpr) // most)
    return known[length]


def _largest(jaxpr: Any) -> int:
    """The size of the largest array that a program computes, with the programs inside it."""
    sizes = [math.prod(v.aval.shape) for e in jaxpr.eqns for v in e.outvars]
    inner = [getattr(p, "jaxpr", p) for e in jaxpr.eqns for p in jax.tree.leaves(e.params)]
    return max([0, *sizes, *(_largest(one) for one in inner if hasattr(one, "eqns"))])
