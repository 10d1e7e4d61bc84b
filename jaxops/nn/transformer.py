"""One transformer for decoders (GPT, Llama), encoders (BERT) and encoder-decoders (T5).

A `TransformerConfig` sets the architecture; `jaxops.language` has those of known models.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxops.nn.attention import attention_mask, document_positions, sinusoidal
from jaxops.nn.blocks import ACTIVATIONS, Stack, TransformerConfig, arange, norm
from jaxops.nn.product import Array, Dense, matmul


class Cache(NamedTuple):
    """Keys and values of the tokens so far, so that they are computed once; see `empty_cache`.

    Rows are aligned at their ends: the first slots of a row with a shorter prompt are padding. Or
    each row has a length of its own, and what is in the slots behind it is not read.

    Attributes:
        layers: keys (B, K, H, S) and values (B, K, S, H) of each block; stacked with `scan`.
        start: int (B,), the slot of a row's first token.
        length: int (), number of slots in use; or (B,), that of each row.
        memory: of an encoder-decoder, keys and values (B, S, K, H) of the source for each block.
        memory_mask: bool (B, 1, 1, S), False where the source is padding.
    """

    layers: Any
    start: Array
    length: Array
    memory: Any = None
    memory_mask: Array | None = None


class Embedding(nn.Module):
    """Tokens and positions to vectors, and vectors to logits."""

    config: TransformerConfig

    def setup(self) -> None:
        """Make the tables, and BERT's head."""
        config, init = self.config, nn.initializers.normal(0.02)
        shape = (config.vocabulary, config.width)
        self.tokens = self.param("tokens", init, shape)
        if config.position == "learned":
            self.positions = self.param("positions", init, (config.context, config.width))
        if config.segment_types:
            self.types = self.param("types", init, (config.segment_types, config.width))
        if config.embedding_norm:
            self.norm = norm(config)
        self.drop = nn.Dropout(config.dropout)
        if config.masked_head:
            self.head_dense = Dense(config.width, kernel_init=init)
            self.head_norm = norm(config)
            self.head_bias = self.param("head_bias", nn.initializers.zeros, shape[:1])
        if not config.tied:
            self.head = Dense(config.vocabulary, use_bias=False, kernel_init=init)

    def __call__(
        self,
        tokens: Array,
        positions: Array | None,
        types: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Vectors (B, T, D) of tokens (B, T) at positions (B or 1, T), of `types` (B, T)."""
        config, length = self.config, tokens.shape[1]
        x = jnp.take(self.tokens, tokens, 0)
        if config.embedding_scale != 1.0:
            x *= config.embedding_scale
        if config.position == "learned":
            # a slice has a faster gradient than a look-up
            table = self.positions
            x += table[None, :length] if positions is None else table[jnp.maximum(positions, 0)]
        elif config.position == "sinusoidal":
            positions = arange(length) if positions is None else positions
            # Vaswani et al. 2017, section 3.4: otherwise positions would outweigh tokens
            x = x * config.width**0.5 + sinusoidal(positions, config.width)
        if config.segment_types:
            x += self.types[jnp.zeros_like(tokens) if types is None else types]
        if config.embedding_norm:
            x = self.norm(x)
        return self.drop(x, deterministic=not train)

    def logits(self, x: Array) -> Array:
        """Logits (B, T, vocabulary) of x (B, T, D)."""
        config = self.config
        if config.masked_head:
            x = self.head_norm(ACTIVATIONS[config.activation](self.head_dense(x)))
        if config.logit_scale != 1.0:
            x *= config.logit_scale
        y = matmul(x, self.tokens.T) if config.tied else self.head(x)
        return y + self.head_bias.reshape(1, 1, -1) if config.masked_head else y


def _check_length(config: TransformerConfig, length: int) -> None:
    if length > config.context:
        raise ValueError(
            f"tokens must be at most {config.context} in a row (the context), got {length}"
        )


class Transformer(nn.Module):
    """A decoder (GPT) or an encoder (BERT), by its `config`: tokens to logits.

    >>> import jax
    >>> config = TransformerConfig(vocabulary=65, context=8, depth=1, heads=2, width=16)
    >>> module = Transformer(config)
    >>> tokens = jnp.zeros((3, 8), jnp.int32)
    >>> variables = jax.jit(module.init)(jax.random.key(0), tokens)
    >>> jax.jit(module.apply)(variables, tokens).shape
    (3, 8, 65)
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Embedding and blocks."""
        self.embedding = Embedding(self.config)
        self.stack = Stack(self.config)

    def __call__(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        types: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Compute logits.

        Args:
            tokens: int (B, T) in [0, config.vocabulary).
            segments: int (B, T), the documents of a row, 0 is padding: tokens attend to tokens of
                the same segment only. By default a row is one document.
            positions: int (B, T), in the documents; 0 to T - 1 by default.
            types: int (B, T) in [0, config.segment_types); 0 by default.
            train: apply dropout.

        Returns:
            (B, T, vocabulary).

        Raises:
            ValueError: more tokens in a row than the context.
        """
        x = self.hidden(tokens, segments, positions, types, train=train)
        return self.embedding.logits(x)

    def hidden(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        types: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Return the hidden states before the logits, (B, T, width), for other heads."""
        _check_length(self.config, tokens.shape[1])
        x = self.embedding(tokens, positions, types, train)
        return self.stack(x, positions, segments, train=train)[0]

    def advance(self, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        """Logits (B, T, vocabulary) of the next T tokens after those in the cache, and the cache.

        Raises:
            ValueError: the config is not causal, so earlier tokens would attend to these.
        """
        if not self.config.causal:
            raise ValueError("config.causal must be True (a decoder), got False (an encoder)")
        return _advance(self, tokens, cache)


def _advance(
    module: Any, tokens: Array, cache: Cache, memory: Array | None = None
) -> tuple[Array, Cache]:
    length = tokens.shape[1]
    positions = arange(length) + (jnp.reshape(cache.length, (-1, 1)) - cache.start[:, None])
    x = module.embedding(tokens, positions)
    x, (layers, remembered) = module.stack(
        x, cache=cache, memory=memory, memory_mask=cache.memory_mask
    )
    cache = cache._replace(layers=layers, memory=remembered, length=cache.length + length)
    return module.embedding.logits(x), cache


def empty_cache(config: TransformerConfig, slots: int, start: Array) -> Cache:
    """Make an empty cache with room for `slots` tokens a row.

    Args:
        config: of the decoder.
        slots: tokens of prompt and answer together.
        start: int (B,), the slot of each row's first token: prompts are aligned at their ends, and
            the slots before `start` are padding.

    Raises:
        ValueError: more slots than the context.

    >>> config = TransformerConfig(vocabulary=65, context=8, depth=2, heads=2, width=16)
    >>> cache = empty_cache(config, 8, jnp.array([0, 3]))
    >>> isinstance(cache, Cache), [keys.shape for keys, values in cache.layers]
    (True, [(2, 2, 8, 8), (2, 2, 8, 8)])
    """
    _check_length(config, slots)
    stacked = (config.depth,) if config.scan else ()
    shape: tuple[int, ...] = (*stacked, len(start), config.kv_heads or config.heads)
    pair = jnp.zeros((*shape, config.per_head, slots)), jnp.zeros((*shape, slots, config.per_head))
    layers = pair if config.scan else (pair,) * config.depth
    return Cache(layers, start, jnp.zeros((), jnp.int32))


class EncoderDecoder(nn.Module):
    """An encoder of the source, and a decoder that attends to the encoder's output (T5).

    Both have the same config, except that the encoder is not causal; they share the embeddings.

    >>> import jax
    >>> config = TransformerConfig(vocabulary=20, context=8, depth=1, heads=2, width=16)
    >>> module = EncoderDecoder(config)
    >>> source, target = jnp.zeros((3, 8), jnp.int32), jnp.zeros((3, 5), jnp.int32)
    >>> variables = jax.eval_shape(module.init, jax.random.key(0), source, target)  # shapes alone
    >>> jax.eval_shape(module.apply, variables, source, target).shape
    (3, 5, 20)
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Embedding, encoder and decoder."""
        self.embedding = Embedding(self.config)
        self.encoder = Stack(replace(self.config, causal=False, window=None))
        self.stack = Stack(replace(self.config, causal=True), cross=True)

    def __call__(
        self,
        source: Array,
        target: Array,
        source_segments: Array | None = None,
        target_segments: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Compute the logits of the token after each target token.

        Args:
            source: int (B, S).
            target: int (B, T), a start token and the answer.
            source_segments: int (B, S), the documents of a row, 0 is padding: targets attend to the
                source of the same segment. By default a row is one document. Positions count from
                the beginning of a segment.
            target_segments: int (B, T).
            train: apply dropout.

        Returns:
            (B, T, vocabulary).

        Raises:
            ValueError: more tokens in a row than the context.
        """
        _check_length(self.config, max(source.shape[1], target.shape[1]))
        memory = self.encode(source, source_segments, train=train)
        mask = None
        if source_segments is not None:
            segments = jnp.ones_like(target) if target_segments is None else target_segments
            places = arange(target.shape[1])
            mask = attention_mask(places, places, segments, source_segments)
        x = self._embedded(target, target_segments, train)
        x, _ = self.stack(x, None, target_segments, memory=memory, memory_mask=mask, train=train)
        return self.embedding.logits(x)

    def encode(self, source: Array, segments: Array | None = None, *, train: bool = False) -> Array:
        """Encode the source, (B, S) to (B, S, width)."""
        x = self._embedded(source, segments, train)
        return self.encoder(x, None, segments, train=train)[0]

    def _embedded(self, tokens: Array, segments: Array | None, train: bool) -> Array:
        # not needed by the stack, which uses distances: these are the same along a row
        positions = None if segments is None else document_positions(segments)
        return self.embedding(tokens, positions, train=train)

    def begin(
        self, source: Array, segments: Array | None, tokens: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """Encode the source (B, S), then decode as `Transformer.advance` does."""
        memory = self.encode(source, segments)
        mask = None if segments is None else (segments > 0)[:, None, None]
        return _advance(self, tokens, cache._replace(memory_mask=mask), memory)

    def advance(self, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        """Decode as `Transformer.advance` does, with a cache that `begin` returned."""
        return _advance(self, tokens, cache)
