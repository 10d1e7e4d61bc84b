"""Metrics of forecasts, for each window and for each step ahead, with confidence intervals.

Forecast and target are (W, H, C): windows, steps ahead, channels. If each series has one window, as
in M4, the windows are the series. A metric is the mean over steps and channels, (W,); with
`per="step"` the mean over windows and channels, (H,); with `per="both"` the mean over only the
channels, (W, H). All are computed in float64 on the host. Every metric raises `ValueError` for
shapes that differ and for values that are not finite; no value is left out silently.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.special import ndtr

AXES = {"window": (1, 2), "step": (0, 2), "both": (2,)}
Per = Literal["window", "step", "both"]


def mse(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Mean squared error: mean of (forecast - target)^2.

    Args:
        forecast: (W, H, C).
        target: (W, H, C).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> mse(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]]))
    array([5.])
    """
    forecast, target = _checked(forecast, target)
    return _mean((forecast - target) ** 2, per)


def mae(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Mean absolute error: mean of |forecast - target|.

    Args:
        forecast: (W, H, C).
        target: (W, H, C).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> mae(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]]))
    array([2.])
    """
    forecast, target = _checked(forecast, target)
    return _mean(np.abs(forecast - target), per)


def rmse(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Root of `mse`. Its mean over windows is not the root of the mean of `mse`.

    Args:
        forecast: (W, H, C).
        target: (W, H, C).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> rmse(np.zeros((1, 2, 1)), np.array([[[3.0], [3.0]]]))
    array([3.])
    """
    return np.sqrt(mse(forecast, target, per))


def smape(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Symmetric MAPE: mean of 200 |f - y| / (|f| + |y|), in percent, as in M4; 0 / 0 counts as 0.

    Args:
        forecast: (W, H, C), f.
        target: (W, H, C), y.
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    References:
        Makridakis, Spiliotis and Assimakopoulos 2020, The M4 Competition, IJF 36.

    >>> smape(np.array([[[1.0]]]), np.array([[[3.0]]]))
    array([100.])
    """
    forecast, target = _checked(forecast, target)
    size = np.abs(forecast) + np.abs(target)
    return _mean(200 * np.abs(forecast - target) / np.where(size > 0, size, 1), per)


def mase(
    forecast: np.ndarray, target: np.ndarray, scale: np.ndarray, per: Per = "window"
) -> np.ndarray:
    """Mean absolute scaled error: mean of |f - y| / scale.

    Args:
        forecast: (W, H, C), f.
        target: (W, H, C), y.
        scale: (W,) or (W, C), by `seasonal_scale` of each window's series before the forecast.
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    Raises:
        ValueError: shapes that differ, values that are not finite, or a scale that is not above 0.
            A series that repeats itself exactly has scale 0; leave it out and report this.

    References:
        Hyndman and Koehler 2006, Another look at measures of forecast accuracy, IJF 22.

    >>> mase(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]]), scale=np.array([4.0]))
    array([0.5])
    """
    forecast, target = _checked(forecast, target)
    scale = np.asarray(scale, np.float64)
    scale = scale[:, None] if scale.ndim == 1 else scale
    if scale.ndim != 2 or len(scale) != len(target) or scale.shape[1] not in (1, target.shape[2]):
        raise ValueError(f"scale must have shape ({len(target)},) or (W, C), got {scale.shape}")
    if not (scale > 0).all():
        bad = ~(scale > 0)
        raise ValueError(
            f"scale must be above 0, got {scale[bad][0]:g} for window {bad.any(1).argmax()} "
            f"({bad.sum():,} of {scale.size:,}); leave out series that repeat themselves exactly "
            "or have no more than a season"
        )
    return _mean(np.abs(forecast - target) / scale[:, None], per)


def seasonal_scale(
    values: np.ndarray, season: int = 1, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Mean of |y_t - y_{t - season}| over the training part; NaN for series of one season or less.

    Args:
        values: (B, L), right-aligned: each series ends in the last column.
        season: steps of one season.
        lengths: (B,), rows of each series; all L by default.

    Returns:
        float64 (B,).

    >>> seasonal_scale(np.array([[1.0, 2.0, 4.0]]))
    array([1.5])
    """
    values = np.asarray(values, np.float64)
    moves = np.abs(values[:, season:] - values[:, :-season])
    count = np.full(len(values), values.shape[1]) if lengths is None else np.asarray(lengths)
    count = count - season
    exists = np.arange(moves.shape[1])[None] >= (moves.shape[1] - count)[:, None]
    return np.where(exists, moves, 0).sum(1) / np.where(count > 0, count, np.nan)


def owa(smape: float, mase: float, smape_naive2: float, mase_naive2: float) -> float:
    """The overall weighted average of M4: mean of both errors relative to those of `naive2`.

    Args:
        smape: sMAPE of the forecasts.
        mase: MASE of the forecasts.
        smape_naive2: sMAPE of `naive2` for the same series.
        mase_naive2: MASE of `naive2` for the same series.

    >>> owa(smape=9.0, mase=1.0, smape_naive2=18.0, mase_naive2=2.0)
    0.5
    """
    return (smape / smape_naive2 + mase / mase_naive2) / 2


def pinball(
    quantiles: np.ndarray, target: np.ndarray, levels: Sequence[float], per: Per = "window"
) -> np.ndarray:
    """Quantile loss: mean over the levels a of max(a (y - q), (a - 1) (y - q)).

    Args:
        quantiles: (W, H, C, Q), q.
        target: (W, H, C), y.
        levels: Q numbers in (0, 1).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> pinball(np.array([[[[0.0, 4.0]]]]), np.array([[[1.0]]]), (0.1, 0.9))
    array([0.2])
    """
    quantiles, target = _checked(quantiles, target, extra=1)
    a = np.asarray(levels, np.float64)
    if a.shape != quantiles.shape[3:] or not ((a > 0) & (a < 1)).all():
        raise ValueError(
            f"levels must be {quantiles.shape[3]} numbers in (0, 1), as quantiles, got {levels}"
        )
    miss = target[..., None] - quantiles
    return _mean(np.maximum(a * miss, (a - 1) * miss).mean(3), per)


