"""Backtests: the forecasts that a model would have made at each origin."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.forecast.data.series import Series, taken
from jaxops.forecast.data.windows import Windows, check_windows
from jaxops.forecast.inference import answering, forecast

AT_ONCE = 2**25
"""Number of values of histories that are copied at a time."""


def history(series: Series, windows: Windows, context: int | None = None) -> Series:
    """Each window's series up to its origin, as W series; ids repeat.

    Args:
        series: all rows.
        windows: W windows, such as `origins` makes.
        context: number of rows before the origin; all by default.

    >>> from jaxops.forecast import from_arrays
    >>> windows = {"series": np.array([0, 0]), "origin": np.array([2, 3])}
    >>> history(from_arrays(["a"], [[5, 6, 7, 8]]), windows, 2).values[:, 0].tolist()
    [5.0, 6.0, 6.0, 7.0]
    """
    number, origin = windows["series"], windows["origin"].astype(np.int64)
    begin = series.offsets[number]
    first = begin if context is None else np.maximum(begin, origin - context)
    return taken(series, number, first, origin)


class Backtest(NamedTuple):
    """Forecasts of W windows, and their targets.

    Attributes:
        mean: float32 (W, H, C).
        quantiles: float32 (W, H, C, Q).
        target: float32 (W, H, C).
    """

    mean: np.ndarray
    quantiles: np.ndarray
    target: np.ndarray


def historical_forecasts(
    model: Any,
    series: Series,
    windows: Windows,
    horizon: int,
    levels: Sequence[float] = (),
    context: int | None = None,
) -> Backtest:
    """Forecast with any model at each window's origin, only from the values before it.

    For a module in a task, `jaxops.predict(task, state, windows)` is faster.

    Args:
        model: see `forecast`.
        series: all rows, with the targets.
        windows: W windows, such as `origins` or `backtest` makes for this horizon.
        horizon: H, number of steps.
        levels: levels of the Q quantiles.
        context: number of rows before the origin that the model gets; all by default.

    Raises:
        ValueError: there are no windows; or the target of a window, or the row before its origin,
            is not in its series, which the message names; see also `forecast`.

    >>> from jaxops.forecast import Baseline, from_arrays
    >>> windows = {"series": np.array([0, 0]), "origin": np.array([2, 3])}
    >>> series = from_arrays(["a"], [[5, 6, 7, 8]])
    >>> test = historical_forecasts(Baseline("repeat_last"), series, windows, 1)
    >>> test.mean.ravel().tolist(), test.target.ravel().tolist()
    ([6.0, 7.0], [7.0, 8.0])
    """
    parts, model = [], answering(model)
    for before, future in histories(model, series, windows, horizon, context):
        answer = forecast(model, before, horizon, future, levels)
        parts.append((answer.mean, answer.quantiles))
    mean, quantiles = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Backtest(mean, quantiles, targets(series, windows, horizon))


def targets(series: Series, windows: Windows, horizon: int) -> np.ndarray:
    """The values of each window's target, (W, H, C)."""
    return series.values[windows["origin"][:, None] + np.arange(horizon)]


def histories(
    model: Any, series: Series, windows: Windows, horizon: int, context: int | None
) -> Iterator[tuple[Series, np.ndarray]]:
    """The windows' histories and future known covariates, in parts that fit into memory.

    A module needs the covariates of its whole horizon, also to forecast fewer steps.
    """
    if len(windows["origin"]) == 0:
        raise ValueError("windows must be at least 1, got none")
    steps = max(horizon, reach(model)) if series.known_names else horizon
    try:
        check_windows(series.ids, series.offsets, windows, 1, steps)
    except ValueError as error:
        if steps == horizon:
            raise
        raise ValueError(
            f"windows must be of horizon {steps}, because the model needs the known covariates of "
            f"that many steps, got horizon {horizon}: {error}"
        ) from None
    rows = windows["origin"] - series.offsets[windows["series"]]
    longest = int(min(rows.max(), context or rows.max()))
    numbers = sum(table.shape[1] for table in (series.values, series.known, series.past))
    size = max(1, AT_ONCE // (longest * numbers))
    for start in range(0, len(rows), size):
        few = {name: column[start : start + size] for name, column in windows.items()}
        future = series.known[few["origin"][:, None] + np.arange(steps)]
        yield history(series, few, context), future


def reach(model: Any) -> int:
    """Number of steps for which a model needs known covariates: its longest horizon, or 0."""
    module = getattr(model, "module", None)
    within = (*getattr(model, "members", ()), *([model.model] if hasattr(model, "model") else []))
    return max([0 if module is None else module.horizon, *map(reach, within)])
