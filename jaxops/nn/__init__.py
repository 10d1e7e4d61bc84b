"""Layers that several rooms share."""

from jaxops.nn.convolution import Conv, conv2d, max_pool
from jaxops.nn.normalization import BatchNorm

__all__ = ["BatchNorm", "Conv", "conv2d", "max_pool"]
