"""Attention, its masks and its positions.

On GPU and TPU it is `jax.nn.dot_product_attention`, which on a GPU in 16 bits is one fused kernel;
on a CPU the same sums by `jaxops.nn.matmul`, which has a fast path for bfloat16 there.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxops.nn.product import Array, Dense, computing_in, matmul


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Array:
    """Scaled dot-product attention: `softmax(scale * q k^T + bias) v` over the keys that are seen.

    Query head n looks at key head `n // (N / K)`: K = N is multi-head attention (Vaswani et al.
    2017, arXiv:1706.03762), K = 1 multi-query (Shazeer 2019, arXiv:1911.02150), between them it is
    grouped (Ainslie et al. 2023, arXiv:2305.13245).

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H).
        value: (B, S, K, H).
        mask: bool (B or 1, 1, T, S), True where a query sees a key; all by default. A query that
            sees no key, such as padding, gets something finite without meaning.
        bias: (B or 1, N, T, S), added to the scaled products.
        scale: 1 / sqrt(H) by default.
        causal: query t sees keys 0 to t alone.
        window: with `causal`, the last so many of them.

    Returns:
        (B, T, N, H).

    Raises:
        ValueError: N is not a multiple of K, or the shapes do not fit.

    >>> one = jnp.ones((1, 3, 2, 4))
    >>> dot_product_attention(one, one, one).shape
    (1, 3, 2, 4)
    """
    (batch, length, heads, width), (_, keys, groups, _) = query.shape, key.shape
    wanted = (batch, keys, groups, width)
    if key.shape != wanted or value.shape != wanted or groups < 1 or heads % groups:
        raise ValueError(
            "query, key and value must be (B, T, N, H) and twice (B, S, K, H), "
            f"with N a multiple of K, got {query.shape}, {key.shape} and {value.shape}"
        )
    scale = width**-0.5 if scale is None else scale
    if jax.default_backend() != "cpu":
        low = computing_in()
        if low != "float32":
            query, key, value = (x.astype(low) for x in (query, key, value))
        fused = low != "float32" and mask is None and bias is None and has_fused_attention(width)
        y = jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias,
            mask,
            scale=scale,
            is_causal=causal,
            local_window_size=(window - 1, 0) if causal and window else None,
            implementation="cudnn" if fused else None,
        )
        return y.astype(value.dtype if low == "float32" else jnp.float32)
    if causal:
        own, others = jnp.arange(length)[None], jnp.arange(keys)[None]
        seen = attention_mask(own, others, causal=True, window=window)
        mask = seen if mask is None or seen is None else mask & seen

    def by_group(x: Array) -> Array:
        """(B, T, N, H) to (B, K, N / K * T, H): one product serves the queries of a group."""
        return x.swapaxes(1, 2).reshape(batch, groups, -1, width)

    scores = matmul(by_group(query), by_group(key).mT).reshape(batch, heads, length, keys) * scale
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores).reshape(batch, groups, -1, keys)
    mixed = matmul(weights, by_group(value)).reshape(batch, heads, length, width)
    return mixed.swapaxes(1, 2)


def has_fused_attention(width: int) -> bool:
    """Whether cuDNN's fused attention is there for heads of this width: from Ampere on.

    It takes 16 bits alone, and masks and biases in some shapes alone, so
    `dot_product_attention` uses it where there are none but `causal` and `window`; elsewhere it
    is XLA's.
    """
    capability = getattr(jax.devices()[0], "compute_capability", "0")  # of a GPU of NVIDIA's
    return float(capability) >= 8 and width % 8 == 0 and width <= 128


def attention_mask(
    query_positions: Array,
    key_positions: Array,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Array | None:
    """Which queries see which keys; `None` where all see all.

    Args:
        query_positions: int (b, T), b is B or 1; the places of tokens in their documents.
        key_positions: int (b, S).
        query_segments: int (B, T): tokens see those of their own segment; 0 is padding.
        key_segments: int (B, S).
        causal: a query sees no later key.
        window: it sees keys less than so many places before it and, if not causal, after it.

    Returns:
        bool (B or 1, 1, T, S).

    >>> place = jnp.arange(4)[None]
    >>> attention_mask(place, place, causal=True, window=2)[0, 0].astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    parts = []
    if causal or window is not None:
        ahead = key_positions[:, None, None, :] - query_positions[:, None, :, None]
        if causal:
            parts.append(ahead <= 0)
        if window is not None:
            parts.append(abs(ahead) < window)
    if query_segments is not None and key_segments is not None:
        own, others = query_segments[:, None, :, None], key_segments[:, None, None, :]
        parts.append((own == others) & (others > 0))
    return None if not parts else math.prod(parts[1:], start=parts[0])


