"""Flax modules: known transformers with their published parameter counts, and a recurrent one."""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax

from jaxops.nn import Dense, Embed, EncoderDecoder, Transformer, TransformerConfig
from jaxops.nn.recurrence import State, recurrence
from jaxops.task import recorded

Array = jax.Array

GPT2 = TransformerConfig(
    vocabulary=50_257, context=1024, depth=12, heads=12, width=768, dropout=0.1
)
NANOGPT = TransformerConfig(
    vocabulary=65,
    context=256,
    depth=6,
    heads=6,
    width=384,
    activation="gelu_exact",
    bias=False,
    dropout=0.2,
)
BERT_BASE = TransformerConfig(
    vocabulary=30_522,
    context=512,
    depth=12,
    heads=12,
    width=768,
    causal=False,
    post_norm=True,
    activation="gelu_exact",
    dropout=0.1,
    epsilon=1e-12,
    embedding_norm=True,
    segment_types=2,
    masked_head=True,
)
T5_SMALL = TransformerConfig(
    vocabulary=32_128,
    context=512,
    depth=6,
    heads=8,
    width=512,
    head_width=64,
    position="relative",
    norm="rms",
    activation="relu",
    bias=False,
    dropout=0.1,
    epsilon=1e-6,
    attention_scale=1.0,
    logit_scale=512**-0.5,
)
TINY_LLAMA = TransformerConfig(
    vocabulary=32_000,
    context=2048,
    depth=22,
    heads=32,
    width=2048,
    hidden=5632,
    kv_heads=4,
    position="rotary",
    norm="rms",
    activation="swiglu",
    bias=False,
    tied=False,
    scan=True,
)


def gpt2(**changes: Any) -> Transformer:
    """GPT-2 small: 124,439,808 parameters (Radford et al. 2019).

    Args:
        changes: fields of `TransformerConfig` to replace; `depth=24, heads=16, width=1024` is GPT-2
            medium.

    >>> gpt2(context=128).config.context
    128
    """
    return Transformer(replace(GPT2, **changes))


def nanogpt(**changes: Any) -> Transformer:
    """nanoGPT's character model, in its setting for a GPU: 10,745,088 parameters.

    Its setting for a CPU is `nanogpt(context=64, depth=4, heads=4, width=128, dropout=0.0)`. The
    published count, 10.65M, is without the positions.

    Args:
        changes: fields of `TransformerConfig` to replace.

    References:
        A. Karpathy, nanoGPT, config/train_shakespeare_char.py.

    >>> nanogpt().config.width
    384
    """
    return Transformer(replace(NANOGPT, **changes))


def bert_base(**changes: Any) -> Transformer:
    """BERT base, uncased, with the head for masked tokens: 109,514,298 parameters.

    The published count, 110M, is with a pooler instead of the head.

    Args:
        changes: fields of `TransformerConfig` to replace.

    References:
        Devlin et al. 2018, arXiv:1810.04805.

    >>> bert_base(masked_head=False).config.causal
    False
    """
    return Transformer(replace(BERT_BASE, **changes))


def t5_small(**changes: Any) -> EncoderDecoder:
    """T5 small: 60,506,624 parameters (Raffel et al. 2020, arXiv:1910.10683).

    Args:
        changes: fields of `TransformerConfig` to replace; with another width set
            `logit_scale=width**-0.5`.

    >>> t5_small().config.position
    'relative'
    """
    return EncoderDecoder(replace(T5_SMALL, **changes))


def llama_style(**changes: Any) -> Transformer:
    """A transformer in Llama's style, by default of TinyLlama's size: 1,100,048,384 parameters.

    Rotary positions, RMSNorm, SwiGLU, no biases, grouped heads, untied embeddings, a scan.
    Llama 2 7B, with 6,738,415,616 parameters, is `llama_style(context=4096, depth=32, kv_heads=32,
    width=4096, hidden=11_008)`.

    Args:
        changes: fields of `TransformerConfig` to replace.

    References:
        Zhang et al. 2024, arXiv:2401.02385 (TinyLlama); Touvron et al. 2023, arXiv:2307.09288.

    >>> llama_style(depth=2).config.kv_heads
    4
    """
    return Transformer(replace(TINY_LLAMA, **changes))


@recorded(formerly={"layers": "depth"})
class Recurrent(nn.Module):
    """A recurrent language model: embedding, LSTM or GRU, and logits of each next token.

    Dropout is variational: each kind of dropout has one mask for all steps of a row.

    Attributes:
        vocabulary: number of tokens.
        width: size of embeddings and states.
        depth: number of recurrent layers.
        cell: "lstm" or "gru".
        tied: whether the logits use the table of embeddings.
        dropout: probability of dropping a feature of a layer's input, also that of the logits.
        recurrent_dropout: probability of dropping a feature of a state that enters the gates.
        word_dropout: probability of dropping a token of the vocabulary from a row.
        compute: dtype of matrix products, see `jaxops.nn.matmul`.

    References:
        Gal and Ghahramani 2016, arXiv:1512.05287 (dropout); Press and Wolf 2017, arXiv:1608.05859
        (tied embeddings).

    >>> import jax.numpy as jnp
    >>> module, tokens = Recurrent(vocabulary=65, width=16), jnp.zeros((2, 8), jnp.int32)
    >>> logits, params = module.init_with_output(jax.random.key(0), tokens)
    >>> logits.shape, sorted(params["params"])
    ((2, 8, 65), ['embedding', 'recurrence'])
    """

    vocabulary: int
    width: int = 256
    depth: int = 1
    cell: str = "lstm"
    tied: bool = True
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    word_dropout: float = 0.0
    compute: str | None = None

    def setup(self) -> None:
        """Make the layers."""
        self.embedding = Embed(self.vocabulary, self.width, self.word_dropout, self.compute)
        self.recurrence = recurrence(self.cell)(
            self.width,
            self.depth,
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
            compute=self.compute,
        )
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(1,))
        if not self.tied:
            self.head = Dense(self.vocabulary, compute=self.compute)

    def __call__(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Logits of the token that follows each token.

        Args:
            tokens: int (B, T).
            segments: int (B, T); each segment is read on its own, 0 is padding. By default a row is
                one segment.
            positions: ignored; accepted because transformers take them.
            train: whether dropout is on.

        Returns:
            (B, T, vocabulary).
        """
        return self._read(tokens, segments, None, train)[0]

    def advance(self, tokens: Array, state: State | None = None) -> tuple[Array, State]:
        """Logits (B, T, vocabulary) of tokens that continue `state`, and the new state.

        The state is that of `jaxops.nn.LSTM` or `GRU`. At the beginning of a text it is `None`.
        """
        return self._read(tokens, None, state, False)

    def _read(
        self, tokens: Array, segments: Array | None, state: State | None, train: bool
    ) -> tuple[Array, State]:
        x = self.embedding(tokens, train=train)
        x, state = self.recurrence(x, segments, state, train=train)
        x = self.drop(x, deterministic=not train)
        return self.embedding.attend(x) if self.tied else self.head(x), state
