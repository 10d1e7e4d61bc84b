"""Conformal quantiles around any forecaster, for series of all sizes.

`calibrated` makes a model for `forecast`. `jaxops.trust.conformal` has margins for predictions in
arrays, without series. `adaptive_backtest` applies them to the windows of any model.
`metrics.coverage` and `metrics.width` report the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxops.forecast.backtests import histories, targets
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import Windows
from jaxops.forecast.inference import answering, program_of, rising
from jaxops.model.finished import Program
from jaxops.task import Array, Batch, Column, recorded
from jaxops.trust.conformal import quantile_offsets, rows_needed


@recorded
@dataclass(frozen=True, eq=False)
class Conformal:
    """A model with calibrated quantiles; see `calibrated`.

    Attributes:
        model: any model, see `forecast`.
        levels: levels of the Q quantiles.
        offsets: (H, C, Q), how far each quantile is moved at each step, in units of the series.
        context: number of rows of a history from which its unit is computed.
        season: steps of one season, see `calibrated`.
        left_out: share of the calibration windows that were left out, because their history does
            not vary, or is too short for the model's quantiles.
        counts: whether quantiles are kept at 0 or above, because the values are counts.
    """

    model: Any
    levels: tuple[float, ...]
    offsets: np.ndarray
    context: int
    season: int
    left_out: float = 0.0
    counts: bool = False

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        places = self._places(levels)
        horizon = len(self.offsets) if horizon is None else horizon
        if horizon > len(self.offsets):
            raise ValueError(f"horizon must be at most {len(self.offsets)}, got {horizon}")
        mean, base = _base(self.model, history, horizon, future, self.levels)
        unit = units(history, self.context, self.season)
        unit[history.lengths <= self.season] = np.nan  # these have no unit
        unit = unit[:, None, :, None]
        # quantiles moved by different amounts may cross
        moved = np.sort(base + self.offsets[None, :horizon] * unit, axis=-1)
        moved = np.maximum(moved, 0) if self.counts else moved
        return mean, moved[..., places]

    def _places(self, levels: Sequence[float]) -> list[int]:
        """The places of levels among those that were calibrated."""
        missing = [level for level in levels if level not in self.levels]
        if missing:
            raise ValueError(f"levels must be among {self.levels}, as calibrated, got {missing}")
        return [self.levels.index(level) for level in levels]

    def exported(self, levels: tuple[float, ...] | None = None) -> Program:
        """See `Forecaster.exported`; the quantiles are of levels that were calibrated.

        Raises:
            ValueError: a model that is no `Forecaster`, nor `LogScale` or `Ensemble` of such; other
                levels.
        """
        levels = self.levels if levels is None else rising(levels)
        places = jnp.array(self._places(levels), int)
        own = getattr(self.model, "has_quantiles", True)
        inner = program_of(self.model, self.levels if own else ())
        steps = len(self.offsets)  # those of the model may be more

        def function(params: Any, columns: Batch) -> dict[str, Array]:
            answer = inner.function(params["model"], columns)
            mean = answer["mean"][:, :steps]
            base = answer["quantiles"][:, :steps] if own else mean[..., None]
            moved = jnp.sort(base + params["offsets"] * columns["unit"][:, None, :, None], axis=-1)
            moved = jnp.maximum(moved, 0) if self.counts else moved
            return {"mean": mean, "quantiles": moved[..., places]} if levels else {"mean": mean}

        columns = (*inner.columns, Column("unit", (len(inner.reader["channels"]),)))
        unit = {"context": self.context, "season": self.season}
        reader = inner.reader | {"levels": [*levels], "unit": unit}
        params = {"model": inner.params, "offsets": self.offsets[None]}
        return Program(function, params, columns, reader)


def calibrated(
    model: Any,
    series: Series,
    windows: Windows,
    horizon: int,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
    context: int = 100,
    season: int = 1,
) -> Conformal:
    """Put conformal quantiles around a model, calibrated on windows it was not trained on.

    The result is a model for `forecast`, for any series. For forecasts in arrays,
    `split_conformal` and `conformal_quantiles` give two bounds with one margin, in the values' own
    units; here each quantile has its own margin.

    At each step ahead, each quantile is moved so that it would have covered its share of the
    calibration windows (split conformal prediction). Errors are measured in a unit of each series:
    the mean absolute difference of values one season apart in the last `context` rows, as in MASE.
    So series of all sizes count equally, and new series can be forecast. A history that does not
    vary gets intervals of width 0. A history of one season or less has no such unit, and gets
    quantiles of NaN. For series of counts (whole numbers from 0 on) quantiles are kept at 0 or
    above.

    Args:
        model: any model, see `forecast`; if it has no quantiles, they are put around its mean.
        series: the series, with the rows of calibration.
        windows: the calibration windows, at least (1 - a) / a if the outermost level is a or 1 - a.
            Windows whose unit is 0, or for which the model has no quantiles, are left out.
            `Conformal.left_out` reports their share; nothing is guaranteed for such series.
        horizon: H, number of steps.
        levels: levels of the Q quantiles.
        context: number of rows before each origin from which the unit is computed; more than the
            season.
        season: steps of one season.

    Raises:
        ValueError: there are too few windows, or the context is not longer than the season; see
            also `historical_forecasts`.

    References:
        Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World; Romano, Patterson
        and Candes 2019, arXiv:1905.03222, theorem 2, for quantiles.

    >>> from jaxops.forecast import Baseline, forecast, from_arrays, origins
    >>> walk = np.cumsum(np.random.default_rng(0).normal(size=200))
    >>> series = from_arrays(["walk"], [walk])
    >>> model = calibrated(Baseline("repeat_last"), series, origins(series, 50, 2), 2, context=50)
    >>> forecast(model, series).quantiles.shape
    (1, 2, 1, 3)
    """
    model, levels = answering(model), rising(levels)
    if context <= season:
        raise ValueError(f"context must be more than {season} (the season), got {context}")
    parts = []
    for before, future in histories(model, series, windows, horizon, None):
        _, base = _base(model, before, horizon, future, levels)
        parts.append((base, units(before, context, season)))
    base, unit = (np.concatenate(x) for x in zip(*parts, strict=True))
    used = (unit > 0).all(1) & np.isfinite(base).all((1, 2, 3))
    check_enough(used, levels)
    target = targets(series, windows, horizon)
    error = (target[..., None] - base)[used] / unit[used][:, None, :, None]
    counts = bool((series.values >= 0).all() and (series.values % 1 == 0).all())
    left_out = float(1 - used.mean())
    offsets = quantile_offsets(error, levels)
    return Conformal(model, levels, offsets, context, season, left_out, counts)


def check_enough(used: np.ndarray, levels: Sequence[float]) -> None:
    """Raise `ValueError` if too few of the windows, bool (W,), can be used for the levels."""
    found = int(used.sum())
    for level in levels:
        needed = rows_needed(max(level, 1 - level))
        if found < needed:
            raise ValueError(
                f"windows must be at least {needed} whose histories vary, with finite quantiles, "
                f"for level {level}, got {found} of {len(used)}; levels=() leaves the quantiles out"
            )


def units(history: Series, context: int, season: int) -> np.ndarray:
    """Mean |y_t - y_(t - season)| over the last `context` rows, (S, C); 0 for too short series."""
    place = history.offsets[1:, None] - np.arange(context, 0, -1)
    exists = place >= history.offsets[:-1, None]
    rows = history.values[np.maximum(place, 0)].astype(np.float64)
    moves, both = np.abs(rows[:, season:] - rows[:, :-season]), exists[:, :-season, None]
    return np.where(both, moves, 0).sum(1) / np.maximum(both.sum(1), 1)


def _base(
    model: Any, history: Series, horizon: int, future: Any, levels: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The model's mean and quantiles; if it has no quantiles, the mean for each level."""
    if getattr(model, "has_quantiles", True):
        return model.answer(history, horizon, future, levels)
    mean, _ = model.answer(history, horizon, future, ())
    return mean, np.repeat(mean[..., None], len(levels), axis=-1)
