"""Tables: rows of numbers and text to features, networks, and what to learn from them."""

from jaxops.data.encoders import Encoder, encode, fit_encoder
from jaxops.tabular.models import MLP
from jaxops.tabular.tasks import auc, classifier

__all__ = ["MLP", "Encoder", "auc", "classifier", "encode", "fit_encoder"]
