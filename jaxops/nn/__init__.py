"""Layers that several rooms share."""

from jaxops.nn.convolution import Conv, conv2d, max_pool
from jaxops.nn.normalization import BatchNorm
from jaxops.nn.product import Dense, computing, matmul

__all__ = ["BatchNorm", "Conv", "Dense", "computing", "conv2d", "matmul", "max_pool"]
