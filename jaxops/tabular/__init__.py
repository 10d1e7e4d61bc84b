"""Tables: rows of numbers and text, modules, tasks, and what a trained model says of rows."""

from jaxops.tabular.data import Encoder, encode, fit_encoder
from jaxops.tabular.inference import Scored, classify
from jaxops.tabular.models import MLP
from jaxops.tabular.tasks import auc, classifier

__all__ = [
    "MLP",
    "Encoder",
    "Scored",
    "auc",
    "classifier",
    "classify",
    "encode",
    "fit_encoder",
]
