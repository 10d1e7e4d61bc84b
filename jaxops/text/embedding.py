"""Sentence embeddings: vectors of texts that are near where the texts mean the same."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops import metrics
from jaxops.data.tokenizer import PAD
from jaxops.task import Array, Batch, Column, Key, Task, recorded, row_weights, supervised


class BagEncoder(nn.Module):
    """A weighted sum of n-grams' or words' embeddings, of unit length for orthogonal ones.

    Of ids i: `Σ g_i E_i / sqrt(Σ g_i²)`, the weights g = exp(gate) learned. Embeddings begin at
    random, which are nearly orthogonal: so texts that share words are near from the start.
    (`NGramBag` begins at zero, where all texts are equally near for good.)

    Attributes:
        vocabulary: numbers of n-grams or tokens; 0 is padding.
        features: D.
        dropout: probability of dropping an n-gram while training.

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


class Pair(nn.Module):
    """Texts to vectors of length 1, by one encoder for the several texts of a row.

    Attributes:
        encoder: tokens (B, T) int32 to (B, D); may take `train`.
    """

    encoder: Any

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """(B, V, T) int32, V texts a row, to (B, V, D) float32."""
        rows, views, length = tokens.shape
        takes = inspect.signature(type(self.encoder).__call__).parameters
        known = {"train": train} if "train" in takes else {}
        # the texts of a row stay together, and so on the row's device
        x = self.encoder(tokens.reshape(rows * views, length), **known).astype(jnp.float32)
        x *= jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
        return x.reshape(rows, views, -1)


def info_nce(
    anchors: Array,
    positives: Array,
    weights: Array,
    temperature: float,
    label: Array | None = None,
) -> tuple[Array, Array]:
    """The contrastive loss of each row, and whether its nearest positive is one of its own.

    With s_ij = anchor_i . positive_j / temperature, the loss of row i is -log softmax_j(s_i)[i]:
    the positives of the other rows are its negatives (InfoNCE, van den Oord et al. 2018,
    arXiv:1807.03748). With labels the rows of the same label are positives too, and the loss is
    the mean of -log softmax_j(s_i)[p] over these (Khosla et al. 2020, arXiv:2004.11362, L_out).

    Args:
        anchors: (B, D).
        positives: (B, D).
        weights: (B,); a row of weight 0 is nobody's negative.
        temperature: above 0.
        label: (B,) int; by default all rows differ.

    Returns:
        losses (B,), and hits (B,) bool.
    """
    real = (weights > 0)[None]
    scores = jnp.matmul(anchors, positives.T, precision="highest") / temperature
    # finite, so that a row without any positive, in a batch of padding, has no NaN as gradient
    scores = jnp.where(real, scores, -1e9)
    own = jnp.eye(len(anchors), dtype=bool) if label is None else label[:, None] == label[None]
    own &= real
    log_p = jax.nn.log_softmax(scores)
    losses = -jnp.where(own, log_p, 0.0).sum(-1) / jnp.maximum(own.sum(-1), 1)
    nearest = scores.argmax(-1)[:, None]
    return losses, jnp.take_along_axis(own, nearest, axis=1)[:, 0]


@recorded
def contrastive(model: Any, length: int, temperature: float = 0.05, labelled: bool = False) -> Task:
    """Learn vectors of texts from pairs that belong together; the batch's others are negatives.

    A batch holds `tokens` and `positive`, integers (B, length), 0 for padding: two texts that mean
    the same, a question and its answer, or twice the same text, which dropout makes two of (Gao et
    al. 2021, arXiv:2104.08821). Where several rows of a batch may mean the same, `labelled` takes
    `label` (B,), integers, and holds rows of one label for positives; see `info_nce`, and
    `partners` for making pairs of labels. The loss couples the rows of a batch: more rows are more
    negatives, and `accumulate` is refused.

    Args:
        model: a Flax module, tokens (B, length) to vectors (B, D), which the task makes of length
            1: `BagEncoder`, or `TextCNN` and `TransformerClassifier` with D classes.
        length: of a row.
        temperature: what the products of vectors are divided by; a small one looks at the
            nearest negatives alone.
        labelled: see above.

    Returns:
        A task that predicts the vectors (B, D) of `tokens`, of length 1, with the metrics loss and
        accuracy: how often the nearest positive of the batch is one's own, or of one's label.

    Raises:
        ValueError: a temperature that is not positive.

    >>> contrastive(BagEncoder(vocabulary=100), length=16).coupled
    True
    """
    if temperature <= 0:
        raise ValueError(f"temperature: {temperature} found, above 0 wanted")

    def inputs(batch: Batch, key: Key | None) -> Array:
        return jnp.stack([batch[n] for n in ("tokens", "positive") if n in batch], axis=1)

    def both(vectors: Array, batch: Batch) -> tuple[Array, Array]:
        label = batch["label"] if labelled else None
        return info_nce(vectors[:, 0], vectors[:, 1], row_weights(batch), temperature, label)

    text = ((length,), "int", getattr(model, "vocabulary", None))
    label = Column("label", (), "int", target=True)
    return supervised(
        Pair(model),
        inputs,
        lambda vectors, batch, train: both(vectors, batch)[0],
        lambda vectors, batch, w: {"accuracy": metrics.mean(both(vectors, batch)[1], w)},
        lambda vectors: vectors[:, 0],
        (
            Column("tokens", *text),
            Column("positive", *text, target=True),
            *((label,) if labelled else ()),
        ),
        coupled=True,
    )


def partners(label: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to pair: for each row `count` others of its label, each drawn at random.

    Args:
        label: (N,) int.
        count: pairs for each row.
        seed: of the draws.

    Returns:
        anchors and positives, int (M,): M is `count` times the rows whose label has others.

    Raises:
        ValueError: no two rows of one label.

    >>> anchors, positives = partners(np.array([0, 1, 0]), count=1, seed=0)
    >>> anchors.tolist(), positives.tolist()
    ([0, 2], [2, 0])
    """
    label = np.asarray(label)
    order = np.argsort(label, kind="stable")
    _, start, size = np.unique(label[order], return_index=True, return_counts=True)
    group = np.repeat(np.arange(len(start)), size)
    place = np.arange(len(label)) - start[group]
    kept = size[group] > 1
    if not kept.any():
        raise ValueError(
            f"label: {len(start)} values in {len(label)} rows found, two rows of one label wanted"
        )
    group, place, anchors = (np.tile(x[kept], count) for x in (group, place, order))
    step = np.random.default_rng(seed).integers(1, size[group])  # on from its own place, around
    positives = order[start[group] + (place + step) % size[group]]
    back = np.argsort(anchors, kind="stable")
    return anchors[back], positives[back]
