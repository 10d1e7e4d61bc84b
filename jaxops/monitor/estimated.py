"""Performance before the labels arrive, and once they have arrived.

`confidence_based` estimates a classifier's figures from its probabilities, calibrated on reference
rows (CBPE). `DirectLoss` predicts each row's loss by trees trained on reference rows (DLE). Both
hold while the target given the inputs is distributed as in the reference (covariate shift), and not
once that changes (concept drift): then labels are needed, which `with_labels` joins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from jaxops import metrics
from jaxops._optional import require
from jaxops.trust.calibrators import Isotonic
from jaxops.trust.intervals import Interval

LOSSES = {"absolute": np.abs, "squared": np.square}


class Estimated(NamedTuple):
    """A classifier's performance on rows without labels.

    Attributes:
        accuracy: the share of right rows.
        f1: F1 of class 1 for two classes, otherwise the mean over the classes.
        auc: the area under the ROC curve; for several classes the mean of each against the rest.
        confusion: (C, C) expected counts, rows true, columns predicted.

    >>> one = Interval(0.9, 0.8, 1.0)
    >>> print(Estimated(one, one, one, np.array([[4.5, 0.5], [0.5, 4.5]])).accuracy)
    0.9000 [0.8000, 1.0000]
    """

    accuracy: Interval
    f1: Interval
    auc: Interval
    confusion: np.ndarray


def confidence_based(
    reference: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    coverage: float = 0.95,
    draws: int = 200,
    seed: int = 0,
) -> Estimated:
    """Confidence-based performance estimation (CBPE) of a classifier.

    The probability of each class is calibrated by isotonic regression on the reference, and each
    row's are scaled to a sum of 1. A row that is predicted as class j then adds its probability of
    class i to the expected count (i, j), from which accuracy and F1 follow. For AUC each row counts
    as positive and as negative, with its probabilities as weights. The predicted class is the one
    with the largest probability before calibration.

    The bounds are quantiles over `draws`: each draws the reference anew with replacement,
    calibrates on it, draws a label for each row, and computes the figures of these labels. So they
    hold the error of the calibration and the chance of the labels.

    Args:
        reference: (N, C) probabilities for reference rows, which the model was not trained on.
        labels: (N,) integers in [0, C), their labels.
        probabilities: (M, C) for the rows now.
        coverage: of the bounds.
        draws: number of draws.
        seed: the seed of the draws.

    Raises:
        ValueError: the shapes differ, a value is no probability, a class has no reference row, or
            the coverage is outside 0 to 1.

    References:
        Kivimäki et al. 2025, Confidence-based estimators for predictive performance in model
        monitoring, JAIR 82; NannyML's CBPE.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.random(2000)
    >>> truth, both = (rng.random(2000) < p).astype(int), np.stack([1 - p, p], 1)
    >>> told = confidence_based(both, truth, both[p > 0.5], draws=50)
    >>> bool(told.accuracy.low < truth[p > 0.5].mean() < told.accuracy.high)
    True
    """
    known, probabilities, labels = (np.asarray(x) for x in (reference, probabilities, labels))
    classes = known.shape[-1]
    known = _probabilities("reference", known, classes)
    probabilities = _probabilities("probabilities", probabilities, classes)
    if labels.shape != known.shape[:1] or not np.array_equal(np.unique(labels), range(classes)):
        raise ValueError(
            f"labels must be ({len(known)},) whole numbers, each of 0 to {classes - 1} at least "
            f"once, got shape {labels.shape} with {np.unique(labels).tolist()[:10]}"
        )
    if not 0 < coverage < 1 or draws < 1:
        raise ValueError(
            f"coverage must be between 0 and 1 and draws at least 1, got {coverage} and {draws}"
        )
    calibrated = Isotonic.of_some(known, labels)(probabilities)
    middle, confusion = _figures(probabilities, calibrated)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        rows = rng.integers(0, len(known), len(known))
        p = Isotonic.of_some(known[rows], labels[rows])(probabilities)
        told = (p.cumsum(1) < rng.random((len(p), 1))).sum(1).clip(max=p.shape[1] - 1)
        drawn.append(_figures(probabilities, np.eye(p.shape[1])[told])[0])
    bounds = np.nanquantile(drawn, [(1 - coverage) / 2, (1 + coverage) / 2], axis=0)
    accuracy, f1, auc = (Interval(*map(float, one)) for one in zip(middle, *bounds, strict=True))
    return Estimated(accuracy, f1, auc, confusion)


def _figures(scores: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy, F1 and AUC of rows that have each label with probability p, and the counts."""
    classes = p.shape[1]
    counts = p.T @ np.eye(classes)[scores.argmax(1)]
    matrix = metrics.Confusion(counts)
    of = range(1 if classes == 2 else 0, classes)
    areas = [_area(scores[:, k], p[:, k]) for k in of]
    f1 = matrix.f1("binary" if classes == 2 else "macro")
    return np.array([matrix.recall("micro"), f1, np.mean(areas)]), counts


