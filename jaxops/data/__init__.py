"""Named columns from anywhere: known data sets, arrays, files, folders of images, TFDS."""

from jaxops.data import augment
from jaxops.data.checks import check, rows
from jaxops.data.dataset import Dataset, k_fold
from jaxops.data.sources import load
from jaxops.data.streams import stream
from jaxops.data.tokenizer import Tokenizer

__all__ = ["Dataset", "Tokenizer", "augment", "check", "k_fold", "load", "rows", "stream"]
