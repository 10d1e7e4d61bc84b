"""Tasks on texts: classes, sentence vectors, and the part of a passage that answers a question."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxops import metrics
from jaxops.data.checks import class_names
from jaxops.losses import over_members, smoothed_cross_entropy
from jaxops.task import Array, Batch, Column, Key, Task, recorded, row_weights, supervised


@recorded(formerly={"model": "module", "length": "context"})
def classifier(
    module: Any,
    context: int,
    classes: int | tuple[str, ...],
    many: bool = False,
    label_smoothing: float = 0.0,
) -> Task:
    """Classify texts: softmax cross-entropy, or a binary cross-entropy for each of `many` labels.

    A batch holds `tokens`, integers (B, context) in [0, module.vocabulary) where 0 is padding (see
    `text.Tokens` and `text.NGrams`), and `label`: integers (B,) in [0, classes), or with `many`
    (B, classes) of 0 and 1.

    A module with members, such as `BagAndCNN`, gives logits (B, members, classes). The loss is then
    the mean over the members, and the prediction is the mean of their probabilities.

    Args:
        module: a Flax module, tokens to logits (B, classes).
        context: number of tokens in a row.
        classes: number of classes, or their names in the order of the logits.
        many: whether a text may have several labels, or none.
        label_smoothing: share of each label that is spread evenly over all classes in training
            (with `many`, over yes and no). Evaluations use the plain loss.

    Returns:
        A task that predicts probabilities (B, classes), which sum to one unless `many` is set. Its
        metrics are loss and accuracy. A row counts as correct if its label is, or with `many` if
        all of its labels are (those with a probability above 0.5 are predicted).

    Raises:
        ValueError: the module has another number of classes, or the names are invalid or not
            distinct.

    >>> from jaxops import text
    >>> module = text.NGramBag(vocabulary=1000, classes=2)
    >>> text.classifier(module, context=64, classes=("lost", "found")).classes
    ('lost', 'found')
    """
    names = class_names(classes)
    if getattr(module, "classes", len(names)) != len(names):
        raise ValueError(
            f"classes must be {module.classes} (module.classes), got {len(names)}: {names}"
        )

    def one_label(logits: Array, batch: Batch, train: bool) -> Array:
        label = batch["label"] if logits.ndim == 2 else batch["label"][:, None]
        label = jnp.broadcast_to(label, logits.shape[:-1])
        entropy = smoothed_cross_entropy(logits, label, label_smoothing if train else 0.0)
        return over_members(entropy, rank=1)

    def many_labels(logits: Array, batch: Batch, train: bool) -> Array:
        target = batch["label"].astype(logits.dtype)
        target = target if logits.ndim == 2 else target[:, None]
        if train:
            target = target * (1 - label_smoothing) + label_smoothing / 2
        return over_members(optax.sigmoid_binary_cross_entropy(logits, target).sum(-1), rank=1)

    def probabilities(logits: Array) -> Array:
        return over_members(jax.nn.sigmoid(logits) if many else jax.nn.softmax(logits), rank=2)

    def accuracy(logits: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        p = probabilities(logits)
        if not many:
            return {"accuracy": metrics.accuracy(p, batch["label"], weights)}
        return {"accuracy": metrics.mean(((p > 0.5) == (batch["label"] > 0)).all(-1), weights)}

    shape, values = ((len(names),), 2) if many else ((), len(names))
    return supervised(
        module,
        lambda batch, key: batch["tokens"],
        many_labels if many else one_label,
        accuracy,
        probabilities,
        (
            Column("tokens", (context,), "int", classes=getattr(module, "vocabulary", None)),
            Column("label", shape, "int", classes=values, target=True),
        ),
        names,
    )


class Pair(nn.Module):
    """Vectors of unit length for the texts of a row, all by one encoder.

    Attributes:
        encoder: a Flax module, tokens (B, T) int32 to vectors (B, D); it may take `train`.
    """

    encoder: Any

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool = False) -> Array:
        """Vectors (B, V, D) float32 of tokens (B, V, T) int32, for V texts in a row."""
        rows, views, length = tokens.shape
        parameters = inspect.signature(type(self.encoder).__call__).parameters
        named = {"train": train} if "train" in parameters else {}
        # the texts of a row stay next to each other, and so on one device
        x = self.encoder(tokens.reshape(rows * views, length), **named).astype(jnp.float32)
        x *= jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
        return x.reshape(rows, views, -1)


def info_nce(
    anchors: Array,
    positives: Array,
    weights: Array,
    temperature: float,
    label: Array | None = None,
) -> tuple[Array, Array]:
    """The contrastive loss of each row, and whether its nearest candidate is one of its positives.

    With s_ij = anchor_i . positive_j / temperature, the loss of row i is -log softmax_j(s_i)[i]:
    the positives of the other rows are its negatives. With labels, rows with the same label are
    positives as well, and the loss is the mean of -log softmax_j(s_i)[p] over all positives p.

    Args:
        anchors: (B, D) float.
        positives: (B, D) float.
        weights: (B,); a row of weight 0 is not a negative of other rows.
        temperature: above 0.
        label: (B,) int; by default all rows have different labels.

    Returns:
        Losses (B,) and hits (B,) bool.

    References:
        van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE); Khosla et al. 2020, arXiv:2004.11362
        (with labels, their L_out).

    >>> import numpy as np
    >>> vectors = jnp.eye(2)
    >>> losses, hits = info_nce(vectors, vectors, jnp.ones(2), temperature=0.5)
    >>> np.asarray(losses).round(4), hits.tolist()  # log(1 + exp(-2))
    (array([0.1269, 0.1269], dtype=float32), [True, True])
    """
    real = (weights > 0)[None]
    scores = jnp.matmul(anchors, positives.T, precision="highest") / temperature
    # finite, so that a batch that is all padding has no NaN in its gradient
    scores = jnp.where(real, scores, -1e9)
    matches = jnp.eye(len(anchors), dtype=bool) if label is None else label[:, None] == label[None]
    matches &= real
    log_p = jax.nn.log_softmax(scores)
    losses = -jnp.where(matches, log_p, 0.0).sum(-1) / jnp.maximum(matches.sum(-1), 1)
    nearest = scores.argmax(-1)[:, None]
    return losses, jnp.take_along_axis(matches, nearest, axis=1)[:, 0]


@recorded(formerly={"model": "module", "length": "context"})
def contrastive(
    module: Any, context: int, temperature: float = 0.05, labelled: bool = False
) -> Task:
    """Learn sentence vectors from pairs of texts; the other rows of a batch are the negatives.

    A batch holds `tokens` and `positive`, integers (B, context) with 0 for padding. They are two
    texts with the same meaning, a question and its answer, or the same text twice, which dropout
    makes different (Gao et al. 2021, arXiv:2104.08821). If several rows of a batch may have the
    same meaning, set `labelled`: the batch then also holds `label`, integers (B,), and rows with
    the same label are positives of each other. See `info_nce` for the loss and `partners` for pairs
    from labels. The loss couples the rows of a batch. Therefore more rows give more negatives, the
    loss and accuracy of an evaluation depend on its `batch_size`, and a batch of one row and
    `accumulate` are refused.

    Args:
        module: a Flax module, tokens (B, context) to vectors (B, D), which the task scales to unit
            length: `BagEncoder`, or `TextCNN` and `TransformerClassifier` with D classes.
        context: number of tokens in a row.
        temperature: divides the products of vectors; a small value gives the nearest negatives more
            weight.
        labelled: whether rows with equal labels are positives.

    Returns:
        A task that predicts the vectors (B, D) of `tokens`, of unit length. Its metrics are loss
        and accuracy, the share of rows whose nearest candidate in the batch is a positive.

    Raises:
        ValueError: a temperature that is not positive.

    >>> from jaxops import text
    >>> contrastive(text.BagEncoder(vocabulary=100), context=16).coupled
    True
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")

    def inputs(batch: Batch, key: Key | None) -> Array:
        return jnp.stack([batch[n] for n in ("tokens", "positive") if n in batch], axis=1)

    def pairs(vectors: Array, batch: Batch) -> tuple[Array, Array]:
        if len(vectors) < 2:  # known when the step is traced, before it is compiled
            raise ValueError(
                "batch_size must be at least 2 for a contrastive task, where the other rows of a "
                "batch are the negatives, got 1"
            )
        label = batch["label"] if labelled else None
        return info_nce(vectors[:, 0], vectors[:, 1], row_weights(batch), temperature, label)

    text = ((context,), "int", getattr(module, "vocabulary", None))
    label = Column("label", (), "int", target=True)
    return supervised(
        Pair(module),
        inputs,
        lambda vectors, batch, train: pairs(vectors, batch)[0],
        lambda vectors, batch, w: {"accuracy": metrics.mean(pairs(vectors, batch)[1], w)},
        lambda vectors: vectors[:, 0],
        (
            Column("tokens", *text),
            Column("positive", *text, target=True),
            *((label,) if labelled else ()),
        ),
        coupled=True,
    )


