"""Scores that tell rows out of scope from rows in scope; a higher score is more in scope.

The simplest is the largest probability, `probabilities.max(1)`. `energy` needs the logits, and
`Mahalanobis` and `Neighbours` the features of the last hidden layer, of rows in scope and of new
rows. `calibration.refusal` gives the threshold below which a row is refused.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from jaxops.metrics import Scores
from jaxops.task import recorded
from jaxops.trust.calibration import refusal

AT_ONCE = 2**22  # distances that are in memory at a time


class Detection(NamedTuple):
    """How well a score tells rows out of scope from rows in scope.

    Attributes:
        auroc: the area under the ROC curve, with the rows in scope as positive.
        fpr95: the share of the rows out of scope that are answered where 95 % of the rows in scope
            are.

    >>> Detection(*detection(np.arange(10.0) + 5, np.arange(10.0))).fpr95
    0.5
    """

    auroc: float
    fpr95: float


def detection(in_scope: np.ndarray, out_of_scope: np.ndarray) -> Detection:
    """The AUROC and the false positive rate at 95 % of a score.

    Args:
        in_scope: (N,) scores of rows in scope.
        out_of_scope: (M,) scores of rows out of scope.

    Raises:
        ValueError: there are no rows of one kind, or a score is NaN.

    >>> detection(np.array([0.9, 0.8]), np.array([0.1, 0.2]))
    Detection(auroc=1.0, fpr95=0.0)
    """
    inside, outside = (np.asarray(x, np.float64) for x in (in_scope, out_of_scope))
    for name, scores in (("in_scope", inside), ("out_of_scope", outside)):
        if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
            raise ValueError(f"{name} must be (N,) numbers, got shape {scores.shape} or NaN")
    both = np.concatenate([inside, outside])
    kind = np.repeat([1.0, 0.0], [len(inside), len(outside)])
    recall, _ = refusal(inside, None, outside, accuracy=0.95)
    return Detection(Scores(both, kind, np.ones(len(both))).auc(), 1 - recall)


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The negative energy T log Σ_c exp(z_c / T), (N,).

    Args:
        logits: (N, C) of two classes or more; a single logit has no energy.
        temperature: T, above 0.

    Raises:
        ValueError: other shapes, or a temperature that is not above 0.

    References:
        Liu, Wang, Owens and Li 2020, arXiv:2010.03759.

    >>> energy(np.array([[0.0, 0.0], [5.0, 0.0]])).round(3).tolist()
    [0.693, 5.007]
    """
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or z.shape[1] < 2 or not temperature > 0:
        raise ValueError(
            "logits must be (N, C) of 2 classes or more and temperature above 0, got shape "
            f"{z.shape} and {temperature}"
        )
    found: np.ndarray = temperature * logsumexp(z / temperature, axis=1)
    return found


