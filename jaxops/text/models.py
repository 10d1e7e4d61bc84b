"""Networks that see texts, (B, length) int32 tokens where 0 is padding, to logits (B, classes)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.data.tokenizer import PAD, UNKNOWN
from jaxops.nn import Dense, Embed, Transformer, TransformerConfig
from jaxops.nn.recurrence import recurrence
from jaxops.task import recorded

Array = jax.Array
POOLING = ("last", "mean", "max")


class TextCNN(nn.Module):
    """Convolutions over words, the largest value of each filter, and one dense layer.

    A filter of width k sees every run of k tokens; of a text that is shorter, the text and zeros.
    Padding is in no run, so that it changes nothing.

    Attributes:
        vocabulary: number of tokens.
        classes: number of logits.
        width: of a token's embedding.
        widths: of the filters, in tokens.
        filters: of each width.
        dropout: probability of dropping a filter's value while training.
        word_dropout: probability of dropping a whole token while training.
        compute: of the products, see `jaxops.nn.matmul`.

    References:
        Kim 2014, arXiv:1408.5882.

    >>> model = TextCNN(vocabulary=50, classes=3)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
    >>> shapes["params"]["conv_3"]["kernel"].shape
    (384, 100)
    """

    vocabulary: int
    classes: int
    width: int = 128
    widths: tuple[int, ...] = (3, 4, 5)
    filters: int = 100
    dropout: float = 0.5
    word_dropout: float = 0.0
    compute: str | None = None

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Logits (B, classes)."""
        real = tokens != PAD
        start = nn.initializers.normal(self.width**-0.5)
        x = nn.Embed(self.vocabulary, self.width, embedding_init=start, name="tokens")(tokens)
        whole = nn.Dropout(self.word_dropout, broadcast_dims=(2,), deterministic=not train)
        x = whole(jnp.where(real[..., None], x, 0))
        count = tokens.shape[1]
        lengths = real.sum(1, keepdims=True)
        found = []
        for k in self.widths:
            padded = jnp.pad(x, ((0, 0), (0, k - 1), (0, 0)))
            runs = jnp.concatenate([padded[:, i : i + count] for i in range(k)], -1)
            # a product: inside a loop the gradient of a convolution is slow on a CPU
            y = nn.relu(Dense(self.filters, compute=self.compute, name=f"conv_{k}")(runs))
            last = jnp.maximum(lengths - k, 0)  # where the last run begins
            inside = jnp.arange(count)[None] <= last
            found.append(jnp.where(inside[..., None], y, 0).max(1))  # after relu 0 is the least
        x = jnp.concatenate(found, -1)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return Dense(self.classes, compute=self.compute, name="logits")(x)


class NGramBag(nn.Module):
    """A weighted sum of n-grams' embeddings, and one dense layer, as in fastText.

    With ids i of a text `x = Σ g_i E_i / sqrt(Σ g_i²)`: the weights g = exp(gate) are learned, as
    the tf-idf of a linear model is computed, and the sum is of unit length for orthogonal
    embeddings. Embeddings begin at zero, so an n-gram that was never seen says nothing.

    Attributes:
        vocabulary: numbers of n-grams, see `NGrams`.
        classes: number of logits.
        width: of an embedding.
        dropout: probability of dropping an n-gram while training.
        hidden_dropout: probability of dropping a value of x while training.

    References:
        Joulin et al. 2017, arXiv:1607.01759.

    >>> model = NGramBag(vocabulary=1000, classes=3)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
    >>> shapes["params"]["embedding"].shape
    (1000, 128)
    """

    vocabulary: int
    classes: int
    width: int = 128
    dropout: float = 0.0
    hidden_dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Logits (B, classes)."""
        table = self.param("embedding", nn.initializers.zeros, (self.vocabulary, self.width))
        gate = self.param("gate", nn.initializers.zeros, (self.vocabulary,))
        weight = jnp.where(tokens != PAD, jnp.exp(gate[tokens]), 0)
        weight = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(weight)
        norm = jax.lax.rsqrt(jnp.square(weight).sum(1, keepdims=True) + 1e-9)
        x = jnp.einsum("bl,bld->bd", weight * norm, table[tokens])
        x = nn.Dropout(self.hidden_dropout, deterministic=not train, name="hidden_dropout")(x)
        return Dense(self.classes, name="logits")(x)


class TransformerClassifier(nn.Module):
    """A transformer encoder, the mean of what it says of each token, and one dense layer.

    Attributes:
        config: of the encoder; `causal=False` lets tokens see what follows them.
        classes: number of logits.
        pooling: "mean" over the tokens, or "first" for the first alone.
        dropout: probability of dropping a value of the mean while training.
        word_dropout: probability of taking a token for an unknown one while training.
    """

    config: TransformerConfig
    classes: int
    pooling: str = "mean"
    dropout: float = 0.0
    word_dropout: float = 0.0

    def setup(self) -> None:
        """Encoder, dropout and the last layer."""
        if self.pooling not in ("mean", "first"):
            raise ValueError(f'pooling: {self.pooling!r} found, "mean" or "first" wanted')
        self.encoder = Transformer(self.config)
        self.drop = nn.Dropout(self.dropout)
        self.logits = Dense(self.classes)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.config.vocabulary

    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Logits (B, classes)."""
        real = tokens != PAD
        if train and self.word_dropout:
            gone = jax.random.bernoulli(self.make_rng("dropout"), self.word_dropout, tokens.shape)
            tokens = jnp.where(gone & real, UNKNOWN, tokens)
        x = self.encoder.hidden(tokens, real.astype(jnp.int32), train=train)
        if self.pooling == "mean":
            weight = real / jnp.maximum(real.sum(1, keepdims=True), 1)
            x = jnp.einsum("bl,bld->bd", weight.astype(x.dtype), x)
        else:
            x = x[:, 0]
        return self.logits(self.drop(x, deterministic=not train))


@recorded(formerly={"layers": "depth"})
class Recurrent(nn.Module):
    """Embedding, LSTM or GRU, what they say of the whole text, and one dense layer.

    Dropout is variational, one mask for a text and all of its tokens (Gal and Ghahramani 2016,
    arXiv:1512.05287); `jaxops.monte_carlo` gives predictions with their spread.

    Attributes:
        vocabulary: number of tokens.
        classes: number of logits.
        width: of the embeddings, and of the states in each direction.
        depth: of the recurrence.
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
    depth: int = 1
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
            self.depth,
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
