"""The forecasts that every table begins with, asked as any other model is."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.forecast.classical.ets import fit_smoothing, mean_path, path_quantiles
from jaxops.forecast.classical.naive import (
    drift,
    normal_quantiles,
    repeat_last,
    right_aligned,
    seasonal_naive,
)
from jaxops.forecast.classical.theta import naive2, theta_normal
from jaxops.forecast.data.series import Series

METHODS = ("repeat_last", "seasonal_naive", "drift", "naive2", "theta", "ets")


@dataclass(frozen=True)
class Baseline:
    """A method that learns nothing beforehand: each series is forecast from itself alone.

    Channels are forecast one by one; covariates are not looked at.

    Attributes:
        method: "repeat_last", "seasonal_naive", "drift", "naive2", "theta" or "ets"; see
            `repeat_last`, `seasonal_naive`, `drift`, `naive2` (which has no quantiles),
            `theta_method` and `exponential_smoothing`.
        season: steps of one; 1 is none.

    Raises:
        ValueError: another method, or a season below 1.

    >>> from jaxops.forecast import forecast, from_arrays
    >>> history = from_arrays(["a"], [[1, 2, 3, 4, 5, 6]])
    >>> forecast(Baseline("seasonal_naive", 3), history, 4, levels=()).mean[0, :, 0].tolist()
    [4.0, 5.0, 6.0, 4.0]
    """

    method: str
    season: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: {self.method!r} found, one of {METHODS} wanted")
        if self.season < 1:
            raise ValueError(f"season: {self.season} found, at least 1 wanted")

    @property
    def has_quantiles(self) -> bool:
        """Whether it says more than a point."""
        return self.method != "naive2"

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        if horizon is None:
            raise ValueError(f"horizon: none found, a number wanted by {self}")
        if levels and not self.has_quantiles:
            raise ValueError(
                f"levels: {levels} found, () wanted: {self.method!r} has no quantiles; `calibrated`"
                " puts some around it"
            )
        shape = len(history), horizon, len(history.channels)
        mean = np.empty(shape, np.float32)
        quantiles = np.empty((*shape, len(levels)), np.float32)
        # series of a like length together, in columns of a power of two: one that is long does not
        # make all the others so, and one that has grown by a row needs no other program
        columns = np.maximum(64, 2 ** np.ceil(np.log2(history.lengths)).astype(int))
        for width in np.unique(columns):
            of = np.flatnonzero(columns == width)
            some = history.part(of)
            for c, column in enumerate(some.values.T):
                values, lengths = right_aligned(column, some.offsets)
                values = np.pad(values, ((0, 0), (width - values.shape[1], 0)))
                found = jax.device_get(_answer(self, horizon, levels, values, lengths))
                mean[of, :, c] = found[0]
                if levels:
                    quantiles[of, :, c] = found[1]
        return mean, quantiles


def _answer(
    model: Baseline, horizon: int, levels: tuple[float, ...], values: Any, lengths: Any
) -> tuple[Any, Any]:
    """Mean (B, H) and quantiles (B, H, Q), or None, of one fit."""
    season = model.season
    if model.method == "ets":
        fit = fit_smoothing(values, season, lengths)
        return mean_path(fit, horizon), path_quantiles(fit, horizon, levels) if levels else None
    if model.method == "theta":
        mean, sd = theta_normal(jnp.asarray(values), jnp.asarray(lengths), horizon, season)
        return mean, normal_quantiles(mean, sd, levels) if levels else None
    if model.method == "naive2":
        return naive2(values, horizon, season, lengths), None
    method = {
        "repeat_last": repeat_last,
        "drift": drift,
        "seasonal_naive": lambda values, horizon, *rest: seasonal_naive(
            values, horizon, season, *rest
        ),
    }[model.method]
    given = values, horizon, lengths
    return method(*given), method(*given, levels) if levels else None
