"""What to learn from texts."""

from typing import Any

import jax
import optax

from jaxops import metrics
from jaxops.losses import smoothed_cross_entropy
from jaxops.task import Array, Batch, Column, Task, recorded, supervised


@recorded
def classifier(
    model: Any,
    length: int,
    classes: int | tuple[str, ...],
    many: bool = False,
    label_smoothing: float = 0.0,
) -> Task:
    """Tell texts apart: softmax cross-entropy, or with `many` labels binary cross-entropies.

    A batch holds `tokens`, integers (B, length) in [0, model.vocabulary) where 0 is padding (see
    `text.Tokens` and `text.NGrams`), and `label`: integers (B,) in [0, classes), or with `many`
    (B, classes) of 0 and 1.

    Args:
        model: a Flax module, tokens to logits (B, classes).
        length: of a row.
        classes: how many, or their names in order.
        many: a text may have several labels, or none.
        label_smoothing: in training, this share of each label is spread evenly over all classes
            (with `many`, over yes and no); the loss of an evaluation is the plain one.

    Returns:
        A task whose predictions are probabilities (B, classes), which sum to one but for `many`,
        with the metrics loss and accuracy: a row counts where its label, or all of its labels, are
        right (with `many` those above 1/2 are given).

    Raises:
        ValueError: the model says that it tells another number of classes apart.

    >>> from jaxops import text
    >>> model = text.NGramBag(vocabulary=1000, classes=2)
    >>> text.classifier(model, length=64, classes=("lost", "found")).classes
    ('lost', 'found')
    """
    names = classes if isinstance(classes, tuple) else tuple(map(str, range(classes)))
    if getattr(model, "classes", len(names)) != len(names):
        raise ValueError(f"the model has {model.classes} classes, the task {len(names)}: {names}")

    def one(logits: Array, batch: Batch, train: bool) -> Array:
        return smoothed_cross_entropy(logits, batch["label"], label_smoothing if train else 0.0)

    def several(logits: Array, batch: Batch, train: bool) -> Array:
        target = batch["label"].astype(logits.dtype)
        if train:
            target = target * (1 - label_smoothing) + label_smoothing / 2
        return optax.sigmoid_binary_cross_entropy(logits, target).sum(-1)

    def accuracy(logits: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        if not many:
            return {"accuracy": metrics.accuracy(logits, batch["label"], weights)}
        return {"accuracy": metrics.mean(((logits > 0) == (batch["label"] > 0)).all(-1), weights)}

    wanted = ((len(names),), 2) if many else ((), len(names))
    return supervised(
        model,
        lambda batch, key: batch["tokens"],
        several if many else one,
        accuracy,
        jax.nn.sigmoid if many else jax.nn.softmax,
        (
            Column("tokens", (length,), "int", classes=getattr(model, "vocabulary", None)),
            Column("label", wanted[0], "int", classes=wanted[1], target=True),
        ),
        names,
    )
