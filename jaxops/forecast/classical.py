"""The forecasts that every table begins with, asked as any other model is."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.forecast.baselines import drift, repeat_last, right_aligned, seasonal_naive
from jaxops.forecast.data import Series
from jaxops.forecast.ets import exponential_smoothing
from jaxops.forecast.theta import theta_method

METHODS = ("repeat_last", "seasonal_naive", "drift", "theta", "ets")


@dataclass(frozen=True)
class Baseline:
    """A method that learns nothing beforehand: each series is forecast from itself alone.

    Channels are forecast one by one; covariates are not looked at.

    Attributes:
        method: "repeat_last", "seasonal_naive", "drift", "theta" or "ets"; see `repeat_last`,
            `seasonal_naive`, `drift`, `theta_method` and `exponential_smoothing`.
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
        parts = []
        for column in history.values.T:
            values, lengths = right_aligned(column, history.offsets)
            found = _answer(self, horizon, levels, values, lengths)
            parts.append(jax.device_get(found))
        mean, quantiles = (np.stack(x, 2) for x in zip(*parts, strict=True))
        return mean, quantiles


def _answer(
    model: Baseline, horizon: int, levels: tuple[float, ...], values: Any, lengths: Any
) -> tuple[Any, Any]:
    plain: dict[str, Any] = {"repeat_last": repeat_last, "drift": drift}
    seasonal = {
        "seasonal_naive": seasonal_naive,
        "theta": theta_method,
        "ets": exponential_smoothing,
    }

    def call(levels: tuple[float, ...] | None) -> Any:
        if model.method in plain:
            return plain[model.method](values, horizon, lengths, levels)
        return seasonal[model.method](values, horizon, model.season, lengths, levels)

    mean = call(None)
    return mean, call(levels) if levels else jnp.zeros((*mean.shape, 0))
