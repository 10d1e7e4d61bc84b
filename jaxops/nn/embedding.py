"""Vectors for tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn.product import _row_major, matmul

Array = jax.Array


class Embed(nn.Module):
    """A vector for each token, with dropout of whole words.

    A dropped word is zero wherever it stands in its row (Gal and Ghahramani 2016,
    arXiv:1512.05287): one mask over the vocabulary for each row.

    Attributes:
        vocabulary: how many tokens there are.
        features: of a vector; they begin normal with variance 1 / features.
        dropout: probability of dropping a word of a row while training.
        compute: of the products in `attend`, see `jaxops.nn.matmul`.

    >>> embed = Embed(10, 4)
    >>> vectors, params = embed.init_with_output(jax.random.key(0), jnp.ones((2, 3), jnp.int32))
    >>> vectors.shape, embed.apply(params, vectors, method="attend").shape
    ((2, 3, 4), (2, 3, 10))
    """

    vocabulary: int
    features: int
    dropout: float = 0.0
    compute: str | None = None

    def setup(self) -> None:
        """The table (vocabulary, features)."""
        init = nn.initializers.normal(self.features**-0.5)
        self.embedding = self.param("embedding", init, (self.vocabulary, self.features))
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Vectors (B, T, features) of tokens (B, T), integers in [0, vocabulary)."""
        vectors = self.embedding[tokens]
        if train and self.dropout:
            keep = self.drop(jnp.ones((len(tokens), self.vocabulary)), deterministic=False)
            vectors *= jnp.take_along_axis(keep, tokens, 1)[..., None]
        return vectors

    def attend(self, x: Array) -> Array:
        """Logits (B, T, vocabulary) of (B, T, features) by the same table: tied weights."""
        # laid out anew: the gradient of a bare transpose has a bfloat16 product that jax 0.10 lacks
        return matmul(x, _row_major(self.embedding.T), self.compute)