@recorded
@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """The distance to the nearest mean of a class, under one covariance of all classes.

    Rows out of scope that are near to all others in the many directions in which classes do not
    differ seem to be in scope. `relative` subtracts the distance to the mean of all rows, under
    their covariance, so that these directions cancel.

    Attributes:
        mean: float64 (C, D), the mean of each class.
        precision: float64 (D, D), the pseudo-inverse of the covariance around these means, so that
            directions in which no train row varies do not count.
        relative: the same of all rows as one class, which is subtracted; None without.

    References:
        Lee, Lee, Lee and Shin 2018, arXiv:1807.03888; of the relative distance Ren et al. 2021,
        arXiv:2106.09022.

    >>> features = np.array([[0.0, 1], [0, -1], [4, 1], [4, -1], [1, 0], [-1, 0], [5, 0], [3, 0]])
    >>> labels = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    >>> Mahalanobis.fit(features, labels).score(np.array([[0.0, 1], [0, 3]])).round(9).tolist()
    [-2.0, -18.0]
    """

    mean: np.ndarray
    precision: np.ndarray
    relative: "Mahalanobis | None" = None

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, relative: bool = False) -> "Mahalanobis":
        """The means and the covariance of the features of train rows.

        Args:
            features: (N, D).
            labels: (N,) integers in [0, C), each of them at least once.
            relative: whether the distance to the mean of all rows is subtracted.

        Raises:
            ValueError: other shapes, a value that is not finite, or a class without rows.
        """
        x, labels = _features(features), np.asarray(labels)
        kinds = np.unique(labels)
        if labels.shape != (len(x),) or not np.array_equal(kinds, np.arange(len(kinds))):
            raise ValueError(
                f"labels must be ({len(x)},) whole numbers from 0, each at least once, got shape "
                f"{labels.shape} with {kinds.tolist()[:10]}"
            )
        rows = np.bincount(labels)[:, None]
        mean = (np.eye(len(kinds))[labels].T @ x) / rows
        around = x - mean[labels]
        precision = np.linalg.pinv(around.T @ around / len(x), hermitian=True)
        every = cls.fit(x, np.zeros(len(x), int)) if relative else None
        return cls(mean, precision, every)

    def score(self, features: np.ndarray) -> np.ndarray:
        """The negative of the smallest squared distance of each row, (N,); see `relative`."""
        features = _features(features, self.mean.shape[1])
        centre = self.mean.mean(0)  # of features far from 0 the squares would lose their digits
        x, mean = features - centre, self.mean - centre
        wide, own = x @ self.precision, mean @ self.precision
        squares = (wide * x).sum(1)[:, None] - 2 * wide @ mean.T + (own * mean).sum(1)
        found: np.ndarray = -squares.min(1)
        return found if self.relative is None else found - self.relative.score(features)


@recorded
@dataclass(frozen=True, eq=False)
class Neighbours:
    """The distance to the k-th nearest train row, by features of length 1.

    Attributes:
        features: float32 (N, D), of train rows, each of length 1.
        k: which of the nearest rows counts.

    References:
        Sun, Ming, Zhu and Li 2022, arXiv:2204.06507.

    >>> known = Neighbours.fit(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), k=2)
    >>> known.score(np.array([[5.0, 0.0], [0.0, 1.0]])).round(3).tolist()
    [-0.0, -1.414]
    """

    features: np.ndarray
    k: int = 50

    @classmethod
    def fit(cls, features: np.ndarray, k: int = 50) -> "Neighbours":
        """Keep the features of train rows.

        Args:
            features: (N, D).
            k: 1 to N.

        Raises:
            ValueError: other shapes, a value that is not finite, or another k.
        """
        x = _of_length_1(_features(features))
        if not 1 <= k <= len(x):
            raise ValueError(f"k must be in [1, {len(x)}] (the number of rows), got {k}")
        return cls(x.astype(np.float32), k)

    def score(self, features: np.ndarray) -> np.ndarray:
        """The negative distance of each row to the k-th nearest train row, (N,)."""
        x = _of_length_1(_features(features, self.features.shape[1])).astype(np.float32)
        step = max(1, AT_ONCE // len(self.features))
        found = []
        for start in range(0, len(x), step):
            alike = x[start : start + step] @ self.features.T
            place = len(self.features) - self.k
            found.append(np.partition(alike, place, axis=1)[:, place])
        # of vectors of length 1 the squared distance is 2 - 2 cos
        return -np.sqrt(np.maximum(2 - 2 * np.concatenate(found).astype(np.float64), 0))


def _features(features: np.ndarray, width: int | None = None) -> np.ndarray:
    x = np.asarray(features, np.float64)
    wanted = "D" if width is None else width
    if x.ndim != 2 or not x.size or (width or x.shape[1]) != x.shape[1] or not np.isfinite(x).all():
        raise ValueError(f"features must be (N, {wanted}) finite numbers, got shape {x.shape}")
    return x


def _of_length_1(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
