"""Forecasting: from a table of series to quantiles, for any series."""

from jaxops.forecast.baselines import drift, padded, repeat_last, seasonal_naive
from jaxops.forecast.conformal import (
    Adaptive,
    Bounds,
    adaptive,
    conformal_quantiles,
    margin,
    quantile_scores,
    split_conformal,
)
from jaxops.forecast.data import Report, Series, from_arrays
from jaxops.forecast.dates import calendar
from jaxops.forecast.distributions import (
    Distribution,
    Gaussian,
    NegativeBinomial,
    StudentT,
    ZeroInflated,
)
from jaxops.forecast.future import future_covariates
from jaxops.forecast.inputs import Inputs
from jaxops.forecast.linear import DLinear, NLinear
from jaxops.forecast.metrics import (
    Scores,
    block_interval,
    compare,
    coverage,
    crps_normal,
    crps_quantiles,
    crps_samples,
    mae,
    mase,
    mse,
    owa,
    pinball,
    rmse,
    score,
    seasonal_scale,
    smape,
    table,
    width,
)
from jaxops.forecast.mixer import TiDE, TSMixer, TSMixerExt
from jaxops.forecast.nbeats import NBEATS, NHiTS
from jaxops.forecast.normalization import normalize
from jaxops.forecast.outputs import Output, Point, Quantiles
from jaxops.forecast.patch import ITransformer, PatchTST
from jaxops.forecast.reading import series
from jaxops.forecast.recurrent import Recurrent
from jaxops.forecast.series import Series
from jaxops.forecast.theta import naive2, theta_method
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
    "NBEATS",
    "Adaptive",
    "Bounds",
    "DLinear",
    "Distribution",
    "Fold",
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
    "Report",
    "Scores",
    "Series",
    "Split",
    "StudentT",
    "TSMixer",
    "TSMixerExt",
    "TiDE",
    "ZeroInflated",
    "adaptive",
    "backtest",
    "block_interval",
    "calendar",
    "compare",
    "conformal_quantiles",
    "coverage",
    "crps_normal",
    "crps_quantiles",
    "crps_samples",
    "drift",
    "from_arrays",
    "future_covariates",
    "gather",
    "mae",
    "margin",
    "mase",
    "mse",
    "naive2",
    "normalize",
    "origins",
    "owa",
    "padded",
    "pinball",
    "quantile_scores",
    "repeat_last",
    "rmse",
    "score",
    "seasonal_naive",
    "seasonal_scale",
    "series",
    "smape",
    "split",
    "split_by_time",
    "split_conformal",
    "table",
    "theta_method",
    "too_short",
    "width",
]
