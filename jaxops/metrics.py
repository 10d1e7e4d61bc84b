"""Metrics as states that merge: exact over any split into batches, calls and devices.

A state is a NamedTuple of arrays, made inside a jitted step and read once at the end:

    states = {"accuracy": accuracy(logits, labels, weights)}   # in the step
    states = fold(to_host(states))                             # (K, ...) of many steps, float64
    total = merge(total, states)                               # over calls
    summarize(total)                                           # {"accuracy": 0.97}

Inside a step numbers are float32, so counts are exact below 2**24 (16.7 million) rows in a step.
Move the states `to_host` before you fold and merge them; the sums over steps are then float64.
`weights` are (B,), one for each row. A row of weight 0 (padding) may hold any value, also NaN, and
changes nothing.
"""

from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Confusion",
    "Count",
    "Mean",
    "Metric",
    "Scores",
    "absolute_error",
    "accuracy",
    "binary_accuracy",
    "confusion",
    "fold",
    "mean",
    "merge",
    "scores",
    "squared_error",
    "summarize",
    "to_host",
    "top_k",
]

Array = jax.Array | np.ndarray


class Metric(Protocol):
    """The methods of every state."""

    def merge(self, other: Self) -> Self:
        """The state of both sets of rows; both states must be NumPy, or both jax arrays."""

    def fold(self) -> Self:
        """Merge K states, which `many_steps` stacked along a new leading axis, into one."""

    def compute(self) -> Any:
        """The value, on the host: a float, or a dict of name -> float or array."""


class Mean(NamedTuple):
    """A weighted mean; NaN if the sum of the weights is 0.

    Attributes:
        total: (), the sum of weight * value.
        weight: (), the sum of the weights.

    >>> Mean(np.array(3.0), np.array(4.0)).merge(Mean(np.array(1.0), np.array(4.0))).compute()
    0.5
    """

    total: Array
    weight: Array

    def merge(self, other: "Mean") -> "Mean":
        """The mean over both sets of rows."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def fold(self) -> "Mean":
        """(K,) -> ()."""
        return Mean(self.total.sum(0), self.weight.sum(0))

    def compute(self) -> float:
        """total / weight."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


class Count(NamedTuple):
    """The number of times that something happened, such as an update that was clipped.

    Attributes:
        total: (), the number.

    >>> Count(np.array(3.0)).merge(Count(np.array(1.0))).compute()
    4
    """

    total: Array

    def merge(self, other: "Count") -> "Count":
        """The sum of both numbers."""
        return Count(self.total + other.total)

    def fold(self) -> "Count":
        """(K,) -> ()."""
        return Count(self.total.sum(0))

    def compute(self) -> int:
        """The total."""
        return int(self.total)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, 0 where the bottom is 0: scikit-learn's `zero_division=0`."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


class Confusion(NamedTuple):
    """Weighted counts of (true, predicted) labels.

    Averages are scikit-learn's defaults: a ratio 0 / 0 is 0, and "macro" is the plain mean over
    the classes that occur in truth or prediction. If there are no rows, every average is NaN.

    Attributes:
        counts: (C, C), rows true, columns predicted.

    >>> state = Confusion(np.array([[3.0, 1.0], [2.0, 4.0]]))
    >>> state.precision("binary"), state.recall(None).tolist()
    (0.8, [0.75, 0.666...])
    """

    counts: Array

    def merge(self, other: "Confusion") -> "Confusion":
        """The counts of both sets of rows."""
        return Confusion(self.counts + other.counts)

    def fold(self) -> "Confusion":
        """(K, C, C) -> (C, C)."""
        return Confusion(self.counts.sum(0))

    def precision(self, average: str | None = "macro") -> Any:
        """The share of the rows predicted as a class that belong to it; see `_score`."""
        return self._score(average, predicted=1, true=0)

    def recall(self, average: str | None = "macro") -> Any:
        """The share of the rows of a class that are predicted as it; see `_score`."""
        return self._score(average, predicted=0, true=1)

    def f1(self, average: str | None = "macro") -> Any:
        """The harmonic mean of precision and recall, 2 hits / (predicted + true); see `_score`."""
        return self._score(average, predicted=0.5, true=0.5)

    def _score(self, average: str | None, predicted: float, true: float) -> Any:
        """hits / (predicted * rows predicted + true * rows true), averaged.

        Args:
            average: None gives an array (C,), one value for each class; "macro" the mean over the
                classes that occur; "micro" the ratio of the sums; "binary" the value of class 1.
            predicted: factor of the number of rows predicted as the class, in the denominator.
            true: factor of the number of rows of the class, in the denominator.

        Raises:
            ValueError: another average, or "binary" if there are not two classes.
        """
        counts = np.asarray(self.counts, np.float64)
        hits, columns, rows = counts.diagonal(), counts.sum(0), counts.sum(1)
        bottom = predicted * columns + true * rows
        scores = _ratio(hits, bottom)
        if average is None:
            return scores
        if average == "binary" and len(counts) != 2:
            raise ValueError(f'average must not be "binary" for {len(counts)} classes: it needs 2')
        if average not in ("macro", "micro", "binary"):
            raise ValueError(f'average must be None, "macro", "micro" or "binary", got {average!r}')
        if not counts.sum():
            return float("nan")
        if average == "micro":
            return float(hits.sum() / bottom.sum())
        return float(scores[1] if average == "binary" else scores[columns + rows > 0].mean())

    def compute(self) -> dict[str, Any]:
        """The matrix as `confusion`, `accuracy`, and the averages by name.

        The averages are `precision_macro`, `recall_macro`, `f1_macro`, and the same with `_micro`.
        With two classes there are also `precision`, `recall` and `f1` of class 1.
        """
        # every row has one true and one predicted class: micro recall is the accuracy
        values = {"confusion": np.asarray(self.counts), "accuracy": self.recall("micro")}
        averages = {"_macro": "macro", "_micro": "micro"}
        if len(self.counts) == 2:
            averages[""] = "binary"
        for suffix, average in averages.items():
            for name in ("precision", "recall", "f1"):
                values[name + suffix] = getattr(self, name)(average)
        return values


