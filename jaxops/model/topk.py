"""Exact top-k: the largest inner products over any number of items, block by block."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxops.nn.packed import Packed, is_packed, unpacked

Array = jax.Array


def top_k(
    queries: Array,
    items: Array | Packed | None,
    k: int,
    block: int = 8192,
    seen: Array | None = None,
    allowed: Array | None = None,
    mesh: Mesh | None = None,
    count: int | None = None,
) -> tuple[Array, Array]:
    """The `k` items with the largest inner products, exactly, for each query.

    Items are scored one block at a time and the best `k` are kept, so at most (B, block + k) scores
    are in memory at a time. Of equal scores that with the lower index comes first, as in
    `jnp.argsort(stable=True)`. Products are float32 sums in full precision, also on a device that
    by default rounds the factors.

    Args:
        queries: (B, D), float.
        items: (N, D), float, or `Packed` with a scale for each row, of which one block at a time is
            made float32; or None if the queries are the scores themselves, (B, N).
        k: 1 to N.
        block: number of items scored at once; `k` if that is larger.
        seen: (B, M) int, items to leave out for each query; values outside [0, N) are ignored.
        allowed: (N,) bool, the items to choose among; all by default.
        mesh: a mesh with one axis, over which the items are split; each device finds its own best
            items.
        count: N, if `split_items` laid out `items`, with padding at the end.

    Returns:
        scores (B, k) float32, largest first, and indices (B, k) int32. NaN counts as the largest.
        Items that are left out have the score -inf.

    Raises:
        ValueError: shapes that do not fit, or `k` outside 1 to N.

    >>> scores, index = top_k(jnp.eye(2), jnp.array([[1.0, 0.0], [3.0, 2.0], [1.0, 5.0]]), k=2)
    >>> index.tolist(), scores.tolist()
    ([[1, 0], [2, 1]], [[3.0, 1.0], [5.0, 2.0]])
    """
    queries = jnp.asarray(queries)
    items = items if items is None or is_packed(items) else jnp.asarray(items)
    if queries.ndim != 2 or (
        items is not None and (items.ndim != 2 or queries.shape[1] != items.shape[1])
    ):
        raise ValueError(
            "queries and items must have shapes (B, D) and (N, D), got "
            f"{queries.shape} and {getattr(items, 'shape', None)}"
        )
    if count is None or items is None:
        count = queries.shape[1] if items is None else len(items)
    if not 1 <= k <= count:
        raise ValueError(f"k must be in 1 to {count:,} (the number of items), got {k}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if seen is not None and (seen.ndim != 2 or len(seen) != len(queries)):
        raise ValueError(f"seen must have shape ({len(queries)}, M), got {seen.shape}")
    if allowed is not None and allowed.shape != (count,):
        raise ValueError(f"allowed must have shape ({count},), got {allowed.shape}")
    if mesh is None:
        return _top_k(queries, items, seen, allowed, k, block)
    return _sharded(queries, items, seen, allowed, k, block, mesh, count)


def split_items(items: Array | Packed, mesh: Mesh) -> Any:
    """The rows of `items` (N, D) split over the one axis of `mesh`, padded by zeros."""
    (axis,) = mesh.axis_names
    padded = _padded(items, -len(items) % mesh.size)
    return jax.device_put(padded, NamedSharding(mesh, P(axis)))


def _padded(items: Array | Packed, rows: int) -> Any:
    """The rows and so many more of zeros."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, rows), (0, 0))), items)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _top_k(
    queries: Array,
    items: Array | Packed | None,
    seen: Array | None,
    allowed: Array | None,
    k: int,
    block: int,
) -> tuple[Array, Array]:
    count = queries.shape[1] if items is None else len(items)
    block = min(max(k, block), count)

    def score(start: Array | int) -> Array:
        if items is None:
            scores = lax.dynamic_slice_in_dim(queries, start, block, 1).astype(jnp.float32)
        else:
            some = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, block), items)
            scores = jnp.matmul(
                queries, unpacked(some).T, precision="highest", preferred_element_type=jnp.float32
            )
        if allowed is not None:
            candidates = lax.dynamic_slice_in_dim(allowed, start, block)
            scores = jnp.where(candidates[None], scores, -jnp.inf)
        if seen is not None:
            place = jnp.where(seen < start, block, seen - start)
            scores = scores.at[jnp.arange(len(scores))[:, None], place].set(-jnp.inf, mode="drop")
        return scores

    def merge(best: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
        # the last block overlaps the one before, so that nothing is padded; the best k come first,
        # so they win against the same items and against later items of equal score
        start = jnp.minimum(first, count - block)
        index = jnp.broadcast_to(start + jnp.arange(block), (len(queries), block))
        scores = jnp.where(index >= first, score(start), -jnp.inf)
        scores = jnp.concatenate([best[0], scores], axis=1)
        top, place = lax.top_k(scores, k)
        index = jnp.concatenate([best[1], index], axis=1)
        return (top, jnp.take_along_axis(index, place, axis=1)), None

    best = lax.top_k(score(0), k)
    return lax.scan(merge, (best[0], best[1]), jnp.arange(block, count, block))[0]


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _sharded(
    queries: Array,
    items: Array | Packed | None,
    seen: Array | None,
    allowed: Array | None,
    k: int,
    block: int,
    mesh: Mesh,
    count: int,
) -> tuple[Array, Array]:
    (axis,) = mesh.axis_names
    size = -(-count // mesh.size)  # of a device's share; the last is padded, with items not allowed
    room = size * mesh.size - count
    eligible = jnp.ones(count, bool) if allowed is None else allowed
    eligible = jnp.pad(eligible, (0, room))
    if items is None:
        queries = jnp.pad(queries, ((0, 0), (0, room)))
    elif len(items) == count:
        items = _padded(items, room)

    def best_of_device(
        queries: Array, items: Array | Packed | None, seen: Array | None, eligible: Array
    ) -> tuple[Array, Array]:
        first = lax.axis_index(axis) * size
        if seen is not None:
            seen = jnp.where(seen < first, size, seen - first)
        scores, index = _top_k(queries, items, seen, eligible, min(k, size), block)
        scores, index = (
            lax.all_gather(x, axis, axis=1, tiled=True) for x in (scores, index + first)
        )
        # padding is at the end, so of all items that are left out it comes last
        scores, place = lax.top_k(scores, k)
        return scores, jnp.take_along_axis(index, place, axis=1)

    split = P(None, axis) if items is None else P()
    # the result is the same on every device, but JAX's check cannot see this after the gather
    return jax.shard_map(
        best_of_device,
        mesh=mesh,
        in_specs=(split, P(axis), P(), P(axis)),
        out_specs=P(),
        check_vma=False,
    )(queries, items, seen, eligible)
