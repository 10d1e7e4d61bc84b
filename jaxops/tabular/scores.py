"""What is measured of predictions, for each kind of target."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import scipy
from scipy.special import xlogy

from jaxops.tabular.data import TableReader, of_classes
from jaxops.trust.evaluation import Evaluation, auc_of, of_labels
from jaxops.trust.evaluation import of_classes as scores_of_classes

METRICS = {
    "classes": "log_loss",
    "labels": "log_loss",
    "number": "mse",
    "counts": "deviance",
    "quantiles": "pinball",
    "zero_inflated": "mse",
}
"""Kind of target, see `TableReader.kind` -> the figure that methods are compared by."""


def scores_of(
    reader: TableReader, outputs: np.ndarray, target: np.ndarray, ids: np.ndarray | None = None
) -> Evaluation:
    """The scores of predictions of N rows.

    Args:
        reader: of the table; says what the label is.
        outputs: what a task predicts.
        target: (N,), numbers of classes, or numbers; of L labels (N, L).
        ids: (N,) of the rows; their numbers by default.

    >>> from jaxops import tabular
    >>> reader = tabular.TableReader(tabular.fit_encoder({"x": [1, 2]}))
    >>> scores_of(reader, np.array([1.0, 2.0]), np.array([1.0, 4.0])).figures()["mse"]
    2.0
    """
    ids = np.arange(len(target)) if ids is None else ids
    if reader.kind == "quantiles":
        return _of_quantiles(ids, outputs, target, reader.levels)
    if reader.kind not in ("classes", "labels"):
        return _of_numbers(reader.kind, ids, outputs, target)
    if reader.kind == "classes":
        scored = scores_of_classes("row", ids, of_classes(outputs), target)
    else:
        scored = _of_labels([*reader.labels], ids, outputs, target)
    return replace(scored, parts=scored.parts | {"outputs": outputs})


def loss_of(reader: TableReader, outputs: np.ndarray, target: np.ndarray) -> float:
    """The figure of `METRICS` for predictions; see `scores_of`."""
    return float(scores_of(reader, outputs, target).values[METRICS[reader.kind]].mean())


def deviances(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The Poisson deviance of each row, 2 (y log(y / m) - y + m).

    Args:
        predicted: m (N,), above 0.
        target: y (N,), counts.

    >>> deviances(np.array([1.0, 2.0]), np.array([1, 0])).tolist()
    [0.0, 4.0]
    """
    m, y = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    return np.asarray(2 * (xlogy(y, y / m) - y + m))


def _of_labels(
    names: Sequence[str], ids: np.ndarray, p: np.ndarray, target: np.ndarray
) -> Evaluation:
    """Those of `of_labels`, the AUC of each label, and their mean over the labels that have one."""
    scored = of_labels("row", ids, p, target)
    each = [auc_of(p[:, i], target[:, i]) for i in range(len(names))]

    def mean(rows: np.ndarray) -> float:
        known = [x for x in (auc(rows) for auc in each) if not np.isnan(x)]
        return float(np.mean(known)) if known else np.nan

    wholes: dict[str, Callable[[np.ndarray], float]] = {"auc": mean}
    wholes |= {f"auc({name})": auc for name, auc in zip(names, each, strict=True)}
    return replace(scored, wholes=scored.wholes | wholes)


def _of_numbers(kind: str, ids: np.ndarray, output: np.ndarray, target: np.ndarray) -> Evaluation:
    error = output.astype(np.float64) - target
    mse, mean = error**2, target.mean(dtype=np.float64)
    wholes = {
        "rmse": lambda rows: float(mse[rows].mean() ** 0.5),
        "r2": lambda rows: float(1 - mse[rows].mean() / ((target[rows] - mean) ** 2).mean()),
    }
    values = {"mae": np.abs(error), "mse": mse}
    if kind == "counts":
        values["deviance"] = deviances(output, target)
    if kind == "zero_inflated":
        wholes["spearman"] = lambda rows: _spearman(output[rows], target[rows])
    smaller = frozenset({"mae", "mse", "rmse", "deviance"})
    parts = {"outputs": output, "predicted": output, "target": target}
    return Evaluation("row", ids, values, wholes, smaller, parts=parts)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of ranks; NaN where all values of one are equal."""
    x, y = (scipy.stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale else np.nan


def _of_quantiles(
    ids: np.ndarray, output: np.ndarray, target: np.ndarray, levels: Sequence[float]
) -> Evaluation:
    """The pinball loss, mean over the levels; of two levels or more what lies between the ends."""
    q, y = output.astype(np.float64), np.asarray(target, np.float64)
    level, error = np.asarray(levels), y[:, None] - q
    values = {"pinball": np.maximum(level * error, (level - 1) * error).mean(1)}
    if len(levels) > 1:
        values["coverage"] = ((q[:, 0] <= y) & (y <= q[:, -1])).astype(float)
        values["width"] = q[:, -1] - q[:, 0]
    parts = {"outputs": output, "target": target}
    smaller, neutral = frozenset({"pinball", "width"}), frozenset({"coverage"})
    return Evaluation("row", ids, values, {}, smaller, neutral, parts=parts)
