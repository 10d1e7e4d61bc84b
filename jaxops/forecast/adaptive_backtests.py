"""Adaptive conformal intervals over the origins of a backtest."""

from typing import Any, NamedTuple

import numpy as np

from jaxops.forecast import metrics
from jaxops.forecast.backtests import historical_forecasts
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import Windows
from jaxops.trust.conformal import Bounds, adaptive, quantile_scores


class AdaptiveBacktest(NamedTuple):
    """Adaptive intervals of W windows, in their order.

    Attributes:
        bounds: low and high, (W, H, C) each; infinite where the nominal coverage is outside [0, 1].
        target: float32 (W, H, C).
        coverage: (H,), the share of targets inside, for each step ahead.
    """

    bounds: Bounds
    target: np.ndarray
    coverage: np.ndarray


def adaptive_backtest(
    model: Any,
    series: Series,
    calibration: Windows,
    test: Windows,
    horizon: int,
    coverage: float = 0.9,
    rate: float = 0.01,
    quantiles: tuple[float, float] | None = None,
) -> AdaptiveBacktest:
    """Put `adaptive` intervals around a model's forecasts at each origin of a backtest.

    Each series, channel and step ahead has its own margins, from the errors of that series only. At
    an origin only errors are used whose targets lie before it: for h steps ahead, those of windows
    at least h / stride origins before.

    Args:
        model: any model, see `forecast`.
        series: all rows, with the targets.
        calibration: windows whose targets are known at the first origin of test. Each series must
            have the same number; for finite bounds at least coverage / (1 - coverage).
        test: windows of the same series, the same number for each, at a constant stride.
        horizon: H, number of steps.
        coverage: in (0, 1).
        rate: see `adaptive`.
        quantiles: levels of the low and the high quantile to move, such as (0.05, 0.95); None for
            bounds around the mean.

    Raises:
        ValueError: windows that do not fit this description; see also `historical_forecasts` and
            `adaptive`.

    >>> from jaxops.forecast import Baseline, from_arrays, origins
    >>> walk = np.cumsum(np.random.default_rng(0).normal(size=600))
    >>> series = from_arrays(["a"], [walk])
    >>> before, after = (origins(series, 1, 2, np.array([rows])) for rows in ([1, 200], [200, 600]))
    >>> result = adaptive_backtest(Baseline("repeat_last"), series, before, after, 2, coverage=0.8)
    >>> bool(np.abs(result.coverage - 0.8).max() < 0.05)
    True
    """
    orders = [np.lexsort((w["origin"], w["series"])) for w in (calibration, test)]
    count, stride = _checked(calibration, test, orders, horizon)
    levels = () if quantiles is None else quantiles
    base, scores = [], []
    for windows, order in zip((calibration, test), orders, strict=True):
        backtest = historical_forecasts(model, series, windows, horizon, levels)
        ends = backtest.mean[..., None] if quantiles is None else backtest.quantiles
        pair = ends.min(-1), ends.max(-1)
        missed = quantile_scores(pair, backtest.target)[order]
        # (S, windows, H, C) to (windows, S, H, C)
        scores.append(missed.reshape(count, -1, *missed.shape[1:]).swapaxes(0, 1))
        base.append((*pair, backtest.target))
    delay = np.arange(horizon)[:, None] // stride + 1
    margins = np.asarray(adaptive(scores[0], scores[1], coverage, rate, delay).margins)
    low, high, target = base[1]
    size = np.empty_like(low)
    size[orders[1]] = margins.swapaxes(0, 1).reshape(low.shape)
    middle = (low + high) / 2  # bounds that would move past each other meet in the middle
    bounds = Bounds(np.minimum(low - size, middle), np.maximum(high + size, middle))
    return AdaptiveBacktest(bounds, target, metrics.coverage(*bounds, target, per="step"))


def _checked(
    calibration: Windows, test: Windows, orders: list[np.ndarray], horizon: int
) -> tuple[int, int]:
    """The number of series, and the stride of test."""
    origins = []
    for name, windows, order in zip(
        ("calibration", "test"), (calibration, test), orders, strict=True
    ):
        present, counts = np.unique(windows["series"], return_counts=True)
        if (
            not len(present)
            or np.ptp(counts)
            or not np.array_equal(present, np.unique(test["series"]))
        ):
            raise ValueError(
                f"{name} must have the same number of windows for each series of test, got "
                f"{np.unique(counts).tolist()} windows of {len(present)} series"
            )
        origins.append(windows["origin"][order].reshape(len(present), -1))
    before, after = origins
    late = before[:, -1] + horizon > after[:, 0]
    if late.any():
        raise ValueError(
            "calibration must have targets known at the first origin of test, got later ones for "
            f"{late.sum()} series"
        )
    strides = np.unique(np.diff(after))
    if len(strides) > 1 or (strides < 1).any():
        raise ValueError(f"test must have one stride of at least 1, got {strides.tolist()}")
    return len(after), int(strides[0]) if len(strides) else 1
