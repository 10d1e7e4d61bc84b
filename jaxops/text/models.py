"""Flax modules that read texts: classifiers, sentence encoders, and a reader of answer spans.

All take tokens (B, T) int32 in which 0 is padding; padding never changes an output.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.data.tokenizer import PAD, UNKNOWN
from jaxops.nn import Dense, Embed, Transformer, TransformerConfig, Units
from jaxops.nn.packed import is_packed, unpacked
from jaxops.nn.recurrence import recurrence
from jaxops.task import recorded

Array = jax.Array
POOLING = ("last", "mean", "max")
PART = 64  # number of n-grams of each text that a linear model adds up at once


class TextCNN(nn.Module):
    """Convolutions over tokens, max pooling of each filter, and a dense layer.

    A filter of width k sees every run of k tokens; a shorter text is extended with zeros. No run
    contains padding.

    Attributes:
        vocabulary: number of tokens.
        classes: number of logits.
        width: size of a token's embedding.
        widths: widths of the filters, in tokens.
        filters: number of filters of each width.
        dropout: probability of dropping a pooled value in training.
        word_dropout: probability of dropping a token in training.
        compute: dtype of matrix products, see `jaxops.nn.matmul`.

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
        pooled = []
        for k in self.widths:
            padded = jnp.pad(x, ((0, 0), (0, k - 1), (0, 0)))
            runs = jnp.concatenate([padded[:, i : i + count] for i in range(k)], -1)
            # a dense product, because the gradient of a convolution in a loop is slow on a CPU
            y = nn.relu(Dense(self.filters, compute=self.compute, name=f"conv_{k}")(runs))
            last = jnp.maximum(lengths - k, 0)  # where the last run begins
            inside = jnp.arange(count)[None] <= last
            pooled.append(jnp.where(inside[..., None], y, 0).max(1))  # 0 is the smallest relu value
        x = jnp.concatenate(pooled, -1)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return Dense(self.classes, compute=self.compute, name="logits")(x)

    def units(self) -> list[Units]:
        """The filters: filter n of all widths is one unit, since they have one number."""
        return [Units("channels", self.filters, r"^conv_\d+/", "^logits/kernel$", _with_filters)]


def _with_filters(module: TextCNN, count: int) -> TextCNN:
    return module.clone(filters=count)


