"""Readers of named columns: known data sets, arrays, files, folders of images, TFDS."""

from jaxops.data import augment
from jaxops.data.checks import check, rows
from jaxops.data.dataset import Dataset, k_fold
from jaxops.data.packing import Packed, pack
from jaxops.data.sources import load, read_idx
from jaxops.data.streams import Streamed, stream
from jaxops.data.tokenizer import Encoded, Tokenizer

__all__ = [
    "Dataset",
    "Encoded",
    "Packed",
    "Streamed",
    "Tokenizer",
    "augment",
    "check",
    "k_fold",
    "load",
    "pack",
    "read_idx",
    "rows",
    "stream",
]
