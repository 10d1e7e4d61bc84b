"""Recurrent networks that see texts, (B, length) tokens where 0 is padding, to (B, classes)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn import Dense, Embed
from jaxops.nn.recurrence import recurrence

Array = jax.Array
POOLING = ("last", "mean", "max")


class Recurrent(nn.Module):
    """Embedding, LSTM or GRU, what they say of the whole text, and one dense layer.

    Dropout is variational, one mask for a text and all of its tokens (Gal and Ghahramani 2016,
    arXiv:1512.05287); `jaxops.monte_carlo` gives predictions with their spread.

    Attributes:
        vocabulary: number of tokens.
        classes: number of logits.
        width: of the embeddings, and of the states in each direction.
        layers: of the recurrence.
        cell: "lstm" or "gru".
        bidirectional: read from the end as well.
        pooling: "last" state in each direction, or "mean" or "max" over the tokens.
        dropout: probability of dropping a feature of what goes into a layer, the logits' too.
        recurrent_dropout: the same of a hidden state on its way into the gates.
        word_dropout: probability of dropping a word of the vocabulary from a text.
        compute: of the products, see `jaxops.nn.matmul`.

    >>> model = Recurrent(vocabulary=50, classes=3)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
    >>> shapes["params"]["logits"]["kernel"].shape
    (256, 3)
    """

    vocabulary: int
    classes: int
    width: int = 128
    layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = True
    pooling: str = "max"
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    word_dropout: float = 0.0
    compute: str | None = None

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Logits (B, classes).

        Raises:
            ValueError: when it is traced, for another `cell` or `pooling`.
        """
        if self.pooling not in POOLING:
            raise ValueError(f"pooling: {self.pooling!r} found, one of {POOLING} wanted")
        real = tokens != 0
        embed = Embed(self.vocabulary, self.width, self.word_dropout, name="embedding")
        outputs, state = recurrence(self.cell)(
            self.width,
            self.layers,
            self.bidirectional,
            self.dropout,
            self.recurrent_dropout,
            self.compute,
            name="recurrence",
        )(embed(tokens, train=train), real, train=train)
        if self.pooling == "last":
            top = jax.tree.leaves(state)[0][-1 - self.bidirectional :]  # (B, width) of each side
            x = jnp.concatenate(list(top), -1)
        elif self.pooling == "mean":
            x = outputs.sum(1) / jnp.maximum(real.sum(1, keepdims=True), 1)
        else:  # states are above -1; a text of nothing but padding has 0
            x = jnp.where(real[..., None], outputs, -1).max(1)
            x = jnp.where(real.any(1, keepdims=True), x, 0)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return Dense(self.classes, compute=self.compute, name="logits")(x)