def document_positions(segments: Array) -> Array:
    """Each token's place in its own document, from the segments of a row; both int (B, T).

    >>> document_positions(jnp.array([[1, 1, 1, 2, 2, 0]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    place = lax.broadcasted_iota(jnp.int32, segments.shape, 1)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return place - lax.cummax(jnp.where(begins, place, 0), axis=1)


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Turn each pair (i, i + H/2) of x (B, T, N, H) by its position times base^(-2i/H).

    The product of a query and a key then depends on their distance alone. Su et al. 2021,
    arXiv:2104.09864; pairs as in Llama.

    Args:
        x: (B, T, N, H), H even.
        positions: int (B or 1, T).
        base: of the wave lengths.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-np.arange(half, dtype=np.float32) / half)
    angle = (positions[..., None] * frequency.reshape(1, 1, -1))[:, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def sinusoidal(positions: Array, width: int) -> Array:
    """Positions (b, T) as (b, T, width): sines, then cosines, of frequencies 1 to 1 / 10,000.

    Vaswani et al. 2017, section 3.5, where the two alternate; the order makes no difference to
    what can be learned.

    >>> sinusoidal(jnp.zeros((1, 1)), 4)[0, 0].tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    half = width // 2
    frequency = 10_000.0 ** (-np.arange(half, dtype=np.float32) / half)
    angle = positions[..., None] * frequency.reshape(1, 1, -1)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def relative_bucket(
    distance: Array, causal: bool, buckets: int = 32, max_distance: int = 128
) -> Array:
    """T5's buckets of key position minus query position: exact when near, by logarithm when far.

    Raffel et al. 2020, arXiv:1910.10683, section 2.1. Where queries see both sides, half of the
    buckets are for keys that come later.

    >>> relative_bucket(jnp.array([0, -1, -8, -20, -1000, 3]), causal=True).tolist()
    [0, 1, 8, 17, 31, 0]
    """
    start = 0 * distance
    if not causal:
        buckets //= 2
        start = jnp.where(distance > 0, buckets, 0)
    back = -jnp.minimum(distance, 0) if causal else abs(distance)
    exact = buckets // 2
    # a log of 0 is never chosen, and its gradient never asked for
    far = jnp.log(jnp.maximum(back, 1) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (far * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return start + jnp.where(back < exact, back, far)


class Attention(nn.Module):
    """Attention with its products: over what comes in or, as `cross`, over a memory.

    Attributes:
        features: D, of what goes in and comes out.
        heads: N.
        kv_heads: K, of keys and values.
        head_width: H.
        cross: queries of one sequence look at keys and values of another.
        bias: of the products.
        rotary_base: turn queries and keys by their positions; `None` does not.
        qk_norm: normalise each query and key by its root mean square, with a learned scale for all
            heads (Henry et al. 2020, arXiv:2010.04245; here as in Qwen3, arXiv:2505.09388), which
            keeps their products bounded.
        epsilon: of that.
        scale: of the products, see `dot_product_attention`.
        causal: what a token sees where no mask is given, see `dot_product_attention`.
        window: likewise.
        out_std: standard deviation of the output kernel's start; 0.02 of the others'.
    """

    features: int
    heads: int
    kv_heads: int
    head_width: int
    cross: bool = False
    bias: bool = True
    rotary_base: float | None = None
    qk_norm: bool = False
    epsilon: float = 1e-5
    scale: float | None = None
    causal: bool = False
    window: int | None = None
    out_std: float = 0.02

    def setup(self) -> None:
        """Queries, keys and values of one sequence come from one product."""

        def dense(heads: int) -> Dense:
            init = nn.initializers.normal(0.02)
            return Dense(heads * self.head_width, self.bias, kernel_init=init)

        if self.cross:
            self.query, self.key_value = dense(self.heads), dense(2 * self.kv_heads)
        else:
            self.qkv = dense(self.heads + 2 * self.kv_heads)
        if self.qk_norm:
            self.query_norm = nn.RMSNorm(epsilon=self.epsilon)
            self.key_norm = nn.RMSNorm(epsilon=self.epsilon)
        out_init = nn.initializers.normal(self.out_std)
        self.out = Dense(self.features, self.bias, kernel_init=out_init)

    def __call__(
        self,
        x: Array,
        positions: Array,
        mask: Array | None = None,
        bias: Array | None = None,
        cache: tuple[Array, Array] | None = None,
        slot: Array | int = 0,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Attend over x, or over the cache once x is written into it.

        Args:
            x: (B, T, D).
            positions: int (B or 1, T).
            mask: all that a token sees, see `dot_product_attention`.
            bias: see `dot_product_attention`.
            cache: keys (B, K, H, S) and values (B, K, S, H) so far, laid out as the products of a
                single query want them: a CPU would copy all of another cache for every token.
            slot: where in the cache x begins.

        Returns:
            (B, T, D), and the cache with x in it, or without one the keys and values of x, each
            (B, T, K, H).
        """
        ends = [self.heads * self.head_width, (self.heads + self.kv_heads) * self.head_width]
        q, k, v = (
            part.reshape(*x.shape[:2], -1, self.head_width)
            for part in jnp.split(self.qkv(x), ends, axis=-1)
        )
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary_base is not None:
            q, k = (rotary(y, positions, self.rotary_base) for y in (q, k))
        kept = (k, v)
        if cache is not None:
            keys, values = cache
            k, v = k.transpose(0, 2, 3, 1).astype(keys.dtype), v.swapaxes(1, 2).astype(values.dtype)
            keys = lax.dynamic_update_slice(keys, k, (0, 0, 0, slot))
            values = lax.dynamic_update_slice(values, v, (0, 0, slot, 0))
            kept, k, v = (keys, values), keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)
        causal = self.causal and mask is None
        y = dot_product_attention(
            q, k, v, mask, bias, self.scale, causal, self.window if causal else None
        )
        return self.out(y.reshape(*x.shape[:2], -1)), kept

    def remember(self, memory: Array) -> tuple[Array, Array]:
        """Keys and values (B, S, K, H) of a memory (B, S, D), for `recall`."""
        shape = (*memory.shape[:2], 2 * self.kv_heads, self.head_width)
        k, v = jnp.split(self.key_value(memory).reshape(shape), 2, axis=2)
        return (self.key_norm(k) if self.qk_norm else k), v

    def recall(self, x: Array, remembered: tuple[Array, Array], mask: Array | None) -> Array:
        """Attend over what is remembered: x (B, T, D) to the same."""
        q = self.query(x).reshape(*x.shape[:2], self.heads, self.head_width)
        if self.qk_norm:
            q = self.query_norm(q)
        y = dot_product_attention(q, *remembered, mask, None, self.scale)
        return self.out(y.reshape(*x.shape[:2], -1))
