"""All metrics of forecasts with confidence intervals, and tables that compare models."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops import _table
from jaxops.forecast.metrics import coverage, mae, mase, mse, pinball, smape, width
from jaxops.trust.comparisons import side_by_side, surely_best
from jaxops.trust.intervals import Interval, block_interval, interval

POINT = {"mse": mse, "mae": mae, "smape": smape}
BLOCKS = 20  # the least number for an interval
SMALLER = {"mse", "rmse", "mae", "smape", "mase", "pinball", "crps"}  # smaller is better


class Evaluation(NamedTuple):
    """Metrics of the forecasts of W windows.

    Attributes:
        each: metric -> (W, H), mean over channels: "mse", "mae", "smape", and where `score` was
            given what they need, "mase", "pinball", "crps", "coverage" and "width".
        block: number of consecutive windows that are correlated, for the confidence intervals; 1
            for independent windows.
    """

    each: dict[str, np.ndarray]
    block: int

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Metric -> (W,), for each window."""
        return {name: values.mean(1) for name, values in self.each.items()}

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """Metric -> (H,), for each step ahead."""
        return {name: values.mean(0) for name, values in self.each.items()}

    def figures(self) -> dict[str, float]:
        """The mean of each metric over all windows, and "rmse", the root of the mean of "mse"."""
        means = {name: float(values.mean()) for name, values in self.each.items()}
        squared = means.pop("mse")
        return {"mse": squared, "rmse": squared**0.5, **means}

    def interval(self, metric: str, coverage: float = 0.95, step: int | None = None) -> Interval:
        """The mean of a metric with its confidence interval.

        Args:
            metric: a name in `figures`.
            coverage: of the interval. By `block_interval` where `block` is more than 1.
            step: which step ahead, from 0; None for the mean over all steps.

        Raises:
            ValueError: a metric or a step that is not there.
        """
        if metric == "rmse":
            return Interval(*np.sqrt(self.interval("mse", coverage, step)).tolist())
        if metric not in self.each:
            raise ValueError(f"metric must be one of {[*self.each, 'rmse']}, got {metric!r}")
        values = self.each[metric]
        if step is not None and not 0 <= step < values.shape[1]:
            raise ValueError(f"step must be in [0, {values.shape[1]}), got {step}")
        values = values.mean(1) if step is None else values[:, step]
        return _interval(values, self.block, coverage)

    def owa(self, naive2: "Evaluation", coverage: float = 0.95) -> Interval:
        """`owa` with its confidence interval.

        The interval is that of the mean of the windows' influence values; for a ratio of means
        a / b these are (a_i - b_i a / b) / b (the infinitesimal jackknife; Efron 1982).

        Args:
            naive2: by `score`, of `naive2` for the same windows.
            coverage: of the interval.

        Raises:
            ValueError: an evaluation without "mase", or of other windows.
        """
        if "mase" not in self.each or "mase" not in naive2.each:
            raise ValueError(
                f"both evaluations must have mase, got {list(self.each)} and {list(naive2.each)}; "
                "`score` computes it where `scale` is given"
            )
        if len(naive2.each["mase"]) != (W := len(self.each["mase"])):
            raise ValueError(
                f"naive2 must be of the same {W} windows, got {len(naive2.each['mase'])}"
            )
        parts = []
        for name in ("smape", "mase"):
            error, base = self.each[name].mean(1), naive2.each[name].mean(1)
            ratio = error.mean() / base.mean()
            parts.append(ratio + (error - ratio * base) / base.mean())
        return _interval((parts[0] + parts[1]) / 2, max(self.block, naive2.block), coverage)


