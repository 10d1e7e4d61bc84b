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
from jaxops.forecast.mixer import TiDE, TSMixer, TSMixerExt
from jaxops.forecast.nbeats import NBEATS, NHiTS
from jaxops.forecast.normalization import normalize
from jaxops.forecast.outputs import Output, Point, Quantiles
from jaxops.forecast.patch import ITransformer, PatchTST
from jaxops.forecast.recurrent import Recurrent

__all__ = [
    "NBEATS",
    "DLinear",
    "Distribution",
    "Gaussian",
    "ITransformer",
    "Inputs",
    "NHiTS",
    "NLinear",
    "NegativeBinomial",
    "Output",
    "PatchTST",
    "Point",
    "Quantiles",
    "Recurrent",
    "StudentT",
    "TSMixer",
    "TSMixerExt",
    "TiDE",
    "ZeroInflated",
    "normalize",
]