class NGramBag(nn.Module):
    """A weighted sum of n-gram embeddings, and a dense layer, as in fastText.

    For the n-grams i of a text, `x = Σ g_i E_i / sqrt(Σ g_i²)`. The weights g = exp(gate) are
    learned; they correspond to the tf-idf weights of a linear model. For orthogonal embeddings of
    unit length, x has unit length. Embeddings start at zero, so n-grams that do not occur in
    training have no influence.

    Attributes:
        vocabulary: number of n-gram ids, see `text.NGrams`.
        classes: number of logits.
        width: size of an embedding.
        dropout: probability of dropping an n-gram in training.
        hidden_dropout: probability of dropping a value of x in training.

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
        x = jnp.einsum("bl,bld->bd", weight * norm, self.vectors(tokens, table))
        x = nn.Dropout(self.hidden_dropout, deterministic=not train, name="hidden_dropout")(x)
        return Dense(self.classes, name="logits")(x)

    def vectors(self, tokens: Array, table: Array) -> Array:
        """The embeddings (B, L, width) of n-grams (B, L); a call that explanations look into."""
        return table[tokens]


class LinearBag(nn.Module):
    """A linear model of the tf-idf weights of n-grams.

    For the n-grams i of a text, `logits = Σ w_i K_i + b` with `w_i = idf_i / sqrt(Σ idf²)`. The
    last sum is over the n-grams of the same kind as i, words or characters (see `text.NGrams`). The
    weights idf are ones at the start and are not trained by gradient; `text.fit` computes them, and
    fits kernel K and bias b as a linear SVM.

    Attributes:
        vocabulary: number of n-gram ids, see `text.NGrams`.
        classes: number of logits.

    >>> model = LinearBag(vocabulary=1000, classes=3)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
    >>> shapes["params"]["kernel"].shape
    (1000, 3)
    """

    vocabulary: int
    classes: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Logits (B, classes)."""
        idf = self.param("idf", nn.initializers.ones, (self.vocabulary,))
        kernel: Any = self.param("kernel", nn.initializers.zeros, (self.vocabulary, self.classes))
        stored: Any = self.get_variable("params", "kernel")
        # of a packed kernel only the rows that are read become float
        kernel = stored if is_packed(stored) else kernel
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))

        def add(total: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
            rows = unpacked(kernel[part[1]])
            return total + jnp.einsum("bl,blc->bc", part[0], rows), None

        # part by part, because an array (B, T, classes) would need too much memory
        room = ((0, 0), (0, -tokens.shape[1] % PART))
        both = self.weights(tokens, jax.lax.stop_gradient(idf)), tokens
        parts = [jnp.moveaxis(jnp.pad(x, room).reshape(len(x), -1, PART), 1, 0) for x in both]
        zeros = jnp.zeros((len(tokens), self.classes))
        return jax.lax.scan(add, zeros, tuple(parts))[0] + bias[None]

    def weights(self, tokens: Array, idf: Array) -> Array:
        """The weights (B, L) of n-grams (B, L); a call that explanations look into."""
        weight = jnp.where(tokens != PAD, idf[tokens], 0)
        words, square = tokens < self.vocabulary // 2, jnp.square(weight)
        of_words = jnp.where(words, square, 0).sum(1, keepdims=True)
        of_characters = jnp.where(words, 0, square).sum(1, keepdims=True)
        return weight * jax.lax.rsqrt(jnp.where(words, of_words, of_characters) + 1e-9)


class BagAndCNN(nn.Module):
    """An `NGramBag` and a `TextCNN`, trained together; a task averages their probabilities.

    With `linear` above 0, a `LinearBag` is a third member, with this weight.

    Attributes:
        vocabulary: number of n-gram ids, see `text.NGrams`.
        classes: number of logits.
        words: number of tokens at the start of a row, see `text.WordsAndNGrams`.
        word_vocabulary: number of tokens.
        width: size of a token's embedding, in the CNN.
        filters: number of filters of each width, in the CNN.
        dropout: probability of dropping an n-gram, a token, or a value of the bag in training. The
            CNN's pooled values are dropped with probability 0.5, see `TextCNN`.
        linear: the weight of the linear model; each of the two networks has weight 1.

    >>> model = BagAndCNN(vocabulary=1000, classes=3, words=4, word_vocabulary=50)
    >>> tokens = jnp.ones((1, 12), jnp.int32)
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)[0].shape
    (1, 2, 3)
    """

    vocabulary: int
    classes: int
    words: int
    word_vocabulary: int
    width: int = 128
    filters: int = 128
    dropout: float = 0.1
    linear: int = 0

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Logits (B, 2 + linear, classes)."""
        bag = NGramBag(
            self.vocabulary,
            self.classes,
            dropout=self.dropout,
            hidden_dropout=self.dropout,
            name="bag",
        )
        cnn = TextCNN(
            self.word_vocabulary,
            self.classes,
            self.width,
            (1, 2, 3),
            self.filters,
            word_dropout=self.dropout,
            name="cnn",
        )
        words, grams = tokens[:, : self.words], tokens[:, self.words :]
        members = [bag(grams, train=train), cnn(words, train=train)]
        if self.linear:
            one = LinearBag(self.vocabulary, self.classes, name="linear")(grams)
            members += [one] * self.linear
        return jnp.stack(members, 1)


class TransformerClassifier(nn.Module):
    """A transformer encoder, pooling over its outputs, and a dense layer.

    Attributes:
        config: the configuration of the encoder; with `causal=False` a token sees later tokens too.
        classes: number of logits.
        pooling: "mean" over all tokens, or "first" for the output of the first token.
        dropout: probability of dropping a pooled value in training.
        word_dropout: probability of replacing a token by the unknown token in training.

    >>> config = TransformerConfig(50, context=8, depth=1, heads=2, width=16, causal=False)
    >>> model = TransformerClassifier(config, classes=3)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))
    >>> sorted(shapes["params"])
    ['encoder', 'logits']
    """

    config: TransformerConfig
    classes: int
    pooling: str = "mean"
    dropout: float = 0.0
    word_dropout: float = 0.0

    def setup(self) -> None:
        """Make the encoder, the dropout and the last layer."""
        if self.pooling not in ("mean", "first"):
            raise ValueError(f"pooling must be 'mean' or 'first', got {self.pooling!r}")
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
            drop = jax.random.bernoulli(self.make_rng("dropout"), self.word_dropout, tokens.shape)
            tokens = jnp.where(drop & real, UNKNOWN, tokens)
        x = self.encoder.hidden(tokens, real.astype(jnp.int32), train=train)
        if self.pooling == "mean":
            weight = real / jnp.maximum(real.sum(1, keepdims=True), 1)
            x = jnp.einsum("bl,bld->bd", weight.astype(x.dtype), x)
        else:
            x = x[:, 0]
        return self.logits(self.drop(x, deterministic=not train))


@recorded(formerly={"layers": "depth"})
class Recurrent(nn.Module):
    """Embedding, LSTM or GRU layers, pooling over their outputs, and a dense layer.

    Dropout is variational: all tokens of a text have the same mask. `jaxops.monte_carlo` gives
    predictions with their standard deviation over such masks.

    Attributes:
        vocabulary: number of tokens.
        classes: number of logits.
        width: size of the embeddings, and of the states in each direction.
        depth: number of recurrent layers.
        cell: "lstm" or "gru".
        bidirectional: whether a second recurrent layer reads from the end.
        pooling: "last" state of each direction, or "mean" or "max" over the tokens.
        dropout: probability of dropping a feature of a layer's input, the dense layer included.
        recurrent_dropout: probability of dropping a feature of a state that enters the gates.
        word_dropout: probability of dropping a token of the vocabulary from a text.
        compute: dtype of matrix products, see `jaxops.nn.matmul`.

    References:
        Gal and Ghahramani 2016, arXiv:1512.05287.

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
            ValueError: in tracing, for an unknown `cell` or `pooling`.
        """
        if self.pooling not in POOLING:
            raise ValueError(f"pooling must be one of {POOLING}, got {self.pooling!r}")
        real = tokens != PAD
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
            top = jax.tree.leaves(state)[0][-1 - self.bidirectional :]  # (B, width) per direction
            x = jnp.concatenate(list(top), -1)
        elif self.pooling == "mean":
            x = outputs.sum(1) / jnp.maximum(real.sum(1, keepdims=True), 1)
        else:  # -1 is below all states; a row of padding gets 0
            x = jnp.where(real[..., None], outputs, -1).max(1)
            x = jnp.where(real.any(1, keepdims=True), x, 0)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return Dense(self.classes, compute=self.compute, name="logits")(x)


class BagEncoder(nn.Module):
    """A sentence encoder: a weighted sum of the embeddings of n-grams or words.

    For ids i of a text, `Σ g_i E_i / sqrt(Σ g_i²)` with learned weights g = exp(gate); the result
    has unit length if the embeddings are orthogonal and of unit length. Embeddings start at random
    and are therefore nearly orthogonal, so texts that share words have similar vectors from the
    start. (With zeros, as in `NGramBag`, all texts would stay equally similar.)

    Attributes:
        vocabulary: number of n-gram ids or tokens; 0 is padding.
        features: D, the size of a vector.
        dropout: probability of dropping an n-gram in training.

    >>> encoder = BagEncoder(vocabulary=10, features=64)
    >>> encoder.init_with_output(jax.random.key(0), jnp.array([[4, 7, 0]]))[0].shape
    (1, 64)
    """

    vocabulary: int
    features: int = 128
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Vectors (B, D) of tokens (B, T)."""
        start = nn.initializers.normal(self.features**-0.5)
        table = self.param("embedding", start, (self.vocabulary, self.features))
        gate = self.param("gate", nn.initializers.zeros, (self.vocabulary,))
        weight = jnp.where(tokens != PAD, jnp.exp(gate[tokens]), 0)
        weight = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(weight)
        norm = jax.lax.rsqrt(jnp.square(weight).sum(1, keepdims=True) + 1e-9)
        return jnp.einsum("bl,bld->bd", weight * norm, table[tokens])


