"""Tasks on tables."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops import metrics
from jaxops.losses import over_members
from jaxops.task import Array, Batch, Column, Task, recorded, row_weights, supervised


@recorded(formerly={"model": "module"})
def classifier(module: Any, features: int, classes: Sequence[str] = ("0", "1")) -> Task:
    """Classification, as of churn: a binary cross-entropy for two classes, else a softmax.

    A batch holds `features`, float (B, features), and `label`, integers (B,) in [0, classes). The
    loss of a row with logit z and label y is -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)), and
    -log softmax(z)[y] where there are more than two classes. A module with members, such as
    `TabM`, gives logits (B, members, outputs): the loss is the mean over the members, and the
    prediction the mean of their probabilities.

    Args:
        module: a Flax module, (B, features) float32 to logits (B, 1), or (B, K) for K classes.
        features: number of features of a row.
        classes: the names of the classes in the order of their numbers: `encoder.classes` where an
            encoder numbered the labels.

    Returns:
        A task whose predictions are the probabilities of class 1, (B,), or for more than two
        classes of all, (B, K); with the metrics loss and accuracy. For the area under the ROC
        curve of two classes evaluate with `metrics={"auc": auc}`.

    Raises:
        ValueError: fewer than two classes, or a module with other `outputs`.

    >>> from jaxops import tabular
    >>> tabular.classifier(tabular.MLP(), features=20, classes=("stays", "leaves")).classes
    ('stays', 'leaves')
    """
    if len(classes) < 2:
        raise ValueError(f"classes must be at least 2 names, got {len(classes)}: {classes}")
    outputs = 1 if len(classes) == 2 else len(classes)
    _check_outputs(module, outputs)

    def probabilities(logits: Array) -> Array:
        if outputs == 1:
            return over_members(jax.nn.sigmoid(logits[..., 0]), rank=1)
        return over_members(jax.nn.softmax(logits), rank=2)

    def loss(logits: Array, batch: Batch, train: bool) -> Array:
        label = batch["label"][(slice(None), *[None] * (logits.ndim - 2))]
        if outputs == 1:
            label = jnp.asarray(label, logits.dtype)
            return over_members(optax.sigmoid_binary_cross_entropy(logits[..., 0], label), rank=1)
        label = jnp.broadcast_to(label, logits.shape[:-1])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return over_members(entropy, rank=1)

    def accuracy(logits: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        p = probabilities(logits)
        if outputs == 1:
            z = logits[:, 0] if logits.ndim == 2 else p - 0.5
            return {"accuracy": metrics.binary_accuracy(z, batch["label"], weights)}
        return {"accuracy": metrics.accuracy(p, batch["label"], weights)}

    return supervised(
        module,
        _features,
        loss,
        accuracy,
        probabilities,
        (
            Column("features", (features,), "float"),
            Column("label", (), "int", classes=len(classes), target=True),
        ),
        tuple(classes),
    )


@recorded
def regressor(module: Any, features: int, mean: float = 0.0, std: float = 1.0) -> Task:
    """Regression: squared error of the standardised target; answers are in the target's unit.

    A batch holds `features`, float (B, features), and `label`, float (B,). The loss of a row with
    output z and target y is (z - (y - mean) / std)**2. A module with members, such as `TabM`,
    gives outputs (B, members, 1): the loss is the mean over the members, and the prediction the
    mean of their predictions.

    Args:
        module: a Flax module, (B, features) float32 to (B, 1).
        features: number of features of a row.
        mean: of the target in the train rows.
        std: its standard deviation, above 0.

    Returns:
        A task that predicts the target, (B,) float32; its metrics are loss, and mse and mae in the
        target's unit.

    Raises:
        ValueError: a `std` that is not positive, or a module whose `outputs` is not 1.

    >>> from jaxops import tabular
    >>> regressor(tabular.MLP(), features=20, mean=5.0, std=2.0).columns[1].dtype
    'float'
    """
    if not std > 0:
        raise ValueError(f"std must be above 0, got {std}")
    _check_outputs(module, 1)

    def predict(outputs: Array) -> Array:
        return mean + std * over_members(outputs[..., 0], rank=1)

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        target = (batch["label"] - mean) / std
        z = outputs[..., 0]
        target = target[(slice(None), *[None] * (z.ndim - 1))]
        return over_members(jnp.square(z - target), rank=1)

    def errors(outputs: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        p, target = predict(outputs), jnp.asarray(batch["label"], jnp.float32)
        return {
            "mse": metrics.squared_error(p, target, weights),
            "mae": metrics.absolute_error(p, target, weights),
        }

    return supervised(
        module,
        _features,
        loss,
        errors,
        predict,
        (Column("features", (features,), "float"), Column("label", (), "float", target=True)),
    )


def _features(batch: Batch, key: Any) -> Array:
    return jnp.asarray(batch["features"], jnp.float32)


def _check_outputs(module: Any, outputs: int) -> None:
    if getattr(module, "outputs", outputs) != outputs:
        raise ValueError(f"module.outputs must be {outputs}, got {module.outputs}")


def auc(probability: Array, batch: Batch) -> metrics.Scores:
    """The area under the ROC curve, exact, as a metric for `jaxops.evaluate` and `fit`.

    Args:
        probability: (B,), of class 1.
        batch: with `label` (B,), 0 or 1, and a `mask` if rows are padded.

    >>> auc(jnp.array([0.2, 0.9, 0.4]), {"label": jnp.array([0, 1, 1])}).compute()
    1.0
    """
    return metrics.scores(probability, batch["label"], row_weights(batch))
