"""Classical methods as a model for `forecast`."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxops.forecast.classical.ets import fit_smoothing, mean_path, path_quantiles
from jaxops.forecast.classical.naive import (
    drift,
    normal_quantiles,
    repeat_last,
    right_aligned,
    seasonal_naive,
)
from jaxops.forecast.classical.recursions import DAMPED, Form
from jaxops.forecast.classical.theta import naive2, theta_normal
from jaxops.forecast.data.series import Series
from jaxops.task import recorded

METHODS = ("repeat_last", "seasonal_naive", "drift", "naive2", "theta", "ets")


@recorded
@dataclass(frozen=True)
class Baseline:
    """A classical method: each series and channel is forecast from its own history.

    Nothing is trained beforehand, and covariates are not used.

    Attributes:
        method: "repeat_last", "seasonal_naive", "drift", "naive2", "theta" or "ets"; see
            `repeat_last`, `seasonal_naive`, `drift`, `naive2` (which has no quantiles),
            `theta_method` and `exponential_smoothing`.
        season: number of steps in one season; 1 for no season.
        forms: the forms that "ets" chooses from, see `exponential_smoothing`. By default all
            trends are damped; `FORMS` has straight trends too.

    Raises:
        ValueError: the method or a form is unknown, or the season is below 1.

    >>> from jaxops.forecast import forecast, from_arrays
    >>> history = from_arrays(["a"], [[1, 2, 3, 4, 5, 6]])
    >>> forecast(Baseline("seasonal_naive", 3), history, 4, levels=()).mean[0, :, 0].tolist()
    [4.0, 5.0, 6.0, 4.0]
    """

    method: str
    season: int = 1
    forms: tuple[str, ...] = DAMPED

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
        if self.season < 1:
            raise ValueError(f"season must be at least 1, got {self.season}")
        object.__setattr__(self, "forms", tuple(self.forms))
        Form.of(self.forms)

    @property
    def has_quantiles(self) -> bool:
        """Whether the method has quantiles besides the point forecast."""
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
            raise ValueError(f"horizon must be a number for {self}, got None")
        if levels and not self.has_quantiles:
            raise ValueError(
                f"levels must be () for {self.method!r}, which has no quantiles, got {levels}; "
                "`calibrated` puts quantiles around it"
            )
        shape = len(history), horizon, len(history.channels)
        mean = np.empty(shape, np.float32)
        quantiles = np.empty((*shape, len(levels)), np.float32)
        # Series of similar length are forecast together, padded to a power of two of columns. So a
        # long series does not widen all others, and a series that grows by a row needs no new
        # compilation.
        columns = np.maximum(64, 2 ** np.ceil(np.log2(history.lengths)).astype(int))
        for width in np.unique(columns):
            rows = np.flatnonzero(columns == width)
            some = history.part(rows)
            for c, column in enumerate(some.values.T):
                values, lengths = right_aligned(column, some.offsets)
                values = np.pad(values, ((0, 0), (width - values.shape[1], 0)))
                answer = jax.device_get(_answer(self, horizon, levels, values, lengths))
                mean[rows, :, c] = answer[0]
                if levels:
                    quantiles[rows, :, c] = answer[1]
        return mean, quantiles


def _answer(
    model: Baseline, horizon: int, levels: tuple[float, ...], values: Any, lengths: Any
) -> tuple[Any, Any]:
    """Mean (B, H) and quantiles (B, H, Q) from one fit; the quantiles are None without levels."""
    if model.method == "ets":
        forms = model.forms
        fit = fit_smoothing(values, model.season, lengths, forms)
        mean = mean_path(fit, horizon, forms)
        return mean, path_quantiles(fit, horizon, levels, forms) if levels else None
    return _compiled(model, horizon, levels, values, lengths)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    model: Baseline, horizon: int, levels: tuple[float, ...], values: Any, lengths: Any
) -> tuple[Any, Any]:
    """`_answer` for all methods except "ets", whose fit is compiled by itself."""
    season = model.season
    if model.method == "theta":
        mean, sd = theta_normal(values, lengths, horizon, season)
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
    arguments = values, horizon, lengths
    return method(*arguments), method(*arguments, levels) if levels else None