class SpanReader(nn.Module):
    """A transformer encoder with a logit of answer start and answer end for each token.

    An answer can only start and end at tokens of the passage, or at the first token, which stands
    for "no answer"; all other tokens have the logit -1e9.

    Attributes:
        config: the configuration of the encoder, with `causal=False` and `segment_types=2`.

    References:
        Devlin et al. 2019, arXiv:1810.04805, section 4.2.

    >>> config = TransformerConfig(
    ...     50, context=8, depth=1, heads=2, width=16, causal=False, segment_types=2)
    >>> rows = jnp.ones((1, 8), jnp.int32)
    >>> jax.eval_shape(SpanReader(config).init_with_output, jax.random.key(0), rows, rows)[0].shape
    (1, 8, 2)
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Make the encoder and its head."""
        config = self.config
        if config.causal or config.segment_types != 2:
            raise ValueError(
                "config must have causal=False and segment_types=2 (question and passage), got "
                f"causal={config.causal} and segment_types={config.segment_types}"
            )
        self.encoder = Transformer(config)
        self.head = Dense(2)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.config.vocabulary

    def __call__(self, tokens: Array, types: Array, *, train: bool = False) -> Array:
        """Logits (B, T, 2) of start and end from tokens (B, T) and types (B, T), 1 in the passage.

        Raises:
            ValueError: in tracing, for a causal encoder or one without two segment types.
        """
        segments = (tokens != PAD).astype(jnp.int32)
        x = self.encoder.hidden(tokens, segments, None, types, train=train)
        possible = (types == 1).at[:, 0].set(True)
        return jnp.where(possible[..., None], self.head(x), -1e9)
