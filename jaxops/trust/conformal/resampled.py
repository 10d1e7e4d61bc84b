"""Intervals without calibration rows of their own: from predictions out of fold."""

import numpy as np

from jaxops.trust.conformal.margins import Bounds, check_coverage

AT_ONCE = 2**22  # values that are sorted at a time


def cv_plus(
    forecasts: np.ndarray,
    out_of_fold: np.ndarray,
    target: np.ndarray,
    folds: np.ndarray,
    coverage: float = 0.9,
) -> Bounds:
    """CV+ intervals; the jackknife+ where each row is a fold of its own.

    Model k has not learned from the rows of fold k. With R_i = |target_i - out_of_fold_i|, and the
    forecasts of the models that have not learned from row i, the bounds are

        low:  the floor((1 - coverage) (N + 1))-th smallest of forecast_i - R_i,
        high: the ceil(coverage (N + 1))-th smallest of forecast_i + R_i.

    They cover at least 2 coverage - 1 for any model (a little less for few large folds), and about
    the coverage for models that change little from fold to fold.

    Args:
        forecasts: (K, M), the predictions of each of the K models for the rows to be covered.
        out_of_fold: (N,), for each train row the prediction of the model of its fold.
        target: (N,).
        folds: (N,) integers in [0, K), the fold of each train row.
        coverage: in (0, 1).

    Returns:
        Bounds, (M,) each; infinite if N is less than coverage / (1 - coverage).

    Raises:
        ValueError: the shapes do not agree, a value is not finite, or a fold is not there.

    References:
        Barber, Candes, Ramdas and Tibshirani 2021, arXiv:1905.02928.

    >>> errors = np.arange(1.0, 20.0)
    >>> bounds = cv_plus(np.zeros((19, 1)), np.zeros(19), errors, np.arange(19))
    >>> bounds.low.tolist(), bounds.high.tolist()
    ([-18.0], [18.0])
    """
    check_coverage(coverage)
    new, known, target = (np.asarray(x, np.float64) for x in (forecasts, out_of_fold, target))
    folds = np.asarray(folds)
    if new.ndim != 2 or known.ndim != 1 or not known.shape == target.shape == folds.shape:
        raise ValueError(
            "forecasts must be (K, M), and out_of_fold, target and folds (N,), got "
            f"{new.shape}, {known.shape}, {target.shape} and {folds.shape}"
        )
    if not all(np.isfinite(x).all() for x in (new, known, target)):
        raise ValueError("forecasts, out_of_fold and target must be finite, got NaN or infinity")
    wrong = (folds < 0) | (folds >= len(new)) | (folds % 1 != 0)
    if wrong.any() or not len(folds):
        given = f"{folds[wrong][0]}" if wrong.any() else "no rows"
        raise ValueError(f"folds must be whole numbers in [0, {len(new)}), got {given}")
    folds = folds.astype(int)
    residual = np.abs(target - known)[:, None]
    rows = len(known)
    high_place = int(np.ceil(coverage * (rows + 1) - 1e-9))
    low_place = int(np.floor((1 - coverage) * (rows + 1) + 1e-9))
    low, high = np.full(new.shape[1], -np.inf), np.full(new.shape[1], np.inf)
    step = max(1, AT_ONCE // rows)
    if high_place <= rows:
        for start in range(0, new.shape[1], step):
            part = slice(start, start + step)
            own = new[folds, part]
            low[part] = np.partition(own - residual, low_place - 1, axis=0)[low_place - 1]
            high[part] = np.partition(own + residual, high_place - 1, axis=0)[high_place - 1]
    return Bounds(low, high)
