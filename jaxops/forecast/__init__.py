"""Forecasting: from a table of series to quantiles, for any series."""

from jaxops.forecast.data import Report, Series, from_arrays
from jaxops.forecast.dates import calendar
from jaxops.forecast.future import future_covariates
from jaxops.forecast.reading import series
from jaxops.forecast.windows import (
    Fold,
    Split,
    backtest,
    cut,
    gather,
    origins,
    padded,
    split,
    split_by_time,
    too_short,
)

__all__ = [
    "Fold",
    "Report",
    "Series",
    "Split",
    "backtest",
    "calendar",
    "cut",
    "from_arrays",
    "future_covariates",
    "gather",
    "origins",
    "padded",
    "series",
    "split",
    "split_by_time",
    "too_short",
]
