"""Tasks on tables."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops import metrics
from jaxops.task import Array, Batch, Column, Task, recorded, row_weights, supervised


@recorded(formerly={"model": "module"})
def classifier(module: Any, features: int, classes: tuple[str, str] = ("0", "1")) -> Task:
    """Binary classification, as of churn: binary cross-entropy over one logit.

    A batch holds `features`, float (B, features), and `label`, integers (B,), 0 or 1. The loss of
    a row with logit z and label y is -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)).

    Args:
        module: a Flax module, (B, features) float32 to logits (B, 1).
        features: number of features of a row.
        classes: the names of class 0 and class 1.

    Returns:
        A task whose predictions are the probabilities of class 1, (B,), with the metrics loss
        and accuracy; for the area under the ROC curve evaluate with `metrics={"auc": auc}`.

    Raises:
        ValueError: other than two classes, or a module whose `outputs` is not 1.

    >>> from jaxops import tabular
    >>> tabular.classifier(tabular.MLP(), features=20, classes=("stays", "leaves")).classes
    ('stays', 'leaves')
    """
    if len(classes) != 2:
        raise ValueError(f"classes must be 2 names, got {len(classes)}: {classes}")
    if getattr(module, "outputs", 1) != 1:
        raise ValueError(f"module.outputs must be 1, got {module.outputs}")

    def loss(logits: Array, batch: Batch, train: bool) -> Array:
        label = jnp.asarray(batch["label"], logits.dtype)
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], label)

    return supervised(
        module,
        lambda batch, key: jnp.asarray(batch["features"], jnp.float32),
        loss,
        lambda z, batch, w: {"accuracy": metrics.binary_accuracy(z[:, 0], batch["label"], w)},
        lambda logits: jax.nn.sigmoid(logits[:, 0]),
        (
            Column("features", (features,), "float"),
            Column("label", (), "int", classes=2, target=True),
        ),
        tuple(classes),
    )


def auc(probability: Array, batch: Batch) -> metrics.Scores:
    """The area under the ROC curve, exact, as a metric for `jaxops.evaluate` and `fit`.

    Args:
        probability: (B,), of class 1.
        batch: with `label` (B,), 0 or 1, and a `mask` if rows are padded.

    >>> auc(jnp.array([0.2, 0.9, 0.4]), {"label": jnp.array([0, 1, 1])}).compute()
    1.0
    """
    return metrics.scores(probability, batch["label"], row_weights(batch))
