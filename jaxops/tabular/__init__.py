"""Tables: one call a job, and below it the reader, modules and tasks."""

from jaxops.tabular.data import Classes, Encoder, TableReader, Values, encode, fit_encoder, read
from jaxops.tabular.inference import classify
from jaxops.tabular.jobs import evaluate, fit, recipe, update
from jaxops.tabular.models import MLP, TabM
from jaxops.tabular.tasks import auc, classifier, regressor

__all__ = [
    "MLP",
    "Classes",
    "Encoder",
    "TabM",
    "TableReader",
    "Values",
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
    "update",
]
