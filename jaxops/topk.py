"""Exact top-k: the largest inner products over items of any number, block by block."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def top_k(queries: Array, items: Array, k: int, block: int = 8192) -> tuple[Array, Array]:
    """The `k` items with the largest inner products, exactly, for each query.

    Items are scored a block at a time and the best `k` kept, so no more than (B, block + k) scores
    are ever held. Of equal scores the lower index comes first, as in `jnp.argsort(stable=True)`.
    Products are float32 sums, in full precision also where a device would round its factors.

    Args:
        queries: (B, D), float.
        items: (N, D), float.
        k: 1 to N.
        block: how many items are scored at once; at least `k` are.

    Returns:
        scores (B, k) float32, largest first, and indices (B, k) int32. NaN counts as the largest.

    Raises:
        ValueError: other shapes, or `k` outside 1 to N.

    >>> scores, index = top_k(jnp.eye(2), jnp.array([[1.0, 0.0], [3.0, 2.0], [1.0, 5.0]]), k=2)
    >>> index.tolist(), scores.tolist()
    ([[1, 0], [2, 1]], [[3.0, 1.0], [5.0, 2.0]])
    """
    queries, items = jnp.asarray(queries), jnp.asarray(items)
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(
            f"queries, items: shapes {queries.shape} and {items.shape} found, "
            "(B, D) and (N, D) wanted"
        )
    if not 1 <= k <= len(items):
        raise ValueError(f"k: {k} found, 1 to {len(items):,} (all items) wanted")
    if block < 1:
        raise ValueError(f"block: {block} found, at least 1 wanted")
    return _top_k(queries, items, k, min(max(k, block), len(items)))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _top_k(queries: Array, items: Array, k: int, block: int) -> tuple[Array, Array]:
    count = len(items)

    def score(start: Array | int) -> Array:
        some = lax.dynamic_slice_in_dim(items, start, block)
        dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
        return dot(queries, some.T, precision="highest")

    def merge(best: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
        # the last block reaches back over items that were seen, so that nothing is padded; the
        # best k come first, and so win against these and against later items of equal score
        start = jnp.minimum(first, count - block)
        index = jnp.broadcast_to(start + jnp.arange(block), (len(queries), block))
        scores = jnp.where(index >= first, score(start), -jnp.inf)
        scores = jnp.concatenate([best[0], scores], axis=1)
        top, place = lax.top_k(scores, k)
        index = jnp.concatenate([best[1], index], axis=1)
        return (top, jnp.take_along_axis(index, place, axis=1)), None

    best = lax.top_k(score(0), k)
    return lax.scan(merge, (best[0], best[1]), jnp.arange(block, count, block))[0]
