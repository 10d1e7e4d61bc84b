"""How good forecasts are, for each window and for each step ahead, with intervals.

Forecast and target are (W, H, C): windows, steps ahead, channels; where each series has one window,
as in M4, the windows are the series. A metric takes the mean over steps and channels and gives
(W,); with `per="step"` the mean over windows and channels, (H,); with `per="both"` that over
channels alone, (W, H). All in float64 on the host. What is not finite is an error, never left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import ndtr

from jaxops import _table
from jaxops.trust.comparisons import side_by_side, surely_best
from jaxops.trust.intervals import Interval, block_interval, interval

AXES = {"window": (1, 2), "step": (0, 2), "both": (2,)}
Per = Literal["window", "step", "both"]


def mse(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Mean of (forecast - target)^2, (W,) or (H,).

    >>> mse(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]]))
    array([5.])
    """
    forecast, target = _checked(forecast, target)
    return _mean((forecast - target) ** 2, per)


def mae(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Mean of |forecast - target|, (W,) or (H,)."""
    forecast, target = _checked(forecast, target)
    return _mean(np.abs(forecast - target), per)


def rmse(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Root of `mse`; the mean of this over windows is not the root of the mean over all."""
    return np.sqrt(mse(forecast, target, per))


def smape(forecast: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """Mean of 200 |f - y| / (|f| + |y|), in percent, as in M4 (Makridakis et al. 2020); 0 for 0/0.

    >>> smape(np.array([[[1.0]]]), np.array([[[3.0]]]))
    array([100.])
    """
    forecast, target = _checked(forecast, target)
    size = np.abs(forecast) + np.abs(target)
    return _mean(200 * np.abs(forecast - target) / np.where(size > 0, size, 1), per)


def mase(
    forecast: np.ndarray, target: np.ndarray, scale: np.ndarray, per: Per = "window"
) -> np.ndarray:
    """Mean of |f - y| / scale (Hyndman and Koehler 2006).

    Args:
        forecast: (W, H, C).
        target: (W, H, C).
        scale: (W,) or (W, C), of `seasonal_scale` of each window's series before the forecast.
        per: "window", "step" or "both".

    Raises:
        ValueError: shapes that differ, values that are not finite, or a scale that is not above 0,
            as a series has which repeats itself exactly: leave these series out, and say so.
    """
    forecast, target = _checked(forecast, target)
    scale = np.asarray(scale, np.float64)
    scale = scale[:, None] if scale.ndim == 1 else scale
    if scale.ndim != 2 or len(scale) != len(target) or scale.shape[1] not in (1, target.shape[2]):
        raise ValueError(f"scale: found shape {scale.shape}, wanted one for each of {len(target)}")
    if not (scale > 0).all():
        raise ValueError(f"scale: {(~(scale > 0)).sum():,} of {scale.size:,} are not above 0")
    return _mean(np.abs(forecast - target) / scale[:, None], per)


def seasonal_scale(
    values: np.ndarray, season: int = 1, lengths: np.ndarray | None = None
) -> np.ndarray:
    """The mean of |y_t - y_{t - season}| in the training part, (B,); NaN where it is no longer.

    Args:
        values: (B, L), right-aligned.
        season: steps of one.
        lengths: (B,), by default all L.

    >>> seasonal_scale(np.array([[1.0, 2.0, 4.0]]))
    array([1.5])
    """
    values = np.asarray(values, np.float64)
    moves = np.abs(values[:, season:] - values[:, :-season])
    count = np.full(len(values), values.shape[1]) if lengths is None else np.asarray(lengths)
    count = count - season
    there = np.arange(moves.shape[1])[None] >= (moves.shape[1] - count)[:, None]
    return np.where(there, moves, 0).sum(1) / np.where(count > 0, count, np.nan)


def owa(smape: float, mase: float, smape_naive2: float, mase_naive2: float) -> float:
    """The overall weighted average of M4: mean of both errors relative to those of `naive2`.

    >>> owa(smape=9.0, mase=1.0, smape_naive2=18.0, mase_naive2=2.0)
    0.5
    """
    return (smape / smape_naive2 + mase / mase_naive2) / 2


def pinball(
    quantiles: np.ndarray, target: np.ndarray, levels: Sequence[float], per: Per = "window"
) -> np.ndarray:
    """Mean over levels a of max(a (y - q), (a - 1) (y - q)), the quantile loss.

    Args:
        quantiles: (W, H, C, Q).
        target: (W, H, C).
        levels: Q, between 0 and 1.
        per: "window", "step" or "both".

    >>> pinball(np.array([[[[0.0, 4.0]]]]), np.array([[[1.0]]]), (0.1, 0.9))
    array([0.2])
    """
    quantiles, target = _checked(quantiles, target, extra=1)
    asked = np.asarray(levels, np.float64)
    if asked.shape != quantiles.shape[3:] or not ((asked > 0) & (asked < 1)).all():
        raise ValueError(f"levels: found {levels}, wanted {quantiles.shape[3]} between 0 and 1")
    miss = target[..., None] - quantiles
    return _mean(np.maximum(asked * miss, (asked - 1) * miss).mean(3), per)


def crps_quantiles(
    quantiles: np.ndarray, target: np.ndarray, levels: Sequence[float], per: Per = "window"
) -> np.ndarray:
    """Continuous ranked probability score from quantiles: twice `pinball`.

    It is the integral over all levels of twice the quantile loss (Laio and Tamea 2007), here by its
    mean: near the truth for many levels that are evenly spread, (i - 1/2) / Q. Of few levels
    compare only with the same levels.
    """
    return 2 * pinball(quantiles, target, levels, per)


def crps_samples(samples: np.ndarray, target: np.ndarray, per: Per = "window") -> np.ndarray:
    """CRPS from n samples: mean |x - y| - mean |x - x'| / 2 over the pairs of different samples.

    So its expectation is that of the distribution behind the samples (fair; Ferro 2014).

    Args:
        samples: (W, H, C, n), n of 2 or more.
        target: (W, H, C).
        per: "window", "step" or "both".

    >>> crps_samples(np.array([[[[0.0, 2.0]]]]), np.array([[[1.0]]]))
    array([0.])
    """
    samples, target = _checked(samples, target, extra=1)
    if (n := samples.shape[3]) < 2:
        raise ValueError("samples: found 1, wanted 2 or more")
    # sum over pairs |x - x'| = sum of sorted x times (2 i - n - 1), i from 1
    between = (np.sort(samples, 3) * (2 * np.arange(1, n + 1) - n - 1)).sum(3) / (n * (n - 1))
    return _mean(np.abs(samples - target[..., None]).mean(3) - between, per)


def crps_normal(
    mean: np.ndarray, sd: np.ndarray, target: np.ndarray, per: Per = "window"
) -> np.ndarray:
    """CRPS of a normal distribution: sd (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)).

    z is (target - mean) / sd (Gneiting and Raftery 2007, eq. 21). All are (W, H, C).

    >>> crps_normal(np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.zeros((1, 1, 1))).round(4)
    array([0.2337])
    """
    mean, target = _checked(mean, target)
    sd, _ = _checked(sd, target)
    if not (sd > 0).all():
        raise ValueError(f"sd: {(~(sd > 0)).sum():,} values are not above 0")
    z = (target - mean) / sd
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return _mean(sd * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi)), per)


