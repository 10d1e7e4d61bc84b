"""All metrics of forecasts, window by window, as an `Evaluation` with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxops.forecast.metrics import coverage as covered
from jaxops.forecast.metrics import mae, mase, mse, pinball, smape, width
from jaxops.trust.evaluation import Evaluation, same_units
from jaxops.trust.intervals import Interval, block_interval, interval

POINT = {"mse": mse, "mae": mae, "smape": smape}
SMALLER = frozenset({"mse", "rmse", "mae", "smape", "mase", "pinball", "crps"})
NEUTRAL = frozenset({"coverage", "width"})  # neither alone says whether a model is better


def score(
    forecast: np.ndarray,
    target: np.ndarray,
    scale: np.ndarray | None = None,
    quantiles: np.ndarray | None = None,
    levels: Sequence[float] = (),
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    block: int = 1,
    ids: np.ndarray | None = None,
) -> Evaluation:
    """All metrics of forecasts: of points, and of quantiles and intervals if they are given.

    Args:
        forecast: (W, H, C).
        target: (W, H, C).
        scale: (W,) or (W, C), for "mase"; see `mase`.
        quantiles: (W, H, C, Q), for "pinball" and "crps".
        levels: levels of the Q quantiles.
        bounds: low and high, (W, H, C) each, for "coverage" and "width", such as `Bounds`.
        block: number of consecutive windows that are correlated. If windows of a series overlap, it
            is the horizon divided by the stride, or more; see `block_interval`. With one window for
            each series it is 1.
        ids: (W,), the ids of the windows; their numbers by default.

    Returns:
        An `Evaluation` whose units are the windows. Its values are (W, H), means over channels;
        "rmse" is the root of the mean of "mse" over all windows. `compare` and `table` compare
        several evaluations.

    Raises:
        ValueError: see the metrics.

    >>> score(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]])).figures()["mae"]
    2.0
    """
    values = {name: metric(forecast, target, "both") for name, metric in POINT.items()}
    if scale is not None:
        values["mase"] = mase(forecast, target, scale, "both")
    if quantiles is not None:
        values["pinball"] = pinball(quantiles, target, levels, "both")
        values["crps"] = 2 * values["pinball"]  # see `crps_quantiles`
    if bounds is not None:
        values["coverage"] = covered(*bounds, target, "both")
        values["width"] = width(*bounds, "both")
    squared = values["mse"].mean(1)
    wholes: dict[str, Any] = {"rmse": lambda windows: float(squared[windows].mean() ** 0.5)}
    ids = np.arange(len(target)) if ids is None else ids
    return Evaluation("window", ids, values, wholes, smaller=SMALLER, neutral=NEUTRAL, block=block)


def owa_interval(one: Evaluation, naive2: Evaluation, coverage: float = 0.95) -> Interval:
    """`owa` with its confidence interval.

    The interval is that of the mean of the windows' influence values; for a ratio of means a / b
    these are (a_i - b_i a / b) / b (the infinitesimal jackknife; Efron 1982).

    Args:
        one: an evaluation from `score`, with `scale`.
        naive2: the evaluation of `naive2` for the same windows.
        coverage: coverage of the interval.

    Raises:
        ValueError: an evaluation has no "mase", or the windows differ.

    >>> target = np.random.default_rng(0).uniform(1, 2, (40, 3, 1))
    >>> half, whole = (score(target + error, target, np.ones(40)) for error in (0.01, 0.02))
    >>> round(owa_interval(half, whole).mean, 2)
    0.5
    """
    if "mase" not in one.values or "mase" not in naive2.values:
        raise ValueError(
            f"both evaluations must have mase, got {list(one.values)} and {list(naive2.values)}; "
            "`score` computes it if `scale` is given"
        )
    if not same_units([one, naive2]):
        raise ValueError(f"naive2 must be of the same {len(one)} windows, got {len(naive2)}")
    parts = []
    for name in ("smape", "mase"):
        error, base = one.values[name].mean(1), naive2.values[name].mean(1)
        ratio = error.mean() / base.mean()
        parts.append(ratio + (error - ratio * base) / base.mean())
    values, block = (parts[0] + parts[1]) / 2, max(one.block, naive2.block)
    if block > 1:
        return block_interval(values, block, coverage=coverage)
    return interval(values, coverage=coverage)
