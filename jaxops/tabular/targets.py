"""Tasks whose target is several labels, a count, quantiles, or a value that is often zero."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import gammaln, xlogy
from jax.scipy.stats import norm

from jaxops import metrics
from jaxops.losses import over_members
from jaxops.tabular.tasks import (
    NUMBER,
    beside,
    check_outputs,
    check_smoothing,
    mean_loss,
    of_rows,
    squared_and_absolute,
)
from jaxops.task import Array, Batch, Column, Task, recorded

LEAST = 1e-3  # of the standard deviation of a logarithm, in the unit of that of the train rows


@recorded
def multilabel(module: Any, features: int, labels: Sequence[str], smoothing: float = 0.0) -> Task:
    """Several labels of a row, such as what a customer complains of: each is 0 or 1.

    A batch holds `features`, float (B, features), and `label`, integers (B, L) of 0 and 1. With
    logits z and labels y the loss of a row is the mean over its L labels of
    -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)). A module with members gives logits
    (B, members, L): the loss is the mean over the members, and the prediction the mean of their
    probabilities.

    Args:
        module: a Flax module, (B, features) float32 to logits (B, L).
        features: number of features of a row.
        labels: the names of the L labels.
        smoothing: in training this share of each label is spread evenly over 0 and 1, in [0, 1).

    Returns:
        A task whose predictions are the probabilities of 1, (B, L), and whose `classes` are the
        labels; with the metrics loss and accuracy, the share of rows with every label right.

    Raises:
        ValueError: no labels, a smoothing outside [0, 1), or a module whose `outputs` is not L.

    >>> from jaxops import tabular
    >>> task = tabular.multilabel(tabular.MLP(outputs=2), features=20, labels=("slow", "rude"))
    >>> task.classes, task.columns[1].shape
    (('slow', 'rude'), (2,))
    """
    names = tuple(labels)
    if not names:
        raise ValueError("labels must be at least 1 name, got none")
    check_smoothing(smoothing)
    check_outputs(module, len(names))

    def probabilities(logits: Array) -> Array:
        return over_members(jax.nn.sigmoid(logits), rank=2)

    def loss(logits: Array, batch: Batch, train: bool) -> Array:
        label, share = jnp.asarray(batch["label"], logits.dtype), smoothing if train else 0.0
        label = (label if label.ndim == logits.ndim else label[:, None]) * (1 - share) + share / 2
        return mean_loss(optax.sigmoid_binary_cross_entropy(logits, label).mean(-1), batch)

    def accuracy(logits: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        right = (probabilities(logits) > 0.5) == (batch["label"] > 0)
        return {"accuracy": metrics.mean(right.all(-1), weights)}

    label = Column("label", (len(names),), "int", classes=2, target=True)
    return of_rows(module, features, loss, accuracy, probabilities, label, names)


@recorded
def counts(module: Any, features: int, mean: float = 1.0) -> Task:
    """Regression of counts, such as visits: Poisson distributed, with a rate for each row.

    A batch holds `features`, float (B, features), and `label`, float (B,), whole numbers from 0. Of
    a row with output z the rate is m = mean exp(z), and the loss the negative log likelihood
    m - y log m + log y!. A module with members gives outputs (B, members, 1): the loss is the mean
    over the members, and the prediction the mean of their rates.

    Args:
        module: a Flax module, (B, features) float32 to (B, 1).
        features: number of features of a row.
        mean: of the counts in the train rows, above 0.

    Returns:
        A task that predicts the expected count, (B,) float32; its metrics are loss, the Poisson
        deviance 2 (y log(y / m) - y + m), mse and mae.

    Raises:
        ValueError: a `mean` that is not positive, or a module whose `outputs` is not 1.

    >>> from jaxops import tabular
    >>> tabular.counts(tabular.MLP(), features=20, mean=3.0).columns[1].dtype
    'float'
    """
    if not mean > 0:
        raise ValueError(f"mean must be above 0, got {mean}")
    check_outputs(module, 1)

    def predict(outputs: Array) -> Array:
        return mean * over_members(jnp.exp(outputs[..., 0]), rank=1)

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        z, y = outputs[..., 0], jnp.asarray(batch["label"], jnp.float32)
        constant = beside(gammaln(y + 1) - y * np.log(mean), outputs)
        return mean_loss(mean * jnp.exp(z) - beside(y, outputs) * z + constant, batch)

    def errors(outputs: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        rate, y = predict(outputs), jnp.asarray(batch["label"], jnp.float32)
        deviance = 2 * (xlogy(y, y / rate) - y + rate)
        found = {"deviance": metrics.mean(deviance, weights)}
        return found | squared_and_absolute(rate, batch, weights)

    return of_rows(module, features, loss, errors, predict, NUMBER)


@recorded
def quantiles(
    module: Any,
    features: int,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
    mean: float = 0.0,
    std: float = 1.0,
) -> Task:
    """Regression of quantiles, by the pinball loss of the standardised target.

    A batch holds `features`, float (B, features), and `label`, float (B,). With the error
    e = (y - mean) / std - z of the output z of a level l, the loss of a row is the mean over the
    levels of max(l e, (l - 1) e). A module with members gives outputs (B, members, Q): the loss is
    the mean over the members, and the prediction the mean of their quantiles. Predicted quantiles
    are sorted, which never makes them worse.

    Args:
        module: a Flax module, (B, features) float32 to (B, Q).
        features: number of features of a row.
        levels: Q rising numbers between 0 and 1.
        mean: of the target in the train rows.
        std: its standard deviation, above 0.

    Returns:
        A task that predicts the quantiles, (B, Q) float32, in the target's unit; its metrics are
        loss and, with two levels or more, coverage: the share of targets between the first and the
        last.

    Raises:
        ValueError: other levels, a `std` that is not positive, or a module whose `outputs` is not
            their number.

    References:
        Koenker and Bassett 1978, Econometrica 46; Chernozhukov et al. 2010, Econometrica 78
        (sorting).

    >>> from jaxops import tabular
    >>> task = tabular.quantiles(tabular.MLP(outputs=2), features=20, levels=(0.1, 0.9))
    >>> [column.name for column in task.columns]
    ['features', 'label']
    """
    levels = check_levels(levels)
    if not std > 0:
        raise ValueError(f"std must be above 0, got {std}")
    check_outputs(module, len(levels))

    def predict(outputs: Array) -> Array:
        return mean + std * over_members(jnp.sort(outputs, -1), rank=2)

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        target = beside((batch["label"] - mean) / std, outputs)
        error = target[..., None] - outputs
        level = jnp.asarray(levels).reshape(*[1] * (outputs.ndim - 1), -1)
        return mean_loss(jnp.maximum(level * error, (level - 1) * error).mean(-1), batch)

    def covered(outputs: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        if len(levels) < 2:
            return {}
        found, y = predict(outputs), batch["label"]
        return {"coverage": metrics.mean((found[:, 0] <= y) & (y <= found[:, -1]), weights)}

    return of_rows(module, features, loss, covered, predict, NUMBER)


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels of quantiles as a tuple.

    Raises:
        ValueError: they are not rising numbers between 0 and 1.

    >>> check_levels([0.5, 0.1])
    Traceback (most recent call last):
    ValueError: levels must be rising numbers between 0 and 1, got (0.5, 0.1)
    """
    levels = tuple(levels)
    ends = (0.0, *levels, 1.0)
    if not levels or any(not a < b for a, b in itertools.pairwise(ends)):
        raise ValueError(f"levels must be rising numbers between 0 and 1, got {levels}")
    return levels


