"""What a model would have said at each origin of a backtest."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.forecast.data.series import Series, taken
from jaxops.forecast.data.windows import Windows, check_windows
from jaxops.forecast.inference import forecast

AT_ONCE = 2**25
"""Numbers of histories that are copied at once."""


def history(series: Series, windows: Windows, context: int | None = None) -> Series:
    """Each window's series as it was known at its origin, W series, ids repeated.

    Args:
        series: all rows.
        windows: W of them.
        context: rows before the origin; all by default.

    >>> from jaxops.forecast import from_arrays
    >>> windows = {"series": np.array([0, 0]), "origin": np.array([2, 3])}
    >>> history(from_arrays(["a"], [[5, 6, 7, 8]]), windows, 2).values[:, 0].tolist()
    [5.0, 6.0, 6.0, 7.0]
    """
    of, origin = windows["series"], windows["origin"].astype(np.int64)
    begin = series.offsets[of]
    first = begin if context is None else np.maximum(begin, origin - context)
    return taken(series, of, first, origin)


class Backtest(NamedTuple):
    """Forecasts of W windows, and what came.

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
    """Ask any model at each window's origin, with nothing of the values behind it.

    A network that lies in a task is asked faster by `jaxops.predict(task, state, windows)`.

    Args:
        model: see `forecast`.
        series: all rows, with the targets.
        windows: as `origins` or `backtest` makes them for this horizon.
        horizon: H.
        levels: of quantiles.
        context: rows that the model is given; all before the origin by default.

    Raises:
        ValueError: a window whose target, or whose one row before it, is not in its series, which
            is named; no windows; else as `forecast`.
    """
    parts = []
    for before, future in asked(model, series, windows, horizon, context):
        found = forecast(model, before, horizon, future, levels)
        parts.append((found.mean, found.quantiles))
    mean, quantiles = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Backtest(mean, quantiles, targets(series, windows, horizon))


def targets(series: Series, windows: Windows, horizon: int) -> np.ndarray:
    """What came, (W, H, C)."""
    return series.values[windows["origin"][:, None] + np.arange(horizon)]


def asked(
    model: Any, series: Series, windows: Windows, horizon: int, context: int | None
) -> Iterator[tuple[Series, np.ndarray]]:
    """The windows' histories and known covariates to come, as many at once as memory should hold.

    A network wants the covariates of all its horizon, of which the first steps may tell too.
    """
    if len(windows["origin"]) == 0:
        raise ValueError("windows: none found, at least 1 wanted")
    steps = max(horizon, reach(model)) if series.known_names else horizon
    try:
        check_windows(series, windows, 1, steps)
    except ValueError as error:
        if steps == horizon:
            raise
        raise ValueError(
            f"horizon: {horizon} found; the model wants the known covariates of {steps} steps, so "
            f"windows of that horizon are wanted: {error}"
        ) from None
    given = windows["origin"] - series.offsets[windows["series"]]
    widest = int(min(given.max(), context or given.max()))
    numbers = sum(table.shape[1] for table in (series.values, series.known, series.past))
    size = max(1, AT_ONCE // (widest * numbers))
    for start in range(0, len(given), size):
        few = {name: column[start : start + size] for name, column in windows.items()}
        future = series.known[few["origin"][:, None] + np.arange(steps)]
        yield history(series, few, context), future


def reach(model: Any) -> int:
    """Steps that a model wants known covariates of: the longest horizon of its networks, or 0."""
    network = getattr(model, "network", None)
    within = (*getattr(model, "members", ()), *([model.model] if hasattr(model, "model") else []))
    return max([0 if network is None else network.horizon, *map(reach, within)])
