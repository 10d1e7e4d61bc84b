"""Intervals of a forecast that goes on: each backtest origin corrects the next."""

from typing import Any, NamedTuple

import numpy as np

from jaxops.forecast.backtests import historical_forecasts
from jaxops.forecast.conformal import Bounds, adaptive, quantile_scores
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import Windows
from jaxops.forecast.metrics import coverage


class AdaptiveBacktest(NamedTuple):
    """What `adaptive_backtest` gives for W windows, in their order.

    Attributes:
        bounds: low and high, (W, H, C) each; infinite where the level had left 0 to 1.
        target: float32 (W, H, C).
        coverage: (H,), the share of targets inside, of each step ahead.
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
    level: float = 0.9,
    rate: float = 0.01,
    quantiles: tuple[float, float] | None = None,
) -> AdaptiveBacktest:
    """Put `adaptive` intervals around what a model would have said at each origin.

    Each series, channel and step ahead has margins of its own, from the errors of that series
    alone. At an origin those errors are known whose targets lie before it: those h steps ahead of
    the windows that are h / stride or more back.

    Args:
        model: any, see `forecast`.
        series: all rows, with the targets.
        calibration: windows whose errors are known at the first origin of test, as many of each
            series, and level / (1 - level) or more for finite bounds.
        test: windows of the same series, as many of each, one stride apart.
        horizon: H.
        level: to be covered.
        rate: see `adaptive`.
        quantiles: low and high, such as (0.05, 0.95), which are then moved; else the bounds lie
            around the mean.

    Raises:
        ValueError: windows other than these; else as `historical_forecasts` and `adaptive`.

    >>> from jaxops.forecast import Baseline, from_arrays, origins
    >>> walk = np.cumsum(np.random.default_rng(0).normal(size=600))
    >>> series = from_arrays(["a"], [walk])
    >>> before, after = (origins(series, 1, 2, np.array([rows])) for rows in ([1, 200], [200, 600]))
    >>> found = adaptive_backtest(Baseline("repeat_last"), series, before, after, 2, level=0.8)
    >>> bool(np.abs(found.coverage - 0.8).max() < 0.05)
    True
    """
    orders = [np.lexsort((w["origin"], w["series"])) for w in (calibration, test)]
    count, stride = _checked(calibration, test, orders, horizon)
    asked = () if quantiles is None else quantiles
    base, scores = [], []
    for windows, order in zip((calibration, test), orders, strict=True):
        found = historical_forecasts(model, series, windows, horizon, asked)
        own = found.mean[..., None] if quantiles is None else found.quantiles
        pair = own.min(-1), own.max(-1)
        missed = quantile_scores(pair, found.target)[order]
        # (S, windows, H, C) to (windows, S, H, C)
        scores.append(missed.reshape(count, -1, *missed.shape[1:]).swapaxes(0, 1))
        base.append((*pair, found.target))
    delay = np.arange(horizon)[:, None] // stride + 1
    margins = np.asarray(adaptive(scores[0], scores[1], level, rate, delay).margins)
    low, high, target = base[1]
    size = np.empty_like(low)
    size[orders[1]] = margins.swapaxes(0, 1).reshape(low.shape)
    middle = (low + high) / 2  # bounds moved past each other meet there
    bounds = Bounds(np.minimum(low - size, middle), np.maximum(high + size, middle))
    return AdaptiveBacktest(bounds, target, coverage(*bounds, target, per="step"))


def _checked(
    calibration: Windows, test: Windows, orders: list[np.ndarray], horizon: int
) -> tuple[int, int]:
    """How many series, and the stride of test."""
    origins = []
    for name, windows, order in zip(
        ("calibration", "test"), (calibration, test), orders, strict=True
    ):
        of, counts = np.unique(windows["series"], return_counts=True)
        if not len(of) or np.ptp(counts) or not np.array_equal(of, np.unique(test["series"])):
            raise ValueError(
                f"{name}: {np.unique(counts).tolist()} windows a series found, of {len(of)} series,"
                " as many of each wanted, of the series of test"
            )
        origins.append(windows["origin"][order].reshape(len(of), -1))
    before, after = origins
    late = before[:, -1] + horizon > after[:, 0]
    if late.any():
        raise ValueError(
            f"calibration: targets of {late.sum()} series found that are not known at the first "
            "origin of test, earlier ones wanted"
        )
    strides = np.unique(np.diff(after))
    if len(strides) > 1 or (strides < 1).any():
        raise ValueError(f"test: strides {strides.tolist()} found, one from 1 up wanted")
    return len(after), int(strides[0]) if len(strides) else 1
