"""Finished models in fewer or smaller arrays, and a receipt of what that costs."""

from jaxops.compress.distillation import distil
from jaxops.compress.factors import Factored, low_rank
from jaxops.compress.pruning import cubic, gradual, keep_zeros, prune
from jaxops.compress.quantisation import aware, quantise
from jaxops.compress.receipts import Receipt, receipt
from jaxops.compress.structure import structured
from jaxops.nn.packed import Packed

__all__ = [
    "Factored",
    "Packed",
    "Receipt",
    "aware",
    "cubic",
    "distil",
    "gradual",
    "keep_zeros",
    "low_rank",
    "prune",
    "quantise",
    "receipt",
    "structured",
]
