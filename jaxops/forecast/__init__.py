"""Forecasting: quantiles of the future of any series, from a table of series."""

from jaxops.forecast.adaptive_backtests import AdaptiveBacktest, adaptive_backtest
from jaxops.forecast.backtests import Backtest, historical_forecasts, history
from jaxops.forecast.classical.baseline import Baseline
from jaxops.forecast.classical.ets import Fit, exponential_smoothing, fit_smoothing
from jaxops.forecast.classical.naive import drift, repeat_last, right_aligned, seasonal_naive
from jaxops.forecast.classical.recursions import DAMPED, FORMS
from jaxops.forecast.classical.theta import naive2, theta_method
from jaxops.forecast.conformal import Conformal, calibrated
from jaxops.forecast.data.dates import calendar
from jaxops.forecast.data.future import future_covariates
from jaxops.forecast.data.reading import series
from jaxops.forecast.data.scales import Scaling, scaling
from jaxops.forecast.data.series import Report, Series, from_arrays
from jaxops.forecast.data.windows import (
    Fold,
    Split,
    Windows,
    backtest,
    cut,
    origins,
    padded,
    split,
    split_by_time,
    too_short,
)
from jaxops.forecast.effects import Effects, effect, log_linear
from jaxops.forecast.ensembles import Ensemble, LogScale, stacking
from jaxops.forecast.evaluation import owa_interval, score
from jaxops.forecast.inference import Forecast, Forecaster, Method, forecast, forecaster
from jaxops.forecast.jobs import evaluate, fit, update
from jaxops.forecast.metrics import (
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
    seasonal_scale,
    smape,
    width,
)
from jaxops.forecast.models.distributions import (
    Distribution,
    Gaussian,
    NegativeBinomial,
    StudentT,
    ZeroInflated,
)
from jaxops.forecast.models.inputs import Inputs
from jaxops.forecast.models.linear import DLinear, NLinear
from jaxops.forecast.models.mixer import TiDE, TSMixer, TSMixerExt
from jaxops.forecast.models.nbeats import NBEATS, NHiTS
from jaxops.forecast.models.normalization import normalize
from jaxops.forecast.models.outputs import Output, Point, Quantiles
from jaxops.forecast.models.patch import ITransformer, PatchTST
from jaxops.forecast.models.recurrent import Recurrent
from jaxops.forecast.reader import SeriesReader
from jaxops.forecast.recipes import recipe
from jaxops.forecast.tasks import direct
from jaxops.trust.conformal import (
    Adaptive,
    Bounds,
    adaptive,
    conformal_quantiles,
    margin,
    quantile_scores,
    split_conformal,
)
from jaxops.trust.evaluation import Evaluation, compare, table
from jaxops.trust.intervals import block_interval

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
    "LogScale",
    "Method",
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
    "SeriesReader",
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
    "evaluate",
    "exponential_smoothing",
    "fit",
    "fit_smoothing",
    "forecast",
    "forecaster",
    "from_arrays",
    "future_covariates",
    "historical_forecasts",
    "history",
    "log_linear",
    "mae",
    "margin",
    "mase",
    "mse",
    "naive2",
    "normalize",
    "origins",
    "owa",
    "owa_interval",
    "padded",
    "pinball",
    "quantile_scores",
    "recipe",
    "repeat_last",
    "right_aligned",
    "rmse",
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
    "update",
    "width",
]