def coverage(
    low: np.ndarray, high: np.ndarray, target: np.ndarray, per: Per = "window"
) -> np.ndarray:
    """Share of targets within [low, high], (W,) or (H,); bounds may be infinite."""
    low, high, target = _bounds(low, high, target)
    return _mean(((low <= target) & (target <= high)).astype(np.float64), per)


def width(low: np.ndarray, high: np.ndarray, per: Per = "window") -> np.ndarray:
    """Mean of high - low, (W,) or (H,); infinite where a bound is. Empty intervals count as 0."""
    low, high, _ = _bounds(low, high, np.zeros(np.shape(low)))
    return _mean(np.maximum(high - low, 0), per)


class Evaluation(NamedTuple):
    """What forecasts of W windows are worth.

    Attributes:
        each: metric -> (W, H), mean over channels: "mse", "mae", "smape", and where asked for
            "mase", "pinball", "crps", "coverage" and "width".
        block: windows that resemble each other, for the intervals; 1 where each stands alone.
    """

    each: dict[str, np.ndarray]
    block: int

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Metric -> (W,), of each window."""
        return {name: values.mean(1) for name, values in self.each.items()}

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """Metric -> (H,), of each step ahead."""
        return {name: values.mean(0) for name, values in self.each.items()}

    def figures(self) -> dict[str, float]:
        """The mean of each metric over all windows, and "rmse", the root of that of mse."""
        means = {name: float(values.mean()) for name, values in self.each.items()}
        squared = means.pop("mse")
        return {"mse": squared, "rmse": squared**0.5, **means}

    def interval(self, metric: str, level: float = 0.95, step: int | None = None) -> Interval:
        """The figure, of all steps or of one place in `steps`, between its bounds.

        By `block_interval` where windows overlap.
        """
        if metric == "rmse":
            return Interval(*np.sqrt(self.interval("mse", level, step)).tolist())
        if metric not in self.each:
            raise ValueError(f"metric: {metric!r} found, one of {list(self.each)} wanted")
        values = self.each[metric]
        if step is not None and not 0 <= step < values.shape[1]:
            raise ValueError(f"step: {step} found, 0 to {values.shape[1] - 1} wanted")
        return _interval(values.mean(1) if step is None else values[:, step], self.block, level)

    def owa(self, naive2: "Evaluation", level: float = 0.95) -> Interval:
        """`owa` between its bounds; `naive2` has the scores of that, for the same windows.

        The bounds are those of the mean of each window's influence: how far the average moves as
        the window counts more (of a ratio of means a / b: (a_i - b_i a / b) / b; Efron 1982).
        """
        if "mase" not in self.each or "mase" not in naive2.each:
            raise ValueError("mase: not in both scores; `score` wants `scale` for it")
        if len(naive2.each["mase"]) != (W := len(self.each["mase"])):
            raise ValueError(f"naive2: found other windows, wanted the same {W}")
        parts = []
        for name in ("smape", "mase"):
            own, base = self.each[name].mean(1), naive2.each[name].mean(1)
            ratio = own.mean() / base.mean()
            parts.append(ratio + (own - ratio * base) / base.mean())
        return _interval((parts[0] + parts[1]) / 2, max(self.block, naive2.block), level)


def score(
    forecast: np.ndarray,
    target: np.ndarray,
    scale: np.ndarray | None = None,
    quantiles: np.ndarray | None = None,
    levels: Sequence[float] = (),
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    block: int = 1,
) -> Evaluation:
    """All metrics of point forecasts, and of their quantiles and intervals where given.

    Args:
        forecast: (W, H, C).
        target: (W, H, C).
        scale: (W,) or (W, C), for "mase"; see there.
        quantiles: (W, H, C, Q), for "pinball" and "crps".
        levels: Q of them.
        bounds: low and high, (W, H, C) each, for "coverage" and "width", such as `Bounds`.
        block: windows that resemble each other: the horizon divided by the stride, or more, where
            windows of one series overlap; see `block_interval`. One window a series: 1.

    Raises:
        ValueError: what the metrics raise.
    """

    each = {name: metric(forecast, target, "both") for name, metric in POINT.items()}
    if scale is not None:
        each["mase"] = mase(forecast, target, scale, "both")
    if quantiles is not None:
        each["pinball"] = pinball(quantiles, target, levels, "both")
        each["crps"] = 2 * each["pinball"]  # see `crps_quantiles`
    if bounds is not None:
        each["coverage"], each["width"] = coverage(*bounds, target, "both"), width(*bounds, "both")
    return Evaluation(each, block)


POINT = {"mse": mse, "mae": mae, "smape": smape}
BLOCKS = 20  # that an interval needs
SMALLER = {"mse", "rmse", "mae", "smape", "mase", "pinball", "crps"}  # is better


def compare(
    scores: Mapping[Any, Evaluation], metrics: Sequence[str] | None = None, level: float = 0.95
) -> list[dict[str, str]]:
    """Forecasts of the same windows side by side, as rows for `jaxops.report.table`.

    A figure stands with its interval, and in bold where it is the best of its column and the
    interval of its difference from every other row, window by window, excludes 0. Coverage and
    width are never marked: neither is good without the other. Windows that make fewer than 20
    blocks are too few for either: a dash takes the interval's place, and nothing is marked.

    Args:
        scores: name -> scores.
        metrics: of `Evaluation.figures`; by default all of the first.
        level: of confidence.

    Raises:
        ValueError: no scores, of different windows, or a metric that one of them lacks.
    """
    if not scores:
        raise ValueError("scores: found none")
    if len(sizes := {len(one.each["mse"]) for one in scores.values()}) > 1:
        raise ValueError(f"scores: found {sorted(sizes)} windows, wanted the same ones in each")
    every = list(scores.values())

    def bounds(name: Any, metric: str) -> str:
        one = scores[name]
        if not _enough(one):
            return " [-]"
        if not np.isfinite(figures[name][metric]):
            return ""
        _, low, high = one.interval(metric, level)
        return f" [{low:.4f}, {high:.4f}]"

    figures = {name: one.figures() for name, one in scores.items()}
    return side_by_side(figures, metrics, lambda metric: _best(metric, every, level), bounds)


def table(
    scores: Mapping[Any, Evaluation], metrics: Sequence[str] | None = None, level: float = 0.95
) -> str:
    """`compare` as an aligned Markdown table."""
    return _table.table(compare(scores, metrics, level))


def _best(metric: str, every: list[Evaluation], level: float) -> int | None:
    """The row that is better than every other, or None."""
    if metric not in SMALLER or not all(_enough(one) for one in every):
        return None
    columns = [one.each["mse" if metric == "rmse" else metric].mean(1) for one in every]
    block = max(one.block for one in every)
    return surely_best(columns, lambda a, b: _interval(a - b, block, level), smaller=True)


def _enough(scores: Evaluation) -> bool:
    return len(scores.each["mse"]) // scores.block >= BLOCKS


def _interval(values: np.ndarray, block: int, level: float) -> Interval:
    if block > 1:
        return block_interval(values, block, coverage=level)
    return interval(values, coverage=level)


def _mean(values: np.ndarray, per: Per) -> np.ndarray:
    if per not in AXES:
        raise ValueError(f"per: found {per!r}, wanted one of {tuple(AXES)}")
    return values.mean(AXES[per])


def _checked(
    forecast: np.ndarray, target: np.ndarray, extra: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, where their shapes agree and all is finite."""
    forecast, target = np.asarray(forecast, np.float64), np.asarray(target, np.float64)
    if target.ndim != 3 or forecast.ndim != 3 + extra or forecast.shape[:3] != target.shape:
        raise ValueError(
            f"forecast, target: found shapes {forecast.shape} and {target.shape}, wanted (W, H, C)"
            + (" with one dimension more for the forecast's" if extra else " of both")
        )
    for name, values in {"forecast": forecast, "target": target}.items():
        if bad := np.size(values) - np.isfinite(values).sum():
            raise ValueError(f"{name}: {bad:,} of {values.size:,} values are not finite")
    return forecast, target


def _bounds(low: np.ndarray, high: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    low, high, target = (np.asarray(x, np.float64) for x in (low, high, target))
    if target.ndim != 3 or not low.shape == high.shape == target.shape:
        found = f"{low.shape}, {high.shape}, {target.shape}"
        raise ValueError(f"low, high, target: found shapes {found}, wanted (W, H, C) of all")
    if any(np.isnan(x).any() for x in (low, high, target)) or not np.isfinite(target).all():
        raise ValueError("low, high, target: found NaN, or a target that is not finite")
    return low, high, target
