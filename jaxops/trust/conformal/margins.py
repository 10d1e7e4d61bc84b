"""Margins that are added to predictions, and the intervals that they make."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bounds(NamedTuple):
    """Bounds of intervals.

    Attributes:
        low: (W, ...), the lower bounds, in the shape of the predictions.
        high: (W, ...), the upper bounds.
    """

    low: np.ndarray
    high: np.ndarray


def margin(scores: np.ndarray, coverage: float = 0.9) -> np.ndarray:
    """The ceil((N + 1) coverage)-th smallest score of each column; infinite if that exceeds N.

    The probability that the next score is at most the margin is at least `coverage`, and, if no two
    scores are equal, at most `coverage + 1 / (N + 1)`. The margin is finite if N is at least
    coverage / (1 - coverage), which is 9 for a coverage of 0.9.

    Args:
        scores: (N, ...), the scores of the calibration rows.
        coverage: in (0, 1).

    Returns:
        float64 (...).

    Raises:
        ValueError: there are no scores, one is not finite, or the coverage is outside (0, 1).

    References:
        Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World; Lei et al. 2018,
        arXiv:1604.04173.

    >>> margin(np.arange(1.0, 20.0), coverage=0.9)
    array(18.)
    """
    scores = checked("scores", scores, coverage)
    k = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    if k > len(scores):
        return np.full(scores.shape[1:], np.inf)
    return np.asarray(np.partition(scores, k - 1, axis=0)[k - 1])


def rows_needed(coverage: float) -> int:
    """The smallest number of calibration rows for which `margin` is finite.

    Args:
        coverage: in (0, 1).

    Raises:
        ValueError: the coverage is outside (0, 1).

    >>> rows_needed(0.9), rows_needed(0.95)
    (9, 19)
    """
    check_coverage(coverage)
    return int(np.ceil(coverage / (1 - coverage) - 1e-9))


def check_enough(rows: int, coverage: float, name: str = "rows") -> None:
    """Raise `ValueError` if so few calibration rows have no finite margin.

    Args:
        rows: number of calibration rows.
        coverage: in (0, 1).
        name: of the rows in the message.
    """
    needed = rows_needed(coverage)
    if rows < needed:
        raise ValueError(
            f"{name} must be at least {needed} for a coverage of {coverage}, got {rows}"
        )


def split_conformal(
    forecast: np.ndarray,
    calibration_forecast: np.ndarray,
    calibration_target: np.ndarray,
    coverage: float = 0.9,
    spreads: tuple[np.ndarray, np.ndarray] | None = None,
) -> Bounds:
    """Split conformal intervals: forecast ± the margin of |target - forecast| in calibration.

    With spreads σ, such as standard deviations, it is forecast ± σ times the margin of
    |target - forecast| / σ. So the intervals are wide where the spread is large.

    Args:
        forecast: (W, ...), predictions to put bounds around.
        calibration_forecast: (N, ...), predictions of the same model for calibration.
        calibration_target: (N, ...), their targets.
        coverage: in (0, 1).
        spreads: those of the forecast, (W, ...), and of the calibration rows, (N, ...), above 0 and
            known before the targets; None counts all errors alike.

    Returns:
        Bounds, (W, ...) each; each position along the other axes has its own margin.

    Raises:
        ValueError: the shapes do not agree, or a spread is not above 0; see also `margin`.

    References:
        Lei et al. 2018, arXiv:1604.04173, section 5.2, for spreads.

    >>> bounds = split_conformal(np.zeros((1, 1)), np.zeros((19, 1)), np.arange(1.0, 20.0)[:, None])
    >>> bounds.low, bounds.high
    (array([[-18.]]), array([[18.]]))
    """
    forecast = np.asarray(forecast)
    _alike(calibration_forecast, calibration_target, forecast)
    errors = np.abs(np.subtract(calibration_target, calibration_forecast))
    if spreads is None:
        size = margin(errors, coverage)
    else:
        own, known = (np.asarray(x) for x in spreads)
        _alike(known, errors, own)
        size = check_spread(own) * margin(errors / check_spread(known), coverage)
    return Bounds(forecast - size, forecast + size)


def conformal_quantiles(
    quantiles: Bounds | tuple[np.ndarray, np.ndarray],
    calibration_quantiles: Bounds | tuple[np.ndarray, np.ndarray],
    calibration_target: np.ndarray,
    coverage: float = 0.9,
) -> Bounds:
    """Conformalised quantile regression: two quantiles, moved by the margin of their errors.

    They are moved apart, or together if they covered too much, by the margin of
    max(low - target, target - high). So the intervals are wide where the model's own are wide.
    Quantiles that cross are swapped. Bounds that would move past each other meet in the middle.

    Args:
        quantiles: low and high, (W, ...) each, such as levels 0.05 and 0.95 for a coverage of 0.9.
        calibration_quantiles: low and high, (N, ...) each, of the same model.
        calibration_target: (N, ...).
        coverage: in (0, 1).

    Returns:
        Bounds, (W, ...) each.

    Raises:
        ValueError: the shapes do not agree; see also `margin`.

    References:
        Romano, Patterson and Candes 2019, arXiv:1905.03222, theorem 1.

    >>> calibration = np.zeros(19), np.ones(19)
    >>> target = np.arange(19) / 4  # 18 of 19 are at most 3.25 above the upper one
    >>> bounds = conformal_quantiles((np.zeros(1), np.ones(1)), calibration, target)
    >>> bounds.low.item(), bounds.high.item()
    (-3.25, 4.25)
    """
    low, high = _sorted(quantiles)
    before = _sorted(calibration_quantiles)
    _alike(before.low, calibration_target, low)
    size = margin(quantile_scores(before, calibration_target), coverage)
    middle = (low + high) / 2
    return Bounds(np.minimum(low - size, middle), np.maximum(high + size, middle))


def quantile_scores(
    quantiles: Bounds | tuple[np.ndarray, np.ndarray], target: np.ndarray
) -> np.ndarray:
    """max(low - target, target - high): how far a target is outside; negative if it is inside.

    Args:
        quantiles: low and high, (N, ...) each; if they cross, they are swapped.
        target: (N, ...).

    Raises:
        ValueError: quantiles of different shapes.

    >>> quantile_scores((np.zeros(3), np.ones(3)), np.array([-1, 0.25, 3])).tolist()
    [1.0, -0.25, 2.0]
    """
    low, high = _sorted(quantiles)
    return np.maximum(low - target, target - high)


def quantile_offsets(errors: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """How far each quantile is to be moved to have its share of the targets below it.

    A quantile of a level from 0.5 on is moved up by the margin of target - quantile at that level;
    one below 0.5 is moved down by the margin of quantile - target at 1 - level.

    Args:
        errors: (N, ..., Q), target - quantile for each of the Q levels.
        levels: the Q levels.

    Returns:
        float64 (..., Q), to be added to the quantiles.

    Raises:
        ValueError: not Q levels; see also `margin`.

    References:
        Romano, Patterson and Candes 2019, arXiv:1905.03222, theorem 2.

    >>> errors = np.arange(1.0, 20.0)
    >>> quantile_offsets(np.stack([errors, errors], -1), (0.1, 0.9)).tolist()
    [2.0, 18.0]
    """
    errors = np.asarray(errors)
    if errors.ndim < 2 or errors.shape[-1] != len(levels):
        raise ValueError(f"errors must have shape (N, ..., {len(levels)}), got {errors.shape}")
    offsets = []
    for i, level in enumerate(levels):
        sign, share = (1, level) if level >= 0.5 else (-1, 1 - level)
        offsets.append(sign * margin(sign * errors[..., i], share))
    return np.stack(offsets, -1)


def _sorted(quantiles: Bounds | tuple[np.ndarray, np.ndarray]) -> Bounds:
    low, high = (np.asarray(x) for x in quantiles)
    if low.shape != high.shape:
        raise ValueError(f"quantiles must have equal shapes, got {low.shape} and {high.shape}")
    return Bounds(np.minimum(low, high), np.maximum(low, high))


def _alike(forecast: np.ndarray, target: np.ndarray, new: np.ndarray) -> None:
    shapes = np.shape(forecast), np.shape(target), np.shape(new)
    if shapes[0] != shapes[1] or shapes[0][1:] != shapes[2][1:]:
        raise ValueError(
            "calibration_forecast, calibration_target and forecast must have shapes (N, ...), "
            f"(N, ...) and (W, ...), got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )


def checked(name: str, scores: np.ndarray, coverage: float) -> np.ndarray:
    """Scores as float64; raises `ValueError` for scores or a coverage that `margin` cannot take."""
    scores = np.asarray(scores, np.float64)
    check_coverage(coverage)
    if scores.ndim < 1 or not len(scores) or not np.isfinite(scores).all():
        bad = (~np.isfinite(scores)).sum()
        raise ValueError(
            f"{name} must have shape (N, ...) and finite values, got shape {scores.shape}, "
            f"{bad:,} values not finite"
        )
    return scores


def check_coverage(coverage: float) -> None:
    """Raise `ValueError` unless a coverage is in (0, 1)."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}")


def check_spread(spread: np.ndarray) -> np.ndarray:
    """The spreads; raises `ValueError` for one that is not a number above 0."""
    wrong = ~((spread > 0) & np.isfinite(spread))
    if wrong.any():
        row = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"spreads must be finite numbers above 0, got {spread[wrong][0]} at {row}, "
            f"{wrong.sum():,} such"
        )
    return spread
