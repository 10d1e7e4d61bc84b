"""Forecasting: from a table of series to quantiles, for any series."""

from jaxops.forecast.distributions import (
    Distribution,
    Gaussian,
    NegativeBinomial,
    StudentT,
    ZeroInflated,
)
from jaxops.forecast.inputs import Inputs
from jaxops.forecast.linear import DLinear, NLinear
from jaxops.forecast.normalization import normalize
from jaxops.forecast.outputs import Output, Point, Quantiles
from jaxops.forecast.patch import PatchTST

__all__ = [
    "DLinear",
    "Distribution",
    "Gaussian",
    "Inputs",
    "NLinear",
    "NegativeBinomial",
    "Output",
    "PatchTST",
    "Point",
    "Quantiles",
    "StudentT",
    "ZeroInflated",
    "normalize",
]
