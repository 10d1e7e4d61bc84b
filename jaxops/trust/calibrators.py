"""Maps of a classifier's probabilities to calibrated ones, fitted on validation rows.

Each is a value that a model file can hold: `fit(probabilities, labels)` makes it, and calling it
gives probabilities (N, C) for probabilities (N, C). `Temperature` and `Vector` change all classes
together. `Platt`, `Beta` and `Isotonic` have a curve for each class against the rest, whose values
are divided by their sum; of two classes the second has the curve.

Temperature keeps the order of the classes and needs the fewest rows; isotonic regression fits any
rising curve, and needs the most (about a thousand rows of each class).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy
from scipy.special import expit, log_softmax, softmax

from jaxops.task import recorded
from jaxops.trust.calibration import check_pair, scaled, temperature

SMALLEST = 1e-12  # probability whose logarithm is taken


class Calibrator(Protocol):
    """A map of probabilities (N, C) to calibrated ones.

    >>> def certain(p):
    ...     return np.eye(p.shape[1])[p.argmax(1)]
    >>> one: Calibrator = certain
    >>> one(np.array([[0.9, 0.1]])).tolist()
    [[1.0, 0.0]]
    """

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities, float64 (N, C)."""


@recorded
@dataclass(frozen=True)
class Temperature:
    """softmax(log p / T), see `temperature`.

    Attributes:
        value: T.

    >>> p, labels = np.array([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1])
    >>> Temperature.fit(p, labels)(p)[0].round(3).tolist()
    [0.75, 0.25]
    """

    value: float

    @classmethod
    def fit(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Temperature":
        """Fit it on validation rows; see `temperature`."""
        return cls(temperature(probabilities, labels))

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities."""
        return scaled(probabilities, self.value)


@recorded
@dataclass(frozen=True, eq=False)
class Vector:
    """softmax(slope_c log p_c + offset_c): vector scaling.

    Attributes:
        slope: float64 (C,).
        offset: float64 (C,), with sum 0.

    References:
        Guo et al. 2017, arXiv:1706.04599, section 4.2.

    >>> p, labels = np.array([[0.9, 0.1], [0.4, 0.6]] * 4), np.array([0, 0, 0, 1, 1, 1, 0, 1])
    >>> Vector.fit(p, labels)(p)[:2].round(3).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """

    slope: np.ndarray
    offset: np.ndarray

    @classmethod
    def fit(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Vector":
        """Fit it by the likelihood of validation rows, which is concave.

        Raises:
            ValueError: the shapes differ, or a class has no row.
        """
        p, labels = _known(probabilities, labels)
        z, classes = _log(p), p.shape[1]
        hit = np.eye(classes)[labels]

        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            slope, offset = values.reshape(2, classes)
            log_p = log_softmax(slope * z + offset, axis=1)
            error = np.exp(log_p) - hit
            slopes = np.concatenate([(error * z).mean(0), error.mean(0)])
            return -(log_p * hit).sum() / len(z), slopes

        start = np.concatenate([np.ones(classes), np.zeros(classes)])
        slope, offset = _least(loss, start).reshape(2, classes)
        return cls(slope, offset - offset.mean())

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities."""
        found: np.ndarray = softmax(self.slope * _log(probabilities) + self.offset, axis=1)
        return found


@recorded
@dataclass(frozen=True, eq=False)
class Platt:
    """A logistic curve of the log-odds of each class: σ(slope log(p / (1 - p)) + offset).

    It is fitted to Platt's targets, (n + 1) / (n + 2) and 1 / (m + 2) for n rows of the class and m
    others, so that it stays finite where no row is wrong.

    Attributes:
        slope: float64 (K,), K = C, or 1 for two classes.
        offset: float64 (K,).

    References:
        Platt 1999, Probabilistic outputs for support vector machines.

    >>> p, labels = np.array([[0.9, 0.1], [0.4, 0.6]] * 4), np.array([0, 0, 0, 1, 1, 1, 0, 1])
    >>> Platt.fit(p, labels)(p)[:2].round(3).tolist()
    [[0.667, 0.333], [0.333, 0.667]]
    """

    slope: np.ndarray
    offset: np.ndarray

    @classmethod
    def fit(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Platt":
        """Fit it on validation rows.

        Raises:
            ValueError: the shapes differ, or a class has no row.
        """
        found = []
        for p, hit in _each(*_known(probabilities, labels)):
            rows = hit.sum()
            targets = np.where(hit, (rows + 1) / (rows + 2), 1 / (len(hit) - rows + 2))
            found.append(_logistic(_log_odds(p)[:, None], targets))
        slope, offset = np.array(found).T
        return cls(slope, offset)

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities."""
        z = _log_odds(_curved(probabilities, len(self.slope)))
        return _together(expit(self.slope * z + self.offset))


@recorded
@dataclass(frozen=True, eq=False)
class Beta:
    """A beta curve of each class: σ(a log p - b log(1 - p) + c), with a and b of at least 0.

    Unlike Platt's it contains the identity (a = b = 1, c = 0), and curves bent like an inverse S.

    Attributes:
        a: float64 (K,), K = C, or 1 for two classes.
        b: float64 (K,).
        c: float64 (K,).

    References:
        Kull, Silva Filho and Flach 2017, Beta calibration, AISTATS.

    >>> p = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]] * 4)
    >>> labels = np.array([0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0])
    >>> Beta.fit(p, labels)(p)[:3].round(2).tolist()
    [[0.81, 0.19], [0.28, 0.72], [0.67, 0.33]]
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    @classmethod
    def fit(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Beta":
        """Fit it by the likelihood of validation rows.

        Raises:
            ValueError: the shapes differ, or a class has no row.
        """
        found = [
            _logistic(np.stack([_log(p), -_log(1 - p)], 1), hit.astype(float), least=0.0)
            for p, hit in _each(*_known(probabilities, labels))
        ]
        return cls(*np.array(found).T)

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities."""
        p = _curved(probabilities, len(self.a))
        return _together(expit(self.a * _log(p) - self.b * _log(1 - p) + self.c))


@recorded
@dataclass(frozen=True, eq=False)
class Isotonic:
    """A rising curve for each class: isotonic regression, linear between the validation rows.

    Attributes:
        points: for each of the K curves (K = C, or 1 for two classes) the probabilities at which it
            is known, float64 (n,), rising.
        values: for each the calibrated values there, (n,).

    References:
        Zadrozny and Elkan 2002, Transforming classifier scores into accurate multiclass probability
        estimates.

    >>> p, labels = np.array([[0.9, 0.1], [0.4, 0.6]] * 4), np.array([0, 0, 0, 1, 1, 1, 0, 1])
    >>> Isotonic.fit(p, labels)(np.array([[0.9, 0.1], [0.65, 0.35]])).round(3).tolist()
    [[0.75, 0.25], [0.5, 0.5]]
    """

    points: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Isotonic":
        """Fit it on validation rows.

        Raises:
            ValueError: the shapes differ, or a class has no row.
        """
        return cls.of_some(*_known(probabilities, labels))

    @classmethod
    def of_some(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Isotonic":
        """As `fit` of checked arrays, but a class may have no row; its curve is then 0."""
        points, values = [], []
        for p, hit in _each(probabilities, labels):
            levels, place = np.unique(p, return_inverse=True)
            rows = np.bincount(place)
            share = np.bincount(place, hit) / rows
            curve = scipy.optimize.isotonic_regression(share, weights=rows).x
            # what lies on the line between its neighbours is not kept
            kept = np.ones(len(levels), bool)
            kept[1:-1] = (curve[1:-1] != curve[:-2]) | (curve[1:-1] != curve[2:])
            points.append(levels[kept])
            values.append(curve[kept])
        return cls(tuple(points), tuple(values))

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities."""
        p = _curved(probabilities, len(self.points))
        curves = zip(p.T, self.points, self.values, strict=True)
        return _together(np.stack([np.interp(*curve) for curve in curves], 1))


CALIBRATORS: dict[str, Any] = {
    "temperature": Temperature,
    "vector": Vector,
    "platt": Platt,
    "beta": Beta,
    "isotonic": Isotonic,
}


def _known(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, where each class has a row."""
    p, labels = check_pair(probabilities, labels)
    missing = np.setdiff1d(np.arange(p.shape[1]), labels)
    if missing.size or p.shape[1] < 2:
        raise ValueError(
            f"labels must have each of the {p.shape[1]} classes (2 or more) at least once, got no "
            f"row of {missing.tolist()[:5]}"
        )
    return np.asarray(p, np.float64), labels


def _each(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The probability of each class that has a curve, and whether the rows are of it."""
    classes = probabilities.shape[1]
    return [(probabilities[:, one], labels == one) for one in range(classes == 2, classes)]


def _curved(probabilities: np.ndarray, curves: int) -> np.ndarray:
    """The probabilities of the classes that have a curve, float64 (N, K)."""
    p = np.asarray(probabilities, np.float64)
    classes = 2 if curves == 1 else curves
    if p.ndim != 2 or p.shape[1] != classes:
        raise ValueError(f"probabilities must have shape (N, {classes}), got {p.shape}")
    return p[:, 1:] if curves == 1 else p


def _together(values: np.ndarray) -> np.ndarray:
    """Values of the curves as probabilities of all classes; equal ones where all values are 0."""
    if values.shape[1] == 1:
        return np.concatenate([1 - values, values], 1)
    total = values.sum(1, keepdims=True)
    equal = np.full_like(values, 1 / values.shape[1])
    return np.divide(values, total, out=equal, where=total > 0)


def _logistic(inputs: np.ndarray, targets: np.ndarray, least: float | None = None) -> np.ndarray:
    """Slopes (F,) of at least `least`, and the offset: the logistic regression of targets (N,)."""
    x = np.column_stack([inputs, np.ones(len(inputs))])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ values
        return (np.logaddexp(0, z) - targets * z).mean(), x.T @ (expit(z) - targets) / len(x)

    bounds = [(least, None)] * inputs.shape[1] + [(None, None)]
    return _least(loss, np.append(np.ones(inputs.shape[1]), 0.0), bounds)


def _least(loss: Any, start: np.ndarray, bounds: Any = None) -> np.ndarray:
    """Where a convex loss with its gradient is smallest."""
    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    found: np.ndarray = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    ).x
    return found


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.clip(np.asarray(p, np.float64), SMALLEST, 1))


def _log_odds(p: np.ndarray) -> np.ndarray:
    return _log(p) - _log(1 - np.asarray(p, np.float64))
