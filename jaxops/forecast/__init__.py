"""Forecasting: from a table of series to quantiles, for any series."""

from jaxops.forecast.inputs import Inputs
from jaxops.forecast.linear import DLinear, NLinear
from jaxops.forecast.normalization import normalize
from jaxops.forecast.outputs import Output, Point
from jaxops.forecast.patch import PatchTST

__all__ = ["DLinear", "Inputs", "NLinear", "Output", "PatchTST", "Point", "normalize"]
