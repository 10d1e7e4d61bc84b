"""The default methods of `forecast.fit`, their training, and the unit of their errors."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np
import optax

from jaxops import optim
from jaxops.forecast.classical.baseline import Baseline
from jaxops.forecast.data import grid
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import Windows
from jaxops.forecast.ensembles import LogScale
from jaxops.forecast.models.linear import NLinear
from jaxops.forecast.models.mixer import TiDE
from jaxops.forecast.models.nbeats import NHiTS
from jaxops.forecast.models.outputs import Point
from jaxops.train.settings import EarlyStopping

SEASONS = {"W": 52, "M": 12, "Q": 4}
ETS_VALUES = 1_000_000
"""Exponential smoothing is tried up to this number of values in all validation histories."""
STEPS, RATE = 5_000, 1e-3


def season_of(frequency: str, rows: int) -> int:
    """Steps of one season: a day for hours or minutes, a week for days, else a year.

    Args:
        frequency: frequency of the series.
        rows: number of rows of a typical series.

    Returns:
        The number of steps; 1 for counts, for a frequency without a season, and if there are fewer
        than three seasons.

    >>> season_of("h", 900), season_of("15min", 900), season_of("D", 900), season_of("MS", 30)
    (24, 96, 7, 1)
    """
    season, seconds = 1, None if frequency.isdecimal() else grid.step(frequency)
    if seconds is None:
        season = SEASONS.get(frequency[0], 1)
        if frequency == "B" or frequency.startswith(grid.OPEN):  # a week of open days
            season = frequency.split(":")[1].count("1") if ":" in frequency else 5
    elif seconds >= grid.DAY:
        season = {grid.DAY: 7, 7 * grid.DAY: 52}.get(seconds, 1)
    elif seconds >= 60 and grid.DAY % seconds == 0:
        season = grid.DAY // seconds
    return season if 3 * season <= rows else 1


def held_rows(lengths: np.ndarray, horizon: int) -> int:
    """Number of rows at the end of each series for validation.

    It is at least one horizon, and enough for 20 windows over all series. With fewer than 100
    series it is also at least a fifth of the median length.

    Args:
        lengths: (S,), rows of each series.
        horizon: H, steps.

    >>> held_rows(np.full(414, 900), 48), held_rows(np.array([10_000]), 96)
    (48, 2000)
    """
    least = horizon + -(-20 // len(lengths)) - 1
    share = int(np.median(lengths)) // 5 if len(lengths) < 100 else 0
    return max(least, share)


def methods(series: Series, horizon: int, season: int, held: int, windows: int) -> list[Any]:
    """The default methods of `fit`: baselines and networks; see `fit`.

    Args:
        series: the training series.
        horizon: H, number of steps.
        season: steps of one season.
        held: number of rows of each series for validation.
        windows: number of validation windows.

    >>> from jaxops.forecast import from_arrays
    >>> hours = from_arrays(["a"], [range(900)], start="2024-01-01", frequency="h")
    >>> [type(one).__name__ for one in methods(hours, 48, 24, 96, 49)]
    ['Baseline', 'Baseline', 'NLinear', 'LogScale', 'LogScale', 'LogScale']
    """
    typical = int(np.median(series.lengths))
    found: list[Any] = [Baseline("seasonal_naive", season)]
    if windows * typical * len(series.channels) <= ETS_VALUES:
        found.append(Baseline("ets", season))
    rows = typical - held - horizon  # largest context for which there are training windows
    first = season * -(-max(7 * horizon, 2 * season) // (2 * season))
    contexts = [k * first for k in (1, 2, 3) if k * first <= rows]
    if not contexts and rows >= max(2, season):
        contexts = [rows]
    if series.known_names or series.past_names or series.static_names:
        error = Point("mae")
        return found + [TiDE(c, horizon, error, "mean_std", width=128) for c in contexts[:1]]
    found += [NLinear(context, horizon) for context in contexts[:1]]
    for context in contexts:
        module = NHiTS(context, horizon, Point("mae"), "mean_std", width=256)
        found.append(LogScale(module) if series.values.min() >= 0 else module)
    return found


def recipe(
    windows: int,
    left: float,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """The default options of `jaxops.fit` for a number of windows: about 5,000 updates.

    Args:
        windows: number of training windows.
        left: seconds until training stops.
        batch_size: replaces the default of 32, or 256 from 20,000 windows on.
        epochs: replaces the default.
        steps: replaces `epochs`.

    >>> recipe(250_000, 60.0)["epochs"]
    5
    """
    batch_size = min(windows, 32 if windows < 20_000 else 256) if batch_size is None else batch_size
    an_epoch = -(-windows // batch_size)
    if steps is None and epochs is None:
        epochs = min(100, max(1, round(STEPS / an_epoch)))
    updates = steps if epochs is None else epochs * an_epoch
    return {
        "optimizer": optim.adam(optax.cosine_decay_schedule(RATE, max(1, updates or 0))),
        "batch_size": batch_size,
        "epochs": epochs,
        "steps": steps,
        "early_stopping": EarlyStopping("loss", patience=4, seconds=left),
    }


def seasonal_errors(series: Series, windows: Windows, season: int) -> np.ndarray:
    """Mean |y_t - y_(t - season)| of each window's series before its origin, the unit of MASE.

    Args:
        series: S series.
        windows: W windows.
        season: steps of one season.

    Returns:
        float64 (W, C); NaN for a history of one season or less.

    >>> from jaxops.forecast import from_arrays
    >>> at = {"series": np.array([0, 0]), "origin": np.array([3, 1])}
    >>> seasonal_errors(from_arrays(["a"], [[1, 2, 4, 9]]), at, 1).ravel().tolist()
    [1.5, nan]
    """
    rows, first = np.arange(len(series.values)), series.offsets[series.index()]
    values = series.values.astype(np.float64)
    moves = np.abs(values - values[np.maximum(rows - season, 0)])
    moves[rows - season < first] = 0
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(moves, 0)])
    origin, begin = windows["origin"], series.offsets[windows["series"]]
    count = (origin - begin - season)[:, None]
    return (sums[origin] - sums[begin]) / np.where(count > 0, count, np.nan)


def names_of(methods: Sequence[Any]) -> list[str]:
    """The names of the methods, with numbers if two would have the same name."""
    names = [name_of(one) for one in methods]
    if len(set(names)) == len(names):
        return names
    return [f"{place}: {name}" for place, name in enumerate(names, 1)]


def name_of(method: Any) -> str:
    """The name of a method in tables.

    >>> name_of(Baseline("seasonal_naive", 7))
    'seasonal_naive, season 7'
    """
    if isinstance(method, LogScale):
        return f"log {name_of(method.model)}"
    if isinstance(method, Baseline):
        return f"{method.method}, season {method.season}"
    of = f", context {method.context}" if isinstance(method, nn.Module) else ""
    return f"{type(method).__name__}{of}"