def score(
    forecast: np.ndarray,
    target: np.ndarray,
    scale: np.ndarray | None = None,
    quantiles: np.ndarray | None = None,
    levels: Sequence[float] = (),
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    block: int = 1,
) -> Evaluation:
    """All metrics of forecasts: of points, and of quantiles and intervals where given.

    Args:
        forecast: (W, H, C).
        target: (W, H, C).
        scale: (W,) or (W, C), for "mase"; see `mase`.
        quantiles: (W, H, C, Q), for "pinball" and "crps".
        levels: of the Q quantiles.
        bounds: low and high, (W, H, C) each, for "coverage" and "width", such as `Bounds`.
        block: number of consecutive windows that are correlated: the horizon divided by the stride,
            or more, where windows of one series overlap; see `block_interval`. 1 for one window a
            series.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: as the metrics.

    >>> score(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]])).figures()["mae"]
    2.0
    """

    each = {name: metric(forecast, target, "both") for name, metric in POINT.items()}
    if scale is not None:
        each["mase"] = mase(forecast, target, scale, "both")
    if quantiles is not None:
        each["pinball"] = pinball(quantiles, target, levels, "both")
        each["crps"] = 2 * each["pinball"]  # see `crps_quantiles`
    if bounds is not None:
        each["coverage"] = coverage(*bounds, target, "both")
        each["width"] = width(*bounds, "both")
    return Evaluation(each, block)


def compare(
    scores: Mapping[Any, Evaluation], metrics: Sequence[str] | None = None, coverage: float = 0.95
) -> list[dict[str, str]]:
    """Compare forecasts of the same windows, as rows of a table.

    Each figure is given with its confidence interval. It is bold where it is the best of its column
    and the interval of its difference from every other row, window by window, excludes 0. Coverage
    and width are never bold, since neither is good without the other. Fewer than 20 blocks of
    windows are too few for intervals: a dash takes their place, and nothing is bold.

    Args:
        scores: name -> `Evaluation`, by `score`.
        metrics: names in `Evaluation.figures`; by default all of the first.
        coverage: of the confidence intervals.

    Returns:
        A row for each name: "model", and the text of each metric; see `table`.

    Raises:
        ValueError: no scores, scores of different windows, or a metric that one of them lacks.

    >>> one = score(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]]))
    >>> compare({"zero": one}, ["mae"])
    [{'model': 'zero', 'mae': '2.0000 [-]'}]
    """
    if not scores:
        raise ValueError("scores must have at least one evaluation, got none")
    if len(sizes := {len(one.each["mse"]) for one in scores.values()}) > 1:
        raise ValueError(f"scores must be of the same windows, got {sorted(sizes)} windows")
    every = list(scores.values())
    figures = {name: one.figures() for name, one in scores.items()}

    def bounds(name: Any, metric: str) -> str:
        one = scores[name]
        if not _enough(one):
            return " [-]"
        if not np.isfinite(figures[name][metric]):
            return ""
        _, low, high = one.interval(metric, coverage)
        return f" [{low:.4f}, {high:.4f}]"

    return side_by_side(figures, metrics, lambda metric: _best(metric, every, coverage), bounds)


def table(
    scores: Mapping[Any, Evaluation], metrics: Sequence[str] | None = None, coverage: float = 0.95
) -> str:
    """`compare` as an aligned Markdown table.

    Args:
        scores: name -> `Evaluation`, by `score`.
        metrics: names in `Evaluation.figures`; by default all of the first.
        coverage: of the confidence intervals.

    >>> one = score(np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]]))
    >>> print(table({"zero": one}, ["mae"]))
    | model | mae        |
    |-------|------------|
    | zero  | 2.0000 [-] |
    """
    return _table.table(compare(scores, metrics, coverage))


def _best(metric: str, every: list[Evaluation], coverage: float) -> int | None:
    """The row that is significantly better than every other, or None."""
    if metric not in SMALLER or not all(_enough(one) for one in every):
        return None
    columns = [one.each["mse" if metric == "rmse" else metric].mean(1) for one in every]
    block = max(one.block for one in every)
    return surely_best(columns, lambda a, b: _interval(a - b, block, coverage), smaller=True)


def _enough(scores: Evaluation) -> bool:
    return len(scores.each["mse"]) // scores.block >= BLOCKS


def _interval(values: np.ndarray, block: int, coverage: float) -> Interval:
    if block > 1:
        return block_interval(values, block, coverage=coverage)
    return interval(values, coverage=coverage)
