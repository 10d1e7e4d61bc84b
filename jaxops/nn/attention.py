"""Attention, attention masks and position encodings.

On GPU and TPU attention is `jax.nn.dot_product_attention`, which on a GPU in 16 bits is one fused
kernel; on a CPU it is computed with `jaxops.nn.matmul`, which has a fast path for bfloat16.
"""

import functools
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
    """Scaled dot-product attention: `softmax(scale * q k^T + bias) v` over the visible keys.

    Query head n attends to key head `n // (N / K)`: K = N is multi-head attention, K = 1 is
    multi-query, and 1 < K < N is grouped-query attention.

    Args:
        query: float (B, T, N, H).
        key: float (B, S, K, H).
        value: float (B, S, K, H).
        mask: bool (B or 1, 1, T, S), True where a query attends to a key; all by default. The
            output of a query without any key, such as padding, is finite but meaningless.
        bias: float (B or 1, N, T, S), added to the scaled products.
        scale: 1 / sqrt(H) by default.
        causal: query t attends to keys 0 to t only.
        window: with `causal`, to the last `window` of them only.

    Returns:
        float (B, T, N, H).

    Raises:
        ValueError: N is not a multiple of K, or the shapes do not fit.

    References:
        Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.
        Shazeer 2019, "Fast Transformer Decoding", arXiv:1911.02150 (multi-query).
        Ainslie et al. 2023, "GQA", arXiv:2305.13245 (grouped-query).

    >>> one = jnp.ones((1, 3, 2, 4))
    >>> dot_product_attention(one, one, one).shape
    (1, 3, 2, 4)
    """
    (batch, length, heads, width), (_, keys, groups, _) = query.shape, key.shape
    expected = (batch, keys, groups, width)
    if key.shape != expected or value.shape != expected or groups < 1 or heads % groups:
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
        places, key_places = jnp.arange(length)[None], jnp.arange(keys)[None]
        visible = attention_mask(places, key_places, causal=True, window=window)
        mask = visible if mask is None or visible is None else mask & visible

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
    """Whether this GPU has cuDNN's fused attention for heads of this width (Ampere or later).

    It computes in 16 bits only and takes few shapes of masks and biases, so
    `dot_product_attention` uses it for `causal` and `window` alone, and XLA's otherwise.
    """
    capability = getattr(jax.devices()[0], "compute_capability", "0")  # NVIDIA GPUs have it
    return float(capability) >= 8 and width % 8 == 0 and width <= 128