@recorded(formerly={"model": "module", "length": "context"})
def spans(module: Any, context: int) -> Task:
    """Extractive question answering: learn where in a passage the answer starts and ends.

    `text.Passages` makes the columns. `tokens`, integers (B, context), are the question and a
    passage. `types` (B, context) is 1 for tokens of the passage. `start` and `end` (B,) are the
    first and the last token of the answer, both 0 if the passage has none. The loss of a row is the
    mean of the cross-entropies of start and end, each over all tokens of the row.

    Args:
        module: a Flax module, (tokens, types) to logits (B, context, 2), such as `SpanReader`.
        context: number of tokens in a row.

    Returns:
        A task that predicts log-probabilities (B, context, 2) of start and end. Its metrics are
        loss and accuracy, the share of rows whose likeliest start and likeliest end are both right.

    >>> from jaxops import nn, text
    >>> config = nn.TransformerConfig(
    ...     100, context=32, depth=2, heads=2, width=16, causal=False, segment_types=2)
    >>> [column.name for column in spans(text.SpanReader(config), context=32).columns]
    ['tokens', 'types', 'start', 'end']
    """

    def places(batch: Batch) -> Array:
        return jnp.stack([batch["start"], batch["end"]], axis=-1)

    def loss(logits: Array, batch: Batch, train: bool) -> Array:
        log_p = jax.nn.log_softmax(logits, axis=1)
        return -jnp.take_along_axis(log_p, places(batch)[:, None], axis=1)[:, 0].mean(-1)

    def accuracy(logits: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        return {"accuracy": metrics.mean((logits.argmax(1) == places(batch)).all(-1), weights)}

    return supervised(
        module,
        lambda batch, key: (batch["tokens"], batch["types"]),
        loss,
        accuracy,
        lambda logits: jax.nn.log_softmax(logits, axis=1),
        (
            Column("tokens", (context,), "int", classes=getattr(module, "vocabulary", None)),
            Column("types", (context,), "int", classes=2),
            Column("start", (), "int", classes=context, target=True),
            Column("end", (), "int", classes=context, target=True),
        ),
    )
