"""Embeddings of tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn.product import _row_major, matmul

Array = jax.Array


class Embed(nn.Module):
    """A vector for each token, with dropout of whole words.

    A dropped word is zero at all of its places in a row: there is one mask over the vocabulary for
    each row. Vectors are initialised with normal values of variance 1 / features.

    Attributes:
        vocabulary: number of tokens.
        features: of a vector.
        dropout: probability of dropping a word of a row while training.
        compute: of the products in `attend`, see `jaxops.nn.matmul`.

    References:
        Gal and Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent
        Neural Networks", arXiv:1512.05287.

    >>> embed = Embed(10, 4)
    >>> params = embed.init(jax.random.key(0), jnp.ones((2, 3), jnp.int32))
    >>> vectors = embed.apply(params, jnp.ones((2, 3), jnp.int32))
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
        """Logits (B, T, vocabulary) of x (B, T, features) by the same table: tied weights."""
        # in row-major order: the gradient of a bare transpose has a product that jax 0.10 lacks
        return matmul(x, _row_major(self.embedding.T), self.compute)