def _area(score: np.ndarray, p: np.ndarray) -> float:
    """The AUC of rows that are positive with weight p, and negative with weight 1 - p."""
    label = np.repeat([1.0, 0.0], len(p))
    return metrics.Scores(np.tile(score, 2), label, np.concatenate([p, 1 - p])).auc()


@dataclass(frozen=True, eq=False)
class DirectLoss:
    """Direct loss estimation (DLE) of a regression: trees that predict the loss of each row.

    The trees (scikit-learn's random forest) learn the loss of reference rows from their inputs and
    the model's prediction. The mean of the losses that they predict for new rows estimates the new
    mean loss.

    The bounds have two parts. The loss of a row differs from the expected one by chance; its
    standard deviation is taken as proportional to the expected loss, with the proportion from the
    predictions of the trees that did not see a row (out of bag). The mean over the reference has an
    error of its own, of the same kind.

    Attributes:
        loss: "absolute" or "squared".
        trees: the trained trees; None before `fit`.
        spread: the standard deviation of a loss, as a multiple of the loss that is expected.
        rows: number of reference rows.

    References:
        NannyML's Direct Loss Estimation.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.random((600, 1))
    >>> truth = x[:, 0] + rng.normal(0, x[:, 0])  # noisier for large x
    >>> known = DirectLoss().fit(x, x[:, 0], truth)
    >>> new = np.full((100, 1), 0.9)
    >>> 0.5 < known.estimate(new, new[:, 0]).mean < 0.9  # E|e| = 0.9 √(2 / π) = 0.72
    True
    """

    loss: str = "absolute"
    trees: Any = None
    spread: float = 0.0
    rows: int = 0

    def fit(
        self, features: np.ndarray, predictions: np.ndarray, targets: np.ndarray, seed: int = 0
    ) -> "DirectLoss":
        """Learn the loss of reference rows, which the model was not trained on.

        Args:
            features: (N, D) numbers, NaN where they are missing.
            predictions: (N,) the model's.
            targets: (N,) the truth.
            seed: the seed of the trees.

        Raises:
            ValueError: the shapes differ, there are fewer than 50 rows, a prediction or target is
                not finite, or the loss is another.
            ImportError: scikit-learn is not installed.
        """
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        x, targets = _inputs(features, predictions), np.asarray(targets, np.float64)
        if targets.shape != (len(x),) or not np.isfinite(targets).all() or len(x) < 50:
            raise ValueError(
                f"targets must be ({len(x)},) finite numbers of 50 rows or more, got shape "
                f"{targets.shape}"
            )
        forest = require("sklearn.ensemble", extra="data").RandomForestRegressor
        losses = LOSSES[self.loss](targets - x[:, -1])
        trees = forest(100, min_samples_leaf=20, oob_score=True, random_state=seed).fit(x, losses)
        across = trees.oob_prediction_
        spread = np.sqrt(((losses - across) ** 2).sum() / max((across**2).sum(), 1e-300))
        return replace(self, trees=trees, spread=float(spread), rows=len(x))

    def estimate(
        self, features: np.ndarray, predictions: np.ndarray, coverage: float = 0.95
    ) -> Interval:
        """The mean loss of new rows without labels, with its bounds.

        Args:
            features: (M, D), the inputs.
            predictions: (M,) the model's.
            coverage: of the bounds.

        Raises:
            ValueError: it is not fitted, the shapes differ, or the coverage is outside 0 to 1.
        """
        if self.trees is None:
            raise ValueError("trees must be trained by fit before an estimate, got None")
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, got {coverage}")
        x = _inputs(features, predictions)
        if x.shape[1] != self.trees.n_features_in_:
            raise ValueError(
                f"features must have {self.trees.n_features_in_ - 1} columns, as in fit, got "
                f"{x.shape[1] - 1}"
            )
        each = self.trees.predict(x)
        root = np.sqrt((each**2).mean() * (1 / len(x) + 1 / self.rows))
        margin = float(ndtri((1 + coverage) / 2) * self.spread * root)
        mean = float(each.mean())
        return Interval(mean, max(mean - margin, 0.0), mean + margin)


