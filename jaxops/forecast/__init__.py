"""Forecasting: from a table of series to quantiles, for any series."""

from jaxops.forecast.backtests import Backtest, historical_forecasts, history
from jaxops.forecast.baselines import drift, repeat_last, right_aligned, seasonal_naive
from jaxops.forecast.classical import Baseline
from jaxops.forecast.conformal import (
    Adaptive,
    Bounds,
    Conformal,
    adaptive,
    calibrated,
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
from jaxops.forecast.effects import Effects, effect, log_linear
from jaxops.forecast.ensembles import Ensemble, stacking
from jaxops.forecast.ets import DAMPED, FORMS, Fit, exponential_smoothing, fit_smoothing
from jaxops.forecast.forecasters import (
    Forecast,
    Forecaster,
    Model,
    forecast,
    forecaster,
    load,
    save,
)
from jaxops.forecast.future import future_covariates
from jaxops.forecast.inputs import Inputs
from jaxops.forecast.linear import DLinear, NLinear
from jaxops.forecast.metrics import (
    Evaluation,
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
from jaxops.forecast.running import AdaptiveBacktest, adaptive_backtest
from jaxops.forecast.scales import Scaling, scaling
from jaxops.forecast.tasks import direct
from jaxops.forecast.theta import naive2, theta_method
from jaxops.forecast.windows import (
    Fold,
    Split,
    Windows,
    backtest,
    check_windows,
    cut,
    gather,
    origins,
    padded,
    split,
    split_by_time,
    too_short,
)
from jaxops.intervals import block_interval

__all__ = [
    "DAMPED",
    "FORMS",
    "NBEATS",
    "Adaptive",
    "AdaptiveBacktest",
    "Backtest",
    "Baseline",
    "Bounds",
    "Conformal",
    "DLinear",
    "Distribution",
    "Effects",
    "Ensemble",
    "Evaluation",
    "Fit",
    "Fold",
    "Forecast",
    "Forecaster",
    "Gaussian",
    "ITransformer",
    "Inputs",
    "Model",
    "NHiTS",
    "NLinear",
    "NegativeBinomial",
    "Output",
    "PatchTST",
    "Point",
    "Quantiles",
    "Recurrent",
    "Report",
    "Scaling",
    "Series",
    "Split",
    "StudentT",
    "TSMixer",
    "TSMixerExt",
    "TiDE",
    "Windows",
    "ZeroInflated",
    "adaptive",
    "adaptive_backtest",
    "backtest",
    "block_interval",
    "calendar",
    "calibrated",
    "check_windows",
    "compare",
    "conformal_quantiles",
    "coverage",
    "crps_normal",
    "crps_quantiles",
    "crps_samples",
    "cut",
    "direct",
    "drift",
    "effect",
    "exponential_smoothing",
    "fit_smoothing",
    "forecast",
    "forecaster",
    "from_arrays",
    "future_covariates",
    "gather",
    "historical_forecasts",
    "history",
    "load",
    "log_linear",
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
    "right_aligned",
    "rmse",
    "save",
    "scaling",
    "score",
    "seasonal_naive",
    "seasonal_scale",
    "series",
    "smape",
    "split",
    "split_by_time",
    "split_conformal",
    "stacking",
    "table",
    "theta_method",
    "too_short",
    "width",
]
