"""Finished models in fewer or smaller arrays: `prune`, `structured`, `low_rank`, `distil`."""

from jaxops.compress.distillation import distil
from jaxops.compress.factors import Factored, low_rank
from jaxops.compress.pruning import cubic, gradual, keep_zeros, prune
from jaxops.compress.structure import structured

__all__ = [
    "Factored",
    "cubic",
    "distil",
    "gradual",
    "keep_zeros",
    "low_rank",
    "prune",
    "structured",
]