class Scores(NamedTuple):
    """The score, label and weight of every row, which the exact ROC curve needs.

    A row takes 12 bytes on the device and 24 on the host.

    Attributes:
        score: (N,), higher means more likely of class 1.
        label: (N,), 0 or 1.
        weight: (N,), 0 leaves a row out.

    >>> state = Scores(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]), np.ones(4))
    >>> state.auc()
    0.875
    """

    score: Array
    label: Array
    weight: Array

    def merge(self, other: "Scores") -> "Scores":
        """Both sets of rows, one after the other."""
        xp = np if isinstance(self.score, np.ndarray) else jnp
        return Scores(*(xp.concatenate(pair) for pair in zip(self, other, strict=True)))

    def fold(self) -> "Scores":
        """(K, N) -> (K * N,)."""
        return Scores(*(x.reshape(-1) for x in self))

    def roc_curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """False and true positive rates at every threshold.

        They equal `sklearn.metrics.roc_curve(..., drop_intermediate=False)`: the first threshold
        is infinity, and rows of equal score pass a threshold together.

        Returns:
            fpr, tpr, thresholds: one value for each distinct score, and one more. A rate is NaN
            if its class is absent. Both rates are NaN if a score is NaN.
        """
        score, label, weight = (np.asarray(x, np.float64) for x in self)
        order = np.flatnonzero(weight > 0)
        order = order[np.argsort(-score[order], kind="stable")]
        score, label, weight = score[order], label[order], weight[order]
        if np.isnan(score).any():
            label = np.full_like(label, np.nan)
        last = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])
        tps = np.append(0.0, np.cumsum(label * weight)[last])
        fps = np.append(0.0, np.cumsum((1 - label) * weight)[last])
        with np.errstate(invalid="ignore"):  # 0 / 0: a class is absent
            return fps / fps[-1], tps / tps[-1], np.append(np.inf, score[last])

    def auc(self) -> float:
        """The area under the ROC curve: P(score of class 1 > score of class 0) + P(equal) / 2.

        This is the Mann-Whitney statistic, exact with ties. It is NaN if a class is absent.
        """
        fpr, tpr, _ = self.roc_curve()
        return float(np.trapezoid(tpr, fpr)) if len(fpr) > 1 else float("nan")

    def compute(self) -> float:
        """The area under the ROC curve."""
        return self.auc()


def mean(values: jax.Array, weights: jax.Array) -> Mean:
    """The weighted mean of values (B, ...) over rows; other axes are averaged first.

    With weights (B, T), each token is weighted by itself.

    >>> mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])).compute()
    1.5
    """
    values, weights = jnp.asarray(values, jnp.float32), jnp.asarray(weights, jnp.float32)
    if values.shape[: weights.ndim] != weights.shape:
        raise ValueError(
            f"weights must have a shape that fits values {values.shape}, got {weights.shape}"
        )
    rows = values.mean(tuple(range(weights.ndim, values.ndim)))
    # where, not only a product: a padded row may hold anything, and 0 * inf is NaN
    return Mean((jnp.where(weights > 0, rows, 0.0) * weights).sum(), weights.sum())


def top_k(logits: jax.Array, labels: jax.Array, k: int, weights: jax.Array) -> Mean:
    """The share of rows whose label is among the k largest logits.

    Of equal logits that of the first class ranks first, as with `argmax`. Therefore `k=1` is the
    accuracy, and a model with equal logits for all classes has k / C, not 1. (scikit-learn breaks
    ties the other way round, the last class first.) A label whose logit is NaN is never among the
    k largest.

    Args:
        logits: (B, C), or (..., C).
        labels: (B,) integers, or (...).
        k: number of largest logits.
        weights: (B,).

    >>> logits = jnp.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    >>> top_k(logits, jnp.array([2, 2]), 2, jnp.ones(2)).compute()
    0.5
    """
    _same_shape("labels", labels, logits[..., 0])
    of_label = jnp.take_along_axis(logits, labels[..., None], -1)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    behind = (logits < of_label) | ((logits == of_label) & (classes >= labels[..., None]))
    return mean((~behind).sum(-1) < k, weights)


