"""What a model would have said at each origin of a backtest, and intervals made from that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxops.forecast.conformal import margin
from jaxops.forecast.data import Series, taken
from jaxops.forecast.forecasters import forecast
from jaxops.forecast.windows import Windows, check_windows

ROWS_AT_ONCE = 2**23


def history(series: Series, windows: Windows, look_back: int | None = None) -> Series:
    """Each window's series as it was known at its origin, W series, ids repeated.

    Args:
        series: all rows.
        windows: W of them.
        look_back: rows before the origin; all by default.

    >>> from jaxops.forecast import from_arrays
    >>> windows = {"series": np.array([0, 0]), "origin": np.array([2, 3])}
    >>> history(from_arrays(["a"], [[5, 6, 7, 8]]), windows, 2).values[:, 0].tolist()
    [5.0, 6.0, 6.0, 7.0]
    """
    of, origin = windows["series"], windows["origin"].astype(np.int64)
    begin = series.offsets[of]
    first = begin if look_back is None else np.maximum(begin, origin - look_back)
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
    look_back: int | None = None,
) -> Backtest:
    """Ask any model at each window's origin, with nothing of the values behind it.

    A network that lies in a task is asked faster by `jaxops.predict(task, state, windows)`.

    Args:
        model: see `forecast`.
        series: all rows, with the targets.
        windows: as `origins` or `backtest` makes them for this horizon.
        horizon: H.
        levels: of quantiles.
        look_back: rows that the model is given; all before the origin by default.

    Raises:
        ValueError: a window whose target, or whose one row before it, is not in its series, which
            is named; no windows; else as `forecast`.
    """
    _checked(series, windows, horizon)
    ahead = np.arange(horizon)
    given = windows["origin"] - series.offsets[windows["series"]]
    widest = int(min(given.max(), look_back or given.max()))
    size = max(1, ROWS_AT_ONCE // widest)
    parts = []
    for start in range(0, len(given), size):
        few = {name: column[start : start + size] for name, column in windows.items()}
        future = series.known[few["origin"][:, None] + ahead]
        found = forecast(model, history(series, few, look_back), horizon, future, levels)
        parts.append((found.mean, found.quantiles))
    mean, quantiles = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Backtest(mean, quantiles, series.values[windows["origin"][:, None] + ahead])


@dataclass(frozen=True, eq=False)
class Conformal:
    """A model whose quantiles are moved so that they cover what they promise.

    Attributes:
        model: any, see `forecast`.
        levels: Q quantiles.
        offsets: (H, C, Q), of each step: how far the quantile is moved, in units of the series.
        look_back: rows of a history that its unit is taken from.
        season: see `calibrated`.
    """

    model: Any
    levels: tuple[float, ...]
    offsets: np.ndarray
    look_back: int
    season: int

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        missing = [level for level in levels if level not in self.levels]
        if missing:
            raise ValueError(f"levels: {missing} found, of {self.levels} wanted, as calibrated")
        horizon = len(self.offsets) if horizon is None else horizon
        if horizon > len(self.offsets):
            raise ValueError(f"horizon: {horizon} found, at most {len(self.offsets)} wanted")
        mean, base = _base(self.model, history, horizon, future, self.levels)
        unit = units(history, self.look_back, self.season)[:, None, :, None]
        # moved by different amounts they may cross
        moved = np.sort(base + self.offsets[None, :horizon] * unit, axis=-1)
        return mean, moved[..., [self.levels.index(level) for level in levels]]


def calibrated(
    model: Any,
    series: Series,
    windows: Windows,
    horizon: int,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
    look_back: int = 100,
    season: int = 1,
) -> Conformal:
    """Put conformal quantiles around a model, by windows it has not learned from.

    Each quantile is moved, at each step ahead, as far as would have covered its share of these
    windows (split conformal prediction, Vovk et al. 2005; of quantiles, Romano et al. 2019,
    arXiv:1905.03222, theorem 2). Errors are counted in units of each series, so that series of all
    sizes count alike, and new ones can be forecast: the mean absolute difference of values one
    season apart in the last `look_back` rows, as in MASE. A history without such a difference
    gets intervals without width.

    Args:
        model: any, see `forecast`; where it has no quantiles they are put around its mean.
        series: with the rows to calibrate by.
        windows: at least (1 - a) / a where the outermost level is a or 1 - a.
        horizon: H.
        levels: Q.
        look_back: rows before each origin that the unit is taken from, more than the season.
        season: steps of one.

    Raises:
        ValueError: too few windows; a look-back within the season; else as
            `historical_forecasts`.
    """
    _checked(series, windows, horizon)
    levels = tuple(levels)
    if look_back <= season:
        raise ValueError(f"look_back: {look_back} found, more than the season, {season}, wanted")
    before = history(series, windows)
    ahead = windows["origin"][:, None] + np.arange(horizon)
    _, base = _base(model, before, horizon, series.known[ahead], levels)
    unit = units(before, look_back, season)
    used = (unit > 0).all(1)
    error = (series.values[ahead][..., None] - base)[used] / unit[used][:, None, :, None]
    offsets = []
    for i, level in enumerate(levels):
        sign, share = (1, level) if level >= 0.5 else (-1, 1 - level)
        found = error[..., i]
        needed = int(np.ceil(share / (1 - share) - 1e-9))
        if len(found) < needed:
            raise ValueError(
                f"windows: {len(found)} found whose series vary, {needed} wanted for level {level}"
            )
        offsets.append(sign * margin(sign * found, share))
    return Conformal(model, levels, np.stack(offsets, -1), look_back, season)


def units(history: Series, look_back: int, season: int) -> np.ndarray:
    """Mean |y_t - y_(t - season)| over the last `look_back` rows, (S, C); 0 for shorter series."""
    place = history.offsets[1:, None] - np.arange(look_back, 0, -1)
    there = place >= history.offsets[:-1, None]
    rows = history.values[np.maximum(place, 0)].astype(np.float64)
    moves, both = np.abs(rows[:, season:] - rows[:, :-season]), there[:, :-season, None]
    return np.where(both, moves, 0).sum(1) / np.maximum(both.sum(1), 1)


def _checked(series: Series, windows: Windows, horizon: int) -> None:
    if len(windows["origin"]) == 0:
        raise ValueError("windows: none found, at least 1 wanted")
    check_windows(series, windows, 1, horizon)


def _base(
    model: Any, history: Series, horizon: int, future: Any, levels: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and what the quantiles are moved from: the model's own, or its mean."""
    if getattr(model, "has_quantiles", True):
        return model.answer(history, horizon, future, levels)
    mean, _ = model.answer(history, horizon, future, ())
    return mean, np.repeat(mean[..., None], len(levels), axis=-1)