class Labelled(NamedTuple):
    """Predictions whose labels have arrived.

    Attributes:
        rows: column -> (N,) or (N, ...) of the labelled predictions, with the column "label".
        share: the share of all predictions that is labelled. Labels that come late can differ from
            those that come early, so figures of a small share describe early labels only.
        unknown: number of labels whose request was not kept.

    >>> Labelled({"id": np.array(["b"]), "label": np.array([1])}, share=0.5, unknown=0).share
    0.5
    """

    rows: dict[str, np.ndarray]
    share: float
    unknown: int


def with_labels(
    predictions: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], id: str = "id"
) -> Labelled:
    """Join labels that have arrived to the predictions that were kept, by the id of the request.

    The figures of what is labelled, with intervals, are those of
    `jaxops.trust.evaluation.of_classes`, or `jaxops.trust.intervals.interval` of each row's error.

    Args:
        predictions: columns of one length, one of them `id`.
        labels: the columns `id` and "label", in any order of rows.
        id: the name of the column with the request's id.

    Raises:
        ValueError: a column is missing, lengths differ, an id occurs twice, there are no
            predictions, or they have a column "label".

    >>> kept = {"id": np.array([7, 8, 9]), "predicted": np.array([0.5, 1.5, 2.5])}
    >>> joined = with_labels(kept, {"id": np.array([9, 7]), "label": np.array([3.0, 1.0])})
    >>> joined.rows["predicted"].tolist(), joined.rows["label"].tolist()
    ([0.5, 2.5], [1.0, 3.0])
    """
    kept = {name: np.asarray(x) for name, x in predictions.items()}
    come = {name: np.asarray(x) for name, x in labels.items()}
    for role, columns, wanted in (("predictions", kept, {id}), ("labels", come, {id, "label"})):
        if missing := sorted(wanted - columns.keys()):
            raise ValueError(f"{role} must have the columns {sorted(wanted)}, got no {missing}")
        if len({len(x) for x in columns.values()}) != 1:
            lengths = {name: len(x) for name, x in columns.items()}
            raise ValueError(f"{role} must have columns of one length, got {lengths}")
        ids, first = np.unique(columns[id], return_index=True)
        if len(ids) != len(columns[id]):
            row = int(np.setdiff1d(np.arange(len(columns[id])), first)[0])
            raise ValueError(f"{role} must have each {id} once, got {columns[id][row]!r} again in "
                             f"row {row}")  # fmt: skip
    if "label" in kept or not len(kept[id]):
        raise ValueError("predictions must have rows, and no column 'label', got others")
    _, places, of_label = np.intersect1d(
        kept[id], come[id], assume_unique=True, return_indices=True
    )
    order = np.argsort(places)
    rows = {name: x[places[order]] for name, x in kept.items()}
    rows["label"] = come["label"][of_label[order]]
    return Labelled(rows, len(places) / len(kept[id]), len(come[id]) - len(places))


def _inputs(features: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """(N, D + 1): features and predictions."""
    x, told = np.asarray(features, np.float64), np.asarray(predictions, np.float64)
    if x.ndim != 2 or told.shape != (len(x),) or not len(x) or not np.isfinite(told).all():
        raise ValueError(
            "features and predictions must be (N, D) and (N,), the predictions finite, got shapes "
            f"{x.shape} and {told.shape}"
        )
    return np.column_stack([x, told])


def _probabilities(name: str, p: np.ndarray, classes: int) -> np.ndarray:
    if p.ndim != 2 or p.shape[1] != classes or not len(p) or classes < 2:
        raise ValueError(f"{name} must be (N, {max(classes, 2)}), got shape {p.shape}")
    wrong = ~((p >= 0) & (p <= 1) & (np.abs(p.sum(1, keepdims=True) - 1) < 1e-3)).all(1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} must be probabilities that sum to 1, got {p[row]} in row {row}")
    return p.astype(np.float64)
