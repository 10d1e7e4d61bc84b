"""A language model by recurrence."""

import flax.linen as nn
import jax

from jaxops.nn import Dense, Embed
from jaxops.nn.recurrence import State, recurrence

Array = jax.Array


class Recurrent(nn.Module):
    """Embedding, LSTM or GRU, and logits of each next token, with variational dropout.

    Each kind of dropout has one mask for a row and all of its steps (Gal and Ghahramani 2016,
    arXiv:1512.05287).

    Attributes:
        vocabulary: how many tokens there are.
        width: of embeddings and states.
        layers: of the recurrence.
        cell: "lstm" or "gru".
        tied: the logits are by the embeddings' table (Press and Wolf 2017, arXiv:1608.05859).
        dropout: probability of dropping a feature of what goes into a layer, the logits' too.
        recurrent_dropout: the same of a hidden state on its way into the gates.
        word_dropout: probability of dropping a word of the vocabulary from a row.
        compute: of the products, see `jaxops.nn.matmul`.

    >>> import jax.numpy as jnp
    >>> model, tokens = Recurrent(vocabulary=65, width=16), jnp.zeros((2, 8), jnp.int32)
    >>> logits, params = model.init_with_output(jax.random.key(0), tokens)
    >>> logits.shape, sorted(params["params"])
    ((2, 8, 65), ['embedding', 'recurrence'])
    """

    vocabulary: int
    width: int = 256
    layers: int = 1
    cell: str = "lstm"
    tied: bool = True
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    word_dropout: float = 0.0
    compute: str | None = None

    def setup(self) -> None:
        """The layers."""
        self.embedding = Embed(self.vocabulary, self.width, self.word_dropout, self.compute)
        self.recurrence = recurrence(self.cell)(
            self.width,
            self.layers,
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
        """Logits of what comes after each token.

        Args:
            tokens: int (B, T).
            segments: int (B, T): each segment is read on its own, 0 is padding; one by default.
            positions: as transformers take them, and not needed here.
            train: drop.

        Returns:
            (B, T, vocabulary).
        """
        return self._read(tokens, segments, None, train)[0]

    def advance(self, tokens: Array, state: State | None = None) -> tuple[Array, State]:
        """Logits (B, T, vocabulary) of tokens that follow those of `state`, and the state after.

        The state is that of `jaxops.nn.LSTM` or `GRU`; a text begins with `None`.
        """
        return self._read(tokens, None, state, False)

    def _read(
        self, tokens: Array, segments: Array | None, state: State | None, train: bool
    ) -> tuple[Array, State]:
        x = self.embedding(tokens, train=train)
        x, state = self.recurrence(x, segments, state, train=train)
        x = self.drop(x, deterministic=not train)
        return self.embedding.attend(x) if self.tied else self.head(x), state
