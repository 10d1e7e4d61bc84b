"""FT-Transformer: a transformer whose tokens are the columns of a table."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn import Dense, dot_product_attention
from jaxops.tabular.models.embeddings import Categories, Reads, along, uniform, uniform_within

Array = jax.Array


class FTTransformer(nn.Module):
    """FT-Transformer: each feature is a token, and a transformer attends over a row's tokens.

    A number (or an indicator) x becomes the token w x + b, a text the sum of its embedding and b,
    with w and b of the column. A further token, whose last state gives the outputs, is put before
    them. A block is x + attention(norm(x)), then x + feed_forward(norm(x)) with ReGLU; the first
    block's attention has no norm, and in the last block the output token alone is computed.

    Attention weights are not dropped, as they are in the paper; in their place
    `attention_dropout` drops units of the attention's output.

    Attributes:
        width: of a token.
        depth: number of blocks.
        heads: attention heads.
        outputs: number of outputs.
        hidden: units of the feed-forward network; 4/3 of the width by default.
        attention_dropout: probability of dropping a unit of the attention's output in training.
        dropout: probability of dropping a hidden unit of the feed-forward network in training.
        compute: of the products, see `jaxops.nn.matmul`.
        categories: how many values each of the last features may have, which are texts by their
            number; `tabular.fit` sets it.
        reads: how it wants a table.

    References:
        Gorishniy et al. 2021, arXiv:2106.11959.

    >>> module = FTTransformer(width=8, depth=1, heads=2, categories=(3,))
    >>> outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.ones((2, 5)))
    >>> outputs.shape
    (2, 1)
    """

    width: int = 192
    depth: int = 3
    heads: int = 8
    outputs: int = 1
    hidden: int | None = None
    attention_dropout: float = 0.2
    dropout: float = 0.1
    compute: str | None = None
    categories: tuple[int, ...] = ()
    reads: Reads = Reads("quantile", codes=0)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Outputs (B, outputs) of features (B, d)."""
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of {self.heads} (heads), got {self.width}")
        x = self._tokens(x)
        for i in range(self.depth):
            query = x if i < self.depth - 1 else x[:, :1]
            y = self._attention(query, x, i)
            x = query + nn.Dropout(self.attention_dropout, deterministic=not train)(y)
            x = x + self._feed_forward(x, i, train)
        x = nn.relu(nn.LayerNorm(epsilon=1e-5, name="norm")(x[:, 0]))
        return self._dense(self.outputs, "logits")(x)

    def _dense(self, width: int, name: str) -> Dense:
        return Dense(width, compute=self.compute, kernel_init=uniform, name=name)

    def _tokens(self, x: Array) -> Array:
        """The tokens of features (B, d): (B, 1 + d, width)."""
        texts = len(self.categories)
        plain = x.shape[-1] - texts
        within = uniform_within(self.width**-0.5)
        first = self.param("first", within, (1, self.width))
        parts = [jnp.broadcast_to(first[None], (len(x), 1, self.width))]
        if plain:
            weight = self.param("weight", within, (plain, self.width))
            parts.append(x[:, :plain, None] * along(weight, 3))
        if texts:
            embed = Categories(self.categories, self.width, within, name="texts")
            parts.append(embed(x[:, plain:].astype(jnp.int32)))
        bias = self.param("bias", within, (x.shape[-1], self.width))
        tokens = jnp.concatenate(parts, 1)
        return tokens + along(jnp.pad(bias, ((1, 0), (0, 0))), 3)

    def _attention(self, query: Array, x: Array, i: int) -> Array:
        """Attention of some tokens over all, in block i."""
        if i:
            norm = nn.LayerNorm(epsilon=1e-5, name=f"block_{i}_attention_norm")
            x = norm(x)
            query = x[:, : query.shape[1]]
        heads = functools.partial(_heads, count=self.heads)
        q, k, v = (
            heads(self._dense(self.width, f"block_{i}_{name}")(tokens))
            for name, tokens in (("query", query), ("key", x), ("value", x))
        )
        y = dot_product_attention(q, k, v).reshape(*query.shape)
        return self._dense(self.width, f"block_{i}_attention_out")(y)

    def _feed_forward(self, x: Array, i: int, train: bool) -> Array:
        """Dense, ReGLU and dense, of a norm of the tokens, in block i."""
        hidden = self.hidden or int(self.width * 4 / 3)
        x = nn.LayerNorm(epsilon=1e-5, name=f"block_{i}_norm")(x)
        value, gate = jnp.split(self._dense(2 * hidden, f"block_{i}_hidden")(x), 2, axis=-1)
        y = nn.Dropout(self.dropout, deterministic=not train)(value * nn.relu(gate))
        return self._dense(self.width, f"block_{i}_out")(y)


def _heads(x: Array, count: int) -> Array:
    """(B, T, D) to (B, T, N, H)."""
    return x.reshape(*x.shape[:2], count, -1)
