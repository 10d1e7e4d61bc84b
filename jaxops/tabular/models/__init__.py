"""Flax modules that read rows of features: float (B, d) to outputs (B, outputs).

The features are those of `jaxops.data.encoders.Encoder`: numbers first, then indicators, and texts
by their number last. A module may say by an attribute `reads` how it wants them; `tabular.fit`
encodes a table so. Of the fields that a module has, it sets `outputs`, `numbers` (how many features
are numbers), `categories` (how many numbers there are for the texts of each column), `rows` (of
training), `steps` (of training) and the `edges` of an `embedding`.
"""

from jaxops.tabular.models.embeddings import Periodic, PiecewiseLinear, Reads
from jaxops.tabular.models.mlp import MLP
from jaxops.tabular.models.neighbours import ModernNCA
from jaxops.tabular.models.real_mlp import RealMLP
from jaxops.tabular.models.resnet import ResNet
from jaxops.tabular.models.tabm import TabM
from jaxops.tabular.models.transformer import FTTransformer

__all__ = [
    "MLP",
    "FTTransformer",
    "ModernNCA",
    "Periodic",
    "PiecewiseLinear",
    "Reads",
    "RealMLP",
    "ResNet",
    "TabM",
]