def crps_quantiles(
    quantiles: np.ndarray, target: np.ndarray, levels: Sequence[float], per: Per = "window"
) -> np.ndarray:
    """Continuous ranked probability score from quantiles: twice `pinball`.

    CRPS is the integral of twice the quantile loss over all levels (Laio and Tamea 2007), estimated
    here by the mean over the given levels. It is accurate for many evenly spaced levels,
    (i - 1/2) / Q. With few levels, compare only results for the same levels.

    Args:
        quantiles: (W, H, C, Q).
        target: (W, H, C).
        levels: Q numbers in (0, 1).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> crps_quantiles(np.array([[[[0.0, 4.0]]]]), np.array([[[1.0]]]), (0.1, 0.9))
    array([0.4])
    """
    return 2 * pinball(quantiles, target, levels, per)


def crps_samples(samples: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """CRPS from n samples: mean |x - y| - mean |x - x'| / 2 over pairs of different samples.

    Its expectation is the CRPS of the distribution that was sampled (the fair CRPS; Ferro 2014).

    Args:
        samples: (W, H, C, n), n at least 2.
        target: (W, H, C).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> crps_samples(np.array([[[[0.0, 2.0]]]]), np.array([[[1.0]]]))
    array([0.])
    """
    samples, target = _checked(samples, target, extra=1)
    if (n := samples.shape[3]) < 2:
        raise ValueError(f"samples must be at least 2 for each target, got {n}")
    # sum over pairs |x - x'| = sum of sorted x times (2 i - n - 1), i from 1
    between = (np.sort(samples, 3) * (2 * np.arange(1, n + 1) - n - 1)).sum(3) / (n * (n - 1))
    return _mean(np.abs(samples - target[..., None]).mean(3) - between, per)


def crps_normal(
    mean: np.ndarray, sd: np.ndarray, target: np.ndarray, per: Per = "window"
) -> np.ndarray:
    """CRPS of a normal distribution: sd (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)).

    z is (target - mean) / sd.

    Args:
        mean: (W, H, C).
        sd: (W, H, C), above 0.
        target: (W, H, C).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    References:
        Gneiting and Raftery 2007, Strictly proper scoring rules, JASA 102, equation 21.

    >>> crps_normal(np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.zeros((1, 1, 1))).round(4)
    array([0.2337])
    """
    mean, target = _checked(mean, target)
    sd, _ = _checked(sd, target)
    if not (sd > 0).all():
        raise ValueError(f"sd must be above 0, got {(~(sd > 0)).sum():,} values that are not")
    z = (target - mean) / sd
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return _mean(sd * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi)), per)


def coverage(
    low: np.ndarray, high: np.ndarray, target: np.ndarray, per: Per = "window"
) -> np.ndarray:
    """Share of targets in [low, high]; bounds may be infinite.

    Args:
        low: (W, H, C).
        high: (W, H, C).
        target: (W, H, C).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> coverage(np.zeros((1, 2, 1)), np.ones((1, 2, 1)), np.array([[[0.5], [3.0]]]))
    array([0.5])
    """
    low, high, target = _bounds(low, high, target)
    return _mean(((low <= target) & (target <= high)).astype(np.float64), per)


def width(low: np.ndarray, high: np.ndarray, per: Per = "window") -> np.ndarray:
    """Mean of high - low; infinite if a bound is. Empty intervals (low above high) count as 0.

    Args:
        low: (W, H, C).
        high: (W, H, C).
        per: "window" gives (W,), "step" (H,), "both" (W, H).

    >>> width(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]]))
    array([2.])
    """
    low, high, _ = _bounds(low, high, np.zeros(np.shape(low)))
    return _mean(np.maximum(high - low, 0), per)


def _mean(values: np.ndarray, per: Per) -> np.ndarray:
    if per not in AXES:
        raise ValueError(f"per must be one of {tuple(AXES)}, got {per!r}")
    return values.mean(AXES[per])


def _checked(
    forecast: np.ndarray, target: np.ndarray, extra: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64; raises ValueError unless their shapes agree and all is finite."""
    forecast, target = np.asarray(forecast, np.float64), np.asarray(target, np.float64)
    if target.ndim != 3 or forecast.ndim != 3 + extra or forecast.shape[:3] != target.shape:
        raise ValueError(
            f"forecast and target must have shapes {'(W, H, C, Q)' if extra else '(W, H, C)'} and "
            f"(W, H, C), got {forecast.shape} and {target.shape}"
        )
    for name, values in {"forecast": forecast, "target": target}.items():
        if bad := np.size(values) - np.isfinite(values).sum():
            raise ValueError(
                f"{name} must be finite, got {bad:,} of {values.size:,} values that are not"
            )
    return forecast, target


def _bounds(low: np.ndarray, high: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    low, high, target = (np.asarray(x, np.float64) for x in (low, high, target))
    if target.ndim != 3 or not low.shape == high.shape == target.shape:
        raise ValueError(
            "low, high and target must have one shape (W, H, C), got "
            f"{low.shape}, {high.shape} and {target.shape}"
        )
    if any(np.isnan(x).any() for x in (low, high, target)) or not np.isfinite(target).all():
        raise ValueError(
            "low and high must not be NaN and target must be finite, got NaN or an infinite target"
        )
    return low, high, target