def attention_mask(
    query_positions: Array,
    key_positions: Array,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Array | None:
    """Make a mask of which queries attend to which keys.

    Args:
        query_positions: int (b, T), b is B or 1: positions of tokens in their documents.
        key_positions: int (b, S).
        query_segments: int (B, T): tokens attend to tokens of the same segment; 0 is padding.
        key_segments: int (B, S).
        causal: a query attends to no later key.
        window: a query attends to keys less than `window` positions before it and, if not
            causal, after it.

    Returns:
        bool (B or 1, 1, T, S), or `None` where every query attends to every key.

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
        segments, key_segments = query_segments[:, None, :, None], key_segments[:, None, None, :]
        parts.append((segments == key_segments) & (key_segments > 0))
    return None if not parts else math.prod(parts[1:], start=parts[0])


def document_positions(segments: Array) -> Array:
    """Return each token's position in its document.

    Args:
        segments: int (B, T), the documents of each row, see `jaxops.data.pack`.

    Returns:
        int (B, T), counted from 0 in each document.

    >>> document_positions(jnp.array([[1, 1, 1, 2, 2, 0]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    place = lax.broadcasted_iota(jnp.int32, segments.shape, 1)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return place - lax.cummax(jnp.where(begins, place, 0), axis=1)


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Rotary position encoding: rotate each pair (i, i + H/2) by position * base^(-2i/H).

    The product of a rotated query and a rotated key depends on their distance only. Pairs are
    those of Llama.

    Args:
        x: float (B, T, N, H), H even: queries or keys.
        positions: int (B or 1, T).
        base: the wave lengths are 2 pi base^(2i/H).

    Returns:
        float (B, T, N, H).

    References:
        Su et al. 2021, "RoFormer", arXiv:2104.09864.

    >>> x = jnp.ones((1, 2, 1, 2))
    >>> rotary(x, jnp.arange(2)[None]).round(3)[0, :, 0].tolist()
    [[1.0, 1.0], [-0.30..., 1.38...]]
    """
    half = x.shape[-1] // 2
    frequency = base ** (-np.arange(half, dtype=np.float32) / half)
    angle = (positions[..., None] * frequency.reshape(1, 1, -1))[:, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def sinusoidal(positions: Array, width: int) -> Array:
    """Sinusoidal position encoding: sines, then cosines, of position * 10,000^(-2i/width).

    In the paper sines and cosines alternate; the order makes no difference to what is learned.

    Args:
        positions: int (b, T).
        width: even.

    Returns:
        float (b, T, width).

    References:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5.

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
    """T5's buckets of key position minus query position: exact when near, logarithmic when far.

    Args:
        distance: int, any shape: key position minus query position.
        causal: queries attend to no later keys; otherwise half of the buckets are for these.
        buckets: number of buckets.
        max_distance: all distances from here on share the last bucket.

    Returns:
        int, the shape of `distance`, in [0, buckets).

    References:
        Raffel et al. 2020, arXiv:1910.10683, section 2.1.

    >>> relative_bucket(jnp.array([0, -1, -8, -20, -1000, 3]), causal=True).tolist()
    [0, 1, 8, 17, 31, 0]
    """
    start = 0 * distance
    if not causal:
        buckets //= 2
        start = jnp.where(distance > 0, buckets, 0)
    back = -jnp.minimum(distance, 0) if causal else abs(distance)
    exact = buckets // 2
    # of a log of 0 neither value nor gradient is used
    far = jnp.log(jnp.maximum(back, 1) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (far * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return start + jnp.where(back < exact, back, far)


class Attention(nn.Module):
    """Attention with its projections: self-attention or, with `cross`, attention over a memory.

    Attributes:
        features: D, width of the input and of the output.
        heads: N, heads of queries.
        kv_heads: K, heads of keys and values.
        head_width: H.
        cross: queries of one sequence attend to keys and values of another.
        bias: the projections have biases.
        rotary_base: rotate queries and keys by their positions, see `rotary`; `None` does not.
        qk_norm: normalise each query and key by its root mean square, with a learned scale for all
            heads, which keeps their products bounded.
        epsilon: added to the mean square in `qk_norm`.
        scale: see `dot_product_attention`.
        causal: see `dot_product_attention`; used where no mask is given.
        window: see `dot_product_attention`; used where no mask is given.
        out_std: standard deviation of the initial output kernel; that of the others is 0.02.

    References:
        Henry et al. 2020, arXiv:2010.04245 (query-key normalisation; here as in Qwen3,
        arXiv:2505.09388).

    >>> layer = Attention(features=8, heads=2, kv_heads=1, head_width=4, causal=True)
    >>> x, positions = jnp.ones((1, 3, 8)), jnp.arange(3)[None]
    >>> variables = jax.eval_shape(layer.init, jax.random.key(0), x, positions)
    >>> variables["params"]["qkv"]["kernel"].shape
    (8, 16)
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
        """Make the projections; queries, keys and values of one sequence come from one product."""

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
        """Attend over x, or over the cache after x is written into it.

        Args:
            x: (B, T, D).
            positions: int (B or 1, T).
            mask: see `dot_product_attention`; it replaces `causal` and `window`.
            bias: see `dot_product_attention`.
            cache: keys (B, K, H, S) and values (B, K, S, H) so far, in the layout that the products
                of a single query read: with another, a CPU would copy the cache for every token.
            slot: index in the cache where x begins; int (), or (B,) where each row has its own.

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
            if jnp.ndim(slot):
                put = lax.dynamic_update_slice_in_dim
                keys = jax.vmap(functools.partial(put, axis=2))(keys, k, slot)
                values = jax.vmap(functools.partial(put, axis=1))(values, v, slot)
            else:
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
        """Attend over the keys and values that `remember` returned: (B, T, D) to (B, T, D)."""
        q = self.query(x).reshape(*x.shape[:2], self.heads, self.head_width)
        if self.qk_norm:
            q = self.query_norm(q)
        y = dot_product_attention(q, *remembered, mask, None, self.scale)
        return self.out(y.reshape(*x.shape[:2], -1))
