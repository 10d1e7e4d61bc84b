"""Tables: one call a job, and below it the reader, modules and tasks."""

from jaxops.tabular.boosters import CatBoost, LightGBM, XGBoost
from jaxops.tabular.data import Classes, Encoder, TableReader, Values, encode, fit_encoder, read
from jaxops.tabular.ensembles import short_list
from jaxops.tabular.inference import classify
from jaxops.tabular.jobs import evaluate, fit, recipe, update
from jaxops.tabular.models import MLP, TabM
from jaxops.tabular.tasks import auc, classifier, regressor
from jaxops.tabular.trees import HistGradientBoosting

__all__ = [
    "MLP",
    "CatBoost",
    "Classes",
    "Encoder",
    "HistGradientBoosting",
    "LightGBM",
    "TabM",
    "TableReader",
    "Values",
    "XGBoost",
    "auc",
    "classifier",
    "classify",
    "encode",
    "evaluate",
    "fit",
    "fit_encoder",
    "read",
    "recipe",
    "regressor",
    "short_list",
    "update",
]
