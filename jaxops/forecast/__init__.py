"""Forecasting: from a table of series to quantiles, for any series."""

from jaxops.forecast.data import Report, Series, from_arrays
from jaxops.forecast.dates import calendar
from jaxops.forecast.future import future_covariates
from jaxops.forecast.inputs import Inputs
from jaxops.forecast.linear import DLinear, NLinear
from jaxops.forecast.normalization import normalize
from jaxops.forecast.outputs import Output, Point
from jaxops.forecast.patch import PatchTST
from jaxops.forecast.reading import series
from jaxops.forecast.windows import (
    Fold,
    Split,
    backtest,
    gather,
    origins,
    padded,
    split,
    split_by_time,
    too_short,
)

__all__ = [
    "DLinear",
    "Fold",
    "Inputs",
    "NLinear",
    "Output",
    "PatchTST",
    "Point",
    "Report",
    "Series",
    "Split",
    "backtest",
    "calendar",
    "from_arrays",
    "future_covariates",
    "gather",
    "normalize",
    "origins",
    "padded",
    "series",
    "split",
    "split_by_time",
    "too_short",
]