def accuracy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Mean:
    """The share of rows whose largest logit is that of the label.

    Logits are (B, C) and labels (B,) integers. Of equal logits the first class is predicted.

    >>> logits = jnp.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    >>> accuracy(logits, jnp.array([1, 2]), jnp.ones(2)).compute()
    0.5
    """
    return top_k(logits, labels, 1, weights)


def binary_accuracy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Mean:
    """The share of rows whose logit is above 0 if the label is 1, and not above 0 if it is 0.

    Args:
        logits: (B,), log-odds of class 1; above 0 (probability above 1/2) predicts 1.
        labels: (B,), 0 or 1.
        weights: (B,).

    >>> binary_accuracy(jnp.array([2.0, -1.0]), jnp.array([1, 1]), jnp.ones(2)).compute()
    0.5
    """
    _same_shape("labels", labels, logits)
    return mean(jnp.where(labels > 0, logits > 0, logits <= 0), weights)


def squared_error(pred: jax.Array, target: jax.Array, weights: jax.Array) -> Mean:
    """The mean squared error (MSE) of pred (B, ...) against target (B, ...).

    >>> squared_error(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0]), jnp.ones(2)).compute()
    2.0
    """
    return mean(jnp.square(_difference(pred, target)), weights)


def absolute_error(pred: jax.Array, target: jax.Array, weights: jax.Array) -> Mean:
    """The mean absolute error (MAE) of pred (B, ...) against target (B, ...).

    >>> absolute_error(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0]), jnp.ones(2)).compute()
    1.0
    """
    return mean(jnp.abs(_difference(pred, target)), weights)


def confusion(
    predicted_labels: jax.Array, labels: jax.Array, classes: int, weights: jax.Array
) -> Confusion:
    """Count (true, predicted) labels, both (B,) integers; those outside [0, classes) do not count.

    >>> confusion(jnp.array([0, 1, 1]), jnp.array([0, 0, 1]), 2, jnp.ones(3)).counts.tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    _same_shape("labels", labels, predicted_labels)
    predicted_labels = jnp.asarray(predicted_labels, jnp.int32)  # `probability > 0.5` is bool
    true = jax.nn.one_hot(labels, classes) * jnp.asarray(weights, jnp.float32)[:, None]
    predicted = jax.nn.one_hot(predicted_labels, classes)
    # highest precision: a TPU would round the weights to bfloat16
    return Confusion(jnp.matmul(true.T, predicted, precision="highest"))


def scores(score: Array, label: Array, weights: Array) -> Scores:
    """Keep score (B,), logits or probabilities of class 1, and label (B,), 0 or 1.

    >>> scores(jnp.array([0.2, 0.9]), jnp.array([0, 1]), jnp.ones(2)).compute()
    1.0
    """
    _same_shape("label", label, score)
    _same_shape("weights", weights, score)
    return Scores(*(jnp.asarray(x, jnp.float32) for x in (score, label, weights)))


def _same_shape(name: str, given: Any, like: Any) -> None:
    # (B,) against (B, 1) would quietly become (B, B)
    if given.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, got {given.shape}")


def _difference(pred: Any, target: Any) -> jax.Array:
    _same_shape("target", target, pred)
    return jnp.asarray(pred, jnp.float32) - jnp.asarray(target, jnp.float32)


def to_host(states: Any) -> Any:
    """The states as float64 NumPy arrays; waits for the devices, so call it late.

    >>> to_host({"loss": Mean(jnp.float32(3.0), jnp.float32(4.0))})["loss"].compute()
    0.75
    """
    return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(states))


def fold(states: dict[str, Any]) -> dict[str, Any]:
    """Merge the steps of each state, which `many_steps` stacked along the leading axis.

    >>> fold({"loss": Mean(np.array([1.0, 2.0]), np.array([2.0, 2.0]))})["loss"].compute()
    0.75
    """
    return {name: state.fold() for name, state in states.items()}


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Merge the states of two sets of rows, name by name.

    >>> half = {"x": Mean(np.array(1.0), np.array(2.0))}
    >>> summarize(merge(half, half))
    {'x': 0.5}
    """
    return {name: state.merge(b[name]) for name, state in a.items()}


def summarize(states: dict[str, Any]) -> dict[str, Any]:
    """Read every state: name -> float or array.

    A state that computes one value is reported by its own name. A state that computes several
    values adds each under the name that it gives it.

    >>> states = {"loss": Mean(np.array(1.0), np.array(4.0)), "counts": Confusion(np.eye(2))}
    >>> list(summarize(states))[:4]
    ['loss', 'confusion', 'accuracy', 'precision_macro']
    """
    summary: dict[str, Any] = {}
    for name, state in states.items():
        value = state.compute()
        summary.update(value if isinstance(value, dict) else {name: value})
    return summary