@recorded
def zero_inflated(module: Any, features: int, mean: float = 0.0, std: float = 1.0) -> Task:
    """Regression of a value that is often 0 and else log-normal, such as what a customer spends.

    A batch holds `features`, float (B, features), and `label`, float (B,), from 0. A row has three
    outputs: the logit of the probability p that its value is above 0, and a and b, which give the
    logarithm of such a value the mean m = mean + std a and the standard deviation
    s = std (softplus(b) + 0.001). The loss is the negative log likelihood (ZILN): the binary
    cross-entropy of p, and for values above 0 minus the log density of the log-normal distribution.
    A module with members gives outputs (B, members, 3): the loss is the mean over the members, and
    the prediction the mean of theirs.

    Args:
        module: a Flax module, (B, features) float32 to (B, 3).
        features: number of features of a row.
        mean: of the logarithms of the values above 0 in the train rows.
        std: their standard deviation, above 0.

    Returns:
        A task that predicts the expected value p exp(m + s^2 / 2), (B,) float32; its metrics are
        loss, mse and mae.

    Raises:
        ValueError: a `std` that is not positive, or a module whose `outputs` is not 3.

    References:
        Wang, Liu and Miao 2019, arXiv:1912.07753.

    >>> from jaxops import tabular
    >>> tabular.zero_inflated(tabular.MLP(outputs=3), features=20, mean=2.0).columns[1].dtype
    'float'
    """
    if not std > 0:
        raise ValueError(f"std must be above 0, got {std}")
    check_outputs(module, 3)

    def parameters(outputs: Array) -> tuple[Array, Array, Array]:
        logit, a, b = jnp.moveaxis(outputs, -1, 0)
        return logit, mean + std * a, std * (jax.nn.softplus(b) + LEAST)

    def predict(outputs: Array) -> Array:
        logit, m, s = parameters(outputs)
        return over_members(jax.nn.sigmoid(logit) * jnp.exp(m + s**2 / 2), rank=1)

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        logit, m, s = parameters(outputs)
        y = beside(jnp.asarray(batch["label"], jnp.float32), outputs)
        some = y > 0
        log = jnp.log(jnp.where(some, y, 1.0))
        value = jnp.where(some, jax.nn.log_sigmoid(logit) + norm.logpdf(log, m, s) - log, 0.0)
        return mean_loss(-jnp.where(some, value, jax.nn.log_sigmoid(-logit)), batch)

    def errors(outputs: Array, batch: Batch, weights: Array) -> dict[str, Any]:
        return squared_and_absolute(predict(outputs), batch, weights)

    return of_rows(module, features, loss, errors, predict, NUMBER)
