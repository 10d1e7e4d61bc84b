"""Tables: one call a job, and below it the reader, modules and tasks."""

from jaxops.tabular.boosters import CatBoost, LightGBM, XGBoost
from jaxops.tabular.data import (
    Classes,
    Encoder,
    Labels,
    Quantiles,
    TableReader,
    Values,
    encode,
    fit_encoder,
    read,
)
from jaxops.tabular.ensembles import short_list
from jaxops.tabular.inference import classify
from jaxops.tabular.jobs import evaluate, fit, recipe, update
from jaxops.tabular.models import (
    MLP,
    FTTransformer,
    ModernNCA,
    Periodic,
    PiecewiseLinear,
    Reads,
    RealMLP,
    ResNet,
    TabM,
)
from jaxops.tabular.targets import counts, multilabel, quantiles, zero_inflated
from jaxops.tabular.tasks import auc, classifier, regressor
from jaxops.tabular.trees import HistGradientBoosting

__all__ = [
    "MLP",
    "CatBoost",
    "Classes",
    "Encoder",
    "FTTransformer",
    "HistGradientBoosting",
    "Labels",
    "LightGBM",
    "ModernNCA",
    "Periodic",
    "PiecewiseLinear",
    "Quantiles",
    "Reads",
    "RealMLP",
    "ResNet",
    "TabM",
    "TableReader",
    "Values",
    "XGBoost",
    "auc",
    "classifier",
    "classify",
    "counts",
    "encode",
    "evaluate",
    "fit",
    "fit_encoder",
    "multilabel",
    "quantiles",
    "read",
    "recipe",
    "regressor",
    "short_list",
    "update",
    "zero_inflated",
]
