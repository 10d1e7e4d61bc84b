"""Tasks on tables."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops import metrics
from jaxops.losses import over_members, smoothed_cross_entropy
from jaxops.task import Array, Batch, Column, Task, recorded, row_weights, supervised


@recorded(formerly={"model": "module"})
def classifier(
    module: Any, features: int, classes: Sequence[str] = ("0", "1"), smoothing: float = 0.0
) -> Task:
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
        smoothing: in training this share of each label is spread evenly over all classes, in
            [0, 1); see `jaxops.losses.smoothed_cross_entropy`.

    Returns:
        A task whose predictions are the probabilities of class 1, (B,), or for more than two
        classes of all, (B, K); with the metrics loss and accuracy. For the area under the ROC
        curve of two classes evaluate with `metrics={"auc": auc}`.

    Raises:
        ValueError: fewer than two classes, a smoothing outside [0, 1), or a module with other
            `outputs`.

    >>> from jaxops import tabular
    >>> tabular.classifier(tabular.MLP(), features=20, classes=("stays", "leaves")).classes
    ('stays', 'leaves')
    """
    if len(classes) < 2:
        raise ValueError(f"classes must be at least 2 names, got {len(classes)}: {classes}")
    check_smoothing(smoothing)
    outputs = 1 if len(classes) == 2 else len(classes)
    check_outputs(module, outputs)

    def probabilities(logits: Array) -> Array:
        if outputs == 1:
            return over_members(jax.nn.sigmoid(logits[..., 0]), rank=1)
        return over_members(jax.nn.softmax(logits), rank=2)

    def loss(logits: Array, batch: Batch, train: bool) -> Array:
        label, share = beside(batch["label"], logits), smoothing if train else 0.0
        if outputs == 1:
            label = jnp.asarray(label, logits.dtype) * (1 - share) + share / 2
            return mean_loss(optax.sigmoid_binary_cross_entropy(logits[..., 0], label), batch)
        label = jnp.broadcast_to(label, logits.shape[:-1])
        return mean_loss(smoothed_cross_entropy(logits, label, share), batch)

    def accuracy(logits: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        p = probabilities(logits)
        if outputs == 1:
            z = logits[:, 0] if logits.ndim == 2 else p - 0.5
            return {"accuracy": metrics.binary_accuracy(z, batch["label"], weights)}
        return {"accuracy": metrics.accuracy(p, batch["label"], weights)}

    label = Column("label", (), "int", classes=len(classes), target=True)
    return of_rows(module, features, loss, accuracy, probabilities, label, tuple(classes))


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
    check_outputs(module, 1)

    def predict(outputs: Array) -> Array:
        return mean + std * over_members(outputs[..., 0], rank=1)

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        target = beside((batch["label"] - mean) / std, outputs)
        return mean_loss(jnp.square(outputs[..., 0] - target), batch)

    def errors(outputs: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        return squared_and_absolute(predict(outputs), batch, weights)

    return of_rows(module, features, loss, errors, predict, NUMBER)


NUMBER = Column("label", (), "float", target=True)


def of_rows(
    module: Any,
    features: int,
    loss: Any,
    metrics: Any,
    predict: Any,
    label: Column,
    classes: tuple[str, ...] = (),
) -> Task:
    """`supervised` of a module that reads rows of features.

    A module with candidates, such as `ModernNCA`, is also given the place of each row among the
    train rows: the column "row", -1 for other rows, which prediction does not need. Where each
    member sees other rows, see `own_batches`, a row has no one prediction, and so no metrics.
    """
    columns = [Column("features", (features,), "float"), label]
    places = hasattr(module, "candidates")
    if places:
        columns.append(Column("row", (), "int", target=True))
    if getattr(module, "own_batches", False):
        raise ValueError(
            "module.own_batches must be False in a task, got True; tabular.fit trains so"
        )

    def inputs(batch: Batch, key: Any) -> Any:
        x = jnp.asarray(batch["features"], jnp.float32)
        return (x, batch.get("row", jnp.full(len(x), -1))) if places else x

    def of_one(outputs: Any, batch: Batch, weights: Array) -> dict[str, Any]:
        return {} if batch["features"].ndim > 2 else metrics(outputs, batch, weights)

    return supervised(module, inputs, loss, of_one, predict, tuple(columns), classes)


def check_outputs(module: Any, outputs: int) -> None:
    """Raise `ValueError` for a module with another number of outputs, where it names one."""
    if getattr(module, "outputs", outputs) != outputs:
        raise ValueError(f"module.outputs must be {outputs}, got {module.outputs}")


def check_smoothing(smoothing: float) -> None:
    """Raise `ValueError` for a share of labels outside [0, 1)."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")


def beside(target: Array, outputs: Array) -> Array:
    """A target (B,), or of each member (B, members), that broadcasts with outputs (..., P)[..., 0].

    >>> beside(jnp.ones(5), jnp.ones((5, 4, 1))).shape
    (5, 1)
    """
    return target.reshape(*target.shape, *[1] * (outputs.ndim - 1 - target.ndim))


def mean_loss(values: Array, batch: Batch) -> Array:
    """The mean over the members, (B,), where there are any.

    Args:
        values: (B,) or (B, members).
        batch: where members see rows of other weights, with these as the column `share`, whose mean
            over the members is 1.
    """
    return over_members(values * batch["share"] if "share" in batch else values, rank=1)


def squared_and_absolute(predicted: Array, batch: Batch, weights: Array) -> dict[str, Any]:
    """The metrics mse and mae of predicted numbers (B,)."""
    target = jnp.asarray(batch["label"], jnp.float32)
    return {
        "mse": metrics.squared_error(predicted, target, weights),
        "mae": metrics.absolute_error(predicted, target, weights),
    }


def auc(probability: Array, batch: Batch) -> metrics.Scores:
    """The area under the ROC curve, exact, as a metric for `jaxops.evaluate` and `fit`.

    Args:
        probability: (B,), of class 1.
        batch: with `label` (B,), 0 or 1, and a `mask` if rows are padded.

    >>> auc(jnp.array([0.2, 0.9, 0.4]), {"label": jnp.array([0, 1, 1])}).compute()
    1.0
    """
    return metrics.scores(probability, batch["label"], row_weights(batch))
